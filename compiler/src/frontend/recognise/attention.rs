//! `softmax(scale · q kᵀ + mask) v`.

use super::matcher::{Matcher, Rewriter};
use crate::ir::{Graph, Node, Real, ValueId, VarRole};
use crate::ops::{self, Attention, MatMul, Op};
use precast_plan::BinaryOp;
use smallvec::{SmallVec, smallvec};

/// What is added to the scores.
enum Mask {
    None,
    Causal,
    /// A tensor of reals.
    Added(ValueId),
    /// Scores replaced by `fill` where the bool tensor is `hides`.
    Hidden {
        by: ValueId,
        hides: bool,
        fill: f64,
    },
}

/// A score at most this is nothing after softmax, whatever the others are.
const NOTHING: f64 = -1e4;

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
    if !(3..=4).contains(&rank) || !m.once(p) || !matches!(m.op(p), Op::Softmax(s) if !s.log) {
        return None;
    }
    let scores = m.graph.def(p).inputs[0];
    if !m.once(scores) {
        return None;
    }
    let (mask, scores) = masked(m, scores);
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
    let causal = matches!(mask, Mask::Causal);
    if causal && qs[rank - 2] > vs[rank - 2] {
        return None;
    }
    if let Mask::Added(v) = mask
        && trained(m.graph, v)
    {
        // Attention's mask is data: a learned bias keeps its sum, and with it its gradient.
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
    let full = four(m.graph.shape(scores));
    match mask {
        Mask::None | Mask::Causal => {}
        Mask::Added(a) => {
            let a = rw.get(a);
            inputs.push(rw.reshape(node, a, &full));
        }
        Mask::Hidden { by, hides, fill } => inputs.push(hidden(rw, node, by, hides, fill, &full)),
    }
    let masked = inputs.len() == 4;
    let op = Attention { scale: Real(scale), causal, masked };
    let o = rw.one(node, "", op, &inputs);
    Some(smallvec![rw.reshape(node, o, m.graph.shape(node.outputs[0]))])
}

/// The additive form of a bool mask.
fn hidden(
    rw: &mut Rewriter,
    node: &Node,
    by: ValueId,
    hides: bool,
    fill: f64,
    full: &[usize],
) -> ValueId {
    let by = rw.get(by);
    let by = rw.reshape(node, by, full);
    let (zero, off) = (rw.full(node, 0.0, full), rw.full(node, fill as f32, full));
    let (a, b) = if hides { (off, zero) } else { (zero, off) };
    rw.one(node, "mask", ops::Select {}, &[by, a, b])
}

/// Takes a mask off the scores.
fn masked(m: &Matcher, v: ValueId) -> (Mask, ValueId) {
    let n = m.graph.def(v);
    if let Op::Select(_) = n.op {
        let (by, a, b) = (n.inputs[0], n.inputs[1], n.inputs[2]);
        let (hides, fill, scores) = match (m.number(a), m.number(b)) {
            (Some(f), None) => (true, f, b),
            (None, Some(f)) => (false, f, a),
            _ => return (Mask::None, v),
        };
        if fill > NOTHING || !m.once(scores) {
            return (Mask::None, v);
        }
        if literal(m, by, |x| (x != 0.0) == hides).is_some_and(|h| is_causal(&h)) {
            return (Mask::Causal, scores);
        }
        return (Mask::Hidden { by, hides, fill }, scores);
    }
    if let Some((a, b)) = m.binary(v, BinaryOp::Add) {
        for (scores, mask) in [(a, b), (b, a)] {
            if !m.once(scores) || product(m, unscaled(m, scores).1).is_none() {
                continue;
            }
            // Causal only where every element either hides or changes nothing.
            let clear = literal(m, mask, |x| x != 0.0 && x > NOTHING);
            let binary = clear.is_some_and(|(_, c)| c.iter().all(|x| !x));
            if binary && literal(m, mask, |x| x <= NOTHING).is_some_and(|h| is_causal(&h)) {
                return (Mask::Causal, scores);
            }
            return (Mask::Added(mask), scores);
        }
    }
    (Mask::None, v)
}

/// A literal's extents and which of its elements satisfy `f`, seen through broadcasts.
fn literal(m: &Matcher, v: ValueId, f: impl Fn(f64) -> bool) -> Option<(Vec<usize>, Vec<bool>)> {
    let mut at = v;
    while let Op::Broadcast(_) = m.op(at) {
        at = m.graph.def(at).inputs[0];
    }
    let Op::Const(c) = m.op(at) else { return None };
    let values: Vec<f64> = match c.data.f32s() {
        Some(v) => v.into_iter().map(f64::from).collect(),
        None => c.data.ints()?.into_iter().map(|x| x as f64).collect(),
    };
    // The two score axes must not themselves be broadcast.
    let (small, full) = (&c.data.shape, m.graph.shape(v));
    let r = full.rank();
    (small.rank() == r && small[r - 2..] == full[r - 2..])
        .then(|| (small.to_vec(), values.into_iter().map(f).collect()))
}

/// Whether exactly the keys behind each query are hidden, in every batch and head.
fn is_causal((shape, hidden): &(Vec<usize>, Vec<bool>)) -> bool {
    let r = shape.len();
    let (tq, tk) = (shape[r - 2], shape[r - 1]);
    tq <= tk
        && hidden.iter().enumerate().all(|(i, &h)| {
            let (query, key) = (i / tk % tq, i % tk);
            h == (key > query + tk - tq)
        })
}

/// Whether a value depends on a parameter.
fn trained(g: &Graph, v: ValueId) -> bool {
    let mut seen = vec![false; g.node_count()];
    let mut work = vec![v];
    while let Some(v) = work.pop() {
        let id = g.value(v).node;
        if std::mem::replace(&mut seen[id.0 as usize], true) {
            continue;
        }
        let n = g.node(id);
        if let Op::Var(var) = &n.op
            && g.vars.get(&var.name).is_none_or(|v| v.role == VarRole::Param)
        {
            return true;
        }
        work.extend(&n.inputs);
    }
    false
}
