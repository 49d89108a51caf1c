use super::super::testing::{Buf, Rng, rounding, same_for_any_thread_count};
use super::*;

struct Problem {
    a: Attention,
    dtype: DType,
    q: Buf,
    k: Buf,
    v: Buf,
    grad_o: Buf,
    mask: Option<Buf>,
    /// Positions before heads in memory, as after a projection of `[b, t, h d]`.
    interleaved: bool,
}

impl Problem {
    fn random(rng: &mut Rng, a: Attention, dtype: DType, masked: bool) -> Problem {
        let bh = a.batch * a.heads;
        let mask = masked.then(|| {
            let n = a.queries * a.keys;
            let bools = rng.below(2) == 1;
            // What hides, and in every row that hides every key the same.
            let hidden = rng.pick(&HIDDEN);
            let values: Vec<f32> = (0..n)
                .map(|i| {
                    // The first query sees nothing.
                    let hide = rng.below(6) == 0 || i < a.keys;
                    match (bools, hide) {
                        (true, hide) => f32::from(!hide),
                        (false, true) => hidden,
                        (false, false) => rng.unit(),
                    }
                })
                .collect();
            Buf::new(if bools { DType::Bool } else { DType::F32 }, &values)
        });
        Problem {
            a,
            dtype,
            q: Buf::random(rng, dtype, bh * a.queries * a.features),
            k: Buf::random(rng, dtype, bh * a.keys * a.features),
            v: Buf::random(rng, dtype, bh * a.keys * a.value_features),
            grad_o: Buf::random(rng, dtype, bh * a.queries * a.value_features),
            mask,
            interleaved: rng.below(2) == 1,
        }
    }

    fn view(&self, ptr: *const u8, t: usize, d: usize) -> View4 {
        let mut v = View4::dense(ptr, self.dtype, [self.a.batch, self.a.heads, t, d]);
        if self.interleaved {
            let (h, t, d) = (self.a.heads as isize, t as isize, d as isize);
            v.strides = [t * h * d, d, h * d, 1];
        }
        v
    }

    fn mask_view(&self) -> Option<View4> {
        self.mask.as_ref().map(|m| View4 {
            ptr: m.ptr(),
            dtype: m.dtype,
            strides: [0, 0, self.a.keys as isize, 1],
        })
    }

    /// A scaled score under the mask, at element `at` of it, as f32 holds it.
    fn masked(&self, score: f64, at: usize) -> f64 {
        match &self.mask {
            None => score,
            Some(m) if m.dtype == DType::Bool && m.get(at) == 0.0 => f64::from(self.a.fill),
            Some(m) if m.dtype == DType::Bool => score,
            Some(m) => f64::from(score as f32 + m.get(at) as f32),
        }
    }

    fn run(&self, isa: Isa) -> ([Buf; 4], Vec<f32>) {
        let a = &self.a;
        let bh = a.batch * a.heads;
        let mut o = Buf::poisoned(self.dtype, bh * a.queries * a.value_features);
        let (mut lse, mut low) = (vec![f32::NAN; bh * a.queries], vec![f32::NAN; bh * a.queries]);
        let to = [lse.as_mut_ptr(), low.as_mut_ptr()];
        let q = self.view(self.q.ptr(), a.queries, a.features);
        let k = self.view(self.k.ptr(), a.keys, a.features);
        let v = self.view(self.v.ptr(), a.keys, a.value_features);
        let ov = self.view(o.ptr_mut(), a.queries, a.value_features);
        let mut scratch = vec![0xff; a.forward_scratch_bytes_on(isa)];
        // SAFETY: tensors of these sizes.
        unsafe { a.forward_on(isa, [q, k, v, ov], self.mask_view(), to, &mut scratch) };
        let mut grads = [self.q.len, self.k.len, self.v.len].map(|n| Buf::poisoned(self.dtype, n));
        let [gq, gk, gv] = &mut grads;
        let t = Backward {
            q,
            k,
            v,
            o: ov,
            grad_o: self.view(self.grad_o.ptr(), a.queries, a.value_features),
            mask: self.mask_view(),
            grad_q: self.view(gq.ptr_mut(), a.queries, a.features),
            grad_k: self.view(gk.ptr_mut(), a.keys, a.features),
            grad_v: self.view(gv.ptr_mut(), a.keys, a.value_features),
        };
        let mut scratch = vec![0xff; a.backward_scratch_bytes_on(isa)];
        // SAFETY: tensors of these sizes.
        unsafe { a.backward_on(isa, &t, to.map(|p| p.cast_const()), &mut scratch) };
        let [gq, gk, gv] = grads;
        ([o, gq, gk, gv], lse)
    }

    /// Index of `(b, h, t, j)` of a tensor with `n` positions of `d`.
    fn index(&self, b: usize, h: usize, t: usize, j: usize, n: usize, d: usize) -> usize {
        let heads = self.a.heads;
        if self.interleaved {
            ((b * n + t) * heads + h) * d + j
        } else {
            ((b * heads + h) * n + t) * d + j
        }
    }

