//! cuBLASLt: descriptions of matrix products, candidates to compute them, and their running.

mod api;
pub mod product;

/// `cublasStatus_t`
pub type Status = u32;
pub const NOT_INITIALIZED: Status = 1;
pub const INVALID_VALUE: Status = 7;
pub const EXECUTION_FAILED: Status = 13;
pub const NOT_SUPPORTED: Status = 15;
