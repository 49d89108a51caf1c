//! Frozen rows and honoured stops on the software device (a test tool, `tests/software_device`).

mod common;

use common::{FROZEN_ROWS, Fixture, check_frozen_rows};

// Nothing is measured, and a cuDNN of this machine would look for a real driver.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0", "PRECAST_CUDNN" = "0");

#[test]
fn frozen_rows_keep_their_values() {
    let f = Fixture::open("origins");
    let adamw = "kind = \"adamw\"\nlr = 0.01\nweight_decay = 0.3";
    for policy in ["f32", "f16"] {
        let plan = f.compile_gpu("padding.onnx", policy, adamw, FROZEN_ROWS, false).plan;
        let (session, batch) = f.session(plan);
        check_frozen_rows(session, &batch);
    }
}

/// The padding row's mask and the stop of a straight-through estimator are gone or done by then.
#[test]
fn losses_follow_the_cpu() {
    let f = Fixture::open("origins");
    let sgd = "kind = \"sgd\"\nlr = 0.1";
    for model in ["tied_dynamo.onnx", "ste_dynamo.onnx", "indexed_dynamo.onnx"] {
        let losses = |plan| -> Vec<f32> {
            let (mut session, batch) = f.session(plan);
            let mut step = || {
                session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}")).loss
            };
            (0..4).map(|_| step()).collect()
        };
        let cuda = losses(f.compile_gpu(model, "f32", sgd, "", false).plan);
        let cpu = losses(f.compile(model, "f32", sgd, false).plan);
        for (a, b) in cuda.iter().zip(&cpu) {
            assert!((a - b).abs() <= 1e-5 * b, "{model}: {cuda:?} and {cpu:?} on the processor");
        }
    }
}
