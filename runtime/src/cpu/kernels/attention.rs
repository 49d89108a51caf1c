//! Scaled dot-product attention: `softmax(scale Q K^T) V` under a mask, forward and backward.
//!
//! A task takes a block of queries of one head (backward: a whole head) and keeps only the scores
//! of that block, in its thread's scratch; the backward pass recomputes them from the saved
//! log-sum-exp (Dao et al., "FlashAttention", 2022), which is saved as two numbers, what f32 holds
//! of it and the rest: a row of large scores, as of a mask's, has no other way to its probabilities.
//! Causal blocks end at their diagonal. Scores and sums are f32 whatever the tensors' format.

use super::convert;
use super::gemm::{multiply_packed, with_f32_lanes};
use super::lanes::Lanes;
use super::pack::{Packed, Strided};
use super::par::{self, Scratch, SharedPtr, piece_bytes};
use super::rows;
use crate::cpu::simd::{Isa, isa};
use precast_plan::DType;

/// A tensor `[batch, heads, positions, features]`; strides in elements.
#[derive(Clone, Copy, Debug)]
pub struct View4 {
    pub ptr: *const u8,
    pub dtype: DType,
    pub strides: [isize; 4],
}

// SAFETY: a bare address; whoever dereferences it answers for races.
unsafe impl Send for View4 {}
// SAFETY: as above.
unsafe impl Sync for View4 {}

impl View4 {
    /// Dense `[batch, heads, positions, features]`.
    pub fn dense(ptr: *const u8, dtype: DType, sizes: [usize; 4]) -> View4 {
        let [_, h, t, d] = sizes.map(|s| s as isize);
        View4 { ptr, dtype, strides: [h * t * d, t * d, d, 1] }
    }

    /// # Safety
    /// The element lies in the tensor.
    unsafe fn at(&self, i: [usize; 4]) -> *const u8 {
        let e: isize = i.iter().zip(self.strides).map(|(&i, s)| i as isize * s).sum();
        // SAFETY: the caller's contract.
        unsafe { self.ptr.offset(e * self.dtype.size() as isize) }
    }

    /// Positions from `t` on of one head as lanes, features as k.
    unsafe fn positions(&self, b: usize, h: usize, t: usize) -> Strided {
        // SAFETY: the caller's contract.
        let ptr = unsafe { self.at([b, h, t, 0]) };
        Strided { ptr, dtype: self.dtype, sx: self.strides[2], sk: self.strides[3] }
    }

    /// Features of one head as lanes, positions from `t` on as k.
    unsafe fn features(&self, b: usize, h: usize, t: usize) -> Strided {
        // SAFETY: the caller's contract.
        let ptr = unsafe { self.at([b, h, t, 0]) };
        Strided { ptr, dtype: self.dtype, sx: self.strides[3], sk: self.strides[2] }
    }

    /// Rounds rows of f32 into positions from `t` on.
    ///
    /// # Safety
    /// The positions are in the tensor, which is writable.
    unsafe fn store(&self, [b, h, t]: [usize; 3], n: usize, d: usize, src: *const f32, ld: usize) {
        for i in 0..n {
            // SAFETY: the caller's contract; `src` holds n rows of d at stride ld.
            unsafe {
                let row = std::slice::from_raw_parts(src.add(i * ld), d);
                let out = self.at([b, h, t + i, 0]).cast_mut();
                if self.strides[3] == 1 {
                    convert::narrow(self.dtype, row, out);
                } else {
                    for (j, &v) in row.iter().enumerate() {
                        convert::write(self.dtype, self.at([b, h, t + i, j]).cast_mut(), v);
                    }
                }
            }
        }
    }
}

/// An attention problem: `q: [b, h, tq, d]`, `k: [b, h, tk, d]`, `v: [b, h, tk, dv]`,
/// `o: [b, h, tq, dv]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub batch: usize,
    pub heads: usize,
    pub queries: usize,
    pub keys: usize,
    pub features: usize,
    pub value_features: usize,
    /// Query i sees keys up to `i + keys - queries`.
    pub causal: bool,
    pub scale: f32,
    /// What takes the place of a score where a mask of bools is false.
    pub fill: f32,
    /// A row whose scores are all negative infinity gives zeros and a log-sum-exp of negative
    /// infinity, not NaN.
    pub safe: bool,
}

