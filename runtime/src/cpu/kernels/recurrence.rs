//! Recurrent networks: all steps of an LSTM, a GRU or a plain cell in one call, and the way back.
//!
//! A task takes some sequences of one direction through all steps. Their states stay in its
//! thread's scratch; a step is a small product with the recurrent matrix, which is packed once for
//! all steps, and the arithmetic of the gates (`recurrent_cells.rs`). A row of a product has
//! the same bits whatever rows are beside it, so tasks may be cut by the number of threads.

use super::convert;
use super::gemm::{merge_edge, with_f32_lanes};
use super::lanes::Lanes;
use super::pack::{Packed, Strided};
use super::par::{self, Scratch, SharedPtr, piece_bytes};
use super::recurrent_cells as cells;
use crate::cpu::simd::isa;
use precast_plan::{DType, RecurrenceShape, RecurrentCell, Squash, Way};

/// A dense tensor.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    pub ptr: *mut u8,
    pub dtype: DType,
}

// SAFETY: a bare address; whoever dereferences it answers for races.
unsafe impl Send for Dense {}
// SAFETY: as above.
unsafe impl Sync for Dense {}

impl Dense {
    fn at(self, element: usize) -> *mut u8 {
        self.ptr.wrapping_add(element * self.dtype.size())
    }

    /// # Safety
    /// The elements are readable.
    unsafe fn load(self, element: usize, out: &mut [f32]) {
        // SAFETY: the caller's contract.
        unsafe { convert::widen(self.dtype, self.at(element), out) }
    }

    /// # Safety
    /// The elements are writable, and no other task's.
    unsafe fn store(self, element: usize, x: &[f32]) {
        // SAFETY: the caller's contract.
        unsafe { convert::narrow(self.dtype, x, self.at(element)) }
    }
}

/// Operands and results as [`precast_plan::Recurrence`] names them.
#[derive(Clone, Copy, Debug)]
pub struct Forward {
    pub gates: Dense,
    pub matrix: Dense,
    pub states: Dense,
    pub bias: Option<Dense>,
    pub peephole: Option<Dense>,
    /// i32 or i64.
    pub lengths: Option<Dense>,
    pub y: Dense,
    pub kept: Dense,
    pub before: Dense,
}

/// Operands and results as [`precast_plan::RecurrenceGrad`] names them.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    pub matrix: Dense,
    pub kept: Dense,
    pub before: Dense,
    pub d_y: Dense,
    pub peephole: Option<Dense>,
    pub lengths: Option<Dense>,
    pub d_gates: Dense,
    pub d_states: Dense,
}

/// Sizes of a recurrence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Recurrence {
    pub cell: RecurrentCell,
    pub squash: [Squash; 3],
    pub way: Way,
    pub steps: usize,
    pub batch: usize,
    pub hidden: usize,
}

/// Most sequences that a task takes: their states and gates stay in the second-level cache.
const MOST_ROWS: usize = 48;
/// Panels of the matrix that one packing task makes.
const PANELS: usize = 8;

/// A packed operand of `n` lanes by `k`: blocks of `KC` values of k, each of panels of `NR` lanes.
#[derive(Clone, Copy)]
struct Matrix {
    n: usize,
    k: usize,
}

impl Matrix {
    fn width<L: Lanes>(self) -> usize {
        self.n.next_multiple_of(L::NR)
    }
    fn elements<L: Lanes>(self) -> usize {
        self.width::<L>() * self.k
    }
}

impl Recurrence {
    pub fn new(s: &RecurrenceShape) -> Recurrence {
        Recurrence {
            cell: s.cell,
            squash: s.squash,
            way: s.way,
            steps: s.steps as usize,
            batch: s.batch as usize,
            hidden: s.hidden as usize,
        }
    }

    fn directions(&self) -> usize {
        self.way.directions()
    }
    fn gates(&self) -> usize {
        self.cell.gates() * self.hidden
    }
    fn kept(&self) -> usize {
        self.cell.kept() * self.hidden
    }

    /// Element where the row of step `t`, sequence `b`, direction `d` begins; rows of `n`.
    fn row(&self, t: usize, b: usize, d: usize, n: usize) -> usize {
        ((t * self.batch + b) * self.directions() + d) * n
    }

    /// Rows of the matrix that multiply one vector: their first and their count.
    fn parts(&self) -> [(usize, usize); 2] {
        let (h, m) = (self.hidden, self.gates());
        if self.cell == RecurrentCell::Gru { [(0, 2 * h), (2 * h, h)] } else { [(0, m), (m, 0)] }
    }

