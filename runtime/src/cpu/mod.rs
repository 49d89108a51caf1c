//! The CPU backend.

pub mod kernels;
pub mod pool;
pub mod rows;
pub mod simd;
