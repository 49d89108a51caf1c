//! Moving elements, indexing, shapes, sequences.

use super::words;
use crate::frontend::onnx::fold::check_size;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{self, Move, axis, part};
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ops;
use precast_plan::Kind;

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    if let Some(v) = shapes(cx, call)? {
        return Ok(Some(vec![v]));
    }
    let one = |v: Val| Ok(Some(vec![v]));
    match call.op {
        "Gather" => one(gather(cx, call)?),
        "Concat" => one(concat(cx, call)?),
        "Pad" => one(pad(cx, call)?),
        "Split" => {
            let v = call.need(0)?;
            let (a, extent) = split_axis(cx, call)?;
            let given = call.ints_or(1, "split")?;
            let sizes = moves::split_sizes(extent, given.as_deref(), Some(call.outputs.len()))
                .map_err(words)?;
            parts(cx, v, a, &sizes, false).map(Some)
        }
        "SplitToSequence" => {
            let v = call.need(0)?;
            let (a, extent) = split_axis(cx, call)?;
            let (sizes, keep) = match call.literal(1)? {
                None => (vec![1; extent], call.attrs.int("keepdims", 1)? != 0),
                Some(t) => {
                    let s = call.ints(1)?.unwrap_or_default();
                    let sizes = if t.shape.is_empty() {
                        let each = usize::try_from(s[0]).ok().filter(|s| *s > 0);
                        let each =
                            each.ok_or_else(|| words(format!("parts of {} elements", s[0])))?;
                        let n = extent.div_ceil(each);
                        (0..n).map(|i| each.min(extent - i * each)).collect()
                    } else {
                        moves::split_sizes(extent, Some(&s), None).map_err(words)?
                    };
                    (sizes, true)
                }
            };
            check_size(&[sizes.len()])?;
            one(Val::Seq(parts(cx, v, a, &sizes, !keep)?))
        }
        "SequenceConstruct" => {
            let items =
                (0..call.inputs.len()).map(|i| call.need(i).cloned()).collect::<Res<_>>()?;
            one(Val::Seq(items))
        }
        "SequenceAt" => {
            let Val::Seq(items) = call.need(0)? else {
                return Err(fail("P0207", "operand 0 is not a sequence"));
            };
            let at =
                call.ints(1)?.filter(|v| v.len() == 1).ok_or_else(|| words("no index".into()))?;
            let at = axis(at[0], items.len()).map_err(words)?;
            one(items[at].clone())
        }
        _ => Ok(None),
    }
}

fn split_axis(cx: &Importer, call: &Call) -> Res<(usize, usize)> {
    let from = cx.shape(call.need(0)?)?;
    let a = axis(call.attrs.int("axis", 0)?, from.len()).map_err(words)?;
    Ok((a, from[a]))
}

fn parts(cx: &mut Importer, v: &Val, a: usize, sizes: &[usize], squeeze: bool) -> Res<Vec<Val>> {
    let from = cx.shape(v)?;
    let mut at = 0;
    let mut out = Vec::with_capacity(sizes.len());
    for &size in sizes {
        let mut moves = vec![part(&from, a, at, size)];
        if squeeze {
            let mut to = from.clone();
            to.remove(a);
            moves.push(Move::Reshape(to));
        }
        out.push(cx.moved(v, &moves)?);
        at += size;
    }
    Ok(out)
}

/// Operators that are views, and those that ask for extents.
fn shapes(cx: &mut Importer, call: &Call) -> Res<Option<Val>> {
    let a = &call.attrs;
    if call.op == "Constant" {
        return constant(call).map(Some);
    }
    let Some(v) = call.input(0) else { return Ok(None) };
    if matches!(v, Val::Seq(_)) {
        return Ok(if call.op == "Identity" { Some(v.clone()) } else { None });
    }
    let from = cx.shape(v)?;
    let rank = from.len();
    let moves = match call.op {
        "Identity" => Ok(vec![]),
        "Shape" => {
            let bound = |x: i64| {
                let r = rank as i64;
                (if x < 0 { x.saturating_add(r) } else { x }).clamp(0, r) as usize
            };
            let (b, e) = (bound(a.int("start", 0)?), bound(a.int("end", i64::MAX)?));
            let dims = from.get(b..e).unwrap_or_default();
            return Ok(Some(Val::constant(Tensor::ints(dims.iter().map(|&d| d as i64).collect()))));
        }
        "Size" => {
            let n = from.iter().product::<usize>() as i64;
            return Ok(Some(Val::constant(Tensor::new(Elem::I64, [], Data::Int(vec![n])))));
        }
        "Reshape" => {
            let to = call.ints(1)?.ok_or_else(|| words("no shape".into()))?;
            moves::reshape(&from, &to, a.int("allowzero", 0)? != 0)
        }
        "Flatten" => moves::flatten(&from, a.int("axis", 1)?),
        "Squeeze" => moves::squeeze(&from, call.ints_or(1, "axes")?.as_deref()),
        "Unsqueeze" => moves::unsqueeze(&from, &call.ints_or(1, "axes")?.unwrap_or_default()),
        "Transpose" => moves::transpose(&from, a.ints("perm")?.as_deref()),
        "Expand" => moves::expand(&from, &call.ints(1)?.unwrap_or_default()),
        "Tile" => moves::tile(&from, &call.ints(1)?.unwrap_or_default()),
        "Slice" => {
            let (b, e) = (call.ints(1)?.unwrap_or_default(), call.ints(2)?.unwrap_or_default());
            moves::slice(&from, &b, &e, call.ints(3)?.as_deref(), call.ints(4)?.as_deref())
        }
        "DepthToSpace" | "SpaceToDepth" => block_moves(call, &from)?,
        _ => return Ok(None),
    };
    let moves = moves.map_err(words)?;
    if call.op == "Expand" && matches!(v, Val::Const(_)) {
        // A large expanded literal stays a view of a small one.
        let to = moves.last().map_or(from, |m| m.shape(&[]));
        if check_size(&to).is_err() {
            return Ok(Some(Val::Node(cx.spread(v, &to)?)));
        }
    }
    cx.moved(v, &moves).map(Some)
}

