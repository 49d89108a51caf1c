//! What a person hands in: a model and a recipe.

pub mod onnx;
pub mod recipe;
pub mod recognise;
pub mod textual;
mod weights;
