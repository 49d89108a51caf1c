//! Lowered steps on host memory: for tests of generated text, without a device.

use super::launch::{Arg, Launch, Lowered, Place, Source, Task};
use precast_plan::{DType, Kind, Plan, Rows, Storage, TensorId, Value, interpret};
use precast_software_device::host::HostModule;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::c_void;
use std::sync::Arc;

/// 64 bytes, aligned as the device aligns regions.
#[derive(Clone, Copy, PartialEq)]
#[repr(align(64))]
struct Line([u8; 64]);

/// Bytes on each side of a region that nothing may write.
const GUARD: usize = 64;

/// The memory of a plan.
#[derive(Clone)]
pub struct Memory {
    /// Arena, persistent, inputs, scratch; with a guard on each side.
    regions: [Vec<Line>; 4],
    tensors: Vec<(usize, u64, DType, u64)>,
}

fn lines(bytes: u64, fill: u8) -> Vec<Line> {
    vec![Line([fill; 64]); (bytes as usize + 2 * GUARD).div_ceil(64)]
}

impl Memory {
    /// Every byte is `fill`.
    pub fn new(plan: &Plan, fill: u8) -> Memory {
        let tensors: Vec<_> = plan
            .tensors
            .iter()
            .map(|t| {
                let (region, offset) = match t.storage {
                    Storage::Arena { offset } => (0, offset),
                    Storage::Persistent { offset, .. } => (1, offset),
                    Storage::Input { offset } => (2, offset),
                };
                (region, offset, t.dtype, t.shape.iter().product::<u64>())
            })
            .collect();
        let size = |region: usize| {
            let ends = tensors.iter().filter(|t| t.0 == region);
            ends.map(|t| t.1 + t.3 * t.2.size() as u64).max().unwrap_or(0)
        };
        let regions = [0, 1, 2].map(|r| lines(size(r), fill));
        let [a, b, c] = regions;
        Memory { regions: [a, b, c, vec![]], tensors }
    }

    fn base(&self, region: usize) -> *mut u8 {
        self.regions[region].as_ptr().cast::<u8>().cast_mut().wrapping_add(GUARD)
    }

    fn address(&self, tensor: TensorId, offset: u64) -> *mut u8 {
        let (region, start, ..) = self.tensors[tensor as usize];
        self.base(region).wrapping_add((start + offset) as usize)
    }

    pub fn elements(&self, tensor: TensorId) -> u64 {
        self.tensors[tensor as usize].3
    }

    pub fn dtype(&self, tensor: TensorId) -> DType {
        self.tensors[tensor as usize].2
    }

    pub fn get(&self, tensor: TensorId, i: u64) -> Value {
        let (_, _, dtype, n) = self.tensors[tensor as usize];
        assert!(i < n, "element {i} of {n}");
        let size = dtype.size();
        let mut word = [0u8; 8];
        let from = self.address(tensor, i * size as u64);
        // SAFETY: the region holds all elements of its tensors.
        unsafe { std::ptr::copy_nonoverlapping(from, word.as_mut_ptr(), size) };
        let bits = u64::from_le_bytes(word);
        match dtype.kind() {
            Kind::Real => Value::Real(dtype.decode(bits as u32)),
            Kind::Int => Value::Int(bits as i32),
            Kind::Bool => Value::Bool(bits != 0),
        }
    }

    pub fn set(&mut self, tensor: TensorId, i: u64, v: Value) {
        let (_, _, dtype, n) = self.tensors[tensor as usize];
        assert!(i < n, "element {i} of {n}");
        let bits: u64 = match v {
            Value::Real(x) => u64::from(dtype.encode(x)),
            Value::Int(x) => i64::from(x) as u64,
            Value::Bool(x) => u64::from(x),
        };
        let size = dtype.size();
        let to = self.address(tensor, i * size as u64);
        // SAFETY: the region holds all elements of its tensors, and `self` is borrowed mutably.
        unsafe { std::ptr::copy_nonoverlapping(bits.to_le_bytes().as_ptr(), to, size) };
    }

    /// The whole memory, scratch aside.
    pub fn same_bytes(&self, other: &Memory) -> bool {
        (0..3).all(|r| self.regions[r] == other.regions[r])
    }
}

/// Kernels compiled for the host.
#[derive(Default)]
pub struct Kernels {
    modules: BTreeMap<String, Arc<HostModule>>,
}

