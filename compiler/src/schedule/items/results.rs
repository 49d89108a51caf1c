//! Results and updates: which values they are, what is written in place, and what is copied.

use super::*;

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
            self.links.refresh(&self.out);
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
                self.links.updates(root, &u.name);
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
            self.links.updates(to, &u.name);
            self.copy_item(name, None, phase, (root, &view), (to, 0, strides));
        }
        let updated = g.updated();
        for r in &g.results {
            self.links.refresh(&self.out);
            let phase = g.def(r.value).region.phase();
            let (root, view) = self.locate(r.value);
            let v = &self.out.values[root];
            let overwritten =
                matches!(&v.source, Source::Var(n) if updated.contains_key(n.as_str()));
            let mut whole = self.is_whole(root, &view, g.shape(r.value)) && !overwritten;
            // The same elements in the same order under other extents: the value takes those.
            if !whole && self.renamed(root, &view) {
                self.out.values[root].shape = view.shape.to_vec();
                whole = true;
            }
            let value = if whole {
                root
            } else {
                self.copy(format!("{}.result", r.name), root, &view, phase).0
            };
            self.named.insert(value);
            self.out.results.push((r.name.clone(), value));
        }
        Ok(())
    }

    /// Whether a value can take the extents of a view that covers it, rather than be copied: its
    /// own extents are written nowhere else.
    fn renamed(&self, root: usize, view: &View) -> bool {
        let v = &self.out.values[root];
        v.source == Source::Computed
            && v.updates.is_none()
            && !v.channels_last
            && view.offset == 0
            && view.is_contiguous()
            && view.shape.elements() == v.elements()
            && !self.named.contains(&root)
            && self.links.writers(root).iter().all(|&w| self.out.items[w].fuses())
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
        let &[writer] = self.links.writers(new) else { return false };
        if items[writer].phase != phase || !own_elements(&items[writer], new, old) {
            return false;
        }
        let readers = self.links.old_readers(&self.out, var, phase, writer);
        readers.is_empty() || !self.links.leads(&self.out, writer, &readers)
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
