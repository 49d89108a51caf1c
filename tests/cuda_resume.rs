//! Checkpoints between the processor and the software device (a test tool, `tests/software_device`),
//! whose plans keep other copies of the weights.

mod common;

use common::Fixture;
use precast_runtime::data::{DataState, Position};

// Nothing is measured, and a cuDNN of this machine would look for a real driver.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0", "PRECAST_CUDNN" = "0");

const ADAMW: &str = "kind = \"adamw\"\nlr = 1e-3";

/// Two steps on one, two on the other, beside four on the first.
#[test]
fn a_checkpoint_resumes_on_the_other_backend() {
    let position = Position { epoch: 0, batch: 0 };
    let at = DataState { position, rows: 16, batch: 16, split: 0.0, shuffle: false, seed: 0 };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("checkpoint.safetensors");
    for (name, policy) in [("tiny_gpt", "bf16"), ("cifar_cnn", "f16"), ("mlp_mnist", "f32")] {
        let f = Fixture::open(name);
        let cpu = f.compile("model_static.onnx", policy, ADAMW, false).plan;
        let gpu = f.compile_gpu("model_static.onnx", policy, ADAMW, "", false).plan;
        let mut ends = vec![];
        for (first, then) in [(&cpu, &gpu), (&gpu, &cpu)] {
            let (mut one, batch) = f.session(first.clone());
            let step = |s: &mut precast_runtime::Session| {
                s.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}")).loss
            };
            step(&mut one);
            step(&mut one);
            one.save_checkpoint(&path, &at).unwrap_or_else(|e| panic!("{e}"));
            let (mut other, _) = f.session(then.clone());
            assert_eq!(other.load_checkpoint(&path).unwrap_or_else(|e| panic!("{e}")), at);
            assert_eq!(other.steps(), 2);
            for _ in 0..2 {
                let (a, b) = (step(&mut one), step(&mut other));
                assert!((a - b).abs() <= 0.01 * a, "{name} {policy}: {b} resumed, {a} not");
                ends.push(a);
            }
        }
        assert!(ends[0] > ends[1], "{name} learns: {ends:?}");
    }
}
