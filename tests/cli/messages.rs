//! Messages that once misled, in the form that does not.

use super::lab::Lab;
use super::small::table;
use super::{code, command, precast, stderr, stdout};

#[test]
fn an_extent_that_is_missing_is_asked_for_by_the_option_of_the_command() {
    let lab = Lab::fixture("mlp_mnist");
    let (code, text) = lab.fails(&["show", "model.onnx"]);
    assert_eq!(code, "P0208", "{text}");
    assert!(text.contains("`--dim \"batch=32\"`"), "{text}");
    assert!(text.contains("axis 0 of `x`") && text.contains("`dynamic_axes`"), "{text}");
    assert!(!text.contains("[data]"), "there is no recipe: {text}");
    lab.ok(&["show", "model.onnx", "--dim", "batch=32"]);
    let o = lab.run(&["show", "model.onnx", "--dim", "batch=0"]);
    assert!(stderr(&o).contains("at least 1"), "{}", stderr(&o));
    // A recipe has its own place for it.
    let recipe = lab.text("recipe.toml");
    let data = recipe.find("format =").unwrap()..recipe.find("targets").unwrap();
    lab.write("recipe.toml", &recipe.replace(&recipe[data], ""));
    let (code, text) = lab.fails(&["compile", "recipe.toml"]);
    assert_eq!(code, "P0208", "{text}");
    assert!(text.contains("[data] dims = { \"batch\" = 32 }"), "{text}");
}

#[test]
fn suggestions_are_near() {
    let lab = Lab::new();
    lab.ok(&["compile", "recipe.toml"]);
    let (code, text) = lab.fails(&["explain", "recipe.plan", "nosuch"]);
    assert_eq!(code, "P0005", "{text}");
    assert!(!text.contains("did you mean"), "{text}");
    let (_, text) = lab.fails(&["explain", "recipe.plan", "relu"]);
    assert!(text.contains("`fc1+relu`"), "a part of one: {text}");
    let (_, text) = lab.fails(&["explain", "recipe.plan", "fc11"]);
    assert!(text.contains("did you mean `fc1`?"), "{text}");
    let profile = ["profile", "recipe.toml", "--steps", "1", "--tensor"];
    let (_, text) = lab.fails(&[&profile[..], &["nosuch"]].concat());
    assert!(text.contains("its tensors are ") && !text.contains("did you mean"), "{text}");
    let (_, text) = lab.fails(&[&profile[..], &["fc3"]].concat());
    assert!(text.contains("did you mean `fc"), "{text}");
    let (_, text) = lab.fails(&["compile", "recipe.toml", "--device", "sm90"]);
    assert!(text.contains("did you mean `sm_90`?"), "{text}");
}

#[test]
fn cells_of_a_table_are_told_by_line_and_column_from_1_with_the_columns_name() {
    let lab = Lab::new();
    let rows = table(24);
    let mut lines: Vec<String> = rows.lines().map(str::to_string).collect();
    lines[3] = "1,two,3,0".into();
    lab.write("data.csv", &lines.join("\n"));
    let (code, text) = lab.fails(&["train", "recipe.toml"]);
    assert_eq!(code, "R0412", "{text}");
    assert!(text.contains("line 4, column 2 (`b`): `two` is not a number"), "{text}");
    // A header of two lines, and a ragged row behind it: one line, the editor's.
    lines[0] = "\"a\n(cm)\",b,c,label".into();
    lines[3] = "1,2,0".into();
    lab.write("data.csv", &lines.join("\n"));
    for command in ["train", "compile", "check"] {
        let inputs = "x = [\"a\\n(cm)\", \"b\", \"c\"]";
        lab.recipe("x = \"a..c\"", inputs);
        let (_, text) = lab.fails(&[command, "recipe.toml"]);
        assert!(text.contains("line 5 has 3 cells, and the header has 4"), "{command}: {text}");
        assert!(!text.contains("record"), "{command}: {text}");
    }
    // Columns that are not there.
    lab.write("data.csv", &rows);
    lab.recipe("\"label\"", "\"labels\"");
    for command in ["train", "compile"] {
        let (_, text) = lab.fails(&[command, "recipe.toml"]);
        assert!(text.contains("no column `labels`"), "{text}");
        assert!(text.contains("did you mean `label`?"), "{text}");
    }
}

