//! What lies on the scores of an attention before softmax: masks that are added or chosen by, what of
//! them is causality, and the one mask that says the rest.

use super::band::Bands;
use super::matcher::{Matcher, Rewriter};
use crate::ir::{Graph, Node, NodeId, ValueId, VarRole};
use crate::ops::range::Ranges;
use crate::ops::{self, Bounds, Op};
use crate::reference::rows::Scalar;
use precast_plan::{BinaryOp, UnaryOp};
use smallvec::SmallVec;
use std::cell::LazyCell;

/// One thing that is done to the scores before softmax.
#[derive(Clone)]
pub enum Layer {
    /// Adds a tensor of reals.
    Add(ValueId),
    /// Adds minus infinity where the bool tensor is `hides`, and 0 elsewhere.
    Hide { by: Chooser, hides: bool },
    /// Puts `fill` in the place of a score where the bool tensor is `hides`.
    Select { by: Chooser, hides: bool, fill: f64 },
}

/// A bool tensor, maybe behind movements that no node applies to it alone, outermost first.
#[derive(Clone)]
pub struct Chooser {
    value: ValueId,
    through: SmallVec<[NodeId; 2]>,
}

impl Chooser {
    pub fn of(value: ValueId) -> Chooser {
        Chooser { value, through: SmallVec::new() }
    }

    /// The tensor, or its negation, in the new graph.
    fn placed(&self, m: &Matcher, rw: &mut Rewriter, negate: bool) -> ValueId {
        let mut v = if negate { negated(m, rw, self.value) } else { rw.get(self.value) };
        for &n in self.through.iter().rev() {
            v = rw.one(m.node(), "mask", m.graph.node(n).op.clone(), &[v]);
        }
        v
    }
}

/// A score at most this is nothing beside another that is not hidden.
const NOTHING: f64 = -1e9;

/// How a layer hides the future.
struct Hidden {
    /// The largest number in the place of, or added to, what is hidden.
    most: f64,
    /// The same for the last key that a query sees: 0 where nothing is done to it.
    nearest: f64,
    /// Nothing but the future is hidden or changed.
    alone: bool,
}

/// What lies on the scores beside causality, where no query has a probability for a key that comes
/// after it, or a gradient through one, whatever the data are: query i sees keys j ≤ i + tk − tq.
///
/// Hidden is what is −∞ in the end. A finite number hides too, a long way below what any layer leaves
/// of some key that the query sees.
pub fn past(m: &Matcher, layers: &[Layer], (tq, tk): (i64, i64)) -> Option<Vec<Layer>> {
    let mut bands = Bands::new(m.graph);
    let layers: Vec<Layer> = layers.iter().flat_map(|l| split(m, l)).collect();
    let ranges = LazyCell::new(|| Ranges::of(m.graph, 1.0));
    let bounds = |v: ValueId| ranges.bounds[v.0 as usize];
    let (at, hidden) = layers.iter().enumerate().find_map(|(at, l)| {
        let h = hides_future(m, &mut bands, l, (tq, tk))?;
        let fine = if h.most == f64::NEG_INFINITY {
            stays_hidden(&layers, at, &bounds)
        } else {
            far_below(&layers, at, &h, &bounds)
        };
        fine.then_some((at, h))
    })?;
    let mut rest = layers;
    if hidden.alone {
        rest.remove(at);
    }
    Some(rest)
}

/// Whether what a layer makes −∞ is so after all others.
fn stays_hidden(layers: &[Layer], at: usize, bounds: &impl Fn(ValueId) -> Bounds) -> bool {
    let finite = |l: &Layer| matches!(l, Layer::Add(v) if bounds(*v).hi < f64::INFINITY);
    let outer = layers[..at].iter().all(|l| match l {
        Layer::Add(_) => finite(l),
        Layer::Hide { .. } => true,
        Layer::Select { fill, .. } => *fill == f64::NEG_INFINITY,
    });
    // ∞ below a selection is not seen; beside a term of −∞ it makes NaN.
    let summed = !matches!(layers[at], Layer::Select { .. });
    let inner = layers[at + 1..].iter().all(|l| match l {
        Layer::Add(_) => !summed || finite(l),
        Layer::Hide { .. } => true,
        Layer::Select { fill, .. } => !summed || *fill < f64::INFINITY,
    });
    outer && inner
}

