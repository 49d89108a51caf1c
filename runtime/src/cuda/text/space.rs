//! Iteration spaces as kernels see them: ports bound to places, axes ordered and merged, and how
//! wide an access may be.

use crate::cuda::launch::Place;
use precast_plan::{Access, DType, Instance, Instr, Plan, Program, Reg, RegInfo, Storage};
use std::collections::BTreeMap;

/// A port and the memory behind it.
#[derive(Clone, Debug)]
pub struct Bound {
    /// Of the element at index 0.
    pub place: Place,
    pub dtype: DType,
    /// In elements, one per axis of the space.
    pub strides: Vec<i64>,
    /// Region, first byte and end of the memory that belongs to the tensor.
    memory: (u8, u64, u64),
}

impl Bound {
    /// A plan's access.
    pub fn tensor(plan: &Plan, a: &Access) -> Bound {
        let t = &plan.tensors[a.tensor as usize];
        let (region, start) = match t.storage {
            Storage::Arena { offset } => (0, offset),
            Storage::Persistent { offset, .. } => (1, offset),
            Storage::Input { offset } => (2, offset),
        };
        let size = t.dtype.size() as u64;
        Bound {
            place: Place::Tensor { tensor: a.tensor, offset: a.offset * size },
            dtype: t.dtype,
            strides: a.strides.clone(),
            memory: (region, start, start + t.shape.iter().product::<u64>() * size),
        }
    }

    /// A dense array with these strides, in scratch memory or in a tensor's place.
    pub fn dense(plan: &Plan, place: Place, dtype: DType, strides: Vec<i64>) -> Bound {
        let memory = match place {
            // Nothing else that a launch binds is scratch memory.
            Place::Scratch { .. } => (3, 0, 1),
            Place::Tensor { tensor, .. } => {
                let access = Access { tensor, offset: 0, strides: vec![] };
                Bound::tensor(plan, &access).memory
            }
        };
        Bound { place, dtype, strides, memory }
    }

    /// Whether two ports may share a byte.
    pub fn meets(&self, other: &Bound) -> bool {
        let ((r, from, to), (s, start, end)) = (self.memory, other.memory);
        r == s && from < end && start < to
    }

    /// The largest power of two, at most 16, that divides the address of index 0.
    fn alignment(&self) -> u64 {
        let (Place::Tensor { offset, .. } | Place::Scratch { offset }) = self.place;
        1 << offset.trailing_zeros().min(4)
    }
}

/// Row-major strides of `dims`.
pub fn dense_strides(dims: &[u64]) -> Vec<i64> {
    let mut strides = vec![1; dims.len()];
    for d in (0..dims.len().saturating_sub(1)).rev() {
        strides[d] = strides[d + 1] * dims[d + 1] as i64;
    }
    strides
}

/// A program over one space.
#[derive(Clone, Debug)]
pub struct Space<'a> {
    pub program: &'a Program,
    pub infos: &'a [RegInfo],
    /// Kept axes first.
    pub dims: Vec<u64>,
    pub reduced: usize,
    pub inputs: Vec<Bound>,
    pub outputs: Vec<Bound>,
}

impl<'a> Space<'a> {
    pub fn new(
        plan: &Plan,
        program: &'a Program,
        infos: &'a [RegInfo],
        instance: &Instance,
    ) -> Space<'a> {
        let bound = |list: &[Access]| list.iter().map(|a| Bound::tensor(plan, a)).collect();
        Space {
            program,
            infos,
            dims: instance.dims.clone(),
            reduced: instance.reduced as usize,
            inputs: bound(&instance.inputs),
            outputs: bound(&instance.outputs),
        }
        .without_idle_axes()
    }

    /// Drops the reduced axes where nothing reduces and every output is stored once per row: one
    /// point of a row is as good as another.
    fn without_idle_axes(mut self) -> Space<'a> {
        let rows = self.program.outputs.iter().all(|o| self.infos[o.reg as usize].row);
        if self.reduced > 0 && rows && !reduces(self.program) {
            let kept = self.dims.len() - self.reduced;
            self.dims.truncate(kept);
            for b in self.inputs.iter_mut().chain(&mut self.outputs) {
                b.strides.truncate(kept);
            }
            self.reduced = 0;
        }
        self
    }

    /// Whether the space has rows: kept against reduced axes.
    pub fn has_rows(&self) -> bool {
        let per_row = |o: &precast_plan::OutPort| self.infos[o.reg as usize].row;
        reduces(self.program) || self.reduced > 0 && self.program.outputs.iter().any(per_row)
    }

    /// Inputs, then outputs.
    pub fn ports(&self) -> impl Iterator<Item = &Bound> {
        self.inputs.iter().chain(&self.outputs)
    }
}

