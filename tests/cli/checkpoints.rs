//! Which checkpoints there are, which one is taken, and what may have changed since.

use super::lab::Lab;
use super::small::table;
use std::collections::BTreeMap;
use std::fs;

/// Names of the checkpoints in the run's folder, in order of their steps.
fn names(lab: &Lab) -> Vec<String> {
    let entries = fs::read_dir(lab.path("trained")).expect("a folder");
    let names = entries.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8"));
    let mut names: Vec<String> = names.filter(|n| n.starts_with("checkpoint-")).collect();
    names.sort_by_key(|n| (n.len(), n.clone()));
    names
}

fn of_steps(steps: &[u64]) -> Vec<String> {
    steps.iter().map(|s| format!("checkpoint-{s}.safetensors")).collect()
}

/// A run of ten steps with a checkpoint every two.
fn ten(more: &str) -> Lab {
    Lab::with("steps = 4", &format!("steps = 10\ncheckpoint = 2\n{more}"))
}

/// The test loss that a checkpoint says it has.
fn test_loss(lab: &Lab, step: u64) -> Option<f64> {
    let bytes = lab.read(&format!("trained/checkpoint-{step}.safetensors"));
    let (_, meta) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let test = meta.metadata().as_ref().expect("metadata").get("precast.test")?.clone();
    let test: serde_json::Value = serde_json::from_str(&test).expect("an object");
    test["loss"].as_f64()
}

#[test]
fn the_newest_and_the_best_are_kept() {
    let split = |lab: &Lab| {
        lab.write(
            "recipe.toml",
            &lab.text("recipe.toml").replace("batch = 4", "batch = 4\nsplit = 0.25"),
        );
    };
    // A rate at which the test loss goes up and down.
    let all = ten("keep = 9");
    split(&all);
    all.ok(&["train", "recipe.toml"]);
    assert_eq!(names(&all), of_steps(&[2, 4, 6, 8, 10]));
    let losses: Vec<(u64, f64)> =
        [2, 4, 6, 8, 10].map(|s| (s, test_loss(&all, s).expect("measured"))).to_vec();
    let best = losses.iter().min_by(|a, b| a.1.total_cmp(&b.1)).expect("five").0;
    let lab = ten("keep = 2");
    split(&lab);
    let out = lab.ok(&["train", "recipe.toml"]);
    let mut want = vec![best, 8, 10];
    want.sort_unstable();
    want.dedup();
    assert_eq!(names(&lab), of_steps(&want), "{losses:?}");
    let line = out.lines().find_map(|l| l.strip_prefix("best        ")).expect("said");
    assert!(
        line.starts_with(&format!("trained/checkpoint-{best}.safetensors, test loss ")),
        "{line}"
    );
    let saved = out.lines().filter(|l| l.starts_with("saved       trained/checkpoint-")).count();
    assert_eq!(saved, want.len(), "what was removed is not said to be there: {out}");
    // What is kept, and measuring it, is nothing to the weights.
    let plain = ten("keep = 0");
    split(&plain);
    plain.ok(&["train", "recipe.toml"]);
    assert_eq!(names(&plain), of_steps(&[2, 4, 6, 8, 10]));
    assert_eq!(test_loss(&plain, 10), None);
    let weights = "trained/weights.safetensors";
    assert!(lab.read(weights) == plain.read(weights));
    // A run that goes on knows which was the best before.
    let half = ten("keep = 1");
    split(&half);
    half.ok(&["train", "recipe.toml", "--steps", "6"]);
    half.ok(&["train", "recipe.toml", "--resume", "auto"]);
    let mut want = vec![best, 10];
    want.dedup();
    assert_eq!(names(&half), of_steps(&want), "{losses:?}");
    assert!(half.read(weights) == plain.read(weights));
}

