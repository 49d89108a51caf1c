//! Max pooling and nearest-neighbour resizing of planes, forward and backward.

use super::convert;
use super::par::{self, Scratch, SharedPtr, piece_bytes};
use crate::multiversion;
use precast_plan::DType;

/// Max pooling of `planes` planes (`n * c`). Padding never wins; among equal values the first in
/// row order wins; a NaN in the window wins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MaxPool2d {
    pub planes: usize,
    pub input: [usize; 2],
    /// Given, since rounding up may add windows that begin inside the padded input.
    pub output: [usize; 2],
    /// At most 256 taps.
    pub kernel: [usize; 2],
    pub stride: [usize; 2],
    pub dilation: [usize; 2],
    /// Before the first row and column; what follows the last is implied by `output`.
    pub pad: [usize; 2],
}

multiversion! {
    /// Takes `x[j * step]` where it beats `best[j]`.
    fn take_larger<L>(x: &[f32], step: usize, tap: u8, best: &mut [f32], arg: &mut [u8]) {
        if step == 1 {
            for ((&v, b), a) in x.iter().zip(best).zip(arg) {
                let better = v > *b || v.is_nan();
                *b = if better { v } else { *b };
                *a = if better { tap } else { *a };
            }
        } else if step == 2 {
            for ((v, b), a) in x.chunks(2).zip(best).zip(arg) {
                let better = v[0] > *b || v[0].is_nan();
                *b = if better { v[0] } else { *b };
                *a = if better { tap } else { *a };
            }
        } else {
            for ((v, b), a) in x.chunks(step).zip(best).zip(arg) {
                if v[0] > *b || v[0].is_nan() {
                    *b = v[0];
                    *a = tap;
                }
            }
        }
    }
}

multiversion! {
    /// 2x2 windows side by side: a plane of rows of `ow` from one of rows of `w`. Whole planes, since
    /// a call for each of their short rows would cost more than the rows.
    fn pool_2x2<L>(x: &[f32], w: usize, ow: usize, best: &mut [f32], arg: &mut [u8]) {
        let rows = x.chunks_exact(2 * w).zip(best.chunks_exact_mut(ow)).zip(arg.chunks_exact_mut(ow));
        for ((x, best), arg) in rows {
            let (r0, r1) = x.split_at(w);
            let (r0, r1) = (r0.as_chunks::<2>().0, r1.as_chunks::<2>().0);
            for (((a, b), best), arg) in r0.iter().zip(r1).zip(best).zip(arg) {
                let (mut m, mut t) = (f32::NEG_INFINITY, 0u32);
                for (tap, v) in [(0, a[0]), (1, a[1]), (2, b[0]), (3, b[1])] {
                    let better = v > m || v.is_nan();
                    m = if better { v } else { m };
                    t = if better { tap } else { t };
                }
                *best = m;
                *arg = t as u8;
            }
        }
    }

    /// The gradient of [`pool_2x2`].
    fn unpool_2x2<L>(g: &[f32], arg: &[u8], w: usize, ow: usize, dx: &mut [f32]) {
        let rows = g.chunks_exact(ow).zip(arg.chunks_exact(ow)).zip(dx.chunks_exact_mut(2 * w));
        for ((g, arg), dx) in rows {
            let (r0, r1) = dx.split_at_mut(w);
            let (r0, r1) = (r0.as_chunks_mut::<2>().0, r1.as_chunks_mut::<2>().0);
            for (((&g, &t), a), b) in g.iter().zip(arg).zip(r0).zip(r1) {
                let t = u32::from(t);
                a[0] = if t == 0 { g } else { 0.0 };
                a[1] = if t == 1 { g } else { 0.0 };
                b[0] = if t == 2 { g } else { 0.0 };
                b[1] = if t == 3 { g } else { 0.0 };
            }
        }
    }
}

