//! Matrix products, convolutions and attention by their definitions.

use super::{Data, Options, Tensor, rows};
use crate::ir::TensorType;
use crate::ops::{Attention, AttentionGrad, Conv2d, Conv2dDataGrad, Conv2dFilterGrad, MatMul};
use precast_plan::ConvGeometry;

pub(super) fn matmul(op: &MatMul, x: &[&Tensor], y: &[TensorType], opt: &Options) -> Vec<Tensor> {
    let (a, b) = (x[0].reals(), x[1].reals());
    let rank = x[0].shape().rank();
    let (m, k, n) = (x[0].shape()[rank - 2], x[0].shape()[rank - 1], x[1].shape()[rank - 1]);
    let batch: usize = x[0].shape()[..rank - 2].iter().product();
    let mut out = vec![0.0; batch * m * n];
    for g in 0..batch {
        for i in 0..m {
            let row = &mut out[(g * m + i) * n..][..n];
            for l in 0..k {
                let f = a[(g * m + i) * k + l];
                for (acc, v) in row.iter_mut().zip(&b[(g * k + l) * n..][..n]) {
                    *acc = opt.round(*acc + f * v);
                }
            }
        }
    }
    let product = Tensor::new(TensorType::f32(y[0].shape.clone()), Data::Real(out));
    let mut operands = vec![&product];
    operands.extend(&x[2..]);
    let results =
        rows::elementwise(&product.ty, &operands, y.len(), opt, |b, r| op.emit(b, r[0], &r[1..]));
    results.into_iter().zip(y).map(|(t, ty)| Tensor { ty: ty.clone(), ..t }).collect()
}

/// Calls `f(x index, w index, y index)` for every product of a convolution.
fn products(g: &ConvGeometry, mut f: impl FnMut(usize, usize, usize)) {
    let (cg, og) = (g.c / g.groups, g.o / g.groups);
    for n in 0..g.n {
        for o in 0..g.o {
            for oy in 0..g.oh {
                for ox in 0..g.ow {
                    for c in 0..cg {
                        for ky in 0..g.kh {
                            for kx in 0..g.kw {
                                let y =
                                    (oy * g.stride[0] + ky * g.dilation[0]).checked_sub(g.pad[0]);
                                let x =
                                    (ox * g.stride[1] + kx * g.dilation[1]).checked_sub(g.pad[1]);
                                let (Some(y), Some(x)) = (y, x) else { continue };
                                if y >= g.h || x >= g.w {
                                    continue;
                                }
                                let channel = o / og * cg + c;
                                let xi = ((n * g.c + channel) * g.h + y) * g.w + x;
                                let wi = ((o * cg + c) * g.kh + ky) * g.kw + kx;
                                let yi = ((n * g.o + o) * g.oh + oy) * g.ow + ox;
                                f(xi as usize, wi as usize, yi as usize);
                            }
                        }
                    }
                }
            }
        }
    }
}

pub(super) fn conv(
    op: &Conv2d,
    x: &Tensor,
    w: &Tensor,
    y: &TensorType,
    opt: &Options,
) -> Result<Tensor, String> {
    let g = op.geometry(&x.ty, &w.ty)?;
    let mut out = Tensor::zeros(y);
    let (acc, x, w) = (out.reals_mut(), x.reals(), w.reals());
    products(&g, |xi, wi, yi| acc[yi] = opt.round(acc[yi] + x[xi] * w[wi]));
    Ok(out)
}

pub(super) fn conv_data_grad(
    op: &Conv2dDataGrad,
    dy: &Tensor,
    w: &Tensor,
    y: &TensorType,
    opt: &Options,
) -> Result<Tensor, String> {
    let g = op.geometry(&dy.ty, &w.ty)?;
    let mut out = Tensor::zeros(y);
    let (acc, dy, w) = (out.reals_mut(), dy.reals(), w.reals());
    products(&g, |xi, wi, yi| acc[xi] = opt.round(acc[xi] + dy[yi] * w[wi]));
    Ok(out)
}

pub(super) fn conv_filter_grad(
    op: &Conv2dFilterGrad,
    x: &Tensor,
    dy: &Tensor,
    y: &TensorType,
    opt: &Options,
) -> Result<Tensor, String> {
    let g = op.geometry(&x.ty, &dy.ty)?;
    let mut out = Tensor::zeros(y);
    let (acc, x, dy) = (out.reals_mut(), x.reals(), dy.reals());
    products(&g, |xi, wi, yi| acc[wi] = opt.round(acc[wi] + x[xi] * dy[yi]));
    Ok(out)
}

/// Extents of an attention, and the masked, scaled scores of one query.
struct Scores<'a> {
    scale: f64,
    causal: bool,
    heads: usize,
    tq: usize,
    tk: usize,
    d: usize,
    q: &'a [f64],
    k: &'a [f64],
    mask: Mask<'a>,
}

