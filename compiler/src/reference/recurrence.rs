//! Recurrent networks by their definition, one sequence after the other.

use super::{Options, Tensor};
use crate::ir::TensorType;
use crate::ops::{Recurrence, RecurrenceGrad};
use precast_plan::{RecurrenceShape, RecurrentCell, Squash};

fn squash(f: Squash, x: f64, opt: &Options) -> f64 {
    opt.round(match f {
        Squash::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Squash::Tanh => x.tanh(),
        // NaN stays NaN.
        Squash::Relu if x < 0.0 => 0.0,
        Squash::Relu => x,
    })
}

/// The derivative, from the value.
fn slope(f: Squash, y: f64) -> f64 {
    match f {
        Squash::Sigmoid => y * (1.0 - y),
        Squash::Tanh => 1.0 - y * y,
        Squash::Relu => f64::from(u8::from(y > 0.0)),
    }
}

/// Sizes, and where things lie.
struct Walk {
    s: RecurrenceShape,
    t: usize,
    b: usize,
    d: usize,
    h: usize,
}

impl Walk {
    fn new(s: RecurrenceShape) -> Walk {
        let (t, b, d, h) = (s.steps, s.batch, s.directions(), s.hidden);
        Walk { s, t: t as usize, b: b as usize, d: d as usize, h: h as usize }
    }

    /// Start of the row [t, b, d, ·] of `n` elements.
    fn row(&self, t: usize, b: usize, d: usize, n: usize) -> usize {
        ((t * self.b + b) * self.d + d) * n
    }

    /// Steps of sequence `b`, in the order of direction `d`.
    fn order(&self, lengths: Option<&[i64]>, b: usize, d: usize) -> Vec<usize> {
        let n = lengths.map_or(self.t, |l| l[b].clamp(0, self.t as i64) as usize);
        let mut order: Vec<usize> = (0..n).collect();
        if self.s.way.reverse(d) {
            order.reverse();
        }
        order
    }
}

/// `R[rows] x` of one direction.
fn product(r: &[f64], rows: std::ops::Range<usize>, x: &[f64], opt: &Options) -> Vec<f64> {
    let n = x.len();
    rows.map(|i| r[i * n..][..n].iter().zip(x).fold(0.0, |sum, (a, b)| opt.round(sum + a * b)))
        .collect()
}