#[test]
fn keys_of_a_section_are_listed_once() {
    let (code, text) =
        Lab::with("batch = 4", "batch = 4\nnonsense = 1").fails(&["check", "recipe.toml"]);
    assert_eq!(code, "P0102", "{text}");
    let help =
        text.lines().find(|l| l.contains("the keys of [data] are")).expect("they are listed");
    for key in ["`scale`", "`shift`", "`files`", "`batch`"] {
        assert_eq!(help.matches(key).count(), 1, "{help}");
    }
}

#[test]
fn what_the_command_line_asked_for_is_not_the_recipes_fault() {
    let lab = Lab::with("[train]", "[precision]\npolicy = \"bf16\"\n[train]");
    let mut list = vec![];
    for args in [
        &["compare", "recipe.toml", "--only", "fp8", "--device", "a100"][..],
        &["compile", "recipe.toml", "--policy", "fp8", "--device", "a100"],
        &["compile", "recipe.toml", "--device", "v100"],
        &["compile", "recipe.toml", "--device", "nonsense"],
        &["compile", "recipe.toml", "--device", "gone.toml"],
        &["profile", "recipe.toml", "--policy", "f16"],
        &["profile", "recipe.toml", "--device", "sm_90"],
        &["compare", "recipe.toml", "--policy", "f16"],
    ] {
        let (_, text) = lab.fails(args);
        assert!(text.contains("of the command line"), "{args:?}: {text}");
        list.push(format!("$ precast {}\n{}", args.join(" "), text.trim_end()));
        let o = lab.run(&[args, &["--json"]].concat());
        let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
        let flag = v["errors"][0]["place"]["flag"].as_str().expect("a flag");
        assert!(args.join(" ").contains(flag), "{flag}");
    }
    insta::assert_snapshot!(list.join("\n\n"));
    lab.ok(&["profile", "recipe.toml", "--device", "cpu", "--steps", "1"]);
}

#[test]
fn a_device_may_be_a_file_that_describes_one() {
    let lab = Lab::new();
    let mut target = precast_plan::Target::shipped("cpu-generic").expect("shipped");
    target.name = "this-machine".into();
    std::fs::create_dir(lab.path("sub")).unwrap();
    lab.write("sub/t.toml", &toml::to_string(&target).expect("plain data"));
    // The path is that of the working directory, whatever folder the recipe is in.
    let recipe = lab.text("recipe.toml").replace("model.pir", "../model.pir");
    lab.write("sub/recipe.toml", &recipe.replace("data.csv", "../data.csv"));
    for recipe in ["recipe.toml", "sub/recipe.toml"] {
        let text = lab.ok(&["compile", recipe, "-o", "m.plan", "--device", "sub/t.toml"]);
        assert!(text.contains("on this-machine"), "{text}");
        lab.ok(&["train", recipe, "--device", "sub/t.toml", "--steps", "1"]);
        lab.ok(&["compare", recipe, "--device", "sub/t.toml", "--only", "f32"]);
    }
    // A description that makes no sense.
    target.launch_ns = -1.0;
    lab.write("bad.toml", &toml::to_string(&target).expect("plain data"));
    let (code, text) = lab.fails(&["compile", "recipe.toml", "--device", "bad.toml"]);
    assert_eq!(code, "P0601", "{text}");
    assert!(text.contains("bad.toml"), "{text}");
}

