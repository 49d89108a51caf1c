//! Order and places along an axis: running sums, the largest, ranges, one-hot codes, triangles.

use super::index::{rows_of_batch, take_places, whole};
use super::words;
use crate::frontend::onnx::fold::check_size;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{Move, axis, part};
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ir::{ConstData, ValueId};
use crate::ops::{self, Op};
use precast_plan::{BinaryOp as B, Kind, ReduceOp, UnaryOp as U};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = match call.op {
        "TopK" => return top_k(cx, call).map(Some),
        "EyeLike" => return eye(cx, call).map(|v| Some(vec![v])),
        "CumSum" => cumsum(cx, call)?,
        "ArgMax" => arg_extreme(cx, call, true)?,
        "ArgMin" => arg_extreme(cx, call, false)?,
        "OneHot" => return Ok(Some(vec![one_hot(cx, call)?])),
        "Trilu" => triangle(cx, call)?,
        "Range" => range(cx, call)?,
        "ReverseSequence" => reverse_sequence(cx, call)?,
        "Compress" => compress(cx, call)?,
        "NonZero" | "Unique" => {
            let what =
                format!("`{}` is evaluated when compiling, but here it depends on data", call.op);
            return Err(fail("P0216", what).help(
                "a plan has fixed extents: write the model with a mask (`torch.where(mask, x, 0)`, a \
                 sum weighted by the mask) instead of picking elements by a condition",
            ));
        }
        _ => return Ok(None),
    };
    Ok(Some(vec![Val::Node(v)]))
}

/// The coordinate along an axis.
fn iota(cx: &mut Importer, shape: &[usize], axis: usize) -> Res<ValueId> {
    cx.one("at", ops::Iota { shape: shape.to_vec(), axis }, &[])
}

/// The single literal integer of operand `i`.
fn literal_int(call: &Call, i: usize, what: &str) -> Res<Option<i64>> {
    match call.ints(i)?.as_deref() {
        None => Ok(None),
        Some(&[x]) => Ok(Some(x)),
        Some(_) => Err(words(format!("{what} is not one number"))),
    }
}

fn cumsum(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let v = call.need(0)?.clone();
    let mut x = cx.value(&v)?;
    // The TorchScript exporter drops the cast of `mask.cumsum(1)`.
    if cx.kind(&v)? == Kind::Bool {
        x = cx.one("whole", ops::Unary { f: U::ToInt }, &[x])?;
    }
    let a = literal_int(call, 1, "the axis")?.ok_or_else(|| words("no axis".into()))?;
    let a = axis(a, cx.graph.shape(x).rank()).map_err(words)?;
    let flag = |name: &str| call.attrs.int(name, 0).map(|v| v != 0);
    let op = ops::CumSum { axis: a, exclusive: flag("exclusive")?, reverse: flag("reverse")? };
    cx.one("", op, &[x])
}

/// Values, which are gathered at the places, and places.
fn top_k(cx: &mut Importer, call: &Call) -> Res<Vec<Val>> {
    let v = call.need(0)?.clone();
    let x = cx.value(&v)?;
    let shape = cx.graph.shape(x).to_vec();
    let a = axis(call.attrs.int("axis", -1)?, shape.len()).map_err(words)?;
    let k = literal_int(call, 1, "k")?.ok_or_else(|| words("no k".into()))?;
    let k = usize::try_from(k).ok().filter(|k| (1..=shape[a]).contains(k));
    let k = k.ok_or_else(|| words(format!("k is not from 1 to the extent {}", shape[a])))?;
    // Where order does not matter this order does as well.
    call.attrs.int("sorted", 1)?;
    let largest = call.attrs.int("largest", 1)? != 0;
    let at = cx.one("places", ops::TopK { axis: a, k, largest }, &[x])?;
    let values = if call.wants(0) { take_places(cx, x, at, a)? } else { at };
    Ok(vec![Val::Node(values), Val::Node(at)])
}

/// Most elements of an axis whose places f32 tells apart.
const EXACT: usize = 1 << 24;

