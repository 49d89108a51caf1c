//! Reductions and softmax.

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{self, axis};
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::origin;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ir::{Real, ValueId};
use crate::ops::{self, Op};
use precast_plan::{BinaryOp as B, DType, Kind, ReduceOp, UnaryOp as U};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = match call.op {
        "Softmax" => softmax(cx, call, false)?,
        "LogSoftmax" => softmax(cx, call, true)?,
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceProd" | "ReduceL1"
        | "ReduceL2" | "ReduceSumSquare" | "ReduceLogSum" | "ReduceLogSumExp" => reduce(cx, call)?,
        "LpNormalization" => lp_normalization(cx, call)?,
        _ => return Ok(None),
    };
    Ok(Some(vec![Val::Node(v)]))
}

/// Over any axis, which is brought to the end.
fn softmax(cx: &mut Importer, call: &Call, log: bool) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let rank = cx.graph.shape(x).rank();
    let a = axis(call.attrs.int("axis", -1)?, rank).map_err(words)?;
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(a, rank - 1);
    let t = cx.transpose(x, &perm)?;
    let y = cx.one("", ops::Softmax { log }, &[t])?;
    let y = if log { y } else { super::safe::guarded(cx, call, y)? };
    // A swap is its own inverse.
    cx.transpose(y, &perm)
}

fn reduce(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let v = call.need(0)?.clone();
    let kind = cx.kind(&v)?;
    let extremum = matches!(call.op, "ReduceMax" | "ReduceMin");
    // The largest of bools says whether any is true, the smallest whether all are; otherwise they
    // count as 0 and 1.
    let x = cx.value(&v)?;
    let x = match kind {
        Kind::Bool if extremum => cx.one("real", ops::Unary { f: U::ToReal }, &[x])?,
        Kind::Bool => cx.one("whole", ops::Unary { f: U::ToInt }, &[x])?,
        Kind::Real | Kind::Int => x,
    };
    let shape = cx.graph.shape(x).to_vec();
    let list = call.ints_or(1, "axes")?.unwrap_or_default();
    // Exporters write it beside axes too, where it says nothing.
    let noop = call.attrs.int("noop_with_empty_axes", 0)? != 0;
    let axes = if !list.is_empty() {
        moves::axes(&list, shape.len()).map_err(words)?
    } else if noop {
        vec![]
    } else {
        (0..shape.len()).collect()
    };
    let mut kept = shape.clone();
    axes.iter().for_each(|&a| kept[a] = 1);
    let count: usize = axes.iter().map(|&a| shape[a]).product();
    let y = if count == 0 && !axes.is_empty() {
        // No element takes part, so nothing depends on the operand.
        of_nothing(cx, call, x, kind, &kept)?
    } else if cx.graph.ty(x).is_real() {
        over(cx, call, x, &axes)?
    } else {
        over_integers(cx, call, x, &axes)?
    };
    let bools = kind == Kind::Bool && extremum;
    let y = if bools { cx.one("bool", ops::Unary { f: U::ToBool }, &[y])? } else { y };
    if call.attrs.int("keepdims", 1)? == 0 {
        let left = (0..shape.len()).filter(|d| !axes.contains(d)).map(|d| shape[d]);
        kept = left.collect();
    }
    cx.reshape(y, &kept)
}

/// Whether this reduces the rows of a bag of `nn.EmbeddingBag`, which both exporters write as a loop.
fn of_bag(cx: &Importer, call: &Call) -> bool {
    match origin::call(call.attrs.node()) {
        Some(from) => from.is("aten.embedding_bag") || from.is("aten._embedding_bag"),
        None => cx.looping > 0 && cx.src.producer.starts_with("pytorch"),
    }
}

