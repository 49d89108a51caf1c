//! Prices of operations as the schedule runs them.

use precast_plan::Plan;
use std::collections::BTreeMap;

/// Gives every operation of the journal its part of the predicted time of the steps that compute it,
/// in proportion to what it costs alone: operations that share a kernel share its start and its
/// traffic. So prices add up to those of the steps. What no step names, such as a copy that the
/// update writes with its weight, keeps the price it has.
pub fn share_steps(plan: &mut Plan) {
    let mut decisions: BTreeMap<String, usize> = BTreeMap::new();
    for (i, d) in plan.journal.iter().enumerate() {
        decisions.entry(d.op.clone()).or_insert(i);
    }
    let mut shares: BTreeMap<usize, f64> = BTreeMap::new();
    for step in plan.micro.iter().chain(&plan.update) {
        let named: Vec<usize> = step.ops.iter().filter_map(|o| decisions.get(o).copied()).collect();
        let alone = |i: usize| plan.journal[i].cost_ns.max(f64::MIN_POSITIVE);
        let total: f64 = named.iter().map(|&i| alone(i)).sum();
        for i in named {
            *shares.entry(i).or_default() += step.predicted_ns * (alone(i) / total);
        }
    }
    for (i, ns) in shares {
        plan.journal[i].cost_ns = ns;
    }
}