impl MaxPool2d {
    /// Windows of 2x2 without gaps, overlap or padding.
    fn is_2x2(&self) -> bool {
        self.kernel == [2, 2]
            && self.stride == [2, 2]
            && self.dilation == [1, 1]
            && self.pad == [0, 0]
            && (0..2).all(|d| self.output[d] * 2 <= self.input[d])
    }

    /// Outputs `j` of dimension `d` whose tap `t` lies inside the input, and the input position of
    /// the first.
    fn inside(&self, d: usize, t: usize) -> (usize, usize, usize) {
        let (s, p) = (self.stride[d], self.pad[d]);
        let at = t * self.dilation[d];
        let first = p.saturating_sub(at).div_ceil(s);
        // at + s j - p < input
        let end = (self.input[d] + p).saturating_sub(at).div_ceil(s).min(self.output[d]);
        let start = (first * s + at).saturating_sub(p);
        (first.min(end), end, start)
    }

    /// f32 values of scratch memory that a thread needs.
    fn forward_slot(&self) -> usize {
        let ([h, w], [oh, ow]) = (self.input, self.output);
        if self.is_2x2() { h * w + oh * ow } else { w + ow }
    }

    fn backward_slot(&self) -> usize {
        let ([h, w], [oh, ow]) = (self.input, self.output);
        h * w + oh * ow
    }

    /// Scratch bytes for [`MaxPool2d::forward`] on the current pool.
    pub fn forward_scratch_bytes(&self) -> usize {
        piece_bytes::<f32>(self.forward_slot() * par::slots())
    }

    /// Scratch bytes for [`MaxPool2d::backward`] on the current pool.
    pub fn backward_scratch_bytes(&self) -> usize {
        piece_bytes::<f32>(self.backward_slot() * par::slots())
    }

    /// Writes y, and for each output the winning tap (`row * kernel[1] + column`) to `arg`.
    ///
    /// # Safety
    /// x and y are dense planes of these sizes in `dtype`, `arg` has a byte for each output, and
    /// none overlap.
    ///
    /// # Panics
    /// If the kernel has more than 256 taps or `scratch` is too small.
    pub unsafe fn forward(
        &self,
        x: *const u8,
        y: *mut u8,
        arg: *mut u8,
        dtype: DType,
        scratch: &mut [u8],
    ) {
        assert!(self.kernel[0] * self.kernel[1] <= 256, "a tap is stored in a byte");
        let [h, w] = self.input;
        let [oh, ow] = self.output;
        let slots = Scratch::new(scratch).take::<f32>(self.forward_slot() * par::slots());
        let x = SharedPtr::new(x.cast_mut());
        let (y, arg) = (SharedPtr::new(y), SharedPtr::new(arg));
        let size = dtype.size();
        let per_task = planes_per_task(oh * ow * self.kernel[0] * self.kernel[1]);
        par::for_each(self.planes.div_ceil(per_task), &|task, slot| {
            for plane in task * per_task..((task + 1) * per_task).min(self.planes) {
                // SAFETY: each task reads and writes its own planes, and its own slot.
                unsafe {
                    let slot = slots.get().add(slot * self.forward_slot());
                    if self.is_2x2() {
                        let wide = std::slice::from_raw_parts_mut(slot, h * w);
                        let best = std::slice::from_raw_parts_mut(slot.add(h * w), oh * ow);
                        let src = x.get().add(plane * h * w * size).cast_const();
                        let at = plane * oh * ow;
                        let arg = std::slice::from_raw_parts_mut(arg.get().add(at), oh * ow);
                        let values = if dtype == DType::F32 {
                            std::slice::from_raw_parts(src.cast(), h * w)
                        } else {
                            convert::widen(dtype, src, wide);
                            &*wide
                        };
                        pool_2x2(values, w, ow, best, arg);
                        convert::narrow(dtype, best, y.get().add(at * size));
                        continue;
                    }
                    let wide = std::slice::from_raw_parts_mut(slot, w);
                    let best = std::slice::from_raw_parts_mut(slot.add(w), ow);
                    for i in 0..oh {
                        let out = (plane * oh + i) * ow;
                        let arg = std::slice::from_raw_parts_mut(arg.get().add(out), ow);
                        best.fill(f32::NEG_INFINITY);
                        arg.fill(0);
                        for th in 0..self.kernel[0] {
                            let at = i * self.stride[0] + th * self.dilation[0];
                            if at < self.pad[0] || at - self.pad[0] >= h {
                                continue;
                            }
                            let row = (plane * h + at - self.pad[0]) * w;
                            let src = x.get().add(row * size).cast_const();
                            let row = if dtype == DType::F32 {
                                std::slice::from_raw_parts(src.cast(), w)
                            } else {
                                convert::widen(dtype, src, wide);
                                &*wide
                            };
                            for tw in 0..self.kernel[1] {
                                let (j0, j1, start) = self.inside(1, tw);
                                if j0 >= j1 {
                                    continue;
                                }
                                let tap = (th * self.kernel[1] + tw) as u8;
                                let (best, arg) = (&mut best[j0..j1], &mut arg[j0..j1]);
                                take_larger(&row[start..], self.stride[1], tap, best, arg);
                            }
                        }
                        convert::narrow(dtype, best, y.get().add(out * size));
                    }
                }
            }
        });
    }

