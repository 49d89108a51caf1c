//! `scaled_dot_product_attention` as the exporters write it out. A query whose mask leaves it no key gets
//! 0 in PyTorch since 2.5 ("safe softmax"), with no gradient; what the exporters write makes NaN of such a
//! row, or, of a bool mask, the mean of all values.

use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::origin;
use crate::frontend::onnx::proto::NodeProto;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ir::ValueId;
use crate::ops;
use precast_plan::{BinaryOp as B, UnaryOp as U};

const SDPA: &str = "aten.scaled_dot_product_attention";

/// The most negative number of f16, the narrowest format that a mask is written in.
const LEAST: f64 = -65504.0;

fn is(node: &NodeProto, op: &str) -> bool {
    node.op_type.as_deref() == Some(op)
}

/// What is chosen where a bool mask hides a key: torch.export writes the most negative number of the
/// format for the −∞ that PyTorch has.
pub fn hidden(call: &Call, v: &Val) -> Option<Val> {
    let Val::Const(t) = v else { return None };
    let least = t.splat().is_some_and(|x| x <= LEAST);
    let from = origin::call(call.attrs.node())?;
    (least && from.is(SDPA)).then(|| {
        let infinity = Data::Real(vec![f64::NEG_INFINITY; t.len()]);
        Val::constant(Tensor::new(t.elem, t.shape.clone(), infinity))
    })
}

/// Probabilities, 0 in rows without a key where the softmax is one of such an attention and nothing
/// behind it sees to that.
pub fn guarded(cx: &mut Importer, call: &Call, p: ValueId) -> Res<ValueId> {
    if !may_be_empty(cx, call)? {
        return Ok(p);
    }
    let shape = cx.graph.shape(p).to_vec();
    let same = cx.one("same", ops::Binary { f: B::Eq }, &[p, p])?;
    let nan = cx.one("nan", ops::Unary { f: U::Not }, &[same])?;
    let zero = cx.full(0.0, &shape)?;
    cx.one("safe", ops::Select {}, &[nan, zero, p])
}

fn may_be_empty(cx: &mut Importer, call: &Call) -> Res<bool> {
    let node = call.attrs.node();
    let Some(mask) = mask(cx, node) else { return Ok(false) };
    let y = node.output.first();
    let guard = |n: &NodeProto| is(n, "IsNaN") && n.input.first() == y;
    if cx.src.every_node().any(guard) {
        return Ok(false);
    }
    Ok(match cx.operand(&mask)? {
        Val::Const(t) => {
            let keys = t.shape.last().copied().unwrap_or(1).max(1);
            let x = t.cast(Elem::F64).to_reals();
            x.chunks(keys).any(|row| row.iter().all(|x| *x == f64::NEG_INFINITY))
        }
        _ => true,
    })
}

/// The mask that is added to the scores of such an attention, by the node of its softmax.
fn mask(cx: &Importer, softmax: &NodeProto) -> Option<String> {
    let made = |name: Option<&String>| {
        let name = name?;
        cx.src.every_node().find(|n| n.output.contains(name))
    };
    let sum = made(softmax.input.first()).filter(|n| is(n, "Add"))?;
    match origin::call(softmax) {
        Some(from) => from.is(SDPA).then(|| sum.input.get(1).cloned())?,
        // Queries and keys are each multiplied by the root of one factor.
        None if cx.src.producer.starts_with("pytorch") => {
            let product = made(sum.input.first()).filter(|n| is(n, "MatMul"))?;
            let root = |i: usize| {
                let scaled = made(product.input.get(i)).filter(|n| is(n, "Mul"))?;
                let mut by = made(scaled.input.get(1))?;
                if is(by, "Cast") {
                    by = made(by.input.first())?;
                }
                Some(by).filter(|n| is(n, "Sqrt"))?.input.first()
            };
            (root(0)? == root(1)?).then(|| sum.input.get(1).cloned())?
        }
        None => None,
    }
}
