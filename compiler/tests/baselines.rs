//! Systems with fixed rules make the casts here that they make themselves.
//!
//! The figures of the MLP and the convolutional network were counted in PyTorch 2.15 (autocast for
//! CUDA in f16 and for the CPU in bf16, traced through forward and backward) and in TensorFlow 2.21
//! (its graph pass over forward and backward, f16 on the CUDA lists and bf16 on the oneDNN lists);
//! loss scaling and optimizer are not part of them.

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{self, Compiled};
use precast_plan::{Kernel, Plan, Storage};
use std::fmt::Write;
use std::path::{Path, PathBuf};

fn root(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn compile(model: &Path, policy: &str, shapes: &[(&str, &[usize])]) -> Compiled {
    let text = format!(
        "model = {model:?}\n[weights]\ninit = \"default\"\n[data]\ntargets = {{ targets = \"targets\" }}\n\
         [loss]\nkind = \"cross_entropy\"\nprediction = \"logits\"\ntarget = \"targets\"\n\
         [optimizer]\nkind = \"sgd\"\nlr = 0.1\n[precision]\npolicy = \"{policy}\"\n\
         [train]\nsteps = 1\n[target]\ndevice = \"sm_80\"\n"
    );
    let recipe = Recipe::parse(root("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
    let options = pipeline::Options {
        shapes: shapes.iter().map(|(k, v)| (k.to_string(), v.to_vec())).collect(),
        ..Default::default()
    };
    pipeline::compile(&recipe, &options).unwrap_or_else(|e| panic!("{policy}: {e}"))
}

fn mlp(policy: &str) -> Compiled {
    compile(&root("compiler/tests/baselines/mlp.pir"), policy, &[("targets", &[64])])
}

fn cnn(policy: &str) -> Compiled {
    let shapes: &[(&str, &[usize])] = &[("x", &[64, 3, 32, 32]), ("targets", &[64])];
    compile(&root("tests/models/cifar_cnn_w32.ts.op17.train.onnx"), policy, shapes)
}

/// (forward casts, backward casts, elements, casts of parameters, their elements)
fn figures(c: &Compiled) -> (usize, usize, u64, usize, u64) {
    let parameter = |name: &str| {
        c.plan.tensors.iter().any(|t| {
            t.name == name
                && matches!(
                    t.storage,
                    Storage::Persistent { role: precast_plan::Role::Parameter, .. }
                )
        })
    };
    let weights = || c.casts.iter().filter(|r| parameter(&r.of));
    let forward = c.casts.iter().filter(|r| r.forward).count();
    (
        forward,
        c.casts.len() - forward,
        c.casts.iter().map(|r| r.elements).sum(),
        weights().count(),
        weights().map(|r| r.elements).sum(),
    )
}

#[test]
fn casts_of_the_mlp_are_those_of_the_systems() {
    for (policy, want) in [
        ("torch-autocast", (6, 5, 865_556, 4, 407_050)),
        ("torch-autocast-bf16", (6, 5, 865_556, 4, 407_050)),
        ("torch-autocast-cpu", (6, 5, 865_556, 4, 407_050)),
        ("tf-grappler", (6, 4, 865_546, 4, 407_050)),
        ("tf-grappler-bf16", (6, 4, 865_546, 4, 407_050)),
    ] {
        let c = mlp(policy);
        assert_eq!(figures(&c), want, "{policy}\n{:#?}", c.casts);
    }
}

#[test]
fn casts_of_the_convolutional_network_are_those_of_the_systems() {
    for (policy, want) in [
        ("torch-autocast", (9, 8, 478_676, 7, 140_394)),
        ("torch-autocast-cpu", (9, 8, 478_676, 7, 140_394)),
        ("tf-grappler", (11, 8, 1_011_147, 7, 140_394)),
        ("tf-grappler-bf16", (9, 8, 478_667, 7, 140_394)),
    ] {
        let c = cnn(policy);
        assert_eq!(figures(&c), want, "{policy}\n{:#?}", c.casts);
    }
}

/// Steps that run a cast, with how many operations each computes.
fn cast_steps(plan: &Plan, c: &Compiled) -> Vec<usize> {
    let cast = |op: &String| c.casts.iter().any(|r| r.name == *op);
    let steps = plan.micro.iter().chain(&plan.update);
    steps.filter(|s| s.ops.iter().any(cast)).map(|s| s.ops.len()).collect()
}

#[test]
fn a_baselines_casts_are_kernels() {
    for policy in ["torch-autocast", "tf-grappler", "all-16"] {
        let c = cnn(policy);
        let steps = cast_steps(&c.plan, &c);
        assert_eq!(steps.len(), c.casts.len(), "{policy}");
        assert!(steps.iter().all(|&ops| ops == 1), "{policy}: {steps:?}");
    }
    // The same casts in a plan of our own are part of other kernels.
    let c = cnn("f16");
    assert!(cast_steps(&c.plan, &c).len() < c.casts.len());
}

#[test]
fn products_of_a_baseline_run_in_its_format() {
    for policy in ["torch-autocast", "torch-autocast-cpu", "tf-grappler", "all-16"] {
        let c = cnn(policy);
        let wide = |a: &precast_plan::Access| c.plan.tensors[a.tensor as usize].dtype.size() == 4;
        let wide = c.plan.micro.iter().filter(|s| match &s.kernel {
            Kernel::Gemm(g) => wide(&g.a) || wide(&g.b),
            Kernel::Conv(k) => wide(&k.a) || wide(&k.b),
            _ => false,
        });
        assert_eq!(wide.count(), 0, "{policy}");
        assert_eq!(c.plan.summary.product_flops.len(), 1, "{policy}");
        assert_eq!(c.plan.summary.policy, policy);
        // The loss scale belongs to f16 alone.
        assert_eq!(c.plan.summary.scaled, policy != "torch-autocast-cpu", "{policy}");
    }
}

fn shown(c: &Compiled) -> String {
    let mut out = format!("{} casts\n", c.casts.len());
    for r in &c.casts {
        let readers = r.readers.join(", ");
        writeln!(out, "{} -> {} of {} x{}: {readers}", r.from, r.to, r.of, r.elements).unwrap();
    }
    out += "\n";
    for d in c.plan.journal.iter().filter(|d| !c.casts.iter().any(|r| r.name == d.op)) {
        if !d.op.starts_with("machine.") {
            writeln!(out, "{} {}: {}", d.op, d.chosen, d.reason).unwrap();
        }
    }
    out
}

#[test]
fn rules_of_every_system() {
    let policies =
        ["torch-autocast", "torch-autocast-cpu", "tf-grappler", "tf-grappler-bf16", "all-16"];
    for (file, rows) in [("mlp", 64), ("block", 8)] {
        for policy in policies {
            let model = root(&format!("compiler/tests/baselines/{file}.pir"));
            let c = compile(&model, policy, &[("targets", &[rows])]);
            insta::assert_snapshot!(format!("{file}_{policy}"), shown(&c));
        }
    }
}
