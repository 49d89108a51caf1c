//! Putting a kernel together: its text, its parameters and the arguments of one launch.

use crate::cuda::launch::{Arg, Launch, Source};
use crate::error::{Error, Result};
use precast_plan::{Access, DType, Plan};
use std::fmt::Write as _;
use std::sync::Arc;

/// Tensor cores and asynchronous copies.
pub(super) const MMA: &str = include_str!("mma.cuh");

/// The C type of a stored element.
pub(super) fn c_type(d: DType) -> &'static str {
    match d {
        DType::F32 => "float",
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
        DType::F8e4m3 => "f8e4m3",
        DType::F8e5m2 => "f8e5m2",
        DType::I64 => "i64",
        DType::I32 => "int",
        DType::U8 | DType::Bool => "u8",
    }
}

/// The format of the tensor that an access names.
pub(super) fn dtype(plan: &Plan, a: &Access) -> DType {
    plan.tensors[a.tensor as usize].dtype
}

/// Address of an access's first element.
pub(super) fn address(plan: &Plan, a: &Access) -> Arg {
    Arg::Tensor { tensor: a.tensor, offset: a.offset * dtype(plan, a).size() as u64 }
}

/// Whether every element at a multiple of `step` strides of `axis` lies on a 16-byte boundary and
/// the axis is contiguous, so that it can be moved 16 bytes at a time.
pub(super) fn wide(plan: &Plan, a: &Access, axis: usize, extent: u64) -> bool {
    let per = 16 / dtype(plan, a).size() as u64;
    a.strides[axis] == 1
        && extent.is_multiple_of(per)
        && a.offset.is_multiple_of(per)
        && a.strides
            .iter()
            .enumerate()
            .all(|(d, s)| d == axis || s.unsigned_abs().is_multiple_of(per))
}

/// The parameters of a kernel and their values, in order.
#[derive(Default)]
pub(super) struct Params {
    names: Vec<String>,
    args: Vec<Arg>,
}

impl Params {
    pub fn add(&mut self, c_type: &str, name: &str, arg: Arg) {
        self.names.push(format!("{c_type} {name}"));
        self.args.push(arg);
    }

    pub fn pointer(&mut self, element: &str, name: &str, arg: Arg) {
        self.add(&format!("const {element} *__restrict__"), name, arg);
    }

    pub fn pointer_mut(&mut self, element: &str, name: &str, arg: Arg) {
        self.add(&format!("{element} *"), name, arg);
    }

    pub fn i64(&mut self, name: &str, v: i64) {
        self.add("i64", name, Arg::I64(v));
    }

    pub fn u32(&mut self, name: &str, v: u32) {
        self.add("u32", name, Arg::U32(v));
    }

    pub fn i32(&mut self, name: &str, v: u32) {
        self.add("int", name, Arg::I32(v.cast_signed()));
    }

    /// Parameters that are text already, comma-separated, with their values.
    pub fn raw(&mut self, names: &str, args: &[Arg]) {
        self.names.push(names.into());
        self.args.extend_from_slice(args);
    }

    pub fn f32(&mut self, name: &str, v: f32) {
        self.add("float", name, Arg::F32(v));
    }

    /// `name_s0`, `name_s1`, …
    pub fn strides(&mut self, name: &str, strides: &[i64]) {
        for (d, &s) in strides.iter().enumerate() {
            self.i64(&format!("{name}_s{d}"), s);
        }
    }
}

/// The head of a text: constants and type names that the template reads.
#[derive(Default)]
pub(super) struct Head(String);

impl Head {
    pub fn constant(&mut self, name: &str, value: u64) -> &mut Head {
        writeln!(self.0, "#define {name} {value}").expect("writing to a string");
        self
    }

    pub fn flag(&mut self, name: &str, on: bool) -> &mut Head {
        self.constant(name, u64::from(on))
    }

    pub fn alias(&mut self, name: &str, c_type: &str) -> &mut Head {
        writeln!(self.0, "typedef {c_type} {name};").expect("writing to a string");
        self
    }

    pub fn text(&mut self, text: &str) -> &mut Head {
        self.0.push_str(text);
        self
    }
}

/// FNV-1a, for names that depend on the text alone.
fn hash(text: &str) -> u64 {
    text.bytes()
        .fold(0xcbf2_9ce4_8422_2325, |h, b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// Blocks of a launch, threads of a block, bytes of its dynamic shared memory.
pub(super) struct Size {
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: u32,
}

/// One launch of `template` behind `head`. In the template `ENTRY` stands for the kernel's name
/// and `PARAMS` for its parameters.
pub(super) fn launch(
    family: &str,
    parts: &[&str],
    head: &Head,
    template: &str,
    params: Params,
    Size { grid, threads, shared }: Size,
) -> Launch {
    let mut text = String::new();
    for part in parts {
        text.push_str(part);
    }
    text.push_str(&head.0);
    text.push_str(&template.replace("PARAMS", &params.names.join(", ")));
    let entry = format!("{family}_{:016x}", hash(&text));
    let text = text.replace("ENTRY", &entry);
    let source = Arc::new(Source { entry, text, max_threads: threads });
    Launch { source, grid, block: [threads, 1, 1], shared, args: params.args }
}

/// Blocks of `per_block` for `work` items, at most `waves` times what the device holds at once:
/// kernels with such a grid walk on by its size.
pub(super) fn blocks(work: u64, per_block: u64, most: u32) -> u32 {
    work.div_ceil(per_block).clamp(1, u64::from(most.max(1))) as u32
}

/// A size that kernels hold in 32 bits.
pub(super) fn small(what: &str, v: u64) -> Result<u32> {
    u32::try_from(v).ok().filter(|&v| v < 1 << 31).ok_or_else(|| {
        Error::new("R0131", format!("{what} of {v} are more than a CUDA kernel counts"))
    })
}