#[test]
fn options_are_spelled_one_way_and_list_what_they_take() {
    for command in ["compile", "train", "grad", "profile", "calibrate"] {
        let help = stdout(&precast(&[command, "--help"]));
        assert!(help.contains("-o, --out <OUT>"), "{command}: {help}");
    }
    // The name it had before is one still: what is wrong here is the number of rounds.
    let o = precast(&["calibrate", "--output", "t.toml", "--rounds", "0"]);
    assert_eq!(code(&o), 2);
    assert!(stderr(&o).contains("--rounds"), "{}", stderr(&o));
    for command in ["compile", "compare"] {
        let help = stdout(&precast(&[command, "--help"]));
        for word in ["auto", "tf32", "fp8", "torch-autocast", "all-16-bf16"] {
            assert!(help.contains(word), "{command} --help lacks {word}: {help}");
        }
    }
    let o = precast(&["train", "r.toml", "--policy", "tf31"]);
    assert!(stderr(&o).contains("tf32"), "{}", stderr(&o));
}

#[test]
fn times_have_one_spelling() {
    let lab = Lab::new();
    let summary = lab.ok(&["compile", "recipe.toml"]);
    let plan = lab.ok(&["show", "recipe.plan"]);
    let micro = |text: &str| text.contains("µs") || text.contains(" ns");
    assert!(micro(&summary) && micro(&plan), "{summary}{plan}");
    for text in [&summary, &plan] {
        assert!(!text.split(|c: char| !c.is_alphanumeric()).any(|w| w == "us"), "{text}");
    }
}

#[test]
fn variables_that_are_not_understood_are_errors() {
    for (name, value, want) in [
        ("PRECAST_CUDA_TUNE", "off", "may be `0` or `1`"),
        ("PRECAST_CUDNN", "no", "may be `0` or `1`"),
        ("PRECAST_CUDA_DETERMINISTIC", "yes", "may be `0` or `1`"),
        ("PRECAST_CUDA_GRAPH", "Check", "may be `0` or `1` or `check`"),
        ("PRECAST_CUDA_PATH", "/no/such/folder", "/no/such/folder, which does not exist"),
    ] {
        let train = ["train", "examples/digits/recipe.toml", "--device", "cuda"];
        let o = command(&train).env(name, value).output().expect("the binary runs");
        let text = stderr(&o);
        assert_eq!(code(&o), 1, "{text}");
        assert!(text.contains("R0710") && text.contains(want), "{text}");
        assert!(text.contains(&format!("environment variable {name}")), "{text}");
        let o = command(&["doctor"]).env(name, value).output().expect("the binary runs");
        assert_eq!(code(&o), 0, "{}", stderr(&o));
        assert!(stdout(&o).contains(name), "{}", stdout(&o));
    }
}

#[test]
fn a_stop_of_everything_is_the_recipes_own_fault() {
    let lab = Lab::fixture("mlp_mnist");
    let recipe = lab.text("recipe.toml");
    lab.write("recipe.toml", &format!("{recipe}stop_gradient = [\"*\"]\n"));
    let (code, text) = lab.fails(&["compile", "recipe.toml"]);
    assert_eq!(code, "P0405", "{text}");
    assert!(text.contains("every path to one is stopped"), "{text}");
    assert!(text.contains("recipe.toml:14:") && text.contains("stops every gradient"), "{text}");
    assert!(!text.contains("export"), "{text}");
}

#[test]
fn rows_of_what_is_frozen_are_called_frozen() {
    let frozen = "[train]\nfreeze = [\"w1\"]\nfreeze_rows = { w1 = [0] }";
    let (code, text) = Lab::with("[train]", frozen).fails(&["compile", "recipe.toml"]);
    assert_eq!(code, "P0112", "{text}");
    assert!(text.contains("frozen already") && !text.contains("not in the model"), "{text}");
}

