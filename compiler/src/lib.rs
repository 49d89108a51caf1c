//! The Precast compiler: a model and a recipe in, a [`precast_plan::Plan`] out. It never sees a
//! device.

pub mod diagnostic;
pub mod ir;
#[macro_use]
pub mod ops;
pub mod autodiff;
pub mod bound;
pub mod cost;
pub mod egraph;
pub mod emit;
pub mod frontend;
pub mod pipeline;
pub mod precision;
pub mod reference;
pub mod schedule;
pub mod simplify;
pub mod snapshot;
pub mod text;
pub mod turn;
pub mod work;

pub use diagnostic::{Diagnostic, Diagnostics, Place, Severity};
