//! What a device must do to run plans.

use crate::error::{Error, Result};
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

/// What a kernel has taken.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct KernelTime {
    pub runs: u64,
    /// Seconds of the first run, which finds cold caches and untouched memory.
    pub first: f64,
    /// Seconds of all others together.
    pub rest: f64,
}

impl KernelTime {
    pub(crate) fn add(&mut self, seconds: f64) {
        match self.runs {
            0 => self.first = seconds,
            _ => self.rest += seconds,
        }
        self.runs += 1;
    }

    /// Seconds of a run in the mean, of those since `earlier`, a state of the same kernel.
    pub fn mean_since(&self, earlier: &KernelTime) -> f64 {
        let all = |t: &KernelTime| t.first + t.rest;
        let runs = self.runs.saturating_sub(earlier.runs);
        (all(self) - all(earlier)) / runs.max(1) as f64
    }

    /// Seconds of a run in the mean, the first aside unless it is the only one.
    pub fn mean(&self) -> f64 {
        match self.runs {
            0 | 1 => self.first,
            n => self.rest / (n - 1) as f64,
        }
    }
}

/// Memory of this process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// Bytes of a step's temporaries, of what outlives it, and of its inputs, as the plan lays them out.
    pub tensors: u64,
    /// Bytes that kernels work in beside them: what they share, and what they keep for themselves.
    pub scratch: u64,
    /// Bytes that threads work in, their stacks at most included.
    pub threads: u64,
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

    /// Runs step `index` of a phase by itself, for looking at what it wrote.
    ///
    /// # Errors
    /// As [`Backend::run`]; R0511 where the device runs phases as a whole.
    fn run_step(&mut self, _phase: Phase, _index: usize) -> Result<()> {
        Err(Error::new("R0511", "this device does not run steps one by one")
            .help("watch the plan on the CPU backend"))
    }

    /// Times every kernel by itself from now on. What is computed stays as it is, to the bit.
    ///
    /// # Errors
    /// R0511 where the device runs phases as a whole.
    fn time_kernels(&mut self) -> Result<()> {
        Err(Error::new("R0511", "this device does not run steps one by one")
            .help("kernels are timed on the CPU backend; on a GPU, by `nsys profile`"))
    }

    /// What each step of a phase has taken since [`Backend::time_kernels`]; empty where nothing is
    /// timed.
    fn kernel_times(&self, _phase: Phase) -> &[KernelTime] {
        &[]
    }

    /// Memory of this process that the loaded plan holds; `None` where it is a device's own.
    fn held(&self) -> Option<Held> {
        None
    }

    /// For people: the device and how it computes.
    fn describe(&self) -> String;

    /// What a device that runs behind the host offers: work is put into its queue, and values
    /// come back later. `None` where [`Backend::run`] returns when the work is done.
    fn queue(&mut self) -> Option<&mut dyn Queue> {
        None
    }
}

/// A device whose work is done some time after it was asked for, in order.
pub trait Queue {
    /// Asks for micro steps, and for the update after them where `update` is set, as one unit.
    ///
    /// # Errors
    /// If the device failed. Impossible data is an error of [`Queue::receive`].
    fn submit(&mut self, update: bool) -> Result<()>;

    /// Asks for the values that small tensors (16 bytes at most) have after all that was asked for
    /// so far. At most [`Queue::room`] requests may be in flight.
    ///
    /// # Errors
    /// If the device failed.
    fn request(&mut self, tensors: &[TensorId]) -> Result<()>;

    /// The values of the oldest request; `None` where none is in flight, or, without `wait`, where
    /// they have not come yet.
    ///
    /// # Errors
    /// If the data made a step before the request impossible, or the device failed; the request
    /// is then no longer in flight.
    fn receive(&mut self, wait: bool) -> Result<Option<Late>>;

    /// Requests that may be in flight at once.
    fn room(&self) -> usize;
}

/// Values that have come back.
#[derive(Clone, Debug, PartialEq)]
pub struct Late {
    /// Little-endian bytes of every tensor asked for, in order.
    pub values: Vec<Vec<u8>>,
    /// What the device took for the work since the request before.
    pub seconds: f64,
}
