//! Operators that index, scatter, sort, cumulate and select by values of the model, on the software
//! device (a test tool, `tests/software_device`).

mod common;

use common::Fixture;

// Nothing is measured, and a cuDNN of this machine would look for a real driver.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0", "PRECAST_CUDNN" = "0");

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

#[test]
fn gradients_of_indexing() {
    let f = Fixture::open("indexing");
    let (mut session, batch) = f.session(f.compile_gpu("model.onnx", "f32", SGD, "", true).plan);
    session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    f.check_all(&session, 39, 1e-5);
}
