//! What a person hands in: a model and a recipe.

pub mod recipe;
