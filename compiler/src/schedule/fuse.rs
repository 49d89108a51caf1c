//! Fusion: items that share an iteration space become one row program or one product's epilogue.
//!
//! Groups grow by merging two at a time. A merge is legal where no third group lies on a path
//! between the two, where their spaces match through a value that both touch, and where the
//! program of the whole can be written. What a group produces and only its members read is never
//! stored.

use super::affine::{Access, Matched, Remap, Side, match_axes};
use super::items::{Body, Items, Read};
use super::kernels::product_fits;
use super::program::{Built, build, still};
use super::space::holds;
use super::sums::Sums;
use super::{Capabilities, deps};
use crate::ir::Phase;
use crate::ops::Op;

mod accumulate;
mod gelu;

pub use accumulate::adds_to_variable;

/// Items that run together.
#[derive(Clone, Debug)]
pub struct Group {
    /// Ascending.
    pub items: Vec<usize>,
    /// For each item and each of its axes, the factors of the group's axes.
    pub maps: Vec<Vec<Vec<i64>>>,
    pub dims: Vec<usize>,
    pub reduced: usize,
    pub phase: Phase,
    /// The product whose epilogue the group is.
    pub product: Option<usize>,
    /// Counts points in linear order (random numbers), so the order of the axes must stay.
    pub fixed: bool,
    /// A kernel that does not fuse.
    pub opaque: bool,
    /// Sums of an operand that the product stores beside its result.
    pub sums: Option<Sums>,
    /// The product ends in the derivative of a GELU by tanh as a library does it: nothing more joins,
    /// and the result is not written over what is read.
    pub gelu_gradient: bool,
}

impl Group {
    /// One item by itself.
    pub fn of(items: &Items, i: usize) -> Group {
        let item = &items.items[i];
        let rank = item.dims.len();
        let unit = |a: usize| (0..rank).map(|d| i64::from(d == a)).collect();
        Group {
            items: vec![i],
            maps: vec![(0..rank).map(unit).collect()],
            dims: item.dims.clone(),
            reduced: item.reduced,
            phase: item.phase,
            product: matches!(item.body, Body::Product { .. }).then_some(i),
            fixed: matches!(item.body, Body::Rows(Op::Dropout(_))),
            opaque: !item.fuses(),
            sums: None,
            gelu_gradient: false,
        }
    }

    /// The first item's name and what was fused to it.
    pub fn name(&self, items: &Items) -> String {
        let lead = self.product.unwrap_or(self.items[0]);
        let mut name = items.items[lead].name.clone();
        let rest: Vec<&str> = self
            .items
            .iter()
            .filter(|&&i| i != lead)
            .map(|&i| match &items.items[i].body {
                Body::Rows(op) | Body::Product { op, .. } | Body::Kernel { op, .. } => op.name(),
                Body::Copy => "copy",
            })
            .collect();
        let rest: Vec<&str> = rest.into_iter().chain(self.sums.as_ref().map(|_| "sums")).collect();
        for r in rest.iter().take(4) {
            name.push('+');
            name.push_str(r);
        }
        if rest.len() > 4 {
            name.push_str(&format!("+{}", rest.len() - 4));
        }
        name
    }

    fn accesses(&self, items: &Items, writes: bool) -> Vec<Access> {
        let mut out = vec![];
        for (&i, axes) in self.items.iter().zip(&self.maps) {
            let item = &items.items[i];
            let list: Vec<&Access> = if writes {
                item.writes.iter().collect()
            } else {
                let at = |r: &'_ Read| matches!(r, Read::At(_));
                item.reads
                    .iter()
                    .filter(|r| at(r))
                    .map(|r| match r {
                        Read::At(a) => a,
                        Read::Literal(_) => unreachable!("filtered"),
                    })
                    .collect()
            };
            for a in list {
                let mut strides = vec![0; self.dims.len()];
                for (s, row) in a.strides.iter().zip(axes) {
                    strides.iter_mut().zip(row).for_each(|(o, m)| *o += s * m);
                }
                still(&mut strides, &self.dims);
                let a = Access { value: a.value, offset: a.offset, strides };
                if !out.contains(&a) {
                    out.push(a);
                }
            }
        }
        out
    }

    fn mapped(&self, remap: &Remap) -> Vec<Vec<Vec<i64>>> {
        self.maps.iter().map(|item| item.iter().map(|row| remap.apply(row)).collect()).collect()
    }

