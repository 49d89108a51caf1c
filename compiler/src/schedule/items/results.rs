//! Results and updates: which values they are, and whether a variable's new value is written over its
//! old one.

use super::{Body, Item, Lower, Read, Source, fault};
use crate::diagnostic::Result;
use crate::ir::view::View;
use crate::ir::{Phase, Shape};
use crate::schedule::deps;

impl Lower<'_> {
    /// Binds results and updates to whole values.
    pub(super) fn results(&mut self) -> Result<()> {
        let g = self.g;
        let updates: Vec<_> = g.updates.clone();
        for u in &updates {
            let Some(var) = g.vars.get(&u.name) else {
                return Err(fault(&u.name, "there is no such variable to update".into()).into());
            };
            let phase = g.def(u.value).region.phase();
            let (root, view) = self.locate(u.value);
            let v = &self.out.values[root];
            if v.source == Source::Var(u.name.clone()) && self.is_whole(root, &view, &var.ty.shape)
            {
                continue; // writes what is there
            }
            let from_var = matches!(v.source, Source::Var(_));
            let in_place = v.source == Source::Computed
                && v.dtype == var.ty.dtype
                && v.updates.is_none()
                && view.offset == 0
                && view.is_contiguous()
                && v.elements() == view.shape.elements()
                && self.in_place(root, &u.name, phase);
            if in_place {
                self.out.values[root].updates = Some(u.name.clone());
                continue;
            }
            // The old value of another variable is set aside before anything is overwritten.
            let (root, view) = if from_var {
                self.copy(format!("{}.old", u.name), root, &view, phase)
            } else {
                (root, view)
            };
            let to = self.value(format!("{}.new", u.name), &var.ty, Source::Computed);
            let strides = var.ty.shape.strides();
            let name = format!("{}.update", u.name);
            self.out.values[to].updates = Some(u.name.clone());
            self.copy_item(name, None, phase, (root, &view), (to, 0, strides));
        }
        for r in &g.results {
            let phase = g.def(r.value).region.phase();
            let (root, view) = self.locate(r.value);
            let v = &self.out.values[root];
            let overwritten = matches!(&v.source, Source::Var(n) if g.update_of(n).is_some());
            let whole = self.is_whole(root, &view, g.shape(r.value)) && !overwritten;
            let value = if whole {
                root
            } else {
                self.copy(format!("{}.result", r.name), root, &view, phase).0
            };
            self.out.results.push((r.name.clone(), value));
        }
        Ok(())
    }

    fn is_whole(&self, root: usize, view: &View, shape: &Shape) -> bool {
        let v = &self.out.values[root];
        view.offset == 0 && view.is_contiguous() && !v.channels_last && v.shape[..] == shape[..]
    }

    /// Whether the new value of `var` may be written where the old one is read: nothing that
    /// depends on the new value reads the old one, except the item that writes it.
    fn in_place(&self, new: usize, var: &str, phase: Phase) -> bool {
        let items = &self.out.items;
        let old = |v: usize| matches!(&self.out.values[v].source, Source::Var(n) if n == var);
        let mut writers =
            (0..items.len()).filter(|&i| items[i].writes.iter().any(|w| w.value == new));
        let (Some(writer), None) = (writers.next(), writers.next()) else { return false };
        if items[writer].phase != phase || !own_elements(&items[writer], new, old) {
            return false;
        }
        let later = deps::reachable(&deps::successors(&self.out), writer);
        (0..items.len()).all(|i| {
            i == writer || !later[i] || items[i].phase != phase || !items[i].read_values().any(old)
        })
    }
}

/// Whether every read of the old value is at the element that the item writes.
fn own_elements(item: &Item, new: usize, old: impl Fn(usize) -> bool) -> bool {
    let operands: &[(usize, View)] = match &item.body {
        Body::Product { operands, .. } | Body::Kernel { operands, .. } => operands,
        _ => &[],
    };
    let Some(w) = item.writes.iter().find(|w| w.value == new) else { return false };
    operands.iter().all(|o| !old(o.0))
        && item.reads.iter().all(|r| match r {
            Read::At(a) => !old(a.value) || (a.offset == w.offset && a.strides == w.strides),
            Read::Literal(_) => true,
        })
}
