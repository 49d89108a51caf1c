//! Similarities and distances of torch.nn.functional that the TorchScript exporter writes as another
//! function, read as what they were: the file still shows it.

use super::{reduce, words};
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::lost;
use crate::frontend::onnx::moves::{Move, broadcast_shape};
use crate::frontend::onnx::node::shortest;
use crate::frontend::onnx::origin;
use crate::frontend::onnx::proto::NodeProto;
use crate::frontend::onnx::tensor::Tensor;
use crate::ir::ValueId;
use crate::ops::{self, Op};
use precast_plan::{BinaryOp as B, ReduceOp, UnaryOp as U};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let node = call.attrs.node();
    if !cx.src.producer.starts_with("pytorch") || origin::call(node).is_some() {
        return Ok(None);
    }
    let read = match call.op {
        "Div" => similarity(cx, node)?,
        "Pow" => distance(cx, node)?,
        "Sqrt" => euclidean(cx, node)?,
        _ => None,
    };
    if read.is_some() {
        (0..call.inputs.len()).for_each(|i| call.read.mark(i));
    }
    Ok(read.map(|v| vec![Val::Node(v)]))
}

/// The node of an operator that a value is the result of.
fn made<'a>(cx: &Importer<'a>, name: Option<&String>, op: &str) -> Option<&'a NodeProto> {
    let name = name?;
    let node = cx.src.every_node().find(|n| n.output.contains(name))?;
    (node.op_type.as_deref() == Some(op)).then_some(node)
}

fn literal(cx: &Importer, name: Option<&String>) -> Option<Tensor> {
    match cx.values.get(name?)? {
        Val::Const(t) => Some((**t).clone()),
        _ => None,
    }
}

/// A literal of one element, and its extents.
fn number(cx: &Importer, name: Option<&String>) -> Option<(f64, Vec<usize>)> {
    let t = literal(cx, name).filter(|t| t.elem.is_real())?;
    Some((shortest(t.splat()? as f32), t.shape))
}

/// What a node sums, and along which axis alone; whether the axis is kept.
fn sum<'a>(cx: &Importer<'a>, name: Option<&String>) -> Option<(&'a NodeProto, i64, bool)> {
    let node = made(cx, name, "ReduceSum")?;
    let axes = literal(cx, node.input.get(1))?.to_ints()?;
    let keeps = node.attribute.iter().find(|a| a.name.as_deref() == Some("keepdims"));
    let keeps = keeps.is_none_or(|a| a.i.unwrap_or(0) != 0);
    let [axis] = axes[..] else { return None };
    Some((node, axis, keeps))
}

/// Whether a value in the graph is computed by this function of two operands.
fn is_binary(cx: &Importer, name: Option<&String>, f: B) -> bool {
    let value = name.and_then(|n| cx.values.get(n));
    matches!(value, Some(Val::Node(v)) if matches!(&cx.graph.def(*v).op, Op::Binary(b) if b.f == f))
}

fn node_value(cx: &Importer, name: Option<&String>) -> Option<ValueId> {
    match cx.values.get(name?)? {
        Val::Node(v) => Some(*v),
        _ => None,
    }
}

