//! Kernels over raw memory. They know nothing of plans: an executor hands them pointers, strides
//! and scratch space.
//!
//! Invariants: no kernel allocates; results have the same bits for any number of threads; sums are
//! in f32 whatever the operands' format.

pub mod along;
pub mod attention;
pub mod conv;
mod conv_depthwise;
pub mod conv_shape;
pub mod conv_wgrad;
pub mod convert;
pub mod epilogue;
pub mod gather;
pub mod gemm;
pub mod lanes;
pub mod pack;
pub mod par;
pub mod pool;
pub mod rows;
pub mod vmath;

#[cfg(test)]
mod testing;