/// What [`Attention::backward`] reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Backward {
    pub q: View4,
    pub k: View4,
    pub v: View4,
    pub o: View4,
    pub grad_o: View4,
    /// Added to the scaled scores, or of bools; strides of 0 broadcast: `[b, h, tq, tk]`.
    pub mask: Option<View4>,
    /// Written; the addresses must be writable.
    pub grad_q: View4,
    pub grad_k: View4,
    pub grad_v: View4,
}

/// Rows of keys whose gradients are multiplied at a time.
const KEY_ROWS: usize = 120;

/// Sizes of the buffers of a problem on an instruction set.
struct Sizes {
    /// Queries in a block, and blocks.
    block: usize,
    blocks: usize,
    /// Keys, rounded up to whole tiles: the row stride of scores.
    ld: usize,
    /// Elements of packed buffers: keys as lanes, features as lanes.
    k_lanes: usize,
    v_lanes: usize,
    k_features: usize,
    v_features: usize,
    /// A block of queries as rows, over any k up to `KC`, `features` or `value_features`.
    a: usize,
    /// A block of queries as k, features as lanes.
    q_features: usize,
    o_features: usize,
}

impl Attention {
    fn sizes<L: Lanes>(&self) -> Sizes {
        // Scores of a block stay within part of the second-level cache. Below a diagonal, small
        // blocks skip more.
        let limit = if self.causal { 36 } else { 72 };
        let most = (49_152 / self.keys.max(1)).clamp(2 * L::MR, limit);
        let blocks = self.queries.div_ceil(most).max(1);
        let block = self.queries.div_ceil(blocks).next_multiple_of(L::MR);
        let blocks = self.queries.div_ceil(block.max(1));
        let ld = self.keys.next_multiple_of(L::NR);
        let (d, dv) = (self.features, self.value_features);
        let width = L::KC.max(d).max(dv).max(block);
        Sizes {
            block,
            blocks,
            ld,
            k_lanes: ld * d,
            v_lanes: ld * dv,
            k_features: d.next_multiple_of(L::NR) * self.keys,
            v_features: dv.next_multiple_of(L::NR) * self.keys,
            a: block.max(KEY_ROWS.next_multiple_of(L::MR)) * width,
            q_features: d.next_multiple_of(L::NR) * block,
            o_features: dv.next_multiple_of(L::NR) * block,
        }
    }

    /// Keys that queries before `end` see.
    fn seen(&self, end: usize) -> usize {
        if self.causal {
            (end + self.keys).saturating_sub(self.queries).min(self.keys)
        } else {
            self.keys
        }
    }

    fn forward_slot<L: Lanes>(&self) -> usize {
        let s = self.sizes::<L>();
        s.k_lanes + s.v_features + s.a + s.block * s.ld + s.block * self.value_features
    }

    fn backward_slot<L: Lanes>(&self) -> usize {
        let s = self.sizes::<L>();
        s.k_lanes
            + s.v_lanes
            + s.k_features
            + s.a
            + s.q_features
            + s.o_features
            + 2 * s.block * s.ld
            + s.block * self.features
            + self.keys * (self.features + self.value_features)
            + 2 * self.value_features
    }

    /// Scratch bytes for [`Attention::forward`] on the current pool.
    pub fn forward_scratch_bytes(&self) -> usize {
        self.forward_scratch_bytes_on(isa())
    }

    fn forward_scratch_bytes_on(&self, isa: Isa) -> usize {
        with_f32_lanes!(isa, L => {
            piece_bytes::<f32>(self.forward_slot::<L>() * par::slots())
                + piece_bytes::<usize>(KEY_STEP * par::slots())
        })
    }

    /// Scratch bytes for [`Attention::backward`] on the current pool.
    pub fn backward_scratch_bytes(&self) -> usize {
        self.backward_scratch_bytes_on(isa())
    }

