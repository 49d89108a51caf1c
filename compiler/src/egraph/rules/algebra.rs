//! Neutral elements, factors, sums of repeated values.

use super::{Rule, Rw};
use crate::ir::Real;
use crate::ops::{MatMul, Op, Scale, matmul::Fused};
use egg::Id;
use precast_plan::{BinaryOp, ReduceOp, UnaryOp};

pub static RULES: &[Rule] = &[
    Rule { name: "add-zero", exact: true, root: "binary", apply: add_zero },
    Rule { name: "multiply-by-literal", exact: true, root: "binary", apply: mul_literal },
    Rule { name: "divide-by-literal", exact: false, root: "binary", apply: div_literal },
    Rule { name: "negate-twice", exact: true, root: "unary", apply: negate_twice },
    Rule { name: "scale-by-one", exact: true, root: "scale", apply: scale_one },
    Rule { name: "scale-of-scale", exact: false, root: "scale", apply: scale_twice },
    Rule { name: "scale-into-product", exact: false, root: "scale", apply: scale_product },
    Rule { name: "sum-of-broadcast", exact: false, root: "reduce", apply: sum_of_broadcast },
];

/// `x + 0`, `x − 0`. Exact but for the sign of a zero.
fn add_zero(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let Op::Binary(b) = op else { return };
    let zero = |rw: &Rw, i: usize| rw.facts(x[i]).splat() == Some(0.0);
    if matches!(b.f, BinaryOp::Add | BinaryOp::Sub) && zero(rw, 1) {
        rw.unite(id, x[0]);
    } else if b.f == BinaryOp::Add && zero(rw, 0) {
        rw.unite(id, x[1]);
    }
}

fn mul_literal(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let Op::Binary(b) = op else { return };
    if b.f != BinaryOp::Mul {
        return;
    }
    for (factor, other) in [(x[0], x[1]), (x[1], x[0])] {
        if let Some(c) = rw.facts(factor).splat()
            && c.is_finite()
        {
            let y = rw.add(Scale { by: Real(f64::from(c)) }, &[other]);
            rw.unite(id, y);
        }
    }
}

fn div_literal(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let Op::Binary(b) = op else { return };
    if b.f != BinaryOp::Div {
        return;
    }
    if let Some(c) = rw.facts(x[1]).splat() {
        let by = 1.0 / f64::from(c);
        // A reciprocal that f32 does not hold as a normal number would change the result.
        if (by.abs() as f32).is_normal() {
            let y = rw.add(Scale { by: Real(by) }, &[x[0]]);
            rw.unite(id, y);
        }
    }
}

fn negate_twice(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let negates = |op: &Op| matches!(op, Op::Unary(u) if u.f == UnaryOp::Neg).then_some(());
    if negates(op).is_some() {
        for (_, inner) in rw.nodes(x[0], negates) {
            rw.unite(id, inner[0]);
        }
    }
}

fn scale_one(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    if matches!(op, Op::Scale(s) if s.by.0 == 1.0) {
        rw.unite(id, x[0]);
    }
}

fn scale_twice(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let Op::Scale(outer) = op else { return };
    let scales = |op: &Op| if let Op::Scale(s) = op { Some(s.by.0) } else { None };
    for (inner, y) in rw.nodes(x[0], scales) {
        let by = inner * outer.by.0;
        if (by.abs() as f32).is_normal() {
            let y = rw.add(Scale { by: Real(by) }, &y);
            rw.unite(id, y);
        }
    }
}

/// `c (a b) = (c a) b` for the operand that has fewer elements than the product.
fn scale_product(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let Op::Scale(scale) = op else { return };
    let plain = |op: &Op| matches!(op, Op::MatMul(m) if m.fused == Fused::None).then_some(());
    for (_, ab) in rw.nodes(x[0], plain) {
        let size = |rw: &Rw, id: Id| rw.facts(id).ty().shape.elements();
        let side = usize::from(size(rw, ab[1]) < size(rw, ab[0]));
        if size(rw, ab[side]) < size(rw, id) {
            let mut ab = ab;
            ab[side] = rw.add(scale.clone(), &[ab[side]]);
            let y = rw.add(MatMul::plain(), &ab);
            rw.unite(id, y);
        }
    }
}

/// A sum over axes along which the operand repeats.
fn sum_of_broadcast(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let Op::Reduce(r) = op else { return };
    if r.f != ReduceOp::Sum {
        return;
    }
    let wide = rw.shape(x[0]);
    for (_, inner) in rw.nodes(x[0], |op| matches!(op, Op::Broadcast(_)).then_some(())) {
        let small = rw.shape(inner[0]);
        let elsewhere = (0..wide.len()).any(|d| !r.axes.contains(&d) && small[d] != wide[d]);
        if elsewhere || r.axes.iter().any(|&d| small[d] != 1) {
            continue;
        }
        let count: usize = r.axes.iter().map(|&d| wide[d]).product();
        let target = rw.shape(id);
        let flat = rw.reshape(inner[0], &target);
        let y = rw.add(Scale { by: Real(count as f64) }, &[flat]);
        rw.unite(id, y);
    }
}
