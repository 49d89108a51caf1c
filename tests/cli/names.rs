//! Names of the model that the training step uses, too, and weights that are found by name.

use super::lab::Lab;
use super::small::MODEL;

/// The small model with its first product named `name`.
fn with_operation(name: &str) -> Lab {
    let lab = Lab::new();
    assert!(MODEL.contains("@fc1\n"));
    lab.write("model.pir", &MODEL.replace("@fc1\n", &format!("@{name}\n")));
    lab
}

#[test]
fn an_operation_may_have_a_name_of_the_step() {
    let args = ["grad", "recipe.toml", "--policy", "f16", "-o", "grad.safetensors"];
    let lab = Lab::new();
    lab.ok(&args);
    let want = lab.read("grad.safetensors");
    for name in ["one", "zero", "apply", "overflow", "grad_norm", "skipped", "w1.update"] {
        let lab = with_operation(name);
        lab.ok(&args);
        assert!(lab.read("grad.safetensors") == want, "{name}");
        assert!(
            lab.ok(&["show", "recipe.toml", "--stage", "import"]).contains(&format!("@{name}\n"))
        );
    }
    // The step finds these again by name, so it is the model's that gives way.
    for name in ["loss", "loss.seed", "loss.square", "machine.loss_scale", "machine.inverse_scale"]
    {
        let lab = with_operation(name);
        lab.ok(&args);
        assert!(lab.read("grad.safetensors") == want, "{name}");
        let text = lab.ok(&["show", "recipe.toml", "--stage", "import"]);
        assert!(text.contains(&format!("@model.{name}\n")), "{text}");
        // It is a product like another, not a part of the loss.
        let text = lab.ok(&["compile", "recipe.toml", "--policy", "f16"]);
        assert!(text.contains("products    100% f16"), "{name}: {text}");
    }
}

#[test]
fn a_parameter_with_the_name_of_a_state_is_an_error() {
    for name in ["w1.momentum", "machine.iteration", "machine.loss_scale"] {
        let lab = Lab::new();
        lab.write("model.pir", &MODEL.replace("var w2", &format!("var {name}")));
        lab.write(
            "model.pir",
            &lab.text("model.pir").replace("name=\"w2\"", &format!("name=\"{name}\"")),
        );
        let (code, text) = lab.fails(&["compile", "recipe.toml", "--policy", "f16"]);
        assert_eq!(code, "P0404", "{text}");
        assert!(text.contains(&format!("`{name}`")), "{text}");
    }
}

#[test]
fn a_weight_file_wins_over_textual_ir() {
    let grad = |lab: &Lab| {
        lab.ok(&["grad", "recipe.toml", "-o", "grad.safetensors"]);
        lab.read("grad.safetensors")
    };
    let lab = Lab::new();
    let drawn = grad(&lab);
    lab.ok(&["train", "recipe.toml", "--out", "trained"]);
    let file = "model = \"model.pir\"\n[weights]\nfile = \"trained/weights.safetensors\"";
    lab.recipe("model = \"model.pir\"", file);
    assert!(!lab.warnings(&["compile", "recipe.toml"]).contains("warning"));
    let trained = grad(&lab);
    assert!(trained != drawn);
    // As if the text had asked for them.
    let asked =
        MODEL.replace("uniform(0.5, 1)", "weights(\"w1\")").replace("zeros", "weights(\"b1\")");
    lab.write("model.pir", &asked.replace("uniform(0.5, 2)", "weights(\"w2\")"));
    assert!(grad(&lab) == trained);

    // A part of the model, under a name that the text gives.
    lab.write("model.pir", &asked.replace("weights(\"b1\")", "zeros").replace("b1", "b9"));
    let text = lab.warnings(&["compile", "recipe.toml"]);
    assert!(text.contains("P0227") && text.contains("are the model's own: `b9`"), "{text}");
    assert!(text.contains("not used: `b1`"), "{text}");

    // None of it, or with other extents.
    lab.write("model.pir", &MODEL.replace("w1", "v1").replace("b1", "c1").replace("w2", "v2"));
    let (code, text) = lab.fails(&["compile", "recipe.toml"]);
    assert_eq!(code, "P0217", "{text}");
    lab.write("model.pir", &MODEL.replace("[4,2]", "[4,3]"));
    let (code, text) = lab.fails(&["compile", "recipe.toml"]);
    assert_eq!(code, "P0217", "{text}");
    assert!(text.contains("shape [4, 2]"), "{text}");
}

/// Exporters keep arguments that a module does not use.
#[test]
fn an_input_that_nothing_reads_is_said_and_makes_no_difference() {
    let lab = Lab::new();
    lab.ok(&["grad", "recipe.toml", "-o", "grad.safetensors"]);
    let want = lab.read("grad.safetensors");
    lab.write(
        "model.pir",
        &MODEL.replace("%w1 = var", "%z = input {name=\"z\"} : f32[4,1]\n  %w1 = var"),
    );
    lab.recipe("x = \"a..c\"", "x = \"a..c\", z = \"b\"");
    for args in [
        &["check", "recipe.toml"][..],
        &["train", "recipe.toml", "--steps", "2"],
        &["grad", "recipe.toml", "-o", "grad.safetensors"],
    ] {
        let said = lab.warnings(args);
        assert!(said.contains("warning[P0233]: nothing reads the input `z`"), "{args:?}: {said}");
        assert!(said.contains("recipe.toml"), "{said}");
    }
    assert!(lab.read("grad.safetensors") == want);
    lab.recipe("", "");
    assert!(!lab.warnings(&["check", "recipe.toml"]).contains("P0233"));
}