/// Without a word of the recipe the three newest and the best stay, and whatever is not of this run.
#[test]
fn three_stay_unless_the_recipe_says_otherwise() {
    let lab = ten("");
    lab.ok(&["train", "recipe.toml"]);
    assert_eq!(names(&lab), of_steps(&[6, 8, 10]));
    // Of another run, under a step that this one does not take again: in a folder of one's own.
    let other = Lab::with("lr = 0.5", "lr = 0.25");
    let longer = other.text("recipe.toml").replace("steps = 4", "steps = 10\ncheckpoint = 5");
    other.write("recipe.toml", &longer);
    other.ok(&["train", "recipe.toml"]);
    let strange = other.read("trained/checkpoint-5.safetensors");
    fs::write(lab.path("trained/checkpoint-5.safetensors"), &strange).expect("written");
    fs::write(lab.path("trained/checkpoint-best.safetensors"), &strange).expect("written");
    lab.ok(&["train", "recipe.toml", "--resume", "auto", "--steps", "18"]);
    let mut want = of_steps(&[5, 14, 16, 18]);
    want.push("checkpoint-best.safetensors".into());
    want.sort_by_key(|n| (n.len(), n.clone()));
    assert_eq!(names(&lab), want);
    assert!(lab.read("trained/checkpoint-5.safetensors") == strange);
    // What an earlier run leaves is set aside, and never takes the place of what was there.
    for (n, name) in ["old", "old2", "old3"].iter().enumerate() {
        let before = lab.read("trained/checkpoint-18.safetensors");
        lab.ok(&["train", "recipe.toml", "--steps", "18"]);
        for (m, other) in ["old", "old2", "old3"].iter().enumerate() {
            let file = lab.path(&format!("trained/checkpoint-18.safetensors.{other}"));
            assert_eq!(file.exists(), m <= n, "{name}: {other}");
        }
        assert!(lab.read("trained/checkpoint-18.safetensors") == before, "the same run");
    }
}