    fn backward_scratch_bytes_on(&self, isa: Isa) -> usize {
        with_f32_lanes!(isa, L => piece_bytes::<f32>(self.backward_slot::<L>() * par::slots()))
    }

    /// Computes o, and the log-sum-exp of the scores of each query: what f32 holds of it and the rest,
    /// both `[b, h, tq]` (dense).
    ///
    /// # Safety
    /// The views have the sizes of the problem; `o` and `lse` are writable and overlap nothing.
    ///
    /// # Panics
    /// If `scratch` is smaller than [`Attention::forward_scratch_bytes`].
    #[allow(clippy::too_many_arguments)]
    pub unsafe fn forward(
        &self,
        q: View4,
        k: View4,
        v: View4,
        mask: Option<View4>,
        o: View4,
        lse: [*mut f32; 2],
        scratch: &mut [u8],
    ) {
        // SAFETY: the caller's contract.
        unsafe { self.forward_on(isa(), [q, k, v, o], mask, lse, scratch) }
    }

    unsafe fn forward_on(
        &self,
        isa: Isa,
        [q, k, v, o]: [View4; 4],
        mask: Option<View4>,
        lse: [*mut f32; 2],
        scratch: &mut [u8],
    ) {
        let lse = lse.map(SharedPtr::new);
        with_f32_lanes!(isa, L => {
            let s = self.sizes::<L>();
            let slot_elements = self.forward_slot::<L>();
            let mut scratch = Scratch::new(scratch);
            let keys = scratch.take::<usize>(KEY_STEP * par::slots());
            for slot in 0..par::slots() {
                // SAFETY: inside the piece.
                unsafe { keys.get().add(slot * KEY_STEP).write(usize::MAX) };
            }
            let slots = scratch.take::<f32>(slot_elements * par::slots());
            par::for_each(self.batch * self.heads * s.blocks, &|task, slot| {
                let (head, block) = (task / s.blocks, task % s.blocks);
                // SAFETY: each task writes its own rows of o and lse, and its own slot.
                unsafe {
                    let buffer = slots.get().add(slot * slot_elements);
                    let packed = keys.get().add(slot * KEY_STEP);
                    let fresh = *packed != head;
                    *packed = head;
                    let at = (head, block, fresh);
                    let lse = [lse[0].get(), lse[1].get()];
                    self.forward_block::<L>(&s, [q, k, v, o], mask, lse, at, buffer);
                }
            });
        });
    }

    unsafe fn forward_block<L: Lanes<El = f32>>(
        &self,
        s: &Sizes,
        [q, k, v, o]: [View4; 4],
        mask: Option<View4>,
        [lse, low]: [*mut f32; 2],
        (head, block, fresh): (usize, usize, bool),
        buffer: *mut f32,
    ) {
        let (b, h) = (head / self.heads, head % self.heads);
        let (d, dv) = (self.features, self.value_features);
        let q0 = block * s.block;
        let rows = s.block.min(self.queries - q0);
        let seen = self.seen(q0 + rows);
        // SAFETY: the slot holds these buffers one after another; the views hold the blocks.
        unsafe {
            let k_lanes = buffer;
            let v_features = k_lanes.add(s.k_lanes);
            let a = v_features.add(s.v_features);
            let scores = a.add(s.a);
            let out = scores.add(s.block * s.ld);
            if fresh {
                f32::pack(k.positions(b, h, 0), self.keys, d, L::NR, k_lanes);
                pack_k_blocks::<L>(v.features(b, h, 0), dv, self.keys, v_features);
            }
            f32::pack(q.positions(b, h, q0), rows, d, L::MR, a);
            let n = seen.next_multiple_of(L::NR);
            multiply_packed::<L>((rows, n, d), a, k_lanes, scores, s.ld, false);
            for i in 0..rows {
                let row = std::slice::from_raw_parts_mut(scores.add(i * s.ld), seen);
                let visible = self.seen(q0 + i + 1);
                let (row, hidden) = row.split_at_mut(visible);
                hidden.fill(0.0);
                let scale = self.mask_scores([b, h, q0 + i], mask, row);
                let top = rows::max(row) * scale;
                let at = head * self.queries + q0 + i;
                if top == f32::NEG_INFINITY {
                    // All masked, or no keys; NaN scores do not count for the maximum.
                    let nan = !self.safe || row.iter().any(|x| x.is_nan());
                    row.fill(if nan { f32::NAN } else { 0.0 });
                    *lse.add(at) = if nan { f32::NAN } else { top };
                    *low.add(at) = 0.0;
                    continue;
                }
                let sum = rows::exp_sum(row, scale, top);
                rows::scale(row, 1.0 / sum);
                (*lse.add(at), *low.add(at)) = two_sum(top, sum.ln());
            }
            product_over_keys::<L>(scores, s.ld, (rows, dv, seen), v_features, self.keys, a, out);
            o.store([b, h, q0], rows, dv, out, dv);
        }
    }

