//! Faults of the input: found before time is spent, with a code and a place.

use super::lab::Lab;
use super::small::table;
use super::{code, stderr, stdout};

/// The code and text of the error that `args` end in.
fn with(old: &str, new: &str, args: &[&str]) -> (String, String) {
    Lab::with(old, new).fails(args)
}

const TRAIN: &[&str] = &["train", "recipe.toml"];

#[test]
fn sizes_that_cannot_be_are_refused() {
    let (code, text) = with("batch = 4", "batch = 25", TRAIN);
    assert_eq!(code, "R0407", "{text}");
    assert!(text.contains("24 training rows") && text.contains("data.csv"), "{text}");
    // `compile` counts rows too, and knows the line of the recipe.
    let (code, text) = with("batch = 4", "batch = 4\nsplit = 0.9", &["compile", "recipe.toml"]);
    assert_eq!(code, "P0108", "{text}");
    assert!(text.contains("recipe.toml:5:"), "{text}");

    let (code, text) = with("steps = 4", "epochs = 9223372036854775807", TRAIN);
    assert_eq!(code, "P0105", "{text}");
    assert!(text.contains("recipe.toml:15:"), "{text}");
    assert_eq!(with("steps = 4", "steps = 9223372036854775807", TRAIN).0, "P0105");
    assert_eq!(with("steps = 4", "steps = 4\naccumulate = 9999999999", TRAIN).0, "P0105");

    let bytes = "format = \"bytes\"\nfile = \"data.csv\"\nbatch = 4\ncontext = 9223372036854775807";
    let lab = Lab::with("format = \"csv\"\nfile = \"data.csv\"\nbatch = 4", bytes);
    let recipe = lab.text("recipe.toml").replace("\"a..c\"", "\"bytes\"");
    lab.write("recipe.toml", &recipe.replace("\"label\"", "\"next\""));
    let (code, text) = lab.fails(TRAIN);
    assert_eq!(code, "R0415", "{text}");

    for args in [
        &["--threads", "100000"][..],
        &["--threads=-1"],
        &["--steps", "0"],
        &["--steps", "99999999999"],
    ] {
        let o = Lab::new().run(&[TRAIN, args].concat());
        assert_eq!(super::code(&o), 2, "{args:?}: {}", stderr(&o));
        assert!(stderr(&o).contains(&args[0][..7]), "{}", stderr(&o));
    }
}

#[test]
fn a_step_may_take_more_batches_than_an_epoch_has() {
    // 24 rows give 6 batches; the step crosses many epochs.
    let lab = Lab::with("steps = 4", "steps = 1\naccumulate = 20000\nlog = \"log.jsonl\"");
    lab.ok(TRAIN);
    assert_eq!(lab.text("log.jsonl").lines().count(), 1);
}

#[test]
fn data_is_opened_before_the_model_is_compiled() {
    for (old, new, want) in [
        ("file = \"data.csv\"", "file = \"gone.csv\"", "P0108"),
        ("\"a..c\"", "\"c..a\"", "R0413"),
        ("\"a..c\"", "\"a..d\"", "R0413"),
        ("\"label\"", "[\"label\", \"nope\"]", "R0413"),
        ("batch = 4", "batch = 40", "R0407"),
    ] {
        let lab = Lab::with(old, new);
        // Compiling this would fail, too, and later.
        lab.write("model.pir", "graph nothing\n");
        let (code, text) = lab.fails(TRAIN);
        assert_eq!(code, want, "{new}: {text}");
        assert!(text.contains("-->"), "{text}");
    }
}

#[test]
fn csv_columns_are_found_or_listed() {
    let (code, text) = with("\"a..c\"", "\"a..z\"", TRAIN);
    assert_eq!(code, "R0413", "{text}");
    assert!(text.contains("`z`") && text.contains("a, b, c, label"), "{text}");
    assert!(text.contains("data.csv"), "{text}");
    let (code, text) = with("batch = 4", "batch = 4\nheader = false", TRAIN);
    assert_eq!(code, "R0413", "{text}");
    assert!(text.contains("numbers from 0"), "{text}");
    // Three columns for the labels of one.
    let (code, text) = with("\"label\"", "\"a..c\"", TRAIN);
    assert_eq!(code, "R0411", "{text}");
    let lab = Lab::new();
    lab.write("data.csv", &table(24).replacen("0\n", "zero\n", 1));
    let (code, text) = lab.fails(TRAIN);
    assert_eq!(code, "R0412", "{text}");
    assert!(text.contains("data.csv") && text.contains("`zero` is not a number"), "{text}");
}

#[test]
fn columns_of_text_are_words() {
    let bytes = "format = \"bytes\"\nfile = \"data.csv\"\ncontext = 3";
    let (code, text) =
        with("format = \"csv\"\nfile = \"data.csv\"", bytes, &["check", "recipe.toml"]);
    assert_eq!(code, "P0106", "{text}");
    assert!(text.contains("unknown x `a..c`") && text.contains("`bytes`, `next`"), "{text}");
}

