//! Normalisations and pools written out in small operations, as both exporters write them, over rows
//! of large numbers, small ones and zeros: in f16 the gradients are those of PyTorch in f64 within its
//! rounding, as they are in f32. `tests/peers/make_composites.py` wrote the graphs and gradients.

mod common;

use common::Fixture;

/// Relative L2 distances from PyTorch's gradients in f64 of one step under a policy.
fn errors(model: &str, policy: &str) -> Vec<(String, f64)> {
    let f = Fixture::open("composites");
    let scale = "[loss_scale]\ninit = 256";
    let train = if policy == "f16" { scale } else { "" };
    let plan = f.compile_with(model, policy, "kind = \"sgd\"\nlr = 0.1", train, true).plan;
    let (mut session, batch) = f.session(plan);
    session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    f.gradient_errors(&session)
}

/// The norm over rows, where large rows stand beside small ones, may be four times as far off.
fn within(policy: &str, allowed: f64) {
    for model in ["model.onnx", "model_dynamo.onnx"] {
        let errors = errors(model, policy);
        assert_eq!(errors.len(), 13 * 2 + 7, "two matrices a branch, the norms' weights, a bias");
        let faults: Vec<String> = errors
            .iter()
            .filter(|(name, e)| {
                let by = if name.contains("rms_rows") { 4.0 } else { 1.0 };
                e.is_nan() || *e > by * allowed
            })
            .map(|(name, e)| format!("{name}: {e:.2e}"))
            .collect();
        assert!(faults.is_empty(), "{model} {policy}:\n{}", faults.join("\n"));
    }
}

#[test]
fn gradients_f32() {
    within("f32", 1e-4);
}

#[test]
fn gradients_f16() {
    within("f16", 5e-3);
}
