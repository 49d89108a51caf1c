//! Gathered and scattered rows, pooling.

use super::{Memory, large, tiny};
use crate::cuda::kernels::samples::{Sample, gather, geometry, pool};
use crate::cuda::kernels::{lower_gather, lower_max_pool, lower_max_pool_grad, lower_scatter_add};
use crate::cuda::launch::{Fault, Lowered};
use precast_plan::{DType, Gather};

/// Ids with many equal ones; `table_rows` of them when `heavy` is 0.
fn ids(g: &Gather, m: &mut Memory, heavy: u64) -> Vec<usize> {
    let mut state = 7u64;
    (0..g.rows as usize)
        .map(|r| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            let draw = state >> 33;
            let id = if draw % 10 < heavy { 3 % g.table_rows } else { draw % g.table_rows };
            let negative = r % 3 == 0;
            let stored = if negative { id as f64 - g.table_rows as f64 } else { id as f64 };
            m.set(&g.ids, &[r], stored);
            id as usize
        })
        .collect()
}

#[test]
fn gathered_rows() {
    use DType::{Bf16, F8e4m3, F16, F32, I32, I64};
    for (sizes, dtypes, pad) in [
        ([37, 48, 20], [Bf16, I64, Bf16], 0),
        ([37, 33, 20], [Bf16, I32, Bf16], 0),
        ([50, 40, 9], [F32, I64, F16], 3),
        ([50, 40, 9], [F16, I64, F8e4m3], 0),
        ([5, 1, 1], [F32, I32, F32], 0),
    ] {
        let mut s = Sample::new();
        let g = gather(&mut s, sizes, dtypes, pad);
        let mut m = Memory::new(&s.plan);
        m.random(g.table.tensor, 1);
        let ids = ids(&g, &mut m, 0);
        let mut out = Lowered::default();
        lower_gather(&s.plan, &g, 5, &tiny(), &mut out).expect("it lowers");
        m.run(&out, 3);
        assert_eq!(m.fault, 0);
        for (r, &id) in ids.iter().enumerate() {
            for c in 0..g.width as usize {
                let want = f64::from(dtypes[2].round(m.get(&g.table, &[id, c]) as f32));
                assert_eq!(m.get(&g.out, &[r, c]), want, "{sizes:?} {dtypes:?} row {r} column {c}");
            }
        }
    }
}

#[test]
fn scattered_rows_are_summed_in_order() {
    use DType::{Bf16, F16, F32, I32, I64};
    for (sizes, dtypes, pad, heavy) in [
        ([300, 24, 40], [F32, I64, Bf16], 0, 0),
        ([300, 24, 40], [F32, I64, Bf16], 0, 3),
        // One row of the table has more than 512.
        ([1500, 10, 70], [F32, I32, F32], 0, 8),
        // Windows of 4096 ids, and a tail.
        ([5000, 4, 3], [Bf16, I64, F16], 3, 9),
        ([1, 700, 1], [F16, I32, F16], 0, 0),
    ] {
        let mut s = Sample::new();
        let g = gather(&mut s, sizes, dtypes, pad);
        let mut m = Memory::new(&s.plan);
        m.random(g.out.tensor, 2);
        let ids = ids(&g, &mut m, heavy);
        let mut out = Lowered::default();
        lower_scatter_add(&s.plan, &g, 5, &tiny(), &mut out).expect("it lowers");
        m.run(&out, 11);
        assert_eq!(m.fault, 0);
        let mut want = vec![0f32; (g.table_rows * g.width) as usize];
        for (r, &id) in ids.iter().enumerate() {
            for c in 0..g.width as usize {
                want[id * g.width as usize + c] += m.get(&g.out, &[r, c]) as f32;
            }
        }
        for row in 0..g.table_rows as usize {
            for c in 0..g.width as usize {
                let want = f64::from(dtypes[0].round(want[row * g.width as usize + c]));
                assert_eq!(m.get(&g.table, &[row, c]), want, "{sizes:?} row {row} column {c}");
            }
        }
        let before = m.bytes(g.table.tensor).to_vec();
        m.run(&out, 12345);
        assert_eq!(m.bytes(g.table.tensor), before, "another order of threads gives other bits");
    }
}