/// Whatever begins in the middle of a run asks whether it is that run.
#[test]
fn every_command_that_resumes_holds_the_run_against_the_checkpoint() {
    let lab = ten("");
    let commands: [&[&str]; 3] = [
        &["blame", "recipe.toml", "--step", "9", "--resume"],
        &["profile", "recipe.toml", "--steps", "1", "--resume"],
        &["train", "recipe.toml", "--resume"],
    ];
    let with = |command: &[&str], more: &[&str]| {
        command.iter().chain(more).map(ToString::to_string).collect::<Vec<String>>()
    };
    let run = |words: &[String]| lab.run(&words.iter().map(String::as_str).collect::<Vec<_>>());
    // Without a folder there is nothing to go on from.
    for command in &commands[..2] {
        let o = run(&with(command, &["auto"]));
        let out = super::stdout(&o);
        assert!(out.contains("resumes     nothing: trained has no checkpoint"), "{out}");
        assert!(!lab.path("trained").exists());
    }
    lab.ok(&["train", "recipe.toml"]);
    let recipe = lab.text("recipe.toml");
    let data = lab.text("data.csv");
    let file = "trained/checkpoint-8.safetensors";
    for command in commands {
        // `blame` takes the last of before its step.
        let taken = if command[0] == "blame" { 8 } else { 10 };
        let o = run(&with(command, &["auto"]));
        let said =
            format!("resumes     trained/checkpoint-{taken}.safetensors, after step {taken}");
        assert!(super::stdout(&o).contains(&said), "{}{}", super::stdout(&o), super::stderr(&o));
        let refused = |what: &str, code: &str, why: &str| {
            let o = run(&with(command, &[file]));
            let text = super::stderr(&o);
            assert!(text.contains(&format!("error[{code}]")), "{what}, {command:?}: {text}");
            assert!(text.contains(why), "{what}, {command:?}: {text}");
        };
        lab.write("recipe.toml", &recipe.replace("lr = 0.5", "lr = 0.25"));
        refused("rate", "P0033", "`optimizer.lr` 0.5 → 0.25");
        let o = run(&with(command, &[file, "--resume-changed", "--json"]));
        let object: serde_json::Value =
            serde_json::from_str(&super::stdout(&o)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(object["changed"], serde_json::json!(["`optimizer.lr` 0.5 → 0.25"]), "{object}");
        assert_eq!(object["resumed"], file, "{object}");
        lab.write("recipe.toml", &recipe.replace("seed = 3", "seed = 4"));
        refused("seed", "P0034", "`train.seed` 3 → 4");
        lab.write("recipe.toml", &recipe);
        lab.write("data.csv", &data.replacen('1', "2", 1));
        refused("data", "P0033", "the data `data.csv`: other content");
        lab.write("data.csv", &data);
    }
    // A profile computes in f32 whatever the policy; a replay does not.
    let policy = recipe.replace("[optimizer]", "[precision]\npolicy = \"bf16\"\n[optimizer]");
    lab.write("recipe.toml", &policy);
    lab.ok(&["profile", "recipe.toml", "--steps", "1", "--resume", file]);
    assert_eq!(lab.fails(&["blame", "recipe.toml", "--step", "9", "--resume", file]).0, "P0033");
}

#[test]
fn auto_takes_the_newest_that_is_whole() {
    let lab = ten("keep = \"all\"");
    let auto = ["train", "recipe.toml", "--resume", "auto"];
    // A script starts and restarts with the same command.
    let out = lab.ok(&auto);
    assert!(out.contains("resumes     nothing: trained has no checkpoint"), "{out}");
    let weights = lab.read("trained/weights.safetensors");
    // What a disk that lost its power, and one that turns bits, leave.
    let ten = lab.read("trained/checkpoint-10.safetensors");
    fs::write(lab.path("trained/checkpoint-10.safetensors"), &ten[..ten.len() / 2])
        .expect("written");
    let mut eight = lab.read("trained/checkpoint-8.safetensors");
    let last = eight.len() - 1;
    eight[last] ^= 1;
    fs::write(lab.path("trained/checkpoint-8.safetensors"), &eight).expect("written");
    let o = lab.run(&auto);
    let (out, text) = (super::stdout(&o), super::stderr(&o));
    assert!(
        out.contains("resumes     trained/checkpoint-6.safetensors, after step 6"),
        "{out}{text}"
    );
    assert_eq!(text.matches("warning[P0036]").count(), 2, "{text}");
    assert!(text.contains("checkpoint-10.safetensors") && text.contains("checksum"), "{text}");
    assert!(lab.read("trained/weights.safetensors") == weights);
    assert!(lab.read("trained/checkpoint-10.safetensors") == ten);
    // By its name a damaged one is refused.
    fs::write(lab.path("trained/checkpoint-8.safetensors"), &eight).expect("written");
    let named = ["train", "recipe.toml", "--resume", "trained/checkpoint-8.safetensors"];
    let (code, text) = lab.fails(&named);
    assert!(code == "R0508" && text.contains("--resume auto"), "{text}");
    // `blame` and `profile` read no other bytes either.
    let blame = ["blame", "recipe.toml", "--step", "9", "--resume", named[3]];
    assert_eq!(lab.fails(&blame).0, "R0508");
    let profile = ["profile", "recipe.toml", "--steps", "1", "--resume", named[3]];
    assert_eq!(lab.fails(&profile).0, "R0508");
    for step in [2, 4, 6, 8, 10] {
        lab.write(&format!("trained/checkpoint-{step}.safetensors"), "");
    }
    assert_eq!(lab.fails(&auto).0, "P0032");
}

#[test]
fn what_may_change_is_allowed_and_listed() {
    let lab = ten("log = \"log.jsonl\"");
    lab.ok(&["train", "recipe.toml", "--steps", "4"]);
    let recipe = lab.text("recipe.toml");
    let from = "trained/checkpoint-4.safetensors";
    let change = |changes: &[(&str, &str)]| {
        let mut text = recipe.clone();
        for (old, new) in changes {
            assert!(text.contains(old), "{old}");
            text = text.replace(old, new);
        }
        lab.write("recipe.toml", &text);
    };
    let resume = |more: &[&'static str]| {
        [&["train", "recipe.toml", "--out", "again", "--resume", from], more].concat()
    };
    // The same steps: a longer run, other comments and files, more or fewer checkpoints.
    change(&[("steps = 10", "keep = 1 # one\nsteps = 12"), ("log.jsonl", "other.jsonl")]);
    let out = lab.ok(&resume(&[]));
    assert!(out.contains("trained     12 steps") && !out.contains("changed"), "{out}");
    // Other steps.
    change(&[("lr = 0.5", "lr = 0.25"), ("[train]", "[train]\nclip_norm = 1.0")]);
    let (code, text) = lab.fails(&resume(&[]));
    assert_eq!(code, "P0033", "{text}");
    let listed = "\n  - `optimizer.lr` 0.5 → 0.25\n  - `train.clip_norm` not set → 1.0\n";
    assert!(text.contains(listed) && text.contains("--resume-changed"), "{text}");
    assert!(lab.path("again/weights.safetensors").exists(), "of the run before");
    let out = lab.ok(&resume(&["--resume-changed"]));
    assert!(
        out.contains(
            "changed     `optimizer.lr` 0.5 → 0.25\nchanged     `train.clip_norm` not set → 1.0\n"
        ),
        "{out}"
    );
    // Its own checkpoints are of the recipe as it is.
    let args = ["train", "recipe.toml", "--out", "again", "--resume", "auto", "--steps", "12"];
    let out = lab.ok(&args);
    assert!(out.contains("after step 10") && !out.contains("changed"), "{out}");
    // Another policy keeps another state beside the weights, and begins it.
    change(&[("[train]", "[precision]\npolicy = \"f16\"\n[train]")]);
    let (code, text) = lab.fails(&resume(&[]));
    assert!(code == "P0033" && text.contains("`precision.policy` auto → f16"), "{text}");
    lab.ok(&resume(&["--resume-changed"]));
    // And back: what only the other policy has is left.
    lab.write("recipe.toml", &recipe);
    let back = ["train", "recipe.toml", "--out", "back", "--resume"];
    let back = [&back[..], &["again/checkpoint-10.safetensors", "--steps", "12"]].concat();
    assert_eq!(lab.fails(&back).0, "P0033");
    lab.ok(&[&back[..], &["--resume-changed"]].concat());
    // Labels that were mended are other data with as many rows.
    lab.write("data.csv", &table(24).replacen(",1\n", ",0\n", 1));
    let (code, text) = lab.fails(&resume(&[]));
    assert!(code == "P0033" && text.contains("the data `data.csv`: other content"), "{text}");
    lab.ok(&resume(&["--resume-changed"]));
    lab.write("data.csv", &table(24));
    // A schedule that ends with the run is another one in a longer run.
    change(&[("[train]", "[schedule]\nkind = \"linear\"\n[train]")]);
    lab.ok(&["train", "recipe.toml", "--out", "linear"]);
    let longer = ["train", "recipe.toml", "--out", "linear", "--steps", "12", "--resume", "auto"];
    let (code, text) = lab.fails(&longer);
    assert!(code == "P0033" && text.contains("10 → 12 steps"), "{text}");
    let out = lab.ok(&[&longer[..], &["--resume-changed"]].concat());
    assert!(out.contains("trained     12 steps"), "{out}");
}

#[test]
fn a_run_that_moves_is_the_same_run() {
    let lab = ten("keep = \"all\"");
    lab.ok(&["train", "recipe.toml"]);
    let other = tempfile::tempdir().expect("a temporary folder");
    let moved = other.path().join("deep/er");
    fs::create_dir_all(moved.join("data")).expect("made");
    for (from, to) in [
        ("model.pir", "net.pir"),
        ("data.csv", "data/all.csv"),
        ("trained/checkpoint-4.safetensors", "from.safetensors"),
    ] {
        fs::copy(lab.path(from), moved.join(to)).expect("copied");
    }
    let recipe =
        lab.text("recipe.toml").replace("data.csv", "data/all.csv").replace("model.pir", "net.pir");
    fs::write(moved.join("recipe.toml"), recipe).expect("written");
    let o =
        super::command(&["train", "deep/er/recipe.toml", "--resume", "deep/er/from.safetensors"])
            .current_dir(other.path())
            .output()
            .expect("the binary runs");
    assert_eq!(super::code(&o), 0, "{}", super::stderr(&o));
    let weights = fs::read(moved.join("trained/weights.safetensors")).expect("saved");
    assert!(weights == lab.read("trained/weights.safetensors"));
}

/// Earlier versions wrote no hashes and no checksum.
#[test]
fn a_checkpoint_without_hashes_is_taken_with_a_warning() {
    let lab = ten("keep = \"all\"");
    lab.ok(&["train", "recipe.toml"]);
    let weights = lab.read("trained/weights.safetensors");
    let bytes = lab.read("trained/checkpoint-4.safetensors");
    let (_, meta) = safetensors::SafeTensors::read_metadata(&bytes).expect("a header");
    let old = ["precast.data", "precast.model", "precast.seed", "precast.step"];
    let meta = meta.metadata().clone().expect("metadata");
    let meta = meta.into_iter().filter(|(k, _)| old.contains(&k.as_str())).collect();
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a file");
    let tensors: BTreeMap<String, _> = file.tensors().into_iter().collect();
    let written = safetensors::serialize(&tensors, Some(meta)).expect("written");
    fs::write(lab.path("old.safetensors"), written).expect("written");
    let args = ["train", "recipe.toml", "--resume", "old.safetensors"];
    assert!(lab.warnings(&args).starts_with("warning[P0035]"));
    assert!(lab.read("trained/weights.safetensors") == weights);
    // What it does say is still held against the run.
    lab.write("recipe.toml", &lab.text("recipe.toml").replace("seed = 3", "seed = 4"));
    assert_eq!(lab.fails(&args).0, "R0510");
}

#[test]
fn a_folder_never_holds_checkpoints_of_two_runs() {
    let lab = ten("keep = 3");
    lab.ok(&["train", "recipe.toml"]);
    let before = lab.read("trained/checkpoint-10.safetensors");
    // A run that saves nothing leaves the one before as it was.
    let recipe = lab.text("recipe.toml");
    lab.write(
        "recipe.toml",
        &recipe.replace("lr = 0.5", "lr = 0.25").replace("checkpoint = 2\n", ""),
    );
    lab.ok(&["train", "recipe.toml"]);
    assert_eq!(names(&lab), of_steps(&[6, 8, 10]));
    lab.write("recipe.toml", &recipe.replace("lr = 0.5", "lr = 0.25"));
    let out = lab.ok(&["train", "recipe.toml", "--steps", "8"]);
    let aside = of_steps(&[6, 8, 10]).into_iter().map(|n| format!("{n}.old"));
    let mut want: Vec<String> = of_steps(&[4, 6, 8]).into_iter().chain(aside).collect();
    want.sort_by_key(|n| (n.len(), n.clone()));
    assert_eq!(names(&lab), want);
    assert!(lab.read("trained/checkpoint-10.safetensors.old") == before);
    assert!(out.contains("set aside   trained/checkpoint-10.safetensors.old"), "{out}");
    let out = lab.ok(&["train", "recipe.toml", "--resume", "auto"]);
    assert!(out.contains("after step 8"), "{out}");
    // Going on from an earlier step, the later ones will be taken again.
    lab.write(
        "recipe.toml",
        &recipe.replace("lr = 0.5", "lr = 0.25").replace("keep = 3", "keep = 9"),
    );
    lab.ok(&[
        "train",
        "recipe.toml",
        "--steps",
        "8",
        "--resume",
        "trained/checkpoint-6.safetensors",
    ]);
    let now: Vec<String> = names(&lab).into_iter().filter(|n| !n.contains(".old")).collect();
    assert_eq!(now, of_steps(&[6, 8]));
}

#[test]
fn a_checkpoint_that_cannot_be_written_ends_the_run() {
    let lab = Lab::with("steps = 4", "steps = 400\ncheckpoint = 2");
    fs::create_dir_all(lab.path("trained/checkpoint-2.safetensors.partial/x")).expect("made");
    let (code, text) = lab.fails(&["train", "recipe.toml"]);
    assert!(code == "R0206" && text.contains("checkpoint-2.safetensors"), "{text}");
    assert_eq!(text.matches("error[").count(), 1, "said once: {text}");
    assert!(!lab.path("trained/checkpoint-2.safetensors").exists());
}

/// The file is kept from being written until the test lets go of it.
#[cfg(target_os = "linux")]
#[test]
fn training_goes_on_while_a_checkpoint_is_written() {
    use super::running::Running;
    let lab = Lab::with("steps = 4", "steps = 6\ncheckpoint = 2\nlog = \"log.jsonl\"");
    fs::create_dir(lab.path("trained")).expect("made");
    let partial = lab.path("trained/checkpoint-2.safetensors.partial");
    let held = fs::File::create(partial).expect("made");
    held.lock().expect("locked");
    let mut run = Running::start(&lab, &["train", "recipe.toml"]);
    // Up to the step whose own checkpoint has to wait for this one.
    run.logged(&lab, "log.jsonl", 4);
    assert_eq!(names(&lab), ["checkpoint-2.safetensors.partial"]);
    drop(held);
    assert_eq!(run.ended(), 0, "{}", lab.text("stderr"));
    assert_eq!(names(&lab), of_steps(&[2, 4, 6]));
    let plain = Lab::with("steps = 4", "steps = 6");
    plain.ok(&["train", "recipe.toml"]);
    let weights = "trained/weights.safetensors";
    assert!(lab.read(weights) == plain.read(weights));
    // What was copied at step 2 is the state after step 2.
    let two = Lab::with("steps = 4", "steps = 6\ncheckpoint = 2");
    two.ok(&["train", "recipe.toml", "--steps", "2"]);
    let file = "trained/checkpoint-2.safetensors";
    assert!(lab.read(file) == two.read(file));
}
