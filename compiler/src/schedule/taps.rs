//! Watching a schedule: beside every program that keeps real values in registers runs a copy of it
//! that stores those values and nothing else, for whoever wants to look at them.
//!
//! The programs themselves stay as they are, and with them every bit of a step: a kernel may sum in
//! another order when it stores more. A value that a program does not round is stored in f32,
//! unrounded.

use super::Schedule;
use super::fuse::Group;
use super::items::{Items, Source};
use super::kernels::product_fits;
use super::order::{Bundle, touched};
use super::program::{Built, build_within};
use super::space::holds;
use crate::ir::Phase;
use precast_plan::{DType, MAX_CODE};
use std::collections::BTreeSet;

/// A copy may be larger than a program that is worth running.
const MOST: (usize, usize) = (MAX_CODE, MAX_CODE);

/// Adds the copies to the steps of forward and backward pass, each before its original, which may
/// overwrite what both read. Gives the values that are stored for this alone. A few may stay
/// unwatched: what only exists once a row in a program over elements has nowhere to be stored.
pub fn tap(s: &mut Schedule) -> BTreeSet<usize> {
    let mut tapped = BTreeSet::new();
    let mut steps = vec![];
    for step in std::mem::take(&mut s.steps) {
        for &g in step.groups.iter().filter(|_| step.phase == Phase::Micro) {
            let Some((values, copy)) = copy(&mut s.items, &s.groups[g]) else { continue };
            tapped.extend(values);
            // The original stores the sums of an operand, if anyone does.
            let group = Group { sums: None, ..s.groups[g].0.clone() };
            s.groups.push((group, Some(copy)));
            let groups = vec![s.groups.len() - 1];
            let (group, copy) = s.groups.last().expect("just added");
            let (reads, writes) = touched(&s.items, group, copy.as_ref());
            steps.push(Bundle { groups, phase: Phase::Micro, reads, writes });
        }
        steps.push(step);
    }
    s.steps = steps;
    tapped
}

/// The values that a group keeps to itself, as far as they can be stored, and its program with them
/// as its results.
fn copy(
    items: &mut Items,
    (group, built): &(Group, Option<Built>),
) -> Option<(BTreeSet<usize>, Built)> {
    let kept: BTreeSet<usize> = built.as_ref()?.outputs.iter().map(|a| a.value).collect();
    let inside: Vec<usize> = group
        .items
        .iter()
        .map(|&i| &items.items[i])
        .filter(|item| item.clone_of.is_none())
        .flat_map(|item| item.writes.iter().map(|w| w.value))
        .filter(|v| !kept.contains(v) && watchable(items, *v))
        .collect();
    inside.iter().for_each(|&v| items.values[v].dtype = DType::F32);
    let attempt = |stored: &BTreeSet<usize>| -> Option<Built> {
        let built = build_within(items, group, |v| stored.contains(&v), MOST).ok()?;
        let fits = match group.product {
            Some(_) => product_fits(items, group, &built),
            None => holds(items, group, &built),
        };
        fits.then_some(built)
    };
    let all: BTreeSet<usize> = inside.iter().copied().collect();
    if all.is_empty() {
        return None;
    }
    if let Some(built) = attempt(&all) {
        return Some((all, built));
    }
    let mut best = None;
    let mut stored = BTreeSet::new();
    for v in inside {
        stored.insert(v);
        match attempt(&stored) {
            Some(built) => best = Some(built),
            None => {
                stored.remove(&v);
            }
        }
    }
    best.map(|built| (stored, built))
}

fn watchable(items: &Items, v: usize) -> bool {
    let value = &items.values[v];
    value.of.is_some()
        && value.dtype.is_real()
        && value.source == Source::Computed
        && value.updates.is_none()
        && value.placed.is_none()
}
