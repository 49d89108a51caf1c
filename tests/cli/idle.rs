//! Keys and options that do nothing say so.

use super::lab::Lab;

#[test]
fn names_that_the_model_lacks_are_errors_with_a_place() {
    let lab = Lab::fixture("mlp_mnist");
    let recipe = lab.text("recipe.toml");
    let model = lab.ok(&["show", "model.onnx", "--dim", "batch=4"]);
    assert!(model.contains("input {name=\"x\"}"), "{model}");

    lab.write("recipe.toml", &recipe.replace("[loss]", "dims = { bacth = 4 }\n[loss]"));
    let (code, text) = lab.fails(&["compile", "recipe.toml"]);
    assert_eq!(code, "P0109", "{text}");
    assert!(text.contains("recipe.toml:7:") && text.contains("did you mean `batch`?"), "{text}");

    // Not a complaint about a dimension without an extent.
    lab.write("recipe.toml", &recipe.replace("{ x = ", "{ y = "));
    let (code, text) = lab.fails(&["train", "recipe.toml"]);
    assert_eq!(code, "P0109", "{text}");
    assert!(text.contains("recipe.toml:5:") && text.contains("its inputs are x"), "{text}");
    assert!(!text.contains("P0208"), "{text}");

    let (code, text) = lab.fails(&["show", "model.onnx", "--dim", "batch=4", "--dim", "M=2"]);
    assert_eq!(code, "P0109", "{text}");

    assert_eq!(lab.fails(&["check", "model.onnx", "--dim", "M=2"]).0, "P0109");
    assert_eq!(lab.fails(&["check", "recipe.toml", "--dim", "batch=4"]).0, "P0011");
    assert!(lab.ok(&["check", "model.onnx"]).contains("assumed extents: batch = 2"));
    assert!(!lab.ok(&["check", "model.onnx", "--dim", "batch=4"]).contains("assumed"));

    // Textual IR states every extent.
    let lab = Lab::with("[loss]", "dims = { batch = 4 }\n[loss]");
    assert_eq!(lab.fails(&["compile", "recipe.toml"]).0, "P0109");
    let lab = Lab::with("{ x = ", "{ z = ");
    let (code, text) = lab.fails(&["compile", "recipe.toml"]);
    assert_eq!(code, "P0109", "{text}");
    assert!(text.contains("no input `z`"), "{text}");
}

#[test]
fn keys_that_do_nothing_are_warnings_with_a_place() {
    let check = |old: &str, new: &str, args: &[&str], want: &[&str]| {
        let lab = Lab::with(old, new);
        let text = lab.warnings(&[&["compile", "recipe.toml"], args].concat());
        for w in want {
            assert!(text.contains(w), "{new}: no {w} in {text}");
        }
        let count = text.matches("warning[").count();
        assert_eq!(count, usize::from(!want.is_empty()), "{new}: {text}");
    };
    let scale = "[loss_scale]\ninit = 1024\ninterval = 10\n[train]";
    let idle = &["P0121", "`init`, `interval` do nothing", "recipe.toml:15:"][..];
    check("[train]", scale, &["--policy", "f32"], idle);
    check("[train]", scale, &["--policy", "bf16"], idle);
    check("[train]", scale, &["--policy", "f16"], &[]);
    let dynamic = "[loss_scale]\nmode = \"dynamic\"\ninit = 1024\n[train]";
    check("[train]", dynamic, &["--policy", "f32"], &[]);
    check("momentum = 0.9", "no_decay = \"bias_and_norm\"", &[], &["P0121", "`no_decay` does"]);
    let decay = "no_decay = \"bias_and_norm\"\nweight_decay = 0.1";
    check("momentum = 0.9", decay, &[], &[]);
    let both = "targets = { t = \"label\", u = \"a\" }\n[loss]\ntarget = \"t\"";
    check("targets = { t = \"label\" }\n[loss]", both, &[], &["P0121", "`targets.u` does", ":7:"]);
    let pin = "[precision]\npins = [{ op = \"*\", dtype = \"f32\" }]\n[train]";
    check("[train]", pin, &["--policy", "f32"], &["P0121", "pins.0"]);
    check("[train]", pin, &["--policy", "bf16"], &[]);
    let warmup = |n: u64| format!("[schedule]\nwarmup = {n}\n[train]");
    check("[train]", &warmup(4), &[], &["P0122", "4 steps", ":15:"]);
    check("[train]", &warmup(3), &[], &[]);
    // The model's weights are drawn, so `init` is right; there is no data to shuffle.
    check(
        "model = \"model.pir\"",
        "model = \"model.pir\"\n[weights]\ninit = \"default\"",
        &[],
        &[],
    );
    let none = "shuffle = true\nsplit = 0.5\n";
    check(
        "format = \"csv\"\nfile = \"data.csv\"\nbatch = 4\n",
        none,
        &[],
        &["P0121", "`shuffle`, `split` do"],
    );
}