    /// Applies scale and mask to a row if there is a mask; returns the scale still to apply.
    ///
    /// Without a mask the scale is applied with the exponential; a negative one must be applied
    /// first, or the maximum would be the wrong end.
    unsafe fn mask_scores(
        &self,
        [b, h, i]: [usize; 3],
        mask: Option<View4>,
        row: &mut [f32],
    ) -> f32 {
        let Some(mask) = mask else {
            if self.scale > 0.0 {
                return self.scale;
            }
            rows::scale(row, self.scale);
            return 1.0;
        };
        if mask.dtype == DType::Bool {
            // SAFETY: the caller vouches for the mask.
            let (keep, step) = unsafe { (mask.at([b, h, i, 0]), mask.strides[3]) };
            for (j, x) in row.iter_mut().enumerate() {
                // SAFETY: as above.
                let kept = unsafe { *keep.offset(j as isize * step) } != 0;
                *x = if kept { *x * self.scale } else { self.fill };
            }
            return 1.0;
        }
        let mut buf = [0f32; 64];
        for (c, chunk) in row.chunks_mut(buf.len()).enumerate() {
            let buf = &mut buf[..chunk.len()];
            let j0 = c * 64;
            // SAFETY: the caller vouches for the mask.
            unsafe {
                if mask.strides[3] == 1 {
                    convert::widen(mask.dtype, mask.at([b, h, i, j0]), buf);
                } else {
                    for (j, m) in buf.iter_mut().enumerate() {
                        *m = convert::read(mask.dtype, mask.at([b, h, i, j0 + j]));
                    }
                }
            }
            for (x, m) in chunk.iter_mut().zip(buf) {
                *x = *x * self.scale + *m;
            }
        }
        1.0
    }

    /// Computes the gradients of q, k and v from the saved log-sum-exp.
    ///
    /// # Safety
    /// The views have the sizes of the problem, `lse` is two of `[b, h, tq]`, and the gradients are
    /// writable and overlap nothing.
    ///
    /// # Panics
    /// If `scratch` is smaller than [`Attention::backward_scratch_bytes`].
    pub unsafe fn backward(&self, t: &Backward, lse: [*const f32; 2], scratch: &mut [u8]) {
        // SAFETY: the caller's contract.
        unsafe { self.backward_on(isa(), t, lse, scratch) }
    }

    unsafe fn backward_on(&self, isa: Isa, t: &Backward, lse: [*const f32; 2], scratch: &mut [u8]) {
        let lse = lse.map(|p| SharedPtr::new(p.cast_mut()));
        with_f32_lanes!(isa, L => {
            let slot_elements = self.backward_slot::<L>();
            let slots = Scratch::new(scratch).take::<f32>(slot_elements * par::slots());
            par::for_each(self.batch * self.heads, &|head, slot| {
                // SAFETY: each task writes the gradients of its own head, and its own slot.
                unsafe {
                    let buffer = slots.get().add(slot * slot_elements);
                    self.backward_head::<L>(t, [lse[0].get(), lse[1].get()], head, buffer);
                }
            });
        });
    }

