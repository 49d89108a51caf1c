//! Programs over a single element, which join whatever they share and have no limit but that of a plan.

use super::super::items::Read;
use super::super::program::Patch;
use super::*;
use precast_plan::MAX_CODE;
use std::collections::BTreeMap;

/// What is enough to know whether groups over one element can be one, without writing the program
/// again: of groups whose values are whole and stored nowhere inside another.
pub(super) struct Scalars {
    /// Over a space without axes.
    draft: Draft,
    /// Nothing of it is computed for nothing.
    live: bool,
    /// Values that it stores.
    stored: usize,
}

/// What a second group adds to a first.
pub(super) struct Added {
    patch: Patch,
    live: bool,
    stored: usize,
    /// Values of the first, and how many items of the second read each.
    inside: FxHashMap<usize, usize>,
}

/// Whether two groups are one program that a plan holds.
pub(super) enum Joined {
    Yes(Added),
    No,
    Unknown,
}

impl Scalars {
    /// Of a group of one item; `None` where its program has to be written to know.
    pub(super) fn of(f: &Fuser, g: &Group) -> Option<Scalars> {
        let &[i] = &g.items[..] else { return None };
        if !g.is_single() || g.reduced > 0 || g.product.is_some() || g.opaque {
            return None;
        }
        let item = &f.items.items[i];
        let plain = |v: usize, offset: i64| {
            let value = &f.items.values[v];
            value.placed.is_none() && offset == 0 && value.elements() == 1
        };
        let read = item.reads.iter().all(|r| match r {
            Read::At(a) => plain(a.value, a.offset),
            Read::Literal(_) => true,
        });
        let once = |v: usize| f.writers[v].len() == 1;
        if !read || !item.writes.iter().all(|w| plain(w.value, w.offset) && once(w.value)) {
            return None;
        }
        let g = over_nothing(g.clone());
        let draft = Draft::of(f.items, &g)?;
        let stored = |v: usize| f.stored(&g, v);
        let live = draft.is_live(&stored);
        let stored = item.writes.iter().filter(|w| stored(w.value)).count();
        Some(Scalars { draft, live, stored })
    }

    /// With what another adds, whose items become part of the group.
    pub(super) fn with(mut self, f: &mut Fuser, added: Added) -> Scalars {
        self.draft.apply(added.patch);
        for (v, n) in added.inside {
            f.outside[v] -= n;
        }
        Scalars { draft: self.draft, live: added.live, stored: added.stored }
    }
}

/// A group over one element as one over a space without axes.
fn over_nothing(mut g: Group) -> Group {
    if !g.dims.is_empty() {
        let none = |item: &Rc<Axes>| Rc::new(vec![vec![]; item.len()]);
        g.maps = g.maps.iter().map(none).collect();
        g.dims = vec![];
    }
    g
}

/// Both groups as one, and from which item on it is not the first as it was.
pub(super) fn together(a: Group, b: Group) -> (Group, usize) {
    let from = if a.dims.is_empty() { a.items.len() } else { 0 };
    let (mut a, b) = (over_nothing(a), over_nothing(b));
    a.fixed |= b.fixed;
    if a.items.last() < b.items.first() {
        a.items.extend(b.items);
        a.maps.extend(b.maps);
        return (a, from);
    }
    let both = a.items.into_iter().zip(a.maps).chain(b.items.into_iter().zip(b.maps));
    let mut both: Vec<(usize, Rc<Axes>)> = both.collect();
    both.sort_by_key(|x| x.0);
    (a.items, a.maps) = both.into_iter().unzip();
    (a, 0)
}

pub(super) fn join(f: &Fuser, a: usize, b: usize) -> Joined {
    let (x, y) = (f.known(a).scalars.as_ref(), f.known(b).scalars.as_ref());
    let (Some(x), Some(y)) = (x, y) else { return Joined::Unknown };
    let Some(patch) = x.draft.added(&y.draft) else { return Joined::Unknown };
    let mut inside: FxHashMap<usize, usize> = FxHashMap::default();
    for &i in &f.group(b).items {
        let mut read: Vec<usize> = f.items.items[i].read_values().collect();
        read.sort_unstable();
        read.dedup();
        for v in read.into_iter().filter(|&v| x.draft.computes(v)) {
            *inside.entry(v).or_insert(0) += 1;
        }
    }
    // What only the other read is stored no more.
    let kept = |v: usize| f.results[v] || f.items.values[v].updates.is_some();
    let gone = inside.iter().filter(|&(&v, &n)| !kept(v) && f.outside[v] == n).count();
    let stored = x.stored + y.stored - gone;
    let code = x.draft.instructions() + patch.instructions();
    let ports = x.draft.ports() + patch.ports() + stored;
    let live = x.live && y.live;
    if code.max(ports) <= MAX_CODE {
        return Joined::Yes(Added { patch, live, stored, inside });
    }
    // Where all of it is needed, that is what the program has.
    if live { Joined::No } else { Joined::Unknown }
}

impl Fuser<'_> {
    /// Joins programs over a single element, whatever they share: each with all that come later.
    pub(super) fn scalars(&mut self) {
        let single =
            |g: &Group| g.is_single() && g.reduced == 0 && !g.opaque && g.product.is_none();
        let alone = |f: &Self, g: usize| f.groups[g].as_ref().is_some_and(single);
        let all: Vec<usize> = (0..self.groups.len()).filter(|&g| alone(self, g)).collect();
        let mut near: [BTreeMap<u32, usize>; 2] = Default::default();
        let of = |p: Phase| usize::from(p == Phase::Update);
        for &g in &all {
            near[of(self.group(g).phase)].insert(self.paths.place(g), g);
        }
        for &at in &all {
            if !alone(self, at) {
                continue;
            }
            let near = &mut near[of(self.group(at).phase)];
            near.remove(&self.paths.place(at));
            // What comes after a third group that comes after this one cannot join.
            let mut later: BTreeSet<usize> = self.paths.not_led_to(at, near).collect();
            later.extend(self.paths.after(at));
            while let Some(other) = later.pop_first() {
                if other > at
                    && alone(self, other)
                    && let Some(merged) = self.try_merge(at, other)
                {
                    near.remove(&self.paths.place(other));
                    // What came after it may follow at once now.
                    later.extend(self.paths.after(other).filter(|&g| g > other));
                    self.merge(at, other, merged);
                }
            }
        }
    }
}