    fn is_single(&self) -> bool {
        self.dims.iter().all(|&n| n == 1)
    }
}

/// Groups in topological order of their first items, each with its program where it has one.
pub fn fuse(items: &Items, caps: &Capabilities) -> Vec<(Group, Option<Built>)> {
    let next = deps::successors(items);
    let mut f = Fuser {
        items,
        readers: deps::readers(items),
        writers: deps::writers(items),
        results: {
            let mut r = vec![false; items.values.len()];
            items.results.iter().for_each(|x| r[x.1] = true);
            r
        },
        next,
        group_of: (0..items.items.len()).collect(),
        order: (0..items.items.len()).map(Some).collect(),
        position: (0..items.items.len()).collect(),
        groups: (0..items.items.len()).map(|i| Some(Group::of(items, i))).collect(),
        casts_alone: caps.casts_alone,
    };
    if caps.any_epilogue {
        f.epilogues();
    } else {
        if caps.accumulates {
            f.accumulations();
        }
        if caps.gelu_gradients {
            f.gelu_gradients();
        }
    }
    f.chains();
    f.scalars();
    let groups: Vec<Group> = f.groups.iter().flatten().cloned().collect();
    groups
        .into_iter()
        .map(|g| {
            let built = (!g.opaque)
                .then(|| f.build(&g).unwrap_or_else(|e| panic!("`{}`: {e}", g.name(items))));
            (g, built)
        })
        .collect()
}

struct Fuser<'a> {
    items: &'a Items,
    readers: Vec<Vec<usize>>,
    writers: Vec<Vec<usize>>,
    results: Vec<bool>,
    next: Vec<Vec<usize>>,
    group_of: Vec<usize>,
    groups: Vec<Option<Group>>,
    /// The groups in a topological order, with gaps where merged ones were.
    order: Vec<Option<usize>>,
    /// Where in `order` each group is.
    position: Vec<usize>,
    casts_alone: bool,
}