    /// Sends each gradient to the input that won: dx.
    ///
    /// # Safety
    /// dy and dx are dense planes in `dtype`, `arg` is what [`MaxPool2d::forward`] wrote, and none
    /// overlap.
    ///
    /// # Panics
    /// If `scratch` is too small.
    pub unsafe fn backward(
        &self,
        dy: *const u8,
        arg: *const u8,
        dx: *mut u8,
        dtype: DType,
        scratch: &mut [u8],
    ) {
        let [h, w] = self.input;
        let [oh, ow] = self.output;
        let slots = Scratch::new(scratch).take::<f32>(self.backward_slot() * par::slots());
        let (dy, arg) = (SharedPtr::new(dy.cast_mut()), SharedPtr::new(arg.cast_mut()));
        let dx = SharedPtr::new(dx);
        let size = dtype.size();
        let per_task = planes_per_task(h * w);
        par::for_each(self.planes.div_ceil(per_task), &|task, slot| {
            for plane in task * per_task..((task + 1) * per_task).min(self.planes) {
                // SAFETY: each task reads and writes its own planes, and its own slot.
                unsafe {
                    let slot = slots.get().add(slot * self.backward_slot());
                    let out = dx.get().add(plane * h * w * size);
                    let sums: *mut f32 = if dtype == DType::F32 { out.cast() } else { slot };
                    let sums = std::slice::from_raw_parts_mut(sums, h * w);
                    let grads = std::slice::from_raw_parts_mut(slot.add(h * w), oh * ow);
                    let exact = self.is_2x2();
                    // Windows write every element they cover; the rest is zeros.
                    if !exact || (2 * oh, 2 * ow) != (h, w) {
                        sums.fill(0.0);
                    }
                    let at = plane * oh * ow;
                    convert::widen(dtype, dy.get().add(at * size), grads);
                    let arg = std::slice::from_raw_parts(arg.get().add(at), oh * ow);
                    if exact {
                        unpool_2x2(grads, arg, w, ow, sums);
                    }
                    for i in if exact { 0..0 } else { 0..oh } {
                        let row = i * ow..(i + 1) * ow;
                        let (grads, arg) = (&grads[row.clone()], &arg[row]);
                        for (j, (&g, &tap)) in grads.iter().zip(arg).enumerate() {
                            let (th, tw) = (
                                usize::from(tap) / self.kernel[1],
                                usize::from(tap) % self.kernel[1],
                            );
                            let r = (i * self.stride[0] + th * self.dilation[0])
                                .wrapping_sub(self.pad[0]);
                            let q = (j * self.stride[1] + tw * self.dilation[1])
                                .wrapping_sub(self.pad[1]);
                            // A window with nothing but padding has no winner.
                            if r < h && q < w {
                                sums[r * w + q] += g;
                            }
                        }
                    }
                    if dtype != DType::F32 {
                        convert::narrow(dtype, sums, out);
                    }
                }
            }
        });
    }
}