/// torch.cosine_similarity, of which the file has `Σ ab / max(√(Σ a² Σ b²), eps)`: PyTorch holds each
/// norm above eps instead, and differentiates the norms as if it did not.
fn similarity(cx: &mut Importer, node: &NodeProto) -> Res<Option<ValueId>> {
    if !is_binary(cx, node.input.get(1), B::Max) {
        return Ok(None);
    }
    let found = (|| {
        let floor = made(cx, node.input.get(1), "Max")?;
        let (eps, shape) = number(cx, floor.input.get(1))?;
        let root = made(cx, floor.input.first(), "Sqrt")?;
        let product = made(cx, root.input.first(), "Mul")?;
        let parts = [node.input.first(), product.input.first(), product.input.get(1)];
        let sums = [sum(cx, parts[0])?, sum(cx, parts[1])?, sum(cx, parts[2])?];
        let factors = |i: usize| made(cx, sums[i].0.input.first(), "Mul").map(|n| &n.input[..]);
        let ([a, b], [a0, a1], [b0, b1]) = (factors(0)?, factors(1)?, factors(2)?) else {
            return None;
        };
        let alike = sums.iter().all(|s| s.1 == sums[0].1 && !s.2);
        let same = a == a0 && a == a1 && b == b0 && b == b1;
        let [ab, aa, bb] = [0, 1, 2].map(|i| node_value(cx, parts[i]));
        (alike && same && shape == [1]).then_some((eps, ab?, aa?, bb?))
    })();
    let Some((eps, ab, aa, bb)) = found else { return Ok(None) };
    cx.note_lost(lost::SIMILARITY);
    let mut y = ab;
    for squares in [aa, bb] {
        let norm = reduce::root(cx, squares, "norm")?;
        let divisor = Val::Node(not_below(cx, norm, eps)?);
        let shape = cx.graph.shape(ab).to_vec();
        let divisor = cx.spread(&divisor, &shape)?;
        y = cx.one("", ops::Binary { f: B::Div }, &[y, divisor])?;
    }
    Ok(Some(y))
}

/// The larger of a norm and eps, with the norm's derivative.
fn not_below(cx: &mut Importer, norm: ValueId, eps: f64) -> Res<ValueId> {
    let shape = cx.graph.shape(norm).to_vec();
    let bin = |cx: &mut Importer, suffix: &str, f, a, b| cx.one(suffix, ops::Binary { f }, &[a, b]);
    let least = cx.full(eps, &shape)?;
    let most = bin(cx, "least", B::Max, norm, least)?;
    let lacks = bin(cx, "lacks", B::Sub, most, norm)?;
    let lacks = cx.one("lacks", ops::StopGradient {}, &[lacks])?;
    let sum = bin(cx, "divisor", B::Add, norm, lacks)?;
    // What follows from how it is made is said, for what formats hold: that it is not below eps but for
    // rounding.
    let least = cx.full(eps * (1.0 - 1e-6), &shape)?;
    let below = bin(cx, "below", B::Lt, sum, least)?;
    cx.one("divisor", ops::Select {}, &[below, least, sum])
}

/// torch.pairwise_distance and torch.cdist, of which the file has `(Σ (a − b)^p)^(1 / (p + eps))`, without
/// absolute values. The first adds its eps to the difference, the second has none: the exporter writes
/// its number with an axis.
fn distance(cx: &mut Importer, node: &NodeProto) -> Res<Option<ValueId>> {
    // Nearly all powers have an exponent without axes.
    if number(cx, node.input.get(1)).is_none_or(|(_, shape)| shape != [1]) {
        return Ok(None);
    }
    let found = (|| {
        let inverse = made(cx, node.input.get(1), "Div")?;
        let (one, shape) = number(cx, inverse.input.first())?;
        let order = made(cx, inverse.input.get(1), "Add")?;
        let (p, _) = number(cx, order.input.first())?;
        let (eps, axes) = number(cx, order.input.get(1))?;
        let (sum, axis, keeps) = sum(cx, node.input.first())?;
        let power = made(cx, sum.input.first(), "Pow")?;
        let (exponent, _) = number(cx, power.input.get(1))?;
        made(cx, power.input.first(), "Sub")?;
        let d = node_value(cx, power.input.first())?;
        let is = one == 1.0 && shape == [1] && axis == -1 && exponent == p && p > 0.0;
        is.then_some((p, eps, axes.is_empty(), d, keeps))
    })();
    let Some((p, eps, adds, mut d, keeps)) = found else { return Ok(None) };
    let shape = cx.graph.shape(d).to_vec();
    if adds && eps != 0.0 {
        let eps = cx.full(eps, &shape)?;
        d = cx.one("apart", ops::Binary { f: B::Add }, &[d, eps])?;
    }
    distance_of(cx, d, p, keeps).map(Some)
}

