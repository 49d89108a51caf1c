//! Reductions of integers, losses inside the model, scattered extrema, folds, affine grids and Fourier
//! transforms on the software device (a test tool, `tests/software_device`).

mod common;

use common::{Fixture, check_integers};

// Nothing is measured, and a cuDNN of this machine would look for a real driver.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0", "PRECAST_CUDNN" = "0");

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

#[test]
fn gradients_of_integers() {
    for (model, prefix) in [("model.onnx", "ts."), ("model_dynamo.onnx", "dynamo.")] {
        let f = Fixture::open("integers");
        let (mut session, batch) = f.session(f.compile_gpu(model, "f32", SGD, "", true).plan);
        session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
        check_integers(&f, &session, prefix);
    }
}