/// The reduction of no elements; `x` is of the operand's kind, bools as what they are reduced as.
fn of_nothing(
    cx: &mut Importer,
    call: &Call,
    x: ValueId,
    kind: Kind,
    shape: &[usize],
) -> Res<ValueId> {
    if !cx.graph.ty(x).is_real() {
        let empty = match call.op {
            "ReduceSum" | "ReduceL1" | "ReduceSumSquare" => 0,
            "ReduceProd" => 1,
            "ReduceMax" => i64::from(i32::MIN),
            "ReduceMin" => i64::from(i32::MAX),
            _ => return Err(words(format!("`{}` of no integers", call.op))),
        };
        return cx
            .spread(&Val::constant(Tensor::new(Elem::I32, [], Data::Int(vec![empty]))), shape);
    }
    let bools = kind == Kind::Bool;
    let empty = match call.op {
        // PyTorch has no maximum of nothing, and the mean of nothing is NaN, but those of a bag are 0.
        "ReduceMax" | "ReduceMean" if of_bag(cx, call) => 0.0,
        "ReduceMean" => return Err(fail("P0214", "the mean of no elements")),
        "ReduceMax" if bools => 0.0,
        "ReduceMin" if bools => 1.0,
        "ReduceMax" | "ReduceLogSum" | "ReduceLogSumExp" => f64::NEG_INFINITY,
        "ReduceMin" => f64::INFINITY,
        "ReduceProd" => 1.0,
        _ => 0.0,
    };
    cx.full(empty, shape)
}

/// Of integers, exact in 32 bits: a sum beyond them is the nearest, a product wraps around.
fn over_integers(cx: &mut Importer, call: &Call, x: ValueId, axes: &[usize]) -> Res<ValueId> {
    let count: usize = axes.iter().map(|&a| cx.graph.shape(x)[a]).product();
    let by = |cx: &mut Importer, suffix: &str, x: ValueId, f: ReduceOp| {
        // Numbers so small that f32 holds their sum need no digits.
        let small = most(cx, x).is_some_and(|most| most.saturating_mul(count) <= 1 << 24);
        match axes {
            [] => Ok(x),
            _ if small => {
                let x = cx.one("real", ops::Unary { f: U::ToReal }, &[x])?;
                let y = cx.one("exact", ops::Reduce { f, axes: axes.to_vec() }, &[x])?;
                cx.one(suffix, ops::Unary { f: U::ToInt }, &[y])
            }
            _ => cx.one(suffix, ops::ReduceInt { f, axes: axes.to_vec() }, &[x]),
        }
    };
    match call.op {
        "ReduceSum" => by(cx, "", x, ReduceOp::Sum),
        "ReduceMax" => by(cx, "", x, ReduceOp::Max),
        "ReduceMin" => by(cx, "", x, ReduceOp::Min),
        "ReduceProd" => product(cx, x, axes),
        "ReduceMean" => {
            let s = by(cx, "sum", x, ReduceOp::Sum)?;
            let shape = cx.graph.shape(s).to_vec();
            let n = super::index::whole(cx, count.max(1), &shape)?;
            cx.one("", ops::Binary { f: B::Div }, &[s, n])
        }
        "ReduceL1" => {
            let m = cx.one("abs", ops::Unary { f: U::Abs }, &[x])?;
            by(cx, "", m, ReduceOp::Sum)
        }
        "ReduceSumSquare" => {
            let square = cx.one("square", ops::Binary { f: B::Mul }, &[x, x])?;
            by(cx, "", square, ReduceOp::Sum)
        }
        other => Err(fail("P0207", format!("`{other}` of integers that depend on data"))
            .help("cast them before: `x.float()` in the module")),
    }
}

