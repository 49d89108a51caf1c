//! What operands kernels take, and how their strides are written.

use super::affine::Access;
use super::channels;
use super::fuse::{Group, over_product};
use super::items::{Body, Items};
use super::program::Built;
use crate::ir::view::View;
use crate::ops::Op;

/// Whether kernel `op` reads operand `index` through this view. Convolutions and pools read and
/// write one order: that of the axes, or with the channels `last`.
pub fn takes(op: &Op, index: usize, view: &View, first: &View, last: bool) -> bool {
    let ordered = || if last { channels::is_last(view) } else { view.is_contiguous() };
    match op {
        Op::MatMul(_) if index < 2 => batch_axes(view).len() <= 2,
        Op::Gather(_) if index == 0 => view.is_contiguous() && table(view).is_some(),
        Op::Gather(_) => flat(view).is_some(),
        Op::ScatterAdd(_) if index == 0 => flat(view).is_some(),
        Op::LastIndex(_) => flat(view).is_some(),
        Op::CumSum(op) => lines(view, op.axis).is_some(),
        Op::TopK(op) => lines(view, op.axis).is_some(),
        Op::ScatterAdd(_) => view.is_contiguous() && rows(view, first).is_some(),
        Op::Conv2d(_) | Op::Conv2dDataGrad(_) | Op::Conv2dFilterGrad(_) if index < 2 => ordered(),
        Op::MaxPool2d(_) | Op::MaxPool2dGrad(_) => ordered(),
        _ => true,
    }
}

/// Leading axes of a product's operand after merging, without those of extent 1.
fn batch_axes(view: &View) -> Vec<(usize, i64)> {
    let lead = view.shape.rank() - 2;
    let mut out: Vec<(usize, i64)> = vec![];
    for (&n, &s) in view.shape[..lead].iter().zip(&view.strides) {
        match out.last_mut() {
            _ if n == 1 => {}
            Some(last) if last.1 == s * n as i64 => *last = (last.0 * n, s),
            _ => out.push((n, s)),
        }
    }
    out
}

/// Strides of rows selected by `ids`, seen as [rows, width].
pub fn rows(view: &View, ids: &View) -> Option<[i64; 2]> {
    let n = ids.shape.elements();
    let v = view.reshape(&[n, view.shape.elements() / n.max(1)].into())?;
    Some([v.strides[0], v.strides[1]])
}

/// Strides of a view seen as one axis.
pub fn flat(view: &View) -> Option<i64> {
    let n = view.shape.elements();
    view.reshape(&[n].into()).map(|v| v.strides[0])
}

/// Extents before, of and behind an axis, and the strides of a view seen so.
pub fn lines(view: &View, axis: usize) -> Option<([u64; 3], [i64; 3])> {
    let product = |dims: &[usize]| dims.iter().product::<usize>();
    let shape = &view.shape;
    let dims = [product(&shape[..axis]), shape[axis], product(&shape[axis + 1..])];
    let v = view.reshape(&dims.into())?;
    Some((dims.map(|n| n as u64), [v.strides[0], v.strides[1], v.strides[2]]))
}

/// Strides of a dense result of the extents of [`lines`].
pub fn dense_lines([_, n, inner]: [u64; 3]) -> Vec<i64> {
    vec![(n * inner) as i64, inner as i64, 1]
}

/// Strides of a table seen as [rows, width].
pub fn table(view: &View) -> Option<[i64; 2]> {
    let rows = *view.shape.first()?;
    let n = view.shape.elements();
    let v = view.reshape(&[rows, n / rows.max(1)].into())?;
    Some([v.strides[0], v.strides[1]])
}

/// Merges leading axes of a product so that all of `strides` (over `dims`) agree; at most two stay.
pub fn merge_batch(dims: &[usize], strides: &[&[i64]]) -> Option<Vec<Vec<usize>>> {
    let mut groups: Vec<Vec<usize>> = vec![];
    for axis in 0..dims.len() {
        if dims[axis] == 1 {
            continue;
        }
        let joins = groups.last().is_some_and(|g| {
            let last = *g.last().expect("a group has axes");
            strides.iter().all(|s| s[last] == s[axis] * dims[axis] as i64)
        });
        if joins {
            groups.last_mut().expect("joins a group").push(axis);
        } else {
            groups.push(vec![axis]);
        }
    }
    (groups.len() <= 2).then_some(groups)
}

/// Strides of a product and its epilogue over b0, b1, m, k; b0, b1, k, n; b0, b1, m, n.
pub struct ProductStrides {
    pub batch: [u64; 2],
    pub a: Vec<i64>,
    pub b: Vec<i64>,
    pub inputs: Vec<Vec<i64>>,
    pub outputs: Vec<Vec<i64>>,
}

/// Writes a product's accesses (`a`, `b` over its operands' axes, the others over `dims`, its
/// result's) with at most two batch axes.
pub fn product_strides(
    dims: &[usize],
    a: &[i64],
    b: &[i64],
    inputs: &[Vec<i64>],
    outputs: &[Vec<i64>],
) -> Option<ProductStrides> {
    let lead = dims.len() - 2;
    let all: Vec<&[i64]> = [a, b]
        .into_iter()
        .chain(inputs.iter().chain(outputs).map(Vec::as_slice))
        .map(|s| &s[..lead])
        .collect();
    let groups = merge_batch(&dims[..lead], &all)?;
    let extent = |g: &Vec<usize>| g.iter().map(|&d| dims[d] as u64).product::<u64>();
    let mut batch = [1, 1];
    let first = 2 - groups.len();
    for (slot, g) in batch[first..].iter_mut().zip(&groups) {
        *slot = extent(g);
    }
    let strides = |s: &[i64]| {
        let mut out = vec![0; 4];
        for (slot, g) in out[first..2].iter_mut().zip(&groups) {
            *slot = s[*g.last().expect("a group has axes")];
        }
        out[2] = s[lead];
        out[3] = s[lead + 1];
        out
    };
    Some(ProductStrides {
        batch,
        a: strides(a),
        b: strides(b),
        inputs: inputs.iter().map(|s| strides(s)).collect(),
        outputs: outputs.iter().map(|s| strides(s)).collect(),
    })
}

/// Whether a product with this epilogue can be written as one kernel.
pub fn product_fits(items: &Items, g: &Group, built: &Built) -> bool {
    let item = &items.items[g.product.expect("a product's group")];
    let over = |list: &[Access]| -> Option<Vec<Vec<i64>>> {
        list.iter()
            .map(|a| over_product(&g.dims, &items.physical(a, &g.dims)?, &item.dims))
            .collect()
    };
    let (Some(inputs), Some(outputs)) = (over(&built.inputs), over(&built.outputs)) else {
        return false;
    };
    let Body::Product { op, operands } = &item.body else { return false };
    !matches!(op, Op::MatMul(_))
        || product_strides(
            &item.dims,
            &operands[0].1.strides,
            &operands[1].1.strides,
            &inputs,
            &outputs,
        )
        .is_some()
}
