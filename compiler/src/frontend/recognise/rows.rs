//! Elementwise work on a product's rows, before the rows are given their batch axes again.
//!
//! Import multiplies [b,t,k] by [k,n] as one product of b·t rows and reshapes the result. Biases
//! and activations behind it are moved in front of that reshape, where they are an epilogue of the
//! product; the reshapes between two such layers then cancel.

use super::matcher::{Matcher, Rewriter};
use crate::ir::ValueId;
use crate::ops::{Broadcast, Op};
use smallvec::{SmallVec, smallvec};

/// An operand as it looks over the rows.
enum Operand {
    /// Reshaped from them.
    Rows(ValueId),
    /// One number for each column, or one for all: a tensor of rank 1.
    Columns(ValueId),
}

/// `f(reshape(a), …)` as `reshape(f(a, …))` for elementwise f.
pub fn sink(m: &Matcher, rw: &mut Rewriter) -> Option<SmallVec<[ValueId; 2]>> {
    let node = m.node();
    if !matches!(node.op, Op::Binary(_) | Op::Scale(_) | Op::Activate(_) | Op::Unary(_)) {
        return None;
    }
    let to = m.graph.shape(node.outputs[0]).to_vec();
    let mut rows: Option<Vec<usize>> = None;
    let mut operands: SmallVec<[Operand; 2]> = smallvec![];
    for &v in &node.inputs {
        // Looked up in the new graph: operands there may have sunk already.
        let new = rw.get(v);
        let def = rw.out.def(new);
        match &def.op {
            Op::Reshape(_) if m.once(v) => {
                let from = rw.out.shape(def.inputs[0]).to_vec();
                let matrix = from.len() == 2 && to.len() > 2 && from.last() == to.last();
                if !matrix || rows.as_ref().is_some_and(|r| *r != from) {
                    return None;
                }
                operands.push(Operand::Rows(def.inputs[0]));
                rows = Some(from);
            }
            Op::Broadcast(_) => operands.push(Operand::Columns(columns(rw, new)?)),
            _ => return None,
        }
    }
    let rows = rows?;
    let mut inputs: SmallVec<[ValueId; 2]> = smallvec![];
    for o in operands {
        inputs.push(match o {
            Operand::Rows(v) => v,
            Operand::Columns(v) => {
                let n = rw.out.shape(v)[0];
                let v = rw.reshape(node, v, &[1, n]);
                rw.one(node, "broadcast", Broadcast { shape: rows.clone() }, &[v])
            }
        });
    }
    let y = rw.one(node, "", node.op.clone(), &inputs);
    Some(smallvec![rw.reshape(node, y, &to)])
}

/// The vector behind a value that depends on the last axis alone.
fn columns(rw: &mut Rewriter, v: ValueId) -> Option<ValueId> {
    let base = rw.out.def(v).inputs[0];
    let shape = rw.out.shape(base).to_vec();
    let (last, rest) = shape.split_last()?;
    if rest.iter().any(|&d| d != 1) {
        return None;
    }
    let def = rw.out.def(base);
    if let Op::Reshape(_) = def.op
        && rw.out.shape(def.inputs[0])[..] == [*last]
    {
        return Some(def.inputs[0]);
    }
    let name = format!("{}.columns", def.name);
    let region = def.region;
    let reshape = crate::ops::Reshape { shape: vec![*last] };
    Some(rw.add(name, reshape, &[base], region))
}
