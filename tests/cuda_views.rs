//! Kernels all of whose operands are views, on the software device (a test tool,
//! `tests/software_device`), against the interpreter.

mod common;
#[path = "../compiler/tests/semantics/random.rs"]
#[allow(dead_code, reason = "every test binary uses a part")]
mod random;
#[path = "../compiler/tests/semantics/rng.rs"]
#[allow(dead_code, reason = "every test binary uses a part")]
mod rng;
mod run_case;
#[path = "../compiler/tests/semantics/views.rs"]
#[allow(dead_code, reason = "every test binary uses a part")]
mod views;

use precast_compiler::precision::Policy;
use precast_compiler::reference::eval;
use random::{RandomCase, describe};
use run_case::{distance, run};

// Nothing is measured, and a cuDNN of this machine would look for a real driver.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0", "PRECAST_CUDNN" = "0");

fn follows(case: &RandomCase, what: &str) {
    let g = case.differentiated();
    let (_, plan) = common::lowered_for("h100", &g, Policy::F32);
    let want = eval(&g, &case.inputs, &case.vars).unwrap_or_else(|e| panic!("{e}"));
    let (e, name) = distance(&run(&plan, case, 0), &want);
    assert!(e <= 2e-5, "{what}, {name}: off by {e:e}\n{}", describe(case));
}

#[test]
fn kernels_take_any_view() {
    for kernel in views::KERNELS {
        for seed in 100..103 {
            follows(&views::of_kernel(kernel, seed), &format!("`{kernel}`, seed {seed}"));
        }
    }
}

#[test]
fn enlarged_branches_run() {
    for seed in 200..208 {
        follows(&views::of_branches(seed), &format!("branches, seed {seed}"));
    }
}

/// Resizing, pooling, convolutions over one and three axes, against PyTorch.
#[test]
fn spatial_operators_follow_pytorch() {
    let f = common::Fixture::open("spatial");
    let plan = f.compile_gpu("model.onnx", "f32", "kind = \"sgd\"\nlr = 0.1", "", true).plan;
    let (mut session, batch) = f.session(plan);
    session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    f.check_all(&session, 57, 2e-5);
}
