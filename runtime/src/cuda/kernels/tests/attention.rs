//! Attention against loops in f64 over the stored values.

use super::memory::rounding;
use super::{Memory, large, tiny};
use crate::cuda::kernels::samples::{AttentionSample, Sample};
use crate::cuda::kernels::{lower_attention, lower_attention_grad};
use crate::cuda::launch::{Facts, Lowered};
use precast_plan::{Access, DType};

/// Runs forward and backward and compares.
///
/// With tensor cores the weights and their cotangents are rounded to `unit`, so that an output may
/// be off by half a unit of each of its terms; otherwise by f32 rounding of sums.
fn check(a: &AttentionSample, facts: &Facts, hidden: Option<f64>) {
    let mut s = Sample::new();
    let g = a.build(&mut s);
    let f = &g.forward;
    let mut m = Memory::new(&s.plan);
    for (i, x) in [&f.q, &f.k, &f.v, &g.d_o].into_iter().enumerate() {
        m.random(x.tensor, i as u64 + 1);
    }
    let (batch, heads) = (a.batch as usize, a.heads as usize);
    let (tq, tk, d) = (a.tq as usize, a.tk as usize, a.d as usize);
    let bools = a.mask == Some(DType::Bool);
    if let Some(mask) = &f.mask {
        if !bools {
            m.random(mask.tensor, 9);
        }
        for b in 0..batch {
            for i in 0..tq {
                for j in 0..tk {
                    let hide = (hidden.is_some() && i == 3) || (i == tq - 1 && j % 5 == 1);
                    match (bools, hide) {
                        (true, _) => m.set(mask, &[b, 0, i, j], f64::from(!hide)),
                        (false, true) => {
                            m.set(mask, &[b, 0, i, j], hidden.unwrap_or(f64::NEG_INFINITY));
                        }
                        (false, false) => {}
                    }
                }
            }
        }
    }
    let mut out = Lowered::default();
    lower_attention(&s.plan, f, facts, &mut out).expect("it lowers");
    m.run(&out, 5);
    let mut out = Lowered::default();
    lower_attention_grad(&s.plan, &g, facts, &mut out).expect("it lowers");
    m.run(&out, 6);
    if a.d < 64 {
        let bytes = |m: &Memory| [&g.d_q, &g.d_k, &g.d_v].map(|x| m.bytes(x.tensor).to_vec());
        let before = bytes(&m);
        m.run(&out, 99);
        assert!(bytes(&m) == before, "another order of threads gives other bits");
    }

    let tensor = a.dtypes.iter().enumerate().all(|(i, &x)| i == 3 || x == a.dtypes[0])
        && a.dtypes[0] != DType::F32;
    let unit = if tensor { rounding(a.dtypes[0], 1.0) * 1.01 } else { 1e-6 };
    let near = |got: f64, want: f64, terms: f64, x: &Access, what: &str, at: [usize; 4]| {
        let dtype = s.plan.tensors[x.tensor as usize].dtype;
        let allowed = unit * terms + 1e-6 * (1.0 + terms) + 1.01 * rounding(dtype, want);
        assert!(
            (got - want).abs() <= allowed,
            "{what} {at:?}: {got} is not {want} within {allowed} ({a:?})"
        );
    };
    for b in 0..batch {
        for h in 0..heads {
            let row = |x: &Access, i: usize| -> Vec<f64> {
                (0..d).map(|c| m.get(x, &[b, h, i, c])).collect()
            };
            let rows =
                |x: &Access, n: usize| -> Vec<Vec<f64>> { (0..n).map(|i| row(x, i)).collect() };
            let (q, k, v, o, go) =
                (rows(&f.q, tq), rows(&f.k, tk), rows(&f.v, tk), rows(&f.o, tq), rows(&g.d_o, tq));
            let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
            // Sums and sums of absolute terms.
            let mut dk = vec![vec![(0.0, 0.0); d]; tk];
            let mut dv = vec![vec![(0.0, 0.0); d]; tk];
            for i in 0..tq {
                let score = |j: usize| -> f64 {
                    if a.causal && j > i + tk - tq {
                        return f64::NEG_INFINITY;
                    }
                    let score = dot(&q[i], &k[j]) * f64::from(a.scale);
                    match f.mask.as_ref().map(|x| m.get(x, &[b, h, i, j])) {
                        None => score,
                        Some(keep) if bools && keep != 0.0 => score,
                        Some(_) if bools => a.fill.map_or(f64::NEG_INFINITY, f64::from),
                        // As f32 holds it: beside a large number of a mask, nothing of the score.
                        Some(mask) => f64::from(score as f32 + mask as f32),
                    }
                };
                let scores: Vec<f64> = (0..tk).map(score).collect();
                let top = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let lse = m.get(&f.lse, &[b, h, i]);
                if top == f64::NEG_INFINITY {
                    assert!(a.safe);
                    assert_eq!(lse, f64::NEG_INFINITY);
                    assert!(o[i].iter().all(|&x| x == 0.0));
                    assert!(row(&g.d_q, i).iter().all(|&x| x == 0.0));
                    continue;
                }
                let sum: f64 = scores.iter().map(|s| (s - top).exp()).sum();
                let want = top + sum.ln();
                assert!((lse - want).abs() < 1e-5 * (1.0 + want.abs()), "lse {lse}, not {want}");
                let p: Vec<f64> = scores.iter().map(|s| (s - top).exp() / sum).collect();
                let delta = dot(&o[i], &go[i]);
                let replaced = |j: usize| {
                    bools && f.mask.as_ref().is_some_and(|x| m.get(x, &[b, h, i, j]) == 0.0)
                };
                let ds = |j: usize| p[j] * (dot(&go[i], &v[j]) - delta);
                let ds: Vec<f64> = (0..tk).map(|j| if replaced(j) { 0.0 } else { ds(j) }).collect();
                let scale = f64::from(a.scale);
                for c in 0..d {
                    let at = [b, h, i, c];
                    let sum = |w: &[f64], x: &[Vec<f64>]| -> (f64, f64) {
                        (0..tk).fold((0.0, 0.0), |(s, t), j| {
                            let one = w[j] * x[j][c];
                            (s + one, t + one.abs())
                        })
                    };
                    let (want, terms) = sum(&p, &v);
                    near(o[i][c], want, terms, &f.o, "o", at);
                    let (want, terms) = sum(&ds, &k);
                    let terms = terms * scale.abs();
                    near(m.get(&g.d_q, &at), want * scale, terms, &g.d_q, "d_q", at);
                    for j in 0..tk {
                        let (x, y) = (ds[j] * q[i][c] * scale, p[j] * go[i][c]);
                        dk[j][c] = (dk[j][c].0 + x, dk[j][c].1 + x.abs());
                        dv[j][c] = (dv[j][c].0 + y, dv[j][c].1 + y.abs());
                    }
                }
            }
            for j in 0..tk {
                for c in 0..d {
                    let at = [b, h, j, c];
                    near(m.get(&g.d_k, &at), dk[j][c].0, dk[j][c].1, &g.d_k, "d_k", at);
                    near(m.get(&g.d_v, &at), dv[j][c].0, dv[j][c].1, &g.d_v, "d_v", at);
                }
            }
        }
    }
}

