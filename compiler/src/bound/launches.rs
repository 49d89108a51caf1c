//! Kernels that every schedule starts.

use super::sharing::{Kind, Parted, Sharing, Space};
use crate::ir::{Graph, NodeId, Phase, ValueId};
use crate::ops::{NumericClass, Op};
use crate::work::Work;
use rustc_hash::{FxHashMap, FxHashSet};
use std::collections::{BTreeMap, BTreeSet};

/// Kernels of one batch, and of the update.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub micro: usize,
    pub update: usize,
}

/// Kernels started at least: products and kernels that run alone, and row programs of which no two
/// can share one. Equal programs of the update run as one, so there the longest chain and the
/// kinds of state updates count instead.
pub fn launches(g: &Graph, sharing: &Sharing, storage: &[ValueId]) -> Counts {
    let mut c = Counts::default();
    for (id, n) in g.nodes() {
        if matches!(sharing.kind[id.0 as usize], Kind::Product | Kind::Alone) {
            match n.region.phase() {
                Phase::Micro => c.micro += 1,
                Phase::Update => c.update += 1,
            }
        }
    }
    let near_products = near_products(sharing);
    let mut seen = vec![false; g.node_count()];
    for start in 0..g.node_count() {
        if seen[start] || sharing.kind[start] != Kind::Rows {
            continue;
        }
        let mut members = BTreeSet::from([start]);
        let mut stack = vec![start];
        seen[start] = true;
        while let Some(i) = stack.pop() {
            for &j in sharing.neighbours(i) {
                if !seen[j] {
                    seen[j] = true;
                    members.insert(j);
                    stack.push(j);
                }
            }
        }
        let rows: Vec<usize> =
            members.into_iter().filter(|&i| sharing.kind[i] == Kind::Rows).collect();
        if g.node(NodeId(start as u32)).region.phase() == Phase::Micro {
            c.micro += apart(sharing, &near_products, &rows);
        }
    }
    c.update += update(g, sharing, storage);
    c
}

/// Nodes by the space that they have, so that those can be found that are not parted from a node.
struct Near<'a> {
    sharing: &'a Sharing,
    parted: &'a Parted,
    /// By number.
    of: FxHashMap<Space, BTreeMap<u32, usize>>,
}

impl<'a> Near<'a> {
    fn new(sharing: &'a Sharing, parted: &'a Parted) -> Near<'a> {
        Near { sharing, parted, of: FxHashMap::default() }
    }

    fn insert(&mut self, node: usize) {
        let space = self.sharing.space[node];
        self.of.entry(space).or_default().insert(self.parted.place(node), node);
    }

    /// Whether `fits` holds for one of those of the given spaces that are not parted from `a`. All lie
    /// on the side of `a` that [`Parted`] looks to.
    fn any(&self, a: usize, spaces: &[Space], fits: impl Fn(usize) -> bool) -> bool {
        spaces.iter().filter_map(|s| self.of.get(s)).any(|list| {
            let mut from = 0;
            let gaps =
                self.parted.spans(a).iter().map(|s| (s.0, s.1)).chain([(u32::MAX, u32::MAX)]);
            gaps.into_iter().any(|(start, end)| {
                let gap = from..start;
                from = end;
                Work::Bound.add(1);
                !gap.is_empty() && list.range(gap).any(|(_, &c)| fits(c))
            })
        })
    }
}

/// By node: a product is not parted from it that could end in it, as far as spaces say.
fn near_products(sharing: &Sharing) -> Vec<bool> {
    let n = sharing.kind.len();
    let mut out = vec![false; n];
    let mut look = |parted: &Parted, nodes: &mut dyn Iterator<Item = usize>| {
        let mut near = Near::new(sharing, parted);
        for a in nodes {
            match sharing.kind[a] {
                Kind::Product => near.insert(a),
                Kind::Rows if sharing.space[a].reduced == 1 && sharing.ends_products(a) => {
                    let may = |p: usize| sharing.may(NodeId(a as u32), NodeId(p as u32));
                    out[a] = out[a] || near.any(a, &[sharing.space[a]], may);
                }
                _ => {}
            }
        }
    };
    look(sharing.parted_before(), &mut (0..n));
    look(sharing.parted_after(), &mut (0..n).rev());
    out
}

/// Members of a component of which no two can be in one kernel, nor in a product's.
fn apart(sharing: &Sharing, near_products: &[bool], rows: &[usize]) -> usize {
    let may = |a: usize, b: usize| sharing.together(NodeId(a as u32), NodeId(b as u32));
    let with_product = |a: usize| {
        if !near_products[a] || !sharing.company().product_of(a, sharing.space[a].kept) {
            return false;
        }
        let joins = |p: usize| sharing.may(NodeId(a as u32), NodeId(p as u32));
        if sharing.company().products(a).any(joins) {
            return true;
        }
        let mut stack = vec![a];
        let mut seen = FxHashSet::from_iter([a]);
        while let Some(i) = stack.pop() {
            Work::Bound.add(1 + sharing.neighbours(i).len());
            for &j in sharing.neighbours(i) {
                let ok = sharing.kind[j] == Kind::Maybe
                    || sharing.may(NodeId(a as u32), NodeId(j as u32));
                if ok && seen.insert(j) {
                    if sharing.kind[j] == Kind::Product {
                        return true;
                    }
                    stack.push(j);
                }
            }
        }
        false
    };
    // Programs over one element may all run as one.
    let single = |a: usize| sharing.space[a].kept * sharing.space[a].reduced <= 1;
    let alone: Vec<usize> =
        rows.iter().copied().filter(|&a| !single(a) && !with_product(a)).collect();
    let pick = |parted: &Parted, order: &mut dyn Iterator<Item = usize>| {
        let (mut chosen, mut count) = (Near::new(sharing, parted), 0);
        for a in order {
            if !chosen.any(a, &sharing.spaces_with(sharing.space[a]), |c| may(c, a)) {
                chosen.insert(a);
                count += 1;
            }
        }
        count
    };
    let forwards = pick(sharing.parted_before(), &mut alone.iter().copied());
    forwards.max(pick(sharing.parted_after(), &mut alone.iter().rev().copied()))
}

/// Row programs of the update: as many as there are kinds of state updates, or as the longest chain
/// has kernels.
fn update(g: &Graph, sharing: &Sharing, storage: &[ValueId]) -> usize {
    let mut depth = vec![0usize; g.node_count()];
    let mut kinds: BTreeSet<&Op> = BTreeSet::new();
    let mut longest = 0;
    for (id, n) in g.nodes() {
        let i = id.0 as usize;
        if n.region.phase() != Phase::Update || sharing.kind[i] != Kind::Rows {
            continue;
        }
        if n.op.class() == NumericClass::State
            && matches!(n.op, Op::SgdUpdate(_) | Op::AdamUpdate(_))
        {
            kinds.insert(&n.op);
        }
        depth[i] = 1;
        for v in &n.inputs {
            let from = g.value(storage[v.0 as usize]).node;
            let before = depth[from.0 as usize];
            if before > 0 {
                let step = usize::from(!sharing.may(from, id));
                depth[i] = depth[i].max(before + step);
            }
        }
        longest = longest.max(depth[i]);
    }
    longest.max(kinds.len())
}
