//! What must run before what.

use super::items::{Body, Item, Items, Read, Source};
use crate::work::Work;
use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};

/// Items that write each value, with those that write values placed inside it.
pub fn writers(items: &Items) -> Vec<Vec<usize>> {
    let mut out = vec![vec![]; items.values.len()];
    for (i, item) in items.items.iter().enumerate() {
        for w in &item.writes {
            out[w.value].push(i);
            let mut at = w.value;
            while let Some((outer, _)) = &items.values[at].placed {
                out[*outer].push(i);
                at = *outer;
            }
        }
    }
    for list in &mut out {
        list.sort_unstable();
        list.dedup();
    }
    out
}

/// Items that read each value.
pub fn readers(items: &Items) -> Vec<Vec<usize>> {
    let mut out = vec![vec![]; items.values.len()];
    for (i, item) in items.items.iter().enumerate() {
        for v in item.read_values() {
            if out[v].last() != Some(&i) {
                out[v].push(i);
            }
        }
    }
    out
}

/// Whether the item fills a whole value with a literal that parts are then written over; a part
/// may be a literal too, of fewer elements. The value's extents say nothing: a result may give it others.
pub fn is_fill(items: &Items, item: &Item) -> bool {
    matches!(item.body, Body::Copy)
        && matches!(item.reads[..], [Read::Literal(_)])
        && item.dims.iter().product::<usize>() == items.values[item.writes[0].value].elements()
}

/// Items that must run after each item: readers of what it writes, writers over its zeros, and
/// writers of a variable's new value after readers of the old one in the same phase.
pub fn successors(items: &Items) -> Vec<Vec<usize>> {
    let mut out = vec![vec![]; items.items.len()];
    let (writers, readers) = (writers(items), readers(items));
    for (v, list) in writers.iter().enumerate() {
        for &w in list {
            for &r in &readers[v] {
                out[w].push(r);
            }
            if is_fill(items, &items.items[w]) && list.len() > 1 {
                out[w].extend(list.iter().filter(|&&x| x != w));
            }
        }
    }
    let mut old: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (v, value) in items.values.iter().enumerate() {
        if let Source::Var(name) = &value.source {
            old.entry(name).or_default().extend(&readers[v]);
        }
    }
    for (v, value) in items.values.iter().enumerate() {
        let Some(var) = &value.updates else { continue };
        for &r in old.get(var.as_str()).into_iter().flatten() {
            for &w in &writers[v] {
                if r != w && items.items[r].phase == items.items[w].phase {
                    out[r].push(w);
                }
            }
        }
    }
    for list in &mut out {
        Work::Edges.add(list.len());
        list.sort_unstable();
        list.dedup();
    }
    out
}

/// A topological order: micro before update, otherwise the smallest index that is ready.
///
/// # Panics
/// Where items wait for each other.
pub fn sort(items: &mut Items) {
    let next = successors(items);
    let n = items.items.len();
    let mut waits = vec![0; n];
    next.iter().flatten().for_each(|&j| waits[j] += 1);
    let key = |i: usize| Reverse((items.items[i].phase, i));
    let mut ready: BinaryHeap<_> = (0..n).filter(|&i| waits[i] == 0).map(key).collect();
    let mut order = Vec::with_capacity(n);
    while let Some(Reverse((_, i))) = ready.pop() {
        order.push(i);
        for &j in &next[i] {
            waits[j] -= 1;
            if waits[j] == 0 {
                ready.push(key(j));
            }
        }
    }
    assert_eq!(order.len(), n, "items wait for each other");
    let mut old: Vec<Option<Item>> =
        std::mem::take(&mut items.items).into_iter().map(Some).collect();
    items.items = order.into_iter().map(|i| old[i].take().expect("each once")).collect();
}
