//! What the layers of a model cost: operations by the module they came from.

use crate::listing::{duration, percent};
use indexmap::IndexMap;
use precast_compiler::ops::matmul::source_name;
use precast_compiler::precision::casts::is_cast;
use precast_plan::{Plan, Role, Storage};
use serde::Serialize;
use std::collections::BTreeSet;
use std::fmt::Write;

/// A part of a model and what it takes of a step.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Layer {
    pub name: String,
    pub operations: usize,
    /// Forward, backward and update.
    pub cost_ns: f64,
}

/// Names that a plan has for what modules own.
pub struct Names<'p> {
    owned: BTreeSet<&'p str>,
}

impl<'p> Names<'p> {
    pub fn of(plan: &'p Plan) -> Names<'p> {
        let owned = plan.tensors.iter().filter(|t| {
            matches!(t.storage, Storage::Persistent { role: Role::Parameter | Role::Buffer, .. })
        });
        Names { owned: owned.map(|t| t.name.as_str()).collect() }
    }

    /// The module that an operation belongs to: `h.0.c_attn` of `/h.0/c_attn/MatMul.grad.1` and of
    /// `h.0.c_attn.weight.momentum`. An operation that stands in no module is a layer of its own, with
    /// its gradient.
    pub fn layer(&self, op: &str) -> String {
        let op = source_name(op);
        let mut ends: Vec<usize> = op.match_indices('.').map(|(at, _)| at).collect();
        ends.push(op.len());
        // The longest name that is a tensor's.
        if let Some(end) = ends.iter().rev().find(|end| self.owned.contains(&op[..**end])) {
            let owned = &op[..*end];
            return owned.rsplit_once('.').map_or(owned, |(module, _)| module).to_string();
        }
        let path = op.trim_start_matches('/');
        match path.rsplit_once('/') {
            Some((modules, _)) => modules.replace('/', "."),
            None => {
                let end = path.find(['.', '+']).filter(|end| *end > 0);
                path[..end.unwrap_or(path.len())].to_string()
            }
        }
    }
}

/// Every layer, the most expensive first. Casts are in none, since they are nobody's alone.
pub fn layers(plan: &Plan) -> Vec<Layer> {
    let names = Names::of(plan);
    let mut found: IndexMap<String, Layer> = IndexMap::new();
    for d in plan.journal.iter().filter(|d| !is_cast(d)) {
        let name = names.layer(&d.op);
        let layer =
            found.entry(name.clone()).or_insert(Layer { name, operations: 0, cost_ns: 0.0 });
        layer.operations += 1;
        layer.cost_ns += d.cost_ns;
    }
    let mut layers: Vec<Layer> = found.into_values().collect();
    layers.sort_by(|a, b| b.cost_ns.total_cmp(&a.cost_ns));
    layers
}

/// One line a layer, and what of the step casts take.
pub fn table(plan: &Plan) -> String {
    let (layers, step) = (layers(plan), plan.summary.predicted_ns);
    let width = layers.iter().map(|l| l.name.chars().count()).max().unwrap_or(0).clamp(5, 48);
    let mut out = String::new();
    let mut line = |name: &str, ns: f64, operations: String| {
        let share = percent(ns / step.max(f64::MIN_POSITIVE));
        writeln!(out, "{name:width$}  {:>9}  {share:>7}  {operations}", duration(ns))
            .expect("writing to a String");
    };
    for l in &layers {
        let s = if l.operations == 1 { "" } else { "s" };
        line(&l.name, l.cost_ns, format!("{} operation{s}", l.operations));
    }
    let rest = step - layers.iter().map(|l| l.cost_ns).sum::<f64>();
    if rest > 1e-3 * step {
        line("casts", rest, "see `--casts`".into());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn operations_belong_to_modules() {
        let owned = BTreeSet::from(["h.0.c_attn.weight", "w1", "bn1.running_mean"]);
        let names = Names { owned };
        for (op, want) in [
            ("/h.0/c_attn/MatMul+bias", "h.0.c_attn"),
            ("/h.0/c_attn/MatMul.grad.1", "h.0.c_attn"),
            ("h.0.c_attn.weight.momentum", "h.0.c_attn"),
            ("bn1.running_mean.kept", "bn1"),
            ("/Relu_1.grad", "Relu_1"),
            ("fc1+relu", "fc1"),
            ("fc1.grad.3", "fc1"),
            ("w1.next", "w1"),
            ("loss.cross_entropy.grad", "loss"),
            ("/a.b/Conv", "a.b"),
        ] {
            assert_eq!(names.layer(op), want, "{op}");
        }
    }
}
