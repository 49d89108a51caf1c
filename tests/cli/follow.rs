//! What is seen of a run: lines of progress, the log, and what to do next.

use super::lab::Lab;
use super::{code, stderr, stdout};
use serde_json::Value;

/// Speeds and times are the machine's.
fn plain(text: &str) -> String {
    let mut out = String::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split("  ").collect();
        let kept = words.iter().map(|w| match w {
            w if w.ends_with("/s") => {
                let (speed, unit) = w.split_once(' ').expect("a number and its unit");
                let digits = speed.trim_end_matches(['k', 'M', 'G']);
                assert!(digits.parse::<f64>().expect("a speed") > 0.0, "{line}");
                format!("[speed] {unit}")
            }
            w if w.ends_with("left") => "[time] left".into(),
            w => w.to_string(),
        });
        out += &kept.collect::<Vec<_>>().join("  ");
        out.push('\n');
    }
    out
}

#[test]
fn without_a_terminal_there_are_lines() {
    let lab = Lab::with("steps = 4", "steps = 10\naccumulate = 2");
    lab.write("recipe.toml", &(lab.text("recipe.toml") + "[schedule]\nwarmup = 2\n"));
    let args = ["train", "recipe.toml", "--policy", "f32", "--progress", "0"];
    let o = lab.run(&args);
    assert_eq!(code(&o), 0, "{}", stderr(&o));
    insta::assert_snapshot!(plain(&stderr(&o)));
    // The first step and the last are shown however short the run; nothing else within the day.
    let o = lab.run(&["train", "recipe.toml", "--policy", "f32", "--progress", "86400"]);
    let shown: Vec<String> = stderr(&o).lines().map(|l| l[..10].to_string()).collect();
    assert_eq!(shown, ["step  1/10", "step 10/10"]);
    // Beside an object, too, which standard output keeps for itself.
    let o = lab.run(&[&args[..], &["--json"]].concat());
    assert_eq!(stderr(&o).lines().count(), 10);
    assert!(serde_json::from_str::<Value>(&stdout(&o)).is_ok());
    let bad = lab.run(&["train", "recipe.toml", "--progress=-1"]);
    assert!(code(&bad) == 2 && stderr(&bad).contains("a number of seconds"), "{}", stderr(&bad));
}

#[test]
fn skips_and_scales_are_in_the_lines() {
    let scale = "[loss_scale]\nmode = \"dynamic\"\ninit = 3e38\nbackoff = 0.99\n[train]";
    let lab = Lab::with("[train]", scale);
    let o = lab.run(&["train", "recipe.toml", "--policy", "f16", "--progress", "0"]);
    let text = stderr(&o);
    let last = text.lines().find(|l| l.starts_with("step 4/4")).expect("a line");
    assert!(last.contains("scale 2.911e38  skipped 4"), "{last}");
}

#[test]
fn quiet_says_nothing_of_what_went_well() {
    let lab = Lab::new();
    for args in [
        &["train", "recipe.toml", "--policy", "f32"][..],
        &["compile", "recipe.toml", "--policy", "f32"],
        &["grad", "recipe.toml", "-o", "g.safetensors", "--policy", "f32"],
    ] {
        let o = lab.run(&[args, &["--quiet"]].concat());
        assert_eq!((code(&o), stdout(&o), stderr(&o)), (0, String::new(), String::new()));
    }
    let o = lab.run(&["train", "recipe.toml", "-q", "--json"]);
    assert!(serde_json::from_str::<Value>(&stdout(&o)).is_ok());
    assert_eq!(stderr(&o), "");
    // Faults are said, and what a command prints is what it is for.
    assert_eq!(lab.fails(&["train", "gone.toml", "-q"]).0, "P0100");
    assert!(!lab.ok(&["show", "model.pir", "-q"]).is_empty());
}