/// Planes in a task, so that a task touches some 32 thousand elements.
fn planes_per_task(elements: usize) -> usize {
    (32_768 / elements.max(1)).max(1)
}

/// `y[p, i, j] = x[p, rows[i], cols[j]]` for `planes` dense planes; y is `[rows.len(), cols.len()]`.
///
/// # Safety
/// x and y are dense in `dtype` and do not overlap; `input` is the size of a plane of x.
///
/// # Panics
/// If a row or column is not below `input`.
pub unsafe fn resize_nearest(
    planes: usize,
    input: [usize; 2],
    rows: &[u32],
    cols: &[u32],
    x: *const u8,
    y: *mut u8,
    dtype: DType,
) {
    check_maps(input, rows, cols);
    let (x, y) = (SharedPtr::new(x.cast_mut()), SharedPtr::new(y));
    let size = dtype.size();
    let per_task = planes_per_task(rows.len() * cols.len());
    par::for_each(planes.div_ceil(per_task), &|task, _| {
        for plane in task * per_task..((task + 1) * per_task).min(planes) {
            for (i, &r) in rows.iter().enumerate() {
                for (j, &c) in cols.iter().enumerate() {
                    let from = (plane * input[0] + r as usize) * input[1] + c as usize;
                    let to = (plane * rows.len() + i) * cols.len() + j;
                    // SAFETY: both inside this task's planes.
                    unsafe {
                        let (src, dst) = (x.get().add(from * size), y.get().add(to * size));
                        std::ptr::copy_nonoverlapping(src, dst, size);
                    }
                }
            }
        }
    });
}

/// Scratch bytes for [`resize_nearest_grad`] on the current pool.
pub fn resize_nearest_grad_scratch_bytes(input: [usize; 2]) -> usize {
    piece_bytes::<f32>(input[0] * input[1] * par::slots())
}

/// `dx[p, r, c] = sum of dy[p, i, j]` over the outputs that read it.
///
/// # Safety
/// As [`resize_nearest`], with dx for x and dy for y.
///
/// # Panics
/// If a row or column is not below `input`, or `scratch` is too small.
#[allow(clippy::too_many_arguments)]
pub unsafe fn resize_nearest_grad(
    planes: usize,
    input: [usize; 2],
    rows: &[u32],
    cols: &[u32],
    dy: *const u8,
    dx: *mut u8,
    dtype: DType,
    scratch: &mut [u8],
) {
    check_maps(input, rows, cols);
    let elements = input[0] * input[1];
    let slots = Scratch::new(scratch).take::<f32>(elements * par::slots());
    let (dy, dx) = (SharedPtr::new(dy.cast_mut()), SharedPtr::new(dx));
    let size = dtype.size();
    let per_task = planes_per_task(rows.len() * cols.len());
    par::for_each(planes.div_ceil(per_task), &|task, slot| {
        for plane in task * per_task..((task + 1) * per_task).min(planes) {
            // SAFETY: each task reads and writes its own planes, and its own slot.
            unsafe {
                let sums =
                    std::slice::from_raw_parts_mut(slots.get().add(slot * elements), elements);
                sums.fill(0.0);
                for (i, &r) in rows.iter().enumerate() {
                    for (j, &c) in cols.iter().enumerate() {
                        let from = (plane * rows.len() + i) * cols.len() + j;
                        sums[r as usize * input[1] + c as usize] +=
                            convert::read(dtype, dy.get().add(from * size));
                    }
                }
                convert::narrow(dtype, sums, dx.get().add(plane * elements * size));
            }
        }
    });
}

