//! What PyTorch's exporters write otherwise than the module has it, against PyTorch in f64:
//! `tests/peers/make_exported.py` wrote the graphs and the gradients.

mod common;

use common::{Fixture, check_integers};
use precast_compiler::frontend::onnx::{ImportOptions, load};

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

#[test]
fn gradients_f32() {
    for (model, prefix) in [("model.onnx", "ts."), ("model_dynamo.onnx", "dynamo.")] {
        let f = Fixture::open("exported");
        let (mut session, batch) = f.session(f.compile(model, "f32", SGD, true).plan);
        let step = session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
        let want = f.f64s(&format!("{prefix}loss.f64"))[0];
        assert!((f64::from(step.loss) - want).abs() < 1e-5, "{} instead of {want}", step.loss);
        check_integers(&f, &session, prefix);
    }
}

#[test]
fn a_quotient_that_the_file_does_not_say_how_to_round_is_warned_of() {
    let opts = ImportOptions { training: true, ..ImportOptions::default() };
    let path = common::folder("exported").join("rounding.onnx");
    let m = load(&path, &opts).unwrap_or_else(|e| panic!("{e}"));
    let said: Vec<String> = m.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(said.len(), 1, "{said:?}");
    assert!(
        said[0].starts_with("warning[P0234]: quotients that are rounded toward zero: `/Div_1`.")
    );
    assert!(said[0].contains("rounding_mode=\"floor\""), "{said:?}");
}

#[test]
fn what_a_file_may_have_lost_is_said_and_what_it_has_lost_is_refused() {
    let opts = ImportOptions { training: true, ..ImportOptions::default() };
    let read = |file: &str| load(&common::folder("exported").join(file), &opts);
    for (file, code, says) in [
        ("similarity.onnx", "P0235", "read as `F.cosine_similarity`"),
        ("complement.onnx", "P0236", "`torch.erfc` is exported so"),
    ] {
        let m = read(file).unwrap_or_else(|e| panic!("{e}"));
        let said: Vec<String> = m.warnings.iter().map(ToString::to_string).collect();
        assert_eq!(said.len(), 1, "{said:?}");
        assert!(said[0].starts_with(&format!("warning[{code}]: ")), "{said:?}");
        assert!(said[0].contains(says), "{said:?}");
    }
    let said = read("means.onnx").expect_err("means of integers are not there").to_string();
    assert!(said.starts_with("error[P0206]"), "{said}");
    assert!(said.contains("cast what is averaged to float"), "{said}");
}

#[test]
fn bags_whose_offsets_are_data_are_refused_with_what_works_for_bags() {
    let opts = ImportOptions { training: true, ..ImportOptions::default() };
    let path = common::folder("exported").join("bags.onnx");
    let said = load(&path, &opts).expect_err("no plan has such bags").to_string();
    assert!(
        said.starts_with("error[P0216]: the bags of an `nn.EmbeddingBag` depend on data"),
        "{said}"
    );
    assert!(said.contains("make the offsets a buffer"), "{said}");
    assert!(!said.contains("nn.LSTM"), "{said}");
}
