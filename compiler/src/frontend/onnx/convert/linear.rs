//! Matrix products.

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::broadcast_shape;
use crate::ir::{Real, ValueId};
use crate::ops::{self, MatMul};
use precast_plan::BinaryOp as B;

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = match call.op {
        "MatMul" => {
            let (a, b) = (cx.real(call, 0)?, cx.real(call, 1)?);
            matmul(cx, a, b)?
        }
        "Gemm" => gemm(cx, call)?,
        _ => return Ok(None),
    };
    Ok(Some(vec![Val::Node(v)]))
}

/// Numpy's `matmul`. A batched operand times a plain matrix is one product over all its rows.
pub fn matmul(cx: &mut Importer, a: ValueId, b: ValueId) -> Res<ValueId> {
    let (sa, sb) = (cx.graph.shape(a).to_vec(), cx.graph.shape(b).to_vec());
    if sa.is_empty() || sb.is_empty() {
        return Err(words("a scalar operand".into()));
    }
    // Vectors become matrices, and their axis disappears from the result.
    let (row, column) = (sa.len() == 1, sb.len() == 1);
    let a = if row { cx.reshape(a, &[1, sa[0]])? } else { a };
    let b = if column { cx.reshape(b, &[sb[0], 1])? } else { b };
    let (sa, sb) = (cx.graph.shape(a).to_vec(), cx.graph.shape(b).to_vec());
    let (ra, rb) = (sa.len(), sb.len());
    let (m, k, n) = (sa[ra - 2], sa[ra - 1], sb[rb - 1]);
    if sb[rb - 2] != k {
        return Err(words(format!("{sa:?} and {sb:?} cannot be multiplied")));
    }
    let batch = broadcast_shape(&sa[..ra - 2], &sb[..rb - 2]).map_err(words)?;
    let mut out = batch.clone();
    let plain = sb[..rb - 2].iter().all(|&d| d == 1);
    let mut y = if plain {
        let rows = sa[..ra - 1].iter().product();
        let a = cx.reshape(a, &[rows, k])?;
        let b = cx.reshape(b, &[k, n])?;
        cx.one("", MatMul::plain(), &[a, b])?
    } else {
        let spread = |cx: &mut Importer, v, r: usize, s: &[usize]| {
            let mut to = batch.clone();
            to.extend_from_slice(&s[r - 2..]);
            cx.spread(&Val::Node(v), &to)
        };
        let (a, b) = (spread(cx, a, ra, &sa)?, spread(cx, b, rb, &sb)?);
        cx.one("", MatMul::plain(), &[a, b])?
    };
    if !row {
        out.push(m);
    }
    if !column {
        out.push(n);
    }
    y = cx.reshape(y, &out)?;
    Ok(y)
}

fn scaled(cx: &mut Importer, v: ValueId, by: f64, what: &str) -> Res<ValueId> {
    if by == 1.0 { Ok(v) } else { cx.one(what, ops::Scale { by: Real(by) }, &[v]) }
}

fn gemm(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let (mut a, mut b) = (cx.real(call, 0)?, cx.real(call, 1)?);
    for (v, flag) in [(&mut a, "transA"), (&mut b, "transB")] {
        if cx.graph.shape(*v).rank() != 2 {
            return Err(words(format!("{} is not a matrix", cx.graph.ty(*v))));
        }
        if call.attrs.int(flag, 0)? != 0 {
            *v = cx.transpose(*v, &[1, 0])?;
        }
    }
    let y = cx.one("", MatMul::plain(), &[a, b])?;
    let y = scaled(cx, y, call.attrs.real("alpha", 1.0)?, "alpha")?;
    let (Some(c), beta) = (call.input(2).cloned(), call.attrs.real("beta", 1.0)?) else {
        return Ok(y);
    };
    if beta == 0.0 {
        return Ok(y);
    }
    let shape = cx.graph.shape(y).to_vec();
    let c = cx.spread(&c, &shape)?;
    let c = scaled(cx, c, beta, "beta")?;
    cx.one("bias", ops::Binary { f: B::Add }, &[y, c])
}
