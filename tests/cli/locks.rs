//! A folder is one run's at a time.

use super::lab::Lab;
use super::running::Running;

#[test]
fn two_runs_never_share_a_folder() {
    let lab =
        Lab::with("steps = 4", "steps = 16000000\nlog = \"log.jsonl\"\ncheckpoint = 2\nkeep = 2");
    let mut first = Running::start(&lab, &["train", "recipe.toml"]);
    first.logged(&lab, "log.jsonl", 4);
    for args in [
        &["train", "recipe.toml"][..],
        &["train", "recipe.toml", "--resume", "auto"],
        &["train", "recipe.toml", "--out", "./trained"],
    ] {
        let (code, text) = lab.fails(args);
        assert_eq!(code, "P0031", "{text}");
        let owner = format!("process {} on ", first.id());
        assert!(text.contains(&owner) && text.contains(", since 20"), "{text}");
        assert!(text.contains("--out"), "{text}");
    }
    // Another folder is another matter, and readers are in nobody's way.
    lab.ok(&["train", "recipe.toml", "--steps", "2", "--out", "other", "--log", "other.jsonl"]);
    lab.ok(&["blame", "recipe.toml", "--step", "1"]);
    first.logged(&lab, "log.jsonl", 8);
    // The lock of a process that was killed is nobody's.
    first.signal("KILL");
    assert_eq!(first.ended(), -128 - 9);
    assert!(lab.text("trained/.lock").starts_with("process "));
    lab.ok(&["train", "recipe.toml", "--steps", "2"]);
}

#[test]
fn a_run_that_never_begins_leaves_no_folder() {
    let lab =
        Lab::with("[train]", "[precision]\npins = [{ op = \"nosuch\", dtype = \"f32\" }]\n[train]");
    assert_eq!(lab.fails(&["train", "recipe.toml"]).0, "P0501");
    assert!(!lab.path("trained").exists());
    // One that was there stays.
    std::fs::create_dir(lab.path("trained")).expect("made");
    assert_eq!(lab.fails(&["train", "recipe.toml"]).0, "P0501");
    assert!(lab.path("trained").exists());
}