fn check_maps(input: [usize; 2], rows: &[u32], cols: &[u32]) {
    assert!(rows.iter().all(|&r| (r as usize) < input[0]), "a row outside the plane");
    assert!(cols.iter().all(|&c| (c as usize) < input[1]), "a column outside the plane");
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Buf, Rng, rounding, same_for_any_thread_count};
    use super::*;

    fn random_pool(rng: &mut Rng) -> MaxPool2d {
        loop {
            let mut p = MaxPool2d {
                planes: 1 + rng.below(5),
                input: [1 + rng.below(12), 1 + rng.below(40)],
                output: [0, 0],
                kernel: [1 + rng.below(3), 1 + rng.below(4)],
                stride: [1 + rng.below(3), 1 + rng.below(3)],
                dilation: [1 + rng.below(2), 1 + rng.below(2)],
                pad: [0, 0],
            };
            let mut fits = true;
            for d in 0..2 {
                p.pad[d] = rng.below(p.kernel[d].div_ceil(2) + 1).min(p.kernel[d] - 1);
                let after = rng.below(2);
                let extent = (p.kernel[d] - 1) * p.dilation[d] + 1;
                let padded = p.input[d] + p.pad[d] + after;
                fits &= padded >= extent;
                if fits {
                    p.output[d] = (padded - extent) / p.stride[d] + 1;
                }
            }
            if fits {
                return p;
            }
        }
    }

    fn run(p: &MaxPool2d, x: &Buf, dy: &Buf) -> (Buf, Vec<u8>, Buf) {
        let n = p.planes * p.output[0] * p.output[1];
        let (mut y, mut arg) = (Buf::poisoned(x.dtype, n), vec![9u8; n]);
        let mut dx = Buf::poisoned(x.dtype, x.len);
        let mut scratch = vec![0xff; p.forward_scratch_bytes().max(p.backward_scratch_bytes())];
        // SAFETY: dense planes of these sizes.
        unsafe {
            p.forward(x.ptr(), y.ptr_mut(), arg.as_mut_ptr(), x.dtype, &mut scratch);
            p.backward(dy.ptr(), arg.as_ptr(), dx.ptr_mut(), x.dtype, &mut scratch);
        }
        (y, arg, dx)
    }

    #[test]
    fn pooling_of_random_shapes() {
        let mut rng = Rng(53);
        for _ in 0..300 {
            let mut p = random_pool(&mut rng);
            if rng.below(3) == 0 && p.input[0] > 1 && p.input[1] > 1 {
                p.kernel = [2, 2];
                p.stride = [2, 2];
                p.dilation = [1, 1];
                p.pad = [0, 0];
                p.output = p.input.map(|n| n / 2);
            }
            let dtype = rng.pick(&[DType::F32, DType::Bf16, DType::F16]);
            let [h, w] = p.input;
            let [oh, ow] = p.output;
            // Few values, so that there are ties.
            let values: Vec<f32> = (0..p.planes * h * w).map(|_| rng.below(5) as f32).collect();
            let x = Buf::new(dtype, &values);
            let dy = Buf::random(&mut rng, dtype, p.planes * oh * ow);
            let (y, arg, dx) = run(&p, &x, &dy);
            let mut want = vec![0.0; x.len];
            for plane in 0..p.planes {
                for i in 0..oh {
                    for j in 0..ow {
                        let mut best: Option<(f64, usize, u8)> = None;
                        for th in 0..p.kernel[0] {
                            for tw in 0..p.kernel[1] {
                                let r =
                                    (i * p.stride[0] + th * p.dilation[0]).wrapping_sub(p.pad[0]);
                                let q =
                                    (j * p.stride[1] + tw * p.dilation[1]).wrapping_sub(p.pad[1]);
                                if r < h && q < w {
                                    let e = (plane * h + r) * w + q;
                                    if best.is_none_or(|(b, _, _)| x.get(e) > b) {
                                        best = Some((x.get(e), e, (th * p.kernel[1] + tw) as u8));
                                    }
                                }
                            }
                        }
                        let o = (plane * oh + i) * ow + j;
                        match best {
                            Some((b, e, tap)) => {
                                assert_eq!((y.get(o), arg[o]), (b, tap), "{p:?}");
                                want[e] += dy.get(o);
                            }
                            None => assert_eq!(y.get(o), f64::NEG_INFINITY),
                        }
                    }
                }
            }
            for (e, &w) in want.iter().enumerate() {
                assert!((dx.get(e) - w).abs() <= 1e-6 + rounding(dtype, w), "{p:?}");
            }
        }
    }

    #[test]
    fn nan_wins() {
        let p = MaxPool2d {
            planes: 1,
            input: [2, 4],
            output: [1, 2],
            kernel: [2, 2],
            stride: [2, 2],
            dilation: [1, 1],
            pad: [0, 0],
        };
        let x = Buf::new(DType::F32, &[1.0, f32::NAN, 3.0, 2.0, 5.0, 0.0, -1.0, 3.0]);
        let dy = Buf::new(DType::F32, &[1.0, 2.0]);
        let (y, arg, dx) = run(&p, &x, &dy);
        assert!(y.get(0).is_nan());
        assert_eq!((arg[0], y.get(1), arg[1]), (1, 3.0, 0));
        assert_eq!(dx.values(), [0.0, 1.0, 2.0, 0.0, 0.0, 0.0, 0.0, 0.0]);
    }

    #[test]
    fn bits_do_not_depend_on_threads() {
        let mut rng = Rng(59);
        let p = MaxPool2d {
            planes: 100,
            input: [30, 31],
            output: [15, 15],
            kernel: [3, 3],
            stride: [2, 2],
            dilation: [1, 1],
            pad: [1, 1],
        };
        let x = Buf::random(&mut rng, DType::F32, 100 * 30 * 31);
        let dy = Buf::random(&mut rng, DType::F32, 100 * 15 * 15);
        same_for_any_thread_count(|| {
            let (y, arg, dx) = run(&p, &x, &dy);
            (y.bytes().to_vec(), arg, dx.bytes().to_vec())
        });
    }

    #[test]
    fn resizing_and_its_gradient_are_adjoint() {
        let mut rng = Rng(61);
        for _ in 0..50 {
            let (planes, h, w) = (1 + rng.below(4), 1 + rng.below(6), 1 + rng.below(6));
            let rows: Vec<u32> = (0..1 + rng.below(12)).map(|_| rng.below(h) as u32).collect();
            let cols: Vec<u32> = (0..1 + rng.below(12)).map(|_| rng.below(w) as u32).collect();
            let x = Buf::random(&mut rng, DType::F32, planes * h * w);
            let n = planes * rows.len() * cols.len();
            let dy = Buf::random(&mut rng, DType::F32, n);
            let (mut y, mut dx) = (Buf::poisoned(DType::F32, n), Buf::poisoned(DType::F32, x.len));
            let mut scratch = vec![0; resize_nearest_grad_scratch_bytes([h, w])];
            // SAFETY: dense planes of these sizes.
            unsafe {
                resize_nearest(planes, [h, w], &rows, &cols, x.ptr(), y.ptr_mut(), DType::F32);
                resize_nearest_grad(
                    planes,
                    [h, w],
                    &rows,
                    &cols,
                    dy.ptr(),
                    dx.ptr_mut(),
                    DType::F32,
                    &mut scratch,
                );
            }
            let mut e = 0;
            let mut want = vec![0.0; x.len];
            for p in 0..planes {
                for &r in &rows {
                    for &c in &cols {
                        let from = (p * h + r as usize) * w + c as usize;
                        assert_eq!(y.get(e), x.get(from));
                        want[from] += dy.get(e);
                        e += 1;
                    }
                }
            }
            for (got, want) in dx.values().iter().zip(&want) {
                assert!((got - want).abs() < 1e-5);
            }
        }
    }
}
