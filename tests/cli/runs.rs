//! Commands that run to their end.

use super::lab::Lab;
use super::small::MODEL;
use super::{code, command, precast, stderr, stdout};
use precast_runtime::TensorFile;
use std::io::{BufRead, BufReader};
use std::process::Stdio;

/// Replaces what differs from run to run or from machine to machine, and prices.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let mut words: Vec<&str> = line.split(' ').collect();
        for i in 1..words.len() {
            let unit = words[i].trim_end_matches([':', ',', ';']);
            if ["ns", "µs", "ms", "s", "%"].contains(&unit) && !words[i - 1].is_empty() {
                (words[i - 1], words[i]) = ("[number]", "[unit]");
            }
        }
        if words[0] == "device" {
            words.truncate(7);
        }
        // What the program takes is the machine's.
        if words[0] == "memory" {
            words.truncate(1);
        }
        // The width of a number is its column's.
        let head = words.iter().take_while(|w| w.is_empty()).count();
        let columns: Vec<&str> = words.into_iter().filter(|w| !w.is_empty()).collect();
        out += format!("{}{}", " ".repeat(head), columns.join(" ")).trim_end();
        out.push('\n');
    }
    out
}

#[test]
fn compile_says_what_it_chose() {
    let lab = Lab::new();
    let args = ["compile", "recipe.toml", "--device", "cpu-generic", "--policy", "f32"];
    insta::assert_snapshot!(plain(&lab.ok(&args)));
    let json = lab.ok(&["compile", "recipe.toml", "-o", "other.plan", "--json"]);
    let v: serde_json::Value = serde_json::from_str(&json).expect("one object");
    assert_eq!((&v["ok"], &v["plan"]), (&true.into(), &"other.plan".into()));
    assert_eq!(lab.read("recipe.plan").first(), Some(&b'{'));
    lab.ok(&["check", "recipe.plan", "other.plan"]);
}

#[test]
fn training_reports_logs_and_saves() {
    let lab = Lab::with("steps = 4", "steps = 40\nema = 0.5\nlog = \"log.jsonl\"\ncheckpoint = 20");
    lab.write(
        "recipe.toml",
        &lab.text("recipe.toml").replace("batch = 4", "batch = 4\nsplit = 0.25"),
    );
    let args = ["train", "recipe.toml", "--policy", "f32", "--device", "cpu-generic", "--verify"];
    insta::assert_snapshot!(plain(&lab.ok(&args)));
    let losses: Vec<f64> = lab
        .text("log.jsonl")
        .lines()
        .enumerate()
        .map(|(i, line)| {
            let v: serde_json::Value = serde_json::from_str(line).expect("a line is an object");
            assert_eq!(v["step"], i + 1);
            assert!(v["seconds"].as_f64().unwrap() >= 0.0 && v["skipped"] == false);
            v["loss"].as_f64().unwrap()
        })
        .collect();
    assert_eq!(losses.len(), 40);
    let mean = |part: &[f64]| part.iter().sum::<f64>() / part.len() as f64;
    assert!(mean(&losses[30..]) < 0.5 * mean(&losses[..10]), "{losses:?}");
    for file in ["weights", "ema", "checkpoint-20", "checkpoint-40"] {
        TensorFile::open(&lab.path(&format!("trained/{file}.safetensors"))).unwrap();
    }
    lab.ok(&["check", "trained/model.plan"]);
    let o = lab.run(&[&args[..], &["--json"]].concat());
    let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
    assert_eq!((&v["ok"], &v["steps"]), (&true.into(), &40.into()));
}

#[test]
fn grad_writes_what_a_step_computed() {
    let lab = Lab::new();
    let out = lab.ok(&["grad", "recipe.toml", "-o", "g.safetensors", "--policy", "f32"]);
    assert!(out.starts_with("loss ") && out.contains("saved g.safetensors"), "{out}");
    let file = TensorFile::open(&lab.path("g.safetensors")).unwrap();
    let read = |name: &str| file.tensor(name).unwrap_or_else(|e| panic!("{e}"));
    assert_eq!(read("grad.w1").shape, [3, 4]);
    assert_eq!(read("out.y").shape, [4, 2]);
    // The first step of SGD: the momentum is the gradient.
    assert_eq!(read("state.w1.momentum").to_f32(), read("grad.w1").to_f32());
    assert!(read("grad.b1").to_f32().iter().any(|g| *g != 0.0));
}

