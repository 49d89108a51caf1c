//! Parts written where they belong: an operand of a concatenation that nothing else reads is
//! stored by its producer inside the result, and its copy disappears. So does the copy that brings
//! the heads of an attention's results together: its kernels write and read any strides.

use super::affine::{Access, Placement};
use super::items::{Body, Items, Read, Source};
use super::{deps, items::Item};
use crate::ir::Shape;
use crate::ir::view::View;
use rustc_hash::FxHashSet;

/// Places what can be placed.
pub fn place_parts(items: &mut Items) {
    let mut removed = vec![false; items.items.len()];
    let (mut writers, readers) = (deps::writers(items), deps::readers(items));
    let results: FxHashSet<usize> = items.results.iter().map(|r| r.1).collect();
    // From the last copy to the first: what is moved twice goes straight to the last place.
    for (c, removed) in removed.iter_mut().enumerate().rev() {
        if let Some((value, outer, placement)) = placeable(items, &results, &writers, &readers, c) {
            // Straight into what holds the other one, so that parts of parts are no deeper.
            let within = items.values[outer].placed.as_ref();
            let through = within.and_then(|(all, p)| Some((*all, placement.within(p)?)));
            items.values[value].placed = Some(through.unwrap_or((outer, placement)));
            *removed = fits(items, &writers[value], &readers[value], c, value);
            if *removed {
                // Who writes the part now writes what it is a part of.
                let mut at = value;
                while let Some((outer, _)) = &items.values[at].placed {
                    at = *outer;
                    for w in writers[value].clone() {
                        if let Err(i) = writers[at].binary_search(&w) {
                            writers[at].insert(i, w);
                        }
                    }
                }
            } else {
                items.values[value].placed = None;
            }
        }
    }
    let mut at = 0;
    items.items.retain(|_| {
        at += 1;
        !removed[at - 1]
    });
}

/// The value that copy `c` moves, where it goes, and how, if its producer can put it there.
fn placeable(
    items: &Items,
    results: &FxHashSet<usize>,
    writers: &[Vec<usize>],
    readers: &[Vec<usize>],
    c: usize,
) -> Option<(usize, usize, Placement)> {
    let item = &items.items[c];
    let (Body::Copy, [Read::At(from)]) = (&item.body, &item.reads[..]) else { return None };
    let to = &item.writes[0];
    let (value, outer) = (&items.values[from.value], &items.values[to.value]);
    let partial = writers[to.value].len() > 1;
    let free = value.source == Source::Computed
        && value.updates.is_none()
        && value.placed.is_none()
        && value.dtype == outer.dtype
        && !results.contains(&from.value);
    let any = |i: usize| match &items.items[i].body {
        Body::Kernel { op, .. } => op.def().any_strides(),
        _ => false,
    };
    let whole = writers[from.value].iter().all(|&w| any(w))
        && readers[from.value].iter().all(|&r| r == c || any(r));
    let part = partial && readers[from.value] == [c];
    if !free || !(part || whole) {
        return None;
    }
    let view =
        View { shape: Shape::new(&item.dims), offset: from.offset, strides: from.strides.clone() };
    if view.shape.elements() != value.elements() {
        return None;
    }
    let placement = Placement::new(&view, to.offset, &to.strides)?;
    let &[writer] = writers[from.value].as_slice() else { return None };
    let writer: &Item = &items.items[writer];
    // Other kernels write dense results only.
    let dense = matches!(&writer.body, Body::Kernel { op, .. } if !op.def().any_strides());
    if writer.phase != item.phase || dense {
        return None;
    }
    for w in writer.writes.iter().filter(|w| w.value == from.value) {
        // A kernel writes over the axes of its result.
        let dims = if writer.dims.is_empty() { &value.shape } else { &writer.dims };
        placement.convert(dims, w.offset, &w.strides)?;
    }
    Some((from.value, to.value, placement))
}

/// Whether every access to a value that was just placed, other than by copy `c`, can be said in
/// strides of what stores it.
fn fits(items: &Items, writers: &[usize], readers: &[usize], c: usize, value: usize) -> bool {
    let shape = &items.values[value].shape;
    writers.iter().chain(readers).filter(|i| **i != c).all(|&i| {
        let item = &items.items[i];
        let dims = if item.dims.is_empty() { shape } else { &item.dims };
        let read = item.reads.iter().filter_map(|r| match r {
            Read::At(a) => Some(a),
            Read::Literal(_) => None,
        });
        let operands: &[(usize, View)] = match &item.body {
            Body::Product { operands, .. } | Body::Kernel { operands, .. } => operands,
            _ => &[],
        };
        item.writes
            .iter()
            .chain(read)
            .filter(|a| a.value == value)
            .all(|a| items.physical(a, dims).is_some())
            && operands.iter().filter(|o| o.0 == value).all(|(_, view)| {
                let a = Access { value, offset: view.offset, strides: view.strides.clone() };
                items.physical(&a, &view.shape).is_some()
            })
    })
}
