//! What a person hands in: the model and the recipe.

pub mod onnx;
pub mod recipe;
