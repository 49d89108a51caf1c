//! Signals: what ends a run leaves a checkpoint from which the run goes on to the bit.

use super::lab::Lab;
use super::replays;
use super::running::{Running, shell_ok, until};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;

const INT: u32 = 2;
const TERM: u32 = 15;
/// More steps than any of these runs takes.
const ENDLESS: &str = "steps = 16000000";

/// Dropout, running means, three batches a step, a loss scale that moves, averages, and a place
/// within an epoch of a shuffled order; one thread, so that nothing else runs.
fn noisy(length: &str) -> Lab {
    let lab = replays::lab();
    let recipe = lab.text("recipe.toml");
    let recipe = recipe
        // A rate that does not depend on where the run ends.
        .replace("kind = \"cosine\"\n", "kind = \"cosine\"\nsteps = 400\n")
        .replace("steps = 14", length)
        .replace("checkpoint = 5\n", "");
    lab.write("recipe.toml", &recipe);
    lab
}

/// The step that standard error speaks of, and the command that it gives.
fn told(text: &str) -> (u64, String) {
    let step = text.split(" ended the run after step ").nth(1).unwrap_or_else(|| panic!("{text}"));
    let step = step.split(' ').next().expect("a word").parse().expect("a number");
    let command = text.split("to go on:\n").nth(1).unwrap_or_else(|| panic!("{text}"));
    (step, command.trim().to_string())
}

#[test]
fn a_run_that_a_signal_ends_goes_on_to_the_bit() {
    for (name, code) in [("INT", 130), ("TERM", 143)] {
        let half = noisy(ENDLESS);
        let mut run = Running::start(&half, &["train", "recipe.toml", "--blame", "0"]);
        run.logged(&half, "log.jsonl", 7);
        run.signal(name);
        assert_eq!(run.ended(), code, "{}", half.text("stderr"));
        let (step, command) = told(&half.text("stderr"));
        assert!(half.text("stderr").contains(&format!("SIG{name} ended the run")));
        let file = format!("trained/checkpoint-{step}.safetensors");
        assert!(half.text("stdout").contains(&format!("saved       {file}")));
        assert!(!half.path("trained/weights.safetensors").exists(), "the run has not ended");
        assert!(
            command.ends_with(&format!(" train recipe.toml --blame 0 --resume {file}")),
            "{command}"
        );
        // Four steps more, and the same without an interruption.
        let recipe = half.text("recipe.toml");
        let length = format!("steps = {}", step + 4);
        half.write("recipe.toml", &recipe.replace(ENDLESS, &length));
        let out = shell_ok(&half, &command);
        assert!(out.contains(&format!("resumes     {file}, after step {step}")), "{out}");
        let whole = noisy(&length);
        whole.ok(&["train", "recipe.toml", "--blame", "0"]);
        for file in ["weights", "ema"] {
            let file = format!("trained/{file}.safetensors");
            assert!(half.read(&file) == whole.read(&file), "{name}: {file}");
        }
        let log = |lab: &Lab| -> Vec<serde_json::Value> {
            let text = lab.text("log.jsonl");
            let line = |l: &str| -> serde_json::Value {
                let mut line: serde_json::Value = serde_json::from_str(l).expect("an object");
                line["seconds"] = 0.into();
                line
            };
            text.lines().map(line).collect()
        };
        let (a, b) = (log(&half), log(&whole));
        assert!(a == b, "{name}: losses, scales and skipped steps");
        assert!(a.iter().any(|l| l["skipped"] == true), "the scale moved");
    }
}

#[test]
fn a_checkpoint_is_written_when_it_is_asked_for() {
    let lab = Lab::with("steps = 4", &format!("{ENDLESS}\nlog = \"log.jsonl\""));
    let mut run = Running::start(&lab, &["train", "recipe.toml", "--json"]);
    run.logged(&lab, "log.jsonl", 3);
    let mut seen = vec![];
    for _ in 0..2 {
        run.signal("USR1");
        let file = until("a checkpoint", || {
            let names = fs::read_dir(lab.path("trained")).expect("a folder");
            let names =
                names.map(|e| e.expect("an entry").file_name().into_string().expect("UTF-8"));
            names.filter(|n| n.ends_with(".safetensors")).find(|n| !seen.contains(n))
        });
        let step: usize =
            file["checkpoint-".len()..].split('.').next().expect("a part").parse().expect("a step");
        // It goes on.
        run.logged(&lab, "log.jsonl", step + 3);
        seen.push(file);
    }
    run.signal("TERM");
    assert_eq!(run.ended(), 143);
    let errors = lab.text("stderr");
    assert_eq!(errors.matches("checkpoint asked for by SIGUSR1: ").count(), 2, "{errors}");
    let object: serde_json::Value = serde_json::from_str(&lab.text("stdout")).expect("one object");
    assert_eq!((&object["ok"], &object["interrupted"]), (&false.into(), &"SIGTERM".into()));
    assert!(object["resume"].as_str().expect("a command").contains("--resume trained/checkpoint-"));
    assert_eq!(object["saved"].as_array().expect("a list").len(), 4, "three and the log: {object}");
}

/// The log is a pipe that nobody reads, so that the first step never ends.
#[test]
fn a_second_signal_ends_at_once() {
    let lab = Lab::with("steps = 4", &format!("{ENDLESS}\nlog = \"log.jsonl\""));
    let pipe = lab.path("log.jsonl");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("`mkfifo` is there").success());
    let (read_and_write, nonblocking) = (true, 0o4000);
    let mut full = File::options()
        .read(read_and_write)
        .write(read_and_write)
        .custom_flags(nonblocking)
        .open(&pipe)
        .expect("a pipe");
    while full.write(&[b'\n'; 512]).is_ok() {}
    while full.write(b"\n").is_ok() {}
    let run = Running::start(&lab, &["train", "recipe.toml"]);
    run.hears(INT);
    run.hears(TERM);
    run.signal("INT");
    run.signal("TERM");
    assert_eq!(run.ended(), 143);
    assert_eq!(lab.text("stderr"), "");
    let left = fs::read_dir(lab.path("trained")).expect("a folder");
    let left: Vec<_> = left.map(|e| e.expect("an entry").file_name()).collect();
    assert_eq!(left, [".lock"], "nothing was finished");
}

/// The recipe is a pipe, so that the command is still reading it.
#[test]
fn a_signal_before_the_first_step_ends_at_once() {
    let lab = Lab::new();
    let pipe = lab.path("pipe.toml");
    assert!(Command::new("mkfifo").arg(&pipe).status().expect("`mkfifo` is there").success());
    for (name, number) in [("INT", 2), ("TERM", 15)] {
        let run = Running::start(&lab, &["train", "pipe.toml"]);
        // Opening waits for the reader.
        let held = File::options().write(true).open(&pipe).expect("a pipe");
        run.signal(name);
        assert_eq!(run.ended(), -128 - number);
        drop(held);
    }
    assert!(!lab.path("trained").exists());
}