#[test]
fn causal_bf16() {
    let mut a = AttentionSample::new(DType::Bf16, 150, 150, 64);
    a.causal = true;
    check(&a, &large(), None);
}

#[test]
fn masked_f16_with_a_hidden_row() {
    let mut a = AttentionSample::new(DType::F16, 70, 131, 64);
    a.mask = Some(DType::F32);
    a.safe = true;
    check(&a, &large(), Some(f64::NEG_INFINITY));
}

/// Rows of which a mask leaves nothing are uniform, whatever finite number hides.
#[test]
fn finite_numbers_that_hide_whole_rows() {
    for hidden in [f32::MIN, -1e9, -1e4] {
        for (dtype, mask) in [
            (DType::Bf16, DType::F32),
            (DType::F32, DType::F32),
            (DType::F16, DType::Bool),
            (DType::F32, DType::Bool),
        ] {
            let mut a = AttentionSample::new(dtype, 20, 40, 32);
            (a.mask, a.heads) = (Some(mask), 1);
            if mask == DType::Bool {
                a.fill = Some(hidden);
            }
            check(&a, &large(), Some(f64::from(hidden)));
        }
    }
}

#[test]
fn bools_that_hide_whole_rows_of_safe_attention() {
    for dtype in [DType::Bf16, DType::F32] {
        let mut a = AttentionSample::new(dtype, 20, 40, 32);
        (a.mask, a.safe, a.causal) = (Some(DType::Bool), true, dtype == DType::F32);
        check(&a, &large(), Some(f64::NEG_INFINITY));
    }
}