/// The log's rate is the one that the update took: the weights of SGD say which that was.
#[test]
fn the_log_says_rate_and_place() {
    let lab = Lab::with("steps = 4", "steps = 6\nlog = \"log.jsonl\"");
    let schedule = "[schedule]\nkind = \"cosine\"\nwarmup = 2\nfinal_ratio = 0.1\n";
    lab.write("recipe.toml", &(lab.text("recipe.toml") + schedule));
    lab.ok(&["train", "recipe.toml", "--policy", "f32"]);
    let lines: Vec<Value> = lab
        .text("log.jsonl")
        .lines()
        .map(|l| serde_json::from_str(l).expect("an object"))
        .collect();
    let get =
        |key: &str| lines.iter().map(|l| l[key].as_f64().expect("a number")).collect::<Vec<_>>();
    let cosine = |t: f64| 0.05 + 0.45 * 0.5 * (1.0 + (std::f64::consts::PI * t).cos());
    let want = [0.25, 0.5, cosine(0.0), cosine(0.25), cosine(0.5), cosine(0.75)];
    for (lr, want) in get("lr").iter().zip(want) {
        assert!((lr - want).abs() < 1e-6 * want, "{lr} {want}");
    }
    // 24 rows in batches of four are six batches an epoch.
    let sixth = |n: u32| f64::from(n) / 6.0;
    assert_eq!(get("epoch"), [sixth(1), sixth(2), sixth(3), sixth(4), sixth(5), 1.0]);
    assert_eq!(get("rows"), [4.0, 8.0, 12.0, 16.0, 20.0, 24.0]);
    assert!(lab.text("log.jsonl").contains("\"lr\":0.25,"), "{}", lab.text("log.jsonl"));
}

/// Every command of the summary is run as it stands.
#[test]
fn the_summary_ends_with_what_to_do_next() {
    let lab = Lab::with("steps = 4", "steps = 4\ncheckpoint = 2");
    lab.write(
        "recipe.toml",
        &lab.text("recipe.toml").replace("batch = 4", "batch = 4\nsplit = 0.25"),
    );
    std::fs::create_dir(lab.path("my runs")).unwrap();
    let out = lab.ok(&["train", "recipe.toml", "--out", "my runs/one"]);
    let said = |head: &str| {
        let line = out.lines().find(|l| l.starts_with(head)).unwrap_or_else(|| panic!("{out}"));
        line.to_string()
    };
    let commands: Vec<&str> = out
        .lines()
        .filter_map(|l| l.trim_start_matches("next").trim_start().split_once("  # "))
        .map(|c| c.0)
        .collect();
    assert_eq!(
        commands,
        [
            "precast eval recipe.toml --weights 'my runs/one/weights.safetensors'",
            "precast train recipe.toml --resume 'my runs/one/checkpoint-4.safetensors' --steps 8 \
             --out 'my runs/one'",
            "model.load_state_dict(safetensors.torch.load_file(\"my runs/one/weights.safetensors\"), \
             strict=False)",
        ]
    );
    let shell = |line: &str| {
        let line = line.replacen("precast", &format!("'{}'", env!("CARGO_BIN_EXE_precast")), 1);
        let o = std::process::Command::new("sh")
            .args(["-c", &line])
            .current_dir(lab.dir.path())
            .output()
            .expect("a shell");
        assert_eq!(code(&o), 0, "{line}: {}", stderr(&o));
        stdout(&o)
    };
    let tested = shell(commands[0]);
    assert!(tested.contains(&said("test loss: ")), "{tested}");
    assert!(tested.contains(&said("test accuracy: ")), "{tested}");
    assert!(shell(commands[1]).contains("trained     8 steps"));
}

#[test]
fn eval_tests_what_it_is_given() {
    let lab = Lab::with("steps = 4", "steps = 30\ncheckpoint = 10");
    lab.ok(&["train", "recipe.toml", "--policy", "f32"]);
    let loss = |args: &[&str]| {
        let all = [&["eval", "recipe.toml", "--policy", "f32", "--json"], args].concat();
        let v: Value = serde_json::from_str(&lab.ok(&all)).expect("one object");
        assert_eq!((&v["rows"], &v["held_back"]), (&24.into(), &false.into()));
        v["loss"].as_f64().expect("a number")
    };
    let (early, last) = (loss(&["--weights", "trained/checkpoint-10.safetensors"]), loss(&[]));
    assert!(last < early, "{early} {last}");
    assert_eq!(last, loss(&["--weights", "trained/checkpoint-30.safetensors", "--all"]));
    // Weights of another model, of a part of this one, and none at all.
    let part = "w1";
    let file = precast_runtime::TensorFile::open(&lab.path("trained/weights.safetensors")).unwrap();
    let w1 = file.tensor(part).unwrap();
    let table =
        [(part.to_string(), (precast_plan::DType::F32, w1.shape.clone(), w1.bytes.into_owned()))];
    precast_runtime::tensors::write_tensors(
        &lab.path("part.safetensors"),
        &Default::default(),
        &table.into(),
    )
    .unwrap();
    let (code, text) = lab.fails(&["eval", "recipe.toml", "--weights", "part.safetensors"]);
    assert!(code == "R0301" && text.contains("lack `b1`, `w2`"), "{text}");
    let (code, text) = lab.fails(&["eval", "recipe.toml", "--weights", "gone.safetensors"]);
    assert!(text.contains("gone.safetensors"), "{code} {text}");
}

