//! What a step of a plan becomes on a GPU.

use precast_plan::TensorId;
use std::sync::Arc;

/// What lowering may know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Compute capability, `(9, 0)` for Hopper.
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// Bytes of shared memory a block may ask for (the opt-in maximum).
    pub shared_per_block: u32,
    /// Resident threads of one multiprocessor.
    pub threads_per_multiprocessor: u32,
}

impl Facts {
    /// Architecture that kernels are compiled for: `sm_90a`, where the suffix unlocks the
    /// instructions of that one architecture.
    pub fn arch(&self) -> String {
        let (major, minor) = self.capability;
        let suffix = if major >= 9 { "a" } else { "" };
        format!("sm_{major}{minor}{suffix}")
    }
}

/// A kernel as text: one `extern "C" __global__` function `entry` of a translation unit that
/// begins with the common prelude. Equal sources are one module.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Source {
    /// Unique in a plan and stable: the name of the program or kernel and a hash of `text`.
    pub entry: String,
    /// CUDA C++ without the prelude.
    pub text: String,
    /// The largest block it is launched with, for `__launch_bounds__` and checks.
    pub max_threads: u32,
}

/// An argument of a kernel, in the order of its parameters.
#[derive(Clone, Debug, PartialEq)]
pub enum Arg {
    /// Address of a tensor of the plan plus `offset` bytes.
    Tensor {
        tensor: TensorId,
        offset: u64,
    },
    /// Address in the scratch region of the step, which no other step keeps anything in.
    Scratch {
        offset: u64,
    },
    /// Address of bytes that are uploaded once, before the first step.
    Table(Arc<Table>),
    /// Address of the `u64` where kernels report impossible data (see [`Fault`]); 0 is no fault.
    Fault,
    I32(i32),
    U32(u32),
    I64(i64),
    F32(f32),
}

/// Constant bytes of a launch; addresses of tensors are patched in when the plan is loaded.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Table {
    /// Little-endian; 16-byte aligned on the device.
    pub bytes: Vec<u8>,
    /// At byte `.0` of the table stands the 8-byte address of tensor `.1` plus `.2` bytes.
    pub addresses: Vec<(u32, TensorId, u64)>,
}

/// One launch of generated text.
#[derive(Clone, Debug, PartialEq)]
pub struct Launch {
    pub source: Arc<Source>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    /// Bytes of dynamic shared memory.
    pub shared: u32,
    pub args: Vec<Arg>,
}

/// What a faulty id looked like; kernels store `step << 40 | position << 8 | kind` once, the first
/// writer wins. A position beyond 32 bits is stored as the largest of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Fault {
    /// An id of a gather or of its gradient lies outside the table.
    IdOutOfRange = 1,
}

/// A matrix or a place in memory that a library call reads or writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    Tensor { tensor: TensorId, offset: u64 },
    Scratch { offset: u64 },
}

/// Work of a step, in order.
#[derive(Clone, Debug, PartialEq)]
pub enum Task {
    Launch(Launch),
    /// Sets bytes to zero.
    Clear {
        place: Place,
        bytes: u64,
    },
    /// A matrix product that cuBLASLt runs; the index is into the lowered products of the plan.
    Product(usize),
    /// A convolution or attention that cuDNN runs; the index is into its graphs.
    Graph(usize),
}

/// A lowered step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lowered {
    pub tasks: Vec<Task>,
    /// Bytes of scratch memory that `tasks` use.
    pub scratch: u64,
}

impl Lowered {
    /// Reserves `bytes` of the step's scratch region, 256-byte aligned, and returns their offset.
    pub fn reserve(&mut self, bytes: u64) -> u64 {
        let at = self.scratch;
        self.scratch = (at + bytes).next_multiple_of(256);
        at
    }
}