impl Fuser<'_> {
    fn group(&self, id: usize) -> &Group {
        self.groups[id].as_ref().expect("a live group")
    }

    fn build(&self, g: &Group) -> Result<Built, &'static str> {
        build(self.items, g, |v| self.stored(g, v))
    }

    /// Whether a value that the group computes must be stored.
    fn stored(&self, g: &Group, v: usize) -> bool {
        let value = &self.items.values[v];
        self.results[v]
            || value.updates.is_some()
            || value.placed.is_some()
            || self.writers[v].len() > 1
            || self.readers[v].iter().any(|r| g.items.binary_search(r).is_err())
    }

    /// Lets products take the elementwise work that follows them.
    fn epilogues(&mut self) {
        for i in 0..self.items.items.len() {
            if self.group(self.group_of[i]).product != Some(i) {
                continue;
            }
            while let Some(j) = self.consumers(self.group_of[i]).into_iter().find(|&j| {
                let g = self.group(j);
                g.product.is_none()
                    && g.reduced == 0
                    && self.try_merge(self.group_of[i], j).is_some()
            }) {
                self.merge(self.group_of[i], j);
            }
        }
    }

    /// Joins producers and consumers among row programs.
    fn chains(&mut self) {
        for i in 0..self.items.items.len() {
            loop {
                let at = self.group_of[i];
                if self.group(at).product.is_some() || self.group(at).opaque {
                    break;
                }
                // What is computed again joins its reader even where that is an epilogue.
                let again =
                    self.group(at).items.iter().all(|&i| self.items.items[i].clone_of.is_some());
                let found = self.consumers(at).into_iter().find(|&j| {
                    (again || self.group(j).product.is_none()) && self.try_merge(at, j).is_some()
                });
                match found {
                    Some(j) => self.merge(at, j),
                    None => break,
                }
            }
        }
    }

    /// Joins programs over a single element, whatever they share.
    fn scalars(&mut self) {
        let single =
            |g: &Group| g.is_single() && g.reduced == 0 && !g.opaque && g.product.is_none();
        let alone = |this: &Self, g: usize| this.groups[g].as_ref().is_some_and(single);
        let all: Vec<usize> = (0..self.groups.len()).filter(|&g| alone(self, g)).collect();
        for (i, &at) in all.iter().enumerate() {
            for &other in &all[i + 1..] {
                if alone(self, at) && alone(self, other) && self.try_merge(at, other).is_some() {
                    self.merge(at, other);
                }
            }
        }
    }

    /// Groups that must run after `g`, in order.
    fn consumers(&self, g: usize) -> Vec<usize> {
        let mut out: Vec<usize> = self
            .group(g)
            .items
            .iter()
            .flat_map(|&i| &self.next[i])
            .map(|&j| self.group_of[j])
            .filter(|&j| j != g)
            .collect();
        out.sort_unstable_by_key(|&j| self.group(j).items[0]);
        out.dedup();
        out
    }

    /// Whether a path leads from `from` to `to` through a third group, or, with `direct`, at all.
    fn path(&self, from: usize, to: usize, direct: bool) -> bool {
        let mut seen = vec![false; self.groups.len()];
        self.reached(from, to, direct, &mut seen)
    }

    /// [`Fuser::path`]; marks what it found to come after `from` and before `to`.
    fn reached(&self, from: usize, to: usize, direct: bool, seen: &mut [bool]) -> bool {
        // Whatever is after `to` in a topological order leads away from it.
        let end = self.position[to];
        let before = |j: usize| self.position[j] < end;
        let mut stack = vec![];
        for &i in &self.group(from).items {
            for &j in &self.next[i] {
                let j = self.group_of[j];
                if j == to {
                    if direct {
                        return true;
                    }
                } else if j != from && before(j) && !seen[j] {
                    seen[j] = true;
                    stack.push(j);
                }
            }
        }
        while let Some(g) = stack.pop() {
            for &i in &self.group(g).items {
                for &j in &self.next[i] {
                    let j = self.group_of[j];
                    if j == to {
                        return true;
                    }
                    if !seen[j] && before(j) {
                        seen[j] = true;
                        stack.push(j);
                    }
                }
            }
        }
        false
    }

    fn merge(&mut self, a: usize, b: usize) {
        let g = self.try_merge(a, b).expect("the merge was found legal");
        self.reorder(a, b);
        for &i in &g.items {
            self.group_of[i] = a;
        }
        self.groups[b] = None;
        self.groups[a] = Some(g);
    }

    /// Makes the order topological for `a` and `b` as one: of what is between them, what does not
    /// come after the earlier one stays before both, the rest moves behind both.
    fn reorder(&mut self, a: usize, b: usize) {
        let (pa, pb) = (self.position[a], self.position[b]);
        let (first, second) = if pa < pb { (a, b) } else { (b, a) };
        let mut after = vec![false; self.groups.len()];
        let through = self.reached(first, second, false, &mut after);
        debug_assert!(!through, "a third group is on a path between the two");
        let range = pa.min(pb)..pa.max(pb) + 1;
        let between: Vec<usize> = self.order[range.clone()]
            .iter()
            .flatten()
            .copied()
            .filter(|&g| g != a && g != b)
            .collect();
        let (behind, stays): (Vec<usize>, Vec<usize>) = between.iter().partition(|&&g| after[g]);
        self.order[range.clone()].fill(None);
        for (at, g) in range.zip(stays.into_iter().chain([a]).chain(behind)) {
            self.order[at] = Some(g);
            self.position[g] = at;
        }
    }

    /// The union of two groups, where it is legal. No path leads from `b` to `a`.
    fn try_merge(&self, a: usize, b: usize) -> Option<Group> {
        let (p, c) = (self.group(a), self.group(b));
        if p.phase != c.phase
            || p.opaque
            || c.opaque
            || (p.product.is_some() && c.product.is_some())
            || p.gelu_gradient
            || c.gelu_gradient
        {
            return None;
        }
        let cast = |g: &Group| matches!(self.items.items[g.items[0]].body, Body::Rows(Op::Cast(_)));
        if self.casts_alone && (cast(p) || cast(c)) {
            return None;
        }
        // A clone exists so that the original's value need not be stored.
        let all = || p.items.iter().chain(&c.items).map(|&i| &self.items.items[i]);
        let meets = |o: usize| all().any(|x| x.clone_of.is_none() && x.origin == o);
        if all().filter_map(|x| x.clone_of).any(meets) {
            return None;
        }
        // A walk through the graph: only where the two would fit.
        let parted = std::cell::OnceCell::new();
        let parted = || *parted.get_or_init(|| self.path(a, b, false) || self.path(b, a, true));
        if p.is_single() && c.is_single() && p.product.is_none() && c.product.is_none() {
            let side = |g: &Group| Remap { pieces: vec![vec![]; g.dims.len()], rank: 0 };
            if p.reduced == 0 && c.reduced == 0 {
                if parted() {
                    return None;
                }
                return self.checked(union(p, c, &side(p), &side(c), vec![], 0));
            }
        }
        let (pw, pr) = (p.accesses(self.items, true), p.accesses(self.items, false));
        let cr = c.accesses(self.items, false);
        let mut tried: Vec<(Access, Access)> = vec![];
        for x in pw.iter().chain(&pr) {
            for y in cr.iter().filter(|y| y.value == x.value && y.offset == x.offset) {
                if tried.len() < 8 {
                    tried.push((x.clone(), y.clone()));
                }
            }
        }
        let lead_first = p.product.is_some()
            || (c.product.is_none() && (p.reduced > 0 || (c.reduced == 0 && p.fixed)));
        for (x, y) in &tried {
            for lead in [lead_first, !lead_first] {
                if (p.product.is_some() && !lead) || (c.product.is_some() && lead) {
                    continue;
                }
                let g = if lead { join(p, c, x, y) } else { join(c, p, y, x) };
                let Some(g) = g else { continue };
                if parted() {
                    return None;
                }
                if let Some(g) = self.checked(g) {
                    return Some(g);
                }
            }
        }
        None
    }

    fn checked(&self, g: Group) -> Option<Group> {
        let built = self.build(&g).ok()?;
        // A part of a value is written into its memory: the whole is read in a later step.
        let storage = |a: &Access| self.items.storage(a.value);
        if built.inputs.iter().any(|r| built.outputs.iter().any(|w| storage(r) == storage(w))) {
            return None;
        }
        let fits = match g.product {
            Some(_) => product_fits(self.items, &g, &built),
            None => holds(self.items, &g, &built),
        };
        fits.then_some(g)
    }
}

