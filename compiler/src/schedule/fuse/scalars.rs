//! Programs over a single element, which join whatever they share and have no limit but that of a plan.

use super::super::items::Read;
use super::super::program::build_drafted;
use super::*;
use precast_plan::MAX_CODE;
use std::collections::BTreeMap;

/// What is enough to know that groups over one element can be one, without writing the program: of
/// groups whose values are whole and stored nowhere inside another.
#[derive(Default)]
pub(super) struct Scalars {
    /// Instructions, and ports, at most.
    code: usize,
    ports: usize,
    /// Values read from memory, and written.
    reads: FxHashSet<usize>,
    writes: FxHashSet<usize>,
}

impl Scalars {
    /// Of a group of one item; `None` where its program has to be written to know.
    pub(super) fn of(f: &Fuser, g: &Group) -> Option<Scalars> {
        let &[i] = &g.items[..] else { return None };
        if !g.is_single() || g.reduced > 0 || g.product.is_some() || g.opaque {
            return None;
        }
        let item = &f.items.items[i];
        let mut out = Scalars::default();
        let plain = |v: usize, offset: i64| {
            let value = &f.items.values[v];
            value.placed.is_none() && offset == 0 && value.elements() == 1
        };
        for r in &item.reads {
            if let Read::At(a) = r {
                if !plain(a.value, a.offset) {
                    return None;
                }
                out.reads.insert(a.value);
            }
        }
        for w in &item.writes {
            if !plain(w.value, w.offset) || f.writers[w.value].len() > 1 {
                return None;
            }
            out.writes.insert(w.value);
        }
        let all = |_: usize| true;
        let (built, _) = build_drafted(f.items, g, &all, (MAX_CODE, MAX_CODE)).ok()?;
        out.code = built.program.code.len();
        out.ports = item.reads.len() + item.writes.len();
        Some(out)
    }

    /// Both as one.
    pub(super) fn with(self, other: Scalars) -> Scalars {
        let few = |s: &Scalars| s.reads.len() + s.writes.len();
        let (mut all, less) = if few(&self) < few(&other) { (other, self) } else { (self, other) };
        all.code += less.code;
        all.ports += less.ports;
        all.writes.extend(less.writes);
        all.reads.extend(less.reads);
        all
    }
}

/// Whether two groups are sure to be one program that a plan holds.
pub(super) fn join(a: Option<&Scalars>, b: Option<&Scalars>) -> bool {
    let (Some(a), Some(b)) = (a, b) else { return false };
    (a.code + b.code).max(a.ports + b.ports) <= MAX_CODE
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
