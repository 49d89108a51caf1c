//! Compiled plans on the CPU backend against PyTorch: gradients of one batch, and twenty steps.
//!
//! `tests/fixtures/README.md` says how the references were made.

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{self, Compiled};
use precast_plan::Plan;
use precast_runtime::data::{Batch, batch_of};
use precast_runtime::{ModelWeights, Options, Session, TensorFile};
use std::path::{Path, PathBuf};

fn folder(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

struct Fixture {
    folder: PathBuf,
    batch: TensorFile,
    reference: TensorFile,
}

impl Fixture {
    fn open(name: &str) -> Fixture {
        let folder = folder(name);
        let file = |f: &str| TensorFile::open(&folder.join(f)).expect("the fixture is complete");
        Fixture {
            batch: file("batch.safetensors"),
            reference: file("reference.safetensors"),
            folder,
        }
    }

    fn compile(
        &self,
        model: &str,
        policy: &str,
        optimizer: &str,
        keep_gradients: bool,
    ) -> Compiled {
        let input = if self.batch.tensor("in.x").is_ok() { "x" } else { "input_ids" };
        let text = format!(
            "model = \"{model}\"\n\
             [data]\nformat = \"safetensors\"\nfile = \"batch.safetensors\"\n\
             inputs = {{ {input} = \"in.{input}\" }}\ntargets = {{ targets = \"tgt.targets\" }}\n\
             [loss]\nkind = \"cross_entropy\"\nprediction = \"logits\"\ntarget = \"targets\"\n\
             ignore_index = -100\n\
             [optimizer]\n{optimizer}\n\
             [precision]\npolicy = \"{policy}\"\n\
             [train]\nsteps = 20\n"
        );
        let recipe =
            Recipe::parse(self.folder.join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
        let mut options = pipeline::Options { keep_gradients, ..Default::default() };
        for (name, key) in [(input, format!("in.{input}")), ("targets", "tgt.targets".into())] {
            let shape = self.batch.tensor(&key).expect("listed").shape;
            options.shapes.insert(name.into(), shape.iter().map(|&n| n as usize).collect());
        }
        pipeline::compile(&recipe, &options).unwrap_or_else(|e| panic!("{model} {policy}: {e}"))
    }

    fn session(&self, plan: Plan) -> (Session, Batch) {
        let weights =
            ModelWeights::for_plan(&plan, &self.folder, None).unwrap_or_else(|e| panic!("{e}"));
        let session =
            Session::new(plan, &weights, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let wanted = session.wanted();
        let tensors: Vec<_> = wanted
            .iter()
            .map(|w| {
                let key = if w.name == "targets" {
                    "tgt.targets".into()
                } else {
                    format!("in.{}", w.name)
                };
                (w.name.as_str(), self.batch.tensor(&key).expect("listed"))
            })
            .collect();
        let batch = batch_of(&wanted, &tensors).unwrap_or_else(|e| panic!("{e}"));
        (session, batch)
    }

    /// Largest relative L2 distance of a gradient from PyTorch's in f64, divided by what is allowed.
    fn gradients(&self, model: &str, policy: &str, allowed: impl Fn(&str) -> f64) {
        let optimizer = "kind = \"sgd\"\nlr = 0.1";
        let plan = self.compile(model, policy, optimizer, true).plan;
        let (mut session, batch) = self.session(plan);
        let report = session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
        assert!(!report.skipped);
        let loss = self.f64s("loss.f64")[0];
        if policy == "f32" {
            let e = (f64::from(report.loss) - loss).abs() / loss;
            assert!(e <= 1e-6, "{model}: loss {} against {loss}", report.loss);
        }
        let mut faults = vec![];
        let mut seen = 0;
        let names: Vec<String> = session.plan().results.iter().map(|r| r.name.clone()).collect();
        for name in names.iter().filter(|n| n.starts_with("grad.")) {
            let have = session.result(name).expect("listed").to_f32();
            let want = self.f64s(&name.replace("lm_head.weight", "wte.weight"));
            let d: f64 = have.iter().zip(&want).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum();
            let n: f64 = want.iter().map(|b| b * b).sum();
            let (e, limit) = ((d / n).sqrt(), allowed(name));
            if e.is_nan() || e > limit {
                faults.push(format!("{name}: {e:.2e}, allowed {limit:.2e}"));
            }
            seen += 1;
        }
        assert!(seen > 0);
        assert!(faults.is_empty(), "{model} {policy}:\n{}", faults.join("\n"));
    }

    fn f64s(&self, name: &str) -> Vec<f64> {
        let t = self.reference.tensor(name).unwrap_or_else(|e| panic!("{e}"));
        match t.bytes.len() / t.shape.iter().product::<u64>().max(1) as usize {
            8 => {
                t.bytes.chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().unwrap())).collect()
            }
            _ => t.to_f32().into_iter().map(f64::from).collect(),
        }
    }

    /// Twenty losses of a fixed batch.
    fn losses(&self, model: &str, policy: &str, optimizer: &str) -> Vec<f64> {
        let plan = self.compile(model, policy, optimizer, false).plan;
        let (mut session, batch) = self.session(plan);
        (0..20)
            .map(|_| f64::from(session.step(std::slice::from_ref(&batch)).expect("a step").loss))
            .collect()
    }
}

const GPT: [&str; 4] =
    ["model.onnx", "model_static.onnx", "model_dynamo.onnx", "model_dynamo_static.onnx"];

#[test]
fn mlp_gradients_f32() {
    let f = Fixture::open("mlp_mnist");
    for model in ["model.onnx", "model_static.onnx"] {
        f.gradients(model, "f32", |_| 1e-5);
    }
}

#[test]
fn cnn_gradients_f32() {
    let f = Fixture::open("cifar_cnn");
    for model in ["model.onnx", "model_static.onnx"] {
        f.gradients(model, "f32", |_| 5e-5);
    }
}

#[test]
fn gpt_gradients_f32() {
    let f = Fixture::open("tiny_gpt");
    for model in GPT {
        f.gradients(model, "f32", |_| 1e-5);
    }
}

fn follows(name: &str, optimizer: &str, key: &str, allowed: impl Fn(f64, f64) -> f64) {
    let f = Fixture::open(name);
    let have = f.losses("model.onnx", "f32", optimizer);
    let want = f.f64s(&format!("losses20.{key}.f32"));
    let exact = f.f64s(&format!("losses20.{key}.f64"));
    for (i, ((a, b), x)) in have.iter().zip(&want).zip(&exact).enumerate() {
        let limit = allowed(*b, *x);
        assert!(
            (a - b).abs() <= limit,
            "{name} {key} step {i}: {a} against {b}, allowed {limit:e}"
        );
    }
}

#[test]
fn mlp_twenty_steps() {
    let allowed = |b: f64, _: f64| 1e-4 * b;
    follows("mlp_mnist", "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9", "sgd", allowed);
    follows("mlp_mnist", "kind = \"adamw\"\nlr = 1e-3\nweight_decay = 0.01", "adamw", allowed);
}

#[test]
fn gpt_twenty_steps() {
    let allowed = |b: f64, _: f64| 1e-4 * b;
    follows("tiny_gpt", "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9", "sgd", allowed);
    follows("tiny_gpt", "kind = \"adamw\"\nlr = 1e-3\nweight_decay = 0.01", "adamw", allowed);
}

#[test]
fn cnn_twenty_steps() {
    // Batch norm amplifies rounding from step to step: the yardstick is PyTorch's own distance
    // between f32 and f64, five times, and never below 1e-4.
    let allowed = |b: f64, x: f64| (5.0 * (b - x).abs()).max(1e-4 * b);
    follows("cifar_cnn", "kind = \"sgd\"\nlr = 0.05\nmomentum = 0.9", "sgd", allowed);
    follows("cifar_cnn", "kind = \"adamw\"\nlr = 2e-3\nweight_decay = 0.01", "adamw", allowed);
}
