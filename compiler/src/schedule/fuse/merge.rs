//! Whether two groups can be one, and what they are then.

use super::super::affine::{Access, Remap};
use super::super::items::{Body, Item, Read};
use super::*;
use crate::work::Work;

/// Most items of a group whose program is written anew as well in builds with debug assertions.
const LOOKED_AT: usize = 24;

/// What is known of a group, so that it need not be found for every pair that it is in.
#[derive(Default)]
pub(super) struct Known {
    /// Accesses over the group's space, each once.
    writes: Vec<Access>,
    reads: Vec<Access>,
    seen: FxHashSet<(bool, Access)>,
    /// Of so many of its items, the first ones; the others' are found when they are asked for.
    listed: usize,
    /// Originals of the items that are computed again here.
    clones: Vec<usize>,
    /// The program as far as it is written.
    draft: Option<Draft>,
    /// Of a group over one element: what tells at once whether it can take in another.
    pub(super) scalars: Option<scalars::Scalars>,
}

/// Two groups as one.
pub(super) enum Merged {
    Whole {
        group: Box<Group>,
        draft: Option<Change>,
    },
    /// Programs over one element, of which the second is added to the first.
    Scalars(scalars::Added),
}

impl Merged {
    /// The union, which is written where one of the two is more than scalars.
    pub(super) fn group(&self) -> Option<&Group> {
        match self {
            Merged::Whole { group, .. } => Some(group),
            Merged::Scalars(_) => None,
        }
    }
}

impl Known {
    /// Of a group of one item.
    fn new(f: &Fuser, g: &Group) -> Known {
        let draft = if g.opaque { None } else { Draft::of(f.items, g) };
        let clones = g.items.iter().filter_map(|&i| f.items.items[i].clone_of).collect();
        Known { scalars: scalars::Scalars::of(f, g), draft, clones, ..Known::default() }
    }

    /// Accesses of all items but the first so many are not known any more.
    fn keep(&mut self, listed: usize) {
        if listed < self.listed {
            debug_assert_eq!(listed, 0);
            self.writes.clear();
            self.reads.clear();
            self.seen.clear();
            self.listed = 0;
        }
    }

    /// Takes in the accesses of the items of a group that are not known yet.
    fn list(&mut self, f: &Fuser, g: &Group) {
        for (&i, axes) in g.items.iter().zip(&g.maps).skip(self.listed) {
            let item = &f.items.items[i];
            for (writes, a) in accesses(item) {
                let mut strides = vec![0; g.dims.len()];
                for (s, row) in a.strides.iter().zip(&axes[..]) {
                    strides.iter_mut().zip(row).for_each(|(o, m)| *o += s * m);
                }
                still(&mut strides, &g.dims);
                let a = Access { value: a.value, offset: a.offset, strides };
                if self.seen.insert((writes, a.clone())) {
                    if writes { &mut self.writes } else { &mut self.reads }.push(a);
                }
            }
        }
        self.listed = g.items.len();
    }
}

/// What an item writes and reads, and whether it writes.
fn accesses(item: &Item) -> impl Iterator<Item = (bool, &Access)> {
    let reads = item.reads.iter().filter_map(|r| match r {
        Read::At(a) => Some(a),
        Read::Literal(_) => None,
    });
    item.writes.iter().map(|a| (true, a)).chain(reads.map(|a| (false, a)))
}