/// Places of the extreme elements along an axis, which has extent 1 afterwards: the first or the last
/// of equal ones. A NaN is the extreme, as in PyTorch.
fn places(cx: &mut Importer, x: ValueId, a: usize, largest: bool, last: bool) -> Res<ValueId> {
    let shape = cx.graph.shape(x).to_vec();
    let n = shape[a];
    if n == 0 {
        return Err(words(format!("the extreme of no elements of {shape:?}")));
    }
    if !cx.graph.ty(x).is_real() || n > EXACT {
        let steps: Vec<i64> = (0..shape.len()).map(|d| if d == a { -1 } else { 1 }).collect();
        let mut starts = vec![0; shape.len()];
        starts[a] = n - 1;
        let back = Move::Slice { starts, sizes: shape.clone(), steps };
        let seen = if last { cx.move_value(x, &[back])? } else { x };
        let at = cx.one("places", ops::TopK { axis: a, k: 1, largest }, &[seen])?;
        if !last {
            return Ok(at);
        }
        let kept = cx.graph.shape(at).to_vec();
        let end = whole(cx, n - 1, &kept)?;
        return cx.one("places", ops::Binary { f: B::Sub }, &[end, at]);
    }
    let mut kept = shape.clone();
    kept[a] = 1;
    let f = if largest { ReduceOp::Max } else { ReduceOp::Min };
    let m = cx.one("extreme", ops::Reduce { f, axes: vec![a] }, &[x])?;
    let m = cx.reshape(m, &kept)?;
    let m = cx.move_value(m, &[Move::Broadcast(shape.clone())])?;
    let equal = cx.one("equal", ops::Binary { f: B::Eq }, &[x, m])?;
    let number = cx.one("number", ops::Binary { f: B::Eq }, &[x, x])?;
    let nan = cx.one("nan", ops::Unary { f: U::Not }, &[number])?;
    let hit = cx.one("hit", ops::Binary { f: B::Or }, &[equal, nan])?;
    let at = iota(cx, &shape, a)?;
    let at = cx.one("at", ops::Unary { f: U::ToReal }, &[at])?;
    let none = cx.full(if last { -1.0 } else { n as f64 }, &shape)?;
    let at = cx.one("at", ops::Select {}, &[hit, at, none])?;
    let f = if last { ReduceOp::Max } else { ReduceOp::Min };
    let at = cx.one("place", ops::Reduce { f, axes: vec![a] }, &[at])?;
    let at = cx.one("place", ops::Unary { f: U::ToInt }, &[at])?;
    cx.reshape(at, &kept)
}

fn arg_extreme(cx: &mut Importer, call: &Call, largest: bool) -> Res<ValueId> {
    let v = call.need(0)?.clone();
    let x = cx.value(&v)?;
    let mut shape = cx.graph.shape(x).to_vec();
    let a = axis(call.attrs.int("axis", 0)?, shape.len()).map_err(words)?;
    let last = call.attrs.int("select_last_index", 0)? != 0;
    let at = places(cx, x, a, largest, last)?;
    if call.attrs.int("keepdims", 1)? != 0 {
        return Ok(at);
    }
    shape.remove(a);
    cx.reshape(at, &shape)
}

/// `values[1]` where the coordinate along the new axis is the index, `values[0]` elsewhere. Negative
/// indices count from the end; one outside has no element.
fn one_hot(cx: &mut Importer, call: &Call) -> Res<Val> {
    let index = call.need(0)?.clone();
    let shape = cx.shape(&index)?;
    let depth = match call.literal(1)? {
        Some(t) if t.len() == 1 => t.cast(Elem::I64).to_ints().unwrap_or_default()[0],
        _ => return Err(words("the depth is not one number".into())),
    };
    let depth = usize::try_from(depth).ok().filter(|d| i32::try_from(*d).is_ok());
    let depth = depth.ok_or_else(|| words("the depth is negative or too large".into()))?;
    let values = call.need(2)?.clone();
    if cx.shape(&values)? != [2] {
        return Err(words(format!("values {:?} are not two", cx.shape(&values)?)));
    }
    let a = axis(call.attrs.int("axis", -1)?, shape.len() + 1).map_err(words)?;
    let mut thin = shape.clone();
    thin.insert(a, 1);
    let mut to = shape;
    to.insert(a, depth);
    if let (Val::Const(ids), Val::Const(values)) = (&index, &values) {
        check_size(&to)?;
        let ids = ids.cast(Elem::I64).to_ints().unwrap_or_default();
        let inner: usize = to[a + 1..].iter().product();
        let on = |at: usize| {
            let (outer, rest) = (at / (inner * depth), at % (inner * depth));
            let id = ids[outer * inner + rest % inner];
            let id = if id < 0 { id.saturating_add(depth as i64) } else { id };
            usize::from(id == (rest / inner) as i64)
        };
        let picked: Vec<usize> = (0..to.iter().product()).map(on).collect();
        return Ok(Val::constant(values.pick(to, &picked)));
    }
    let ids = cx.value(&index)?;
    let ids = match cx.graph.ty(ids).kind() {
        Kind::Int => ids,
        _ => cx.one("index", ops::Unary { f: U::ToInt }, &[ids])?,
    };
    let ids = cx.move_value(ids, &[Move::Reshape(thin), Move::Broadcast(to.clone())])?;
    let (zero, n) = (whole(cx, 0, &to)?, whole(cx, depth, &to)?);
    let negative = cx.one("negative", ops::Binary { f: B::Lt }, &[ids, zero])?;
    let moved = cx.one("from_end", ops::Binary { f: B::Add }, &[ids, n])?;
    let ids = cx.one("index", ops::Select {}, &[negative, moved, ids])?;
    let at = iota(cx, &to, a)?;
    let hit = cx.one("hit", ops::Binary { f: B::Eq }, &[at, ids])?;
    let [off, on] = [0, 1].map(|i| part(&[2], 0, i, 1));
    let (off, on) = (cx.moved(&values, &[off])?, cx.moved(&values, &[on])?);
    let (off, on) = (cx.spread(&off, &to)?, cx.spread(&on, &to)?);
    Ok(Val::Node(cx.one("", ops::Select {}, &[hit, on, off])?))
}

