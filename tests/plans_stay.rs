//! Plans of the test models are what they were. A change of the compiler that is meant to leave them alone leaves these
//! hashes alone; one that is meant to change them shows here which it changes.

mod common;

use common::Fixture;
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline;
use precast_plan::{Plan, Step};
use std::fmt::Write;
use std::path::Path;

const TARGETS: [&str; 4] = ["cpu-generic", "cpu-avx512bf16", "sm_80", "h200"];
const POLICIES: [&str; 4] = ["f32", "bf16", "f16", "auto"];

/// FNV-1a (Fowler, Noll, Vo).
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

/// What a plan means and what it calls its steps: no times, whose last digits may be another library's.
fn line(what: &str, target: &str, policy: &str, plan: &Plan) -> String {
    let steps = plan.micro.iter().chain(&plan.update).chain(&plan.eval);
    let named: Vec<(&String, &[String])> = steps.map(|s: &Step| (&s.name, &s.ops[..])).collect();
    let named = serde_json::to_vec(&named).expect("names");
    format!("{what} {target} {policy} {} {:016x}\n", plan.digest(), hash(&named))
}

#[test]
fn of_the_fixtures() {
    let fixtures = [
        ("activations", "model.onnx"),
        ("attention", "model.onnx"),
        ("cifar_cnn", "model.onnx"),
        ("composites", "model_dynamo.onnx"),
        ("exported", "model_dynamo.onnx"),
        ("indexing", "model.onnx"),
        ("integers", "model.onnx"),
        ("masks", "model.onnx"),
        ("mlp_mnist", "model.onnx"),
        ("recurrences", "model.onnx"),
        ("spatial", "model.onnx"),
        ("tiny_gpt", "model.onnx"),
    ];
    let mut out = String::new();
    for (name, model) in fixtures {
        let f = Fixture::open(name);
        for target in TARGETS {
            for policy in POLICIES {
                let train = format!("[target]\ndevice = \"{target}\"");
                let sgd = "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9";
                let plan = f.compile_with(model, policy, sgd, &train, false).plan;
                out += &line(name, target, policy, &plan);
            }
        }
    }
    insta::assert_snapshot!(out);
}

#[test]
fn of_the_models() {
    let models = [
        ("tests/models/cifar_cnn_w32.ts.op17.train.onnx", "batch = 16", "labels"),
        ("tests/models/gpt_4x256.ts.op17.train.onnx", "batch = 4, seq = 64", "labels"),
        ("tests/models/resnet18.ts.op17.train.onnx", "batch = 2", "labels"),
        ("tests/models/tiny_nanogpt_sdpa.dynamo.op23.train.onnx", "s95 = 8, s75 = 32", "labels"),
        ("examples/digits/model.onnx", "batch = 64", "labels"),
        ("examples/bytes_gpt/model.onnx", "batch = 8, seq = 128", "targets"),
    ];
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut out = String::new();
    for (model, dims, targets) in models {
        for target in TARGETS {
            for policy in POLICIES {
                let mut text =
                    format!("model = \"{model}\"\n[weights]\ninit = \"default\"\n[data]\n");
                write!(text, "dims = {{ {dims} }}\ntargets = {{ {targets} = \"t\" }}\n")
                    .expect("text");
                write!(
                    text,
                    "[loss]\nkind = \"cross_entropy\"\n[optimizer]\nkind = \"adamw\"\nlr = 1e-4\n[train]\n\
                     steps = 100\n[precision]\npolicy = \"{policy}\"\n[target]\ndevice = \"{target}\"\n"
                )
                .expect("text");
                let recipe = Recipe::parse(root.join("recipe.toml"), &text)
                    .unwrap_or_else(|e| panic!("{model}: {e}"));
                let options =
                    pipeline::Options { total_steps: Some(100), ..pipeline::Options::default() };
                let compiled = pipeline::compile(&recipe, &options)
                    .unwrap_or_else(|e| panic!("{model} {target} {policy}: {e}"));
                out += &line(model, target, policy, &compiled.plan);
            }
        }
    }
    insta::assert_snapshot!(out);
}
