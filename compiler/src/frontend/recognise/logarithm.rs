//! Logarithms and exponentials that cancel or overflow as written, in their stable forms.
//!
//! What is written reads f32 values that have rounded to 0, 1 or infinity; the stable form is the
//! same function of the argument, right in value and derivative wherever the result is finite.

use super::matcher::{Matcher, Rewriter};
use crate::ir::{Node, ValueId};
use crate::ops::activation::Act;
use crate::ops::{Activate, Binary, LogSumExp, Lowering, Op, Reduce, Select, Softmax, Unary};
use precast_plan::{BinaryOp, ReduceOp, UnaryOp};
use smallvec::{SmallVec, smallvec};

type Found = Option<SmallVec<[ValueId; 2]>>;

/// `x` of `−x`, however that is written.
fn negated(m: &Matcher, v: ValueId) -> Option<ValueId> {
    if let Some(x) = m.unary(v, UnaryOp::Neg) {
        return Some(x);
    }
    match m.op(v) {
        Op::Scale(s) if s.by.0 == -1.0 => Some(m.graph.def(v).inputs[0]),
        _ => None,
    }
}

/// `1 / (1 + exp(−x))`, whose exponential may be infinite and gives 0 · ∞ when differentiated.
pub fn sigmoid(m: &Matcher, rw: &mut Rewriter) -> Found {
    let node = m.node();
    let y = node.outputs[0];
    let below = match m.unary(y, UnaryOp::Recip) {
        Some(v) => v,
        None => {
            let (one, v) = m.binary(y, BinaryOp::Div)?;
            (m.number(one) == Some(1.0)).then_some(v)?
        }
    };
    let (e, one) = m.plus(below)?;
    let u = m.unary(e, UnaryOp::Exp).filter(|_| one == 1.0)?;
    let x = match negated(m, u) {
        Some(x) => rw.get(x),
        None => {
            let u = rw.get(u);
            rw.one(node, "neg", Unary { f: UnaryOp::Neg }, &[u])
        }
    };
    Some(smallvec![rw.one(node, "", Unary { f: UnaryOp::Sigmoid }, &[x])])
}

/// `exp(x) − 1`.
pub fn expm1(m: &Matcher, rw: &mut Rewriter) -> Found {
    let node = m.node();
    let y = node.outputs[0];
    let e = match m.binary(y, BinaryOp::Sub) {
        Some((e, one)) => (m.number(one) == Some(1.0)).then_some(e)?,
        None => m.plus(y).filter(|(_, c)| *c == -1.0)?.0,
    };
    let x = rw.get(m.unary(e, UnaryOp::Exp)?);
    Some(smallvec![rw.one(node, "", Unary { f: UnaryOp::Expm1 }, &[x])])
}

/// Logarithms of a sigmoid, of one minus it, of a softmax, of sums of exponentials, of 1 + x.
pub fn logarithm(m: &Matcher, rw: &mut Rewriter) -> Found {
    let node = m.node();
    let v = m.unary(node.outputs[0], UnaryOp::Log)?;
    if let Some(x) = m.unary(v, UnaryOp::Sigmoid) {
        // log σ(x) = −softplus(−x).
        let x = rw.get(x);
        let x = rw.one(node, "minus", Unary { f: UnaryOp::Neg }, &[x]);
        return Some(smallvec![minus_softplus(rw, node, x)]);
    }
    if let Some(x) = rest_of_sigmoid(m, v) {
        // log (1 − σ(x)) = −softplus(x).
        let x = rw.get(x);
        return Some(smallvec![minus_softplus(rw, node, x)]);
    }
    if let Some((x, one)) = m.plus(v)
        && one == 1.0
    {
        let act = Activate { act: Act::Softplus };
        return Some(smallvec![match m.unary(x, UnaryOp::Exp) {
            Some(u) => {
                let u = rw.get(u);
                rw.one(node, "", act, &[u])
            }
            None => {
                let x = rw.get(x);
                rw.one(node, "", Unary { f: UnaryOp::Log1p }, &[x])
            }
        }]);
    }
    if let Some((a, b)) = m.binary(v, BinaryOp::Add)
        && let (Some(a), Some(b)) = (m.unary(a, UnaryOp::Exp), m.unary(b, UnaryOp::Exp))
    {
        let (a, b) = (rw.get(a), rw.get(b));
        return Some(smallvec![log_add_exp(rw, node, a, b)]);
    }
    // Below movements of elements, which a logarithm commutes with.
    let (at, views) = beneath(m, v);
    let def = m.graph.def(at);
    let y = match &def.op {
        Op::Softmax(Softmax { log: false }) => {
            let x = rw.get(def.inputs[0]);
            let suffix = if views.is_empty() { "" } else { "log_softmax" };
            rw.one(node, suffix, Softmax { log: true }, &[x])
        }
        Op::Reduce(Reduce { f: ReduceOp::Sum, axes }) => {
            let x = rw.get(m.unary(def.inputs[0], UnaryOp::Exp)?);
            // The extremum of no elements does not exist.
            if axes.iter().any(|&a| rw.out.shape(x)[a] == 0) {
                return None;
            }
            let suffix = if views.is_empty() { "" } else { "log_sum_exp" };
            rw.one(node, suffix, LogSumExp { axes: axes.clone() }, &[x])
        }
        _ => return None,
    };
    let last = views.len();
    let moved = views.iter().rev().enumerate().fold(y, |y, (k, op)| {
        let suffix = if k + 1 == last { "" } else { "moved" };
        rw.one(node, suffix, (*op).clone(), &[y])
    });
    Some(smallvec![moved])
}

