//! `softmax(scale · q kᵀ) v` under a mask that is added, or chosen by.

use super::masks::{self, Chooser, Layer};
use super::matcher::{Matcher, Rewriter};
use crate::ir::{Real, ValueId};
use crate::ops::{self, Attention, MatMul, Op};
use precast_plan::{BinaryOp, UnaryOp};
use smallvec::{SmallVec, smallvec};

/// Layers that may lie on the scores.
const LAYERS: usize = 4;

fn product(m: &Matcher, v: ValueId) -> Option<(ValueId, ValueId)> {
    let n = m.graph.def(v);
    (n.op == MatMul::plain().into()).then(|| (n.inputs[0], n.inputs[1]))
}

/// A value without scalings that only it is read through, and their product.
fn unscaled(m: &Matcher, v: ValueId) -> (f64, ValueId) {
    let (mut by, mut v) = (1.0, v);
    while m.once(v) {
        let Op::Scale(s) = m.op(v) else { break };
        by *= s.by.0;
        v = m.graph.def(v).inputs[0];
    }
    (by, v)
}

pub fn attention(m: &Matcher, rw: &mut Rewriter) -> Option<SmallVec<[ValueId; 2]>> {
    let node = m.node();
    let (p, v) = product(m, node.outputs[0])?;
    let rank = m.graph.shape(p).rank();
    if !(3..=4).contains(&rank) {
        return None;
    }
    let (p, safe) = guarded(m, p).map_or((p, false), |p| (p, true));
    if !(safe || m.once(p)) || !matches!(m.op(p), Op::Softmax(s) if !s.log) {
        return None;
    }
    let scores = m.graph.def(p).inputs[0];
    if !m.once(scores) {
        return None;
    }
    let (layers, scores) = peeled(m, scores, LAYERS)?;
    let (outer, qk) = unscaled(m, scores);
    if !m.once(qk) {
        return None;
    }
    let (q, kt) = product(m, qk)?;
    let ((sq, q), (sk, kt)) = (unscaled(m, q), unscaled(m, kt));
    let scale = outer * sq * sk;
    let (qs, ks, vs) = (m.graph.shape(q), m.graph.shape(kt), m.graph.shape(v));
    // Keys and values of one size; keys arrive transposed.
    if vs[rank - 2] != ks[rank - 1]
        || vs[rank - 1] != ks[rank - 2]
        || qs.elements() == 0
        || vs.elements() == 0
    {
        return None;
    }
    // A query that sees no key would see none of what the model puts there.
    let sizes = (qs[rank - 2] as i64, vs[rank - 2] as i64);
    let seen = if sizes.0 <= sizes.1 { masks::past(m, &layers, sizes) } else { None };
    let (causal, layers) = match seen {
        Some(rest) => (true, rest),
        None => (false, layers),
    };
    if !layers.is_empty() && !masks::representable(m, &layers) {
        return None;
    }
    let mut swap: Vec<usize> = (0..rank).collect();
    swap.swap(rank - 2, rank - 1);
    let (q, kt, v) = (rw.get(q), rw.get(kt), rw.get(v));
    let k = rw.one(node, "keys", ops::Transpose { perm: swap }, &[kt]);
    // Without a head axis there is one head.
    let four = |s: &[usize]| if rank == 4 { s.to_vec() } else { vec![s[0], 1, s[1], s[2]] };
    let mut inputs = vec![];
    for x in [q, k, v] {
        let s = four(rw.out.shape(x));
        inputs.push(rw.reshape(node, x, &s));
    }
    let mut fill = Real(0.0);
    if let Some(outermost) = layers.first() {
        let mask = match *outermost {
            Layer::Select { fill: f, .. } if masks::all_select(&layers) => {
                fill = Real(f);
                masks::kept(m, rw, &layers)
            }
            _ => masks::added(m, rw, &layers),
        };
        let full = four(m.graph.shape(scores));
        inputs.push(rw.reshape(node, mask, &full));
    }
    let masked = inputs.len() == 4;
    let op = Attention { scale: Real(scale), causal, masked, fill, safe };
    let o = rw.one(node, "", op, &inputs);
    Some(smallvec![rw.reshape(node, o, m.graph.shape(node.outputs[0]))])
}

/// Probabilities behind a guard that makes 0 of NaN, `isnan(p) ? 0 : p`, read by nothing else. Softmax is
/// NaN in whole rows, those of −∞ alone if the scores are numbers.
fn guarded(m: &Matcher, v: ValueId) -> Option<ValueId> {
    let n = m.graph.def(v);
    if !matches!(n.op, Op::Select(_)) {
        return None;
    }
    let [cond, a, b] = n.inputs[..] else { return None };
    let (same, p) = match m.unary(cond, UnaryOp::Not) {
        Some(same) if m.number(a) == Some(0.0) => (same, b),
        None if m.number(b) == Some(0.0) => (cond, a),
        _ => return None,
    };
    (m.binary(same, BinaryOp::Eq)? == (p, p) && m.private(&[v, cond, same, p])).then_some(p)
}

/// What lies on the scores, outermost first, and the scores: a product, scaled or not.
fn peeled(m: &Matcher, v: ValueId, most: usize) -> Option<(Vec<Layer>, ValueId)> {
    if product(m, unscaled(m, v).1).is_some() {
        return Some((vec![], v));
    }
    let n = m.graph.def(v);
    let candidates: SmallVec<[(Layer, ValueId); 2]> = if let Op::Select(_) = n.op {
        let (by, a, b) = (Chooser::of(n.inputs[0]), n.inputs[1], n.inputs[2]);
        let (hides, fill, inner) = match (m.number(a), m.number(b)) {
            (Some(f), None) => (true, f, b),
            (None, Some(f)) => (false, f, a),
            _ => return None,
        };
        smallvec![(Layer::Select { by, hides, fill }, inner)]
    } else {
        let (a, b) = m.binary(v, BinaryOp::Add)?;
        smallvec![(Layer::Add(b), a), (Layer::Add(a), b)]
    };
    candidates.into_iter().filter(|(_, inner)| most > 0 && m.once(*inner)).find_map(|(l, inner)| {
        let (mut layers, scores) = peeled(m, inner, most - 1)?;
        layers.insert(0, l);
        Some((layers, scores))
    })
}