    /// The packed operands of the parts.
    fn matrices(&self, forward: bool) -> [Matrix; 2] {
        let h = self.hidden;
        self.parts().map(|(_, rows)| match forward {
            true => Matrix { n: rows, k: if rows == 0 { 0 } else { h } },
            false => Matrix { n: if rows == 0 { 0 } else { h }, k: rows },
        })
    }

    /// Sequences of a task, and tasks of a direction.
    fn blocks(&self) -> (usize, usize) {
        let shares = par::slots().div_ceil(self.directions());
        let n = self.batch.div_ceil(MOST_ROWS).max(shares).min(self.batch);
        let rows = self.batch.div_ceil(n);
        (rows, self.batch.div_ceil(rows))
    }

    /// Elements of f32 that a task keeps.
    fn slot<L: Lanes>(&self) -> usize {
        let rows = self.blocks().0;
        let h = self.hidden;
        // Two states and two more vectors, the gates, a packed block of rows, a row of all.
        rows * (4 * h + self.gates()) + rows.next_multiple_of(L::MR) * L::KC + 8 * h
    }

    /// Scratch bytes for [`Recurrence::forward`] or [`Recurrence::backward`] on the current pool.
    pub fn scratch_bytes(&self, forward: bool) -> usize {
        with_f32_lanes!(isa(), L => {
            let packed: usize = self.matrices(forward).iter().map(|m| m.elements::<L>()).sum();
            piece_bytes::<f32>(packed * self.directions())
                + piece_bytes::<f32>(self.slot::<L>() * par::slots())
                + piece_bytes::<usize>(L::KC)
        })
    }

    /// Walks all sequences through all steps.
    ///
    /// # Safety
    /// The tensors have the sizes of the problem; results are writable and overlap nothing.
    ///
    /// # Panics
    /// If `scratch` is smaller than [`Recurrence::scratch_bytes`].
    pub unsafe fn forward(&self, x: &Forward, scratch: &mut [u8]) {
        with_f32_lanes!(isa(), L => {
            // SAFETY: the caller's contract.
            unsafe {
                self.each::<L>(x.matrix, true, scratch, &|w, task| self.walk::<L>(x, &w, task));
            }
        });
    }

    /// Walks back, from the cotangent of y to those of the gates and of the first states.
    ///
    /// # Safety
    /// As [`Recurrence::forward`].
    ///
    /// # Panics
    /// As [`Recurrence::forward`].
    pub unsafe fn backward(&self, x: &Backward, scratch: &mut [u8]) {
        with_f32_lanes!(isa(), L => {
            // SAFETY: the caller's contract.
            unsafe {
                self.each::<L>(x.matrix, false, scratch, &|w, task| {
                    self.walk_back::<L>(x, &w, task);
                });
            }
        });
    }

    /// Packs the matrix, then runs the tasks.
    ///
    /// # Safety
    /// `matrix` has the sizes of the problem; so has what `f` reads and writes.
    unsafe fn each<L: Lanes<El = f32>>(
        &self,
        matrix: Dense,
        forward: bool,
        scratch: &mut [u8],
        f: &(impl Fn(Work, Task) + Sync),
    ) {
        let (d, h) = (self.directions(), self.hidden);
        let (parts, matrices) = (self.parts(), self.matrices(forward));
        let sizes = matrices.map(Matrix::elements::<L>);
        let slot_elements = self.slot::<L>();
        let mut scratch = Scratch::new(scratch);
        let packed = scratch.take::<f32>((sizes[0] + sizes[1]) * d);
        let slots = scratch.take::<f32>(slot_elements * par::slots());
        let offsets = scratch.take::<usize>(L::KC);
        for p in 0..L::KC {
            // SAFETY: inside the piece.
            unsafe { offsets.get().add(p).write(p * L::NR) };
        }
        for (part, m) in matrices.iter().enumerate().filter(|(_, m)| m.n > 0) {
            let groups = m.n.div_ceil(PANELS * L::NR);
            let blocks = m.k.div_ceil(L::KC);
            par::for_each(d * groups * blocks, &|task, _| {
                let (dir, rest) = (task / (groups * blocks), task % (groups * blocks));
                let (x, k) = (rest / blocks * PANELS * L::NR, rest % blocks * L::KC);
                let (nx, nk) = ((PANELS * L::NR).min(m.n - x), L::KC.min(m.k - k));
                let ptr = matrix.at((dir * self.gates() + parts[part].0) * h).cast_const();
                let (sx, sk) = if forward { (h as isize, 1) } else { (1, h as isize) };
                // SAFETY: lanes and values of this part; every task has panels of its own.
                unsafe {
                    let from = Strided { ptr, dtype: matrix.dtype, sx, sk }.at(x, k);
                    let to = packed.get().add((sizes[0] + sizes[1]) * dir + part * sizes[0]);
                    f32::pack(from, nx, nk, L::NR, to.add(k * m.width::<L>() + x * nk));
                }
            });
        }
        let (rows, blocks) = self.blocks();
        par::for_each(d * blocks, &|task, slot| {
            let (direction, first) = (task / blocks, task % blocks * rows);
            let rows = rows.min(self.batch - first);
            // SAFETY: the packed parts of this direction; the slot is this task's.
            let work = unsafe {
                let base = packed.get().add((sizes[0] + sizes[1]) * direction);
                Work {
                    packed: [base, base.add(sizes[0])].map(SharedPtr::new),
                    matrices,
                    buffer: SharedPtr::new(slots.get().add(slot * slot_elements)),
                    offsets: offsets.get(),
                }
            };
            f(work, Task { direction, first, rows });
        });
    }

