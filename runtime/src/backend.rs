//! What a device must do to run plans.

use crate::error::Result;
use precast_plan::TensorId;

/// A list of steps of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Forward and backward over one batch.
    Micro,
    /// Optimizer update and loss-scale machine.
    Update,
    /// Forward only.
    Eval,
}

/// A loaded plan on a device: memory is allocated and every step is bound to its kernel.
///
/// Running a phase does not allocate and does not wait for the host.
pub trait Backend: Send {
    /// Replaces the contents of a tensor with its little-endian row-major `bytes`.
    ///
    /// # Errors
    /// If the length is not that of the tensor.
    fn write(&mut self, tensor: TensorId, bytes: &[u8]) -> Result<()>;

    /// Copies the contents of a tensor to `out`, once everything that runs has finished.
    ///
    /// # Errors
    /// If the length is not that of the tensor.
    fn read(&self, tensor: TensorId, out: &mut [u8]) -> Result<()>;

    /// Runs the steps of a phase in order.
    ///
    /// # Errors
    /// If the data made a step impossible (an id out of range), or the device failed.
    fn run(&mut self, phase: Phase) -> Result<()>;

    /// For people: the device and how it computes.
    fn describe(&self) -> String;
}