    fn check(&self, isa: Isa) {
        let (got, lse) = self.run(isa);
        let a = &self.a;
        let (tq, tk, d, dv) = (a.queries, a.keys, a.features, a.value_features);
        let mut want = [&self.grad_o, &self.q, &self.k, &self.v].map(|b| vec![0.0f64; b.len]);
        let scale = f64::from(a.scale);
        for b in 0..a.batch {
            for h in 0..a.heads {
                for i in 0..tq {
                    let q = |j| self.index(b, h, i, j, tq, d);
                    let o = |j| self.index(b, h, i, j, tq, dv);
                    let seen = if a.causal { (i + 1 + tk).saturating_sub(tq).min(tk) } else { tk };
                    let s: Vec<f64> = (0..seen)
                        .map(|t| {
                            let k = |j| self.index(b, h, t, j, tk, d);
                            let dot: f64 =
                                (0..d).map(|j| self.q.get(q(j)) * self.k.get(k(j))).sum();
                            self.masked(dot * scale, i * tk + t)
                        })
                        .collect();
                    let top = s.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                    let sum: f64 = s.iter().map(|x| (x - top).exp()).sum();
                    let lse = f64::from(lse[(b * a.heads + h) * tq + i]);
                    if top == f64::NEG_INFINITY {
                        assert_eq!(lse, top);
                        continue;
                    }
                    let exact = top + sum.ln();
                    assert!((lse - exact).abs() < 1e-5 + 1e-7 * exact.abs(), "{a:?} lse");
                    let p: Vec<f64> = s.iter().map(|x| (x - top).exp() / sum).collect();
                    for (t, p) in p.iter().enumerate() {
                        for j in 0..dv {
                            let v = self.index(b, h, t, j, tk, dv);
                            want[0][o(j)] += p * self.v.get(v);
                            want[3][v] += p * self.grad_o.get(o(j));
                        }
                    }
                    let dp: Vec<f64> = (0..seen)
                        .map(|t| {
                            (0..dv)
                                .map(|j| {
                                    self.grad_o.get(o(j))
                                        * self.v.get(self.index(b, h, t, j, tk, dv))
                                })
                                .sum()
                        })
                        .collect();
                    let delta: f64 = p.iter().zip(&dp).map(|(p, d)| p * d).sum();
                    for t in 0..seen {
                        let replaced = self
                            .mask
                            .as_ref()
                            .is_some_and(|m| m.dtype == DType::Bool && m.get(i * tk + t) == 0.0);
                        let ds = if replaced { 0.0 } else { p[t] * (dp[t] - delta) * scale };
                        for j in 0..d {
                            let k = self.index(b, h, t, j, tk, d);
                            want[1][q(j)] += ds * self.k.get(k);
                            want[2][k] += ds * self.q.get(q(j));
                        }
                    }
                }
            }
        }
        // The backward pass reads o as it was rounded.
        let slack = match self.dtype {
            DType::F32 => 0.0,
            t => 4.0 * rounding(t, 1.0),
        };
        for (what, (got, want)) in ["o", "dq", "dk", "dv"].iter().zip(got.iter().zip(&want)) {
            for (e, &w) in want.iter().enumerate() {
                let bound = 2e-5 * (1.0 + w.abs()) + rounding(self.dtype, w) + slack;
                assert!(
                    (got.get(e) - w).abs() <= bound,
                    "{what} {a:?} [{e}]: {}, want {w}",
                    got.get(e)
                );
            }
        }
    }
}

/// Numbers that models hide keys with: rows of them are uniform, but those of −∞.
const HIDDEN: [f32; 6] = [f32::NEG_INFINITY, f32::MIN, -1e9, -1e8, -1e4, -1e3];

fn sets() -> Vec<Isa> {
    [Isa::Portable, Isa::Avx2, Isa::Avx512].into_iter().filter(|&s| s <= isa()).collect()
}

#[test]
fn random_problems() {
    for set in sets() {
        let mut rng = Rng(41);
        for round in 0..60 {
            let sizes = [1, 2, 5, 16, 17, 33, 64, 100];
            let queries = rng.pick(&sizes);
            let a = Attention {
                batch: 1 + rng.below(2),
                heads: 1 + rng.below(3),
                queries,
                keys: if round % 2 == 0 { queries } else { rng.pick(&sizes) },
                features: rng.pick(&[1, 4, 7, 16, 32]),
                value_features: rng.pick(&[1, 4, 7, 16, 32]),
                causal: rng.below(2) == 1,
                scale: rng.pick(&[0.25, 1.0, -0.5, 2.0]),
                fill: rng.pick(&HIDDEN),
                safe: true,
            };
            let dtype = rng.pick(&[DType::F32, DType::F32, DType::Bf16, DType::F16]);
            let masked = rng.below(2) == 0;
            Problem::random(&mut rng, a, dtype, masked).check(set);
        }
    }
}

