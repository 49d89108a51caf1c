//! Plans that are watched: looking changes nothing, and everything can be looked at.

mod common;

use common::Fixture;
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{self, Watched};
use precast_plan::{DType, Role, Side, Storage};
use precast_runtime::blame::Finder;
use precast_runtime::ranges::Meter;
use precast_runtime::{Seen, Session};
use std::collections::{BTreeMap, BTreeSet};

const SGD: &str = "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9";
type Make = fn(&Recipe, &pipeline::Options) -> precast_compiler::diagnostic::Result<Watched>;

fn watched(f: &Fixture, model: &str, policy: &str, train: &str, make: Make) -> Watched {
    let (text, options) = f.recipe(model, policy, SGD, train);
    let recipe =
        Recipe::parse(f.folder.join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
    make(&recipe, &options).unwrap_or_else(|e| panic!("{model} {policy}: {e}"))
}

/// Bytes of everything that outlives a step.
fn state(session: &Session) -> BTreeMap<String, Vec<u8>> {
    let kept = session.plan().tensors.iter().filter(
        |t| matches!(t.storage, Storage::Persistent { role, .. } if role != Role::Constant),
    );
    kept.map(|t| (t.name.clone(), session.read(&t.name).expect("a tensor").bytes.into_owned()))
        .collect()
}

/// Two steps of the plan and of the same plan watched, which takes over the first step's state.
fn looking_changes_nothing(name: &str, model: &str, policy: &str, train: &str, micro: u64) {
    let f = Fixture::open(name);
    let plan = f.compile_with(model, policy, SGD, train, false).plan;
    let (mut session, batch) = f.session(plan);
    let (replay, watches) = {
        let w = watched(&f, model, policy, train, pipeline::replay);
        (w.plan, w.watches)
    };
    let (mut replayed, _) = f.session(replay);
    let batches = vec![batch.clone(); micro as usize];
    session.step(&batches).expect("a step");
    replayed.adopt(&session).expect("the same tensors");
    let report = session.step(&batches).expect("a step");
    let mut counts = vec![0u64; watches.len()];
    let mut finder = Finder::new(&watches);
    let next = || Ok(batch.clone());
    let see = &mut |s: Seen| {
        assert_eq!(s.values.len() as u64, watches[s.watch].shape.iter().product::<u64>());
        counts[s.watch] += 1;
        finder.see(s);
    };
    let again = replayed.step_watched(next, &watches, see).expect("a step");
    assert_eq!(
        (again.step, again.loss.to_bits(), again.scale, again.skipped),
        (report.step, report.loss.to_bits(), report.scale, report.skipped),
        "{name} {policy}"
    );
    let norm = |r: &precast_runtime::StepReport| r.grad_norm.map(f32::to_bits);
    assert_eq!(norm(&again), norm(&report), "{name} {policy}");
    let (a, b) = (state(&session), state(&replayed));
    let differ: Vec<&String> = a.keys().filter(|k| a.get(*k) != b.get(*k)).collect();
    assert!(differ.is_empty() && a.len() == b.len(), "{name} {policy}: {differ:?}");
    assert!(counts.iter().all(|&n| n == micro), "{name} {policy}: {counts:?}");
    let names: BTreeSet<&str> = watches.iter().map(|w| w.name.as_str()).collect();
    assert_eq!(names.len(), watches.len(), "names are unique");
    for (i, w) in watches.iter().enumerate() {
        assert!(w.operands.iter().all(|&o| (o as usize) < i), "operands come first: {}", w.name);
    }
    assert!(watches.iter().any(|w| w.stored.is_none()), "registers are watched, too");
    assert_eq!(report.skipped, finder.finish().is_some(), "{name} {policy}");
}

#[test]
fn looking_at_a_step_changes_none_of_its_bits() {
    looking_changes_nothing("mlp_mnist", "model.onnx", "f16", "", 1);
    looking_changes_nothing("mlp_mnist", "model.onnx", "torch-autocast", "", 1);
    looking_changes_nothing("cifar_cnn", "model.onnx", "f16", "clip_norm = 1.0", 1);
    looking_changes_nothing("cifar_cnn", "model.onnx", "bf16", "accumulate = 2", 2);
    looking_changes_nothing("tiny_gpt", "model.onnx", "f16", "accumulate = 2", 2);
    looking_changes_nothing("tiny_gpt", "model_dynamo.onnx", "f32", "", 1);
    looking_changes_nothing("recurrences", "model.onnx", "f16", "", 1);
}

/// Every real result of the joint graph that a step computes is watched, and its range is that of
/// the values the f32 plan gives by name.
#[test]
fn profiles_see_the_whole_graph() {
    for (name, model) in [("cifar_cnn", "model.onnx"), ("tiny_gpt", "model_dynamo.onnx")] {
        let f = Fixture::open(name);
        let w = watched(&f, model, "auto", "", pipeline::profile);
        let (mut session, batch) = f.session(w.plan);
        let mut meter = Meter::new(w.watches.len());
        let next = || Ok(batch.clone());
        let see = &mut |s: Seen| meter.see(s.watch, s.values);
        session.step_watched(next, &w.watches, see).expect("a step");
        let ranges = meter.ranges(&w.watches);
        assert!(ranges.iter().all(|r| r.not_finite == 0), "{name}");
        assert!(w.watches.iter().all(|w| matches!(w.stored, None | Some(DType::F32))));
        let (text, options) = f.recipe(model, "f32", SGD, "");
        let recipe = Recipe::parse(f.folder.join("recipe.toml"), &text).expect("a recipe");
        let (text, _) = pipeline::stage(&recipe, &options, "autodiff").expect("a stage");
        let graph = precast_compiler::text::parse("joint", &text).expect("it reads back");
        let names: BTreeSet<&str> = ranges.iter().map(|r| r.name.as_str()).collect();
        let mut unseen = vec![];
        for (_, n) in graph.nodes() {
            use precast_compiler::ir::Phase;
            use precast_compiler::ops::Lowering;
            let computed = !matches!(n.op.lowering(), Lowering::Leaf | Lowering::View);
            for &v in n.outputs.iter().filter(|_| computed && n.region.phase() == Phase::Micro) {
                let name = graph.value_name(v);
                if graph.ty(v).is_real() && !names.contains(name.as_str()) {
                    unseen.push(name);
                }
            }
        }
        assert_eq!(unseen, Vec::<String>::new(), "{name}");
        let of = |side| ranges.iter().filter(|r| r.side == side).count();
        assert!(of(Side::Input) == 1 || name == "tiny_gpt");
        assert!(of(Side::State) > 0 && of(Side::Forward) > 0 && of(Side::Cotangent) > 0);
        let loss = ranges.iter().find(|r| r.name == "loss").expect("the loss");
        assert!((loss.max - f.f64s("loss.f64")[0]).abs() < 1e-4, "{name}: {}", loss.max);
    }
}
