//! Running sums, the places of the largest, the last index of every row.

use super::{Memory, large, tiny};
use crate::cuda::kernels::samples::{Sample, cumsum, last_index, top_k};
use crate::cuda::kernels::{lower_cumsum, lower_last_index, lower_top_k};
use crate::cuda::launch::{Fault, Lowered};
use precast_plan::DType;
use std::cmp::Ordering;

/// Places of the lines: outer and inner.
fn lines(dims: [u64; 3]) -> Vec<[usize; 2]> {
    (0..dims[0] as usize).flat_map(|o| (0..dims[2] as usize).map(move |j| [o, j])).collect()
}

#[test]
fn running_sums() {
    use DType::{Bf16, F16, F32, I32, I64, U8};
    for (dims, dtypes, axes) in [
        ([3, 700, 1], [F32, F32], [0, 1, 2]),
        ([2, 256, 1], [Bf16, F32], [0, 1, 2]),
        ([2, 33, 40], [F16, F32], [0, 1, 2]),
        ([2, 5, 300], [F32, Bf16], [2, 0, 1]),
        ([4, 300, 1], [I64, I32], [1, 0, 2]),
        ([4, 300, 3], [I32, I32], [0, 1, 2]),
        ([4, 257, 1], [U8, I32], [0, 1, 2]),
        ([1, 1, 1], [F32, F32], [0, 1, 2]),
    ] {
        for flags in [[false, false], [true, false], [false, true], [true, true]] {
            let mut s = Sample::new();
            let c = cumsum(&mut s, dims, dtypes, flags, axes);
            let mut m = Memory::new(&s.plan);
            if dtypes[0].is_real() {
                m.random(c.x.tensor, 1);
            } else {
                for (at, [o, j]) in lines(dims).into_iter().enumerate() {
                    for i in 0..dims[1] as usize {
                        let low = if dtypes[0] == U8 { 0 } else { 100 };
                        m.set(&c.x, &[o, i, j], ((at * 31 + i * 17) % 200) as f64 - f64::from(low));
                    }
                }
            }
            let mut out = Lowered::default();
            lower_cumsum(&s.plan, &c, &tiny(), &mut out).expect("it lowers");
            m.run(&out, 5);
            let n = dims[1] as usize;
            for [o, j] in lines(dims) {
                let mut sum = 0.0;
                for i in 0..n {
                    let at = [o, if flags[1] { n - 1 - i } else { i }, j];
                    let before = sum;
                    sum += m.get(&c.x, &at);
                    let exact = if flags[0] { before } else { sum };
                    let got = m.get(&c.y, &at);
                    let want = if dtypes[1].is_real() {
                        f64::from(dtypes[1].round(exact as f32))
                    } else {
                        exact
                    };
                    // Another order of f64 sums may round to the neighbouring f32.
                    let allowed = if dtypes[1] == F32 {
                        1e-6 * exact.abs().max(1.0)
                    } else {
                        0.02 * exact.abs()
                    };
                    let allowed = if dtypes[1].is_real() { allowed } else { 0.0 };
                    assert!(
                        (got - want).abs() <= allowed,
                        "{dims:?} {dtypes:?} {at:?}: {got}, {want}"
                    );
                }
            }
            let before = m.bytes(c.y.tensor).to_vec();
            m.run(&out, 999);
            assert_eq!(m.bytes(c.y.tensor), before, "another order of threads gives other bits");
        }
    }
}

#[test]
fn places_of_the_largest() {
    use DType::{Bf16, F16, F32, I32, I64};
    for (dims, k, dtype, axes) in [
        ([5, 8, 1], 2, F32, [0, 1, 2]),
        ([2, 100, 3], 100, Bf16, [0, 1, 2]),
        ([2, 64, 3], 1, F16, [0, 2, 1]),
        // More keys than shared memory holds.
        ([2, 5000, 1], 300, Bf16, [0, 1, 2]),
        ([3, 33, 2], 33, I64, [0, 1, 2]),
        ([3, 1, 2], 1, I32, [0, 1, 2]),
    ] {
        for largest in [true, false] {
            let mut s = Sample::new();
            let t = top_k(&mut s, dims, k, dtype, largest, axes);
            let mut m = Memory::new(&s.plan);
            if dtype.is_real() {
                m.random(t.x.tensor, 3);
            }
            for (at, [o, j]) in lines(dims).into_iter().enumerate() {
                for i in 0..dims[1] as usize {
                    if dtype.is_real() {
                        // Equal elements, zeros of both signs, infinities, a NaN.
                        match (at + i) % 11 {
                            1 | 4 => m.set(&t.x, &[o, i, j], 0.5),
                            2 => m.set(&t.x, &[o, i, j], -0.0),
                            3 => m.set(&t.x, &[o, i, j], 0.0),
                            5 if i == 5 => m.set(&t.x, &[o, i, j], f64::NAN),
                            6 if i == 6 => m.set(&t.x, &[o, i, j], f64::NEG_INFINITY),
                            _ => {}
                        }
                    } else {
                        m.set(&t.x, &[o, i, j], ((at * 7 + i * 13) % 10) as f64 - 5.0);
                    }
                }
            }
            let mut out = Lowered::default();
            lower_top_k(&s.plan, &t, &tiny(), &mut out).expect("it lowers");
            m.run(&out, 7);
            for [o, j] in lines(dims) {
                let x: Vec<f64> = (0..dims[1] as usize).map(|i| m.get(&t.x, &[o, i, j])).collect();
                let mut want: Vec<usize> = (0..x.len()).collect();
                want.sort_by(|&a, &b| {
                    let c = x[a].partial_cmp(&x[b]);
                    let c: Ordering = c.unwrap_or_else(|| x[a].is_nan().cmp(&x[b].is_nan()));
                    if largest { c.reverse() } else { c }
                });
                let got: Vec<usize> =
                    (0..k as usize).map(|i| m.get(&t.index, &[o, i, j]) as usize).collect();
                assert_eq!(got, want[..k as usize], "{dims:?} {dtype} largest: {largest}");
            }
        }
    }
}

#[test]
fn the_last_index_of_every_row() {
    for dtype in [DType::I64, DType::I32] {
        let mut s = Sample::new();
        let l = last_index(&mut s, 500, 40, dtype);
        let mut m = Memory::new(&s.plan);
        let mut want = vec![0; 40];
        for r in 0..500usize {
            let id = (r * r + 3 * r) % 37;
            m.set(&l.ids, &[r], if r % 2 == 0 { id as f64 } else { id as f64 - 40.0 });
            want[id] = r + 1;
        }
        let mut out = Lowered::default();
        lower_last_index(&s.plan, &l, 5, &large(), &mut out).expect("it lowers");
        m.run(&out, 3);
        assert_eq!(m.fault, 0);
        let got: Vec<usize> = (0..40).map(|t| m.get(&l.out, &[t]) as usize).collect();
        assert_eq!(got, want);
        assert!(want.contains(&0));
        m.set(&l.ids, &[9], 40.0);
        m.run(&out, 3);
        assert_eq!(m.fault, (5u64 << 40) | (9 << 8) | u64::from(Fault::IdOutOfRange as u32));
    }
}