#[test]
fn weights_are_drawn_only_where_there_are_none() {
    let lab = Lab::fixture("mlp_mnist");
    let recipe = lab.text("recipe.toml");
    lab.write("recipe.toml", &format!("{recipe}[weights]\ninit = \"default\"\nseed = 7\n"));
    let text = lab.warnings(&["compile", "recipe.toml"]);
    assert!(text.contains("P0121") && text.contains("`init`, `seed` do nothing"), "{text}");
    // With `init` or without, the model's own values are trained.
    lab.ok(&["grad", "recipe.toml", "-o", "with.safetensors"]);
    lab.write("recipe.toml", &recipe);
    assert!(!lab.warnings(&["compile", "recipe.toml"]).contains("P0121"));
    lab.ok(&["grad", "recipe.toml", "-o", "without.safetensors"]);
    assert_eq!(lab.read("with.safetensors"), lab.read("without.safetensors"));

    std::fs::remove_file(lab.path("weights.safetensors")).unwrap();
    let (code, text) = lab.fails(&["compile", "recipe.toml"]);
    assert_eq!(code, "P0211", "{text}");
    lab.write("recipe.toml", &format!("{recipe}[weights]\ninit = \"default\"\nseed = 7\n"));
    assert!(!lab.warnings(&["compile", "recipe.toml"]).contains("P0121"));
    lab.write("recipe.toml", &format!("{recipe}[weights]\nseed = 7\n"));
    assert_eq!(lab.fails(&["compile", "recipe.toml"]).0, "P0107");
}

#[test]
fn a_table_and_a_device_agree_or_are_an_error() {
    let lab = Lab::new();
    let table = precast_plan::Target::shipped("cpu-generic").expect("shipped");
    lab.write("table.toml", &toml::to_string(&table).expect("plain data"));
    let train = |device: &str| {
        lab.recipe("[train]", &format!("[target]\n{device}table = \"table.toml\"\n[train]"));
    };
    for device in ["", "device = \"cpu\"\n", "device = \"cpu-generic\"\n"] {
        train(device);
        lab.ok(&["compile", "recipe.toml"]);
    }
    train("device = \"sm_90\"\n");
    let (code, text) = lab.fails(&["compile", "recipe.toml"]);
    assert_eq!(code, "P0107", "{text}");
    assert!(text.contains("recipe.toml:16:") && text.contains("`cpu-generic`"), "{text}");
    // The command line wins over both.
    lab.ok(&["compile", "recipe.toml", "--device", "sm_90"]);
}

#[test]
fn show_refuses_options_that_mean_nothing() {
    let lab = Lab::new();
    for args in [
        &["show", "model.pir", "--stage", "plan"][..],
        &["show", "model.pir", "--dim", "N=3"],
        &["show", "recipe.toml", "--dim", "N=3"],
    ] {
        let (code, text) = lab.fails(args);
        assert_eq!(code, "P0011", "{text}");
    }
}
