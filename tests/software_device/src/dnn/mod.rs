//! cuDNN's graph interface: descriptors, three engines, and the running of graphs of convolutions,
//! products, pointwise operations and reductions.

mod api;
mod desc;
pub mod graph;

use std::sync::atomic::AtomicU64;

/// Handles and descriptors that were not destroyed.
pub static LIVE: AtomicU64 = AtomicU64::new(0);

/// `cudnnStatus_t`
pub type Status = u32;
pub const BAD_PARAM: Status = 2000;
pub const NOT_SUPPORTED: Status = 3000;
pub const EXECUTION_FAILED: Status = 5000;