#[test]
fn ids_outside_the_table_are_faults() {
    for bad in [20.0, -21.0, 9e18, -9e18] {
        let mut s = Sample::new();
        let g = gather(&mut s, [40, 16, 20], [DType::F32, DType::I64, DType::F32], 0);
        let mut m = Memory::new(&s.plan);
        m.random(g.table.tensor, 1);
        let mut ids = ids(&g, &mut m, 0);
        m.set(&g.ids, &[17], bad);
        let want = (9u64 << 40) | (17 << 8) | u64::from(Fault::IdOutOfRange as u32);
        let mut out = Lowered::default();
        lower_gather(&s.plan, &g, 9, &large(), &mut out).expect("it lowers");
        m.run(&out, 1);
        assert_eq!(m.fault, want);
        assert!((0..16).all(|c| m.get(&g.out, &[17, c]) == 0.0));
        m.fault = 0;
        let mut out = Lowered::default();
        lower_scatter_add(&s.plan, &g, 9, &large(), &mut out).expect("it lowers");
        m.random(g.out.tensor, 4);
        m.run(&out, 1);
        assert_eq!(m.fault, want);
        // The others are summed.
        ids.remove(17);
        let row = ids[3];
        let rows = (0..40).filter(|&r| r != 17).zip(&ids).filter(|(_, id)| **id == row);
        let sum = rows.fold(0f32, |sum, (r, _)| sum + m.get(&g.out, &[r, 2]) as f32);
        assert_eq!(m.get(&g.table, &[row, 2]), f64::from(sum));
    }
}

#[test]
fn largest_of_windows_and_back() {
    let mut asymmetric = geometry([1, 3, 9, 11], 3, [2, 3], 2, 0, 1);
    asymmetric.pad = [1, 0, 0, 2];
    asymmetric.oh = (9 + 1 - 2) / 2 + 1;
    asymmetric.ow = (11 + 2 - 3) / 2 + 1;
    for (g, dtype, last) in [
        (geometry([2, 3, 8, 10], 3, [2, 2], 2, 0, 1), DType::F32, false),
        (geometry([2, 5, 9, 9], 5, [3, 3], 2, 1, 1), DType::Bf16, true),
        (geometry([1, 2, 12, 7], 2, [3, 2], 1, 1, 2), DType::F16, false),
        (asymmetric, DType::F32, true),
        // Sixteen bytes of neighbouring channels at a time.
        (geometry([2, 16, 9, 8], 16, [3, 3], 2, 1, 1), DType::Bf16, true),
        (geometry([1, 12, 7, 9], 12, [3, 2], 1, 1, 1), DType::F32, true),
    ] {
        let mut s = Sample::new();
        let p = pool(&mut s, g.clone(), dtype, last);
        let back = pool(&mut s, g.clone(), dtype, last);
        let back = precast_plan::MaxPool { index: p.index.clone(), ..back };
        let mut m = Memory::new(&s.plan);
        m.random(p.x.tensor, 1);
        m.random(back.y.tensor, 2);
        m.set(&p.x, &[0, 1, 3, 3], f64::NAN);
        m.set(&p.x, &[0, 0, 0, 0], m.get(&p.x, &[0, 0, 0, 1]));
        let mut out = Lowered::default();
        lower_max_pool(&s.plan, &p, &tiny(), &mut out).expect("it lowers");
        lower_max_pool_grad(&s.plan, &back, &tiny(), &mut out).expect("it lowers");
        m.run(&out, 21);
        let size = [g.n, g.c, g.h, g.w].map(|x| x as usize);
        let mut sums = vec![0f32; size.iter().product()];
        let at = |i: [usize; 4]| ((i[0] * size[1] + i[1]) * size[2] + i[2]) * size[3] + i[3];
        for n in 0..size[0] {
            for c in 0..size[1] {
                for y in 0..g.oh as usize {
                    for x in 0..g.ow as usize {
                        let (mut best, mut tap, mut from) = (f64::NEG_INFINITY, 0, None);
                        for t in 0..(g.kh * g.kw) as usize {
                            let (a, b) = (t as u64 / g.kw, t as u64 % g.kw);
                            let iy =
                                (y as u64 * g.stride[0] + a * g.dilation[0]).wrapping_sub(g.pad[0]);
                            let ix =
                                (x as u64 * g.stride[1] + b * g.dilation[1]).wrapping_sub(g.pad[1]);
                            if iy >= g.h || ix >= g.w {
                                continue;
                            }
                            let i = [n, c, iy as usize, ix as usize];
                            let v = m.get(&p.x, &i);
                            if v > best || v.is_nan() {
                                (best, tap, from) = (v, t, Some(i));
                            }
                        }
                        let got = m.get(&p.y, &[n, c, y, x]);
                        assert!(got == best || got.is_nan() && best.is_nan(), "{g:?}");
                        assert_eq!(m.get(&p.index, &[n, c, y, x]), tap as f64, "{g:?}");
                        if let Some(i) = from {
                            sums[at(i)] += m.get(&back.y, &[n, c, y, x]) as f32;
                        }
                    }
                }
                for y in 0..size[2] {
                    for x in 0..size[3] {
                        let i = [n, c, y, x];
                        let want = f64::from(dtype.round(sums[at(i)]));
                        assert_eq!(m.get(&back.x, &i), want, "{g:?} {i:?}");
                    }
                }
            }
        }
    }
}
