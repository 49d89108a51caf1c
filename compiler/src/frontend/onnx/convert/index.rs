//! Gathering by indices of the running graph, and where elements are scattered to: rows of a flattened
//! table.
//!
//! An operator that takes an index for each element, or several indices for each row, becomes one
//! gather: a row number of the table, flattened as far as the indices reach, is calculated from the
//! indices and from where they stand. Row numbers are 32-bit integers. Indices count from the end where
//! they are negative; one outside its axis becomes a row behind the table, so that it is an error of
//! the data and never another element.

use super::words;
use crate::frontend::onnx::fold::{check_size, element_positions, gather_nd_rows};
use crate::frontend::onnx::import::{Call, Importer, Res, Val};
use crate::frontend::onnx::moves::{Move, axis};
use crate::frontend::onnx::node::fail;
use crate::ir::{ConstData, ValueId};
use crate::ops::{self, Op};
use precast_plan::{BinaryOp as B, Kind};

pub fn convert(cx: &mut Importer, call: &Call) -> Res<Option<Vec<Val>>> {
    let v = match call.op {
        "GatherElements" => gather_elements(cx, call)?,
        "GatherND" => gather_nd(cx, call)?,
        _ => return Ok(None),
    };
    Ok(Some(vec![Val::Node(v)]))
}

/// Row numbers that are known when compiling.
fn literal_rows(cx: &mut Importer, rows: &[usize], shape: &[usize]) -> Res<ValueId> {
    check_size(&[rows.len()])?;
    let ids: Vec<i64> = rows.iter().map(|&r| r as i64).collect();
    cx.one("rows", ops::Const { data: ConstData::from_i64(shape.to_vec(), &ids) }, &[])
}

/// An integer everywhere in `shape`.
pub fn whole(cx: &mut Importer, x: usize, shape: &[usize]) -> Res<ValueId> {
    let data = ConstData::from_i64(vec![1; shape.len()], &[x as i64]);
    let c = cx.one("const", ops::Const { data }, &[])?;
    if shape.iter().all(|&d| d == 1) {
        return Ok(c);
    }
    cx.one("broadcast", ops::Broadcast { shape: shape.to_vec() }, &[c])
}

/// Refuses tables whose rows 32-bit integers do not number.
fn numbered(rows: usize) -> Res<()> {
    match i32::try_from(rows) {
        Ok(_) => Ok(()),
        Err(_) => Err(fail("P0206", format!("indices into {rows} elements"))
            .help("at most 2147483647 elements are indexed by values of the model; index fewer axes at once")),
    }
}

/// Row numbers `Σ index · stride` that are calculated term by term.
struct RowNumbers {
    shape: Vec<usize>,
    /// Rows of the table, which is the number of a row that does not exist.
    rows: usize,
    sum: Option<ValueId>,
    inside: Option<ValueId>,
}

impl RowNumbers {
    fn new(shape: &[usize], rows: usize) -> Res<RowNumbers> {
        numbered(rows)?;
        Ok(RowNumbers { shape: shape.to_vec(), rows, sum: None, inside: None })
    }

    fn plus(&mut self, cx: &mut Importer, term: ValueId, stride: usize) -> Res<()> {
        let term = if stride == 1 {
            term
        } else {
            let by = whole(cx, stride, &self.shape)?;
            cx.one("stride", ops::Binary { f: B::Mul }, &[term, by])?
        };
        self.sum = Some(match self.sum {
            None => term,
            Some(sum) => cx.one("row", ops::Binary { f: B::Add }, &[sum, term])?,
        });
        Ok(())
    }

    /// Where the index itself stands along an axis.
    fn place(&mut self, cx: &mut Importer, axis: usize, stride: usize) -> Res<()> {
        if self.shape[axis] == 1 {
            return Ok(());
        }
        let at = cx.one("at", ops::Iota { shape: self.shape.clone(), axis }, &[])?;
        self.plus(cx, at, stride)
    }

