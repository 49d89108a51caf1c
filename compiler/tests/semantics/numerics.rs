//! Operations against formulas written down independently, in f64, from the papers and from
//! PyTorch's documentation.

use crate::cases::{bools, ints};
use crate::rng::Rng;
use precast_compiler::ir::{Real, TensorType};
use precast_compiler::ops::activation::Act;
use precast_compiler::ops::matmul::Fused;
use precast_compiler::ops::*;
use precast_compiler::reference::{Options, Tensor, eval_op};
use precast_plan::{BinaryOp, DType, ReduceOp, UnaryOp};

fn apply(op: impl Into<Op>, x: &[&Tensor]) -> Vec<Tensor> {
    let op = op.into();
    let types: Vec<&TensorType> = x.iter().map(|t| &t.ty).collect();
    let y = op.def().infer(&types).unwrap_or_else(|e| panic!("{op:?}: {e}"));
    eval_op(&op, x, &y, &Options::EXACT).unwrap_or_else(|e| panic!("{op:?}: {e}"))
}

/// Relative to the largest element; literals in programs are f32.
fn close(have: &[f64], want: &[f64]) {
    assert_eq!(have.len(), want.len());
    let size = want.iter().fold(1e-30, |m: f64, x| m.max(x.abs()));
    for (h, w) in have.iter().zip(want) {
        assert!((h - w).abs() <= 1e-7 * size, "{have:?}\nnot {want:?}");
    }
}

fn mean(v: &[f64]) -> f64 {
    v.iter().sum::<f64>() / v.len() as f64
}

fn rows(t: &Tensor) -> impl Iterator<Item = &[f64]> {
    t.reals().chunks(*t.shape().last().unwrap())
}

#[test]
fn softmax_and_log_softmax() {
    // Offsets that overflow exp without the maximum.
    let mut x = Rng(1).reals([3, 4], -3.0, 3.0);
    x.reals_mut()[..4].iter_mut().for_each(|v| *v += 2000.0);
    let want: Vec<f64> = rows(&x)
        .flat_map(|r| {
            // Pairwise differences, which need no maximum.
            (0..r.len()).map(|i| 1.0 / r.iter().map(|v| (v - r[i]).exp()).sum::<f64>())
        })
        .collect();
    close(apply(Softmax { log: false }, &[&x])[0].reals(), &want);
    let logs: Vec<f64> = want.iter().map(|p| p.ln()).collect();
    close(apply(Softmax { log: true }, &[&x])[0].reals(), &logs);
}

#[test]
fn layer_norm_and_rms_norm() {
    let mut rng = Rng(2);
    let (x, w, b) =
        (rng.reals([3, 4], 90.0, 100.0), rng.reals([4], -1.0, 1.0), rng.reals([4], -1.0, 1.0));
    let y = apply(LayerNorm { eps: Real(1e-5), axes: 1, center: true }, &[&x, &w, &b]);
    let (mut want, mut means, mut rstds) = (vec![], vec![], vec![]);
    for r in rows(&x) {
        let m = mean(r);
        let var = mean(&r.iter().map(|v| v * v).collect::<Vec<_>>()) - m * m;
        let s = 1.0 / (var + 1e-5).sqrt();
        want.extend((0..4).map(|i| (r[i] - m) * s * w.reals()[i] + b.reals()[i]));
        means.push(m);
        rstds.push(s);
    }
    close(y[0].reals(), &want);
    close(y[1].reals(), &means);
    close(y[2].reals(), &rstds);
    let y = apply(LayerNorm { eps: Real(1e-5), axes: 1, center: false }, &[&x, &w]);
    let want: Vec<f64> = rows(&x)
        .flat_map(|r| {
            let norm = (r.iter().map(|v| v * v).sum::<f64>() / 4.0 + 1e-5).sqrt();
            (0..4).map(move |i| (i, r[i] / norm))
        })
        .map(|(i, v)| v * w.reals()[i])
        .collect();
    close(y[0].reals(), &want);
}