/// The largest number that integers can be where the graph shows that it is small, and that none is
/// below zero.
pub fn most(cx: &Importer, v: ValueId) -> Option<usize> {
    let n = cx.graph.def(v);
    match &n.op {
        Op::Unary(u) if u.f == U::ToInt => {
            (cx.graph.ty(n.inputs[0]).kind() == Kind::Bool).then_some(1)
        }
        Op::Input(_) => (cx.graph.ty(v).dtype == DType::U8).then_some(255),
        Op::Const(c) => {
            let v = c.data.ints()?;
            let most = v.iter().max().copied().unwrap_or(0);
            v.iter().all(|x| *x >= 0).then(|| usize::try_from(most).ok()).flatten()
        }
        Op::Binary(b) if b.f == B::And => n.inputs.iter().filter_map(|x| most(cx, *x)).min(),
        Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice(_) => {
            most(cx, n.inputs[0])
        }
        _ => None,
    }
}

/// The reduction itself, over at least one element; without axes what each element alone gives.
fn over(cx: &mut Importer, call: &Call, x: ValueId, axes: &[usize]) -> Res<ValueId> {
    let count: usize = axes.iter().map(|&a| cx.graph.shape(x)[a]).product();
    let sum = |cx: &mut Importer, suffix: &str, x: ValueId| match axes {
        [] => Ok(x),
        _ => cx.one(suffix, ops::Reduce { f: ReduceOp::Sum, axes: axes.to_vec() }, &[x]),
    };
    match call.op {
        "ReduceMax" => extremum(cx, call, x, axes, ReduceOp::Max),
        "ReduceMin" => extremum(cx, call, x, axes, ReduceOp::Min),
        "ReduceProd" => product(cx, x, axes),
        "ReduceLogSumExp" if axes.is_empty() => Ok(x),
        "ReduceLogSumExp" => cx.one("", ops::LogSumExp { axes: axes.to_vec() }, &[x]),
        "ReduceLogSum" => {
            let s = sum(cx, "sum", x)?;
            cx.one("", ops::Unary { f: U::Log }, &[s])
        }
        "ReduceL1" => {
            let m = cx.one("abs", ops::Unary { f: U::Abs }, &[x])?;
            sum(cx, "", m)
        }
        "ReduceL2" if axes.is_empty() => cx.one("", ops::Unary { f: U::Abs }, &[x]),
        "ReduceL2" => norm(cx, x, axes, ""),
        "ReduceSumSquare" => {
            let sq = cx.one("square", ops::Binary { f: B::Mul }, &[x, x])?;
            sum(cx, "", sq)
        }
        "ReduceMean" => {
            let s = sum(cx, "sum", x)?;
            cx.one("", ops::Scale { by: Real(1.0 / count.max(1) as f64) }, &[s])
        }
        _ => sum(cx, "", x),
    }
}

/// The Euclidean norm.
pub(super) fn norm(cx: &mut Importer, x: ValueId, axes: &[usize], suffix: &str) -> Res<ValueId> {
    let sq = cx.one("square", ops::Binary { f: B::Mul }, &[x, x])?;
    let s = cx.one("sum", ops::Reduce { f: ReduceOp::Sum, axes: axes.to_vec() }, &[sq])?;
    root(cx, s, suffix)
}

/// The root of a sum of squares. Its derivative at 0 is 0, as torch.linalg.vector_norm has it, so the
/// root is taken of 1 there and its result is not used.
pub(super) fn root(cx: &mut Importer, s: ValueId, suffix: &str) -> Res<ValueId> {
    let shape = cx.graph.shape(s).to_vec();
    let (zero, unit) = (cx.full(0.0, &shape)?, cx.full(1.0, &shape)?);
    let none = cx.one("none", ops::Binary { f: B::Eq }, &[s, zero])?;
    let safe = cx.one("safe", ops::Select {}, &[none, unit, s])?;
    let root = cx.one("root", ops::Unary { f: U::Sqrt }, &[safe])?;
    cx.one(suffix, ops::Select {}, &[none, zero, root])
}

