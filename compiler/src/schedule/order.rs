//! From groups to steps in order: equal programs of the update run as one step over many tensors,
//! and the order keeps few bytes alive.

use super::fuse::Group;
use super::items::{Items, Source};
use super::program::Built;
use super::{deps, memory};
use crate::ir::Phase;
use crate::work::Work;
use rustc_hash::{FxHashMap, FxHasher};
use std::collections::BTreeSet;
use std::hash::{Hash, Hasher};

/// Groups that run as one step.
#[derive(Clone, Debug)]
pub struct Bundle {
    pub groups: Vec<usize>,
    pub phase: Phase,
    /// Stored values read and written, by the value whose tensor stores them.
    pub reads: BTreeSet<usize>,
    pub writes: BTreeSet<usize>,
}

type Fused = (Group, Option<Built>);

/// Steps in the order in which they run; all of micro, then all of update.
pub fn order(items: &Items, groups: &[Fused]) -> Vec<Bundle> {
    let mut group_of = vec![0; items.items.len()];
    for (g, (group, _)) in groups.iter().enumerate() {
        group.items.iter().for_each(|&i| group_of[i] = g);
        group.sums.iter().for_each(|s| group_of[s.item] = g);
    }
    let mut next: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); groups.len()];
    for (i, list) in deps::successors(items).iter().enumerate() {
        next[group_of[i]].extend(list.iter().map(|&j| group_of[j]));
    }
    for (g, set) in next.iter_mut().enumerate() {
        set.remove(&g);
    }
    let depth = depths(groups, &next);
    let bundles = bundle(items, groups, &depth);
    let mut bundle_of = vec![0; groups.len()];
    for (b, x) in bundles.iter().enumerate() {
        x.groups.iter().for_each(|&g| bundle_of[g] = b);
    }
    let mut after: Vec<BTreeSet<usize>> = vec![BTreeSet::new(); bundles.len()];
    for (g, set) in next.iter().enumerate() {
        after[bundle_of[g]].extend(set.iter().map(|&j| bundle_of[j]));
    }
    // The graph's own order, and one that frees early; the one that needs less memory wins.
    let orders = [false, true].map(|greedy| arrange(items, &bundles, &after, greedy));
    let cost = |o: &[usize]| memory::live_bound(items, &pick(&bundles, o));
    let best = if cost(&orders[1]) < cost(&orders[0]) { &orders[1] } else { &orders[0] };
    pick(&bundles, best)
}

fn pick(bundles: &[Bundle], order: &[usize]) -> Vec<Bundle> {
    order.iter().map(|&b| bundles[b].clone()).collect()
}

/// Length of the longest chain of groups of the same phase before each group.
fn depths(groups: &[Fused], next: &[BTreeSet<usize>]) -> Vec<usize> {
    let mut waits = vec![0; groups.len()];
    next.iter().flatten().for_each(|&j| waits[j] += 1);
    let mut ready: Vec<usize> = (0..groups.len()).filter(|&g| waits[g] == 0).collect();
    let mut depth = vec![0; groups.len()];
    let mut done = 0;
    while let Some(g) = ready.pop() {
        done += 1;
        for &j in &next[g] {
            if groups[g].0.phase == groups[j].0.phase {
                depth[j] = depth[j].max(depth[g] + 1);
            }
            waits[j] -= 1;
            if waits[j] == 0 {
                ready.push(j);
            }
        }
    }
    assert_eq!(done, groups.len(), "groups wait for each other");
    depth
}

/// Groups of one depth cannot depend on each other; those of the update with one program become
/// one step.
fn bundle(items: &Items, groups: &[Fused], depth: &[usize]) -> Vec<Bundle> {
    let mut out: Vec<Bundle> = vec![];
    // By depth and program: bundles that others may join.
    let mut open: FxHashMap<(usize, u64), Vec<usize>> = FxHashMap::default();
    for (g, (group, built)) in groups.iter().enumerate() {
        let joins = |b: &Bundle| {
            let other = &groups[b.groups[0]].1;
            let (Some(x), Some(y)) = (built, other) else { return false };
            let (x, y) = (&x.program, &y.program);
            x.inputs == y.inputs && x.outputs == y.outputs && same_code(&x.code, &y.code)
        };
        let joinable = group.phase == Phase::Update && group.product.is_none();
        let alike = match joinable {
            true => &mut *open.entry((depth[g], sketch(built.as_ref()))).or_default(),
            false => &mut vec![],
        };
        Work::Order.add(1 + alike.len());
        let at = match alike.iter().find(|&&b| joins(&out[b])) {
            Some(&b) => &mut out[b],
            None => {
                alike.push(out.len());
                out.push(Bundle {
                    groups: vec![],
                    phase: group.phase,
                    reads: BTreeSet::new(),
                    writes: BTreeSet::new(),
                });
                out.last_mut().expect("just pushed")
            }
        };
        at.groups.push(g);
        let (reads, writes) = touched(items, group, built.as_ref());
        at.reads.extend(reads);
        at.writes.extend(writes);
    }
    out
}

/// A number that equal programs share.
fn sketch(built: Option<&Built>) -> u64 {
    let mut h = FxHasher::default();
    if let Some(b) = built {
        (b.program.inputs.len(), b.program.outputs.len(), b.program.code.len()).hash(&mut h);
        for i in &b.program.code {
            std::mem::discriminant(i).hash(&mut h);
            i.operands().for_each(|r| r.hash(&mut h));
            if let precast_plan::Instr::Real(x) = i {
                x.to_bits().hash(&mut h);
            }
        }
    }
    h.finish()
}