#[test]
fn batch_norm_has_biased_variance_per_channel() {
    let mut rng = Rng(3);
    let (x, w, b) =
        (rng.reals([2, 3, 2, 2], 5.0, 9.0), rng.reals([3], -1.0, 1.0), rng.reals([3], -1.0, 1.0));
    let y = apply(BatchNorm { eps: Real(1e-3) }, &[&x, &w, &b]);
    for c in 0..3 {
        let at: Vec<usize> = (0..24).filter(|i| i / 4 % 3 == c).collect();
        let v: Vec<f64> = at.iter().map(|&i| x.reals()[i]).collect();
        let m = mean(&v);
        let var = mean(&v.iter().map(|x| (x - m).powi(2)).collect::<Vec<_>>());
        let want: Vec<f64> =
            v.iter().map(|x| (x - m) / (var + 1e-3).sqrt() * w.reals()[c] + b.reals()[c]).collect();
        close(&at.iter().map(|&i| y[0].reals()[i]).collect::<Vec<_>>(), &want);
        close(&[y[1].reals()[c], y[2].reals()[c]], &[m, var]);
    }
}

#[test]
fn cross_entropy_ignores_and_smooths_as_pytorch() {
    // torch.nn.functional.cross_entropy(reduction="none"): the smoothed target is
    // (1 − ε) one-hot + ε / classes.
    let x = Rng(4).reals([4, 5], -30.0, 30.0);
    let t = [3, 0, 2, 4];
    for (ignore, eps) in [(-100, 0.0), (2, 0.0), (0, 0.25), (-1, 1.0)] {
        let op = CrossEntropy { ignore_index: ignore, label_smoothing: Real(eps) };
        let y = apply(op, &[&x, &ints(DType::I64, [4], &t)]);
        let (mut loss, mut lse) = (vec![], vec![]);
        for (r, &t) in rows(&x).zip(&t) {
            let total = r.iter().map(|v| v.exp()).sum::<f64>().ln();
            let want: f64 = (0..5)
                .map(|i| {
                    let target = if i == t as usize { 1.0 - eps } else { 0.0 } + eps / 5.0;
                    target * (total - r[i])
                })
                .sum();
            loss.push(if t == ignore { 0.0 } else { want });
            lse.push(total);
        }
        close(y[0].reals(), &loss);
        let counts: Vec<usize> = (0..4).filter(|&r| t[r] != ignore).collect();
        let (m, l) = (y[1].reals(), y[2].reals());
        let have: Vec<f64> = counts.iter().map(|&r| m[r] + l[r]).collect();
        close(&have, &counts.iter().map(|&r| lse[r]).collect::<Vec<_>>());
    }
    // An ignored target lies outside the classes and contributes neither loss nor gradient, even
    // where the logits are not numbers.
    let bad = Tensor::real([1, 2], [f64::NAN, f64::INFINITY]);
    let t = ints(DType::I64, [1], &[-100]);
    let op = CrossEntropy { ignore_index: -100, label_smoothing: Real(0.0) };
    let y = apply(op, &[&bad, &t]);
    assert_eq!(y[0].reals(), [0.0]);
    let op = CrossEntropyGrad { ignore_index: -100, label_smoothing: Real(0.0) };
    let d = apply(op, &[&bad, &t, &y[1], &y[2], &Tensor::real([1], [1.0])]);
    assert_eq!(d[0].reals(), [0.0, 0.0]);
}

