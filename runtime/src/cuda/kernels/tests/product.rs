//! Products and convolutions against loops in f64.

use super::memory::rounding;
use super::{Memory, large, tiny};
use crate::cuda::kernels::samples::{Sample, conv, gemm, geometry};
use crate::cuda::kernels::{lower_conv, lower_gemm_fallback};
use crate::cuda::launch::{Facts, Lowered, Task};
use precast_plan::{Conv, ConvGeometry, ConvKind, DType, Gemm, Math};

/// f32 sums of k exact products: half a unit of each of the k partial sums, which random signs
/// keep near the square root.
fn allowed(dtype: DType, want: f64, terms: f64, k: usize) -> f64 {
    6e-8 * terms * (2.0 + (k as f64).sqrt()) + 1e-7 + 1.01 * rounding(dtype, want)
}

fn tf32(x: f64) -> f64 {
    f64::from(f32::from_bits(((x as f32).to_bits() + 0x1000) & !0x1fff))
}

fn check_gemm(s: &Sample, g: &Gemm, facts: &Facts) {
    let mut m = Memory::new(&s.plan);
    m.random(g.a.tensor, 1);
    m.random(g.b.tensor, 2);
    let mut out = Lowered::default();
    lower_gemm_fallback(&s.plan, g, facts, &mut out).expect("it lowers");
    m.run(&out, 3);
    let to = &g.epilogue.outputs[0];
    let dtype = s.plan.tensors[to.tensor as usize].dtype;
    let round = |x: f64| if g.math == Math::Tf32 { tf32(x) } else { x };
    for b0 in 0..g.batch[0] as usize {
        for b1 in 0..g.batch[1] as usize {
            for i in 0..g.m as usize {
                for j in 0..g.n as usize {
                    let (mut want, mut terms) = (0.0, 0.0);
                    for k in 0..g.k as usize {
                        let x = round(m.get(&g.a, &[b0, b1, i, k]))
                            * round(m.get(&g.b, &[b0, b1, k, j]));
                        want += x;
                        terms += x.abs();
                    }
                    let got = m.get(to, &[b0, b1, i, j]);
                    let allowed = allowed(dtype, want, terms, g.k as usize);
                    assert!(
                        (got - want).abs() <= allowed,
                        "[{b0},{b1},{i},{j}]: {got} is not {want} within {allowed} of {g:?}"
                    );
                }
            }
        }
    }
}

const ROWS: [usize; 4] = [0, 1, 2, 3];
const COLUMNS: [usize; 4] = [0, 1, 3, 2];

#[test]
fn products_on_tensor_cores() {
    use DType::{Bf16, F8e4m3, F8e5m2, F16, F32};
    for (batch, mnk, dtypes, axes, pad, facts) in [
        ([1, 1], [136, 72, 48], [Bf16; 3], [ROWS; 3], 0, tiny()),
        ([2, 3], [17, 40, 33], [F16, F16, F32], [COLUMNS, ROWS, COLUMNS], 3, large()),
        ([1, 1], [40, 130, 64], [Bf16, Bf16, F32], [COLUMNS, COLUMNS, ROWS], 0, tiny()),
        ([1, 1], [130, 130, 40], [F16; 3], [COLUMNS, ROWS, COLUMNS], 0, tiny()),
        ([1, 2], [33, 20, 70], [F8e4m3, F8e5m2, Bf16], [ROWS, COLUMNS, ROWS], 0, large()),
        ([1, 1], [20, 24, 36], [F8e4m3, Bf16, F32], [ROWS; 3], 0, large()),
    ] {
        let mut s = Sample::new();
        let g = gemm(&mut s, batch, mnk, dtypes, axes, pad);
        check_gemm(&s, &g, &facts);
    }
}

#[test]
fn products_in_f32() {
    use DType::{Bf16, F16, F32};
    for (mnk, dtypes, axes, pad, facts, math) in [
        ([130, 70, 37], [F32; 3], [ROWS; 3], 0, tiny(), Math::Exact),
        ([33, 40, 52], [F32, F32, Bf16], [COLUMNS, COLUMNS, COLUMNS], 1, large(), Math::Tf32),
        ([5, 7, 9], [F32, Bf16, F32], [ROWS, COLUMNS, ROWS], 0, large(), Math::Exact),
        ([30, 7, 19], [F16, Bf16, F16], [COLUMNS, ROWS, ROWS], 0, large(), Math::Exact),
    ] {
        let mut s = Sample::new();
        let mut g = gemm(&mut s, [1, 2], mnk, dtypes, axes, pad);
        g.math = math;
        check_gemm(&s, &g, &facts);
    }
}

