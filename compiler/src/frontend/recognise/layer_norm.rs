//! Layer and RMS normalisation: first the core with unit weights, then its scale and shift.

use super::matcher::{Matcher, Rewriter};
use crate::ir::{Real, Shape, ValueId};
use crate::ops::{LayerNorm, Op};
use precast_plan::{BinaryOp, UnaryOp};
use smallvec::{SmallVec, smallvec};

/// `c · (mean(c²) + eps)^(−½)` with c = x − mean(x), or c = x (RMS); as a quotient by the root, or
/// a product with its reciprocal, which exporters write as a quotient of 1 too.
pub fn core(m: &Matcher, rw: &mut Rewriter) -> Option<SmallVec<[ValueId; 2]>> {
    let node = m.node();
    let y = node.outputs[0];
    let mut options: SmallVec<[(ValueId, ValueId, bool); 2]> = smallvec![];
    if let Some((a, b)) = m.binary(y, BinaryOp::Div) {
        options.push((a, b, false));
    } else if let Some((a, b)) = m.binary(y, BinaryOp::Mul) {
        options.extend([(a, b, true), (b, a, true)]);
    }
    options.into_iter().find_map(|(c, r, inverse)| found(m, rw, c, r, inverse))
}

fn found(
    m: &Matcher,
    rw: &mut Rewriter,
    c: ValueId,
    r: ValueId,
    inverse: bool,
) -> Option<SmallVec<[ValueId; 2]>> {
    let mut interior = vec![];
    let mut step = |v: ValueId| -> Option<ValueId> { m.unspread(v, &mut interior) };
    let mut v = step(r)?;
    let mut used = vec![v];
    if inverse {
        match m.unary(v, UnaryOp::Rsqrt) {
            Some(u) => v = step(u)?,
            None => {
                let root = step(m.inverse(v)?)?;
                used.push(root);
                v = step(m.unary(root, UnaryOp::Sqrt)?)?;
            }
        }
    } else {
        v = step(m.unary(v, UnaryOp::Sqrt)?)?;
    }
    used.push(v);
    interior.extend(used);
    let (var, eps) = m.plus(v)?;
    let (square, axes) = m.mean(var, &mut interior)?;
    let (a, b) = m.binary(square, BinaryOp::Mul)?;
    if a != c || b != c || eps < 0.0 {
        return None;
    }
    interior.push(square);
    let mut x = c;
    if let Some((whole, mean)) = m.binary(c, BinaryOp::Sub) {
        let mut side = vec![c];
        if let Some((from, k)) = m.mean(mean, &mut side)
            && from == whole
            && k == axes
        {
            interior.extend(side);
            x = whole;
        }
    }
    if !m.private(&interior) {
        return None;
    }
    let shape = m.graph.shape(x);
    let cols = shape[shape.rank() - axes..].to_vec();
    let node = m.node();
    let center = x != c;
    let mut inputs = vec![rw.get(x), rw.full(node, 1.0, &cols)];
    if center {
        inputs.push(rw.full(node, 0.0, &cols));
    }
    let op = LayerNorm { eps: Real(super::super::onnx::shortest(eps as f32)), axes, center };
    Some(smallvec![rw.one(node, "", op, &inputs)])
}

/// The normalisation that a value is the result of, and the other operand as a tensor of its
/// columns' extents.
fn columns<'a>(m: &Matcher<'a>, f: BinaryOp) -> Option<(&'a LayerNorm, ValueId, ValueId)> {
    let (a, b) = m.binary(m.node().outputs[0], f)?;
    [(a, b), (b, a)].into_iter().find_map(|(y, w)| {
        let Op::LayerNorm(op) = m.op(y) else { return None };
        let n = m.graph.def(y);
        if !m.once(y) || n.outputs[0] != y {
            return None;
        }
        let shape = m.graph.shape(y);
        let cols = Shape::new(&shape[shape.rank() - op.axes..]);
        let mut w = w;
        while matches!(m.op(w), Op::Broadcast(_) | Op::Reshape(_)) {
            if m.graph.shape(w) == &cols {
                break;
            }
            let from = m.graph.def(w).inputs[0];
            // Leading extents of 1 added or repeated; anything else moves elements.
            let s = m.graph.shape(w);
            let f = m.graph.shape(from);
            let tail = |s: &Shape| s.rank() >= op.axes && s[s.rank() - op.axes..] == cols[..];
            if !tail(s) || !tail(f) {
                return None;
            }
            w = from;
        }
        (m.graph.shape(w) == &cols).then_some((op, y, w))
    })
}

/// `normalised · w` into a normalisation whose weight is 1.
pub fn scale(m: &Matcher, rw: &mut Rewriter) -> Option<SmallVec<[ValueId; 2]>> {
    let (op, y, w) = columns(m, BinaryOp::Mul)?;
    let n = m.graph.def(y);
    let plain =
        m.number(n.inputs[1]) == Some(1.0) && (!op.center || m.number(n.inputs[2]) == Some(0.0));
    if !plain {
        return None;
    }
    let mut inputs = vec![rw.get(n.inputs[0]), rw.get(w)];
    if op.center {
        inputs.push(rw.get(n.inputs[2]));
    }
    Some(smallvec![rw.one(m.node(), "", op.clone(), &inputs)])
}

/// `normalised + b` into a normalisation whose shift is 0.
pub fn shift(m: &Matcher, rw: &mut Rewriter) -> Option<SmallVec<[ValueId; 2]>> {
    let (op, y, b) = columns(m, BinaryOp::Add)?;
    let n = m.graph.def(y);
    if !op.center || m.number(n.inputs[2]) != Some(0.0) {
        return None;
    }
    let inputs = [rw.get(n.inputs[0]), rw.get(n.inputs[1]), rw.get(b)];
    Some(smallvec![rw.one(m.node(), "", op.clone(), &inputs)])
}