    /// The steps in the order of a direction.
    fn order(&self, direction: usize, back: bool) -> impl Iterator<Item = usize> {
        let n = self.steps;
        let reverse = self.way.reverse(direction) != back;
        (0..n).map(move |t| if reverse { n - 1 - t } else { t })
    }

    unsafe fn walk<L: Lanes<El = f32>>(&self, x: &Forward, w: &Work, task: Task) {
        let Task { direction: d, first, rows } = task;
        let (h, m, k) = (self.hidden, self.gates(), self.kept());
        let lstm = self.cell == RecurrentCell::Lstm;
        let [f1, f2, f3] = self.squash;
        // SAFETY: the slot holds these buffers one after another; rows of the task are its own.
        unsafe {
            let mut buffers = Buffers(w.buffer.get());
            let state = buffers.take(rows * h);
            let memory = buffers.take(rows * h);
            let held = buffers.take(rows * h);
            let pre = buffers.take(rows * m);
            let packed = buffers.0;
            let line = std::slice::from_raw_parts_mut(
                packed.add(rows.next_multiple_of(L::MR) * L::KC),
                8 * h,
            );
            let (fixed, line) = line.split_at_mut(4 * h);
            let (peephole, bias) = fixed.split_at_mut(3 * h);
            if let Some(p) = x.peephole {
                p.load(d * 3 * h, peephole);
            }
            if let Some(b) = x.bias {
                b.load(d * h, bias);
            }
            for i in 0..rows {
                x.states.load(self.row(0, first + i, d, h), &mut state[i * h..][..h]);
                if lstm {
                    x.states.load(self.row(1, first + i, d, h), &mut memory[i * h..][..h]);
                }
            }
            for t in self.order(d, false) {
                for i in 0..rows {
                    let pre = &mut pre[i * m..][..m];
                    x.gates.load(self.row(t, first + i, d, m), pre);
                    if self.cell.has_bias() {
                        pre[2 * h..].copy_from_slice(bias);
                    }
                }
                w.multiply::<L>(0, rows, (state.as_ptr(), h), (pre.as_mut_ptr(), m), packed);
                if self.cell == RecurrentCell::Gru {
                    for i in 0..rows {
                        let pre = &mut pre[i * m..][..2 * h];
                        cells::squash(f1, pre);
                        cells::product(&mut held[i * h..][..h], &pre[h..], &state[i * h..][..h]);
                    }
                    let to = (pre.as_mut_ptr().add(2 * h), m);
                    w.multiply::<L>(1, rows, (held.as_ptr(), h), to, packed);
                }
                for i in 0..rows {
                    let at = self.row(t, first + i, d, 1);
                    let state = &mut state[i * h..][..h];
                    x.before.store(at * h, state);
                    let kept = x.kept.at(at * k).cast::<f32>();
                    let kept = std::slice::from_raw_parts_mut(kept, k);
                    if ended(x.lengths, first + i, t) {
                        kept.fill(0.0);
                        line[..h].fill(0.0);
                        x.y.store(at * h, &line[..h]);
                        continue;
                    }
                    let pre = &mut pre[i * m..][..m];
                    match self.cell {
                        RecurrentCell::Rnn => {
                            cells::squash(f1, pre);
                            kept.copy_from_slice(pre);
                            state.copy_from_slice(pre);
                        }
                        RecurrentCell::Lstm => {
                            let memory = &mut memory[i * h..][..h];
                            let with = x.peephole.map(|_| &*peephole);
                            kept[4 * h..].copy_from_slice(memory);
                            cells::lstm([f1, f2, f3], pre, with, memory, state);
                            kept[..4 * h].copy_from_slice(pre);
                        }
                        RecurrentCell::Gru => {
                            cells::squash(f2, &mut pre[2 * h..]);
                            kept[..3 * h].copy_from_slice(pre);
                            kept[3 * h..].copy_from_slice(&held[i * h..][..h]);
                            cells::blend(&pre[..h], &pre[2 * h..], state);
                        }
                        RecurrentCell::GruResetAfter => {
                            cells::squash(f1, &mut pre[..2 * h]);
                            // The last third is R h + bias; x of that gate is still to come.
                            let (gates, q) = pre.split_at(2 * h);
                            let n = &mut line[..h];
                            x.gates.load(at * m + 2 * h, n);
                            cells::add_product(n, &gates[h..], q);
                            cells::squash(f2, n);
                            kept[..2 * h].copy_from_slice(gates);
                            kept[2 * h..3 * h].copy_from_slice(n);
                            kept[3 * h..].copy_from_slice(q);
                            cells::blend(&gates[..h], n, state);
                        }
                    }
                    x.y.store(at * h, state);
                }
            }
            for i in 0..rows {
                x.y.store(self.row(self.steps, first + i, d, h), &state[i * h..][..h]);
                if lstm {
                    x.y.store(self.row(self.steps + 1, first + i, d, h), &memory[i * h..][..h]);
                }
            }
        }
    }