impl Kernels {
    /// Compiles the kernels of lowered steps, on two threads.
    ///
    /// # Panics
    /// With the compiler's messages.
    pub fn compile<'a>(prelude: &str, steps: impl IntoIterator<Item = &'a Lowered>) -> Kernels {
        let sources: BTreeSet<&Source> = steps
            .into_iter()
            .flat_map(|l| &l.tasks)
            .filter_map(|t| if let Task::Launch(l) = t { Some(&*l.source) } else { None })
            .collect();
        let sources: Vec<&Source> = sources.into_iter().collect();
        let units: Vec<&[&Source]> = sources.chunks(16).collect();
        let build = |unit: &[&Source]| -> Arc<HostModule> {
            let texts: Vec<&str> = unit.iter().map(|s| s.text.as_str()).collect();
            let text = format!("{prelude}\n{}", texts.join("\n"));
            let numbered = || {
                let lines = text.lines().enumerate();
                lines.map(|(i, l)| format!("{:5} {l}\n", i + 1)).collect::<String>()
            };
            let built = HostModule::compile(&text, &[]);
            Arc::new(built.unwrap_or_else(|e| panic!("{}\n{e}", numbered())))
        };
        let halves = [0, 1].map(|h| units.iter().skip(h).step_by(2).copied().collect::<Vec<_>>());
        let built: Vec<Vec<Arc<HostModule>>> = std::thread::scope(|s| {
            let jobs = halves.map(|units| s.spawn(move || units.into_iter().map(build).collect()));
            jobs.into_iter().map(|j| j.join().expect("the text compiles")).collect()
        });
        let mut kernels = Kernels::default();
        for (i, unit) in units.iter().enumerate() {
            for source in *unit {
                kernels.modules.insert(source.entry.clone(), built[i % 2][i / 2].clone());
            }
        }
        kernels
    }

    /// Runs the launches and clears of a lowered step; `seed` shuffles threads and blocks.
    ///
    /// # Errors
    /// What a kernel did wrong, or a task that is not a launch of generated text.
    pub fn run(&self, memory: &mut Memory, lowered: &Lowered, seed: u64) -> Result<(), String> {
        // Scratch memory is what other steps left there.
        memory.regions[3] = lines(lowered.scratch, 0xff);
        for task in &lowered.tasks {
            match task {
                Task::Launch(l) => self.launch(memory, l, seed)?,
                Task::Clear { place, bytes } => {
                    let at = match *place {
                        Place::Tensor { tensor, offset } => memory.address(tensor, offset),
                        Place::Scratch { offset } => memory.base(3).wrapping_add(offset as usize),
                    };
                    // SAFETY: a plan's places lie inside their regions.
                    unsafe { std::ptr::write_bytes(at, 0, *bytes as usize) };
                }
                other => return Err(format!("{other:?} is not generated text")),
            }
        }
        let guards = |r: &Vec<Line>, fill: u8| {
            let end = r.len().checked_sub(1);
            end.is_none_or(|end| r[0].0 == [fill; 64] && r[end].0[63] == fill)
        };
        if !guards(&memory.regions[3], 0xff) {
            return Err("a kernel wrote outside of scratch memory".into());
        }
        Ok(())
    }

    fn launch(&self, memory: &mut Memory, l: &Launch, seed: u64) -> Result<(), String> {
        let module = &self.modules[&l.source.entry];
        let mut tables: Vec<Vec<Line>> = vec![];
        let mut fault = 0u64;
        let mut values: Vec<u64> = vec![];
        for arg in &l.args {
            values.push(match arg {
                Arg::Tensor { tensor, offset } => memory.address(*tensor, *offset) as u64,
                Arg::Scratch { offset } => memory.base(3).wrapping_add(*offset as usize) as u64,
                Arg::Table(table) => {
                    let mut bytes = table.bytes.clone();
                    for &(at, tensor, offset) in &table.addresses {
                        let address = memory.address(tensor, offset) as u64;
                        bytes[at as usize..at as usize + 8].copy_from_slice(&address.to_le_bytes());
                    }
                    let mut copy = vec![Line([0; 64]); bytes.len().div_ceil(64)];
                    for (line, part) in copy.iter_mut().zip(bytes.chunks(64)) {
                        line.0[..part.len()].copy_from_slice(part);
                    }
                    tables.push(copy);
                    tables.last().expect("just pushed").as_ptr() as u64
                }
                Arg::Fault => &raw mut fault as u64,
                Arg::I32(x) => *x as u32 as u64,
                Arg::U32(x) => u64::from(*x),
                Arg::I64(x) => *x as u64,
                Arg::F32(x) => u64::from(x.to_bits()),
            });
        }
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|v| (&raw mut *v).cast::<c_void>()).collect();
        let threads = l.block.iter().product::<u32>();
        if threads > l.source.max_threads {
            return Err(format!("{threads} threads for {}", l.source.entry));
        }
        // SAFETY: the arguments are those that lowering made for this text.
        unsafe { module.launch(&l.source.entry, l.grid, l.block, l.shared, seed, &mut pointers) }
            .map_err(|e| format!("{}: {e}\n{}", l.source.entry, l.source.text))?;
        if fault != 0 {
            return Err(format!("{} reports fault {fault:#x}", l.source.entry));
        }
        Ok(())
    }
}

