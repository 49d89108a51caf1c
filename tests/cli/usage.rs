//! What the command prints, where, and how it exits.

use super::lab::Lab;
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
fn usage_errors_are_an_object_where_one_is_asked_for() {
    let o = precast(&["train", "--json"]);
    assert_eq!(code(&o), 2, "{}", stderr(&o));
    let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
    assert_eq!(v["ok"], false);
    assert!(v["errors"][0]["message"].as_str().unwrap().contains("required"), "{v}");
    assert!(stdout(&precast(&["--json", "--help"])).contains("Usage"));
}

/// Where nobody reads standard error, or standard output as well, a fault is still a fault.
#[test]
fn closed_outputs_change_no_exit_code() {
    for (to, arguments) in [("2>&-", ""), (">&- 2>&-", "--json"), ("2>/dev/full", "--json")] {
        let line = format!("exec \"$0\" check gone.toml {arguments} {to}");
        let o = std::process::Command::new("sh")
            .args(["-c", &line, env!("CARGO_BIN_EXE_precast")])
            .output()
            .expect("sh runs");
        assert_eq!(code(&o), 1, "{to}");
    }
}

#[test]
fn faults_of_the_input_exit_with_1_on_standard_error() {
    for (args, want) in [
        (&["check", "README.md"][..], "P0001"),
        (&["check", "gone.toml"], "P0100"),
        (&["show", "gone.pir"], "P0002"),
        (&["explain", "Cargo.toml"], "P0001"),
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

/// What compiling would refuse, checking refuses.
#[test]
fn check_imports_the_model() {
    let o = precast(&["check", "tests/fixtures/tiny_gpt/model.onnx"]);
    assert_eq!(code(&o), 0, "{}", stderr(&o));
    assert!(stdout(&o).contains("assumed extents: batch = 2, seq = 32"), "{}", stdout(&o));
    let o = precast(&["check", "tests/models/gpt_4x256.ts.op17.train.onnx"]);
    assert!(stdout(&o).contains("have no values, which `[weights] file` or"), "{}", stdout(&o));
    // The same model with its weights cut, and with none where the file is of another model.
    let lab = Lab::fixture("mlp_mnist");
    let whole = lab.read("weights.safetensors");
    std::fs::write(lab.path("weights.safetensors"), &whole[..whole.len() / 2]).unwrap();
    let (found, text) = lab.fails(&["check", "model.onnx"]);
    assert_eq!(found, "P0210", "{text}");
    assert!(text.contains("found with assumed extents: batch = 2"), "{text}");
    assert_eq!(lab.fails(&["compile", "recipe.toml"]).0, found);
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
    assert_eq!(v["backends"][0], "cpu");
    for name in ["driver", "NVRTC", "cuBLASLt", "cuDNN"] {
        let library = &v["cuda"]["libraries"][name];
        assert!(library["version"].is_string() || library["error"].is_string(), "{name}");
    }
    assert!(stdout(&precast(&["doctor"])).contains(std::env::consts::ARCH));
}

#[test]
fn a_gpu_that_is_not_there_is_one_clear_error() {
    let recipe = "examples/digits/recipe.toml";
    // A number that no machine has, where this one has a GPU.
    for command in ["train", "compile"] {
        let o = precast(&[command, recipe, "--device", "cuda:4000", "--json"]);
        assert_eq!(code(&o), 4, "{}", stderr(&o));
        let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
        let error = &v["errors"][0];
        let help = error["help"].as_str().expect("help");
        match error["code"].as_str().expect("a code") {
            "R0701" => {
                assert!(help.contains("PRECAST_CUDA_PATH (not set)"), "{help}");
                assert!(help.contains("library path"), "{help}");
            }
            "R0704" => {}
            other => panic!("{other}: {}", stderr(&o)),
        }
        assert!(!stderr(&o).contains("panicked"), "{}", stderr(&o));
    }
    let o = precast(&["compile", recipe, "--device", "cuda:x", "-o", "unused.plan"]);
    assert_eq!(code(&o), 1, "a name that is no device is the recipe's fault");
    assert!(stderr(&o).contains("P0602"), "{}", stderr(&o));
    // The recipe did not name that device, so that no line of it is shown.
    assert!(!stderr(&o).contains("device = \"cpu\""), "{}", stderr(&o));
}

#[test]
fn libraries_that_are_not_libraries_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("libcuda.so.1");
    std::fs::write(&file, "not a library").unwrap();
    let o = std::process::Command::new(env!("CARGO_BIN_EXE_precast"))
        .args(["doctor", "--json"])
        .env("PRECAST_CUDA_PATH", dir.path())
        .output()
        .expect("the binary runs");
    assert_eq!(code(&o), 0, "{}", stderr(&o));
    let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
    let driver = &v["cuda"]["libraries"]["driver"];
    // A driver elsewhere on this machine is taken instead; what failed is said where there is none.
    if let Some(error) = driver["error"].as_str() {
        assert!(error.contains(file.to_str().unwrap()), "{error}");
    }
}
