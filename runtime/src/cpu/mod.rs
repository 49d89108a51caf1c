//! The CPU backend.

pub mod kernels;
pub mod simd;
