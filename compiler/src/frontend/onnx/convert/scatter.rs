//! Scattering: rows of a flattened table that are replaced, added to, or compared.

use super::index::{Elements, elements, tuples, whole};
use super::words;
use crate::frontend::onnx::fold::check_size;
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{Move, axis};
use crate::frontend::onnx::node::fail;
use crate::frontend::onnx::origin;
use crate::frontend::onnx::tensor::{Data, Elem, Tensor};
use crate::ir::{ConstData, ValueId};
use crate::ops::{self, Op};
use precast_plan::{BinaryOp as B, Kind, ReduceOp, UnaryOp as U};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = match call.op {
        "ScatterElements" => scatter_elements(cx, call)?,
        "ScatterND" => scatter_nd(cx, call)?,
        _ => return Ok(None),
    };
    Ok(Some(vec![v]))
}

/// Whether this is an addition that the TorchScript exporter wrote as a replacement: `index_add` and
/// `index_put` with `accumulate` become a scattering into zeros, and an addition behind it. ONNX adds the
/// last of several rows with one index alone; PyTorch adds all of them, and has no meaning of its own for
/// a `scatter` of repeated indices.
fn adds_up(cx: &Importer, call: &Call) -> bool {
    let node = call.attrs.node();
    if !cx.src.producer.starts_with("pytorch") || origin::call(node).is_some() {
        return false;
    }
    let zeros = matches!(call.input(0), Some(Val::Const(t)) if t.splat() == Some(0.0));
    let nodes = || cx.src.every_node();
    let is = |name: Option<&String>, op: &str| {
        let made = nodes().find(|n| name.is_some_and(|name| n.output.contains(name)));
        made.and_then(|n| n.op_type.as_deref()) == Some(op)
    };
    // Those of `index_add`; `index_put` has tuples of indices.
    let spread = is(node.input.get(1), "Expand") && is(node.input.get(2), "Expand");
    let result = node.output.first();
    let mut readers = nodes().filter(|n| result.is_some_and(|r| n.input.contains(r)));
    let added = readers.next().is_some_and(|n| n.op_type.as_deref() == Some("Add"))
        && readers.next().is_none();
    zeros && added && (spread || call.op == "ScatterND")
}

/// Whether this is `scatter_reduce(…, "mean")`, which ONNX has no reduction for.
fn mean(call: &Call) -> bool {
    let Some(from) = origin::call(call.attrs.node()) else { return false };
    // Without the rows' own values zeros are put there first, by a node of the same call.
    let zeros = matches!(call.input(2), Some(Val::Const(t)) if t.splat() == Some(0.0));
    from.is("aten.scatter_reduce")
        && from.arg(4, "reduce").is_some_and(|r| r.trim_matches('\'') == "mean")
        && !(zeros && excludes_self(&from))
}

fn excludes_self(from: &origin::Call) -> bool {
    from.arg(5, "include_self") == Some("False")
}

/// The mean of each row and of the updates that name it, or of these alone; a row that none names is kept.
fn means(
    cx: &mut Importer,
    call: &Call,
    ids: ValueId,
    data: ValueId,
    updates: ValueId,
    rows: usize,
) -> Res<ValueId> {
    let alone = origin::call(call.attrs.node()).is_some_and(|from| excludes_self(&from));
    let shape = cx.graph.shape(updates).to_vec();
    let ones = cx.full(1.0, &[shape[0], 1])?;
    let count = cx.one("count", ops::ScatterAdd { rows }, &[ids, ones])?;
    let unit = cx.full(1.0, &[rows, 1])?;
    // Of a row that none names the sum is the row itself: the zeros that were put in rows that others
    // name are in no other.
    let count = match alone {
        true => cx.one("count", ops::Binary { f: B::Max }, &[count, unit])?,
        false => cx.one("count", ops::Binary { f: B::Add }, &[count, unit])?,
    };
    let sums = cx.one("sums", ops::ScatterAdd { rows }, &[ids, updates])?;
    let sums = cx.one("sums", ops::Binary { f: B::Add }, &[data, sums])?;
    let count = cx.move_value(count, &[Move::Broadcast(vec![rows, shape[1]])])?;
    cx.one("", ops::Binary { f: B::Div }, &[sums, count])
}

fn scatter_elements(cx: &mut Importer, call: &Call) -> Res<Val> {
    let from = cx.shape(call.need(0)?)?;
    let a = axis(call.attrs.int("axis", 0)?, from.len()).map_err(words)?;
    let (index, updates) = (call.need(1)?.clone(), call.need(2)?.clone());
    if cx.shape(&index)? != cx.shape(&updates)? {
        let (i, u) = (cx.shape(&index)?, cx.shape(&updates)?);
        return Err(words(format!("indices {i:?} and updates {u:?} differ")));
    }
    let e = elements(cx, &index, &from, a)?;
    scatter(cx, call, &index, &e)
}