#[test]
fn files_that_are_not_there_are_named_as_they_may_be_meant() {
    let lab = Lab::new();
    let (code, text) = lab.fails(&["check", "recip.toml"]);
    assert_eq!(code, "P0100", "{text}");
    assert!(text.contains("did you mean `recipe.toml`?"), "{text}");
    let (_, text) = lab.fails(&["check", "recipe"]);
    assert!(text.contains("did you mean `recipe.toml`?"), "{text}");
    let (_, text) = lab.fails(&["check", "nothing-like-it.toml"]);
    assert!(!text.contains("did you mean"), "{text}");
    lab.recipe("model.pir", "modle.pir");
    let (code, text) = lab.fails(&["check", "recipe.toml"]);
    assert_eq!(code, "P0004", "{text}");
    assert!(text.contains("did you mean `model.pir`?"), "{text}");
    lab.recipe("data.csv", "data/data.csv");
    let (code, text) = lab.fails(&["train", "recipe.toml"]);
    assert_eq!(code, "P0108", "{text}");
    assert!(text.contains("there is no folder data"), "{text}");
    lab.recipe("data.csv", "dta.csv");
    let (_, text) = lab.fails(&["train", "recipe.toml"]);
    assert!(text.contains("did you mean `data.csv`?"), "{text}");
}

#[test]
fn rows_of_another_shape_name_the_axis() {
    use precast_plan::DType;
    let lab = Lab::with(
        "format = \"csv\"\nfile = \"data.csv\"",
        "format = \"safetensors\"\nfile = \"d.st\"",
    );
    let recipe = lab.text("recipe.toml").replace("\"a..c\"", "\"x\"");
    lab.write("recipe.toml", &recipe.replace("\"label\"", "\"t\""));
    let write = |x: &[u64]| {
        let zeros = |shape: &[u64], dtype: DType| {
            vec![0u8; shape.iter().product::<u64>() as usize * dtype.size()]
        };
        let x = (DType::F32, x.to_vec(), zeros(x, DType::F32));
        let t = (DType::I64, vec![24], zeros(&[24], DType::I64));
        let tensors = [("x".to_string(), x), ("t".to_string(), t)].into();
        let none = std::collections::BTreeMap::new();
        precast_runtime::tensors::write_tensors(&lab.path("d.st"), &none, &tensors).unwrap();
    };
    write(&[24, 3]);
    lab.ok(&["train", "recipe.toml", "--steps", "1"]);
    write(&[24, 4]);
    let (code, text) = lab.fails(&["train", "recipe.toml", "--steps", "1"]);
    assert_eq!(code, "R0411", "{text}");
    assert!(text.contains("of a row, axis 0 is 4 in the data and 3 in the model"), "{text}");
    assert!(text.contains("dynamic_axes"), "{text}");
    write(&[20, 3]);
    let (code, text) = lab.fails(&["train", "recipe.toml", "--steps", "1"]);
    assert!(code == "R0405" || code == "P0108", "{text}");
    assert!(text.contains("a row for each example"), "{text}");
}

#[test]
fn what_to_write_instead_is_said() {
    let said = |old: &str, new: &str, args: &[&str]| Lab::with(old, new).fails(args).1;
    let check = &["check", "recipe.toml"];
    let text = said("batch = 4", "batch = 4\nscale = { other = 2 }", check);
    assert!(text.contains("its inputs are x"), "{text}");
    let text = said("batch = 4", "batch = 3", check);
    assert!(text.contains("`[data] batch` is 3, and axis 0 of the model's inputs is 4"), "{text}");
    assert!(text.contains("write `batch = 4`"), "{text}");
    let text = said("", "", &["show", "recipe.toml", "--stage", "autodif"]);
    assert!(text.contains("did you mean `autodiff`?"), "{text}");
    let text = said("\"a..c\"", "\"c..a\"", &["train", "recipe.toml"]);
    assert!(text.contains("runs backwards") && text.contains("`a..c`"), "{text}");
    let text = said("\"label\"", "[\"a\", \"b\", \"label\"]", &["train", "recipe.toml"]);
    assert!(text.contains("takes one number for each row"), "{text}");
}
