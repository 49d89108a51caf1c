//! What exporters keep and lose of a module: buffers, `detach`, `padding_idx`, indexed parameters,
//! shared norms, 16-bit weights, folded batch normalisation; gradients against PyTorch's in f64.
//! `tests/peers/make_origins.py` wrote the graphs.

mod common;

use common::{FROZEN_ROWS, Fixture, check_frozen_rows};
use precast_compiler::Diagnostic;
use precast_runtime::WeightSource;

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

fn codes(warnings: &[Diagnostic]) -> Vec<&'static str> {
    warnings.iter().map(|w| w.code).collect()
}

fn text(warnings: &[Diagnostic]) -> String {
    warnings.iter().map(|w| format!("{w}\n")).collect()
}

/// Trains one step of `NETWORK[_dynamo].onnx` and holds every gradient against the reference of the
/// network: the trained parameters are those, neither more nor fewer. Gives the warnings.
fn checked(model: &str, train: &str, allowed: f64) -> Vec<Diagnostic> {
    let f = Fixture::open("origins");
    let c = f.compile_with(&format!("{model}.onnx"), "f32", SGD, train, true);
    let network = model.trim_end_matches("_dynamo").trim_end_matches("_optimized");
    let prefix = format!("{network}.");
    let mut want: Vec<String> = f
        .reference
        .names()
        .iter()
        .filter_map(|n| n.strip_prefix(prefix.as_str()).map(str::to_string))
        .collect();
    want.sort();
    let mut trained = c.trained.clone();
    trained.sort();
    assert_eq!(trained, want, "{model}");
    let (mut session, batch) = f.session(c.plan);
    session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    for name in want {
        let have = session.result(&format!("grad.{name}")).expect("kept").to_f32();
        let want = f.f64s(&format!("{network}.{name}"));
        let size = want.iter().fold(0.0f64, |m, x| m.max(x.abs()));
        for (a, b) in have.iter().zip(&want) {
            let d = (f64::from(*a) - b).abs();
            assert!(d <= allowed * size, "{model}: {name}: {a}, PyTorch has {b}, {d:e} of {size}");
        }
    }
    c.warnings
}

#[test]
fn a_detach_that_the_file_shows_is_honoured() {
    let warnings = checked("ste_dynamo", "", 1e-5);
    assert!(warnings.is_empty(), "{}", text(&warnings));
}

#[test]
fn a_detach_that_an_optimizer_removed_is_missed_and_a_key_brings_it_back() {
    let f = Fixture::open("origins");
    let c = f.compile_with("ste_optimized.onnx", "f32", SGD, "", true);
    assert_eq!(codes(&c.warnings), ["P0228", "P0421"], "{}", text(&c.warnings));
    assert!(text(&c.warnings).contains("stop_gradient = [\"sub\"]"), "{}", text(&c.warnings));
    let warnings = checked("ste_optimized", "stop_gradient = [\"sub\"]", 1e-5);
    assert!(warnings.is_empty(), "{}", text(&warnings));
}

/// Without a trace of `detach` the gradient of `z + (round(z) − z)` is identically zero.
#[test]
fn a_gradient_that_vanishes_is_said_and_a_key_mends_it() {
    let f = Fixture::open("origins");
    let c = f.compile_with("ste.onnx", "f32", SGD, "", true);
    assert_eq!(codes(&c.warnings), ["P0421"], "{}", text(&c.warnings));
    let said = text(&c.warnings);
    assert!(said.contains("`a.weight`") && said.contains("`e.weight`"), "{said}");
    assert!(!said.contains("`h.weight`"), "{said}");
    assert!(said.contains("`/Round`") && said.contains("stop_gradient = [\"/Sub\"]"), "{said}");
    for name in ["/Sub", "/Sub_output_0", "/Su*"] {
        let warnings = checked("ste", &format!("stop_gradient = [\"{name}\"]"), 1e-5);
        assert!(warnings.is_empty(), "{}", text(&warnings));
    }
}

#[test]
fn a_padding_row_that_the_file_shows_is_never_trained() {
    for model in ["padding_dynamo", "tied_dynamo"] {
        let warnings = checked(model, "", 1e-5);
        assert!(warnings.is_empty(), "{}", text(&warnings));
    }
}

#[test]
fn a_row_of_zeros_is_said_and_a_key_keeps_it() {
    let warnings = checked("padding", "freeze_rows = { \"e.weight\" = [0] }", 1e-5);
    assert!(warnings.is_empty(), "{}", text(&warnings));
    let f = Fixture::open("origins");
    let c = f.compile_with("padding.onnx", "f32", SGD, "", true);
    assert_eq!(codes(&c.warnings), ["P0232"]);
    let said = text(&c.warnings);
    assert!(said.contains("freeze_rows = { \"e.weight\" = [0] }"), "{said}");
    // A tied head trains the row: to freeze it would be another network.
    let c = f.compile_with("tied.onnx", "f32", SGD, "", true);
    assert_eq!(codes(&c.warnings), ["P0232"]);
    let said = text(&c.warnings);
    assert!(!said.contains("freeze_rows") && said.contains("tied head"), "{said}");
}

