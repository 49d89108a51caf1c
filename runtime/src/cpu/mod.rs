//! The CPU backend.

mod device;
pub mod exec;
pub mod kernels;
pub mod pool;
pub mod reorder;
pub mod rows;
pub mod simd;
pub mod special;

pub use device::CpuBackend;
