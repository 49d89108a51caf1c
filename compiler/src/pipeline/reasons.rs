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

#[cfg(test)]
mod tests {
    use crate::frontend::recipe::Recipe;
    use crate::pipeline::{self, Options};

    #[test]
    fn prices_of_operations_add_up_to_the_steps_that_they_name() {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/digits");
        let text = std::fs::read_to_string(folder.join("recipe.toml")).unwrap();
        let text = format!("{text}\n[target]\ndevice = \"h100\"\n");
        let recipe = Recipe::parse(folder.join("recipe.toml"), &text).unwrap();
        let plan = pipeline::compile(&recipe, &Options::default()).unwrap().plan;
        let steps = || plan.micro.iter().chain(&plan.update);
        let named =
            |s: &&precast_plan::Step| s.ops.iter().any(|o| plan.journal.iter().any(|d| d.op == *o));
        let want: f64 = steps().filter(named).map(|s| s.predicted_ns).sum();
        let have: f64 = plan
            .journal
            .iter()
            .enumerate()
            .filter(|(i, d)| plan.journal[..*i].iter().all(|e| e.op != d.op))
            .filter(|(_, d)| steps().any(|s| s.ops.contains(&d.op)))
            .map(|(_, d)| d.cost_ns)
            .sum();
        assert!(want > 0.5 * plan.summary.predicted_ns, "{want} of {}", plan.summary.predicted_ns);
        assert!((have / want - 1.0).abs() < 1e-9, "{have} {want}");
    }
}