#[test]
fn strides_that_no_library_takes() {
    let mut s = Sample::new();
    let mut g = gemm(&mut s, [2, 2], [20, 24, 30], [DType::Bf16; 3], [ROWS; 3], 0);
    // Every second row and column of a larger matrix; one row of b for all k.
    let wide = s.dense(DType::Bf16, &[2, 2, 40, 60]);
    g.a.tensor = wide.tensor;
    g.a.strides = vec![4800, 2400, 120, 2];
    g.b.strides[2] = 0;
    check_gemm(&s, &g, &large());
    let mut s = Sample::new();
    let mut g = gemm(&mut s, [1, 1], [20, 24, 30], [DType::F32; 3], [ROWS; 3], 0);
    g.b.strides[2] = 0;
    check_gemm(&s, &g, &large());
}

#[test]
fn long_sums_are_cut_into_parts() {
    for (dtype, axes) in [(DType::Bf16, [COLUMNS, ROWS, ROWS]), (DType::F32, [ROWS; 3])] {
        let mut s = Sample::new();
        let g = gemm(&mut s, [1, 2], [20, 9, 2100], [dtype, dtype, DType::F32], axes, 0);
        let mut out = Lowered::default();
        lower_gemm_fallback(&s.plan, &g, &large(), &mut out).expect("it lowers");
        assert_eq!(out.tasks.len(), 2);
        let Task::Launch(first) = &out.tasks[0] else { panic!("a launch") };
        assert!(first.grid[0] > 2, "{:?}", first.grid);
        check_gemm(&s, &g, &large());
    }
}

fn check_conv(s: &Sample, c: &Conv, facts: &Facts) {
    let g = &c.geometry;
    let mut m = Memory::new(&s.plan);
    m.random(c.a.tensor, 1);
    m.random(c.b.tensor, 2);
    for b in &c.epilogue.inputs {
        m.random(b.tensor, 3);
    }
    let mut out = Lowered::default();
    lower_conv(&s.plan, c, facts, &mut out).expect("it lowers");
    m.run(&out, 4);
    let to = &c.epilogue.outputs[0];
    let dtype = s.plan.tensors[to.tensor as usize].dtype;
    let (cg, og) = ((g.c / g.groups) as usize, (g.o / g.groups) as usize);
    let dims = match c.kind {
        ConvKind::Forward => [g.n, g.o, g.oh, g.ow],
        ConvKind::DataGrad => [g.n, g.c, g.h, g.w],
        ConvKind::FilterGrad => [g.o, cg as u64, g.kh, g.kw],
    }
    .map(|n| n as usize);
    let at = |i: [usize; 4]| ((i[0] * dims[1] + i[1]) * dims[2] + i[2]) * dims[3] + i[3];
    let mut sums = vec![(0.0, 0.0, 0usize); dims.iter().product()];
    // Every product of the convolution once.
    for n in 0..g.n as usize {
        for o in 0..g.o as usize {
            for ic in 0..cg {
                let ch = o / og * cg + ic;
                for (y, x) in pairs(g.oh, g.ow) {
                    for (r, t) in pairs(g.kh, g.kw) {
                        let place = |i: usize, tap: usize, d: usize| {
                            (i as u64 * g.stride[d] + tap as u64 * g.dilation[d])
                                .wrapping_sub(g.pad[d]) as usize
                        };
                        let (iy, ix) = (place(y, r, 0), place(x, t, 1));
                        if iy as u64 >= g.h || ix as u64 >= g.w {
                            continue;
                        }
                        let (i, p, q) = match c.kind {
                            ConvKind::Forward => ([n, o, y, x], [n, ch, iy, ix], [o, ic, r, t]),
                            ConvKind::DataGrad => ([n, ch, iy, ix], [n, o, y, x], [o, ic, r, t]),
                            ConvKind::FilterGrad => ([o, ic, r, t], [n, ch, iy, ix], [n, o, y, x]),
                        };
                        let v = m.get(&c.a, &p) * m.get(&c.b, &q);
                        let sum = &mut sums[at(i)];
                        *sum = (sum.0 + v, sum.1 + v.abs(), sum.2 + 1);
                    }
                }
            }
        }
    }
    for i0 in 0..dims[0] {
        for i1 in 0..dims[1] {
            for (i2, i3) in pairs(dims[2] as u64, dims[3] as u64) {
                let i = [i0, i1, i2, i3];
                let (mut want, terms, k) = sums[at(i)];
                if let Some(b) = c.epilogue.inputs.first() {
                    want = (want + m.get(b, &i)).max(0.0);
                }
                let got = m.get(to, &i);
                let allowed = allowed(dtype, want, terms + 1.0, k);
                assert!(
                    (got - want).abs() <= allowed,
                    "{i:?}: {got} is not {want} within {allowed}: {:?} {g:?}",
                    c.kind
                );
            }
        }
    }
}