/// Without a mask too: scores that are large and alike.
#[test]
fn large_scores_that_are_alike() {
    for (dtype, scale) in [(DType::Bf16, 1.0), (DType::F32, 1.0), (DType::Bf16, -1.0)] {
        let mut a = AttentionSample::new(dtype, 16, 48, 16);
        (a.heads, a.scale) = (1, scale);
        let mut s = Sample::new();
        let g = a.build(&mut s);
        let f = &g.forward;
        let mut m = Memory::new(&s.plan);
        m.random(f.v.tensor, 3);
        m.random(g.d_o.tensor, 4);
        for i in 0..48 {
            for c in 0..16 {
                let x = if c == 0 { 16384.0 } else { 0.0 };
                m.set(&f.k, &[0, 0, i, c], x);
                if i < 16 {
                    m.set(&f.q, &[0, 0, i, c], x);
                }
            }
        }
        let mut out = Lowered::default();
        lower_attention(&s.plan, f, &large(), &mut out).expect("it lowers");
        m.run(&out, 5);
        let mut out = Lowered::default();
        lower_attention_grad(&s.plan, &g, &large(), &mut out).expect("it lowers");
        m.run(&out, 6);
        for c in 0..16 {
            let sum: f64 = (0..16).map(|i| m.get(&g.d_o, &[0, 0, i, c])).sum();
            for j in 0..48 {
                let got = m.get(&g.d_v, &[0, 0, j, c]);
                let near = rounding(dtype, 1.0) + 1e-5;
                assert!((got - sum / 48.0).abs() < near, "{dtype} {scale}: {got}, {}", sum / 48.0);
            }
        }
    }
}

/// Softmax of minus infinity alone is NaN, unless attention is safe.
#[test]
fn rows_without_keys_are_not_a_number() {
    for dtype in [DType::Bf16, DType::F32] {
        let mut a = AttentionSample::new(dtype, 16, 24, 16);
        (a.mask, a.heads) = (Some(DType::Bool), 1);
        let mut s = Sample::new();
        let g = a.build(&mut s);
        let f = &g.forward;
        let mut m = Memory::new(&s.plan);
        for (i, x) in [&f.q, &f.k, &f.v, &g.d_o].into_iter().enumerate() {
            m.random(x.tensor, i as u64 + 1);
        }
        let mask = f.mask.as_ref().expect("a mask");
        for i in 0..16 {
            for j in 0..24 {
                m.set(mask, &[0, 0, i, j], f64::from(i != 3));
            }
        }
        // Nothing comes of the row, since its cotangent is 0.
        for c in 0..16 {
            m.set(&g.d_o, &[0, 0, 3, c], 0.0);
        }
        let mut out = Lowered::default();
        lower_attention(&s.plan, f, &large(), &mut out).expect("it lowers");
        m.run(&out, 5);
        assert!(m.get(&f.o, &[0, 0, 3, 0]).is_nan() && m.get(&f.lse, &[0, 0, 3]).is_nan());
        assert!(m.get(&f.o, &[0, 0, 4, 0]).is_finite());
        let mut out = Lowered::default();
        lower_attention_grad(&s.plan, &g, &large(), &mut out).expect("it lowers");
        m.run(&out, 6);
        for x in [&g.d_q, &g.d_k, &g.d_v] {
            assert!((0..16).all(|i| m.get(x, &[0, 0, i, 0]).is_finite()));
        }
    }
}

#[test]
fn more_keys_than_queries() {
    let mut a = AttentionSample::new(DType::Bf16, 65, 133, 128);
    a.causal = true;
    a.heads = 1;
    check(&a, &tiny(), None);
}

#[test]
fn channels_that_are_no_multiple_of_a_fragment() {
    // 16-byte rows, then rows on odd addresses.
    for (d, pad, axes) in [(40, 0, [0, 2, 1, 3]), (20, 3, [0, 1, 3, 2])] {
        let mut a = AttentionSample::new(DType::Bf16, 40, 50, d);
        a.batch = 2;
        a.pad = pad;
        a.axes = axes;
        a.scale = -0.3;
        check(&a, &large(), None);
    }
}

#[test]
fn heads_wider_than_a_block_accumulates() {
    let mut a = AttentionSample::new(DType::F16, 40, 40, 160);
    a.heads = 1;
    a.causal = true;
    check(&a, &large(), None);
}

#[test]
fn f32_and_mixed_formats() {
    let mut a = AttentionSample::new(DType::F32, 70, 90, 33);
    a.causal = true;
    a.mask = Some(DType::Bf16);
    check(&a, &large(), None);
    let mut a = AttentionSample::new(DType::F32, 30, 40, 136);
    a.dtypes = [DType::F32, DType::Bf16, DType::F16, DType::F16, DType::F32];
    a.heads = 1;
    a.mask = Some(DType::F32);
    a.safe = true;
    check(&a, &tiny(), Some(f64::NEG_INFINITY));
}