/// torch.cdist by a matrix product, of which the file has `√max([−2a, |a|², 1] · [b, 1, |b|²], 0)`. The
/// derivative where the distance is 0 is 0, and the difference of near rows is that of their elements.
fn euclidean(cx: &mut Importer, node: &NodeProto) -> Res<Option<ValueId>> {
    if !is_binary(cx, node.input.first(), B::Max) {
        return Ok(None);
    }
    let found = (|| {
        let floor = made(cx, node.input.first(), "Max")?;
        let (zero, _) = number(cx, floor.input.get(1))?;
        let product = made(cx, floor.input.first(), "MatMul")?;
        let turned = made(cx, product.input.get(1), "Transpose")?;
        let sides = [product.input.first(), turned.input.first()];
        let [left, right] = sides.map(|s| made(cx, s, "Concat"));
        let ([scaled, aa, _], [b, _, bb]) = (&left?.input[..], &right?.input[..]) else {
            return None;
        };
        let twice = made(cx, Some(scaled), "Mul")?;
        let (first, second) = (number(cx, twice.input.first()), number(cx, twice.input.get(1)));
        let a = if first.is_some() { twice.input.get(1) } else { twice.input.first() };
        let by = first.or(second)?.0;
        let squares = |name: &String, of: Option<&String>| {
            let (sum, axis, keeps) = sum(cx, Some(name))?;
            let power = made(cx, sum.input.first(), "Pow")?;
            let two = number(cx, power.input.get(1))?.0 == 2.0;
            (two && axis == -1 && keeps && power.input.first() == of).then_some(())
        };
        squares(aa, a)?;
        squares(bb, Some(b))?;
        (zero == 0.0 && by == -2.0).then_some((node_value(cx, a)?, node_value(cx, Some(b))?))
    })();
    let Some((a, b)) = found else { return Ok(None) };
    let unsqueezed = |cx: &mut Importer, v: ValueId, at: usize| {
        let mut shape = cx.graph.shape(v).to_vec();
        shape.insert(shape.len() - at, 1);
        cx.reshape(v, &shape).map(Val::Node)
    };
    let (a, b) = (unsqueezed(cx, a, 1)?, unsqueezed(cx, b, 2)?);
    let shape = broadcast_shape(&cx.shape(&a)?, &cx.shape(&b)?).map_err(words)?;
    let (a, b) = (cx.spread(&a, &shape)?, cx.spread(&b, &shape)?);
    let d = cx.one("difference", ops::Binary { f: B::Sub }, &[a, b])?;
    distance_of(cx, d, 2.0, false).map(Some)
}

/// The norm of order `p` along the last axis.
fn distance_of(cx: &mut Importer, d: ValueId, p: f64, keeps: bool) -> Res<ValueId> {
    let mut shape = cx.graph.shape(d).to_vec();
    let axes = vec![shape.len() - 1];
    let y = if p == 2.0 {
        reduce::norm(cx, d, &axes, "")?
    } else {
        let m = cx.one("abs", ops::Unary { f: U::Abs }, &[d])?;
        let f = if p.is_infinite() { ReduceOp::Max } else { ReduceOp::Sum };
        if p == 1.0 || p.is_infinite() {
            cx.one("", ops::Reduce { f, axes }, &[m])?
        } else {
            let exponent = cx.full(p, &shape)?;
            let m = cx.one("power", ops::Binary { f: B::Pow }, &[m, exponent])?;
            let s = cx.one("sum", ops::Reduce { f, axes }, &[m])?;
            let rows = cx.graph.shape(s).to_vec();
            let inverse = cx.full(1.0 / p, &rows)?;
            cx.one("", ops::Binary { f: B::Pow }, &[s, inverse])?
        }
    };
    let last = shape.len() - 1;
    if keeps {
        shape[last] = 1;
    } else {
        shape.truncate(last);
    }
    cx.move_value(y, &[Move::Reshape(shape)])
}