fn same_code(a: &[precast_plan::Instr], b: &[precast_plan::Instr]) -> bool {
    a.len() == b.len()
        && a.iter().zip(b).all(|(x, y)| match (x, y) {
            (precast_plan::Instr::Real(x), precast_plan::Instr::Real(y)) => {
                x.to_bits() == y.to_bits()
            }
            (x, y) => x == y,
        })
}

/// Values a group reads and writes in memory.
pub fn touched(
    items: &Items,
    group: &Group,
    built: Option<&Built>,
) -> (BTreeSet<usize>, BTreeSet<usize>) {
    let (mut reads, mut writes) = (BTreeSet::new(), BTreeSet::new());
    match built {
        Some(b) => {
            reads.extend(b.inputs.iter().map(|a| a.value));
            writes.extend(b.outputs.iter().map(|a| a.value));
        }
        None => {
            let item = &items.items[group.items[0]];
            writes.extend(item.writes.iter().map(|w| w.value));
        }
    }
    writes.extend(group.sums.iter().map(|s| s.out.value));
    for &i in &group.items {
        use super::items::Body;
        if let Body::Product { operands, .. } | Body::Kernel { operands, .. } = &items.items[i].body
        {
            reads.extend(operands.iter().map(|o| o.0));
        }
    }
    let stored = |set: BTreeSet<usize>| set.into_iter().map(|v| items.storage(v)).collect();
    (stored(reads), stored(writes))
}

fn arrange(
    items: &Items,
    bundles: &[Bundle],
    after: &[BTreeSet<usize>],
    greedy: bool,
) -> Vec<usize> {
    let n = bundles.len();
    let mut waits = vec![0; n];
    after.iter().flatten().for_each(|&j| waits[j] += 1);
    let mut readers_left = vec![0usize; items.values.len()];
    for b in bundles {
        b.reads.iter().for_each(|&v| readers_left[v] += 1);
    }
    // What outlives its readers is never freed.
    for r in &items.results {
        readers_left[items.storage(r.1)] += 1;
    }
    let counts = |v: usize| {
        let x = &items.values[v];
        x.source == Source::Computed && x.updates.is_none()
    };
    // Bundles that touch each value, whose growth changes with it.
    let mut touching: Vec<Vec<usize>> = vec![vec![]; if greedy { items.values.len() } else { 0 }];
    if greedy {
        for (b, x) in bundles.iter().enumerate() {
            x.reads.iter().chain(&x.writes).for_each(|&v| touching[v].push(b));
        }
    }
    let mut live = vec![false; items.values.len()];
    let mut ready: BTreeSet<(Phase, usize)> =
        (0..n).filter(|&b| waits[b] == 0).map(|b| (bundles[b].phase, b)).collect();
    // How the bytes alive change with each bundle that is ready.
    let growth = |b: usize, live: &[bool], readers_left: &[usize]| -> i64 {
        let new = bundles[b].writes.iter().filter(|&&v| counts(v) && !live[v]);
        let gone =
            bundles[b].reads.iter().filter(|&&v| counts(v) && live[v] && readers_left[v] == 1);
        let sum = |v: &mut dyn Iterator<Item = &usize>| -> i64 {
            v.map(|&v| items.values[v].bytes() as i64).sum()
        };
        sum(&mut new.into_iter()) - sum(&mut gone.into_iter())
    };
    let mut grows = vec![0; n];
    let mut by_growth: BTreeSet<(Phase, i64, usize)> = BTreeSet::new();
    let enter = |b: usize,
                 live: &[bool],
                 left: &[usize],
                 grows: &mut Vec<i64>,
                 by_growth: &mut BTreeSet<(Phase, i64, usize)>| {
        Work::Order.add(1 + bundles[b].reads.len() + bundles[b].writes.len());
        grows[b] = growth(b, live, left);
        by_growth.insert((bundles[b].phase, grows[b], b));
    };
    if greedy {
        for &(_, b) in &ready {
            enter(b, &live, &readers_left, &mut grows, &mut by_growth);
        }
    }
    let mut out = Vec::with_capacity(n);
    while let Some(&(phase, first)) = ready.first() {
        let mut chosen = first;
        if greedy {
            let best = by_growth.range((phase, i64::MIN, 0)..).next();
            let &(_, least, best) = best.expect("something is ready");
            // Work that only grows memory is taken in the graph's order.
            if least <= 0 {
                chosen = best;
            }
            by_growth.remove(&(phase, grows[chosen], chosen));
        }
        ready.remove(&(phase, chosen));
        out.push(chosen);
        // Values that are alive now, and those with one reader left.
        let mut changed: Vec<usize> = vec![];
        for &v in &bundles[chosen].writes {
            if !std::mem::replace(&mut live[v], true) {
                changed.push(v);
            }
        }
        for &v in &bundles[chosen].reads {
            readers_left[v] -= 1;
            if readers_left[v] == 1 {
                changed.push(v);
            }
        }
        if greedy {
            for &b in changed.iter().flat_map(|&v| &touching[v]) {
                if ready.contains(&(bundles[b].phase, b)) {
                    by_growth.remove(&(bundles[b].phase, grows[b], b));
                    enter(b, &live, &readers_left, &mut grows, &mut by_growth);
                }
            }
        }
        for &j in &after[chosen] {
            waits[j] -= 1;
            if waits[j] == 0 {
                ready.insert((bundles[j].phase, j));
                if greedy {
                    enter(j, &live, &readers_left, &mut grows, &mut by_growth);
                }
            }
        }
    }
    out
}
