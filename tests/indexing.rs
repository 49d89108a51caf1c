//! Operators that index, scatter, sort, cumulate and select by values of the model, against PyTorch,
//! with probabilities as targets; `tests/peers/make_indexing.py` wrote the graph and the gradients.

mod common;

use common::Fixture;

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

#[test]
fn gradients_f32() {
    let f = Fixture::open("indexing");
    let (mut session, batch) = f.session(f.compile("model.onnx", "f32", SGD, true).plan);
    let step = session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    let want = f.f64s("loss.f64")[0];
    assert!((f64::from(step.loss) - want).abs() < 1e-6, "{} instead of {want}", step.loss);
    f.check_all(&session, 39, 1e-5);
}

#[test]
fn the_same_bits_with_any_number_of_threads() {
    let f = Fixture::open("indexing");
    let losses = |threads: usize| {
        let plan = f.compile("model.onnx", "f32", SGD, false).plan;
        let (mut session, batch) = f.session_on(plan, threads);
        let mut step = || session.step(std::slice::from_ref(&batch)).expect("a step").loss;
        [step(), step(), step()]
    };
    assert_eq!(losses(1), losses(3));
}

/// What 16 bits choose may be another element than f32's; nothing is not finite and nothing is refused.
#[test]
fn sixteen_bits_run() {
    for policy in ["bf16", "f16", "auto"] {
        let f = Fixture::open("indexing");
        let (mut session, batch) = f.session(f.compile("model.onnx", policy, SGD, true).plan);
        let step = session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
        let want = f.f64s("loss.f64")[0];
        assert!((f64::from(step.loss) - want).abs() < 0.02, "{policy}: {}", step.loss);
    }
}
