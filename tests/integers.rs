//! Reductions of integers and bools of the data, losses inside the model, scattered extrema and products,
//! folds, affine grids and Fourier transforms, against PyTorch; `tests/peers/make_integers.py` wrote the
//! graphs and the gradients.

mod common;

use common::{Fixture, check_integers};
use precast_compiler::frontend::onnx::{ImportOptions, load};

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

#[test]
fn gradients_f32() {
    for (model, prefix) in [("model.onnx", "ts."), ("model_dynamo.onnx", "dynamo.")] {
        let f = Fixture::open("integers");
        let (mut session, batch) = f.session(f.compile(model, "f32", SGD, true).plan);
        let step = session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
        let want = f.f64s(&format!("{prefix}loss.f64"))[0];
        assert!((f64::from(step.loss) - want).abs() < 1e-5, "{} instead of {want}", step.loss);
        check_integers(&f, &session, prefix);
    }
}

/// Neither exporter's file is warned of: its labels are smoothed, its sums are kept.
#[test]
fn nothing_is_warned_of() {
    for model in ["model.onnx", "model_dynamo.onnx"] {
        let opts = ImportOptions { training: true, ..ImportOptions::default() };
        let m =
            load(&common::folder("integers").join(model), &opts).unwrap_or_else(|e| panic!("{e}"));
        assert!(m.warnings.is_empty(), "{model}: {:?}", m.warnings);
    }
}