/// A literal: only the extents of the operand count.
fn eye(cx: &mut Importer, call: &Call) -> Res<Val> {
    let v = call.need(0)?;
    let [rows, cols] = cx.shape(v)?[..] else {
        return Err(words("the operand is not a matrix".into()));
    };
    check_size(&[rows, cols])?;
    let elem = if call.attrs.has("dtype") {
        let code = i32::try_from(call.attrs.int("dtype", 0)?).unwrap_or(0);
        let known = Elem::from_onnx(code);
        known.ok_or_else(|| fail("P0207", format!("a matrix of {}", Elem::code_name(code))))?
    } else {
        match (v, cx.kind(v)?) {
            (Val::Const(t), _) => t.elem,
            (_, Kind::Real) => Elem::F32,
            (_, Kind::Int) => Elem::I64,
            (_, Kind::Bool) => Elem::Bool,
        }
    };
    let k = call.attrs.int("k", 0)?;
    let one = |i: usize| ((i / cols) as i64).checked_add(k) == Some((i % cols) as i64);
    let ones = (0..rows * cols).map(|i| i64::from(one(i))).collect();
    Ok(Val::constant(Tensor::new(Elem::I64, [rows, cols], Data::Int(ones)).cast(elem)))
}

fn triangle(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let v = call.need(0)?.clone();
    let x = cx.value(&v)?;
    let shape = cx.graph.shape(x).to_vec();
    let rank = shape.len();
    if rank < 2 {
        return Err(words("the operand has fewer than two axes".into()));
    }
    let k = literal_int(call, 1, "the diagonal")?.unwrap_or(0);
    // Beyond the matrix in either direction all diagonals are alike.
    let most = shape[rank - 2].max(shape[rank - 1]) as i64 + 1;
    let k = k.clamp(-most, most);
    let (row, col) = (iota(cx, &shape, rank - 2)?, iota(cx, &shape, rank - 1)?);
    let by = whole(cx, k.unsigned_abs() as usize, &shape)?;
    let f = if k < 0 { B::Sub } else { B::Add };
    let diagonal = cx.one("diagonal", ops::Binary { f }, &[row, by])?;
    let sides = if call.attrs.int("upper", 1)? != 0 { [diagonal, col] } else { [col, diagonal] };
    let keep = cx.one("keep", ops::Binary { f: B::Le }, &sides)?;
    let kind = cx.graph.ty(x).kind();
    if kind == Kind::Bool {
        return cx.one("", ops::Binary { f: B::And }, &[keep, x]);
    }
    let zero = if kind == Kind::Real { cx.full(0.0, &shape)? } else { whole(cx, 0, &shape)? };
    cx.one("", ops::Select {}, &[keep, x, zero])
}

/// From a value of the model by a literal step, as many as the literal that the limit adds to it says.
fn range(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let unknown = || {
        fail("P0216", "the extent of the `Range` depends on data").help(
            "a plan has fixed extents: let the limit follow from extents, or be the start plus a number",
        )
    };
    let (start, limit) = (call.need(0)?.clone(), call.need(1)?.clone());
    let delta = call.literal(2)?.cloned().ok_or_else(|| words("no delta".into()))?;
    let (Val::Node(from), Val::Node(to)) = (&start, &limit) else { return Err(unknown()) };
    let (from, def) = (*from, cx.graph.def(*to));
    let Op::Binary(b) = &def.op else { return Err(unknown()) };
    let literal = |v: ValueId| match &cx.graph.def(v).op {
        Op::Const(c) => match (c.data.f32s(), c.data.ints()) {
            (Some(x), _) if x.len() == 1 => Some(f64::from(x[0])),
            (_, Some(x)) if x.len() == 1 => Some(x[0] as f64),
            _ => None,
        },
        _ => None,
    };
    let length = match (b.f, def.inputs[0] == from, def.inputs[1] == from) {
        (B::Add, true, _) => literal(def.inputs[1]),
        (B::Add, _, true) => literal(def.inputs[0]),
        (B::Sub, true, _) => literal(def.inputs[1]).map(|x| -x),
        _ => None,
    };
    let length = length.ok_or_else(unknown)?;
    let by = delta.scalar().filter(|d| *d != 0.0).ok_or_else(|| words("delta is 0".into()))?;
    let n = (length / by).ceil().max(0.0);
    if n.is_nan() || n >= EXACT as f64 {
        return Err(words(format!("a range of {n} elements")));
    }
    let shape = [n as usize];
    let at = iota(cx, &shape, 0)?;
    let real = cx.graph.ty(from).is_real();
    let at = if real { cx.one("at", ops::Unary { f: U::ToReal }, &[at])? } else { at };
    let by = cx.spread(&Val::constant(delta), &shape)?;
    let at = cx.one("steps", ops::Binary { f: B::Mul }, &[at, by])?;
    let from = cx.spread(&start, &shape)?;
    cx.one("", ops::Binary { f: B::Add }, &[from, at])
}