    unsafe fn walk_back<L: Lanes<El = f32>>(&self, x: &Backward, w: &Work, task: Task) {
        let Task { direction: d, first, rows } = task;
        let (h, m, k) = (self.hidden, self.gates(), self.kept());
        let lstm = self.cell == RecurrentCell::Lstm;
        // SAFETY: the slot holds these buffers one after another; rows of the task are its own.
        unsafe {
            let mut buffers = Buffers(w.buffer.get());
            let state = buffers.take(rows * h);
            let memory = buffers.take(rows * h);
            let held = buffers.take(rows * h);
            let gates = buffers.take(rows * m);
            let packed = buffers.0;
            let line = std::slice::from_raw_parts_mut(
                packed.add(rows.next_multiple_of(L::MR) * L::KC),
                8 * h,
            );
            let (peephole, line) = line.split_at_mut(3 * h);
            let (old, line) = line.split_at_mut(h);
            if let Some(p) = x.peephole {
                p.load(d * 3 * h, peephole);
            }
            for i in 0..rows {
                x.d_y.load(self.row(self.steps, first + i, d, h), &mut state[i * h..][..h]);
                if lstm {
                    let at = self.row(self.steps + 1, first + i, d, h);
                    x.d_y.load(at, &mut memory[i * h..][..h]);
                }
            }
            let kept = |t: usize, i: usize| {
                let at = self.row(t, first + i, d, k);
                std::slice::from_raw_parts(x.kept.at(at).cast::<f32>(), k)
            };
            for t in self.order(d, true) {
                for i in 0..rows {
                    let at = self.row(t, first + i, d, 1);
                    let g = &mut gates[i * m..][..m];
                    if ended(x.lengths, first + i, t) {
                        // The state passes unchanged.
                        g.fill(0.0);
                        x.d_gates.store(at * m, g);
                        continue;
                    }
                    let kept = kept(t, i);
                    let state = &mut state[i * h..][..h];
                    x.d_y.load(at * h, &mut line[..h]);
                    cells::add(state, &line[..h]);
                    match self.cell {
                        RecurrentCell::Rnn => {
                            cells::through(self.squash[0], g, state, kept);
                            state.fill(0.0);
                        }
                        RecurrentCell::Lstm => {
                            let memory = &mut memory[i * h..][..h];
                            let with = x.peephole.map(|_| &*peephole);
                            let top = &mut line[..h];
                            cells::lstm_back(self.squash, g, kept, with, memory, state, top);
                            state.fill(0.0);
                        }
                        RecurrentCell::Gru | RecurrentCell::GruResetAfter => {
                            x.before.load(at * h, old);
                            cells::blend_back(self.squash, g, kept, old, state);
                            if self.cell == RecurrentCell::GruResetAfter {
                                cells::reset_after_back(self.squash[0], g, kept);
                                x.d_gates.store(at * m, g);
                                let (_, n) = g.split_at_mut(2 * h);
                                cells::scale(n, &kept[h..2 * h]);
                            }
                        }
                    }
                    if !matches!(self.cell, RecurrentCell::Gru | RecurrentCell::GruResetAfter) {
                        x.d_gates.store(at * m, g);
                    }
                }
                if self.cell == RecurrentCell::Gru {
                    held.fill(0.0);
                    let from = (gates.as_ptr().add(2 * h), m);
                    w.multiply::<L>(1, rows, from, (held.as_mut_ptr(), h), packed);
                    for i in (0..rows).filter(|&i| !ended(x.lengths, first + i, t)) {
                        let at = self.row(t, first + i, d, 1);
                        let g = &mut gates[i * m..][..m];
                        let (kept, held) = (kept(t, i), &held[i * h..][..h]);
                        x.before.load(at * h, old);
                        cells::reset_back(self.squash[0], &mut g[h..2 * h], kept, old, held);
                        cells::add_product(&mut state[i * h..][..h], held, &kept[h..2 * h]);
                        x.d_gates.store(at * m, g);
                    }
                }
                w.multiply::<L>(0, rows, (gates.as_ptr(), m), (state.as_mut_ptr(), h), packed);
            }
            for i in 0..rows {
                x.d_states.store(self.row(0, first + i, d, h), &state[i * h..][..h]);
                if lstm {
                    x.d_states.store(self.row(1, first + i, d, h), &memory[i * h..][..h]);
                }
            }
        }
    }
}

