//! A cross-entropy inside the model.

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::node::fail;
use crate::ir::{ConstData, Real};
use crate::ops;
use precast_plan::{BinaryOp as B, ReduceOp, UnaryOp as U};

/// `SoftmaxCrossEntropyLoss`: classes are axis 1, which is brought to the end.
pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    if call.op != "SoftmaxCrossEntropyLoss" {
        return Ok(None);
    }
    if call.input(2).is_some() {
        return Err(fail("P0206", "class weights in `SoftmaxCrossEntropyLoss`"));
    }
    let x = cx.real(call, 0)?;
    let rank = cx.graph.shape(x).rank();
    if rank < 2 {
        return Err(words("the scores have no class axis".into()));
    }
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.remove(1);
    perm.push(1);
    let last = cx.transpose(x, &perm)?;
    let labels = call.need(1)?.clone();
    let labels = cx.value(&labels)?;
    // A class that no label names: nothing is ignored.
    let ignore = call.attrs.int("ignore_index", i64::from(i32::MIN))?;
    let op = ops::CrossEntropy { ignore_index: ignore, label_smoothing: Real(0.0) };
    let rows = cx.one("rows", op, &[last, labels])?;
    let shape = cx.graph.shape(rows).to_vec();
    let axes: Vec<usize> = (0..shape.len()).collect();
    let total = ops::Reduce { f: ReduceOp::Sum, axes };
    let loss = match call.attrs.string("reduction", "mean")?.as_str() {
        "none" => rows,
        "sum" => cx.one("", total, &[rows])?,
        "mean" => {
            let data = ConstData::from_i64(vec![1; shape.len()], &[ignore]);
            let c = cx.one("ignored", ops::Const { data }, &[])?;
            let c = cx.one("ignored", ops::Broadcast { shape }, &[c])?;
            let out = cx.one("ignored", ops::Binary { f: B::Eq }, &[labels, c])?;
            let counted = cx.one("counted", ops::Unary { f: U::Not }, &[out])?;
            let counted = cx.one("counted", ops::Unary { f: U::ToReal }, &[counted])?;
            let n = cx.one("count", total.clone(), &[counted])?;
            let s = cx.one("sum", total, &[rows])?;
            cx.one("", ops::Binary { f: B::Div }, &[s, n])?
        }
        other => return Err(fail("P0206", format!("`reduction` is \"{other}\""))),
    };
    let mut results = vec![Val::Node(loss)];
    if call.wants(1) {
        let y = cx.one("log_prob", ops::Softmax { log: true }, &[last])?;
        let mut back = vec![0, rank - 1];
        back.extend(1..rank - 1);
        results.push(Val::Node(cx.transpose(y, &back)?));
    }
    Ok(Some(results))
}