/// `x` of `1 − σ(x)`.
fn rest_of_sigmoid(m: &Matcher, v: ValueId) -> Option<ValueId> {
    let s = match m.binary(v, BinaryOp::Sub) {
        Some((one, s)) => (m.number(one) == Some(1.0)).then_some(s)?,
        None => {
            let (minus, one) = m.plus(v)?;
            negated(m, minus).filter(|_| one == 1.0)?
        }
    };
    m.unary(s, UnaryOp::Sigmoid)
}

fn minus_softplus(rw: &mut Rewriter, node: &Node, x: ValueId) -> ValueId {
    let y = rw.one(node, "softplus", Activate { act: Act::Softplus }, &[x]);
    rw.one(node, "", Unary { f: UnaryOp::Neg }, &[y])
}

/// `log (exp a + exp b) = max(a, b) + softplus(−|a − b|)`. Where both are one infinity their
/// difference is not taken. At a = b each has half of the derivative, by the maximum's rule.
fn log_add_exp(rw: &mut Rewriter, node: &Node, a: ValueId, b: ValueId) -> ValueId {
    let shape = rw.out.shape(a).to_vec();
    let bin =
        |rw: &mut Rewriter, suffix: &str, f, a, b| rw.one(node, suffix, Binary { f }, &[a, b]);
    let most = bin(rw, "max", BinaryOp::Max, a, b);
    let equal = bin(rw, "equal", BinaryOp::Eq, a, b);
    let d = bin(rw, "difference", BinaryOp::Sub, a, b);
    let zero = rw.full(node, 0.0, &shape);
    let d = rw.one(node, "apart", Select {}, &[equal, zero, d]);
    let d = rw.one(node, "abs", Unary { f: UnaryOp::Abs }, &[d]);
    let d = rw.one(node, "minus", Unary { f: UnaryOp::Neg }, &[d]);
    let s = rw.one(node, "softplus", Activate { act: Act::Softplus }, &[d]);
    bin(rw, "", BinaryOp::Add, most, s)
}

/// The value that movements make this one of, and those, last first.
fn beneath<'a>(m: &Matcher<'a>, v: ValueId) -> (ValueId, Vec<&'a Op>) {
    let (mut v, mut views) = (v, vec![]);
    while m.op(v).lowering() == Lowering::View {
        views.push(m.op(v));
        v = m.graph.def(v).inputs[0];
    }
    (v, views)
}

/// `x − extremum(x)`, as softmax is written out, to an extremum that shares its cotangent: what
/// reaches x through it is 0 in all, however ties are shared, and recognised forms have that one.
pub fn centring(m: &Matcher, rw: &mut Rewriter) -> Found {
    let node = m.node();
    let Op::Extremum(e) = &node.op else { return None };
    let x = node.inputs[0];
    let mut ends = vec![node.outputs[0]];
    while let Some(v) = ends.pop() {
        if m.kept[v.0 as usize] {
            return None;
        }
        for &(reader, slot) in &m.uses[v.0 as usize] {
            let reader = m.graph.node(reader);
            match &reader.op {
                op if op.lowering() == Lowering::View => ends.push(reader.outputs[0]),
                Op::Binary(Binary { f: BinaryOp::Sub }) if slot == 1 && reader.inputs[0] == x => {}
                _ => return None,
            }
        }
    }
    let x = rw.get(x);
    Some(smallvec![rw.one(node, "", Reduce { f: e.f, axes: vec![e.axis] }, &[x])])
}
