//! Roots of sums of powers, and of products of such sums: norms, deviations, and products of norms.

use super::matcher::{Matcher, Rewriter};
use crate::ir::{Node, Real, ValueId};
use crate::ops::activation::Act;
use crate::ops::{Activate, Binary, Lowering, Op, Reduce, Scale, Select, Unary};
use precast_plan::{BinaryOp, ReduceOp, UnaryOp};
use smallvec::{SmallVec, smallvec};
use std::collections::BTreeSet;

/// `(c Σ xⁿ)^q` with 0 < |q| < 1, and the same of products of such sums, with a derivative of 0 where a
/// sum is 0: torch.linalg.vector_norm, torch.cdist, torch.std and torch.cosine_similarity have it, and
/// export as this. As written it is ∞ · 0 there. A product's root is the product of the roots, whose
/// factors do not overflow or vanish together.
pub fn norm(m: &Matcher, rw: &mut Rewriter) -> Option<SmallVec<[ValueId; 2]>> {
    let (of, q) = power(m, m.node().outputs[0])?;
    let mut f = Factors { by: 1.0, all: vec![] };
    of.iter().for_each(|&v| f.take_apart(m, v));
    if !f.all.iter().any(|&v| is_sum_of_powers(m, v)) {
        return None;
    }
    match (&of[..], &f.all[..]) {
        (&[v], [_]) => Some(guarded(m, rw, v, q)),
        (_, all) if !all.iter().all(|&v| is_never_negative(m, v)) => None,
        _ if q > 0.0 => Some(f.root(m, rw, q)),
        _ => Some(f.inverse_root(m, rw, q)),
    }
}

/// Values whose product a value is a power of, and the exponent.
fn power(m: &Matcher, y: ValueId) -> Option<(Vec<ValueId>, f64)> {
    if let Some(v) = root(m, y) {
        return Some((vec![v], 0.5));
    }
    if let Some(v) = m.unary(y, UnaryOp::Rsqrt) {
        return Some((vec![v], -0.5));
    }
    if let Some((v, q)) = m.binary(y, BinaryOp::Pow) {
        let q = m.number(q).filter(|q| 0.0 < q.abs() && q.abs() < 1.0)?;
        return Some((vec![v], q));
    }
    let (mut of, mut work) = (vec![], vec![m.inverse(y)?]);
    while let Some(v) = work.pop() {
        match m.binary(v, BinaryOp::Mul) {
            Some((a, b)) => work.extend([b, a]),
            None => of.push(root(m, v)?),
        }
    }
    Some((of, -0.5))
}

fn root(m: &Matcher, v: ValueId) -> Option<ValueId> {
    let half = |q: ValueId| m.number(q) == Some(0.5);
    m.unary(v, UnaryOp::Sqrt)
        .or_else(|| m.binary(v, BinaryOp::Pow).filter(|(_, q)| half(*q)).map(|(v, _)| v))
}

/// A positive number times values of the old graph.
struct Factors {
    by: f64,
    all: Vec<ValueId>,
}

impl Factors {
    fn take_apart(&mut self, m: &Matcher, v: ValueId) {
        let mut work = vec![v];
        while let Some(v) = work.pop() {
            let n = m.graph.def(v);
            match &n.op {
                Op::Scale(Scale { by }) if by.0 > 0.0 => {
                    self.by *= by.0;
                    work.push(n.inputs[0]);
                }
                Op::Binary(Binary { f: BinaryOp::Mul }) if !is_power(m, v) && m.once(v) => {
                    work.extend(n.inputs.iter().rev());
                }
                _ => match m.number(v) {
                    Some(c) if c > 0.0 => self.by *= c,
                    _ => self.all.push(v),
                },
            }
        }
    }

    /// The product of each factor's root; NaN in one is NaN in all.
    fn root(&self, m: &Matcher, rw: &mut Rewriter, q: f64) -> SmallVec<[ValueId; 2]> {
        let node = m.node();
        let mut roots = vec![];
        for &v in &self.all {
            let guard = is_sum_of_powers(m, v);
            let v = rw.get(v);
            if !guard {
                roots.push(raised(node, rw, v, q));
                continue;
            }
            let Safe { none, safe, zero } = safe(node, rw, v);
            let root = raised(node, rw, safe, q);
            roots.push(rw.one(node, "norm", Select {}, &[none, zero, root]));
        }
        smallvec![self.times(node, rw, roots, q, "")]
    }