/// Registers that some output needs.
pub fn live(program: &Program) -> Vec<bool> {
    let mut live = vec![false; program.code.len()];
    for out in &program.outputs {
        live[out.reg as usize] = true;
    }
    for (i, instr) in program.code.iter().enumerate().rev() {
        if live[i] {
            instr.operands().for_each(|r| live[r as usize] = true);
        }
    }
    live
}

/// Whether any output needs a reduction.
fn reduces(program: &Program) -> bool {
    let live = live(program);
    program.code.iter().zip(live).any(|(i, live)| live && matches!(i, Instr::Reduce(..)))
}

/// Strides over the merged axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Steps {
    pub kept: Vec<i64>,
    pub red: Vec<i64>,
}

impl Steps {
    pub fn varies_kept(&self) -> bool {
        self.kept.iter().any(|&s| s != 0)
    }

    pub fn varies_red(&self) -> bool {
        self.red.iter().any(|&s| s != 0)
    }
}

/// A space with its axes ordered, so that the last of each group is the one memory runs along,
/// and merged. Without rows all axes are in the second group.
#[derive(Clone, Debug)]
pub struct Layout {
    pub rows: bool,
    pub kept: Vec<u64>,
    pub red: Vec<u64>,
    /// Inputs, then outputs.
    pub ports: Vec<Steps>,
    /// Coordinates that `index` instructions read.
    pub index: BTreeMap<Reg, Steps>,
    /// The linear index in the axes' own order.
    pub linear: Steps,
    /// Points or element offsets do not fit 31 bits.
    pub wide: bool,
}

impl Layout {
    pub fn new(space: &Space) -> Layout {
        let rows = space.has_rows();
        let rank = space.dims.len();
        let cut = if rows { rank - space.reduced } else { 0 };
        let mut all: Vec<Vec<i64>> = space.ports().map(|b| b.strides.clone()).collect();
        let ports = all.len();
        let mut index = vec![];
        // What no output needs may stand for axes that are gone.
        let live = live(space.program);
        for (i, instr) in space.program.code.iter().enumerate().filter(|(i, _)| live[*i]) {
            if let Instr::Index { axis } = instr {
                let mut s = vec![0; rank];
                s[*axis as usize] = 1;
                index.push(i as Reg);
                all.push(s);
            }
        }
        let code = space.program.code.iter().zip(&live);
        let uniform = code.into_iter().any(|(i, &l)| l && matches!(i, Instr::Uniform { .. }));
        all.push(if uniform { dense_strides(&space.dims) } else { vec![0; rank] });
        // Outputs decide the order, so that stores are whole; then the inputs.
        let inputs = space.inputs.len();
        let key = |d: usize| -> Vec<u64> {
            let order = (inputs..ports).chain(0..inputs);
            order.map(|p| all[p][d].unsigned_abs()).collect()
        };
        let group = |axes: std::ops::Range<usize>| -> (Vec<u64>, Vec<Vec<i64>>) {
            let mut axes: Vec<usize> = axes.filter(|&d| space.dims[d] > 1).collect();
            axes.sort_by_key(|&d| std::cmp::Reverse(key(d)));
            merge(&axes, &space.dims, &all)
        };
        let (kept, kept_steps) = group(0..cut);
        let (mut red, mut red_steps) = group(cut..rank);
        if red.is_empty() && rank > cut {
            // A single point keeps its axis, so that it looks like every other length.
            let per_row = |p: usize| match p.checked_sub(inputs) {
                None => space.program.inputs[p].row,
                Some(o) if o < space.outputs.len() => {
                    space.infos[space.program.outputs[o].reg as usize].row
                }
                Some(_) => false,
            };
            red.push(1);
            for (p, (s, out)) in all.iter().zip(&mut red_steps).enumerate() {
                out.push(if rows && per_row(p) { 0 } else { s[rank - 1] });
            }
        }
        let mut steps: Vec<Steps> =
            kept_steps.into_iter().zip(red_steps).map(|(kept, red)| Steps { kept, red }).collect();
        let linear = steps.pop().expect("pushed above");
        let index = index.into_iter().zip(steps.split_off(ports)).collect();
        let points: u64 = space.dims.iter().product();
        let reach = |b: &Bound| -> u64 {
            b.strides.iter().zip(&space.dims).map(|(s, n)| s.unsigned_abs() * (n - 1)).sum()
        };
        // A grid adds up to its own threads, times a vector, to an index before the check ends it.
        let wide = space.ports().map(reach).chain([points]).any(|n| n >= 1 << 30);
        Layout { rows, kept, red, ports: steps, index, linear, wide }
    }