fn block_moves(call: &Call, from: &[usize]) -> Res<Result<Vec<Move>, String>> {
    let &[n, c, h, w] = from else {
        return Ok(Err(format!("{from:?} is not [n,c,h,w]")));
    };
    let b = call.attrs.int("blocksize", 0)?;
    let b = usize::try_from(b).ok().filter(|b| (1..=1 << 15).contains(b));
    let b = b.ok_or_else(|| fail("P0206", "`blocksize` is not positive"))?;
    if call.op == "SpaceToDepth" {
        if !h.is_multiple_of(b) || !w.is_multiple_of(b) {
            return Ok(Err(format!("{from:?} does not consist of blocks of {b}")));
        }
        return Ok(Ok(vec![
            Move::Reshape(vec![n, c, h / b, b, w / b, b]),
            Move::Transpose(vec![0, 3, 5, 1, 2, 4]),
            Move::Reshape(vec![n, c * b * b, h / b, w / b]),
        ]));
    }
    if !c.is_multiple_of(b * b) {
        return Ok(Err(format!("{c} channels are not blocks of {b}")));
    }
    let k = c / (b * b);
    let (split, perm) = match call.attrs.string("mode", "DCR")?.as_str() {
        "CRD" => (vec![n, k, b, b, h, w], vec![0, 1, 4, 2, 5, 3]),
        _ => (vec![n, b, b, k, h, w], vec![0, 3, 4, 1, 5, 2]),
    };
    Ok(Ok(vec![
        Move::Reshape(split),
        Move::Transpose(perm),
        Move::Reshape(vec![n, k, h * b, w * b]),
    ]))
}

fn constant(call: &Call) -> Res<Val> {
    let a = &call.attrs;
    let t = if let Some(t) = a.tensor("value") {
        if t.data_location == Some(1) {
            return Err(fail("P0206", "a `Constant` with external data"));
        }
        Tensor::decode(t).map_err(|e| fail("P0210", e))?
    } else if a.has("value_int") {
        Tensor::new(Elem::I64, [], Data::Int(vec![a.int("value_int", 0)?]))
    } else if let Some(v) = a.ints("value_ints")? {
        Tensor::ints(v)
    } else if a.has("value_float") {
        Tensor::new(Elem::F32, [], Data::Real(vec![a.real("value_float", 0.0)?]))
    } else if let Some(v) = a.reals("value_floats") {
        Tensor::new(Elem::F32, [v.len()], Data::Real(v.iter().map(|&x| f64::from(x)).collect()))
    } else {
        return Err(fail("P0206", "a `Constant` without a numeric value"));
    };
    Ok(Val::constant(t))
}

fn gather(cx: &mut Importer, call: &Call) -> Res<Val> {
    let table = call.need(0)?.clone();
    let from = cx.shape(&table)?;
    let a = axis(call.attrs.int("axis", 0)?, from.len()).map_err(words)?;
    let ids = call.need(1)?.clone();
    if let Val::Const(t) = &ids
        && t.shape.is_empty()
    {
        // One index: a slice whose axis disappears.
        let at = t.to_ints().ok_or_else(|| words("the index is not integer".into()))?[0];
        let at = axis(at, from[a]).map_err(words)?;
        let mut to = from.clone();
        to.remove(a);
        return cx.moved(&table, &[part(&from, a, at, 1), Move::Reshape(to)]);
    }
    if cx.kind(&ids)? != Kind::Int {
        return Err(words("indices are not integer".into()));
    }
    if let Val::Const(t) = &ids {
        let n = from[a] as i64;
        if let Some(i) = t.to_ints().unwrap_or_default().iter().find(|i| !(-n..n).contains(*i)) {
            return Err(words(format!("index {i} of {n} elements")));
        }
    }
    let count = cx.shape(&ids)?.len();
    let (table, ids) = (cx.value(&table)?, cx.value(&ids)?);
    // Another axis is brought to the front, and the indices' axes back to its place.
    let mut perm: Vec<usize> = (0..from.len()).collect();
    perm.remove(a);
    perm.insert(0, a);
    let table = cx.transpose(table, &perm)?;
    let y = cx.one("", ops::Gather {}, &[table, ids])?;
    let y = if a == 0 { cx.without_padding(y, ids)? } else { y };
    let rank = cx.graph.shape(y).rank();
    let back: Vec<usize> = (count..count + a).chain(0..count).chain(count + a..rank).collect();
    Ok(Val::Node(cx.transpose(y, &back)?))
}