    /// An index into `extent` elements.
    fn index(&mut self, cx: &mut Importer, ids: ValueId, extent: usize, stride: usize) -> Res<()> {
        let (zero, n) = (whole(cx, 0, &self.shape)?, whole(cx, extent, &self.shape)?);
        let back = cx.one("negative", ops::Binary { f: B::Lt }, &[ids, zero])?;
        let moved = cx.one("from_end", ops::Binary { f: B::Add }, &[ids, n])?;
        let at = cx.one("index", ops::Select {}, &[back, moved, ids])?;
        for (f, x) in [(B::Le, [zero, at]), (B::Lt, [at, n])] {
            let holds = cx.one("inside", ops::Binary { f }, &x)?;
            self.inside = Some(match self.inside {
                None => holds,
                Some(all) => cx.one("inside", ops::Binary { f: B::And }, &[all, holds])?,
            });
        }
        self.plus(cx, at, stride)
    }

    fn finish(self, cx: &mut Importer) -> Res<ValueId> {
        let sum = match self.sum {
            Some(sum) => sum,
            None => whole(cx, 0, &self.shape)?,
        };
        let Some(inside) = self.inside else { return Ok(sum) };
        let none = whole(cx, self.rows, &self.shape)?;
        cx.one("rows", ops::Select {}, &[inside, sum, none])
    }
}

/// What an index for each element of a tensor means: rows of the tensor flattened to `[rows, width]`.
pub(super) struct Elements {
    /// Row numbers.
    pub ids: ValueId,
    pub rows: usize,
    pub width: usize,
}

/// The number of trailing axes, behind `a`, along which the indices are equal and as many as the
/// table has elements: whole rows are gathered there.
fn repeated(cx: &Importer, ids: ValueId, from: &[usize], a: usize) -> usize {
    let Op::Broadcast(_) = cx.graph.def(ids).op else { return 0 };
    let small = cx.graph.shape(cx.graph.def(ids).inputs[0]);
    let shape = cx.graph.shape(ids);
    (a + 1..from.len()).rev().take_while(|&d| small[d] == 1 && shape[d] == from[d]).count()
}

/// Row numbers for `GatherElements` and `ScatterElements` over a tensor of extents `from`.
pub(super) fn elements(cx: &mut Importer, index: &Val, from: &[usize], a: usize) -> Res<Elements> {
    if cx.kind(index)? != Kind::Int {
        return Err(words("indices are not integer".into()));
    }
    let shape = cx.shape(index)?;
    let fits = shape.len() == from.len() && (0..from.len()).all(|d| d == a || shape[d] <= from[d]);
    if !fits {
        return Err(words(format!("indices {shape:?} do not fit {from:?}")));
    }
    let total: usize = from.iter().product();
    if let Val::Const(t) = index {
        numbered(total)?;
        let rows = element_positions(from, t, a)?;
        let ids = literal_rows(cx, &rows, &shape)?;
        return Ok(Elements { ids, rows: total, width: 1 });
    }
    let ids = cx.value(index)?;
    let reach = from.len() - repeated(cx, ids, from, a);
    let width: usize = from[reach..].iter().product();
    let mut sizes = shape.clone();
    sizes[reach..].fill(1);
    let one_of = Move::Slice { starts: vec![0; from.len()], sizes, steps: vec![1; from.len()] };
    let ids = cx.move_value(ids, &[one_of, Move::Reshape(shape[..reach].to_vec())])?;
    let mut sum = RowNumbers::new(&shape[..reach], total / width.max(1))?;
    let strides = crate::ir::Shape::new(&from[..reach]).strides();
    for d in (0..reach).filter(|&d| d != a) {
        sum.place(cx, d, strides[d] as usize)?;
    }
    sum.index(cx, ids, from[a], strides[a] as usize)?;
    let rows = sum.rows;
    Ok(Elements { ids: sum.finish(cx)?, rows, width })
}

/// Elements of `table` whose coordinates along axis `a` are `at`, which are in range.
pub(super) fn take_places(
    cx: &mut Importer,
    table: ValueId,
    at: ValueId,
    a: usize,
) -> Res<ValueId> {
    let from = cx.graph.shape(table).to_vec();
    let shape = cx.graph.shape(at).to_vec();
    let total = from.iter().product();
    let strides = crate::ir::Shape::new(&from).strides();
    let mut sum = RowNumbers::new(&shape, total)?;
    for d in (0..from.len()).filter(|&d| d != a) {
        sum.place(cx, d, strides[d] as usize)?;
    }
    sum.plus(cx, at, strides[a] as usize)?;
    let ids = sum.finish(cx)?;
    let table = cx.reshape(table, &[total])?;
    cx.one("", ops::Gather {}, &[table, ids])
}

