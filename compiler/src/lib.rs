//! The Precast compiler: a model and a recipe in, a [`precast_plan::Plan`] out. It never sees a
//! device.

pub mod diagnostic;
pub mod emit;
pub mod ir;
#[macro_use]
pub mod ops;
pub mod schedule;

pub use diagnostic::{Diagnostic, Diagnostics, Place, Severity};