#[test]
fn activations() {
    let v = [-30.0, -3.0, -1.0, -0.5, 0.0, 0.25, 1.0, 3.0, 30.0];
    let x = Tensor::real([9], v);
    let act = |act| apply(Activate { act }, &[&x])[0].reals().to_vec();
    close(&act(Act::Relu), &v.map(|x| if x > 0.0 { x } else { 0.0 }));
    close(&act(Act::Silu), &v.map(|x| x / (1.0 + (-x).exp())));
    // x Φ(x), Φ by Simpson's rule over the density.
    let cdf = |x: f64| {
        let n = 20_000;
        let h = x / n as f64;
        let f = |i: usize| {
            let w = if i == 0 || i == n { 1.0 } else { 2.0 + 2.0 * (i % 2) as f64 };
            w * (-0.5 * (i as f64 * h).powi(2)).exp()
        };
        0.5 + (0..=n).map(f).sum::<f64>() * h / 3.0 / (2.0 * std::f64::consts::PI).sqrt()
    };
    close(&act(Act::Gelu), &v.map(|x| x * cdf(x)));
    let k = (2.0 / std::f64::consts::PI).sqrt();
    let tanh = |x: f64| 0.5 * x * (1.0 + (k * (x + 0.044715 * x * x * x)).tanh());
    close(&act(Act::GeluTanh), &v.map(tanh));
    // Deep in the tail the derivative is 0, not NaN.
    let far = Tensor::real([2], [-1e4, 1e4]);
    for a in Act::ALL {
        let y = apply(ActivateGrad { act: a }, &[&far, &Tensor::real([2], [1.0, 1.0])]);
        close(y[0].reals(), &[0.0, 1.0]);
    }
    // PyTorch's threshold_backward: no gradient at 0; NaN passes forward.
    let y = apply(ActivateGrad { act: Act::Relu }, &[&x, &Tensor::real([9], [1.0; 9])]);
    assert_eq!(y[0].reals(), [0.0, 0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
    assert!(
        apply(Activate { act: Act::Relu }, &[&Tensor::scalar(f64::NAN)])[0].reals()[0].is_nan()
    );
}

#[test]
fn adam_steps_as_pytorch() {
    // torch.optim.Adam / AdamW, _single_tensor_adam, in the order written there, three steps.
    for decoupled in [false, true] {
        let (lr, b1, b2, eps, decay) = (0.1, 0.9, 0.99, 1e-3, 0.2);
        let (mut w, mut m, mut v) = (vec![0.5, -2.0], vec![0.0; 2], vec![0.0; 2]);
        let mut have = [&w, &m, &v].map(|t| Tensor::real([2], t.clone()));
        let op = AdamUpdate {
            beta1: Real(b1),
            beta2: Real(b2),
            eps: Real(eps),
            weight_decay: Real(decay),
            decoupled,
        };
        let mut rng = Rng(5);
        for t in 1..=3 {
            let g = rng.reals([2], -8.0, 8.0);
            let (c1, c2) = (1.0 - f64::powi(b1, t), 1.0 - f64::powi(b2, t));
            for i in 0..2 {
                let mut grad = g.reals()[i] * 0.25;
                if decoupled {
                    w[i] *= 1.0 - lr * decay;
                } else {
                    grad += decay * w[i];
                }
                m[i] = b1 * m[i] + (1.0 - b1) * grad;
                v[i] = b2 * v[i] + (1.0 - b2) * grad * grad;
                w[i] -= lr / c1 * m[i] / (v[i].sqrt() / c2.sqrt() + eps);
            }
            let s = [lr, 0.25, c1, c2].map(Tensor::scalar);
            let apply_flag = bools([], &[true]);
            let [a, b, c] = &have;
            let y = apply(op.clone(), &[a, b, c, &g, &s[0], &s[1], &apply_flag, &s[2], &s[3]]);
            have = y.try_into().unwrap();
            // β and ε are f32 literals, so each step is a little off.
            for (h, w) in have.iter().zip([&w, &m, &v]) {
                for (h, w) in h.reals().iter().zip(w) {
                    assert!((h - w).abs() < 1e-6 * (1.0 + w.abs()), "{h} {w}");
                }
            }
        }
    }
}

#[test]
fn sgd_steps_as_pytorch_and_the_first_momentum_is_the_gradient() {
    for (momentum, nesterov) in [(0.0, false), (0.9, false), (0.9, true)] {
        let (lr, decay) = (0.1, 0.2);
        let (mut w, mut v) = (1.5, None);
        let mut have = [Tensor::scalar(w), Tensor::scalar(0.0)];
        for g in [2.0, -1.0, 0.5] {
            let mut d: f64 = g + decay * w;
            if momentum != 0.0 {
                // torch.optim.SGD: the buffer starts as a copy of the gradient.
                let buffer: f64 = v.map_or(d, |v: f64| momentum * v + d);
                v = Some(buffer);
                d = if nesterov { d + momentum * buffer } else { buffer };
            }
            w -= lr * d;
            let op = SgdUpdate { momentum: Real(momentum), nesterov, weight_decay: Real(decay) };
            let s = [g, lr, 1.0].map(Tensor::scalar);
            let flag = bools([], &[true]);
            let mut x = vec![&have[0]];
            if momentum != 0.0 {
                x.push(&have[1]);
            }
            x.extend([&s[0], &s[1], &s[2], &flag]);
            let y = apply(op, &x);
            have[..y.len()].clone_from_slice(&y);
            close(have[0].reals(), &[w]);
        }
    }
}

#[test]
fn a_skipped_update_leaves_every_bit() {
    let (w, nan, s) =
        (Rng(6).reals([3], -1.0, 1.0), Tensor::real([3], [f64::NAN; 3]), Tensor::scalar(0.1));
    let no = bools([], &[false]);
    let op = AdamUpdate {
        beta1: Real(0.9),
        beta2: Real(0.99),
        eps: Real(1e-8),
        weight_decay: Real(0.1),
        decoupled: true,
    };
    for y in apply(op, &[&w, &w, &w, &nan, &s, &s, &no, &s, &s]) {
        assert_eq!(y, w);
    }
    let op = SgdUpdate { momentum: Real(0.9), nesterov: true, weight_decay: Real(0.1) };
    for y in apply(op, &[&w, &w, &nan, &s, &s, &no]) {
        assert_eq!(y, w);
    }
    assert_eq!(apply(EmaUpdate { decay: Real(0.9) }, &[&w, &nan, &no])[0], w);
    let ema = apply(
        EmaUpdate { decay: Real(0.75) },
        &[&Tensor::scalar(4.0), &Tensor::scalar(8.0), &bools([], &[true])],
    );
    close(ema[0].reals(), &[5.0]);
}

#[test]
fn gradient_statistics_count_what_is_not_finite_before_unscaling() {
    let g = Tensor::real([5], [3.0, f64::INFINITY, -4.0, f64::NAN, f64::NEG_INFINITY]);
    let y = apply(GradStats {}, &[&g, &Tensor::scalar(0.5)]);
    assert_eq!(y[1].reals(), [3.0]);
    let g = Tensor::real([2, 2], [3.0, 0.0, -4.0, 0.0]);
    let y = apply(GradStats {}, &[&g, &Tensor::scalar(0.5)]);
    assert_eq!((y[0].reals(), y[1].reals()), (&[6.25][..], &[0.0][..]));
}

#[test]
fn equal_extrema_share_and_nan_wins() {
    let x = Tensor::real([2, 3], [1.0, 1.0, 0.0, f64::NAN, 1.0, 2.0]);
    for f in [ReduceOp::Max, ReduceOp::Min] {
        let y = apply(Reduce { f, axes: vec![1] }, &[&x]);
        assert_eq!(y[0].reals()[0], if f == ReduceOp::Max { 1.0 } else { 0.0 });
        assert!(y[0].reals()[1].is_nan());
    }
    for f in [BinaryOp::Max, BinaryOp::Min] {
        let (one, nan) = (Tensor::scalar(1.0), Tensor::scalar(f64::NAN));
        assert!(apply(Binary { f }, &[&one, &nan])[0].reals()[0].is_nan());
        assert!(apply(Binary { f }, &[&nan, &one])[0].reals()[0].is_nan());
    }
    let x = Tensor::real([1, 1, 2, 2], [5.0, 7.0, 7.0, 7.0]);
    let pool = MaxPool2d { kernel: [2, 2], stride: [1, 1], pad: [1, 0, 0, 0] };
    let y = apply(pool, &[&x]);
    assert_eq!((y[0].reals(), y[1].ints()), (&[7.0, 7.0][..], &[3, 1][..]));
    let x = Tensor::real([1, 1, 1, 2], [-5.0, -7.0]);
    let pool = MaxPool2d { kernel: [2, 2], stride: [1, 1], pad: [1, 0, 0, 0] };
    assert_eq!(apply(pool, &[&x])[0].reals(), [-5.0], "padding never wins");
}

#[test]
fn gradients_of_ties_are_shared() {
    use indexmap::IndexMap;
    use precast_compiler::autodiff::backward;
    use precast_compiler::ir::{Graph, Region};
    let gradient = |op: Op, x: &[Tensor]| -> Vec<Vec<f64>> {
        let mut g = Graph::new("ties");
        let mut inputs = IndexMap::new();
        let mut ids = vec![];
        for (i, t) in x.iter().chain([&Tensor::scalar(1.0)]).enumerate() {
            let name = format!("x{i}");
            let leaf = Input::new(&name, &t.ty);
            ids.push(g.try_add(leaf, &[], &name, Region::Forward).unwrap()[0]);
            inputs.insert(name, t.clone());
        }
        let seed = ids.pop().unwrap();
        let y = g.try_add(op, &ids, "y", Region::Forward).unwrap()[0];
        let grads = backward(&mut g, y, seed, &ids).unwrap();
        let out = precast_compiler::reference::eval(&g, &inputs, &inputs).unwrap();
        grads.into_iter().map(|v| out.value(v.unwrap()).reals().to_vec()).collect()
    };
    let x = Tensor::real([4], [2.0, 1.0, 2.0, 1.0]);
    for (f, want) in [(ReduceOp::Max, [0.5, 0.0, 0.5, 0.0]), (ReduceOp::Min, [0.0, 0.5, 0.0, 0.5])]
    {
        let op = Reduce { f, axes: vec![0] };
        assert_eq!(gradient(op.into(), std::slice::from_ref(&x)), [want]);
    }
    let one = Tensor::scalar(1.0);
    for f in [BinaryOp::Max, BinaryOp::Min] {
        assert_eq!(gradient(Binary { f }.into(), &[one.clone(), one.clone()]), [[0.5], [0.5]]);
    }
    let zero = Tensor::scalar(0.0);
    assert_eq!(gradient(Unary { f: UnaryOp::Abs }.into(), std::slice::from_ref(&zero)), [[0.0]]);
    // 0^b: PyTorch gives b·0^(b−1) for the base, and 0 for an exponent of a base that is 0.
    let two = Tensor::scalar(2.0);
    let pow = Binary { f: BinaryOp::Pow };
    assert_eq!(gradient(pow.clone().into(), &[zero.clone(), two]), [[0.0], [0.0]]);
    assert_eq!(gradient(pow.into(), &[zero.clone(), zero])[0], [0.0], "x^0 is constant");
}

#[test]
fn dropout_keeps_the_expected_share_and_scales_it() {
    let x = Tensor::real([100, 100], vec![1.0; 10_000]);
    let key = |k| ints(DType::I32, [], &[k]);
    let mask = |seed, step, stream| {
        let op = Dropout { p: Real(0.25), stream };
        apply(op, &[&x, &key(seed), &key(step)])[0].reals().to_vec()
    };
    let y = mask(1, 2, 3);
    let kept = y.iter().filter(|&&v| v != 0.0).count();
    assert!((7_300..7_700).contains(&kept), "{kept}");
    assert!(y.iter().all(|&v| v == 0.0 || (v - 4.0 / 3.0).abs() < 1e-7));
    for other in [mask(2, 2, 3), mask(1, 3, 3), mask(1, 2, 4)] {
        let same = y.iter().zip(&other).filter(|(a, b)| a == b).count();
        // Independent masks agree at 0.75² + 0.25² of the places.
        assert!((6_000..6_500).contains(&same), "{same}");
    }
}

#[test]
fn products_and_epilogues() {
    let mut rng = Rng(8);
    let (a, b, bias) =
        (rng.reals([2, 3], -1.0, 1.0), rng.reals([3, 2], -1.0, 1.0), rng.reals([2], -1.0, 1.0));
    for fused in Fused::ALL {
        let mut x = vec![&a, &b];
        if fused.has_bias() {
            x.push(&bias);
        }
        let y = apply(MatMul::with(fused), &x);
        let pre: Vec<f64> = (0..4)
            .map(|i| {
                let dot: f64 =
                    (0..3).map(|k| a.reals()[i / 2 * 3 + k] * b.reals()[k * 2 + i % 2]).sum();
                dot + if fused.has_bias() { bias.reals()[i % 2] } else { 0.0 }
            })
            .collect();
        let t = Tensor::real([2, 2], pre.clone());
        let want = fused
            .act()
            .map_or(pre.clone(), |act| apply(Activate { act }, &[&t])[0].reals().to_vec());
        close(y[0].reals(), &want);
        assert_eq!(y.len(), 1 + usize::from(fused.has_aux()));
        if fused.has_aux() {
            close(y[1].reals(), &pre);
        }
    }
}

#[test]
fn causal_attention_sees_no_future() {
    let mut rng = Rng(9);
    let (q, k, mut v) = (
        rng.reals([1, 1, 2, 3], -1.0, 1.0),
        rng.reals([1, 1, 3, 3], -1.0, 1.0),
        rng.reals([1, 1, 3, 3], -1.0, 1.0),
    );
    let plain =
        Attention { scale: Real(0.5), causal: false, masked: false, fill: Real(0.0), safe: false };
    let op = Attention { causal: true, ..plain.clone() };
    let before = apply(op.clone(), &[&q, &k, &v]);
    // The last value is the future of the first query alone.
    v.reals_mut()[6..].iter_mut().for_each(|x| *x += 100.0);
    let after = apply(op, &[&q, &k, &v]);
    assert_eq!(before[0].reals()[..3], after[0].reals()[..3]);
    assert_ne!(before[0].reals()[3..], after[0].reals()[3..]);
    // A mask of −∞ is the same as causality.
    let hidden = f64::NEG_INFINITY;
    let mask = Tensor::real([1, 1, 2, 3], [0.0, 0.0, hidden, 0.0, 0.0, 0.0]);
    let op = Attention { masked: true, ..plain };
    let masked = apply(op, &[&q, &k, &v, &mask]);
    close(masked[0].reals(), after[0].reals());
    close(masked[1].reals(), after[1].reals());
}
