//! Row programs on the CPU: lowered once to block instructions over registers of about a thousand
//! lanes that stay in the first-level cache, then run tile by tile.
//!
//! Invariants: nothing is allocated after [`RowsKernel::new`]; how work is cut, and so every sum's
//! order, depends on shapes alone.

mod epilogue;
mod fuse;
mod geom;
mod io;
mod lower;
mod ops;
mod prepare;
mod run;

pub use epilogue::EpilogueKernel;
pub use ops::{philox, uniform_from_word};
pub use prepare::Bound;

use crate::cpu::pool::{Aligned, Pool};
use crate::error::Result;
use lower::{Code, Form, Style};
use precast_plan::{Program, RegInfo, SHARED_WORK};
use prepare::{Inst, prepare};
use run::{Machine, Regs};

/// Element operations that are worth a task of the pool.
const GRAIN: usize = SHARED_WORK as usize;

/// A run of tiles or groups of one instance.
#[derive(Clone, Copy)]
struct Unit {
    inst: u32,
    from: usize,
    to: usize,
}

/// Row registers and partial results of an instance whose rows are split over threads.
struct Split {
    inst: u32,
    state: Aligned,
    row_words: usize,
    partials: Aligned,
    /// Words of one chunk's partial results.
    partial_words: usize,
}

/// A row program bound to its tensors.
pub struct RowsKernel {
    insts: Vec<Inst>,
    codes: Vec<(Form, Code)>,
    units: Vec<Unit>,
    /// Ranges of `units`, each worth a task.
    tasks: Vec<std::ops::Range<usize>>,
    splits: Vec<Split>,
    scratch: usize,
}

/// One iteration space with its tensors.
pub struct Space<'a> {
    /// Extents, at least 1, kept axes first.
    pub dims: &'a [usize],
    /// Trailing axes that are reduced.
    pub reduced: usize,
    pub inputs: &'a [Bound],
    pub outputs: &'a [Bound],
}

impl RowsKernel {
    /// Lowers `program` for every space. `infos` is the result of its check.
    ///
    /// # Errors
    /// If memory for partial results cannot be had.
    pub fn new(program: &Program, infos: &[RegInfo], spaces: &[Space]) -> Result<RowsKernel> {
        let mut codes = vec![];
        let insts: Vec<Inst> = spaces
            .iter()
            .map(|s| prepare(program, infos, s.dims, s.reduced, s.inputs, s.outputs, &mut codes))
            .collect();
        let mut k =
            RowsKernel { insts, codes, units: vec![], tasks: vec![], splits: vec![], scratch: 0 };
        for (i, inst) in k.insts.iter().enumerate() {
            let code = &k.codes[inst.code].1;
            k.scratch = k.scratch.max(run::scratch_words(inst, code) * 4);
            if inst.split {
                let reductions = code.passes.iter().map(|p| p.reductions.len()).max().unwrap_or(0);
                let row_words = run::row_words(inst, code);
                let partial_words = run::partial_words(inst, reductions);
                k.splits.push(Split {
                    inst: i as u32,
                    state: Aligned::new(inst.groups * row_words * 4)?,
                    row_words,
                    partials: Aligned::new(inst.groups * inst.chunks * partial_words * 4)?,
                    partial_words,
                });
                continue;
            }
            let each = (inst.cost / inst.groups).max(1);
            let step = GRAIN.div_ceil(each);
            for from in (0..inst.groups).step_by(step) {
                k.units.push(Unit { inst: i as u32, from, to: (from + step).min(inst.groups) });
            }
        }
        let (mut start, mut cost) = (0, 0);
        for (u, unit) in k.units.iter().enumerate() {
            let inst = &k.insts[unit.inst as usize];
            cost += inst.cost / inst.groups * (unit.to - unit.from);
            if cost >= GRAIN || u + 1 == k.units.len() {
                k.tasks.push(start..u + 1);
                (start, cost) = (u + 1, 0);
            }
        }
        Ok(k)
    }

    /// Bytes of scratch memory that each worker must own.
    pub fn scratch_bytes(&self) -> usize {
        self.scratch
    }

    /// Runs the program over all its spaces.
    ///
    /// # Safety
    /// The bound tensors are live, nobody else touches what the program reads or writes, and the
    /// pool's workers own [`RowsKernel::scratch_bytes`].
    pub unsafe fn run(&self, pool: &Pool) {
        pool.for_each(self.tasks.len(), |t, scratch| {
            for unit in &self.units[self.tasks[t].clone()] {
                // SAFETY: units write disjoint tiles; the rest is the caller's contract.
                unsafe { self.machine(unit.inst, scratch, None).run(unit.from, unit.to) };
            }
        });
        for s in &self.splits {
            // SAFETY: the caller's contract.
            unsafe { self.run_split(s, pool) };
        }
    }

    unsafe fn machine(&self, inst: u32, scratch: *mut u8, rows: Option<*mut f32>) -> Machine<'_> {
        let inst = &self.insts[inst as usize];
        let code = &self.codes[inst.code].1;
        // SAFETY: the scratch memory was sized for every instance.
        Machine {
            inst,
            code,
            regs: unsafe { Regs::new(inst, code, scratch.cast(), rows) },
            sums: None,
            over_sums: None,
        }
    }

    unsafe fn run_split(&self, s: &Split, pool: &Pool) {
        let inst = &self.insts[s.inst as usize];
        let code = &self.codes[inst.code].1;
        debug_assert_eq!(inst.style, Style::Passes);
        let rows = |g: usize| {
            let base: *mut f32 = s.state.ptr().cast();
            Some(base.wrapping_add(g * s.row_words))
        };
        let partial = |g: usize, chunk: usize| {
            let base: *mut f32 = s.partials.ptr().cast();
            base.wrapping_add((g * inst.chunks + chunk) * s.partial_words)
        };
        let n = inst.groups * inst.chunks;
        // SAFETY (of all calls below): chunks write disjoint partials and tiles; a group's row
        // registers are written between the parallel parts, by one thread.
        pool.for_each(inst.groups, |g, scratch| unsafe {
            let m = self.machine(s.inst, scratch, rows(g));
            m.scalars();
            m.begin(g);
        });
        for p in 0..code.passes.len() {
            pool.for_each(n, |i, scratch| unsafe {
                let (g, chunk) = (i / inst.chunks, i % inst.chunks);
                let m = self.machine(s.inst, scratch, rows(g));
                m.scalars();
                m.pass(p, g, chunk, partial(g, chunk));
            });
            pool.for_each(inst.groups, |g, scratch| unsafe {
                let m = self.machine(s.inst, scratch, rows(g));
                m.scalars();
                m.reset(p);
                for chunk in 0..inst.chunks {
                    m.fold(p, g, partial(g, chunk));
                }
                m.after(p, g);
            });
        }
        if !code.body.is_empty() || !code.stores.is_empty() {
            pool.for_each(n, |i, scratch| unsafe {
                let (g, chunk) = (i / inst.chunks, i % inst.chunks);
                let m = self.machine(s.inst, scratch, rows(g));
                m.scalars();
                m.last(g, chunk);
            });
        }
        pool.for_each(inst.groups, |g, scratch| unsafe {
            let m = self.machine(s.inst, scratch, rows(g));
            m.scalars();
            m.finish(g);
        });
    }
}

#[cfg(test)]
mod tests;
