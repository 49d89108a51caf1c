//! Kernels that every schedule starts.

use super::sharing::{Kind, Sharing};
use crate::ir::{Graph, NodeId, Phase, ValueId};
use crate::ops::{NumericClass, Op};
use std::collections::BTreeSet;

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
            c.micro += apart(sharing, &rows);
        }
    }
    c.update += update(g, sharing, storage);
    c
}

/// Members of a component of which no two can be in one kernel, nor in a product's.
fn apart(sharing: &Sharing, rows: &[usize]) -> usize {
    let may = |a: usize, b: usize| sharing.together(NodeId(a as u32), NodeId(b as u32));
    let with_product = |a: usize| {
        let mut stack = vec![a];
        let mut seen = BTreeSet::from([a]);
        while let Some(i) = stack.pop() {
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
    let pick = |order: &mut dyn Iterator<Item = usize>| {
        let mut chosen: Vec<usize> = vec![];
        for a in order {
            if chosen.iter().all(|&c| !may(c, a)) {
                chosen.push(a);
            }
        }
        chosen.len()
    };
    pick(&mut alone.iter().copied()).max(pick(&mut alone.iter().rev().copied()))
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
