//! Parameters whose gradient is zero whatever the data, which no run would tell from parameters that
//! have learned all there is.

use super::backward::{Sweep, sweep};
use crate::diagnostic::{Diagnostic, Place};
use crate::ir::{Graph, NodeId, Region, ValueId, VarRole};
use crate::ops::{self, Linear, Op};
use precast_plan::{BinaryOp, UnaryOp};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// Most terms of a sum that are looked at.
const TERMS: usize = 16;

/// A value as a sum of multiples of others. Zero has no terms.
type Sum = Vec<(ValueId, f64)>;

/// A warning, P0421, for the parameters that the `roots` depend on with a derivative that is zero
/// by its form: every way to a root passes an operation such as `round`, or what two ways bring
/// cancels, as `z + (round(z) − z)` without its `detach()` does. Ways that end at a `stop_gradient`
/// are meant to.
///
/// Nothing is said where differentiation fails, which is an error of its own.
pub fn vanishing(g: &Graph, roots: &[ValueId], frozen: &[String]) -> Vec<Diagnostic> {
    let reads = reads(g, frozen);
    let mut left: Option<BTreeSet<usize>> = None;
    let mut reached = BTreeSet::new();
    let mut why = Reasons::default();
    for &root in roots.iter().filter(|&&r| g.ty(r).is_real()) {
        let Some(found) = zeros(g, root, &reads) else { return vec![] };
        reached.extend(found.reached);
        left = Some(match left {
            None => found.zero,
            Some(left) => left.intersection(&found.zero).copied().collect(),
        });
        why.flat.extend(found.why.flat);
        why.cancelled.extend(found.why.cancelled);
    }
    let zero: Vec<&str> = left
        .into_iter()
        .flatten()
        .filter(|i| reached.contains(i))
        .map(|i| reads[i].0.as_str())
        .collect();
    let Some(first) = zero.first() else { return vec![] };
    let listed = |names: &[&str], quote: &str| {
        let shown: Vec<String> =
            names.iter().take(5).map(|n| format!("{quote}{n}{quote}")).collect();
        let more =
            if names.len() > 5 { format!(" and {} more", names.len() - 5) } else { String::new() };
        shown.join(", ") + &more
    };
    let flat: Vec<&str> = why.flat.iter().map(String::as_str).collect();
    let cancelled: Vec<&str> = why.cancelled.iter().map(String::as_str).collect();
    let mut reasons = vec![];
    if !cancelled.is_empty() {
        reasons.push(format!(
            "what passes {} cancels with what passes beside it",
            listed(&cancelled, "`")
        ));
    }
    if !flat.is_empty() {
        reasons.push(format!("the derivative of {} is 0", listed(&flat, "`")));
    }
    let message = format!(
        "the gradient of {} is 0 whatever the data: {}",
        listed(&zero, "`"),
        reasons.join("; ")
    );
    let stop = if cancelled.is_empty() { flat } else { cancelled };
    let d = Diagnostic::warning("P0421", message).at(Place::Node { name: (*first).to_string() });
    vec![d.help(format!(
        "where the module detaches a value (a straight-through estimator), the exporter lost it, and \
         [train] stop_gradient = [{}] brings it back; where nothing is to be trained, freeze it: \
         [train] freeze = [{}]",
        listed(&stop, "\""),
        listed(&zero, "\"")
    ))]
}

/// Parameters and the values that read them.
fn reads(g: &Graph, frozen: &[String]) -> Vec<(String, ValueId)> {
    let frozen: BTreeSet<&str> = frozen.iter().map(String::as_str).collect();
    let reads = g.nodes().filter_map(|(_, n)| match &n.op {
        Op::Var(v) if g.vars.get(&v.name).is_some_and(|var| var.role == VarRole::Param) => {
            (!frozen.contains(v.name.as_str())).then(|| (v.name.clone(), n.outputs[0]))
        }
        _ => None,
    });
    reads.collect()
}

#[derive(Default)]
struct Reasons {
    /// Operations whose derivative is zero.
    flat: BTreeSet<String>,
    /// Readers of a value that take away what others add.
    cancelled: BTreeSet<String>,
}

struct Found {
    /// Parameters without a gradient, by index.
    zero: BTreeSet<usize>,
    /// Parameters on which the root depends all the same.
    reached: BTreeSet<usize>,
    why: Reasons,
}

