//! What `train` says of memory holds: the process is measured by the system.

use super::code;
use super::lab::Lab;
use super::small::table;
use serde_json::Value;
use std::os::unix::process::ExitStatusExt;
use std::process::{ExitStatus, Stdio};

// `wait4` waits for the child.
#[allow(clippy::zombie_processes)]
/// The result of a run, and the most physical memory that its process took, in bytes.
fn measured(lab: &Lab, args: &[&str]) -> (Value, u64) {
    let mut child = super::command(args)
        .current_dir(lab.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("the binary runs");
    let mut out = child.stdout.take().expect("piped");
    let text = std::io::read_to_string(&mut out).expect("UTF-8");
    let mut status = 0;
    // SAFETY: plain numbers, for which zeros are values.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: a child that nobody else waits for; both places are ours.
    let pid = unsafe { libc::wait4(child.id() as i32, &mut status, 0, &mut usage) };
    assert_eq!(pid, child.id() as i32);
    assert_eq!(ExitStatus::from_raw(status).code(), Some(0), "{args:?}: {text}");
    // Linux counts in KiB.
    (serde_json::from_str(&text).expect("one object"), 1024 * usage.ru_maxrss as u64)
}

/// The peak is no more than what was said, and what was said is no more than `times` the peak.
fn holds(lab: &Lab, args: &[&str], times: f64) {
    let (v, peak) = measured(lab, &[&["train", "recipe.toml", "--json"], args].concat());
    let said = v["memory_at_most"].as_u64().expect("a number");
    assert!(peak <= said, "{args:?}: the peak is {peak}, {said} said: {}", v["memory"]);
    let most = times * peak as f64;
    assert!(said as f64 <= most, "{args:?}: {said} said, the peak is {peak}: {}", v["memory"]);
}

#[cfg(target_os = "linux")]
#[test]
fn memory_at_most_holds_for_models() {
    let lab = Lab::fixture("mlp_mnist");
    lab.write(
        "recipe.toml",
        &lab.text("recipe.toml").replace("steps = 2", "steps = 4\ncheckpoint = 2\nema = 0.9"),
    );
    for policy in ["f32", "bf16", "f16"] {
        holds(&lab, &["--policy", policy, "--threads", "1"], 2.5);
    }
    holds(&lab, &["--threads", "4"], 2.5);
    let root = env!("CARGO_MANIFEST_DIR");
    let digits = std::fs::read_to_string(format!("{root}/examples/digits/recipe.toml")).unwrap();
    let digits = digits
        .replace("model.onnx", &format!("{root}/examples/digits/model.onnx"))
        .replace("digits.safetensors", &format!("{root}/examples/digits/digits.safetensors"));
    lab.write("recipe.toml", &digits);
    holds(&lab, &["--steps", "6", "--set", "train.checkpoint=3"], 2.5);
    // Text: held in memory, in windows.
    let gpt = std::fs::read_to_string(format!("{root}/examples/bytes_gpt/recipe.toml")).unwrap();
    let gpt = gpt.replace("model.onnx", &format!("{root}/examples/bytes_gpt/model.onnx"));
    lab.write("recipe.toml", &gpt);
    lab.write("book.txt", &"Once upon a time there was a compiler. ".repeat(4000));
    let args = ["--steps", "2", "--set", "data.files=[\"book.txt\"]", "--set", "data.split=0.002"];
    holds(&lab, &args, 2.5);
}

/// Where a run is large beside the program, what is said is nearer.
#[cfg(target_os = "linux")]
#[test]
fn memory_at_most_is_near_for_what_is_large() {
    let lab = Lab::new();
    let (n, wide) = (512, 4096);
    lab.write(
        "model.pir",
        &super::small::MODEL
            .replace("[3,4]", &format!("[3,{wide}]"))
            .replace("[4,3] @x", &format!("[{n},3] @x"))
            .replace("f32[4,3]", &format!("f32[{n},3]"))
            .replace("b1: f32[4]", &format!("b1: f32[{wide}]"))
            .replace("name=\"b1\"} : f32[4]", &format!("name=\"b1\"}} : f32[{wide}]"))
            .replace("f32[4,2]", &format!("f32[{wide},2]"))
            .replace("shape=[1,4]", &format!("shape=[1,{wide}]"))
            .replace("shape=[4,4]", &format!("shape=[{n},{wide}]")),
    );
    lab.write("data.csv", &table(4 * n));
    let batch = format!("data.batch={n}");
    let args = ["--set", &batch, "--steps", "3", "--policy", "f32", "--threads", "1"];
    holds(&lab, &args, 2.0);
    let (code, said) = {
        let o = lab.run(&[&["train", "recipe.toml"], &args[..]].concat());
        (code(&o), super::stdout(&o))
    };
    let line = said.lines().find(|l| l.starts_with("memory ")).expect("a line");
    assert!(code == 0 && line.contains(" at most: ") && line.ends_with("of the program"), "{line}");
}