/// What a step of a row program leaves in memory, by the interpreter.
///
/// # Panics
/// If the program is not well formed.
pub fn expected(plan: &Plan, rows: &Rows, before: &Memory) -> Memory {
    let program = &plan.programs[rows.program as usize];
    let infos = program.check().expect("a checked program");
    let mut after = before.clone();
    for instance in &rows.instances {
        let dims: Vec<usize> = instance.dims.iter().map(|&n| n as usize).collect();
        let reduced = instance.reduced as usize;
        let at = |a: &precast_plan::Access, point: &[usize]| -> u64 {
            let steps: i64 = point.iter().zip(&a.strides).map(|(&i, &s)| i as i64 * s).sum();
            (a.offset as i64 + steps) as u64
        };
        let out = interpret(program, &dims, reduced, |port, point| {
            let a = &instance.inputs[port];
            before.get(a.tensor, at(a, point))
        })
        .expect("a checked program");
        for (o, values) in out.iter().enumerate() {
            let row = infos[program.outputs[o].reg as usize].row;
            let kept = if row { dims.len() - reduced } else { dims.len() };
            for (i, v) in values.iter().enumerate() {
                let mut point = vec![0; dims.len()];
                let mut linear = i;
                for d in (0..kept).rev() {
                    point[d] = linear % dims[d];
                    linear /= dims[d];
                }
                let a = &instance.outputs[o];
                after.set(a.tensor, at(a, &point), *v);
            }
        }
    }
    after
}

/// How far a result may be from the interpreter's.
#[derive(Clone, Copy, Debug)]
pub struct Tolerance {
    /// Of f32 elements; narrower formats may be one step apart.
    pub relative: f32,
    /// The magnitude below which `relative` no longer shrinks: that of the operands, where
    /// differences cancel.
    pub floor: f32,
}

/// The tensors that a step writes.
pub fn written(rows: &Rows) -> BTreeSet<TensorId> {
    rows.instances.iter().flat_map(|i| &i.outputs).map(|a| a.tensor).collect()
}

/// The first element of `tensors` in which two memories differ, in words.
pub fn difference(
    plan: &Plan,
    tensors: impl IntoIterator<Item = TensorId>,
    got: &Memory,
    want: &Memory,
    tolerance: Tolerance,
) -> Option<String> {
    let same = |a: Value, b: Value, dtype: DType| match (a, b) {
        (Value::Real(a), Value::Real(b)) => {
            let step = 2f32.powi(-(dtype.facts().mantissa_bits as i32));
            let Tolerance { relative, floor } = tolerance;
            let near = match dtype {
                DType::F32 => relative * b.abs().max(floor),
                // One step of the element, and what the f32 before rounding may be off by.
                _ => step * b.abs().max(1e-3) + relative * floor,
            };
            a == b || a.is_nan() && b.is_nan() || (a - b).abs() <= near
        }
        (a, b) => a == b,
    };
    tensors.into_iter().find_map(|t| {
        (0..got.elements(t)).find_map(|i| {
            let (a, b) = (got.get(t, i), want.get(t, i));
            let name = &plan.tensors[t as usize].name;
            (!same(a, b, got.dtype(t))).then(|| format!("`{name}` at {i}: {a:?}, not {b:?}"))
        })
    })
}