/// Rows `ids` of a table flattened to `[rows, width]`, where row numbers are of `[batch, steps]`: the
/// row `at[b, t]` of batch element b.
pub(super) fn rows_of_batch(cx: &mut Importer, at: ValueId, extent: usize) -> Res<ValueId> {
    let shape = cx.graph.shape(at).to_vec();
    let mut sum = RowNumbers::new(&shape, shape[0] * extent)?;
    sum.place(cx, 0, extent)?;
    sum.index(cx, at, extent, 1)?;
    sum.finish(cx)
}

/// `y[…] = table[…]` with the coordinate along one axis taken from the indices.
fn take_along(cx: &mut Importer, table: &Val, index: &Val, a: usize) -> Res<ValueId> {
    let from = cx.shape(table)?;
    let shape = cx.shape(index)?;
    let e = elements(cx, index, &from, a)?;
    let table = cx.value(table)?;
    let table = cx.reshape(table, &[e.rows, e.width])?;
    let y = cx.one("", ops::Gather {}, &[table, e.ids])?;
    cx.reshape(y, &shape)
}

fn gather_elements(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let table = call.need(0)?.clone();
    let rank = cx.shape(&table)?.len();
    let a = axis(call.attrs.int("axis", 0)?, rank).map_err(words)?;
    let index = call.need(1)?.clone();
    take_along(cx, &table, &index, a)
}

/// Row numbers for `GatherND` and `ScatterND`: indices `[batch…, n…, k]` into a tensor of extents
/// `[batch…, k extents, rest…]`.
pub(super) fn tuples(
    cx: &mut Importer,
    index: &Val,
    from: &[usize],
    batch: usize,
) -> Res<Elements> {
    if cx.kind(index)? != Kind::Int {
        return Err(words("indices are not integer".into()));
    }
    let shape = cx.shape(index)?;
    let Some((&k, places)) = shape.split_last() else {
        return Err(words("the indices are a scalar".into()));
    };
    if batch + k > from.len() || k == 0 || batch > places.len() || places[..batch] != from[..batch]
    {
        return Err(words(format!("indices {shape:?} with {batch} batch axes into {from:?}")));
    }
    let reach = batch + k;
    let (rows, width) = (from[..reach].iter().product(), from[reach..].iter().product());
    if let Val::Const(t) = index {
        numbered(rows)?;
        let (at, _, _) = gather_nd_rows(from, t, batch as i64)?;
        return Ok(Elements { ids: literal_rows(cx, &at, places)?, rows, width });
    }
    let ids = cx.value(index)?;
    // All batch axes as one: their elements stand where they stand in the tensor.
    let (outer, inner): (usize, usize) =
        (places[..batch].iter().product(), places[batch..].iter().product());
    let flat = [outer, inner];
    let ids = cx.reshape(ids, &[outer, inner, k])?;
    let mut sum = RowNumbers::new(&flat, rows)?;
    let strides = crate::ir::Shape::new(&from[..reach]).strides();
    if batch > 0 {
        sum.place(cx, 0, strides[batch - 1] as usize)?;
    }
    for j in 0..k {
        let part =
            Move::Slice { starts: vec![0, 0, j], sizes: vec![outer, inner, 1], steps: vec![1; 3] };
        let one = cx.move_value(ids, &[part, Move::Reshape(flat.to_vec())])?;
        sum.index(cx, one, from[batch + j], strides[batch + j] as usize)?;
    }
    let ids = sum.finish(cx)?;
    Ok(Elements { ids: cx.reshape(ids, places)?, rows, width })
}

fn gather_nd(cx: &mut Importer, call: &Call) -> Res<ValueId> {
    let from = cx.shape(call.need(0)?)?;
    let (table, index) = (call.need(0)?.clone(), call.need(1)?.clone());
    let b = call.attrs.int("batch_dims", 0)?;
    let batch = usize::try_from(b).map_err(|_| words(format!("{b} batch axes")))?;
    let e = tuples(cx, &index, &from, batch)?;
    let mut shape = cx.graph.shape(e.ids).to_vec();
    let k = cx.shape(&index)?.last().copied().unwrap_or(0);
    shape.extend_from_slice(&from[batch + k..]);
    let table = cx.value(&table)?;
    let table = cx.reshape(table, &[e.rows, e.width])?;
    let y = cx.one("", ops::Gather {}, &[table, e.ids])?;
    cx.reshape(y, &shape)
}