    unsafe fn backward_head<L: Lanes<El = f32>>(
        &self,
        t: &Backward,
        [lse, low]: [*mut f32; 2],
        head: usize,
        buffer: *mut f32,
    ) {
        let s = self.sizes::<L>();
        let (b, h) = (head / self.heads, head % self.heads);
        let (d, dv) = (self.features, self.value_features);
        // SAFETY: the slot holds these buffers one after another; the views hold the head.
        unsafe {
            let k_lanes = buffer;
            let v_lanes = k_lanes.add(s.k_lanes);
            let k_features = v_lanes.add(s.v_lanes);
            let a = k_features.add(s.k_features);
            let q_features = a.add(s.a);
            let o_features = q_features.add(s.q_features);
            let p = o_features.add(s.o_features);
            let dp = p.add(s.block * s.ld);
            let dq = dp.add(s.block * s.ld);
            let dk = dq.add(s.block * d);
            let dvs = dk.add(self.keys * d);
            let pair = dvs.add(self.keys * dv);

            f32::pack(t.k.positions(b, h, 0), self.keys, d, L::NR, k_lanes);
            f32::pack(t.v.positions(b, h, 0), self.keys, dv, L::NR, v_lanes);
            pack_k_blocks::<L>(t.k.features(b, h, 0), d, self.keys, k_features);
            std::slice::from_raw_parts_mut(dk, self.keys * (d + dv)).fill(0.0);

            for block in 0..s.blocks {
                let q0 = block * s.block;
                let rows = s.block.min(self.queries - q0);
                let seen = self.seen(q0 + rows);
                let n = seen.next_multiple_of(L::NR);
                f32::pack(t.q.positions(b, h, q0), rows, d, L::MR, a);
                multiply_packed::<L>((rows, n, d), a, k_lanes, p, s.ld, false);
                f32::pack(t.grad_o.positions(b, h, q0), rows, dv, L::MR, a);
                multiply_packed::<L>((rows, n, dv), a, v_lanes, dp, s.ld, false);
                for i in 0..rows {
                    let at = [b, h, q0 + i];
                    let delta = row_dot(&t.o, &t.grad_o, at, dv, pair);
                    let prow = std::slice::from_raw_parts_mut(p.add(i * s.ld), seen);
                    let drow = std::slice::from_raw_parts_mut(dp.add(i * s.ld), seen);
                    let visible = self.seen(q0 + i + 1);
                    prow[visible..].fill(0.0);
                    drow[visible..].fill(0.0);
                    let (prow, drow) = (&mut prow[..visible], &mut drow[..visible]);
                    let row = head * self.queries + q0 + i;
                    let (high, low) = (*lse.add(row), *low.add(row));
                    // Nothing comes of a cotangent of 0, even where the probabilities are NaN.
                    let Some(delta) = delta.filter(|_| high != f32::NEG_INFINITY) else {
                        prow.fill(0.0);
                        drow.fill(0.0);
                        continue;
                    };
                    let scale = self.mask_scores(at, t.mask, prow);
                    rows::probabilities(prow, scale, high, low);
                    rows::softmax_grad(prow, drow, delta, self.scale);
                    if let Some(mask) = t.mask.filter(|m| m.dtype == DType::Bool) {
                        // What stands in the place of a score is no function of q and k.
                        let (keep, step) = (mask.at([b, h, q0 + i, 0]), mask.strides[3]);
                        for (j, d) in drow.iter_mut().enumerate() {
                            if *keep.offset(j as isize * step) == 0 {
                                *d = 0.0;
                            }
                        }
                    }
                }
                product_over_keys::<L>(dp, s.ld, (rows, d, seen), k_features, self.keys, a, dq);
                t.grad_q.store([b, h, q0], rows, d, dq, d);

                f32::pack(t.q.features(b, h, q0), d, rows, L::NR, q_features);
                f32::pack(t.grad_o.features(b, h, q0), dv, rows, L::NR, o_features);
                for j in (0..seen).step_by(KEY_ROWS) {
                    let m = KEY_ROWS.min(seen - j);
                    for (x, right, width, out) in
                        [(dp, q_features, d, dk), (p, o_features, dv, dvs)]
                    {
                        let transposed = Strided {
                            ptr: x.add(j).cast_const().cast(),
                            dtype: DType::F32,
                            sx: 1,
                            sk: s.ld as isize,
                        };
                        f32::pack(transposed, m, rows, L::MR, a);
                        let out = out.add(j * width);
                        multiply_packed::<L>((m, width, rows), a, right, out, width, true);
                    }
                }
            }
            t.grad_k.store([b, h, 0], self.keys, d, dk, d);
            t.grad_v.store([b, h, 0], self.keys, dv, dvs, dv);
        }
    }
}