/// What a mask does to the scores.
enum Mask<'a> {
    None,
    Added(&'a [f64]),
    /// Scores stay where it is true; elsewhere they are the number.
    Kept(&'a [bool], f64),
}

impl<'a> Scores<'a> {
    fn new(op: &Attention, x: &[&'a Tensor]) -> Scores<'a> {
        let (q, k) = (x[0].shape(), x[1].shape());
        let mask = match x.get(3).filter(|_| op.masked) {
            None => Mask::None,
            Some(m) if m.ty.is_real() => Mask::Added(m.reals()),
            Some(m) => Mask::Kept(m.bools(), op.fill.0),
        };
        Scores {
            scale: op.scale.0,
            causal: op.causal,
            heads: q[0] * q[1],
            tq: q[2],
            tk: k[2],
            d: q[3],
            q: x[0].reals(),
            k: x[1].reals(),
            mask,
        }
    }

    /// Start of query `i` and of key or value `j` of head `h`.
    fn query(&self, h: usize, i: usize) -> usize {
        (h * self.tq + i) * self.d
    }
    fn key(&self, h: usize, j: usize) -> usize {
        (h * self.tk + j) * self.d
    }

    /// Whether something else stands in the place of a score, which then has no gradient.
    fn replaced(&self, h: usize, i: usize, j: usize) -> bool {
        matches!(self.mask, Mask::Kept(keep, _) if !keep[(h * self.tq + i) * self.tk + j])
    }

    /// Scores of query `i` with the keys it sees; keys after those are not seen.
    fn row(&self, h: usize, i: usize, opt: &Options) -> Vec<f64> {
        // Query i sees keys j ≤ i + tk − tq.
        let seen = if self.causal { i + 1 + self.tk - self.tq } else { self.tk };
        (0..seen)
            .map(|j| {
                let (q, k) = (&self.q[self.query(h, i)..], &self.k[self.key(h, j)..]);
                let s = dot(&q[..self.d], &k[..self.d], opt);
                let s = opt.round(s * self.scale);
                let at = (h * self.tq + i) * self.tk + j;
                match self.mask {
                    Mask::None => s,
                    Mask::Added(m) => opt.round(s + m[at]),
                    Mask::Kept(keep, fill) => {
                        if keep[at] {
                            s
                        } else {
                            fill
                        }
                    }
                }
            })
            .collect()
    }
}

fn dot(a: &[f64], b: &[f64], opt: &Options) -> f64 {
    a.iter().zip(b).fold(0.0, |acc, (x, y)| opt.round(acc + x * y))
}

fn axpy(y: &mut [f64], a: f64, x: &[f64], opt: &Options) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y = opt.round(*y + a * x));
}

pub(super) fn attention(
    op: &Attention,
    x: &[&Tensor],
    y: &[TensorType],
    opt: &Options,
) -> Vec<Tensor> {
    let s = Scores::new(op, x);
    let v = x[2].reals();
    let [mut out, mut lse, mut low] = [0, 1, 2].map(|i| Tensor::zeros(&y[i]));
    for h in 0..s.heads {
        for i in 0..s.tq {
            let scores = s.row(h, i, opt);
            let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let at = h * s.tq + i;
            if op.safe && scores.iter().all(|&x| x == f64::NEG_INFINITY) {
                lse.reals_mut()[at] = f64::NEG_INFINITY;
                continue;
            }
            let e: Vec<f64> = scores.iter().map(|x| opt.round((x - max).exp())).collect();
            let sum = e.iter().fold(0.0, |acc, e| opt.round(acc + e));
            let log = opt.round(sum.ln());
            let high = opt.round(max + log);
            lse.reals_mut()[at] = high;
            low.reals_mut()[at] = opt.round(rest(max, log, high));
            let o = &mut out.reals_mut()[s.query(h, i)..][..s.d];
            for (j, e) in e.iter().enumerate() {
                axpy(o, opt.round(e / sum), &v[s.key(h, j)..][..s.d], opt);
            }
        }
    }
    vec![out, lse, low]
}

/// What `sum`, the rounded sum of two numbers, lost (Knuth, The Art of Computer Programming, 4.2.2).
fn rest(a: f64, b: f64, sum: f64) -> f64 {
    let of_b = sum - a;
    (a - (sum - of_b)) + (b - of_b)
}

pub(super) fn attention_grad(
    op: &AttentionGrad,
    x: &[&Tensor],
    y: &[TensorType],
    opt: &Options,
) -> Vec<Tensor> {
    let forward = op.forward();
    let s = Scores::new(&forward, x);
    let n = x.len();
    let v = x[2].reals();
    let [o, lse, low, d_o] = [4, 3, 2, 1].map(|i| x[n - i].reals());
    let mut grads: Vec<Tensor> = y.iter().map(Tensor::zeros).collect();
    let [dq, dk, dv] = &mut grads[..] else { panic!("attention has three gradients") };
    let (dq, dk, dv) = (dq.reals_mut(), dk.reals_mut(), dv.reals_mut());
    for h in 0..s.heads {
        for i in 0..s.tq {
            let at = s.query(h, i);
            let (qi, oi, doi) = (&s.q[at..][..s.d], &o[at..][..s.d], &d_o[at..][..s.d]);
            let row = h * s.tq + i;
            // Nothing comes of a cotangent of 0, not even where the row has no probabilities.
            let idle = doi.iter().all(|&d| d == 0.0);
            if idle || lse[row] == f64::NEG_INFINITY {
                continue;
            }
            let delta = dot(oi, doi, opt);
            for (j, score) in s.row(h, i, opt).into_iter().enumerate() {
                let key = s.key(h, j);
                let p = opt.round((opt.round(score - lse[row]) - low[row]).exp());
                axpy(&mut dv[key..][..s.d], p, doi, opt);
                if s.replaced(h, i, j) {
                    continue;
                }
                let dp = dot(doi, &v[key..][..s.d], opt);
                let ds = opt.round(opt.round(p * (dp - delta)) * s.scale);
                axpy(&mut dq[at..][..s.d], ds, &s.k[key..][..s.d], opt);
                axpy(&mut dk[key..][..s.d], ds, qi, opt);
            }
        }
    }
    grads
}
