//! Kernels over raw memory. They know nothing of plans: an executor hands them pointers, strides
//! and scratch space.

pub mod convert;
pub mod vmath;
