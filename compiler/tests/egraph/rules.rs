//! One filetest a rule, under its name: the graph before, the graph after with only this rule and
//! its own results preferred, and how often it fired; the two graphs agree on random tensors.

use crate::{reals, same_values};
use indexmap::IndexMap;
use precast_compiler::egraph::{Prefer, restructure_with, rules};
use precast_compiler::ir::Graph;
use precast_compiler::ops::Op;
use precast_compiler::precision::{Policy, PrecisionOptions};
use precast_compiler::reference::Tensor;
use precast_compiler::text;
use precast_plan::Target;
use std::path::Path;

fn random(g: &Graph, seed: u64) -> (IndexMap<String, Tensor>, IndexMap<String, Tensor>) {
    let mut state = seed;
    let mut inputs = IndexMap::new();
    for (_, n) in g.nodes() {
        if let Op::Input(i) = &n.op {
            let ty = g.ty(n.outputs[0]);
            let count = ty.shape.elements();
            let t = if ty.is_real() {
                Tensor::real(ty.shape.clone(), reals(&mut state, count))
            } else {
                Tensor::int(
                    ty.dtype,
                    ty.shape.clone(),
                    (0..count as i64).map(|k| k % 4).collect::<Vec<_>>(),
                )
            };
            inputs.insert(i.name.clone(), t);
        }
    }
    let vars = g.vars.iter().map(|(name, v)| {
        let t = Tensor::real(v.ty.shape.clone(), reals(&mut state, v.ty.shape.elements()));
        (name.clone(), t)
    });
    let vars = vars.collect();
    (inputs, vars)
}

#[test]
fn every_rule_has_a_filetest_and_is_sound() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/egraph/rules");
    let options = PrecisionOptions::new(Policy::F32);
    let target = Target::shipped("cpu-generic").unwrap();
    for rule in rules::all() {
        let path = folder.join(format!("{}.pir", rule.name));
        let source = std::fs::read_to_string(&path)
            .unwrap_or_else(|e| panic!("{}: {e}: every rule has a filetest", path.display()));
        let g = text::parse(&path, &source).unwrap_or_else(|e| panic!("{e}"));
        let one = rules::all().filter(|r| r.name == rule.name);
        let s = restructure_with(&g, &options, &target, one, Prefer::New);
        let fired: u64 = s.rule_firings.values().sum();
        assert!(fired > 0, "{} did not fire", rule.name);
        for seed in 0..4 {
            let (inputs, vars) = random(&g, seed);
            same_values(&g, &s.graph, &inputs, &vars, if rule.exact { 1e-12 } else { 1e-6 });
        }
        let firings: String = s.rule_firings.iter().map(|(k, v)| format!("{k} {v}\n")).collect();
        let shown = format!(
            "-- before\n{}\n-- after\n{}\n-- fired\n{firings}",
            text::print(&g),
            text::print(&s.graph)
        );
        insta::assert_snapshot!(rule.name, shown);
    }
}