pub(super) fn forward(
    op: &Recurrence,
    x: &[&Tensor],
    y: &[TensorType],
    opt: &Options,
) -> Vec<Tensor> {
    let types: Vec<&TensorType> = x.iter().map(|t| &t.ty).collect();
    let w = Walk::new(op.sizes(&types));
    let (h, cell) = (w.h, op.cell);
    let (m, k) = (cell.gates() * h, cell.kept() * h);
    let mut rest = x[3..].iter();
    let bias = cell.has_bias().then(|| rest.next().expect("counted").reals());
    let peephole = op.peephole.then(|| rest.next().expect("counted").reals());
    let lengths = op.lengths.then(|| rest.next().expect("counted").ints());
    let (gates, r, first) = (x[0].reals(), x[1].reals(), x[2].reals());
    let mut out: Vec<Tensor> = y.iter().map(Tensor::zeros).collect();
    let [out_y, kept, before] = &mut out[..] else { panic!("a recurrence has three results") };
    let (out_y, kept, before) = (out_y.reals_mut(), kept.reals_mut(), before.reals_mut());
    for (b, d) in (0..w.b).flat_map(|b| (0..w.d).map(move |d| (b, d))) {
        let r = &r[d * m * h..][..m * h];
        let p = |gate: usize, j: usize| peephole.map_or(0.0, |p| p[(d * 3 + gate) * h + j]);
        let mut state = first[w.row(0, b, d, h)..][..h].to_vec();
        let mut c = match cell.states() {
            2 => first[w.row(1, b, d, h)..][..h].to_vec(),
            _ => vec![],
        };
        for t in w.order(lengths, b, d) {
            before[w.row(t, b, d, h)..][..h].copy_from_slice(&state);
            let x = &gates[w.row(t, b, d, m)..][..m];
            let kept = &mut kept[w.row(t, b, d, k)..][..k];
            let add = |a: f64, b: f64| opt.round(a + b);
            match cell {
                RecurrentCell::Rnn => {
                    let q = product(r, 0..h, &state, opt);
                    for j in 0..h {
                        state[j] = squash(op.f, add(x[j], q[j]), opt);
                        kept[j] = state[j];
                    }
                }
                RecurrentCell::Lstm => {
                    let q = product(r, 0..4 * h, &state, opt);
                    for j in 0..h {
                        let sum = |gate: usize| add(x[gate * h + j], q[gate * h + j]);
                        let i = squash(op.f, add(sum(0), p(0, j) * c[j]), opt);
                        let f = squash(op.f, add(sum(2), p(2, j) * c[j]), opt);
                        let g = squash(op.g, sum(3), opt);
                        let new = add(f * c[j], i * g);
                        let o = squash(op.f, add(sum(1), p(1, j) * new), opt);
                        state[j] = opt.round(o * squash(op.h, new, opt));
                        for (slot, v) in [i, o, f, g, c[j]].into_iter().enumerate() {
                            kept[slot * h + j] = v;
                        }
                        c[j] = new;
                    }
                }
                RecurrentCell::Gru | RecurrentCell::GruResetAfter => {
                    let after = cell == RecurrentCell::GruResetAfter;
                    let q = product(r, 0..2 * h, &state, opt);
                    let gate =
                        |n: usize, j: usize| squash(op.f, add(x[n * h + j], q[n * h + j]), opt);
                    let z: Vec<f64> = (0..h).map(|j| gate(0, j)).collect();
                    let reset: Vec<f64> = (0..h).map(|j| gate(1, j)).collect();
                    // What the reset gate has to do with, and what the last product gives.
                    let (slot, inner): (Vec<f64>, Vec<f64>) = if after {
                        let mut q = product(r, 2 * h..3 * h, &state, opt);
                        let bias = &bias.expect("of this cell")[d * h..][..h];
                        q.iter_mut().zip(bias).for_each(|(q, b)| *q = add(*q, *b));
                        let inner = q.iter().zip(&reset).map(|(q, r)| opt.round(q * r)).collect();
                        (q, inner)
                    } else {
                        let held: Vec<f64> =
                            state.iter().zip(&reset).map(|(h, r)| opt.round(h * r)).collect();
                        let inner = product(r, 2 * h..3 * h, &held, opt);
                        (held, inner)
                    };
                    for j in 0..h {
                        let n = squash(op.g, add(x[2 * h + j], inner[j]), opt);
                        state[j] = add((1.0 - z[j]) * n, z[j] * state[j]);
                        for (at, v) in [z[j], reset[j], n, slot[j]].into_iter().enumerate() {
                            kept[at * h + j] = v;
                        }
                    }
                }
            }
            out_y[w.row(t, b, d, h)..][..h].copy_from_slice(&state);
        }
        out_y[w.row(w.t, b, d, h)..][..h].copy_from_slice(&state);
        if cell.states() == 2 {
            out_y[w.row(w.t + 1, b, d, h)..][..h].copy_from_slice(&c);
        }
        // Behind the end of a sequence the state stays what it was there: the first one of a walk
        // that comes from behind.
        let walked = w.order(lengths, b, d);
        for t in (0..w.t).filter(|t| !walked.contains(t)) {
            let still = if w.s.way.reverse(d) { &first[w.row(0, b, d, h)..][..h] } else { &state };
            before[w.row(t, b, d, h)..][..h].copy_from_slice(still);
        }
    }
    out
}

