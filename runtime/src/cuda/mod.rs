//! NVIDIA GPUs.
//!
//! A plan's steps are first *lowered*: pure functions of the plan and of what is known of the
//! device make a list of [`launch::Task`]s, generated kernel text included. What follows (compiling
//! the text, allocating, launching, capturing) decides nothing about numerics, so that lowering can
//! be checked on a machine without a GPU.

pub mod api;
pub mod blas;
pub mod cache;
pub mod device;
pub mod dnn;
pub mod driver;
pub mod graphs;
pub mod kernels;
pub mod launch;
pub mod library;
pub mod lower;
pub mod measure;
pub mod module;
pub mod nvrtc;
pub mod product;
pub mod refusals;
pub mod regions;
pub mod report;
mod settings;
pub mod staging;
#[cfg(test)]
pub mod testing;
pub mod text;

pub use device::CudaBackend;
pub use driver::{DeviceInfo, device, devices};
pub use report::{Report, report};
