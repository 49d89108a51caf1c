//! Matrices whose rows begin on boundaries. Tensor cores are fed by loads of 16 bytes, so a library
//! has its fast kernels only for matrices whose rows begin on multiples of that, which the rows of
//! 50257 logits do not. What large products read and write is therefore stored with a gap behind
//! every row where its rows would begin elsewhere.
//!
//! A gap is not part of the value: nothing reads or writes it, and everything follows by strides. It
//! comes after fusion, when it is known what is stored.

use super::fuse::{Group, over_product};
use super::items::{Body, Items, Source, Value};
use super::program::Built;
use super::space::holds;
use super::{affine::Access, affine::Placement};
use crate::ir::Shape;
use crate::ir::view::View;
use crate::ops::Op;
use rustc_hash::FxHashMap;

/// Shorter rows, and fewer, are not worth a gap.
const LEAST: [usize; 2] = [64, 128];
/// Rows of at least this many bytes begin on multiples of [`LINE`] bytes, a line of a GPU's cache;
/// the gap is at most 3 % of them.
const LONG: usize = 4096;
const LINE: usize = 128;

/// Stores what products of two axes read and write so that rows begin on multiples of `bytes`.
pub fn align_rows(items: &mut Items, groups: &[(Group, Option<Built>)], bytes: usize) {
    if bytes == 0 {
        return;
    }
    let mut touched = vec![];
    for (group, _) in groups {
        let Some(product) = group.product else { continue };
        let item = &items.items[product];
        if let Body::Product { op: Op::MatMul(_), operands } = &item.body
            && item.dims.len() == 2
        {
            touched.extend(operands.iter().map(|o| o.0));
            touched
                .extend(group.items.iter().flat_map(|&i| &items.items[i].writes).map(|w| w.value));
        }
    }
    touched.sort_unstable();
    touched.dedup();
    // Values that something must keep as they are, and the groups that touch each.
    let mut kept = vec![false; items.values.len()];
    items.results.iter().for_each(|r| kept[r.1] = true);
    items.values.iter().filter_map(|x| x.placed.as_ref()).for_each(|p| kept[p.0] = true);
    let mut by: FxHashMap<usize, Vec<usize>> = FxHashMap::default();
    for (g, (group, built)) in groups.iter().enumerate() {
        let ports = built.iter().flat_map(|b| b.inputs.iter().chain(&b.outputs));
        let ports = ports.chain(group.sums.as_ref().map(|s| &s.out)).map(|a| a.value);
        let own = group.items.iter().flat_map(|&i| {
            let item = &items.items[i];
            item.read_values().chain(item.writes.iter().map(|w| w.value))
        });
        for v in ports.chain(own) {
            let list = by.entry(v).or_default();
            if list.last() != Some(&g) {
                list.push(g);
            }
        }
    }
    for v in touched {
        if kept[v] {
            continue;
        }
        let Some((rows, columns, pitch)) = wanted(items, v, bytes) else { continue };
        let shape = Shape::new(&[rows, columns]);
        let dense = View { strides: shape.strides(), shape, offset: 0 };
        let Some(placement) = Placement::new(&dense, 0, &[pitch as i64, 1]) else { continue };
        let of = &items.values[v];
        let whole = Value {
            name: of.name.clone(),
            dtype: of.dtype,
            shape: vec![rows, pitch],
            source: Source::Computed,
            updates: None,
            placed: None,
            of: None,
            channels_last: false,
        };
        items.values.push(whole);
        items.values[v].placed = Some((items.values.len() - 1, placement));
        if !by.get(&v).into_iter().flatten().all(|&g| fits(items, &groups[g], v)) {
            items.values[v].placed = None;
            items.values.pop();
        }
    }
}

/// Rows, columns and elements from row to row of a value that wants a gap.
fn wanted(items: &Items, v: usize, bytes: usize) -> Option<(usize, usize, usize)> {
    let value = &items.values[v];
    let (&columns, front) = value.shape.split_last()?;
    let rows = front.iter().product();
    let size = value.dtype.size();
    let own = matches!(value.source, Source::Computed)
        && value.dtype.is_real()
        && value.updates.is_none()
        && value.placed.is_none()
        && !value.channels_last;
    let worth = rows >= LEAST[0] && columns >= LEAST[1] && !(columns * size).is_multiple_of(bytes);
    let to = if columns * size >= LONG { LINE.max(bytes) } else { bytes };
    (own && worth).then(|| (rows, columns, (columns * size).next_multiple_of(to) / size))
}

/// Whether a group says all its accesses to a value that was just placed in strides of what stores it.
fn fits(items: &Items, (group, built): &(Group, Option<Built>), v: usize) -> bool {
    let Some(built) = built else {
        // Kernels that do not fuse take dense operands.
        let of = |&i: &usize| {
            let item = &items.items[i];
            item.read_values().all(|x| x != v) && item.writes.iter().all(|w| w.value != v)
        };
        return group.items.iter().all(of);
    };
    if group.sums.as_ref().is_some_and(|s| s.out.value == v) {
        return false;
    }
    let product = group.product.map(|p| &items.items[p]);
    let of = |a: &&Access| a.value == v;
    let said = built.inputs.iter().chain(&built.outputs).filter(of).all(|a| {
        let Some(a) = items.physical(a, &group.dims) else { return false };
        product.is_none_or(|p| over_product(&group.dims, &a, &p.dims).is_some())
    });
    let said = said && (product.is_some() || holds(items, group, built));
    let Some(Body::Product { op, operands }) = product.map(|p| &p.body) else { return said };
    let operands = operands.iter().filter(|o| o.0 == v).all(|(_, view)| {
        let a = Access { value: v, offset: view.offset, strides: view.strides.clone() };
        items.physical(&a, &view.shape).is_some()
    });
    let read = product.is_some_and(|p| p.read_values().any(|x| x == v));
    let plane = matches!(op, Op::MatMul(_)) && product.is_some_and(|p| p.dims.len() == 2);
    let touched = read || built.inputs.iter().chain(&built.outputs).any(|a| a.value == v);
    said && operands && (plane || !touched)
}