/// Distance between the keys of two threads: a cache line.
const KEY_STEP: usize = par::ALIGN / size_of::<usize>();

/// The rounded sum of two numbers and what it lost (Knuth, The Art of Computer Programming, 4.2.2).
fn two_sum(a: f32, b: f32) -> (f32, f32) {
    let sum = a + b;
    let of_b = sum - a;
    (sum, (a - (sum - of_b)) + (b - of_b))
}

/// `sum_j x[j] y[j]` over the features of one position, `None` where every y is 0; `buf` holds two
/// rows of `d`.
unsafe fn row_dot(
    x: &View4,
    y: &View4,
    [b, h, t]: [usize; 3],
    d: usize,
    buf: *mut f32,
) -> Option<f32> {
    // SAFETY: the caller's contract.
    unsafe {
        let pair = std::slice::from_raw_parts_mut(buf, 2 * d);
        let (xs, ys) = pair.split_at_mut(d);
        for (view, out) in [(x, &mut *xs), (y, &mut *ys)] {
            if view.strides[3] == 1 {
                convert::widen(view.dtype, view.at([b, h, t, 0]), out);
            } else {
                for (j, o) in out.iter_mut().enumerate() {
                    *o = convert::read(view.dtype, view.at([b, h, t, j]));
                }
            }
        }
        ys.iter().any(|&y| y != 0.0).then(|| rows::dot(xs, ys))
    }
}

/// Packs features as lanes over all keys, block of `KC` keys after block.
unsafe fn pack_k_blocks<L: Lanes<El = f32>>(
    src: Strided,
    lanes: usize,
    keys: usize,
    out: *mut f32,
) {
    let width = lanes.next_multiple_of(L::NR);
    for k0 in (0..keys).step_by(L::KC) {
        let n = L::KC.min(keys - k0);
        // SAFETY: the caller's contract; each block takes n * width elements.
        unsafe { f32::pack(src.at(0, k0), lanes, n, L::NR, out.add(k0 * width)) };
    }
}

/// `out: [m, n] = x[.., ..seen] b`, where b was packed by [`pack_k_blocks`] over `keys`.
unsafe fn product_over_keys<L: Lanes<El = f32>>(
    x: *const f32,
    ld: usize,
    (m, n, seen): (usize, usize, usize),
    b: *const f32,
    keys: usize,
    a: *mut f32,
    out: *mut f32,
) {
    if seen == 0 {
        // SAFETY: the caller's contract.
        unsafe { std::slice::from_raw_parts_mut(out, m * n).fill(0.0) };
    }
    let width = n.next_multiple_of(L::NR);
    for k0 in (0..seen).step_by(L::KC) {
        // SAFETY: the caller's contract. A panel of b is as long as its block, of which the first
        // `used` keys count; panels are multiplied one by one, since that is not their distance.
        unsafe {
            let stored = L::KC.min(keys - k0);
            let used = L::KC.min(seen - k0);
            let left = Strided { ptr: x.add(k0).cast(), dtype: DType::F32, sx: ld as isize, sk: 1 };
            f32::pack(left, m, used, L::MR, a);
            let b = b.add(k0 * width);
            for j in (0..n).step_by(L::NR) {
                let cols = L::NR.min(n - j);
                let panel = b.add(j * stored);
                multiply_packed::<L>((m, cols, used), a, panel, out.add(j), n, k0 > 0);
            }
        }
    }
}

#[cfg(test)]
#[path = "attention_tests.rs"]
mod tests;
