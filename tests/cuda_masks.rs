//! Attention under each way of hiding keys on the software device (a test tool,
//! `tests/software_device`).

mod common;

use common::Fixture;

// Nothing is measured, and a cuDNN of this machine would look for a real driver.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0", "PRECAST_CUDNN" = "0");

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

#[test]
fn gradients_under_masks() {
    let f = Fixture::open("masks");
    for (policy, allowed) in [("f32", 1e-5), ("bf16", 0.05)] {
        let plan = f.compile_gpu("model.onnx", policy, SGD, "", true).plan;
        let (mut session, batch) = f.session(plan);
        session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
        f.check_gradients(&session, 4 * 10 + 2, |_| allowed);
    }
}