#[test]
fn targets_outside_the_classes_name_their_row() {
    let lab = Lab::new();
    let mut rows: Vec<String> = table(24).lines().map(str::to_string).collect();
    rows[6] = "1,2,3,7".into();
    lab.write("data.csv", &rows.join("\n"));
    let (code, text) = lab.fails(&["train", "recipe.toml", "--steps", "6"]);
    assert_eq!(code, "R0416", "{text}");
    assert!(text.contains("target 7 is not one of 2 classes"), "{text}");
    assert!(text.contains("data.csv: row 5"), "{text}");
    // What the loss ignores is no fault.
    lab.recipe("kind = \"cross_entropy\"", "kind = \"cross_entropy\"\nignore_index = 7");
    lab.ok(&["train", "recipe.toml", "--steps", "6"]);
    rows[6] = "1,2,3,0.5".into();
    lab.write("data.csv", &rows.join("\n"));
    let (code, text) = lab.fails(&["train", "recipe.toml", "--steps", "6"]);
    assert_eq!(code, "R0201", "{text}");
    assert!(text.contains("data.csv: row 5, for input `t`"), "{text}");
}

#[test]
fn faults_of_the_recipe_found_late_have_its_line() {
    let pin = |op: &str, dtype: &str| {
        format!("[precision]\npins = [\n  {{ op = \"{op}\", dtype = \"{dtype}\" }},\n]\n[train]")
    };
    let compile = &["compile", "recipe.toml"];
    for (old, new, want, line) in [
        ("kind = \"cross_entropy\"", "kind = \"mse\"\nprediction = \"z\"".into(), "P0403", 10),
        ("{ t = ", "{ x = ".into(), "P0403", 9),
        ("[train]", pin("nothing", "f32"), "P0501", 16),
        ("[train]", pin("sum", "bf16"), "P0501", 16),
        ("[train]", "[target]\ndevice = \"tpu\"\n[train]".into(), "P0602", 15),
        ("[train]", "[train]\nfreeze = [\"w1\", \"q*\"]".into(), "P0111", 15),
        ("[train]", "[train]\nfreeze_rows = { w3 = [0] }".into(), "P0112", 15),
        ("[train]", "[train]\nfreeze = [\"w1\"]\nfreeze_rows = { w1 = [0] }".into(), "P0112", 16),
        ("[train]", "[train]\nfreeze_rows = { w1 = [0, 3] }".into(), "P0113", 15),
        ("[train]", "[train]\nfreeze_rows = { w1 = [-4] }".into(), "P0113", 15),
        ("[train]", "[train]\nstop_gradient = [\"fc1\"]".into(), "P0107", 15),
        ("[train]", "[train]\nparameters = [\"w1\"]".into(), "P0107", 15),
    ] {
        let (code, text) = Lab::with(old, &new).fails(compile);
        assert_eq!(code, want, "{new}: {text}");
        assert!(text.contains(&format!("recipe.toml:{line}:")), "{new}: {text}");
    }
}

#[test]
fn output_that_cannot_be_written_names_its_path() {
    let lab = Lab::new();
    for (args, path) in [
        (&["compile", "recipe.toml", "-o", "no/such/folder.plan"][..], "no/such/folder.plan"),
        (&["compile", "recipe.toml", "--dump", "model.pir/x"], "model.pir/x"),
        (&["train", "recipe.toml", "--out", "model.pir/x"], "model.pir/x"),
        (&["train", "recipe.toml", "--log", "no/log"], "no/log"),
        (&["grad", "recipe.toml", "-o", "no/g.safetensors"], "no/g.safetensors"),
        (&["compile", "recipe.toml", "-o", "."], "."),
    ] {
        let (code, text) = lab.fails(args);
        assert_eq!(code, "R0206", "{text}");
        assert!(text.contains(path), "{text}");
        let o = lab.run(&[args, &["--json"]].concat());
        let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
        assert_eq!(v["errors"][0]["code"], "R0206");
        assert!(v["errors"][0]["place"].as_str().unwrap().contains(path));
    }
}

#[test]
fn check_compiles_a_recipe() {
    let lab = Lab::new();
    assert!(lab.ok(&["check", "recipe.toml"]).contains("is in order"));
    // What only compiling finds.
    lab.recipe("{ t = ", "{ x = ");
    assert_eq!(lab.fails(&["check", "recipe.toml"]).0, "P0403");
    lab.recipe("batch = 4", "batch = 3");
    let (found, text) = lab.fails(&["check", "recipe.toml"]);
    assert_eq!(found, "R0401", "{text}");
    assert!(text.contains("data.csv"), "{text}");
    lab.recipe("model.pir", "gone.pir");
    let (found, text) = lab.fails(&["check", "recipe.toml"]);
    assert_eq!(found, "P0004", "{text}");
    assert!(text.contains("recipe.toml:1:"), "{text}");
    for command in ["compile", "train"] {
        let (found, text) = lab.fails(&[command, "recipe.toml"]);
        assert_eq!(found, "P0004", "{text}");
        assert!(text.contains("recipe.toml:1:"), "{text}");
    }
    let o = lab.run(&["check", "model.pir", "recipe.toml"]);
    assert_eq!(code(&o), 1);
}
