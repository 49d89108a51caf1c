//! Parts written where they belong: an operand of a concatenation that nothing else reads is
//! stored by its producer inside the result, and its copy disappears.

use super::affine::Placement;
use super::items::{Body, Items, Read, Source};
use super::{deps, items::Item};
use crate::ir::Shape;
use crate::ir::view::View;
use crate::ops::Op;

/// Places what can be placed.
pub fn place_parts(items: &mut Items) {
    let mut removed = vec![false; items.items.len()];
    for (c, removed) in removed.iter_mut().enumerate() {
        if let Some((value, outer, placement)) = placeable(items, c) {
            items.values[value].placed = Some((outer, placement));
            *removed = true;
        }
    }
    let mut at = 0;
    items.items.retain(|_| {
        at += 1;
        !removed[at - 1]
    });
}

/// The value that copy `c` moves, where it goes, and how, if its producer can put it there.
fn placeable(items: &Items, c: usize) -> Option<(usize, usize, Placement)> {
    let item = &items.items[c];
    let (Body::Copy, [Read::At(from)]) = (&item.body, &item.reads[..]) else { return None };
    let to = &item.writes[0];
    let (value, outer) = (&items.values[from.value], &items.values[to.value]);
    let partial = deps::writers(items)[to.value].len() > 1;
    let free = value.source == Source::Computed
        && value.updates.is_none()
        && value.placed.is_none()
        && value.dtype == outer.dtype
        && !items.results.iter().any(|r| r.1 == from.value);
    if !partial || !free || deps::readers(items)[from.value] != [c] {
        return None;
    }
    let view =
        View { shape: Shape::new(&item.dims), offset: from.offset, strides: from.strides.clone() };
    if view.shape.elements() != value.elements() {
        return None;
    }
    let placement = Placement::new(&view, to.offset, &to.strides)?;
    let writers = deps::writers(items);
    let &[writer] = writers[from.value].as_slice() else { return None };
    let writer: &Item = &items.items[writer];
    // These kernels write dense results only.
    let dense = matches!(
        &writer.body,
        Body::Kernel {
            op: Op::Gather(_) | Op::ScatterAdd(_) | Op::MaxPool2d(_) | Op::MaxPool2dGrad(_),
            ..
        }
    );
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
