//! Checkpoints: a resumed run is the run; another run's checkpoint is refused; an interrupted write
//! leaves what was there.

use super::lab::Lab;
use super::small::{MODEL, table};
use super::{code, stderr};

const TRAIN: &str = "steps = 4\nlog = \"log.jsonl\"\ncheckpoint = 2\nema = 0.9";

/// The log without the time each step took.
fn log(lab: &Lab) -> Vec<String> {
    let lines = lab.text("log.jsonl");
    let lines = lines.lines().map(|line| {
        let mut v: serde_json::Value = serde_json::from_str(line).expect("an object");
        assert!(v.as_object_mut().expect("an object").remove("seconds").is_some());
        v.to_string()
    });
    lines.collect()
}

fn whole() -> Lab {
    let lab = Lab::with("steps = 4", TRAIN);
    lab.ok(&["train", "recipe.toml"]);
    lab
}

#[test]
fn a_resumed_run_is_the_run() {
    let whole = whole();
    let half = Lab::with("steps = 4", TRAIN);
    half.ok(&["train", "recipe.toml", "--steps", "2"]);
    assert_eq!(log(&half), log(&whole)[..2]);
    assert_ne!(half.read("trained/weights.safetensors"), whole.read("trained/weights.safetensors"));
    let resume = ["train", "recipe.toml", "--resume", "trained/checkpoint-2.safetensors"];
    let out = half.ok(&resume);
    assert!(out.contains("trained     4 steps"), "{out}");
    let same = |what: &str| {
        for file in ["weights", "ema", "checkpoint-4"] {
            let file = format!("trained/{file}.safetensors");
            assert!(half.read(&file) == whole.read(&file), "{what}: {file}");
        }
        assert_eq!(log(&half), log(&whole), "{what}");
    };
    same("resumed");
    // Again, from the same checkpoint: the log's later lines are taken again, and a line that an
    // interruption cut off is no line.
    half.write("log.jsonl", &(half.text("log.jsonl") + "{\"step\":5,\"lo"));
    half.ok(&resume);
    same("resumed twice");
    let out = half.ok(&["train", "recipe.toml", "--resume", "trained/checkpoint-4.safetensors"]);
    assert!(out.contains("trained     nothing: the run had ended at step 4"), "{out}");
    same("ended");
}

#[test]
fn a_checkpoint_of_another_run_is_refused() {
    let lab = whole();
    let (before, lines) = (lab.read("trained/weights.safetensors"), lab.text("log.jsonl"));
    let recipe = lab.text("recipe.toml");
    let resume = ["train", "recipe.toml", "--resume", "trained/checkpoint-2.safetensors"];
    let refused = |what: &str, want: &str| {
        let (code, text) = lab.fails(&resume);
        assert_eq!(code, want, "{what}: {text}");
        assert!(text.contains("checkpoint-2.safetensors"), "{what}: {text}");
        assert!(text.contains(what), "{what}: {text}");
        assert!(lab.read("trained/weights.safetensors") == before, "{what}");
        assert_eq!(lab.text("log.jsonl"), lines, "{what}");
    };
    for (old, new, what, want) in [
        ("seed = 3", "seed = 4", "`train.seed` 3 → 4", "P0034"),
        ("batch = 4", "batch = 4\nsplit = 0.25", "`data.split` 0.0 → 0.25", "P0034"),
        ("batch = 4", "batch = 4\nshuffle = false", "`data.shuffle` true → false", "P0034"),
        (
            "kind = \"sgd\"\nlr = 0.5\nmomentum = 0.9",
            "kind = \"adam\"\nlr = 0.5",
            "`optimizer.kind` sgd → adam",
            "P0034",
        ),
        ("momentum = 0.9", "", "`optimizer.momentum` 0.9 → 0.0", "P0033"),
    ] {
        lab.write("recipe.toml", &recipe.replace(old, new));
        refused(what, want);
    }
    lab.write("recipe.toml", &recipe.replace("batch = 4", "batch = 8"));
    lab.write(
        "model.pir",
        &MODEL
            .replace("[4,3] @x", "[8,3] @x")
            .replace("f32[4,3]\n  %w1", "f32[8,3]\n  %w1")
            .replace("shape=[4,4]", "shape=[8,4]"),
    );
    refused("`data.batch` 4 → 8", "P0034");
    lab.write("recipe.toml", &recipe);
    lab.write("model.pir", &MODEL.replace("uniform(0.5, 2)", "uniform(0.5, 3)"));
    refused("the model `model.pir`: other content", "P0033");
    lab.write("model.pir", MODEL);
    lab.write("data.csv", &table(28));
    refused("the data `data.csv`: ", "P0033");
    // What is allowed still has to fit.
    let changed = [&resume[..], &["--resume-changed"]].concat();
    let (code, text) = lab.fails(&changed);
    assert!(code == "R0510" && text.contains("rows = 24"), "{text}");
    lab.write("data.csv", &table(24));
    lab.write("recipe.toml", &recipe.replace("momentum = 0.9", ""));
    let (code, text) = lab.fails(&changed);
    assert!(code == "R0509" && text.contains("b1.momentum"), "{text}");
    lab.write("recipe.toml", &recipe);
    lab.write("data.csv", &table(24));
    lab.ok(&resume);
    // A file that is no checkpoint.
    let not = ["train", "recipe.toml", "--resume", "trained/weights.safetensors"];
    assert_eq!(lab.fails(&not).0, "R0508");
}

/// The system refuses the rest of a file, as a full disk would.
#[cfg(unix)]
#[test]
fn a_refused_write_leaves_the_older_file() {
    let lab = Lab::fixture("mlp_mnist");
    let recipe = lab.text("recipe.toml");
    lab.write("recipe.toml", &recipe.replace("steps = 2", "steps = 1\ncheckpoint = 1"));
    lab.ok(&["train", "recipe.toml"]);
    let files = ["trained/checkpoint-1.safetensors", "trained/weights.safetensors"];
    let before = files.map(|f| lab.read(f));
    // Every other learning rate would write other bytes.
    lab.write("recipe.toml", &lab.text("recipe.toml").replace("lr = 0.1", "lr = 0.2"));
    let script = format!(
        "ulimit -c 0; ulimit -f 100; exec '{}' train recipe.toml",
        env!("CARGO_BIN_EXE_precast")
    );
    let o = std::process::Command::new("sh")
        .args(["-c", &script])
        .current_dir(lab.dir.path())
        .output()
        .expect("a shell");
    // The system's signal for it is no end of the process, but an error that says what to do.
    assert_eq!(code(&o), 1, "{:?}", o.status);
    let said = stderr(&o);
    assert!(said.contains("error[R0206]") && said.contains("checkpoint-1"), "{said}");
    assert!(said.contains("`ulimit -f`"), "{said}");
    for (file, bytes) in files.iter().zip(&before) {
        assert!(lab.read(file) == *bytes, "{file} is damaged");
    }
    let partial = lab.path("trained/checkpoint-1.safetensors.partial");
    assert!(!partial.exists());
    lab.ok(&["train", "recipe.toml"]);
    assert!(lab.read(files[1]) != before[1]);
    assert!(!partial.exists());
}
