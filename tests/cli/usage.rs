//! What the command prints, where, and how it exits.

use super::{code, precast, stderr, stdout};
use std::path::Path;

#[test]
fn usage_errors_exit_with_2() {
    for args in [&[][..], &["frob"], &["train"], &["train", "r.toml", "--policy", "f8"]] {
        let o = precast(args);
        assert_eq!(code(&o), 2, "{args:?}");
        assert!(o.stdout.is_empty(), "{args:?}");
        assert!(stderr(&o).contains("Usage") || stderr(&o).contains("policy"), "{}", stderr(&o));
    }
}

#[test]
fn faults_of_the_input_exit_with_1_on_standard_error() {
    for (args, want) in [
        (&["check", "README.md"][..], "P0001"),
        (&["check", "gone.toml"], "P0100"),
        (&["show", "gone.pir"], "P0002"),
        (&["explain", "Cargo.toml"], "P0003"),
        (&["show", "examples/digits/recipe.toml", "--stage", "soup"], "P0008"),
    ] {
        let o = precast(args);
        assert_eq!(code(&o), 1, "{args:?}: {}", stderr(&o));
        assert!(stderr(&o).contains(want), "{args:?}: {}", stderr(&o));
        assert!(o.stdout.is_empty(), "{args:?}");
    }
}

#[test]
fn json_errors_name_code_and_line() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("bad.toml");
    std::fs::write(&path, "model = \"m.onnx\"\nmodle = 3\n").unwrap();
    let o = precast(&["check", path.to_str().unwrap(), "--json"]);
    assert_eq!(code(&o), 1);
    let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
    assert_eq!(v["ok"], false);
    let unknown = v["errors"].as_array().unwrap().iter().find(|e| e["code"] == "P0102").unwrap();
    assert_eq!((&unknown["place"]["line"], &unknown["place"]["column"]), (&2.into(), &1.into()));
    assert_eq!(unknown["help"], "did you mean `model`?");
}

#[test]
fn check_accepts_the_examples() {
    for folder in ["examples/digits", "examples/bytes_gpt"] {
        for file in ["recipe.toml", "model.onnx"] {
            let path = Path::new(folder).join(file);
            let o = precast(&["check", path.to_str().unwrap()]);
            assert_eq!(code(&o), 0, "{}", stderr(&o));
            assert!(stdout(&o).contains("is in order"), "{}", stdout(&o));
        }
    }
}

#[test]
fn show_prints_text_that_reads_back() {
    let shown = precast(&["show", "examples/digits/model.onnx", "--dim", "batch=4"]);
    assert_eq!(code(&shown), 0, "{}", stderr(&shown));
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pir");
    std::fs::write(&path, &shown.stdout).unwrap();
    let again = precast(&["show", path.to_str().unwrap()]);
    assert_eq!(stdout(&again), stdout(&shown));
}

#[test]
fn doctor_reports_what_is_there() {
    let o = precast(&["doctor", "--json"]);
    assert_eq!(code(&o), 0);
    let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
    assert!(v["cpu"]["threads"].as_u64().unwrap() >= 1);
    assert_eq!(v["backends"], serde_json::json!(["cpu"]));
    assert!(stdout(&precast(&["doctor"])).contains(std::env::consts::ARCH));
}