fn scatter_nd(cx: &mut Importer, call: &Call) -> Res<Val> {
    let from = cx.shape(call.need(0)?)?;
    let (index, updates) = (call.need(1)?.clone(), call.need(2)?.clone());
    let e = tuples(cx, &index, &from, 0)?;
    let mut shape = cx.graph.shape(e.ids).to_vec();
    let k = cx.shape(&index)?.last().copied().unwrap_or(0);
    shape.extend_from_slice(&from[k..]);
    if shape != cx.shape(&updates)? {
        let u = cx.shape(&updates)?;
        return Err(words(format!("updates {u:?} are not {shape:?}")));
    }
    scatter(cx, call, &index, &e)
}

/// Rows of the first operand replaced by, or added to, those of the third. Of several indices that
/// name one row the last counts, as in a loop over them.
fn scatter(cx: &mut Importer, call: &Call, index: &Val, e: &Elements) -> Res<Val> {
    let (data, updates) = (call.need(0)?.clone(), call.need(2)?.clone());
    let kind = cx.kind(&data)?;
    if cx.kind(&updates)? != kind {
        return Err(words("data and updates are of different kinds".into()));
    }
    let shape = cx.shape(&data)?;
    let mut reduction = call.attrs.string("reduction", "none")?;
    if reduction == "none" && kind != Kind::Bool && adds_up(cx, call) {
        reduction = "add".into();
    }
    // torch.export writes a mean as a replacement; the call beside the node still says it.
    if mean(call) {
        reduction = "mean".into();
    }
    let places = cx.graph.shape(e.ids).to_vec();
    if places.contains(&0) || shape.contains(&0) {
        return Ok(data);
    }
    let rows = match &cx.graph.def(e.ids).op {
        Op::Const(c) => c.data.ints(),
        _ => None,
    };
    if let (Val::Const(d), Val::Const(u), Some(rows)) = (&data, &updates, &rows)
        && reduction != "mean"
    {
        return Ok(Val::constant(of_literals(d, u, rows, e.width, &reduction)?));
    }
    let (data, updates) = (cx.value(&data)?, cx.value(&updates)?);
    let flat = [e.rows, e.width];
    let count = places.iter().product();
    let data = cx.reshape(data, &flat)?;
    let updates = cx.reshape(updates, &[count, e.width])?;
    let ids = match rows {
        Some(v) => cx.one("rows", ops::Const { data: ConstData::from_i64([count], &v) }, &[])?,
        None => cx.reshape(e.ids, &[count])?,
    };
    let y = match (reduction.as_str(), kind) {
        ("add", Kind::Real) => {
            let sums = cx.one("sums", ops::ScatterAdd { rows: e.rows }, &[ids, updates])?;
            cx.one("", ops::Binary { f: B::Add }, &[data, sums])?
        }
        ("add", Kind::Int) => {
            let sums = sums_of_integers(cx, ids, updates, e.rows)?;
            cx.one("", ops::Binary { f: B::Add }, &[data, sums])?
        }
        ("mean", Kind::Real) => means(cx, call, ids, data, updates, e.rows)?,
        ("none", _) => replace(cx, index, ids, data, updates, flat)?,
        ("max" | "min" | "mul", Kind::Real | Kind::Int) => {
            by_mask(cx, call, &reduction, ids, data, updates, flat)?
        }
        (other, _) => {
            let what = format!("`{}` with `reduction` \"{other}\" of {kind}s", call.op);
            return Err(fail("P0206", what).help(
                "`none` is supported, `add`, `max`, `min` and `mul` of reals and integers, and `mean` of \
                 reals: cast what is averaged to float",
            ));
        }
    };
    Ok(Val::Node(cx.reshape(y, &shape)?))
}

/// Of literals alone, as in tables of positions that are filled part by part.
fn of_literals(
    data: &Tensor,
    updates: &Tensor,
    rows: &[i64],
    width: usize,
    reduction: &str,
) -> Res<Tensor> {
    check_size(&data.shape)?;
    macro_rules! scattered {
        ($d:expr, $u:expr, $($name:literal => $f:expr),*) => {{
            let mut y = $d.clone();
            let at = rows.iter().flat_map(|&r| (0..width).map(move |j| r as usize * width + j));
            for (at, &u) in at.zip($u) {
                y[at] = match reduction {
                    "none" => u,
                    $($name => $f(y[at], u),)*
                    other => return Err(fail("P0206", format!("`reduction` is \"{other}\""))),
                };
            }
            y
        }};
    }
    let new = match (&data.data, &updates.data) {
        (Data::Real(d), Data::Real(u)) => Data::Real(scattered!(
            d, u, "add" => |a, b| a + b, "mul" => |a, b| a * b, "max" => f64::max, "min" => f64::min
        )),
        (Data::Int(d), Data::Int(u)) => Data::Int(scattered!(
            d, u, "add" => i64::wrapping_add, "mul" => i64::wrapping_mul, "max" => i64::max,
            "min" => i64::min
        )),
        (Data::Bool(d), Data::Bool(u)) => Data::Bool(scattered!(d, u,)),
        _ => return Err(words("data and updates are of different kinds".into())),
    };
    Ok(Tensor::new(data.elem, data.shape.clone(), new))
}