    /// The root's inverse: infinite where a factor is 0. Nothing flows back from there, neither to that
    /// factor nor, as 0 · ∞, to the others.
    fn inverse_root(&self, m: &Matcher, rw: &mut Rewriter, q: f64) -> SmallVec<[ValueId; 2]> {
        let node = m.node();
        let bin = |rw: &mut Rewriter, f, a, b| rw.one(node, "none", Binary { f }, &[a, b]);
        let (mut some, mut all, mut roots) = (None, None, vec![]);
        for &v in &self.all {
            let v = rw.get(v);
            let Safe { none, safe, .. } = safe(node, rw, v);
            roots.push(raised(node, rw, safe, q));
            some = Some(some.map_or(none, |n| bin(rw, BinaryOp::Or, n, none)));
            all = Some(all.map_or(v, |p| bin(rw, BinaryOp::Mul, p, v)));
        }
        let (some, all) = (some.expect("a factor"), all.expect("a factor"));
        let shape = rw.out.shape(all).to_vec();
        let (zero, infinite) = (rw.full(node, 0.0, &shape), rw.full(node, f32::INFINITY, &shape));
        // Not where another factor is NaN.
        let whole = bin(rw, BinaryOp::Eq, all, zero);
        let none = bin(rw, BinaryOp::And, some, whole);
        let y = self.times(node, rw, roots, q, "finite");
        smallvec![rw.one(node, "", Select {}, &[none, infinite, y])]
    }

    fn times(
        &self,
        node: &Node,
        rw: &mut Rewriter,
        mut roots: Vec<ValueId>,
        q: f64,
        suffix: &str,
    ) -> ValueId {
        let by = self.by.powf(q);
        let last = if by == 1.0 { roots.pop() } else { None };
        let mul = |rw: &mut Rewriter, suffix: &str, a, b| {
            rw.one(node, suffix, Binary { f: BinaryOp::Mul }, &[a, b])
        };
        let y = roots.into_iter().reduce(|a, b| mul(rw, "product", a, b)).expect("two factors");
        match last {
            Some(last) => mul(rw, suffix, y, last),
            None => rw.one(node, suffix, Scale { by: Real(by) }, &[y]),
        }
    }
}

/// The power of one value, whatever it is made of.
fn guarded(m: &Matcher, rw: &mut Rewriter, v: ValueId, q: f64) -> SmallVec<[ValueId; 2]> {
    let node = m.node();
    let v = rw.get(v);
    let Safe { none, safe, zero } = safe(node, rw, v);
    let root = raised(node, rw, safe, q);
    let there = match q > 0.0 {
        true => zero,
        false => {
            let shape = rw.out.shape(v).to_vec();
            rw.full(node, f32::INFINITY, &shape)
        }
    };
    smallvec![rw.one(node, "", Select {}, &[none, there, root])]
}

struct Safe {
    /// Where a value is 0.
    none: ValueId,
    /// The value, 1 where it is 0.
    safe: ValueId,
    zero: ValueId,
}

fn safe(node: &Node, rw: &mut Rewriter, v: ValueId) -> Safe {
    let shape = rw.out.shape(v).to_vec();
    let (zero, unit) = (rw.full(node, 0.0, &shape), rw.full(node, 1.0, &shape));
    let none = rw.one(node, "none", Binary { f: BinaryOp::Eq }, &[v, zero]);
    Safe { none, safe: rw.one(node, "safe", Select {}, &[none, unit, v]), zero }
}

fn raised(node: &Node, rw: &mut Rewriter, v: ValueId, q: f64) -> ValueId {
    // The exporter of torch.cdist writes 1 / (2 + 1e-6).
    let near = |c: f64| (q - c).abs() < 5e-7;
    if near(0.5) {
        return rw.one(node, "root", Unary { f: UnaryOp::Sqrt }, &[v]);
    }
    if near(-0.5) {
        return rw.one(node, "root", Unary { f: UnaryOp::Rsqrt }, &[v]);
    }
    let shape = rw.out.shape(v).to_vec();
    let q = rw.full(node, q as f32, &shape);
    rw.one(node, "root", Binary { f: BinaryOp::Pow }, &[v, q])
}

