//! `softmax(scale · q kᵀ) v` under a mask that is added, or chosen by.

use super::matcher::{Matcher, Rewriter};
use crate::ir::{Graph, Real, ValueId, VarRole};
use crate::ops::{self, Attention, MatMul, Op};
use precast_plan::{BinaryOp, UnaryOp};
use smallvec::{SmallVec, smallvec};

/// One thing that is done to the scores before softmax.
#[derive(Clone, Copy)]
enum Layer {
    /// Adds a tensor of reals.
    Add(ValueId),
    /// Puts `fill` in the place of a score where the bool tensor is `hides`.
    Select { by: ValueId, hides: bool, fill: f64 },
}

/// Layers that may lie on the scores.
const LAYERS: usize = 4;

/// A score at most this is nothing beside another that is not hidden.
const NOTHING: f64 = -1e9;

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
    let causal = qs[rank - 2] <= vs[rank - 2] && matches!(layers[..], [l] if hides_future(m, l));
    if !causal && !representable(m, &layers) {
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
    if !causal && let Some((&outermost, _)) = layers.split_first() {
        let mask = match outermost {
            Layer::Select { fill: f, .. } if all_select(&layers) => {
                fill = Real(f);
                kept(m, rw, &layers)
            }
            _ => added(m, rw, &layers),
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
        let (by, a, b) = (n.inputs[0], n.inputs[1], n.inputs[2]);
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

/// Whether a layer hides exactly the keys behind each query, and every query has a score left beside
/// which what is hidden is nothing.
fn hides_future(m: &Matcher, l: Layer) -> bool {
    match l {
        Layer::Select { by, hides, fill } => {
            fill <= NOTHING
                && literal(m, by, |x| (x != 0.0) == hides).is_some_and(|h| is_causal(&h))
        }
        Layer::Add(mask) => {
            // Every element either hides or changes nothing.
            let clear = literal(m, mask, |x| x != 0.0 && (x > NOTHING || x.is_nan()));
            clear.is_some_and(|(_, c)| c.iter().all(|x| !x))
                && literal(m, mask, |x| x <= NOTHING).is_some_and(|h| is_causal(&h))
        }
    }
}

fn all_select(layers: &[Layer]) -> bool {
    let fill = |l: &Layer| match l {
        Layer::Select { fill, .. } => Some(*fill),
        Layer::Add(_) => None,
    };
    layers.iter().all(|l| fill(l).is_some_and(|f| Some(f) == fill(&layers[0])))
}

/// Whether one mask is the same as all layers, on every row and in its gradient: selections of one number,
/// or sums, among which a selection of −∞ may be. That of a finite number may not: where a row is of such
/// numbers alone they have probabilities, and a score that one of them replaced has no gradient.
fn representable(m: &Matcher, layers: &[Layer]) -> bool {
    let fits = |l: &Layer| match *l {
        // Attention's mask is data: a learned bias keeps its sum, and with it its gradient.
        Layer::Add(v) => !trained(m.graph, v),
        Layer::Select { fill, .. } => fill == f64::NEG_INFINITY,
    };
    let fills = |l: &Layer| matches!(l, Layer::Select { fill, .. } if *fill < f64::INFINITY);
    all_select(layers) && layers.iter().all(fills) || layers.iter().all(fits)
}

/// The bool mask of selections alone: true where all of them keep the score.
fn kept(m: &Matcher, rw: &mut Rewriter, layers: &[Layer]) -> ValueId {
    let mut mask = None;
    for l in layers {
        let Layer::Select { by, hides, .. } = *l else { unreachable!("selections alone") };
        let by = if hides { negated(m, rw, by) } else { rw.get(by) };
        mask = Some(match mask {
            None => by,
            Some(x) => together(m, rw, ops::Binary { f: BinaryOp::And }.into(), &[x, by]),
        });
    }
    mask.expect("a layer")
}

/// The sum of all layers, innermost first.
fn added(m: &Matcher, rw: &mut Rewriter, layers: &[Layer]) -> ValueId {
    let mut mask = None;
    for l in layers.iter().rev() {
        mask = Some(match (*l, mask) {
            (Layer::Add(v), None) => rw.get(v),
            (Layer::Add(v), Some(x)) => {
                let v = rw.get(v);
                together(m, rw, ops::Binary { f: BinaryOp::Add }.into(), &[x, v])
            }
            (Layer::Select { by, hides, fill }, x) => {
                let node = m.node();
                let by = rw.get(by);
                let full = rw.out.shape(by).to_vec();
                let x = x.unwrap_or_else(|| rw.full(node, 0.0, &full));
                let off = rw.full(node, fill as f32, &full);
                let (a, b) = if hides { (off, x) } else { (x, off) };
                together(m, rw, ops::Select {}.into(), &[by, a, b])
            }
        });
    }
    mask.expect("a layer")
}

/// An elementwise operation of tensors of one shape, on what they are broadcast from as far as all are.
fn together(m: &Matcher, rw: &mut Rewriter, op: Op, x: &[ValueId]) -> ValueId {
    let node = m.node();
    let full = rw.out.shape(x[0]).to_vec();
    let small: Vec<ValueId> = x.iter().map(|&v| unspread(&rw.out, v)).collect();
    let joint: Vec<usize> = (0..full.len())
        .map(|d| small.iter().map(|&v| rw.out.shape(v)[d]).max().expect("operands"))
        .collect();
    let spread = |rw: &mut Rewriter, v: ValueId, shape: &[usize]| {
        if rw.out.shape(v)[..] == *shape {
            return v;
        }
        rw.one(node, "broadcast", ops::Broadcast { shape: shape.to_vec() }, &[v])
    };
    let operands: Vec<ValueId> = small.into_iter().map(|v| spread(rw, v, &joint)).collect();
    let y = rw.one(node, "mask", op, &operands);
    spread(rw, y, &full)
}

/// A value before it was broadcast.
fn unspread(g: &Graph, v: ValueId) -> ValueId {
    match g.def(v).op {
        Op::Broadcast(_) => unspread(g, g.def(v).inputs[0]),
        _ => v,
    }
}

/// The negation of a bool tensor, where it is smallest.
fn negated(m: &Matcher, rw: &mut Rewriter, v: ValueId) -> ValueId {
    let n = m.graph.def(v);
    match &n.op {
        Op::Broadcast(_) | Op::Reshape(_) => {
            let x = negated(m, rw, n.inputs[0]);
            rw.one(m.node(), "kept", n.op.clone(), &[x])
        }
        Op::Unary(ops::Unary { f: UnaryOp::Not }) => rw.get(n.inputs[0]),
        _ => {
            let x = rw.get(v);
            rw.one(m.node(), "kept", ops::Unary { f: UnaryOp::Not }, &[x])
        }
    }
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
