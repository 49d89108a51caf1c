//! Attention under two masks at once, in every way to put them together, where queries are left without
//! a key and where none is, against PyTorch's gradients in f64; `tests/peers/make_two_masks.py` wrote the
//! graphs.

mod common;

use common::{Fixture, TWO_MASKS, check_two_masks};

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

fn gradients(policy: &str) {
    for kind in TWO_MASKS {
        let f = Fixture::open_two_masks(kind);
        let plan = f.compile(&format!("{kind}.onnx"), policy, SGD, true).plan;
        let (mut session, batch) = f.session(plan);
        session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
        check_two_masks(&f, &session, kind, policy);
    }
}

#[test]
fn gradients_f32() {
    gradients("f32");
}

#[test]
fn gradients_bf16() {
    gradients("bf16");
}

#[test]
fn gradients_f16() {
    gradients("f16");
}

#[test]
fn gradients_auto() {
    gradients("auto");
}
