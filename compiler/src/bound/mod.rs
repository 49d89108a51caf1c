//! A time below which no plan of a graph can be predicted.
//!
//! What is bounded is the prediction of [`crate::cost::step_ns`] summed over a schedule, over every
//! legal choice of formats (f32 and one 16-bit format for every stored value and every product) and
//! every grouping of operations into kernels that the forms of kernels allow (`sharing.rs`); values
//! may be computed again instead of stored, as the schedule may do. Only what every such plan pays
//! is counted:
//!
//! - *multiplications*, and the operands that products read;
//! - *traffic*: a value is written once where its producer and a reader cannot share a kernel, or a
//!   product reads it, once in every format that is read; and read once by as many row programs as
//!   cannot share a kernel with each other;
//! - *work*: instructions that no sharing saves (`work.rs`);
//! - *launches*: products, kernels that run alone, and operations of which no two can share a
//!   kernel (`launches.rs`).
//!
//! Formats enter as the two sides of a minimum cut, as in [`crate::precision::labels`], so that the
//! least over all formats is exact for these terms. The bound is loose by what schedules cannot
//! avoid but this does not see: kernels that a third one keeps apart, casts that run alone.

mod added;
mod company;
mod floor;
mod launches;
mod sharing;
mod touched;
mod work;

pub use floor::{Admitted, Floor, Formats, floor};
pub use sharing::{Ends, Sharing};
