//! Resizing, pooling, convolutions over one and three axes and normalisations without running
//! statistics, against PyTorch; `tests/peers/make_spatial.py` wrote the graph and the gradients.

mod common;

use common::Fixture;

#[test]
fn gradients_follow_pytorch() {
    let f = Fixture::open("spatial");
    let plan = f.compile("model.onnx", "f32", "kind = \"sgd\"\nlr = 0.1", true).plan;
    let (mut session, batch) = f.session(plan);
    let report = session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    let want = f.f64s("loss.f64")[0];
    assert!((f64::from(report.loss) - want).abs() <= 1e-6 * want, "{} of {want}", report.loss);
    f.check_all(&session, 57, 2e-5);
}
