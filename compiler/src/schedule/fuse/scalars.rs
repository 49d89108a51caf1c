//! Programs over a single element, which join whatever they share and have no limit but that of a plan.

use super::super::items::Read;
use super::super::program::{Ahead, Patch};
use super::*;
use precast_plan::MAX_CODE;
use std::borrow::Cow;
use std::collections::BTreeMap;

/// What is enough to know whether groups over one element can be one, without writing the program
/// again: of groups whose values are whole and stored nowhere inside another.
pub(super) struct Scalars {
    /// Over a space without axes.
    pub(super) draft: Draft,
    /// Nothing of it is computed for nothing.
    pub(super) live: bool,
    /// Values that it stores.
    stored: usize,
}

/// How the shorter of two programs joins the longer.
enum Change {
    /// The second, behind the first.
    Behind(Patch),
    /// The first, ahead of the second.
    Ahead(Ahead),
}

/// What a second group adds to a first.
pub(super) struct Added {
    change: Change,
    live: bool,
    stored: usize,
    /// Values of the first, and how many items of the second read each.
    inside: FxHashMap<usize, usize>,
}

/// Whether two groups are one program that a plan holds.
pub(super) enum Joined {
    Yes(Box<Added>),
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
    pub(super) fn with(self, other: Scalars, f: &mut Fuser, added: Added) -> Scalars {
        let draft = match added.change {
            Change::Behind(patch) => {
                let mut draft = self.draft;
                draft.apply(patch);
                draft
            }
            Change::Ahead(ahead) => {
                let mut draft = other.draft;
                draft.put_ahead(ahead);
                draft
            }
        };
        for (v, n) in added.inside {
            f.outside[v] -= n;
        }
        Scalars { draft, live: added.live, stored: added.stored }
    }

    /// The draft with instructions in order; `None` where it cannot be written.
    fn in_order(&self, f: &Fuser, g: usize) -> Option<Cow<'_, Draft>> {
        if self.draft.is_in_order() {
            return Some(Cow::Borrowed(&self.draft));
        }
        Draft::of(f.items, f.group(g)).map(Cow::Owned)
    }

    /// Whether its counts are those of the program of a group that is written anew.
    pub(super) fn is_as_anew(&self, f: &Fuser, g: &Group) -> bool {
        let size = |d: &Draft| (d.instructions(), d.ports());
        Draft::of(f.items, g).as_ref().map(size) == Some(size(&self.draft))
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
    // The fewer go between the more.
    let (mut more, fewer) = if a.items.len() < b.items.len() { (b, a) } else { (a, b) };
    more.fixed |= fewer.fixed;
    if fewer.items.len() < 8 {
        for (item, map) in fewer.items.into_iter().zip(fewer.maps) {
            let at = more.items.partition_point(|&i| i < item);
            more.items.insert(at, item);
            more.maps.insert(at, map);
        }
        return (more, 0);
    }
    let both = more.items.into_iter().zip(more.maps);
    let mut both: Vec<(usize, Rc<Axes>)> =
        both.chain(fewer.items.into_iter().zip(fewer.maps)).collect();
    both.sort_by_key(|x| x.0);
    (more.items, more.maps) = both.into_iter().unzip();
    (more, 0)
}

/// Values that the first computes, and how many items of the second read each.
fn inside(f: &Fuser, first: &Scalars, a: usize, b: usize) -> FxHashMap<usize, usize> {
    let mut inside: FxHashMap<usize, usize> = FxHashMap::default();
    let read: usize = first.draft.values().map(|v| f.readers[v].len()).sum();
    if f.group(a).items.len() < f.group(b).items.len() && read < f.group(b).items.len() {
        for v in first.draft.values() {
            let n = f.readers[v].iter().filter(|&&i| f.group_of(i) == b).count();
            if n > 0 {
                inside.insert(v, n);
            }
        }
        return inside;
    }
    for &i in &f.group(b).items {
        let mut read: Vec<usize> = f.items.items[i].read_values().collect();
        read.sort_unstable();
        read.dedup();
        for v in read.into_iter().filter(|&v| first.draft.computes(v)) {
            *inside.entry(v).or_insert(0) += 1;
        }
    }
    inside
}

pub(super) fn join(f: &Fuser, a: usize, b: usize) -> Joined {
    let (x, y) = (f.known(a).scalars.as_ref(), f.known(b).scalars.as_ref());
    let (Some(x), Some(y)) = (x, y) else { return Joined::Unknown };
    let ahead = match x.draft.instructions() < y.draft.instructions() {
        true => x.in_order(f, a).and_then(|x| y.draft.ahead(&x)),
        false => None,
    };
    let (change, size) = match ahead {
        Some(ahead) => {
            let [code, ports] = ahead.growth();
            let size = [
                y.draft.instructions().saturating_add_signed(code),
                y.draft.ports().saturating_add_signed(ports),
            ];
            (Change::Ahead(ahead), size)
        }
        None => {
            let Some(later) = y.in_order(f, b) else { return Joined::Unknown };
            let Some(patch) = x.draft.added(&later) else { return Joined::Unknown };
            let size =
                [x.draft.instructions() + patch.instructions(), x.draft.ports() + patch.ports()];
            (Change::Behind(patch), size)
        }
    };
    let inside = inside(f, x, a, b);
    // What only the other read is stored no more.
    let kept = |v: usize| f.results[v] || f.items.values[v].updates.is_some();
    let gone = inside.iter().filter(|&(&v, &n)| !kept(v) && f.outside[v] == n).count();
    let stored = x.stored + y.stored - gone;
    let (code, ports) = (size[0], size[1] + stored);
    let live = x.live && y.live;
    if code.max(ports) <= MAX_CODE {
        return Joined::Yes(Box::new(Added { change, live, stored, inside }));
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