#[test]
fn kernels_are_timed_beside_their_predictions() {
    let lab = Lab::with("steps = 4", "steps = 4\naccumulate = 2\nlog = \"log.jsonl\"");
    let args = ["train", "recipe.toml", "--policy", "f32", "--device", "cpu-generic"];
    let losses = || -> Vec<Value> {
        let text = lab.text("log.jsonl");
        text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap()["loss"].clone()).collect()
    };
    lab.ok(&args);
    let plain = losses();
    let out = lab.ok(&[&args[..], &["--profile"]].concat());
    assert_eq!(losses(), plain, "timing changes nothing");
    let heads: Vec<&str> =
        out.lines().filter(|l| l.contains(" measured ")).map(|l| &l[..6]).collect();
    assert_eq!(heads.iter().map(|h| h.trim()).collect::<Vec<_>>(), ["kind", "layer", "kernel"]);
    assert!(out.contains("cpu-generic describes another machine"), "{out}");
    let v: Value =
        serde_json::from_str(&lab.ok(&[&args[..], &["--profile", "--json"]].concat())).unwrap();
    let profile = &v["profile"];
    assert_eq!(profile["runs"], 8, "every batch of every step");
    let sum = |list: &str, what: &str| -> f64 {
        let list = profile[list].as_array().expect("a list");
        list.iter().map(|k| k[what].as_f64().expect("a number")).sum()
    };
    for list in ["families", "layers", "kernels"] {
        for what in ["measured_ns", "predicted_ns"] {
            let all = profile[what].as_f64().expect("a number");
            assert!((sum(list, what) - all).abs() <= 1e-9 * all, "{list} {what}: {profile}");
        }
    }
    // What is predicted for a step is what its kernels are predicted to take.
    let step = v["summary"]["predicted_ns"].as_f64().expect("a number");
    assert!((profile["predicted_ns"].as_f64().unwrap() - step).abs() <= 1e-6 * step);
    assert!(profile["measured_ns"].as_f64().unwrap() > 0.0);
    assert!(serde_json::from_str::<Value>(&lab.ok(&[&args[..], &["--json"]].concat())).unwrap()["profile"].is_null());
}

#[test]
fn explain_begins_with_what_costs_most() {
    let lab = Lab::fixture("mlp_mnist");
    lab.ok(&["compile", "recipe.toml", "--device", "cpu-generic", "--policy", "f32"]);
    let explain = |args: &[&str]| lab.ok(&[&["explain", "recipe.plan"], args].concat());
    let v: Value = serde_json::from_str(&explain(&["--json"])).expect("one object");
    let costs = |list: &Value, name: &str| -> Vec<(String, f64)> {
        let list = list.as_array().expect("a list").iter();
        list.map(|d| (d[name].as_str().unwrap().to_string(), d["cost_ns"].as_f64().unwrap()))
            .collect()
    };
    let layers = costs(&v["layers"], "name");
    assert!(layers.is_sorted_by(|a, b| a.1 >= b.1), "{layers:?}");
    // Without casts, layers add up to the step.
    let (sum, step) =
        (layers.iter().map(|l| l.1).sum::<f64>(), v["summary"]["predicted_ns"].as_f64().unwrap());
    assert!((sum - step).abs() <= 1e-3 * step, "{sum} {step}");
    let named: Vec<String> = costs(&v["decisions"], "op").into_iter().map(|d| d.0).collect();
    let text = explain(&[]);
    let (layers_text, operations) = text.split_once("\noperations\n").expect("two lists");
    assert!(layers_text.contains(&format!("\nlayers\n{}", layers[0].0)), "{text}");
    let ops = |text: &str| -> Vec<String> {
        text.lines().map(|l| l.split("  ").next().unwrap().to_string()).collect()
    };
    let sorted = ops(operations);
    let in_order = explain(&["--in-order"]);
    let in_order = ops(in_order.split_once("\noperations\n").expect("two lists").1);
    assert_ne!(sorted, in_order);
    let at = |name: &String| named.iter().position(|n| n == name);
    assert!(in_order.is_sorted_by_key(at), "{in_order:?}");
    assert_eq!(sorted.len(), in_order.len());
}