fn concat(cx: &mut Importer, call: &Call) -> Res<Val> {
    let mut parts = Vec::with_capacity(call.inputs.len());
    for i in 0..call.inputs.len() {
        let v = call.need(i)?.clone();
        // An empty part adds nothing (and exporters do write them).
        if !cx.shape(&v)?.contains(&0) || call.inputs.len() == 1 {
            parts.push(cx.value(&v)?);
        }
    }
    let first = *parts.first().ok_or_else(|| words("no operands with elements".into()))?;
    let a = axis(call.attrs.int("axis", 0)?, cx.graph.shape(first).rank()).map_err(words)?;
    if parts.len() == 1 {
        return Ok(Val::Node(first));
    }
    Ok(Val::Node(cx.one("", ops::Concat { axis: a }, &parts)?))
}

/// Padding with a constant: placement into zeros, and where the constant is not 0, into it.
fn pad(cx: &mut Importer, call: &Call) -> Res<Val> {
    let mode = call.attrs.string("mode", "constant")?;
    if mode != "constant" {
        return Err(fail("P0206", format!("`Pad` with mode \"{mode}\"")));
    }
    let x = cx.real(call, 0)?;
    let from = cx.graph.shape(x).to_vec();
    let pads = call.ints(1)?.ok_or_else(|| words("no pads".into()))?;
    let fill = call.literal(2)?.map_or(Some(0.0), Tensor::scalar);
    let fill = fill.ok_or_else(|| words("the fill is not a scalar".into()))?;
    let list = match call.ints(3)? {
        Some(l) => {
            l.iter().map(|&a| axis(a, from.len())).collect::<Result<Vec<_>, _>>().map_err(words)?
        }
        None => (0..from.len()).collect(),
    };
    if pads.len() != 2 * list.len() {
        return Err(words(format!("{} pads for {} axes", pads.len(), list.len())));
    }
    let (mut before, mut after) = (vec![0i64; from.len()], vec![0i64; from.len()]);
    for (i, &d) in list.iter().enumerate() {
        (before[d], after[d]) = (pads[i], pads[i + list.len()]);
        if before[d].abs().max(after[d].abs()) > 1 << 32 {
            return Err(words(format!("a padding of {}", before[d].max(after[d]))));
        }
    }
    // Negative padding cuts first.
    let starts: Vec<usize> = before.iter().map(|&b| (-b).max(0) as usize).collect();
    let mut sizes = Vec::new();
    for d in 0..from.len() {
        let n = from[d] as i64 + before[d].min(0) + after[d].min(0);
        sizes.push(
            usize::try_from(n)
                .map_err(|_| words(format!("pads {pads:?} cut more than {from:?}")))?,
        );
    }
    let x = cx.move_value(
        x,
        &[Move::Slice { starts, sizes: sizes.clone(), steps: vec![1; from.len()] }],
    )?;
    let starts: Vec<usize> = before.iter().map(|&b| b.max(0) as usize).collect();
    let shape: Vec<usize> =
        (0..from.len()).map(|d| sizes[d] + starts[d] + after[d].max(0) as usize).collect();
    if shape == sizes {
        return Ok(Val::Node(x));
    }
    let op = ops::Pad { starts: starts.clone(), steps: vec![1; from.len()], shape: shape.clone() };
    let y = cx.one("", op, &[x])?;
    if fill == 0.0 {
        return Ok(Val::Node(y));
    }
    check_size(&shape)?;
    let n: usize = shape.iter().product();
    let strides = crate::ir::Shape::new(&shape).strides();
    let inside = |i: usize| {
        (0..shape.len()).all(|d| {
            let at = (i / strides[d] as usize) % shape[d];
            (starts[d]..starts[d] + sizes[d]).contains(&at)
        })
    };
    let mask = Tensor::new(Elem::Bool, shape.clone(), Data::Bool((0..n).map(inside).collect()));
    let mask = cx.spread(&Val::constant(mask), &shape)?;
    let fill = cx.full(fill, &shape)?;
    Ok(Val::Node(cx.one("filled", ops::Select {}, &[mask, y, fill])?))
}