fn zeros(forward: &Graph, root: ValueId, reads: &[(String, ValueId)]) -> Option<Found> {
    let mut g = forward.clone();
    // Nothing is known of the seed, so that nothing is folded with it.
    let seed = ops::Input::new("vanish.seed", g.ty(root));
    let seed = g.try_add(seed, &[], "vanish.seed", Region::Backward).ok()?[0];
    let wrt: Vec<ValueId> = reads.iter().map(|(_, v)| *v).collect();
    let Sweep { cotangents, flat, sums } = sweep(&mut g, root, seed, &wrt).ok()?;
    let values = sums_of(&g, forward.node_count());
    let is_zero = |v: ValueId| values[v.0 as usize].is_empty();
    let zero: BTreeSet<usize> =
        (0..reads.len()).filter(|&i| cotangents[i].is_none_or(is_zero)).collect();
    let ways = ways_to(forward, root);
    let reached: BTreeSet<usize> =
        zero.iter().copied().filter(|&i| ways[reads[i].1.0 as usize]).collect();
    let mut why = Reasons::default();
    // Only what lies behind a parameter without a gradient explains it.
    let behind = behind(forward, reached.iter().map(|&i| reads[i].1));
    let of = |n: NodeId| g.node(n).inputs.iter().any(|v| behind.get(v.0 as usize) == Some(&true));
    for (_, n) in forward.nodes() {
        let enters = n.inputs.iter().any(|v| behind[v.0 as usize]);
        let leaves = n.outputs.iter().any(|v| ways[v.0 as usize]);
        if enters && leaves && n.outputs.iter().all(|&v| !forward.ty(v).is_real()) {
            why.flat.insert(n.name.clone());
        }
    }
    why.flat.extend(
        flat.iter()
            .filter(|&&n| of(n) && !matches!(g.node(n).op, Op::StopGradient(_)))
            .map(|&n| g.node(n).name.clone()),
    );
    for (v, parts) in &sums {
        if cancels(parts.iter().map(|(_, p)| &values[p.0 as usize]))
            && behind.get(v.0 as usize) == Some(&true)
        {
            let takes = |p: &ValueId| {
                let sum = &values[p.0 as usize];
                !sum.is_empty() && sum.iter().all(|(_, c)| *c < 0.0)
            };
            let takers = parts.iter().filter(|(_, p)| takes(p));
            why.cancelled.extend(takers.map(|(n, _)| g.node(*n).name.clone()));
        }
    }
    Some(Found { zero, reached, why })
}

/// Whether sums add up to nothing, term by term as [`add`] does it.
fn cancels<'a>(sums: impl Iterator<Item = &'a Sum>) -> bool {
    let mut total: FxHashMap<ValueId, f64> = FxHashMap::default();
    for &(v, c) in sums.flatten() {
        let sum = total.entry(v).or_insert(0.0);
        *sum += c;
        if *sum == 0.0 {
            total.remove(&v);
        }
    }
    total.is_empty()
}

/// Values from which there is a way to the root that no stop is on.
fn ways_to(g: &Graph, root: ValueId) -> Vec<bool> {
    let mut ways = vec![false; g.value_count()];
    ways[root.0 as usize] = true;
    for (_, n) in g.nodes().rev() {
        let open = !matches!(n.op, Op::StopGradient(_));
        if open && n.outputs.iter().any(|v| ways[v.0 as usize]) {
            n.inputs.iter().for_each(|v| ways[v.0 as usize] = true);
        }
    }
    ways
}

/// Values that depend on one of `from`.
fn behind(g: &Graph, from: impl Iterator<Item = ValueId>) -> Vec<bool> {
    let mut behind = vec![false; g.value_count()];
    from.for_each(|v| behind[v.0 as usize] = true);
    for (_, n) in g.nodes() {
        if n.inputs.iter().any(|v| behind[v.0 as usize]) {
            n.outputs.iter().for_each(|v| behind[v.0 as usize] = true);
        }
    }
    behind
}

/// Adds `by` times a sum to another.
fn add(to: &mut Sum, sum: &Sum, by: f64) {
    for &(v, c) in sum {
        match to.iter().position(|(w, _)| *w == v) {
            Some(i) => to[i].1 += by * c,
            None => to.push((v, by * c)),
        }
    }
    to.retain(|(_, c)| *c != 0.0);
}

/// Every value of the backward pass, from node `first` on, as a sum; forward values are themselves.
fn sums_of(g: &Graph, first: usize) -> Vec<Sum> {
    let mut sums: Vec<Sum> = (0..g.value_count() as u32).map(|v| vec![(ValueId(v), 1.0)]).collect();
    for (id, n) in g.nodes() {
        if (id.0 as usize) < first {
            continue;
        }
        let of = |i: usize| sums[n.inputs[i].0 as usize].clone();
        let zero = |i: &usize| {
            let v = n.inputs[*i];
            g.ty(v).is_real() && sums[v.0 as usize].is_empty()
        };
        let all = || {
            let mut real = (0..n.inputs.len()).filter(|&i| g.ty(n.inputs[i]).is_real()).peekable();
            real.peek().is_some() && real.all(|i| zero(&i))
        };
        let sum = match &n.op {
            Op::Const(c) => {
                if c.data.splat() != Some(0.0) {
                    continue;
                }
                Sum::new()
            }
            Op::Binary(b) if matches!(b.f, BinaryOp::Add | BinaryOp::Sub) => {
                let mut sum = of(0);
                add(&mut sum, &of(1), if b.f == BinaryOp::Add { 1.0 } else { -1.0 });
                sum
            }
            Op::Unary(u) if u.f == UnaryOp::Neg => {
                let mut sum = Sum::new();
                add(&mut sum, &of(0), -1.0);
                sum
            }
            Op::Scale(s) => {
                let mut sum = Sum::new();
                add(&mut sum, &of(0), s.by.0);
                sum
            }
            op => {
                let vanishes = match op.def().linear() {
                    Linear::No => false,
                    Linear::Each(operands) => operands.iter().any(zero),
                    Linear::All => all(),
                };
                if !vanishes {
                    continue;
                }
                Sum::new()
            }
        };
        if sum.len() <= TERMS {
            n.outputs.iter().for_each(|y| sums[y.0 as usize].clone_from(&sum));
        }
    }
    sums
}