    /// The axes as they are, `last` moved to the end, for code that is given coordinates.
    pub fn plain(space: &Space, last: usize) -> Layout {
        let rank = space.dims.len();
        let order: Vec<usize> = (0..rank).filter(|&d| d != last).chain([last]).collect();
        let steps = |strides: &[i64]| Steps {
            kept: vec![],
            red: order.iter().map(|&d| strides[d]).collect(),
        };
        let one = |axis: u32| {
            let strides: Vec<i64> = (0..rank).map(|d| i64::from(d == axis as usize)).collect();
            steps(&strides)
        };
        let code = space.program.code.iter().enumerate();
        let reach = Layout::new(space);
        Layout {
            rows: false,
            kept: vec![],
            red: order.iter().map(|&d| space.dims[d]).collect(),
            ports: space.ports().map(|b| steps(&b.strides)).collect(),
            index: code
                .filter_map(|(i, instr)| match instr {
                    Instr::Index { axis } => Some((i as Reg, one(*axis))),
                    _ => None,
                })
                .collect(),
            linear: steps(&dense_strides(&space.dims)),
            wide: reach.wide,
        }
    }

    /// Points of the kept axes.
    pub fn kept_len(&self) -> u64 {
        self.kept.iter().product()
    }

    /// Points of the reduced axes, or of all axes where there are no rows.
    pub fn red_len(&self) -> u64 {
        self.red.iter().product()
    }

    /// The type of indices.
    pub fn int(&self) -> &'static str {
        if self.wide { "i64" } else { "int" }
    }

    /// Elements of one access along the lanes: 8 or 4, if extents and alignments allow. Lanes run along the last kept axis if
    /// `columns`, else along the last axis of the other group. With `tail` a single axis may end in
    /// the middle of a vector. `used` says which ports count.
    pub fn width(
        &self,
        space: &Space,
        columns: bool,
        tail: bool,
        used: &dyn Fn(usize) -> bool,
    ) -> u32 {
        let Some(&last) = (if columns { self.kept.last() } else { self.red.last() }) else {
            return 1;
        };
        let lane = |s: &Steps| *(if columns { &s.kept } else { &s.red }).last().expect("an axis");
        let contiguous: Vec<(&Bound, &Steps)> = space
            .ports()
            .zip(&self.ports)
            .enumerate()
            .filter(|(p, (_, s))| used(*p) && lane(s) == 1)
            .map(|(_, x)| x)
            .collect();
        // Those that every row reads anew decide: 8 points where most bytes are of narrow formats.
        let anew = |(_, s): &&(&Bound, &Steps)| !self.rows || s.varies_kept() && s.varies_red();
        let mut main: Vec<usize> =
            contiguous.iter().filter(anew).map(|(b, _)| b.dtype.size()).collect();
        if main.is_empty() {
            main = contiguous.iter().map(|(b, _)| b.dtype.size()).collect();
        }
        let bytes = |narrow: bool| main.iter().filter(|&&n| (n <= 2) == narrow).sum::<usize>();
        let mut v = match main.len() {
            0 => 1,
            _ if bytes(true) >= bytes(false) => 8,
            _ => 4,
        };
        let run = tail && !columns && self.red.len() == 1;
        let fits = |v: u64| {
            (run || last % v == 0)
                && contiguous.iter().all(|(b, s)| {
                    let size = b.dtype.size() as u64;
                    let bytes = (v * size).min(16);
                    let (lanes, others) =
                        if columns { (&s.kept, &s.red) } else { (&s.red, &s.kept) };
                    let mut steps = lanes[..lanes.len() - 1].iter().chain(others);
                    b.alignment() >= bytes
                        && steps.all(|s| (s.unsigned_abs() * size).is_multiple_of(bytes))
                })
        };
        while v > 1 && !fits(v) {
            v /= 2;
        }
        v as u32
    }
}

/// Merges neighbours of `axes` that every port steps through evenly.
fn merge(axes: &[usize], dims: &[u64], all: &[Vec<i64>]) -> (Vec<u64>, Vec<Vec<i64>>) {
    let mut out_dims: Vec<u64> = vec![];
    let mut out: Vec<Vec<i64>> = vec![vec![]; all.len()];
    for &d in axes {
        let n = dims[d];
        let even = |(s, o): (&Vec<i64>, &Vec<i64>)| *o.last().expect("an axis") == s[d] * n as i64;
        if !out_dims.is_empty() && all.iter().zip(&out).all(even) {
            *out_dims.last_mut().expect("an axis") *= n;
            for (s, o) in all.iter().zip(&mut out) {
                *o.last_mut().expect("an axis") = s[d];
            }
        } else {
            out_dims.push(n);
            for (s, o) in all.iter().zip(&mut out) {
                o.push(s[d]);
            }
        }
    }
    (out_dims, out)
}
