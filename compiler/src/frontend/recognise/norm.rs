//! Roots of sums of powers: norms and deviations.

use super::matcher::{Matcher, Rewriter};
use crate::ir::ValueId;
use crate::ops::{Binary, Lowering, Op, Reduce, Scale, Select, Unary};
use precast_plan::{BinaryOp, ReduceOp, UnaryOp};
use smallvec::{SmallVec, smallvec};

/// `(c Σ xⁿ)^q` with 0 < q < 1, with a derivative of 0 where the sum is 0: torch.linalg.vector_norm,
/// torch.cdist and torch.std have it, and export as this. As written it is ∞ · 0 there.
pub fn norm(m: &Matcher, rw: &mut Rewriter) -> Option<SmallVec<[ValueId; 2]>> {
    let node = m.node();
    let y = node.outputs[0];
    let (v, q) = match m.unary(y, UnaryOp::Sqrt) {
        Some(v) => (v, 0.5),
        None => {
            let (v, q) = m.binary(y, BinaryOp::Pow)?;
            (v, m.number(q).filter(|q| 0.0 < *q && *q < 1.0)?)
        }
    };
    if !is_sum_of_powers(m, v) {
        return None;
    }
    let v = rw.get(v);
    let shape = rw.out.shape(v).to_vec();
    let (zero, unit) = (rw.full(node, 0.0, &shape), rw.full(node, 1.0, &shape));
    let none = rw.one(node, "none", Binary { f: BinaryOp::Eq }, &[v, zero]);
    let safe = rw.one(node, "safe", Select {}, &[none, unit, v]);
    // The exporter of torch.cdist writes 1 / (2 + 1e-6).
    let root = if (q - 0.5).abs() < 5e-7 {
        rw.one(node, "root", Unary { f: UnaryOp::Sqrt }, &[safe])
    } else {
        let q = rw.full(node, q as f32, &shape);
        rw.one(node, "root", Binary { f: BinaryOp::Pow }, &[safe, q])
    };
    Some(smallvec![rw.one(node, "", Select {}, &[none, zero, root])])
}

fn is_sum_of_powers(m: &Matcher, v: ValueId) -> bool {
    let mut v = v;
    loop {
        let n = m.graph.def(v);
        let positive = |v: ValueId| m.number(v).is_some_and(|c| c > 0.0);
        v = match &n.op {
            op if op.lowering() == Lowering::View => n.inputs[0],
            Op::Scale(Scale { by }) if by.0 > 0.0 => n.inputs[0],
            Op::Binary(Binary { f: BinaryOp::Mul | BinaryOp::Div }) if positive(n.inputs[1]) => {
                n.inputs[0]
            }
            Op::Binary(Binary { f: BinaryOp::Mul }) if positive(n.inputs[0]) => n.inputs[1],
            Op::Reduce(Reduce { f: ReduceOp::Sum, .. }) => return is_power(m, n.inputs[0]),
            _ => return false,
        };
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