/// A sum of powers of tensors, or a product of such sums, times positive numbers.
fn is_sum_of_powers(m: &Matcher, v: ValueId) -> bool {
    every(m, v, |v, n| {
        if is_power(m, v) {
            return Some(&[]);
        }
        let positive = |v: ValueId| m.number(v).is_some_and(|c| c > 0.0);
        match &n.op {
            op if op.lowering() == Lowering::View => Some(&n.inputs),
            Op::Scale(Scale { by }) if by.0 > 0.0 => Some(&n.inputs),
            Op::Binary(Binary { f: BinaryOp::Mul | BinaryOp::Div }) if positive(n.inputs[1]) => {
                Some(&n.inputs[..1])
            }
            Op::Binary(Binary { f: BinaryOp::Mul }) if positive(n.inputs[0]) => {
                Some(&n.inputs[1..])
            }
            Op::Binary(Binary { f: BinaryOp::Add | BinaryOp::Mul }) => Some(&n.inputs),
            Op::Reduce(Reduce { f: ReduceOp::Sum, .. }) => Some(&n.inputs),
            // What leaves numbers from 0 on as they are.
            Op::Activate(Activate { act: Act::Relu }) => Some(&n.inputs),
            Op::Unary(Unary { f: UnaryOp::Abs }) => Some(&n.inputs),
            _ => floor(m, v).filter(|(_, c)| *c <= 0.0).map(|(i, _)| &n.inputs[i..=i]),
        }
    })
}

/// What is not below 0 by how it is made.
fn is_never_negative(m: &Matcher, v: ValueId) -> bool {
    every(m, v, |v, n| {
        if m.number(v).is_some_and(|c| c >= 0.0) {
            return Some(&[]);
        }
        let even = |v: ValueId| m.number(v).is_some_and(|n| n % 2.0 == 0.0);
        match &n.op {
            op if op.lowering() == Lowering::View => Some(&n.inputs),
            Op::Scale(Scale { by }) if by.0 >= 0.0 => Some(&n.inputs),
            Op::Binary(Binary { f: BinaryOp::Mul }) if n.inputs[0] == n.inputs[1] => Some(&[]),
            Op::Binary(Binary { f: BinaryOp::Pow }) if even(n.inputs[1]) => Some(&[]),
            Op::Binary(Binary { f: BinaryOp::Pow }) => Some(&n.inputs[..1]),
            Op::Binary(Binary { f: BinaryOp::Add | BinaryOp::Mul | BinaryOp::Div }) => {
                Some(&n.inputs)
            }
            Op::Reduce(Reduce { f: ReduceOp::Sum, .. }) => Some(&n.inputs),
            Op::Activate(Activate { act: Act::Relu | Act::Softplus })
            | Op::Unary(Unary { f: UnaryOp::Abs | UnaryOp::Exp | UnaryOp::Sigmoid }) => Some(&[]),
            _ => match floor(m, v) {
                Some((_, c)) if c >= 0.0 => Some(&[]),
                Some((i, _)) => Some(&n.inputs[i..=i]),
                None => None,
            },
        }
    })
}

/// Whether `f` has an answer for a value and, in turn, for all that it names.
fn every<'g>(
    m: &Matcher<'g>,
    v: ValueId,
    f: impl Fn(ValueId, &'g Node) -> Option<&'g [ValueId]>,
) -> bool {
    let (mut seen, mut work) = (BTreeSet::new(), vec![v]);
    while let Some(v) = work.pop() {
        if seen.insert(v) {
            match f(v, m.graph.def(v)) {
                Some(more) => work.extend(more),
                None => return false,
            }
        }
    }
    true
}

/// Which operand a value is at least where that is above a number, and the number.
fn floor(m: &Matcher, v: ValueId) -> Option<(usize, f64)> {
    let n = m.graph.def(v);
    match &n.op {
        Op::Binary(Binary { f: BinaryOp::Max }) => match m.number(n.inputs[1]) {
            Some(c) => Some((0, c)),
            None => Some((1, m.number(n.inputs[0])?)),
        },
        // A clamp, as import writes it.
        Op::Select(_) => {
            let (x, at) = m.binary(n.inputs[0], BinaryOp::Le)?;
            (n.inputs[1] == at && n.inputs[2] == x).then_some((2, m.number(at)?))
        }
        _ => None,
    }
}

fn is_power(m: &Matcher, v: ValueId) -> bool {
    if let Some((_, n)) = m.binary(v, BinaryOp::Pow) {
        return m.number(n).is_some_and(|n| n > 1.0);
    }
    let Some((a, b)) = m.binary(v, BinaryOp::Mul) else { return false };
    // A third power is the square times its root once more.
    a == b || m.binary(a, BinaryOp::Mul).is_some_and(|(c, _)| c == b && is_power(m, a))
}
