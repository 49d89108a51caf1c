//! Compiled plans on the CPU backend against PyTorch: gradients of one batch, and twenty steps.
//!
//! `tests/fixtures/README.md` says how the references were made.

mod common;

use common::Fixture;

impl Fixture {
    /// Largest relative L2 distance of a gradient from PyTorch's in f64, divided by what is allowed.
    fn gradients(&self, model: &str, policy: &str, allowed: impl Fn(&str) -> f64) {
        let optimizer = "kind = \"sgd\"\nlr = 0.1";
        let plan = self.compile(model, policy, optimizer, true).plan;
        let narrow: f64 =
            plan.summary.product_flops.iter().filter(|f| f.0.size() == 2).map(|f| f.1).sum();
        match policy {
            "f32" => assert_eq!(narrow, 0.0, "{model}"),
            _ => assert!(narrow > 0.99, "{model} {policy}: {:?}", plan.summary.product_flops),
        }
        let (mut session, batch) = self.session(plan);
        let report = session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
        assert!(!report.skipped);
        let loss = self.f64s("loss.f64")[0];
        if policy == "f32" {
            let e = (f64::from(report.loss) - loss).abs() / loss;
            assert!(e <= 1e-6, "{model}: loss {} against {loss}", report.loss);
        }
        let errors = self.gradient_errors(&session);
        let mut faults = vec![];
        for (name, e) in &errors {
            let limit = allowed(name);
            if e.is_nan() || *e > limit {
                faults.push(format!("{name}: {e:.2e}, allowed {limit:.2e}"));
            }
        }
        assert!(!errors.is_empty());
        assert!(faults.is_empty(), "{model} {policy}:\n{}", faults.join("\n"));
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

/// At most twice as far from f64 as PyTorch's autocast in bf16.
fn narrow_gradients(name: &str, models: &[&str]) {
    let f = Fixture::open(name);
    let far = f.yardstick();
    for model in models {
        for policy in ["bf16", "f16", "torch-autocast-cpu", "torch-autocast", "tf-grappler"] {
            f.gradients(model, policy, |p| 2.0 * far(p));
        }
    }
}

#[test]
fn mlp_gradients_in_16_bits() {
    narrow_gradients("mlp_mnist", &["model.onnx"]);
}

#[test]
fn cnn_gradients_in_16_bits() {
    narrow_gradients("cifar_cnn", &["model.onnx"]);
}

#[test]
fn gpt_gradients_in_16_bits() {
    narrow_gradients("tiny_gpt", &["model.onnx", "model_dynamo.onnx"]);
}

#[test]
fn losses_in_16_bits_end_where_those_in_f64_do() {
    for name in ["mlp_mnist", "tiny_gpt"] {
        let f = Fixture::open(name);
        for (key, optimizer) in [
            ("sgd", "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9"),
            ("adamw", "kind = \"adamw\"\nlr = 1e-3\nweight_decay = 0.01"),
        ] {
            let want = *f.f64s(&format!("losses20.{key}.f64")).last().expect("twenty");
            for policy in ["bf16", "f16", "torch-autocast-cpu", "tf-grappler"] {
                let have = *f.losses("model.onnx", policy, optimizer).last().expect("twenty");
                let e = (have - want).abs() / want;
                assert!(e <= 0.02, "{name} {key} {policy}: {have} against {want}");
            }
        }
    }
}
