//! Every activation of torch.nn behind both kinds of product, and exported dropout, on the software
//! device (a test tool, `tests/software_device`).

mod common;

use common::Fixture;
use precast_runtime::Session;
use precast_runtime::data::Batch;

// Nothing is measured, and a cuDNN of this machine would look for a real driver.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0", "PRECAST_CUDNN" = "0");

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

fn gradients(policy: &str, allowed: impl Fn(&str) -> f64) {
    let f = Fixture::open("activations");
    let (mut session, batch) = f.session(f.compile_gpu("model.onnx", policy, SGD, "", true).plan);
    assert!(session.describe().contains("one graph a step"), "{}", session.describe());
    session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    f.check_activations(&session, allowed);
}

#[test]
fn gradients_of_activations() {
    gradients("f32", |_| 1e-5);
    gradients("bf16", Fixture::open("activations").allowed_by_kind());
}

/// Masks are those of the processor, in the forward pass and its gradient, of each step.
#[test]
fn exported_dropout_follows_the_cpu() {
    let f = Fixture::open("activations");
    let losses = |(mut session, batch): (Session, Batch)| -> Vec<f32> {
        let mut step =
            || session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}")).loss;
        (0..6).map(|_| step()).collect()
    };
    let cuda = losses(f.session(f.compile_gpu("dropout.onnx", "f32", SGD, "", false).plan));
    let cpu = losses(f.session(f.compile("dropout.onnx", "f32", SGD, false).plan));
    for (a, b) in cuda.iter().zip(&cpu) {
        assert!((a - b).abs() <= 1e-5 * b, "{cuda:?} on the device, {cpu:?} on the processor");
    }
}