/// Rows of integers added up by their ids, exact in 32 bits. Kernels add in f32: digits of eight bits,
/// unless the numbers are small.
fn sums_of_integers(
    cx: &mut Importer,
    ids: ValueId,
    updates: ValueId,
    rows: usize,
) -> Res<ValueId> {
    let shape = cx.graph.shape(updates).to_vec();
    let count = shape[0];
    let add = |cx: &mut Importer, x: ValueId| {
        let x = cx.one("real", ops::Unary { f: U::ToReal }, &[x])?;
        let y = cx.one("sums", ops::ScatterAdd { rows }, &[ids, x])?;
        cx.one("sums", ops::Unary { f: U::ToInt }, &[y])
    };
    if super::reduce::most(cx, updates).is_some_and(|m| m.saturating_mul(count) <= 1 << 24) {
        return add(cx, updates);
    }
    if count.saturating_mul(255) > 1 << 24 {
        let what = format!("`{count}` rows of integers that are added to a table");
        return Err(fail("P0206", what).help("add them as reals: `x.float()` in the module"));
    }
    let (mut left, mut total) = (updates, None);
    for digit in 0..4u32 {
        let own = match digit {
            3 => left,
            _ => {
                let (mask, base) = (whole(cx, 255, &shape)?, whole(cx, 256, &shape)?);
                let low = cx.one("digit", ops::Binary { f: B::And }, &[left, mask])?;
                let above = cx.one("above", ops::Binary { f: B::Sub }, &[left, low])?;
                left = cx.one("above", ops::Binary { f: B::Div }, &[above, base])?;
                low
            }
        };
        let mut sums = add(cx, own)?;
        if digit > 0 {
            let to = cx.graph.shape(sums).to_vec();
            let weight = whole(cx, 1 << (8 * digit), &to)?;
            sums = cx.one("sums", ops::Binary { f: B::Mul }, &[sums, weight])?;
        }
        total = Some(match total {
            None => sums,
            Some(t) => cx.one("sums", ops::Binary { f: B::Add }, &[t, sums])?,
        });
    }
    Ok(total.expect("four digits"))
}

/// Most elements that rows and updates may have between them.
const MASKED: usize = 1 << 24;

/// The maximum, minimum or product of each row and of the updates that name it: a reduction under a
/// mask over the row itself and all updates. Equal extrema share the cotangent evenly, the row among
/// them, as PyTorch's `scatter_reduce` has it.
fn by_mask(
    cx: &mut Importer,
    call: &Call,
    reduction: &str,
    ids: ValueId,
    data: ValueId,
    updates: ValueId,
    [rows, width]: [usize; 2],
) -> Res<ValueId> {
    let count = cx.graph.shape(ids)[0];
    let all = [rows, count + 1, width];
    let size = all.iter().try_fold(1usize, |n, d| n.checked_mul(*d));
    if size.is_none_or(|n| n > MASKED) {
        let what = format!(
            "`{}` with `reduction` \"{reduction}\" of {count} rows of {width} into {rows}",
            call.op
        );
        return Err(fail("P0206", what).help(format!(
            "every row is compared with every update, which takes no more than {MASKED} elements"
        )));
    }
    // Ids that were looked up in a table of row numbers are in range, and none counts from the end.
    let numbers = cx.one("numbers", ops::Iota { shape: vec![rows], axis: 0 }, &[])?;
    let ids = cx.one("ids", ops::Gather {}, &[numbers, ids])?;
    let here = [rows, count, width];
    let ids = cx.reshape(ids, &[1, count, 1])?;
    let ids = cx.move_value(ids, &[Move::Broadcast(here.to_vec())])?;
    let at = cx.one("row", ops::Iota { shape: here.to_vec(), axis: 0 }, &[])?;
    let named = cx.one("named", ops::Binary { f: B::Eq }, &[at, ids])?;
    let updates = cx.reshape(updates, &[1, count, width])?;
    let updates = cx.move_value(updates, &[Move::Broadcast(here.to_vec())])?;
    let real = cx.graph.ty(data).is_real();
    let none = match (reduction, real) {
        ("mul", true) => cx.full(1.0, &here)?,
        ("mul", false) => whole(cx, 1, &here)?,
        ("max", true) => cx.full(f64::NEG_INFINITY, &here)?,
        (_, true) => cx.full(f64::INFINITY, &here)?,
        (f, false) => {
            let x = if f == "max" { i32::MIN } else { i32::MAX };
            let t = Tensor::new(Elem::I32, [], Data::Int(vec![x.into()]));
            cx.spread(&Val::constant(t), &here)?
        }
    };
    let updates = cx.one("updates", ops::Select {}, &[named, updates, none])?;
    let data = cx.reshape(data, &[rows, 1, width])?;
    let all = cx.one("all", ops::Concat { axis: 1 }, &[data, updates])?;
    let f = if reduction == "max" { ReduceOp::Max } else { ReduceOp::Min };
    match (reduction, real) {
        ("mul", _) => super::reduce::product(cx, all, &[1]),
        (_, true) => cx.one("", ops::Reduce { f, axes: vec![1] }, &[all]),
        (_, false) => cx.one("", ops::ReduceInt { f, axes: vec![1] }, &[all]),
    }
}

