//! Runs Precast plans: the training session, the CPU backend, data, checkpoints.
//!
//! Invariant: this crate never sees the IR. It trusts nothing in a plan until it is validated.

pub mod backend;
pub mod blame;
pub mod calibrate;
pub mod checkpoint;
pub mod cpu;
pub mod cuda;
pub mod data;
pub mod error;
pub mod files;
pub mod fingerprint;
pub mod init;
pub mod ranges;
pub mod session;
pub mod tensors;
pub mod weights;

pub use backend::{Backend, Held, KernelTime, Phase};
pub use checkpoint::{Checkpoint, Snapshot};
pub use cpu::CpuBackend;
pub use error::{Error, Result};
pub use session::{Fit, Options, Seen, Session, StepReport};
pub use tensors::{HostTensor, TensorFile, WeightSource};
pub use weights::ModelWeights;