/// `x / ‖x‖` with p = 1 or 2 along one axis; 0 where the norm is 0.
fn lp_normalization(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    let a = axis(call.attrs.int("axis", -1)?, shape.len()).map_err(words)?;
    let n = match call.attrs.int("p", 2)? {
        1 => {
            let m = cx.one("abs", ops::Unary { f: U::Abs }, &[x])?;
            cx.one("norm", ops::Reduce { f: ReduceOp::Sum, axes: vec![a] }, &[m])?
        }
        2 => norm(cx, x, &[a], "norm")?,
        p => return Err(fail("P0206", format!("`LpNormalization` with p = {p}; 1 and 2 are"))),
    };
    let rows = cx.graph.shape(n).to_vec();
    let (zero, unit) = (cx.full(0.0, &rows)?, cx.full(1.0, &rows)?);
    let none = cx.one("zero", ops::Binary { f: B::Eq }, &[n, zero])?;
    let safe = cx.one("divisor", ops::Select {}, &[none, unit, n])?;
    let mut kept = shape.clone();
    kept[a] = 1;
    let safe = cx.reshape(safe, &kept)?;
    let wide = cx.spread(&Val::Node(safe), &shape)?;
    cx.one("", ops::Binary { f: B::Div }, &[x, wide])
}

/// torch.max and torch.min along an axis give the cotangent to the first of equal elements; amax,
/// amin and extrema of a whole tensor share it. Both export as one operator. torch.export names its
/// operator in the node's metadata; of the other exporter's files one axis says `max(dim)`, which is
/// by far the more common, unless absolute values are reduced: that is the norm of order ∞.
fn extremum(
    cx: &mut Importer,
    call: &Call,
    x: ValueId,
    axes: &[usize],
    f: ReduceOp,
) -> Res<ValueId> {
    let first = match origin::call(call.attrs.node()) {
        Some(from) => matches!(from.target, "aten.max.dim" | "aten.min.dim") || of_bag(cx, call),
        None => {
            let norm = matches!(&cx.graph.def(x).op, Op::Unary(u) if u.f == U::Abs);
            cx.src.producer.starts_with("pytorch") && !norm
        }
    };
    match axes {
        [] => Ok(x),
        &[axis] if first => cx.one("", ops::Extremum { f, axis }, &[x]),
        _ => cx.one("", ops::Reduce { f, axes: axes.to_vec() }, &[x]),
    }
}

/// The product over axes, by halves: the derivative is that of multiplication, so zeros in it are no
/// special case and nothing is divided.
pub(super) fn product(cx: &mut Importer, x: ValueId, axes: &[usize]) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let rank = shape.len();
    let kept: Vec<usize> = (0..rank).filter(|d| !axes.contains(d)).collect();
    let perm: Vec<usize> = kept.iter().chain(axes).copied().collect();
    let rows: Vec<usize> = kept.iter().map(|&d| shape[d]).collect();
    let mut n: usize = axes.iter().map(|&a| shape[a]).product();
    let mut y = cx.transpose(x, &perm)?;
    let flat: Vec<usize> = rows.iter().copied().chain([n]).collect();
    y = cx.reshape(y, &flat)?;
    let part = |cx: &mut Importer, v: ValueId, start: usize, size: usize| {
        let mut starts = vec![0; rows.len()];
        starts.push(start);
        let sizes = rows.iter().copied().chain([size]).collect();
        cx.one("part", ops::Slice { starts, sizes, steps: vec![1; rows.len() + 1] }, &[v])
    };
    let mut odd = None;
    while n > 1 {
        let half = n / 2;
        if n % 2 == 1 {
            let last = part(cx, y, n - 1, 1)?;
            odd = Some(match odd {
                None => last,
                Some(o) => cx.one("odd", ops::Binary { f: B::Mul }, &[o, last])?,
            });
        }
        let (a, b) = (part(cx, y, 0, half)?, part(cx, y, half, half)?);
        y = cx.one("product", ops::Binary { f: B::Mul }, &[a, b])?;
        n = half;
    }
    if let Some(o) = odd {
        y = cx.one("", ops::Binary { f: B::Mul }, &[y, o])?;
    }
    cx.reshape(y, &rows)
}