impl Fuser<'_> {
    pub(super) fn known(&self, g: usize) -> &Known {
        self.known[g].as_ref().expect("looked at before")
    }

    fn look_at(&mut self, g: usize) {
        if self.known[g].is_none() {
            self.known[g] = Some(Known::new(self, self.group(g)));
        }
    }

    /// Finds the accesses of a group that was looked at.
    fn list(&mut self, g: usize) {
        if self.known(g).listed < self.group(g).items.len() {
            let mut k = self.known[g].take().expect("looked at before");
            k.list(self, self.group(g));
            self.known[g] = Some(k);
        }
    }

    /// Whether both are programs over one element that reduce nothing.
    fn scalars_only(&self, a: usize, b: usize) -> bool {
        let scalar = |g: &Group| g.is_single() && g.reduced == 0 && g.product.is_none();
        scalar(self.group(a)) && scalar(self.group(b))
    }

    /// Whether a group computes again what the other computes: a clone exists so that the original's
    /// value need not be stored.
    fn meets(&self, again: usize, other: usize) -> bool {
        let clones = &self.known(again).clones;
        if clones.is_empty() {
            return false;
        }
        let of = |i: &usize| self.clones.get(i).map_or(&[][..], |c| &c[..]);
        let items = &self.group(other).items;
        if items.len() < clones.len() {
            let all: usize = items.iter().map(|i| of(i).len()).sum();
            if all < clones.len() {
                return items.iter().flat_map(of).any(|&c| self.group_of(c) == again);
            }
        }
        clones.iter().any(|&o| self.group_of(self.originals[o]) == other)
    }

    /// Whether the union has more instructions than a program over several elements may, since one of the
    /// two, over a single element, has them already and needs them all.
    fn outgrown(&self, a: usize, b: usize) -> bool {
        let (p, c) = (self.group(a), self.group(b));
        if p.product.is_some() || c.product.is_some() || p.is_single() == c.is_single() {
            return false;
        }
        let long = |k: &Known| -> bool {
            let s = k.scalars.as_ref();
            s.is_some_and(|s| s.live && s.draft.instructions() > MOST.0)
        };
        let (kp, kc) = (self.known(a), self.known(b));
        if long(kp) {
            // What it computes is stored still, or read by what is needed.
            return kc.draft.as_ref().is_some_and(|d| d.is_live(&|v| self.stored(c, v)));
        }
        if !long(kc) || p.reduced == 0 {
            return false;
        }
        // No two of its instructions become one where what takes the place of a load is a reduction,
        // which it has none of.
        let (Some(d), Some(later)) = (&kp.draft, &kc.scalars) else { return false };
        let read: Vec<usize> = d.values().filter(|&v| later.draft.loads(v)).take(2).collect();
        matches!(read[..], [v] if d.reduces_to(v))
    }

    /// The union of two groups, where it is legal. No path leads from `b` to `a`.
    pub(super) fn try_merge(&mut self, a: usize, b: usize) -> Option<Merged> {
        Work::Pairs.add(1);
        let versions = (self.versions[a], self.versions[b]);
        let (p, c) = (self.group(a), self.group(b));
        if p.phase != c.phase
            || p.opaque
            || c.opaque
            || (p.product.is_some() && c.product.is_some())
            || p.gelu_gradient
            || c.gelu_gradient
            || self.failed.get(&(a, b)) == Some(&versions)
        {
            return None;
        }
        self.look_at(a);
        self.look_at(b);
        if !self.scalars_only(a, b) {
            self.list(a);
            self.list(b);
        }
        let found = self.merged(a, b);
        if found.is_none() {
            self.failed.insert((a, b), versions);
        }
        found
    }

    fn merged(&self, a: usize, b: usize) -> Option<Merged> {
        let (p, c) = (self.group(a), self.group(b));
        let cast = |g: &Group| matches!(self.items.items[g.items[0]].body, Body::Rows(Op::Cast(_)));
        if self.casts_alone && (cast(p) || cast(c)) {
            return None;
        }
        if self.meets(a, b) || self.meets(b, a) {
            return None;
        }
        // A walk through the graph: only where the two would fit.
        let parted = std::cell::OnceCell::new();
        let parted = || *parted.get_or_init(|| self.paths.parted(a, b));
        if self.scalars_only(a, b) {
            let side = |g: &Group| Remap { pieces: vec![vec![]; g.dims.len()], rank: 0 };
            let joined = scalars::join(self, a, b);
            if matches!(joined, scalars::Joined::No) || parted() {
                return None;
            }
            return match joined {
                scalars::Joined::Yes(added) => Some(Merged::Scalars(*added)),
                scalars::Joined::No => None,
                scalars::Joined::Unknown => {
                    let group = union(p, c, &side(p), &side(c), vec![], 0);
                    self.checked(Box::new(group), a, b).ok()
                }
            };
        }
        if self.outgrown(a, b) {
            return None;
        }
        let (kp, kc) = (self.known(a), self.known(b));
        let mut tried: Vec<(&Access, &Access)> = vec![];
        for x in kp.writes.iter().chain(&kp.reads) {
            for y in kc.reads.iter().filter(|y| y.value == x.value && y.offset == x.offset) {
                if tried.len() < 8 {
                    tried.push((x, y));
                }
            }
        }
        let lead_first = p.product.is_some()
            || (c.product.is_none() && (p.reduced > 0 || (c.reduced == 0 && p.fixed)));
        // Unions that cannot be written, of which many accesses give the same.
        let mut refused: Vec<(bool, Fit)> = vec![];
        let mut unions: Vec<Group> = vec![];
        for (x, y) in tried {
            for lead in [lead_first, !lead_first] {
                if (p.product.is_some() && !lead) || (c.product.is_some() && lead) {
                    continue;
                }
                let (first, second) = if lead { (p, c) } else { (c, p) };
                let fit = if lead { fit(p, c, x, y) } else { fit(c, p, y, x) };
                let Some(fit) = fit else { continue };
                if parted() {
                    return None;
                }
                if refused.iter().any(|(l, f)| *l == lead && *f == fit) {
                    continue;
                }
                let g = union(first, second, &fit.lead, &fit.other, fit.dims.clone(), fit.reduced);
                refused.push((lead, fit));
                let same =
                    |h: &Group| h.dims == g.dims && h.reduced == g.reduced && h.maps == g.maps;
                if unions.iter().any(same) {
                    continue;
                }
                match self.checked(Box::new(g), a, b) {
                    Ok(merged) => return Some(merged),
                    Err(g) => unions.push(*g),
                }
            }
        }
        None
    }

    /// The union of two groups, where its program can be written.
    fn checked(&self, g: Box<Group>, a: usize, b: usize) -> Result<Merged, Box<Group>> {
        let stored = |v: usize| self.stored(&g, v);
        let anew = || {
            let (built, draft) = build_drafted(self.items, &g, &stored, MOST).ok()?;
            Some((built, draft.map(Change::New)))
        };
        let built = match self.drafts(&g, a, b) {
            Some(drafts) => match build_of(self.items, &g, drafts, &stored) {
                Ok((built, draft)) => Some((built, Some(draft))),
                Err(None) => anew(),
                Err(Some(_)) => None,
            },
            None => anew(),
        };
        debug_assert!(
            g.items.len() > LOOKED_AT || self.is_as_anew(&g, built.as_ref().map(|b| &b.0))
        );
        let Some((built, draft)) = built else { return Err(g) };
        // A part of a value is written into its memory: the whole is read in a later step.
        let storage = |a: &Access| self.items.storage(a.value);
        let written: FxHashSet<usize> = built.outputs.iter().map(storage).collect();
        if built.inputs.iter().any(|r| written.contains(&storage(r))) {
            return Err(g);
        }
        let fits = match g.product {
            Some(_) => product_fits(self.items, &g, &built),
            None => holds(self.items, &g, &built),
        };
        if fits { Ok(Merged::Whole { group: g, draft }) } else { Err(g) }
    }

    /// Whether the program of a group, written from drafts, is what writing all of it gives, but for the
    /// order of its instructions; `None` where it cannot be written.
    fn is_as_anew(&self, g: &Group, built: Option<&Built>) -> bool {
        let size = |b: &Built| (b.program.code.len(), b.inputs.len(), b.outputs.len());
        self.build(g).ok().as_ref().map(size) == built.map(size)
    }

    /// Drafts of both groups, that of `a` first, where the union leaves both as they are written.
    fn drafts(&self, g: &Group, a: usize, b: usize) -> Option<(&Draft, &Draft)> {
        let of = |k: usize| self.known(k).draft.as_ref();
        let (x, y) = (of(a)?, of(b)?);
        let (p, q) = (self.group(a), self.group(b));
        let (mut i, mut j) = (0, 0);
        let kept = g.items.iter().zip(&g.maps).all(|(item, map)| {
            let (own, at) = if p.items.get(i) == Some(item) { (p, &mut i) } else { (q, &mut j) };
            *at += 1;
            Rc::ptr_eq(map, &own.maps[*at - 1])
        });
        (kept && x.is_in(g) && y.is_in(g)).then_some((x, y))
    }

    /// Makes `b` a part of `a`.
    pub(super) fn merge(&mut self, a: usize, b: usize, merged: Merged) {
        self.paths.merge(a, b);
        self.versions[a] += 1;
        self.merges += 1;
        let [mut mine, mut theirs] =
            [a, b].map(|g| self.known[g].take().expect("looked at before"));
        let [old, other] = [a, b].map(|g| self.groups[g].take().expect("a live group"));
        let group = match merged {
            Merged::Whole { group, draft } => {
                let n = old.items.len();
                let over = old.dims == group.dims
                    && group.items[..n] == old.items[..]
                    && group.maps.iter().zip(&old.maps).all(|(x, y)| Rc::ptr_eq(x, y));
                // What the union leaves as it is need not be found again.
                let own = mine.draft.take();
                mine.keep(if over { mine.listed } else { 0 });
                mine.scalars = None;
                mine.draft = match draft {
                    Some(Change::New(draft)) => Some(draft),
                    Some(Change::Added(patch)) => own.map(|mut own| {
                        own.apply(patch);
                        own
                    }),
                    None => None,
                };
                *group
            }
            Merged::Scalars(added) => {
                let scalars = mine.scalars.take().zip(theirs.scalars.take());
                let (own, others) = scalars.expect("both were looked at");
                let (group, from) = scalars::together(old, other);
                debug_assert!(group.items.len() > LOOKED_AT || self.build(&group).is_ok());
                mine.keep(if from == 0 { 0 } else { mine.listed });
                mine.draft = None;
                let scalars = own.with(others, self, added);
                debug_assert!(group.items.len() > LOOKED_AT || scalars.is_as_anew(self, &group));
                mine.scalars = Some(scalars);
                group
            }
        };
        mine.clones.append(&mut theirs.clones);
        self.known[a] = Some(mine);
        self.groups[a] = Some(group);
    }
}
