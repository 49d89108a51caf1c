//! Values that are cheaper to compute again than to store: elementwise functions of values that are
//! stored anyway, read by other programs, such as the parts of a decomposed activation that its
//! gradient reads. Four bytes written and read back cost more than the few instructions.

use super::deps;
use super::fuse::Group;
use super::items::{Body, Item, Items, Read, Source};
use super::program::Built;
use crate::ops::{Lowering, Op};
use std::collections::{BTreeMap, BTreeSet};

/// Most items that are computed again for one value.
const MOST_ITEMS: usize = 12;

/// The items with clones of what is computed again, or `None` where nothing is.
pub fn recompute(items: &Items, groups: &[(Group, Option<Built>)]) -> Option<Items> {
    let mut group_of = vec![0; items.items.len()];
    for (g, (group, _)) in groups.iter().enumerate() {
        group.items.iter().for_each(|&i| group_of[i] = g);
    }
    let (writers, readers) = (deps::writers(items), deps::readers(items));
    let mut dropped: BTreeSet<usize> = BTreeSet::new();
    // (value, reading group) → items to clone, in order.
    let mut cones: Vec<(usize, Vec<usize>)> = vec![];
    let mut results = vec![false; items.values.len()];
    items.results.iter().for_each(|r| results[r.1] = true);
    let is_result = |v: usize| results[v];
    let stored = |v: usize, g: usize| is_result(v) || readers[v].iter().any(|&r| group_of[r] != g);
    for (g, (group, built)) in groups.iter().enumerate() {
        if built.is_none() || group.reduced > 0 {
            continue;
        }
        for &i in &group.items {
            for w in &items.items[i].writes {
                let value = &items.values[w.value];
                let outside: Vec<usize> =
                    readers[w.value].iter().copied().filter(|&r| group_of[r] != g).collect();
                let free = !outside.is_empty()
                    && !is_result(w.value)
                    && value.updates.is_none()
                    && value.placed.is_none()
                    && writers[w.value].len() == 1
                    && outside.iter().all(|&r| {
                        let h = &groups[group_of[r]].0;
                        !h.opaque
                            && !h.gelu_gradient
                            && h.phase == group.phase
                            && !is_operand(&items.items[r], w.value)
                    });
                if !free {
                    continue;
                }
                let available = |v: usize| {
                    !matches!(items.values[v].source, Source::Computed)
                        || (stored(v, g)
                            && !dropped.contains(&v)
                            && v != w.value
                            && writers[v].iter().all(|&x| group_of[x] == g))
                };
                if let Some(cone) = cone(items, &writers, &group_of, g, i, &available) {
                    dropped.insert(w.value);
                    cones.push((w.value, cone));
                }
            }
        }
    }
    if cones.is_empty() {
        return None;
    }
    let mut out = Items {
        values: items.values.clone(),
        items: items.items.clone(),
        results: items.results.clone(),
    };
    // One clone of an item for each reading group.
    let mut clones: BTreeMap<(usize, usize), ()> = BTreeMap::new();
    let mut values: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for (value, cone) in &cones {
        let home = group_of[writers[*value][0]];
        let mut outside: BTreeMap<usize, Vec<usize>> = BTreeMap::new();
        for &r in readers[*value].iter().filter(|&&r| group_of[r] != home) {
            outside.entry(group_of[r]).or_default().push(r);
        }
        for (h, inside) in outside {
            for &i in cone {
                if clones.insert((h, i), ()).is_some() {
                    continue;
                }
                let mut item: Item = items.items[i].clone();
                item.name = format!("{}.again", item.name);
                item.clone_of = Some(i);
                for r in &mut item.reads {
                    if let Read::At(a) = r
                        && let Some(&v) = values.get(&(h, a.value))
                    {
                        a.value = v;
                    }
                }
                for w in &mut item.writes {
                    let mut v = items.values[w.value].clone();
                    v.name = format!("{}.again", v.name);
                    out.values.push(v);
                    values.insert((h, w.value), out.values.len() - 1);
                    w.value = out.values.len() - 1;
                }
                out.items.push(item);
            }
            for r in inside {
                for read in &mut out.items[r].reads {
                    if let Read::At(a) = read
                        && a.value == *value
                    {
                        a.value = values[&(h, *value)];
                    }
                }
            }
        }
    }
    for (i, item) in out.items.iter_mut().enumerate().take(items.items.len()) {
        item.origin = i;
    }
    Some(out)
}

fn is_operand(item: &Item, value: usize) -> bool {
    match &item.body {
        Body::Product { operands, .. } | Body::Kernel { operands, .. } => {
            operands.iter().any(|o| o.0 == value)
        }
        _ => false,
    }
}

/// The items of group `g` that compute what item `last` writes from available values, in order.
fn cone(
    items: &Items,
    writers: &[Vec<usize>],
    group_of: &[usize],
    g: usize,
    last: usize,
    available: &impl Fn(usize) -> bool,
) -> Option<Vec<usize>> {
    let mut found = BTreeSet::from([last]);
    let mut stack = vec![last];
    let mut leaves = 0;
    while let Some(i) = stack.pop() {
        let item = &items.items[i];
        let Body::Rows(op) = &item.body else { return None };
        // Random numbers are dear, reductions need whole rows.
        if matches!(op, Op::Dropout(_)) || op.lowering() != Lowering::Rows || item.reduced > 0 {
            return None;
        }
        for v in item.read_values() {
            if available(v) {
                leaves += usize::from(items.values[v].source == Source::Computed);
                continue;
            }
            let &[w] = writers[v].as_slice() else { return None };
            if group_of[w] != g {
                return None;
            }
            if found.insert(w) {
                stack.push(w);
            }
        }
        if found.len() > MOST_ITEMS {
            return None;
        }
    }
    (leaves > 0).then(|| found.into_iter().collect())
}

/// Whether every clone found a program of its reader to live in.
pub fn all_fused(items: &Items, groups: &[(Group, Option<Built>)]) -> bool {
    groups.iter().all(|(g, _)| g.items.iter().any(|&i| items.items[i].clone_of.is_none()))
}
