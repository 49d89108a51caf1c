//! LSTM, GRU and RNN in every form on the software device (a test tool, `tests/software_device`).

mod common;
mod steps;

use common::Fixture;

// Nothing is measured, and a cuDNN of this machine would look for a real driver.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0", "PRECAST_CUDNN" = "0");

const SGD: &str = "kind = \"sgd\"\nlr = 0.5";

fn check(model: &str, prefix: &str, policy: &str, allowed: f64) {
    let f = Fixture::open("recurrences");
    let (mut session, batch) = f.session(f.compile_gpu(model, policy, SGD, "", true).plan);
    assert!(session.describe().contains("one graph a step"), "{}", session.describe());
    session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    let errors = f.gradient_errors_of(&session, prefix);
    let faults: Vec<_> = errors.iter().filter(|(_, e)| e.is_nan() || *e > allowed).collect();
    assert!(errors.len() > 20 && faults.is_empty(), "{model} in {policy}: {faults:?}");
}

#[test]
fn torch_modules() {
    check("model.onnx", "", "f32", 1e-5);
    check("model.onnx", "", "bf16", 6e-2);
}

#[test]
fn options_of_onnx() {
    check("options.onnx", "options.", "f32", 1e-5);
    check("options.onnx", "options.", "f16", 4e-3);
}

/// Every kernel of the plans beside the processor's, on the same bytes.
#[test]
fn every_step_computes_what_the_cpu_does() {
    let f = Fixture::open("recurrences");
    for (model, policy) in [("model.onnx", "f16"), ("options.onnx", "f32")] {
        let plan = f.compile_gpu(model, policy, SGD, "", false).plan;
        let compared =
            steps::compare(&f, &plan).unwrap_or_else(|e| panic!("{model} {policy}: {e}"));
        assert_eq!(compared.steps, plan.micro.len() + plan.update.len());
    }
}
