//! Moving elements, indexing, shapes, sequences.

use super::words;
use crate::frontend::onnx::fold::{self, check_size};
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{self, Move, axis, part};
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor, checked_elements};
use crate::ir::ValueId;
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
            let results = call.outputs.len();
            let count = call.attrs.int("num_outputs", results as i64)?;
            if usize::try_from(count) != Ok(results) {
                return Err(fail(
                    "P0206",
                    format!("`num_outputs` is {count}, of {results} results"),
                ));
            }
            let sizes =
                moves::split_sizes(extent, given.as_deref(), Some(results)).map_err(words)?;
            parts(cx, v, a, &sizes, false).map(Some)
        }
        "SplitToSequence" => {
            let v = call.need(0)?;
            let (a, extent) = split_axis(cx, call)?;
            // Parts of given sizes keep their axis, whatever it says.
            let keep = call.attrs.int("keepdims", 1)? != 0;
            let (sizes, keep) = match call.literal(1)? {
                None => (vec![1; extent], keep),
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
            let items = sequence(call)?;
            let at =
                call.ints(1)?.filter(|v| v.len() == 1).ok_or_else(|| words("no index".into()))?;
            let at = axis(at[0], items.len()).map_err(words)?;
            one(items[at].clone())
        }
        "SequenceEmpty" => {
            call.attrs.without_effect(&["dtype"]);
            one(Val::Seq(vec![]))
        }
        "SequenceInsert" => {
            let mut items = sequence(call)?;
            let at = match call.ints(2)?.as_deref() {
                None => items.len(),
                // Behind the last is a place too.
                Some(&[i]) => {
                    let n = items.len() as i64;
                    let i = if i < 0 { i.saturating_add(n) } else { i };
                    usize::try_from(i)
                        .ok()
                        .filter(|i| *i <= items.len())
                        .ok_or_else(|| words(format!("place {i} in a sequence of {n}")))?
                }
                Some(list) => return Err(words(format!("place {list:?} in a sequence"))),
            };
            items.insert(at, call.need(1)?.clone());
            one(Val::Seq(items))
        }
        "SequenceLength" => {
            let n = sequence(call)?.len() as i64;
            one(Val::constant(Tensor::new(Elem::I64, [], Data::Int(vec![n]))))
        }
        "ConcatFromSequence" => {
            let (items, a) = (sequence(call)?, call.attrs.int("axis", 0)?);
            match call.attrs.int("new_axis", 0)? {
                0 => one(joined(cx, &items, a)?),
                _ => one(along_new(cx, &items, a)?),
            }
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
    if call.op == "ConstantOfShape" && matches!(call.input(0), Some(Val::Const(_))) {
        // It was too large to fold: a view of its number.
        let to = checked_elements(&call.ints(0)?.unwrap_or_default()).map_err(words)?.0;
        let number = match a.tensor("value") {
            Some(t) => Tensor::decode(t).map_err(words)?,
            None => Tensor::new(Elem::F32, [], Data::Real(vec![0.0])),
        };
        return Ok(Some(Val::Node(cx.spread(&Val::constant(number), &to)?)));
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
    let mode = call.attrs.string("mode", "DCR")?;
    let channels_first = match mode.as_str() {
        "CRD" => true,
        "DCR" => false,
        other => return Err(fail("P0206", format!("`{}` with mode \"{other}\"", call.op))),
    };
    if call.op == "SpaceToDepth" {
        if !h.is_multiple_of(b) || !w.is_multiple_of(b) {
            return Ok(Err(format!("{from:?} does not consist of blocks of {b}")));
        }
        let perm = if channels_first { vec![0, 1, 3, 5, 2, 4] } else { vec![0, 3, 5, 1, 2, 4] };
        return Ok(Ok(vec![
            Move::Reshape(vec![n, c, h / b, b, w / b, b]),
            Move::Transpose(perm),
            Move::Reshape(vec![n, c * b * b, h / b, w / b]),
        ]));
    }
    if !c.is_multiple_of(b * b) {
        return Ok(Err(format!("{c} channels are not blocks of {b}")));
    }
    let k = c / (b * b);
    let (split, perm) = if channels_first {
        (vec![n, k, b, b, h, w], vec![0, 1, 4, 2, 5, 3])
    } else {
        (vec![n, b, b, k, h, w], vec![0, 3, 4, 1, 5, 2])
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
    let y = match a {
        0 => {
            let y = cx.by_frequency(y, ids, from[0])?;
            cx.without_padding(y, ids)?
        }
        _ => y,
    };
    let rank = cx.graph.shape(y).rank();
    let back: Vec<usize> = (count..count + a).chain(0..count).chain(count + a..rank).collect();
    Ok(Val::Node(cx.transpose(y, &back)?))
}

fn concat(cx: &mut Importer, call: &Call) -> Res<Val> {
    let parts = (0..call.inputs.len()).map(|i| call.need(i).cloned()).collect::<Res<Vec<_>>>()?;
    joined(cx, &parts, call.attrs.int("axis", 0)?)
}

/// Parts one after the other along an axis.
fn joined(cx: &mut Importer, all: &[Val], a: i64) -> Res<Val> {
    let literals = all.iter().map(|v| match v {
        Val::Const(t) => Some(&**t),
        _ => None,
    });
    if let Some(parts) = literals.collect::<Option<Vec<_>>>().filter(|p| !p.is_empty()) {
        return Ok(Val::constant(fold::concat(&parts, a)?));
    }
    let mut parts = Vec::with_capacity(all.len());
    for v in all {
        // An empty part adds nothing (and exporters do write them).
        if !cx.shape(v)?.contains(&0) || all.len() == 1 {
            parts.push(cx.value(v)?);
        }
    }
    let first = *parts.first().ok_or_else(|| words("no operands with elements".into()))?;
    let a = axis(a, cx.graph.shape(first).rank()).map_err(words)?;
    if parts.len() == 1 {
        return Ok(Val::Node(first));
    }
    Ok(Val::Node(cx.one("", ops::Concat { axis: a }, &parts)?))
}

/// Values of one shape along a new first axis.
pub fn stacked(cx: &mut Importer, all: &[Val]) -> Res<Val> {
    along_new(cx, all, 0)
}

fn along_new(cx: &mut Importer, all: &[Val], a: i64) -> Res<Val> {
    let mut parts = Vec::with_capacity(all.len());
    for v in all {
        let from = cx.shape(v)?;
        let moves = moves::unsqueeze(&from, &[a]).map_err(words)?;
        parts.push(cx.moved(v, &moves)?);
    }
    joined(cx, &parts, a)
}

fn sequence(call: &Call) -> Res<Vec<Val>> {
    match call.need(0)? {
        Val::Seq(items) => Ok(items.clone()),
        _ => Err(fail("P0207", "operand 0 is not a sequence")),
    }
}

/// Padding with a constant: placement into zeros, and where the constant is not 0, into it. With
/// elements of the tensor itself: parts of it beside it, one axis after the other.
fn pad(cx: &mut Importer, call: &Call) -> Res<Val> {
    let mode = call.attrs.string("mode", "constant")?;
    // What other modes do not fill with.
    let fill = call.input(2).cloned();
    if !["constant", "reflect", "edge", "wrap"].contains(&mode.as_str()) {
        return Err(fail("P0206", format!("`Pad` with mode \"{mode}\"")));
    }
    let v = call.need(0)?.clone();
    let x = cx.value(&v)?;
    let from = cx.graph.shape(x).to_vec();
    let pads = call.ints_or(1, "pads")?.ok_or_else(|| words("no pads".into()))?;
    let list = match call.ints(3)? {
        Some(l) => moves::axes(&l, from.len())
            .and_then(|_| l.iter().map(|&a| axis(a, from.len())).collect::<Result<Vec<_>, _>>()),
        None => Ok((0..from.len()).collect()),
    };
    let list = list.map_err(words)?;
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
    let sides: Vec<[usize; 2]> =
        before.iter().zip(&after).map(|(&b, &a)| [b.max(0) as usize, a.max(0) as usize]).collect();
    if sides.iter().all(|s| *s == [0, 0]) {
        return Ok(Val::Node(x));
    }
    if mode != "constant" {
        let mut x = x;
        for (d, &side) in sides.iter().enumerate() {
            x = beside(cx, x, d, side, &mode)?;
        }
        return Ok(Val::Node(x));
    }
    let shape: Vec<usize> = sizes.iter().zip(&sides).map(|(n, [b, a])| n + b + a).collect();
    if !cx.graph.ty(x).is_real() {
        return filled(cx, x, &sides, fill);
    }
    let fill = match call.literal(2)? {
        Some(t) => t.scalar(),
        None => Some(call.attrs.real("value", 0.0)?),
    };
    let fill = fill.ok_or_else(|| words("the fill is not a scalar".into()))?;
    let starts: Vec<usize> = sides.iter().map(|s| s[0]).collect();
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

/// Integers and booleans padded with a constant.
fn filled(cx: &mut Importer, x: ValueId, sides: &[[usize; 2]], fill: Option<Val>) -> Res<Val> {
    let bool = cx.graph.ty(x).kind() == Kind::Bool;
    let zero = if bool { Data::Bool(vec![false]) } else { Data::Int(vec![0]) };
    let elem = if bool { Elem::Bool } else { Elem::I64 };
    let fill = fill.unwrap_or_else(|| Val::constant(Tensor::new(elem, [], zero)));
    let cast = match &fill {
        Val::Const(t) if !bool => Some(Val::constant(t.cast(Elem::I64))),
        _ => None,
    };
    let fill = cast.unwrap_or(fill);
    let mut x = x;
    for (d, &[before, after]) in sides.iter().enumerate() {
        let mut parts = vec![x];
        for (at, n) in [(0, before), (usize::MAX, after)] {
            if n > 0 {
                let mut shape = cx.graph.shape(x).to_vec();
                shape[d] = n;
                let part = cx.spread(&fill, &shape)?;
                parts.insert(at.min(parts.len()), part);
            }
        }
        if parts.len() > 1 {
            x = cx.one("", ops::Concat { axis: d }, &parts)?;
        }
    }
    Ok(Val::Node(x))
}

/// One axis padded with the tensor's own elements: mirrored without the edge, the edge repeated, or
/// from the other end.
fn beside(
    cx: &mut Importer,
    x: ValueId,
    d: usize,
    [before, after]: [usize; 2],
    mode: &str,
) -> Res<ValueId> {
    let from = cx.graph.shape(x).to_vec();
    let n = from[d];
    let most = match mode {
        "reflect" => n.saturating_sub(1),
        "wrap" => n,
        _ if n == 0 => 0,
        _ => usize::MAX,
    };
    if before.max(after) > most {
        let text = format!("`Pad` with mode \"{mode}\" of {} beside {n}", before.max(after));
        return Err(fail("P0206", text));
    }
    let mut parts = vec![];
    for (first, count) in [(true, before), (false, after)] {
        if count > 0 {
            let (start, step) = match (mode, first) {
                ("reflect", true) => (before, -1),
                ("reflect", false) => (n - 2, -1),
                ("wrap", true) => (n - before, 1),
                ("wrap", false) | (_, true) => (0, 1),
                (_, false) => (n - 1, 1),
            };
            let edge = mode == "edge";
            let (mut starts, mut steps) = (vec![0; from.len()], vec![1; from.len()]);
            (starts[d], steps[d]) = (start, step);
            let mut sizes = from.clone();
            sizes[d] = if edge { 1 } else { count };
            let mut moves = vec![Move::Slice { starts, sizes: sizes.clone(), steps }];
            if edge {
                sizes[d] = count;
                moves.push(Move::Broadcast(sizes));
            }
            parts.push(cx.move_value(x, &moves)?);
        }
        if first {
            parts.push(x);
        }
    }
    if parts.len() == 1 { Ok(x) } else { cx.one("", ops::Concat { axis: d }, &parts) }
}
