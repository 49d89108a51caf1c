//! What comes in: models.

pub mod onnx;