/// Whether what a layer makes a finite number is nothing beside a key that every query sees: others
/// only add to the scores, and not so much.
fn far_below(
    layers: &[Layer],
    at: usize,
    hidden: &Hidden,
    bounds: &impl Fn(ValueId) -> Bounds,
) -> bool {
    let (mut most, mut least) = (hidden.most, hidden.nearest);
    for (k, l) in layers.iter().enumerate().filter(|(k, _)| *k != at) {
        let Layer::Add(v) = l else { return false };
        let b = bounds(*v);
        least += b.lo;
        // What a selection replaces is gone with all that was added to it.
        if k < at || matches!(layers[at], Layer::Add(_)) {
            most += b.hi;
        }
    }
    most - least <= NOTHING
}

/// How a layer hides all keys that come after each query, if it does.
fn hides_future(m: &Matcher, bands: &mut Bands, l: &Layer, (tq, tk): (i64, i64)) -> Option<Hidden> {
    let (first, last, future) = (1 - tq, tk - tq, tk - tq + 1..=tk - 1);
    let (by, hides, fill) = match l {
        Layer::Select { by, hides, fill } => (by, *hides, *fill),
        Layer::Hide { by, hides } => (by, *hides, f64::NEG_INFINITY),
        Layer::Add(mask) => return adds_to_future(bands, *mask, (tq, tk)),
    };
    let through: Vec<&Node> = by.through.iter().map(|n| m.graph.node(*n)).collect();
    let band = bands.of(by.value, &through)?;
    let hidden = |x: Scalar| x == Scalar::Bool(hides);
    let all = band.between(*future.start(), *future.end()).all(hidden);
    let alone = !band.between(first, last).any(hidden);
    let nearest = if hidden(band.at(last)) { fill } else { 0.0 };
    let is = all && fill <= NOTHING && (alone || !future.is_empty());
    is.then_some(Hidden { most: fill, nearest, alone })
}

/// [`hides_future`] of a tensor of reals that is added.
fn adds_to_future(bands: &mut Bands, mask: ValueId, (tq, tk): (i64, i64)) -> Option<Hidden> {
    let (first, last, future) = (1 - tq, tk - tq, tk - tq + 1..=tk - 1);
    let band = bands.of(mask, &[])?;
    let real = |x: Scalar| match x {
        Scalar::Real(x) => x,
        _ => f64::NAN,
    };
    let mut hidden = band.between(*future.start(), *future.end()).map(real);
    let most = hidden.try_fold(f64::NEG_INFINITY, |m, x| (x <= NOTHING).then(|| x.max(m)))?;
    let alone = band.between(first, last).all(|x| real(x) == 0.0);
    let hidden = Hidden { most, nearest: real(band.at(last)), alone };
    (alone || !future.is_empty()).then_some(hidden)
}

/// What several conditions hide together, one by one; a layer of one condition as it is.
fn split(m: &Matcher, l: &Layer) -> Vec<Layer> {
    let parts = |by: &Chooser, hides: bool, make: &dyn Fn(Chooser, bool) -> Layer| {
        let all = conditions(m, by, hides);
        match all.len() {
            1 => vec![l.clone()],
            _ => all.into_iter().map(|(by, hides)| make(by, hides)).collect(),
        }
    };
    match l {
        Layer::Select { by, hides, fill } => {
            parts(by, *hides, &|by, hides| Layer::Select { by, hides, fill: *fill })
        }
        Layer::Hide { by, hides } => parts(by, *hides, &|by, hides| Layer::Hide { by, hides }),
        Layer::Add(v) => match hiding(m, *v) {
            Some((by, hides)) => parts(&by, hides, &|by, hides| Layer::Hide { by, hides }),
            None => vec![l.clone()],
        },
    }
}

/// The conditions any of which hides, where they are joined so.
fn conditions(m: &Matcher, by: &Chooser, hides: bool) -> Vec<(Chooser, bool)> {
    let n = m.graph.def(by.value);
    let at = |v: ValueId| Chooser { value: v, through: by.through.clone() };
    match &n.op {
        Op::Unary(ops::Unary { f: UnaryOp::Not }) => conditions(m, &at(n.inputs[0]), !hides),
        Op::Binary(ops::Binary { f: BinaryOp::And }) if !hides => {
            n.inputs.iter().flat_map(|v| conditions(m, &at(*v), hides)).collect()
        }
        Op::Binary(ops::Binary { f: BinaryOp::Or }) if hides => {
            n.inputs.iter().flat_map(|v| conditions(m, &at(*v), hides)).collect()
        }
        Op::Broadcast(_) | Op::Reshape(_) => {
            let mut inner = at(n.inputs[0]);
            inner.through.push(m.graph.value(by.value).node);
            conditions(m, &inner, hides)
        }
        _ => vec![(by.clone(), hides)],
    }
}