#[test]
fn explain_names_reasons_and_near_misses() {
    let lab = Lab::new();
    lab.ok(&["compile", "recipe.toml", "--device", "cpu-generic", "--policy", "f32"]);
    insta::assert_snapshot!(plain(&lab.ok(&["explain", "recipe.plan", "fc*"])));
    let all = lab.ok(&["explain", "recipe.plan"]);
    assert!(all.contains("choice ") && all.contains("fc1"), "{all}");
    let (code, text) = lab.fails(&["explain", "recipe.plan", "fc1+rel"]);
    assert_eq!(code, "P0005", "{text}");
    assert!(text.contains("did you mean `fc1+relu`?"), "{text}");
    let v: serde_json::Value =
        serde_json::from_str(&lab.ok(&["explain", "recipe.plan", "--json"])).expect("one object");
    assert!(!v["decisions"].as_array().unwrap().is_empty());
}

#[test]
fn a_loss_that_is_no_number_ends_in_3() {
    let lab = Lab::with("lr = 0.5", "lr = 1e30");
    let o = lab.run(&["train", "recipe.toml", "--policy", "f32", "--json"]);
    assert_eq!(code(&o), 3, "{}", stderr(&o));
    assert!(stderr(&o).contains("the gradients of step 2 are not finite"), "{}", stderr(&o));
    let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
    assert_eq!((&v["ok"], &v["steps"]), (&false.into(), &1.into()));
    assert_eq!(v["errors"][0]["code"], "R0602", "{v}");
}

#[test]
fn a_run_of_skipped_steps_says_that_nothing_changed() {
    let scale = "[loss_scale]\nmode = \"dynamic\"\ninit = 3e38\nbackoff = 0.99\n[train]";
    let lab = Lab::with("[train]", scale);
    let args = ["train", "recipe.toml", "--policy", "f16"];
    let o = lab.run(&args);
    let text = stdout(&o);
    assert!(text.contains("skipped     4 steps, all of this run: no weight changed"), "{text}");
    assert!(code(&o) == 3 && stderr(&o).contains("error[R0605]"), "{}", stderr(&o));
    let o = lab.run(&[&args[..], &["--json"]].concat());
    let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
    assert_eq!((&v["ok"], &v["steps"], &v["skipped"]), (&false.into(), &4.into(), &4.into()));
}