#[test]
fn more_keys_than_a_block_and_bits_that_do_not_depend_on_threads() {
    let mut rng = Rng(43);
    for causal in [false, true] {
        let a = Attention {
            batch: 1,
            heads: 3,
            queries: 500,
            keys: 500,
            features: 24,
            value_features: 20,
            causal,
            scale: 0.2,
            fill: 0.0,
            safe: false,
        };
        let p = Problem::random(&mut rng, a, DType::F32, false);
        p.check(isa());
        same_for_any_thread_count(|| {
            let (got, lse) = p.run(isa());
            (got.map(|b| b.bytes().to_vec()), lse)
        });
    }
}

#[test]
fn large_scores_do_not_overflow_and_nan_is_not_hidden() {
    let a = Attention {
        batch: 1,
        heads: 1,
        queries: 3,
        keys: 3,
        features: 2,
        value_features: 2,
        causal: false,
        scale: 1.0,
        fill: 0.0,
        safe: false,
    };
    let mut rng = Rng(47);
    let mut p = Problem::random(&mut rng, a, DType::F32, false);
    p.q = Buf::new(DType::F32, &[200.0, 0.0, 1.0, 0.0, f32::NAN, 0.0]);
    p.k = Buf::new(DType::F32, &[100.0, 0.0, 99.0, 0.0, -5.0, 0.0]);
    let ([o, ..], lse) = p.run(isa());
    assert_eq!(lse[0], 20000.0);
    assert!((o.get(0) - p.v.get(0)).abs() < 1e-6);
    assert!(o.get(2).is_finite() && o.get(4).is_nan() && lse[2].is_nan());
}

/// The gradient needs the logarithm of a row's sum, which f32 does not hold beside a large maximum.
#[test]
fn large_scores_that_are_alike_share_the_gradient() {
    let (n, d) = (48, 4);
    let a = Attention {
        batch: 1,
        heads: 1,
        queries: 3,
        keys: n,
        features: d,
        value_features: d,
        causal: false,
        scale: 1.0,
        fill: 0.0,
        safe: false,
    };
    for set in sets() {
        for size in [1e3, 1e6, 1e8, 1e12, 1e30, -1e9, -1e30] {
            let mut p = Problem::random(&mut Rng(53), a, DType::F32, false);
            let unit = |n: usize, x: f32| -> Vec<f32> {
                (0..n * d).map(|i| if i % d == 0 { x } else { 0.0 }).collect()
            };
            // Every score is `size`.
            p.q = Buf::new(DType::F32, &unit(3, size));
            p.k = Buf::new(DType::F32, &unit(n, 1.0));
            let ([_, _, _, gv], _) = p.run(set);
            for j in 0..d {
                let want: f64 = (0..3).map(|i| p.grad_o.get(i * d + j)).sum::<f64>() / n as f64;
                for t in 0..n {
                    let got = gv.get(t * d + j);
                    assert!((got - want).abs() < 1e-6, "scores of {size}: {got}, not {want}");
                }
            }
        }
    }
}

/// Softmax of −∞ alone is NaN, and says so; of a cotangent of 0 nothing comes all the same.
#[test]
fn rows_without_keys_are_not_a_number_unless_they_are_safe() {
    let a = Attention {
        batch: 1,
        heads: 1,
        queries: 2,
        keys: 5,
        features: 4,
        value_features: 4,
        causal: false,
        scale: 0.5,
        fill: f32::NEG_INFINITY,
        safe: false,
    };
    for set in sets() {
        for mask in [
            Buf::new(DType::Bool, &[0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 1.0, 1.0]),
            Buf::new(DType::F32, &[[f32::NEG_INFINITY; 5], [0.0; 5]].concat()),
        ] {
            let mut p = Problem::random(&mut Rng(59), a, DType::F32, false);
            (p.mask, p.interleaved) = (Some(mask), false);
            let ([o, .., gv], lse) = p.run(set);
            assert!(o.get(0).is_nan() && lse[0].is_nan() && gv.get(0).is_nan());
            assert!(o.get(4).is_finite() && lse[1].is_finite());
            let bytes: Vec<f32> = (0..8).map(|i| if i < 4 { 0.0 } else { i as f32 }).collect();
            p.grad_o = Buf::new(DType::F32, &bytes);
            let ([_, gq, gk, gv], _) = p.run(set);
            for g in [gq, gk, gv] {
                assert!((0..g.len).all(|i| g.get(i).is_finite()));
            }
            p.a.safe = true;
            let ([o, .., gv], lse) = p.run(set);
            assert!((0..4).all(|i| o.get(i) == 0.0) && lse[0] == f32::NEG_INFINITY);
            assert!((0..gv.len).all(|i| gv.get(i).is_finite()));
        }
    }
}
