//! Parameters without axes.

use super::lab::Lab;
use super::small::MODEL;
use precast_runtime::TensorFile;
use precast_runtime::tensors::WeightSource as _;

/// The small model with a learnable temperature on its logits, and what the recipe is changed to.
fn tempered(changes: &[(&str, &str)]) -> Lab {
    let lab = Lab::new();
    let mut recipe = lab.text("recipe.toml");
    for (old, new) in changes {
        assert!(recipe.contains(old), "{old}");
        recipe = recipe.replace(old, new);
    }
    lab.write("recipe.toml", &recipe);
    let model =
        MODEL.replace("forward:", "var temperature: f32[] param value(1.5)\nforward:").replace(
            "result out.y = %y",
            "  %t = var {name=\"temperature\"} : f32[] @temperature\n  \
             %one = reshape %t {shape=[1,1]}\n  %all = broadcast %one {shape=[4,2]}\n  \
             %z = binary %y, %all {f=mul} @scaled\nresult out.y = %z",
        );
    lab.write("model.pir", &model);
    lab
}

fn read(lab: &Lab, file: &str, name: &str) -> Vec<f32> {
    let file = TensorFile::open(&lab.path(file)).unwrap();
    file.tensor(name).unwrap_or_else(|e| panic!("{e}")).to_f32().to_vec()
}

#[test]
fn a_scalar_is_trained_saved_and_resumed() {
    let lab = tempered(&[
        ("steps = 4", "steps = 6\nclip_norm = 1.0\nema = 0.5\naccumulate = 2\ncheckpoint = 3"),
        ("kind = \"sgd\"\nlr = 0.5\nmomentum = 0.9", "kind = \"adamw\"\nlr = 0.1"),
    ]);
    lab.ok(&["train", "recipe.toml", "--policy", "f32", "--verify"]);
    for file in ["weights", "ema", "checkpoint-3"] {
        let file = TensorFile::open(&lab.path(&format!("trained/{file}.safetensors"))).unwrap();
        let names = file.names();
        let name = names.iter().find(|n| n.ends_with("temperature")).expect("it is saved");
        let t = file.tensor(name).unwrap();
        assert!(t.shape.is_empty());
        assert!((t.to_f32()[0] - 1.5).abs() > 1e-3, "{name} was not trained");
    }
    let again = ["--resume", "trained/checkpoint-3.safetensors", "--out", "again"];
    lab.ok(&[&["train", "recipe.toml", "--policy", "f32"], &again[..]].concat());
    assert!(lab.read("again/weights.safetensors") == lab.read("trained/weights.safetensors"));
}

/// Logits are z = t·(h W), so by the chain rule t·∂L/∂t and ⟨W, ∂L/∂W⟩ are both ⟨z, ∂L/∂z⟩.
#[test]
fn its_gradient_is_the_sum_over_what_it_scales() {
    // Too small a rate to change a weight: what is saved is what the run began with.
    let lab = tempered(&[("lr = 0.5", "lr = 1e-30")]);
    lab.ok(&["train", "recipe.toml", "--policy", "f32", "--steps", "1"]);
    let w = read(&lab, "trained/weights.safetensors", "w2");
    for (policy, limit) in [("f32", 1e-6), ("bf16", 3e-2), ("f16", 4e-3)] {
        lab.ok(&["grad", "recipe.toml", "-o", "g.safetensors", "--policy", policy, "--verify"]);
        let gradient = read(&lab, "g.safetensors", "grad.w2");
        let inner: f32 = gradient.iter().zip(&w).map(|(g, w)| g * w).sum();
        let scaled = 1.5 * read(&lab, "g.safetensors", "grad.temperature")[0];
        assert!(inner.abs() > 1e-2, "nothing to compare: {inner}");
        assert!((inner - scaled).abs() < limit, "{policy}: {inner} is not {scaled}");
    }
}