#[test]
fn every_stage_is_text_that_reads_back() {
    let lab = Lab::fixture("mlp_mnist");
    lab.ok(&["compile", "recipe.toml", "--dump", "stages", "--verify", "--policy", "bf16"]);
    let mut names: Vec<_> = std::fs::read_dir(lab.path("stages"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    assert_eq!(names, ["0-import.pir", "1-autodiff.pir", "2-egraph.pir", "3-plan.plan"]);
    for name in &names[..3] {
        let file = format!("stages/{name}");
        lab.ok(&["check", &file]);
        assert_eq!(lab.ok(&["show", &file]), lab.text(&file), "{name}");
        let stage = &name[2..name.len() - 4];
        let out = format!("{stage}.pir");
        lab.ok(&["compile", "recipe.toml", "--to", stage, "-o", &out, "--policy", "bf16"]);
        assert_eq!(lab.text(&out), lab.text(&file), "{name}");
    }
    lab.ok(&["compile", "recipe.toml", "--to", "plan", "-o", "a.plan", "--policy", "bf16"]);
    assert_eq!(lab.read("a.plan"), lab.read("stages/3-plan.plan"));
    // The default name, beside the recipe; and no stage of that name.
    lab.ok(&["compile", "recipe.toml", "--to", "import"]);
    assert!(lab.text("recipe.import.pir").starts_with("graph "));
    assert_eq!(lab.fails(&["compile", "recipe.toml", "--to", "soup"]).0, "P0008");
}

#[test]
fn show_prints_json_where_asked() {
    let lab = Lab::new();
    let json = |args: &[&str]| -> serde_json::Value {
        let out = lab.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&out).unwrap_or_else(|e| panic!("{args:?}: {e}: {out}"))
    };
    for stage in ["import", "autodiff", "egraph"] {
        let v = json(&["show", "recipe.toml", "--stage", stage]);
        assert_eq!(v["stage"], stage);
        let text = lab.ok(&["show", "recipe.toml", "--stage", stage]);
        assert_eq!(v["text"], text);
    }
    assert_eq!(json(&["show", "model.pir"])["text"], lab.ok(&["show", "model.pir"]));
    assert!(json(&["show", "recipe.toml"])["micro"].is_array());
    lab.ok(&["compile", "recipe.toml"]);
    assert_eq!(lab.ok(&["show", "recipe.plan", "--json"]), lab.text("recipe.plan"));
}

#[test]
fn a_reader_that_has_seen_enough_ends_the_command() {
    let lab = Lab::new();
    // More than a pipe holds, so that writing meets the closed end.
    let mut model = MODEL.replace("result out.y = %y", "");
    for i in 0..3000 {
        let from = if i == 0 { "y".to_string() } else { format!("z{}", i - 1) };
        model += &format!("  %z{i} = scale %{from} {{by=1.5}} @a_name_of_some_length_{i}\n");
    }
    lab.write("long.pir", &format!("{model}result out.y = %z2999\n"));
    let mut child = command(&["show", "long.pir"])
        .current_dir(lab.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let mut first = String::new();
    let mut pipe = BufReader::with_capacity(64, child.stdout.take().expect("piped"));
    pipe.read_line(&mut first).expect("a line");
    assert_eq!(first, "graph small\n");
    drop(pipe);
    let o = child.wait_with_output().expect("it ends");
    assert_eq!(code(&o), 0, "{}", stderr(&o));
    assert_eq!(stderr(&o), "");
}

#[test]
fn doctor_and_its_json_agree() {
    let o = precast(&["doctor", "--json"]);
    let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
    let text = stdout(&precast(&["doctor"]));
    let name = v["cpu"]["name"].as_str().unwrap_or("name unknown");
    assert!(text.contains(name), "{text}");
    let sets = v["cpu"]["instruction_sets"].as_object().unwrap();
    let line = |head: &str| text.lines().find(|l| l.starts_with(head)).unwrap().to_string();
    for (set, has) in sets {
        let line = line(if has.as_bool().unwrap() { "has " } else { "lacks " });
        assert!(line.split_whitespace().any(|w| w == set), "{set}: {line}");
    }
}

#[test]
fn calibrate_writes_a_target_that_a_recipe_can_use() {
    let lab = Lab::with("[train]", "[target]\ntable = \"here.toml\"\n[train]");
    let out = lab.ok(&[
        "calibrate",
        "-o",
        "here.toml",
        "--name",
        "here",
        "--threads",
        "1",
        "--rounds",
        "1",
        "--steps",
        "1",
        // What it is worth on a machine that runs tests is nobody's business.
        "--force",
    ]);
    assert!(out.contains("GB/s") && out.contains("saved       here.toml"), "{out}");
    for network in ["digits", "bytes_gpt", "mlp_mnist", "cifar_cnn", "tiny_gpt"] {
        let line = out.lines().find(|l| l.starts_with(network)).expect("predicted beside measured");
        assert_eq!(line.split_whitespace().count(), 9, "{line}");
    }
    assert!(lab.text("here.toml").contains("1 rounds do not show whether times agree"));
    let out = lab.ok(&["compile", "recipe.toml"]);
    assert!(out.contains("model on here"), "{out}");
    assert!(!out.contains("describes another machine"), "{out}");
}

#[test]
fn the_byte_level_example_learns() {
    let root = env!("CARGO_MANIFEST_DIR");
    let lab = Lab::new();
    let recipe = std::fs::read_to_string(format!("{root}/examples/bytes_gpt/recipe.toml")).unwrap();
    // Fewer files, so that the test set is small; everything else as it is.
    let files = "files = [\"../../compiler/**/*.rs\", \"../../runtime/**/*.rs\"]";
    assert!(recipe.contains(files));
    let recipe =
        recipe.replace(files, &format!("files = [\"{root}/runtime/plan/src/**/*.rs\"]")).replace(
            "model = \"model.onnx\"",
            &format!("model = \"{root}/examples/bytes_gpt/model.onnx\""),
        );
    lab.write("recipe.toml", &recipe);
    let out = lab.ok(&["train", "recipe.toml", "--steps", "14", "--log", "log.jsonl"]);
    assert!(out.contains("test loss: ") && out.contains("test accuracy: "), "{out}");
    let losses: Vec<f64> = lab
        .text("log.jsonl")
        .lines()
        .map(|line| {
            let v: serde_json::Value = serde_json::from_str(line).expect("an object");
            v["loss"].as_f64().expect("a number")
        })
        .collect();
    // At first every byte is about as likely as any other.
    assert!((losses[0] - 256f64.ln()).abs() < 0.2, "{losses:?}");
    assert!(losses[13] < losses[0] - 0.5, "{losses:?}");
}
