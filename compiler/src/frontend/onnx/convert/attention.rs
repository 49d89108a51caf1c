//! The `Attention` operator of opset 23.

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::node::fail;
use crate::ir::{Real, ValueId};
use crate::ops;
use precast_plan::Kind;

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    if call.op != "Attention" {
        return Ok(None);
    }
    let a = &call.attrs;
    if call.input(4).is_some() || call.input(5).is_some() || (1..4).any(|i| call.wants(i)) {
        return Err(fail("P0206", "`Attention` with a key-value cache or scores as a result"));
    }
    if a.real("softcap", 0.0)? != 0.0 {
        return Err(fail("P0206", "`Attention` with a soft cap"));
    }
    let [q, k, v] = [cx.real(call, 0)?, cx.real(call, 1)?, cx.real(call, 2)?];
    let rank = cx.graph.shape(q).rank();
    let heads = |name: &str| -> Res<usize> {
        let n = a.int(name, 0)?;
        usize::try_from(n)
            .ok()
            .filter(|n| *n > 0)
            .ok_or_else(|| fail("P0206", format!("`{name}` is {n}")))
    };
    let (q, k, v) = if rank == 3 {
        let (hq, hk) = (heads("q_num_heads")?, heads("kv_num_heads")?);
        (split_heads(cx, q, hq)?, split_heads(cx, k, hk)?, split_heads(cx, v, hk)?)
    } else {
        (q, k, v)
    };
    let shape = cx.graph.shape(q).to_vec();
    if shape.len() != 4 {
        return Err(words(format!("{shape:?} is not [batch, heads, length, size]")));
    }
    let (k, v) = (repeat_heads(cx, k, shape[1])?, repeat_heads(cx, v, shape[1])?);
    let scale = match a.real("scale", 0.0)? {
        0.0 => 1.0 / (shape[3] as f64).sqrt(),
        s => s,
    };
    let causal = a.int("is_causal", 0)? != 0;
    let keys = cx.graph.shape(k).to_vec();
    if causal && keys[2] != shape[2] {
        return Err(fail("P0206", "causal `Attention` with other numbers of queries and keys"));
    }
    let mut inputs = vec![q, k, v];
    if let Some(mask) = call.input(3).cloned() {
        let full = [shape[0], shape[1], shape[2], keys[2]];
        let m = cx.spread(&mask, &full)?;
        inputs.push(match cx.kind(&mask)? {
            Kind::Real => m,
            Kind::Bool => {
                let (zero, off) = (cx.full(0.0, &full)?, cx.full(f64::NEG_INFINITY, &full)?);
                cx.one("mask", ops::Select {}, &[m, zero, off])?
            }
            Kind::Int => return Err(fail("P0207", "the mask is integer")),
        });
    }
    let masked = inputs.len() == 4;
    let y = cx.one("", ops::Attention { scale: Real(scale), causal, masked }, &inputs)?;
    let y = if rank == 3 {
        let t = cx.transpose(y, &[0, 2, 1, 3])?;
        cx.reshape(t, &[shape[0], shape[2], shape[1] * shape[3]])?
    } else {
        y
    };
    Ok(Some(vec![Val::Node(y)]))
}

/// [b,t,h·d] → [b,h,t,d].
fn split_heads(cx: &mut Importer, v: ValueId, heads: usize) -> Res<ValueId> {
    let s = cx.graph.shape(v).to_vec();
    if s.len() != 3 || !s[2].is_multiple_of(heads) {
        return Err(words(format!("{s:?} does not have {heads} heads")));
    }
    let v = cx.reshape(v, &[s[0], s[1], heads, s[2] / heads])?;
    cx.transpose(v, &[0, 2, 1, 3])
}

/// Grouped keys and values: each head serves several query heads.
fn repeat_heads(cx: &mut Importer, v: ValueId, heads: usize) -> Res<ValueId> {
    let s = cx.graph.shape(v).to_vec();
    if s.len() != 4 || s[1] == heads {
        return Ok(v);
    }
    if s[1] == 0 || !heads.is_multiple_of(s[1]) {
        return Err(words(format!("{} key heads for {heads} query heads", s[1])));
    }
    let v = cx.reshape(v, &[s[0], s[1], 1, s[2], s[3]])?;
    let v = cx.spread(&Val::Node(v), &[s[0], s[1], heads / s[1], s[2], s[3]])?;
    cx.reshape(v, &[s[0], heads, s[2], s[3]])
}