#[test]
fn buffers_are_not_trained() {
    let warnings = checked("buffers_dynamo", "", 1e-5);
    // Only the frozen table is a guess: its values are sinusoids.
    assert_eq!(codes(&warnings), ["P0229"], "{}", text(&warnings));
    let warnings = checked("buffers", "", 1e-5);
    assert_eq!(codes(&warnings), ["P0229", "P0229"], "{}", text(&warnings));
    let said = text(&warnings);
    for name in ["embed_scale", "inv_freq", "final_logits_bias", "positions.weight"] {
        assert!(said.contains(&format!("`{name}`")), "{said}");
    }
}

#[test]
fn a_person_knows_better_what_is_a_parameter() {
    let f = Fixture::open("origins");
    let train = "parameters = [\"inv_freq\", \"positions.*\"]";
    for model in ["buffers.onnx", "buffers_dynamo.onnx"] {
        let c = f.compile_with(model, "f32", SGD, train, true);
        assert!(c.trained.contains(&"inv_freq".to_string()), "{:?}", c.trained);
        assert!(c.trained.contains(&"positions.weight".to_string()), "{:?}", c.trained);
        assert!(!c.trained.contains(&"embed_scale".to_string()), "{:?}", c.trained);
    }
}

#[test]
fn indexed_parameters_are_trained() {
    for model in ["indexed", "indexed_dynamo"] {
        let warnings = checked(model, "", 1e-5);
        assert!(warnings.is_empty(), "{}", text(&warnings));
    }
}

#[test]
fn networks_in_16_bits_train_in_f32_masters() {
    for model in ["half", "half_dynamo", "bfloat", "bfloat_dynamo"] {
        let warnings = checked(model, "", 1e-5);
        assert!(codes(&warnings).iter().all(|c| *c == "P0222"), "{}", text(&warnings));
    }
}

#[test]
fn a_norm_that_is_shared_is_in_order() {
    for model in ["shared", "shared_dynamo"] {
        let warnings = checked(model, "", 1e-5);
        assert!(warnings.is_empty(), "{}", text(&warnings));
    }
}

/// The TorchScript exporter keeps the names of what it merges; the other one does not.
#[test]
fn merged_norms_come_apart_where_names_are_left() {
    let warnings = checked("norms", "", 1e-5);
    assert!(warnings.is_empty(), "{}", text(&warnings));
    let f = Fixture::open("origins");
    let c = f.compile_with("norms_dynamo.onnx", "f32", SGD, "", true);
    assert_eq!(codes(&c.warnings), ["P0225"], "{}", text(&c.warnings));
}

#[test]
fn batch_normalisation_that_was_folded_is_missed() {
    let f = Fixture::open("origins");
    for model in ["batch_norm.onnx", "batch_norm_dynamo.onnx"] {
        let c = f.compile_with(model, "f32", SGD, "", true);
        assert!(codes(&c.warnings).contains(&"P0231"), "{model}: {}", text(&c.warnings));
    }
}

#[test]
fn a_region_without_gradients_is_missed_and_a_key_brings_it_back() {
    let f = Fixture::open("origins");
    let c = f.compile_with("no_grad_dynamo.onnx", "f32", SGD, "", true);
    assert_eq!(codes(&c.warnings), ["P0228"], "{}", text(&c.warnings));
    assert!(text(&c.warnings).contains("stop_gradient = [\"node_tanh\"]"), "{}", text(&c.warnings));
    for (model, name) in [("no_grad_dynamo", "node_tanh"), ("no_grad", "/Tanh")] {
        let warnings = checked(model, &format!("stop_gradient = [\"{name}\"]"), 1e-5);
        assert!(warnings.is_empty(), "{}", text(&warnings));
    }
}

/// Names that the model does not have are errors with the nearest one.
#[test]
fn names_of_the_recipe_are_the_models() {
    let f = Fixture::open("origins");
    for (key, near) in [
        ("stop_gradient = [\"/Subb\"]", "`/Sub`"),
        ("parameters = [\"a.weigth\"]", "`a.weight`"),
        ("freeze_rows = { \"e.weigth\" = [0] }", "`e.weight`"),
    ] {
        let (text, options) = f.recipe("ste.onnx", "f32", SGD, key);
        let recipe =
            precast_compiler::frontend::recipe::Recipe::parse(f.folder.join("recipe.toml"), &text)
                .unwrap_or_else(|e| panic!("{e}"));
        let e = precast_compiler::pipeline::compile(&recipe, &options).expect_err(key);
        assert_eq!(codes(&e.0), ["P0112"], "{e}");
        let said = e.to_string();
        assert!(said.contains(&format!("did you mean {near}")), "{said}");
        assert!(said.contains("recipe.toml"), "{said}");
    }
}

/// Rows that are frozen keep every bit, whatever moves the others.
#[test]
fn frozen_rows_keep_their_values() {
    let f = Fixture::open("origins");
    let adamw = "kind = \"adamw\"\nlr = 0.01\nweight_decay = 0.3";
    let sgd = "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9\nweight_decay = 0.1";
    for (optimizer, policy) in [(adamw, "f32"), (sgd, "f32"), (adamw, "f16"), (sgd, "bf16")] {
        let plan = f.compile_with("padding.onnx", policy, optimizer, FROZEN_ROWS, false).plan;
        let (session, batch) = f.session(plan);
        check_frozen_rows(session, &batch);
    }
}
