//! Fusion: items that share an iteration space become one row program or one product's epilogue.
//!
//! Groups grow by merging two at a time. A merge is legal where no third group lies on a path
//! between the two, where their spaces match through a value that both touch, and where the
//! program of the whole can be written. What a group produces and only its members read is never
//! stored.

use super::affine::{Access, Matched, Remap, Side, match_axes};
use super::items::{Body, Items};
use super::kernels::product_fits;
use super::program::{Built, Change, Draft, MOST, build, build_drafted, build_of, still};
use super::space::holds;
use super::sums::Sums;
use super::{Capabilities, deps};
use crate::ir::Phase;
use crate::ops::Op;
use paths::Paths;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::BTreeSet;
use std::rc::Rc;

mod accumulate;
mod gelu;
mod merge;
mod paths;
mod scalars;

pub use accumulate::adds_to_variable;

/// For each axis of an item, the factors of its group's axes.
pub type Axes = Vec<Vec<i64>>;

/// Items that run together.
#[derive(Clone, Debug)]
pub struct Group {
    /// Ascending.
    pub items: Vec<usize>,
    /// For each item and each of its axes, the factors of the group's axes.
    pub maps: Vec<Rc<Axes>>,
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
            maps: vec![Rc::new((0..rank).map(unit).collect())],
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
        let rest = self.items.iter().filter(|&&i| i != lead).map(|&i| match &items.items[i].body {
            Body::Rows(op) | Body::Product { op, .. } | Body::Kernel { op, .. } => op.name(),
            Body::Copy => "copy",
        });
        for r in rest.chain(self.sums.as_ref().map(|_| "sums")).take(4) {
            name.push('+');
            name.push_str(r);
        }
        let rest = self.items.len() - 1 + usize::from(self.sums.is_some());
        if rest > 4 {
            name.push_str(&format!("+{}", rest - 4));
        }
        name
    }

    fn is_single(&self) -> bool {
        self.dims.iter().all(|&n| n == 1)
    }
}

/// Groups in topological order of their first items, each with its program where it has one.
pub fn fuse(items: &Items, caps: &Capabilities) -> Vec<(Group, Option<Built>)> {
    let n = items.items.len();
    let readers = deps::readers(items);
    let mut f = Fuser {
        items,
        outside: readers.iter().map(Vec::len).collect(),
        readers,
        writers: deps::writers(items),
        results: {
            let mut r = vec![false; items.values.len()];
            items.results.iter().for_each(|x| r[x.1] = true);
            r
        },
        paths: Paths::new(deps::successors(items)),
        groups: (0..n).map(|i| Some(Group::of(items, i))).collect(),
        known: (0..n).map(|_| None).collect(),
        versions: vec![0; n],
        failed: FxHashMap::default(),
        merges: 0,
        clones: FxHashMap::default(),
        originals: vec![usize::MAX; n],
        casts_alone: caps.casts_alone,
    };
    for (i, item) in items.items.iter().enumerate().filter(|x| x.1.clone_of.is_none()) {
        f.originals[item.origin] = i;
    }
    for (i, item) in items.items.iter().enumerate() {
        if let Some(o) = item.clone_of {
            f.clones.entry(f.originals[o]).or_default().push(i);
        }
    }
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
    paths: Paths,
    groups: Vec<Option<Group>>,
    /// What is known of every group, found when first asked for.
    known: Vec<Option<merge::Known>>,
    /// How often each group has grown.
    versions: Vec<u32>,
    /// Pairs that could not merge, with how often both had grown: until they grow they still cannot,
    /// since no path between two groups ever vanishes but by what they take in.
    failed: FxHashMap<(usize, usize), (u32, u32)>,
    merges: usize,
    /// By value: items that read it and are not in the group of what writes it, where that is of
    /// scalars.
    outside: Vec<usize>,
    /// By item: those that compute it again.
    clones: FxHashMap<usize, Vec<usize>>,
    /// By what clones name them: the items that they compute again.
    originals: Vec<usize>,
    casts_alone: bool,
}

impl Fuser<'_> {
    fn group(&self, id: usize) -> &Group {
        self.groups[id].as_ref().expect("a live group")
    }

    fn group_of(&self, item: usize) -> usize {
        self.paths.group_of(item)
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
            let at = self.group_of(i);
            if self.group(at).product != Some(i) {
                continue;
            }
            self.grow(at, |f, _, j| {
                let g = f.group(j);
                g.product.is_none() && g.reduced == 0
            });
        }
    }

    /// Joins producers and consumers among row programs.
    fn chains(&mut self) {
        // Merges that there had been when a group was last seen to have nothing to join.
        let mut settled = vec![usize::MAX; self.groups.len()];
        for i in 0..self.items.items.len() {
            let at = self.group_of(i);
            if settled[at] == self.merges {
                continue;
            }
            self.grow(at, |f, at, j| {
                // What is computed again joins its reader even where that is an epilogue.
                let of = |i: &usize| f.items.items[*i].clone_of.is_some();
                let (a, b) = (f.group(at), f.group(j));
                a.product.is_none() && !a.opaque && (b.product.is_none() || a.items.iter().all(of))
            });
            settled[at] = self.merges;
        }
    }

    /// Merges a group with the first of its consumers that it can be one with, for as long as there is
    /// one, where `wanted` of the two.
    fn grow(&mut self, at: usize, wanted: impl Fn(&Self, usize, usize) -> bool) {
        let by_item = |f: &Self, g: usize| (f.group(g).items[0], g);
        let mut list: BTreeSet<(usize, usize)> =
            self.paths.after(at).map(|j| by_item(self, j)).collect();
        loop {
            let mut found = None;
            for &(_, j) in &list {
                if wanted(self, at, j)
                    && let Some(merged) = self.try_merge(at, j)
                {
                    found = Some((j, merged));
                    break;
                }
            }
            let Some((j, merged)) = found else { return };
            list.remove(&by_item(self, j));
            list.extend(self.paths.after(j).filter(|&k| k != at).map(|k| by_item(self, k)));
            self.merge(at, j, merged);
        }
    }

    /// Groups that must run after `g`, in order.
    fn consumers(&self, g: usize) -> Vec<usize> {
        let all: BTreeSet<(usize, usize)> =
            self.paths.after(g).map(|j| (self.group(j).items[0], j)).collect();
        all.into_iter().map(|x| x.1).collect()
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

/// How two groups are one over the leading group's space.
#[derive(PartialEq)]
struct Fit {
    dims: Vec<usize>,
    reduced: usize,
    lead: Remap,
    other: Remap,
}

/// The space of the union over the leading group's, matched through accesses to one value.
fn fit(lead: &Group, other: &Group, x: &Access, y: &Access) -> Option<Fit> {
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
    Some(Fit { dims, reduced, lead: lead_map, other: other_map })
}

fn union(a: &Group, b: &Group, am: &Remap, bm: &Remap, dims: Vec<usize>, reduced: usize) -> Group {
    let maps = mapped(a, am).into_iter().chain(mapped(b, bm));
    let mut all: Vec<(usize, Rc<Axes>)> =
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

fn mapped(g: &Group, remap: &Remap) -> Vec<Rc<Axes>> {
    if remap.is_identity() {
        return g.maps.clone();
    }
    g.maps.iter().map(|item| Rc::new(item.iter().map(|row| remap.apply(row)).collect())).collect()
}
