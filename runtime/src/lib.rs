//! Runs Precast plans: the training session, the CPU backend, data, checkpoints.
//!
//! Invariant: this crate never sees the IR. It trusts nothing in a plan until it is validated.

pub mod backend;
pub mod cpu;
pub mod error;

pub use backend::{Backend, Phase};
pub use cpu::CpuBackend;
pub use error::{Error, Result};