/// Sequences `first..first + rows` of a direction.
#[derive(Clone, Copy)]
struct Task {
    direction: usize,
    first: usize,
    rows: usize,
}

/// What a task works with.
struct Work {
    packed: [SharedPtr<f32>; 2],
    matrices: [Matrix; 2],
    buffer: SharedPtr<f32>,
    offsets: *const usize,
}

/// Hands out buffers of a slot.
struct Buffers(*mut f32);

impl Buffers {
    /// # Safety
    /// The slot has room for them.
    unsafe fn take<'a>(&mut self, n: usize) -> &'a mut [f32] {
        // SAFETY: the caller's contract; the elements are handed out once.
        unsafe {
            let piece = std::slice::from_raw_parts_mut(self.0, n);
            self.0 = self.0.add(n);
            piece
        }
    }
}

/// Whether sequence `b` is over before step `t`.
///
/// # Safety
/// `lengths` holds one number a sequence.
unsafe fn ended(lengths: Option<Dense>, b: usize, t: usize) -> bool {
    let Some(l) = lengths else { return false };
    // SAFETY: the caller's contract.
    let n = unsafe {
        match l.dtype {
            DType::I32 => i64::from(l.at(b).cast::<i32>().read()),
            _ => l.at(b).cast::<i64>().read(),
        }
    };
    n <= t as i64
}

impl Work {
    /// `c += a B` for packed part `part` of the matrix: rows of `a` at stride `.1`, of `c` likewise.
    ///
    /// # Safety
    /// `a` has `rows` rows of the part's k, `c` of its n; `buffer` has room for a packed block.
    unsafe fn multiply<L: Lanes<El = f32>>(
        &self,
        part: usize,
        rows: usize,
        (a, lda): (*const f32, usize),
        (c, ldc): (*mut f32, usize),
        buffer: *mut f32,
    ) {
        let Matrix { n, k } = self.matrices[part];
        let width = self.matrices[part].width::<L>();
        // The largest tile of any path.
        let mut edge = [0f32; 12 * 32];
        debug_assert!(L::MR * L::NR <= edge.len());
        for k0 in (0..k).step_by(L::KC) {
            let kc = L::KC.min(k - k0);
            // SAFETY: the caller's contract; panels are those that `each` packed.
            unsafe {
                let from = a.add(k0).cast();
                let from = Strided { ptr: from, dtype: DType::F32, sx: lda as isize, sk: 1 };
                f32::pack(from, rows, kc, L::MR, buffer);
                for j in (0..n).step_by(L::NR) {
                    let b = self.packed[part].get().cast_const().add(k0 * width + j * kc);
                    let cols = L::NR.min(n - j);
                    let mut base = [b; 8];
                    let vectors = L::NR / L::N;
                    for (v, base) in base.iter_mut().enumerate().take(vectors) {
                        *base = b.add(v * L::N);
                    }
                    for i in (0..rows).step_by(L::MR) {
                        let (own, count) = (buffer.add(i * kc).cast_const(), L::MR.min(rows - i));
                        let to = c.add(i * ldc + j);
                        let (out, ld, add) = match cols == L::NR {
                            true => (to, ldc, true),
                            false => (edge.as_mut_ptr(), L::NR, false),
                        };
                        if count == L::MR {
                            L::panel(kc, own, b, out, ld, add);
                        } else {
                            let base = &base[..vectors];
                            L::gather(count, kc, own, base, self.offsets, out, ld, add);
                        }
                        if cols < L::NR {
                            merge_edge(&edge, L::NR, count, cols, to, ldc, true);
                        }
                    }
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "recurrence_tests.rs"]
mod tests;
