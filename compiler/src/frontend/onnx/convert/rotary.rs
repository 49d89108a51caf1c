//! The `RotaryEmbedding` operator of opset 23, by the operations that its specification names.

use super::words;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::node::fail;
use crate::ir::ValueId;
use crate::ops;
use precast_plan::BinaryOp as B;

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    if call.op != "RotaryEmbedding" {
        return Ok(None);
    }
    let whole = cx.real(call, 0)?;
    let shape = cx.graph.shape(whole).to_vec();
    // As [batch, length, heads, size].
    let x = match shape[..] {
        [_, _, _, _] => cx.transpose(whole, &[0, 2, 1, 3])?,
        [b, t, width] => {
            let heads = call.attrs.int("num_heads", 0)?;
            let heads = usize::try_from(heads)
                .ok()
                .filter(|&h| h > 0 && width.is_multiple_of(h))
                .ok_or_else(|| {
                fail("P0206", format!("`num_heads` is {heads} for {shape:?}"))
            })?;
            cx.reshape(whole, &[b, t, heads, width / heads])?
        }
        _ => return Err(words(format!("{shape:?} has neither three axes nor four"))),
    };
    let [b, t, heads, size] = cx.graph.shape(x)[..] else { unreachable!("four axes") };
    let dim = match call.attrs.int("rotary_embedding_dim", 0)? {
        0 => size,
        n => usize::try_from(n).ok().filter(|n| n.is_multiple_of(2) && *n <= size).ok_or_else(
            || fail("P0206", format!("`rotary_embedding_dim` is {n}, of {size} channels")),
        )?,
    };
    if !dim.is_multiple_of(2) {
        return Err(words(format!("{dim} channels are no pairs")));
    }
    let half = dim / 2;
    let interleaved = call.attrs.int("interleaved", 0)? != 0;
    let [cos, sin] = [angles(cx, call, 1, half)?, angles(cx, call, 2, half)?];
    let spread = [b, t, heads, half];
    let (cos, sin) = (cx.spread(&cos, &spread)?, cx.spread(&sin, &spread)?);

    let (at, step) = if interleaved { (1, 2) } else { (half, 1) };
    let (one, two) = (part(cx, x, 0, half, step)?, part(cx, x, at, half, step)?);
    let mul = |cx: &mut Importer, a, b| cx.one("turned", ops::Binary { f: B::Mul }, &[a, b]);
    let (a, b_, c, d) =
        (mul(cx, cos, one)?, mul(cx, sin, two)?, mul(cx, sin, one)?, mul(cx, cos, two)?);
    let real = cx.one("real", ops::Binary { f: B::Sub }, &[a, b_])?;
    let imaginary = cx.one("imaginary", ops::Binary { f: B::Add }, &[c, d])?;
    let mut y = if interleaved {
        let pair = |cx: &mut Importer, v| cx.reshape(v, &[b, t, heads, half, 1]);
        let (r, i) = (pair(cx, real)?, pair(cx, imaginary)?);
        let y = cx.one("pairs", ops::Concat { axis: 4 }, &[r, i])?;
        cx.reshape(y, &[b, t, heads, dim])?
    } else {
        cx.one("halves", ops::Concat { axis: 3 }, &[real, imaginary])?
    };
    if dim < size {
        let rest = part(cx, x, dim, size - dim, 1)?;
        y = cx.one("rest", ops::Concat { axis: 3 }, &[y, rest])?;
    }
    let y = if shape.len() == 3 { cx.reshape(y, &shape)? } else { cx.transpose(y, &[0, 2, 1, 3])? };
    Ok(Some(vec![Val::Node(y)]))
}

/// A table of cosines or sines, [batch or 1, length, 1, half]: rows of [positions, half] by
/// `position_ids`, or without those given for every sample.
fn angles(cx: &mut Importer, call: &Call, i: usize, half: usize) -> Res<Val> {
    let table = cx.real(call, i)?;
    let rows = match call.input(3).cloned() {
        None => table,
        Some(ids) => {
            let ids = cx.value(&ids)?;
            cx.one("angles", ops::Gather {}, &[table, ids])?
        }
    };
    match cx.graph.shape(rows)[..] {
        [b, t, n] if n == half => Ok(Val::Node(cx.reshape(rows, &[b, t, 1, n])?)),
        ref s => Err(words(format!("operand {i} gives {s:?}, not [batch, length, {half}]"))),
    }
}

/// Channels from `start` on.
fn part(cx: &mut Importer, x: ValueId, start: usize, size: usize, step: i64) -> Res<ValueId> {
    let s = cx.graph.shape(x).to_vec();
    let (starts, sizes) = (vec![0, 0, 0, start], vec![s[0], s[1], s[2], size]);
    cx.one("channels", ops::Slice { starts, sizes, steps: vec![1, 1, 1, step] }, &[x])
}
