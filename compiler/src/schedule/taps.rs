//! Watching a schedule: every real value that a fused program keeps in registers is stored as well,
//! for whoever wants to look at it. What the programs compute stays as it is, to the bit: a value
//! that they do not round is stored in f32, unrounded.

use super::fuse::Group;
use super::items::{Items, Source};
use super::kernels::product_fits;
use super::program::{Built, build_within};
use crate::ir::Phase;
use precast_plan::DType;
use std::collections::BTreeSet;

/// A watched program may be larger than one that is worth running.
const MOST: (usize, usize) = (usize::MAX, usize::MAX);

/// Stores what groups of forward and backward pass compute and keep to themselves; gives the values
/// that are stored for this alone. A few may stay unwatched: what only exists once a row in a
/// program over elements has nowhere to be stored.
pub fn tap(items: &mut Items, groups: &mut [(Group, Option<Built>)]) -> BTreeSet<usize> {
    let mut tapped = BTreeSet::new();
    for (group, built) in groups.iter_mut().filter(|(g, _)| g.phase == Phase::Micro) {
        let Some(built) = built else { continue };
        let kept: BTreeSet<usize> = built.outputs.iter().map(|a| a.value).collect();
        let inside: Vec<usize> = group
            .items
            .iter()
            .map(|&i| &items.items[i])
            .filter(|item| item.clone_of.is_none())
            .flat_map(|item| item.writes.iter().map(|w| w.value))
            .filter(|v| !kept.contains(v) && watchable(items, *v))
            .collect();
        if inside.is_empty() {
            continue;
        }
        inside.iter().for_each(|&v| items.values[v].dtype = DType::F32);
        let attempt = |stored: &BTreeSet<usize>| -> Option<Built> {
            let built = build_within(items, group, |v| stored.contains(&v), MOST).ok()?;
            (group.product.is_none() || product_fits(items, group, &built)).then_some(built)
        };
        let mut all = kept.clone();
        all.extend(&inside);
        if let Some(whole) = attempt(&all) {
            *built = whole;
            tapped.extend(inside);
            continue;
        }
        let mut stored = kept;
        for v in inside {
            stored.insert(v);
            match attempt(&stored) {
                Some(more) => {
                    *built = more;
                    tapped.insert(v);
                }
                None => {
                    stored.remove(&v);
                }
            }
        }
    }
    tapped
}

fn watchable(items: &Items, v: usize) -> bool {
    let value = &items.values[v];
    value.of.is_some()
        && value.dtype.is_real()
        && value.source == Source::Computed
        && value.updates.is_none()
        && value.placed.is_none()
}