/// The first `lengths[b]` steps of every batch element in reverse order.
fn reverse_sequence(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let v = call.need(0)?.clone();
    let x = cx.value(&v)?;
    let shape = cx.graph.shape(x).to_vec();
    let rank = shape.len();
    let axes = (call.attrs.int("batch_axis", 1)?, call.attrs.int("time_axis", 0)?);
    let (b, t) = match axes {
        (0, 1) if rank >= 2 => (0, 1),
        (1, 0) if rank >= 2 => (1, 0),
        _ => return Err(fail("P0206", format!("batch axis {}, time axis {}", axes.0, axes.1))),
    };
    let mut perm: Vec<usize> = (0..rank).collect();
    (perm[0], perm[1]) = (b, t);
    // Its own inverse: the first two axes are kept or swapped.
    let x = cx.transpose(x, &perm)?;
    let (batch, steps) = (shape[b], shape[t]);
    let lengths = call.need(1)?.clone();
    if cx.shape(&lengths)? != [batch] || cx.kind(&lengths)? != Kind::Int {
        return Err(words(format!("lengths {:?} for a batch of {batch}", cx.shape(&lengths)?)));
    }
    let flat = [batch, steps];
    let lengths = cx.moved(&lengths, &[Move::Reshape(vec![batch, 1])])?;
    let lengths = cx.spread(&lengths, &flat)?;
    let at = iota(cx, &flat, 1)?;
    let inside = cx.one("inside", ops::Binary { f: B::Lt }, &[at, lengths])?;
    let one = whole(cx, 1, &flat)?;
    let back = cx.one("back", ops::Binary { f: B::Sub }, &[lengths, at])?;
    let back = cx.one("back", ops::Binary { f: B::Sub }, &[back, one])?;
    let at = cx.one("place", ops::Select {}, &[inside, back, at])?;
    let ids = rows_of_batch(cx, at, steps)?;
    let moved = cx.graph.shape(x).to_vec();
    let mut rows = moved.clone();
    rows.splice(..2, [batch * steps]);
    let table = cx.reshape(x, &rows)?;
    let y = cx.one("", ops::Gather {}, &[table, ids])?;
    cx.transpose(y, &perm)
}

/// Rows by a literal condition.
fn compress(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let Some(Val::Const(condition)) = call.input(1) else {
        let what = "`Compress` is evaluated when compiling, but here it depends on data";
        return Err(fail("P0216", what).help(
            "a plan has fixed extents: keep all rows and multiply those that do not count by 0",
        ));
    };
    let keep = condition.to_ints().ok_or_else(|| words("the condition is not bool".into()))?;
    let v = call.need(0)?.clone();
    let mut x = cx.value(&v)?;
    let mut from = cx.graph.shape(x).to_vec();
    let a = if call.attrs.has("axis") {
        axis(call.attrs.int("axis", 0)?, from.len()).map_err(words)?
    } else {
        from = vec![from.iter().product()];
        x = cx.reshape(x, &from)?;
        0
    };
    if keep.len() > from[a] {
        return Err(words(format!("{} conditions for {} elements", keep.len(), from[a])));
    }
    let ids: Vec<i64> = (0..).zip(&keep).filter(|(_, k)| **k != 0).map(|(i, _)| i).collect();
    let data = ConstData::from_i64([ids.len()], &ids);
    let ids = cx.one("rows", ops::Const { data }, &[])?;
    let mut perm: Vec<usize> = (0..from.len()).collect();
    perm.swap(0, a);
    let table = cx.transpose(x, &perm)?;
    let y = cx.one("", ops::Gather {}, &[table, ids])?;
    cx.transpose(y, &perm)
}
