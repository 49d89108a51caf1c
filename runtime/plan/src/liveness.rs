//! Checks across steps: temporaries are written before they are read, and those that are alive
//! together lie apart.

use crate::schema::{Named, Storage, TensorId};
use crate::uses::Use;
use crate::validate::Context;
use std::collections::BTreeMap;

/// `steps` are the uses of a sequence of steps; `results` are read after the last.
pub(crate) fn check(cx: &mut Context, what: &str, steps: &[Vec<Use>], results: &[Named]) {
    let arena = |cx: &Context, t: TensorId| {
        matches!(cx.plan.tensors[t as usize].storage, Storage::Arena { .. })
    };
    // First write and last use of every temporary.
    let mut range: BTreeMap<TensorId, (usize, usize)> = BTreeMap::new();
    for (s, list) in steps.iter().enumerate() {
        for u in list.iter().filter(|u| !u.write && arena(cx, u.tensor)).collect::<Vec<_>>() {
            match range.get_mut(&u.tensor) {
                Some(r) => r.1 = s,
                None => {
                    let name = &cx.plan.tensors[u.tensor as usize].name;
                    let text = format!("step {s} reads `{name}`, which no step has written");
                    cx.error(what, text);
                }
            }
        }
        for u in list.iter().filter(|u| u.write && arena(cx, u.tensor)) {
            range.entry(u.tensor).or_insert((s, s)).1 = s;
        }
    }
    for r in results {
        if !arena(cx, r.tensor) {
            continue;
        }
        match range.get_mut(&r.tensor) {
            Some(range) => range.1 = steps.len(),
            None => cx.error(what, format!("no step writes the result `{}`", r.name)),
        }
    }
    let mut begins: Vec<Vec<TensorId>> = vec![vec![]; steps.len()];
    let mut ends: Vec<Vec<TensorId>> = vec![vec![]; steps.len() + 1];
    for (&t, &(first, last)) in &range {
        begins[first].push(t);
        ends[last].push(t);
    }
    // Live temporaries by offset. A temporary that is last used where another begins may share its
    // memory: the check of the step itself says how.
    let mut live: BTreeMap<u64, (u64, TensorId)> = BTreeMap::new();
    for s in 0..steps.len() {
        for &t in &ends[s] {
            if range[&t].0 < s {
                live.remove(&cx.place(t).1);
            }
        }
        for &t in &begins[s] {
            let (from, to) = (cx.place(t).1, cx.place(t).1 + cx.bytes(t));
            let clash = live.range(..to).next_back().filter(|(_, (end, _))| *end > from);
            if let Some((_, &(_, other))) = clash {
                let name = |t: TensorId| cx.plan.tensors[t as usize].name.clone();
                let text = format!(
                    "`{}` and `{}` are alive at step {s} and overlap",
                    name(other),
                    name(t)
                );
                cx.error(what, text);
                continue;
            }
            if range[&t].1 > s {
                live.insert(from, (to, t));
            }
        }
    }
}