/// What a sum of 0 and minus infinity is chosen by.
fn hiding(m: &Matcher, v: ValueId) -> Option<(Chooser, bool)> {
    let (mut v, mut through) = (v, SmallVec::new());
    while let Op::Broadcast(_) | Op::Reshape(_) = m.op(v) {
        through.push(m.graph.value(v).node);
        v = m.graph.def(v).inputs[0];
    }
    let (Op::Select(_), [by, a, b]) = (m.op(v), &m.graph.def(v).inputs[..]) else { return None };
    let by = Chooser { value: *by, through };
    match (m.number(*a)?, m.number(*b)?) {
        (0.0, f64::NEG_INFINITY) => Some((by, false)),
        (f64::NEG_INFINITY, 0.0) => Some((by, true)),
        _ => None,
    }
}

/// Whether all layers are selections of one number.
pub fn all_select(layers: &[Layer]) -> bool {
    let fill = |l: &Layer| match l {
        Layer::Select { fill, .. } => Some(*fill),
        Layer::Add(_) | Layer::Hide { .. } => None,
    };
    layers.iter().all(|l| fill(l).is_some_and(|f| Some(f) == fill(&layers[0])))
}

/// Whether one mask is the same as all layers, on every row and in its gradient: selections of one number,
/// or sums, among which a selection of −∞ may be. That of a finite number may not: where a row is of such
/// numbers alone they have probabilities, and a score that one of them replaced has no gradient.
pub fn representable(m: &Matcher, layers: &[Layer]) -> bool {
    let fits = |l: &Layer| match *l {
        // Attention's mask is data: a learned bias keeps its sum, and with it its gradient.
        Layer::Add(v) => !trained(m.graph, v),
        Layer::Hide { .. } => true,
        Layer::Select { fill, .. } => fill == f64::NEG_INFINITY,
    };
    let fills = |l: &Layer| matches!(l, Layer::Select { fill, .. } if *fill < f64::INFINITY);
    all_select(layers) && layers.iter().all(fills) || layers.iter().all(fits)
}

/// The bool mask of selections alone: true where all of them keep the score.
pub fn kept(m: &Matcher, rw: &mut Rewriter, layers: &[Layer]) -> ValueId {
    let mut mask = None;
    for l in layers {
        let Layer::Select { by, hides, .. } = l else { unreachable!("selections alone") };
        let by = by.placed(m, rw, *hides);
        mask = Some(match mask {
            None => by,
            Some(x) => together(m, rw, ops::Binary { f: BinaryOp::And }.into(), &[x, by]),
        });
    }
    mask.expect("a layer")
}

/// The sum of all layers, innermost first.
pub fn added(m: &Matcher, rw: &mut Rewriter, layers: &[Layer]) -> ValueId {
    let mut mask = None;
    for l in layers.iter().rev() {
        mask = Some(match (l, mask) {
            (Layer::Add(v), None) => rw.get(*v),
            (Layer::Add(v), Some(x)) => {
                let v = rw.get(*v);
                together(m, rw, ops::Binary { f: BinaryOp::Add }.into(), &[x, v])
            }
            (Layer::Hide { by, hides }, x) => {
                let node = m.node();
                let by = by.placed(m, rw, false);
                let full = rw.out.shape(by).to_vec();
                let (zero, off) =
                    (rw.full(node, 0.0, &full), rw.full(node, f32::NEG_INFINITY, &full));
                let (a, b) = if *hides { (off, zero) } else { (zero, off) };
                let v = together(m, rw, ops::Select {}.into(), &[by, a, b]);
                match x {
                    None => v,
                    Some(x) => together(m, rw, ops::Binary { f: BinaryOp::Add }.into(), &[x, v]),
                }
            }
            (Layer::Select { by, hides, fill }, x) => {
                let node = m.node();
                let by = by.placed(m, rw, false);
                let full = rw.out.shape(by).to_vec();
                let x = x.unwrap_or_else(|| rw.full(node, 0.0, &full));
                let off = rw.full(node, *fill as f32, &full);
                let (a, b) = if *hides { (off, x) } else { (x, off) };
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
