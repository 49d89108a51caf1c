//! `--set`: keys of a recipe from the command line.

use super::lab::Lab;
use super::{code, stderr};
use serde_json::Value;

fn summary(lab: &Lab, args: &[&str]) -> Value {
    let all = [&["compile", "recipe.toml", "--json"], args].concat();
    serde_json::from_str(&lab.ok(&all)).expect("one object")
}

#[test]
fn settings_take_the_place_of_keys() {
    let lab = Lab::with("steps = 4", "epochs = 2");
    let f32s = summary(&lab, &["--set", "precision.policy=f32"]);
    assert_eq!(f32s["summary"]["policy"], "f32");
    // A table that the recipe does not have, a list, and a key that excludes another.
    lab.ok(&[
        "train",
        "recipe.toml",
        "--set",
        "train.steps=3",
        "--set",
        "train.log=log.jsonl",
        "--set",
        "optimizer.lr = 0.25",
        "--set",
        "schedule.warmup=2",
        "--set",
        "data.files=[\"data.csv\", \"data.csv\"]",
        "--set",
        "train.out=there",
    ]);
    let rates: Vec<f64> = lab
        .text("log.jsonl")
        .lines()
        .map(|l| {
            serde_json::from_str::<Value>(l).expect("an object")["lr"].as_f64().expect("a rate")
        })
        .collect();
    assert_eq!(rates, [0.125, 0.25, 0.25]);
    assert!(lab.path("there/weights.safetensors").exists());
    // A flag wins, as it wins over the recipe.
    let both = summary(&lab, &["--set", "precision.policy=bf16", "--policy", "f32"]);
    assert_eq!(both["summary"]["policy"], "f32");
    // Elements of lists.
    lab.write(
        "recipe.toml",
        &(lab.text("recipe.toml") + "[precision]\npins = [{ op = \"fc1*\", dtype = \"f32\" }]\n"),
    );
    let set = ["--set", "precision.pins.0.op=nothing*"];
    assert!(lab.fails(&[&["compile", "recipe.toml"][..], &set].concat()).1.contains("nothing*"));
}

/// What is wrong is said as of the file, at the setting.
#[test]
fn faults_of_settings_are_shown_where_they_were_typed() {
    let lab = Lab::new();
    let mut said = String::new();
    for setting in [
        "optimizer.lrr=0.1",
        "optimizr.lr=0.1",
        "optimizer.lr=fast",
        "optimizer.lr=-1",
        "optimizer.lr.x=1",
        "precision.policy=bf17",
        "precision.pins=[1",
        "train.epochs",
        "data.batch=1000",
        "model=gone.onnx",
    ] {
        let (_, text) = lab.fails(&["check", "recipe.toml", "--set", setting]);
        said += &format!("{setting}\n{text}\n");
    }
    insta::assert_snapshot!(said);
    let both = ["--set", "train.steps=1", "--set", "train.epochs=1"];
    let (code, text) = lab.fails(&[&["train", "recipe.toml"], &both[..]].concat());
    assert!(code == "P0107" && text.contains("--set:1"), "{text}");
}

#[test]
fn every_command_that_reads_a_recipe_takes_settings() {
    let lab = Lab::new();
    for args in [
        &["compile", "recipe.toml"][..],
        &["train", "recipe.toml"],
        &["eval", "recipe.toml"],
        &["grad", "recipe.toml", "-o", "g.safetensors"],
        &["show", "recipe.toml"],
        &["compare", "recipe.toml"],
        &["profile", "recipe.toml"],
        &["blame", "recipe.toml", "--step", "1"],
        &["check", "recipe.toml"],
    ] {
        let (code, text) = lab.fails(&[args, &["--set", "data.file=gone.csv"]].concat());
        assert!(text.contains("gone.csv"), "{args:?}: {code} {text}");
    }
    for file in ["model.pir", "recipe.plan"] {
        lab.ok(&["compile", "recipe.toml"]);
        for command in ["show", "check"] {
            assert_eq!(lab.fails(&[command, file, "--set", "a=1"]).0, "P0011");
        }
    }
    let o = lab.run(&["explain", "recipe.plan", "--set", "a=1"]);
    assert_eq!(code(&o), 2, "{}", stderr(&o));
}