/// Rows of `data` `[rows, width]` that `ids` names replaced by those of `updates`, the last one where
/// several have one id.
fn replace(
    cx: &mut Importer,
    index: &Val,
    ids: ValueId,
    data: ValueId,
    updates: ValueId,
    flat: [usize; 2],
) -> Res<ValueId> {
    let [rows, _] = flat;
    let real = cx.graph.ty(data).is_real();
    let literal = matches!(index, Val::Const(_)) && check_size(&[rows]).is_ok();
    // 1 + the last update of each row, and whether there is one.
    let (last, hit, won) = match (&cx.graph.def(ids).op, literal) {
        (Op::Const(c), true) => {
            let rows_of = c.data.ints().unwrap_or_default();
            let mut last = vec![0i64; rows];
            for (r, &id) in rows_of.iter().enumerate() {
                last[id as usize] = r as i64 + 1;
            }
            let hit = last.iter().map(|&l| l != 0).collect();
            let hit = Tensor::new(Elem::Bool, [rows], Data::Bool(hit));
            let won: Vec<bool> = rows_of
                .iter()
                .enumerate()
                .map(|(r, &id)| last[id as usize] == r as i64 + 1)
                .collect();
            let distinct = won.iter().all(|w| *w);
            let won = Tensor::new(Elem::Bool, [rows_of.len()], Data::Bool(won));
            let won = if distinct { None } else { Some(cx.value(&Val::constant(won))?) };
            let last =
                if real { None } else { Some(cx.value(&Val::constant(Tensor::ints(last)))?) };
            (last, cx.value(&Val::constant(hit))?, won)
        }
        _ => {
            let last = cx.one("last", ops::LastIndex { rows }, &[ids])?;
            let hit = cx.one("hit", ops::Unary { f: U::ToBool }, &[last])?;
            let won = if real {
                let winner = cx.one("winner", ops::Gather {}, &[last, ids])?;
                let shape = cx.graph.shape(ids).to_vec();
                let (own, one) = (
                    cx.one("own", ops::Iota { shape: shape.clone(), axis: 0 }, &[])?,
                    whole(cx, 1, &shape)?,
                );
                let own = cx.one("own", ops::Binary { f: B::Add }, &[own, one])?;
                Some(cx.one("won", ops::Binary { f: B::Eq }, &[winner, own])?)
            } else {
                None
            };
            (Some(last), hit, won)
        }
    };
    let wide = |cx: &mut Importer, v: ValueId, shape: [usize; 2]| {
        let v = cx.reshape(v, &[shape[0], 1])?;
        cx.move_value(v, &[Move::Broadcast(shape.to_vec())])
    };
    let new = match (real, last) {
        // Sums of one row each, and of nothing: exact, and differentiable in the updates.
        (true, _) => {
            let updates = match won {
                None => updates,
                Some(won) => {
                    let shape = cx.graph.shape(updates).to_vec();
                    let won = wide(cx, won, [shape[0], shape[1]])?;
                    let zero = cx.full(0.0, &shape)?;
                    cx.one("updates", ops::Select {}, &[won, updates, zero])?
                }
            };
            cx.one("placed", ops::ScatterAdd { rows }, &[ids, updates])?
        }
        (false, Some(last)) => {
            let (one, zero) = (whole(cx, 1, &[rows])?, whole(cx, 0, &[rows])?);
            let at = cx.one("at", ops::Binary { f: B::Sub }, &[last, one])?;
            let at = cx.one("at", ops::Binary { f: B::Max }, &[at, zero])?;
            cx.one("placed", ops::Gather {}, &[updates, at])?
        }
        (false, None) => unreachable!("places of integers were made"),
    };
    let hit = wide(cx, hit, flat)?;
    cx.one("", ops::Select {}, &[hit, new, data])
}
