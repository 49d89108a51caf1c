//! Reductions and softmax.

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{self, axis};
use crate::frontend::onnx::node::fail;
use crate::ir::{Real, ValueId};
use crate::ops;
use precast_plan::{BinaryOp as B, ReduceOp, UnaryOp as U};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = match call.op {
        "Softmax" => softmax(cx, call, false)?,
        "LogSoftmax" => softmax(cx, call, true)?,
        "ReduceSum" | "ReduceMean" | "ReduceMax" | "ReduceMin" | "ReduceL2" | "ReduceSumSquare"
        | "ReduceLogSumExp" => reduce(cx, call)?,
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
    // A swap is its own inverse.
    cx.transpose(y, &perm)
}

fn reduce(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let x = cx.real(call, 0)?;
    let shape = cx.graph.shape(x).to_vec();
    let list = call.ints_or(1, "axes")?.unwrap_or_default();
    let axes = if !list.is_empty() {
        moves::axes(&list, shape.len()).map_err(words)?
    } else if call.attrs.int("noop_with_empty_axes", 0)? != 0 {
        vec![]
    } else {
        (0..shape.len()).collect()
    };
    let square = matches!(call.op, "ReduceL2" | "ReduceSumSquare");
    let x = if square { cx.one("square", ops::Binary { f: B::Mul }, &[x, x])? } else { x };
    let y = if call.op == "ReduceLogSumExp" {
        log_sum_exp(cx, x, &shape, &axes)?
    } else if axes.is_empty() {
        x
    } else {
        let f = match call.op {
            "ReduceMax" => ReduceOp::Max,
            "ReduceMin" => ReduceOp::Min,
            _ => ReduceOp::Sum,
        };
        let count: usize = axes.iter().map(|&a| shape[a]).product();
        let suffix = if matches!(call.op, "ReduceMean" | "ReduceL2") { "sum" } else { "" };
        let y = cx.one(suffix, ops::Reduce { f, axes: axes.clone() }, &[x])?;
        match call.op {
            "ReduceMean" if count == 0 => return Err(fail("P0214", "the mean of no elements")),
            "ReduceMean" => cx.one("", ops::Scale { by: Real(1.0 / count as f64) }, &[y])?,
            _ => y,
        }
    };
    let y = if call.op == "ReduceL2" { cx.one("", ops::Unary { f: U::Sqrt }, &[y])? } else { y };
    if call.attrs.int("keepdims", 1)? != 0 {
        let mut kept = shape;
        axes.iter().for_each(|&a| kept[a] = 1);
        return cx.reshape(y, &kept);
    }
    Ok(y)
}

/// `m + log Σ exp(x − m)` with m the maximum.
fn log_sum_exp(cx: &mut Importer, x: ValueId, shape: &[usize], axes: &[usize]) -> Res<ValueId> {
    if axes.is_empty() {
        return Ok(x);
    }
    let m = cx.one("max", ops::Reduce { f: ReduceOp::Max, axes: axes.to_vec() }, &[x])?;
    let mut kept = shape.to_vec();
    axes.iter().for_each(|&a| kept[a] = 1);
    let wide = cx.reshape(m, &kept)?;
    let wide = cx.spread(&Val::Node(wide), shape)?;
    let c = cx.one("centred", ops::Binary { f: B::Sub }, &[x, wide])?;
    let e = cx.one("exp", ops::Unary { f: U::Exp }, &[c])?;
    let s = cx.one("sum", ops::Reduce { f: ReduceOp::Sum, axes: axes.to_vec() }, &[e])?;
    let l = cx.one("log", ops::Unary { f: U::Log }, &[s])?;
    cx.one("", ops::Binary { f: B::Add }, &[m, l])
}
