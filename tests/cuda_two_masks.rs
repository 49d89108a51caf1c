//! Attention under two masks at once on the software device (a test tool, `tests/software_device`).

mod common;

use common::{Fixture, TWO_MASKS, check_two_masks};

// Nothing is measured, and a cuDNN of this machine would look for a real driver.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0", "PRECAST_CUDNN" = "0");

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

#[test]
fn gradients_under_two_masks() {
    for kind in TWO_MASKS {
        let f = Fixture::open_two_masks(kind);
        for policy in ["f32", "bf16", "f16"] {
            let plan = f.compile_gpu(&format!("{kind}.onnx"), policy, SGD, "", true).plan;
            let (mut session, batch) = f.session(plan);
            session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
            check_two_masks(&f, &session, kind, policy);
        }
    }
}
