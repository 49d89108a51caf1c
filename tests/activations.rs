//! Every activation of torch.nn behind a convolution and behind a linear layer, against PyTorch, and
//! dropout as it is exported; `tests/peers/make_activations.py` wrote the graphs and gradients.

mod common;

use common::Fixture;

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

fn gradients(policy: &str, allowed: impl Fn(&str) -> f64) {
    let f = Fixture::open("activations");
    let plan = f.compile("model.onnx", policy, SGD, true).plan;
    let (mut session, batch) = f.session(plan);
    session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    f.check_activations(&session, allowed);
}

#[test]
fn gradients_f32() {
    gradients("f32", |_| 1e-5);
}

#[test]
fn gradients_in_16_bits() {
    for policy in ["bf16", "f16"] {
        gradients(policy, Fixture::open("activations").allowed_by_kind());
    }
}

/// Losses of three steps without learning: only the masks change.
fn masked(seed: u64) -> Vec<f32> {
    let f = Fixture::open("activations");
    let optimizer = "kind = \"sgd\"\nlr = 1e-12";
    let train = format!("seed = {seed}");
    let plan = f.compile_with("dropout.onnx", "f32", optimizer, &train, false).plan;
    let (mut session, batch) = f.session(plan);
    let mut step = || session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    (0..3).map(|_| step().loss).collect()
}

#[test]
fn exported_dropout_has_other_masks_in_each_step_and_the_same_of_a_seed() {
    let whole = Fixture::open("activations").f64s("loss.f64")[0] as f32;
    let losses = masked(1);
    assert_eq!(losses, masked(1));
    let others = masked(2);
    let all: Vec<f32> = losses.iter().chain(&others).copied().collect();
    for (i, a) in all.iter().enumerate() {
        assert!((a - whole).abs() > 1e-4 && (a - whole).abs() < 0.5 * whole, "{a} of {whole}");
        assert!(all[..i].iter().all(|b| (a - b).abs() > 1e-5), "{all:?}");
    }
}

/// What the first command of docs/EXPORTING.md leads to: a recipe over a graph with dropout.
#[test]
fn the_command_trains_with_dropout() {
    let f = Fixture::open("activations");
    let lab = tempfile::tempdir().expect("a temporary folder");
    let (text, _) = f.recipe("dropout.onnx", "f32", "kind = \"adam\"\nlr = 0.01", "");
    let mut text = text.replace("[data]", "[data]\nbatch = 8");
    for file in ["dropout.onnx", "batch.safetensors"] {
        let whole = f.folder.join(file).display().to_string();
        text = text.replace(&format!("\"{file}\""), &format!("\"{whole}\""));
    }
    std::fs::write(lab.path().join("recipe.toml"), text).expect("written");
    let o = std::process::Command::new(env!("CARGO_BIN_EXE_precast"))
        .args(["train", "recipe.toml", "--device", "cpu", "--log", "log.jsonl", "--out", "out"])
        .current_dir(lab.path())
        .output()
        .expect("the binary runs");
    assert!(o.status.success(), "{}", String::from_utf8_lossy(&o.stderr));
    let log = std::fs::read_to_string(lab.path().join("log.jsonl")).expect("the log");
    let losses: Vec<f64> = log
        .lines()
        .map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON"))
        .filter_map(|l| l["loss"].as_f64())
        .collect();
    assert_eq!(losses.len(), 20, "{log}");
    assert!(losses[19] < 0.8 * losses[0], "{losses:?}");
}