/// Strides over a product's own axes of an access over a space that splits them.
pub fn over_product(dims: &[usize], a: &Access, product: &[usize]) -> Option<Vec<i64>> {
    let view = crate::ir::view::View {
        shape: crate::ir::Shape::new(dims),
        offset: a.offset,
        strides: a.strides.clone(),
    };
    Some(view.reshape(&crate::ir::Shape::new(product))?.strides)
}

/// The union over the leading group's space, matched through accesses to one value.
fn join(lead: &Group, other: &Group, x: &Access, y: &Access) -> Option<Group> {
    let m = match_axes(
        &Side { dims: &lead.dims, strides: &x.strides },
        &Side { dims: &other.dims, strides: &y.strides },
    )?;
    let Matched { dims, lead: lead_map, other: other_map, shared, lead_axis } = m;
    let kept_before = lead.dims.len() - lead.reduced;
    let kept = lead_axis.iter().take_while(|&&a| a < kept_before).count();
    let wide = |d: usize| dims[d] > 1;
    let full = (0..dims.len()).all(|d| shared[d] || !wide(d));
    let rows = lead.reduced > 0 && (0..dims.len()).all(|d| !wide(d) || shared[d] == (d < kept));
    if !full && !rows {
        return None;
    }
    if other.reduced > 0 {
        let theirs = other.dims.len() - other.reduced;
        let mut reduced: Vec<usize> =
            other_map.pieces[theirs..].iter().flatten().map(|p| p.0).filter(|&d| wide(d)).collect();
        reduced.sort_unstable();
        let ours: Vec<usize> = (kept..dims.len()).filter(|&d| wide(d)).collect();
        if lead.reduced == 0 || reduced != ours || !full {
            return None;
        }
    }
    if other.fixed && (!full || lead.product.is_some() || !other_map.keeps_order(&dims)) {
        return None;
    }
    let reduced = dims.len() - kept;
    Some(union(lead, other, &lead_map, &other_map, dims, reduced))
}

fn union(a: &Group, b: &Group, am: &Remap, bm: &Remap, dims: Vec<usize>, reduced: usize) -> Group {
    let maps = a.mapped(am).into_iter().chain(b.mapped(bm));
    let mut all: Vec<(usize, Vec<Vec<i64>>)> =
        a.items.iter().chain(&b.items).copied().zip(maps).collect();
    all.sort_by_key(|x| x.0);
    let (items, maps) = all.into_iter().unzip();
    Group {
        items,
        maps,
        dims,
        reduced,
        phase: a.phase,
        product: a.product.or(b.product),
        fixed: a.fixed || b.fixed,
        opaque: false,
        sums: None,
        gelu_gradient: false,
    }
}