pub(super) fn gradient(
    op: &RecurrenceGrad,
    x: &[&Tensor],
    y: &[TensorType],
    opt: &Options,
) -> Vec<Tensor> {
    let types: Vec<&TensorType> = x.iter().map(|t| &t.ty).collect();
    let w = Walk::new(op.sizes(&types));
    let (h, cell) = (w.h, op.cell);
    let (m, k) = (cell.gates() * h, cell.kept() * h);
    let mut rest = x[4..].iter();
    let peephole = op.peephole.then(|| rest.next().expect("counted").reals());
    let lengths = op.lengths.then(|| rest.next().expect("counted").ints());
    let (r, kept, before, dy) = (x[0].reals(), x[1].reals(), x[2].reals(), x[3].reals());
    let mut out: Vec<Tensor> = y.iter().map(Tensor::zeros).collect();
    let [dx, states] = &mut out[..] else { panic!("its gradient has two results") };
    let (dx, states) = (dx.reals_mut(), states.reals_mut());
    let round = |v: f64| opt.round(v);
    for (b, d) in (0..w.b).flat_map(|b| (0..w.d).map(move |d| (b, d))) {
        let r = &r[d * m * h..][..m * h];
        let p = |gate: usize, j: usize| peephole.map_or(0.0, |p| p[(d * 3 + gate) * h + j]);
        // Rᵀ[rows] g.
        let back = |from: usize, g: &[f64]| -> Vec<f64> {
            (0..h)
                .map(|j| {
                    let sums = g.iter().enumerate();
                    sums.fold(0.0, |sum, (i, g)| round(sum + r[(from + i) * h + j] * g))
                })
                .collect()
        };
        let mut dh = dy[w.row(w.t, b, d, h)..][..h].to_vec();
        let mut dc = match cell.states() {
            2 => dy[w.row(w.t + 1, b, d, h)..][..h].to_vec(),
            _ => vec![],
        };
        for t in w.order(lengths, b, d).into_iter().rev() {
            let kept = &kept[w.row(t, b, d, k)..][..k];
            let old = &before[w.row(t, b, d, h)..][..h];
            let at = |slot: usize, j: usize| kept[slot * h + j];
            for (a, b) in dh.iter_mut().zip(&dy[w.row(t, b, d, h)..][..h]) {
                *a = round(*a + b);
            }
            let mut g = vec![0.0; m];
            dh = match cell {
                RecurrentCell::Rnn => {
                    for j in 0..h {
                        g[j] = round(dh[j] * slope(op.f, at(0, j)));
                    }
                    back(0, &g)
                }
                RecurrentCell::Lstm => {
                    for j in 0..h {
                        let [i, o, f, n, c] = [0, 1, 2, 3, 4].map(|slot| at(slot, j));
                        let top = squash(op.h, round(round(f * c) + round(i * n)), opt);
                        let d_o = round(dh[j] * top * slope(op.f, o));
                        let through = round(dh[j] * o * slope(op.h, top));
                        let all = round(dc[j] + through + d_o * p(1, j));
                        let di = round(all * n * slope(op.f, i));
                        let df = round(all * c * slope(op.f, f));
                        let dn = round(all * i * slope(op.g, n));
                        dc[j] = round(all * f + di * p(0, j) + df * p(2, j));
                        for (gate, v) in [di, d_o, df, dn].into_iter().enumerate() {
                            g[gate * h + j] = v;
                        }
                    }
                    back(0, &g)
                }
                RecurrentCell::Gru | RecurrentCell::GruResetAfter => {
                    for j in 0..h {
                        let (z, n) = (at(0, j), at(2, j));
                        g[j] = round(dh[j] * (old[j] - n) * slope(op.f, z));
                        g[2 * h + j] = round(dh[j] * (1.0 - z) * slope(op.g, n));
                    }
                    let last = g[2 * h..].to_vec();
                    // Cotangents of the reset gate, and of the old state past the gates.
                    let (reset, past): (Vec<f64>, Vec<f64>) = if cell == RecurrentCell::Gru {
                        let u = back(2 * h, &last);
                        let reset = (0..h).map(|j| u[j] * old[j]).collect();
                        (reset, (0..h).map(|j| u[j] * at(1, j)).collect())
                    } else {
                        let inner: Vec<f64> = (0..h).map(|j| round(last[j] * at(1, j))).collect();
                        let reset = (0..h).map(|j| last[j] * at(3, j)).collect();
                        (reset, back(2 * h, &inner))
                    };
                    for j in 0..h {
                        g[h + j] = round(reset[j] * slope(op.f, at(1, j)));
                    }
                    let through = back(0, &g[..2 * h]);
                    (0..h).map(|j| round(dh[j] * at(0, j) + past[j] + through[j])).collect()
                }
            };
            dx[w.row(t, b, d, m)..][..m].copy_from_slice(&g);
        }
        states[w.row(0, b, d, h)..][..h].copy_from_slice(&dh);
        if cell.states() == 2 {
            states[w.row(1, b, d, h)..][..h].copy_from_slice(&dc);
        }
    }
    out
}