fn pairs(a: u64, b: u64) -> impl Iterator<Item = (usize, usize)> {
    (0..a as usize).flat_map(move |x| (0..b as usize).map(move |y| (x, y)))
}

const KINDS: [ConvKind; 3] = [ConvKind::Forward, ConvKind::DataGrad, ConvKind::FilterGrad];

fn check_all(g: &ConvGeometry, dtype: DType, channels_last: bool, facts: &Facts) {
    for kind in KINDS {
        let out = if kind == ConvKind::FilterGrad { DType::F32 } else { dtype };
        let mut s = Sample::new();
        let c = conv(&mut s, kind, g, [dtype, dtype, out], channels_last);
        check_conv(&s, &c, facts);
    }
}

#[test]
fn three_by_three() {
    check_all(&geometry([2, 5, 9, 8], 7, [3, 3], 1, 1, 1), DType::Bf16, false, &large());
}

#[test]
fn strided_with_channels_last() {
    check_all(&geometry([2, 16, 9, 10], 24, [3, 3], 2, 1, 1), DType::Bf16, true, &tiny());
}

#[test]
fn asymmetric_dilated_and_grouped() {
    let mut g = geometry([2, 20, 9, 11], 18, [3, 2], 1, 0, 2);
    g.groups = 2;
    g.pad = [2, 0, 1, 3];
    g.oh = 9 + 3 - 4;
    g.ow = 11 + 3 - 2;
    check_all(&g, DType::F32, false, &large());
}

#[test]
fn single_taps_and_steps_over_inputs() {
    check_all(&geometry([2, 16, 4, 8], 24, [1, 1], 1, 0, 1), DType::F16, false, &large());
    // Inputs between windows have no gradient.
    check_all(&geometry([1, 4, 10, 11], 6, [2, 1], 3, 0, 1), DType::F16, false, &tiny());
}

/// Pixels or taps along one axis alone are an index of one digit, and still lie inside the image or
/// outside it.
#[test]
fn one_axis_alone() {
    let line = |image, o, kernel, [stride, dilation]: [u64; 2], pad: [u64; 2]| {
        let mut g = geometry(image, o, kernel, 1, 0, 1);
        let [_, _, h, w] = image;
        let along = |x: u64, k: u64, pad: u64| (x + 2 * pad - dilation * (k - 1) - 1) / stride + 1;
        (g.stride, g.dilation) = ([stride; 2], [dilation; 2]);
        g.pad = [pad[0], pad[1], pad[0], pad[1]];
        (g.oh, g.ow) = (along(h, kernel[0], pad[0]), along(w, kernel[1], pad[1]));
        g
    };
    for g in [
        // Taps of a column and of a row, of one channel: a mean over neighbours.
        line([3, 1, 8, 4], 1, [3, 1], [1, 1], [0, 0]),
        line([2, 1, 4, 8], 1, [1, 3], [1, 2], [0, 2]),
        line([2, 1, 8, 4], 3, [3, 1], [2, 1], [1, 1]),
        // Pixels of a row and of a column, of one image.
        line([1, 3, 1, 9], 5, [1, 3], [1, 1], [0, 1]),
        line([1, 3, 9, 1], 5, [3, 1], [2, 1], [1, 0]),
        // Both, and one tap with padding that it reaches.
        line([1, 1, 1, 9], 1, [1, 3], [1, 1], [0, 2]),
        line([1, 4, 8, 1], 1, [1, 1], [1, 1], [1, 0]),
    ] {
        check_all(&g, DType::F32, false, &large());
    }
    let g = line([1, 1, 9, 1], 1, [3, 1], [1, 1], [2, 0]);
    check_all(&g, DType::Bf16, true, &tiny());
}

#[test]
fn narrow_groups() {
    let mut g = geometry([2, 6, 7, 9], 12, [3, 3], 2, 1, 1);
    g.groups = 6;
    check_all(&g, DType::Bf16, false, &large());
    check_all(&g, DType::F32, true, &large());
}
