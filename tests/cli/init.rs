//! `init`: from a model to a recipe that trains.

use super::lab::Lab;
use super::small::table;
use super::{code, stderr, stdout};
use precast_plan::DType;
use precast_runtime::tensors::write_tensors;
use std::path::Path;

/// A folder with files of the repository.
fn lab(files: &[(&str, &str)]) -> Lab {
    let lab = Lab { dir: tempfile::tempdir().expect("a temporary folder") };
    for (from, to) in files {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(from);
        std::fs::copy(&from, lab.path(to)).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
    }
    lab
}

#[test]
fn a_model_and_its_data_make_a_recipe_that_trains() {
    let lab = lab(&[
        ("examples/digits/model.onnx", "model.onnx"),
        ("examples/digits/digits.safetensors", "digits.safetensors"),
    ]);
    let said = lab.ok(&["init", "model.onnx", "--data", "digits.safetensors"]);
    insta::assert_snapshot!("digits_recipe", lab.text("recipe.toml"));
    insta::assert_snapshot!("digits_said", said);
    lab.ok(&["check", "recipe.toml"]);
    let out = lab.ok(&["train", "recipe.toml", "--steps", "30"]);
    assert!(out.contains("test accuracy") && out.contains("checkpoint-"), "{out}");
    // From the summary of one run to the next, by what is printed.
    let resume = out.lines().find(|l| l.contains("--resume")).expect("a command");
    let resume = resume.split("  # ").next().expect("a comment").trim();
    let args: Vec<&str> = resume.split_whitespace().skip(1).collect();
    assert!(lab.ok(&args).contains("trained     60 steps"), "{resume}");
}

#[test]
fn without_data_the_recipe_says_what_to_make() {
    let gpt = lab(&[
        ("tests/fixtures/tiny_gpt/model.onnx", "model.onnx"),
        ("tests/fixtures/tiny_gpt/weights.safetensors", "weights.safetensors"),
    ]);
    let said = gpt.ok(&["init", "model.onnx", "-o", "gpt.toml"]);
    insta::assert_snapshot!("gpt_recipe", gpt.text("gpt.toml"));
    assert!(said.contains("data.safetensors is yours to make"), "{said}");
    let (code, text) = gpt.fails(&["check", "gpt.toml"]);
    assert!(code == "P0108" && text.contains("data.safetensors"), "{text}");
    // Text feeds it as it is.
    gpt.write("book.txt", &"Once upon a time. ".repeat(400));
    gpt.ok(&["init", "model.onnx", "-o", "text.toml", "--data", "book.txt"]);
    insta::assert_snapshot!("text_recipe", gpt.text("text.toml"));
}

#[test]
fn tensors_are_matched_by_name_and_extents() {
    let fixture = "tests/fixtures/mlp_mnist";
    let files = ["model.onnx", "weights.safetensors", "batch.safetensors"];
    let files = files.map(|f| (format!("{fixture}/{f}"), f));
    let files: Vec<(&str, &str)> = files.iter().map(|(a, b)| (a.as_str(), *b)).collect();
    let lab = lab(&files);
    lab.ok(&["init", "model.onnx", "--data", "batch.safetensors"]);
    let text = lab.text("recipe.toml");
    assert!(text.contains("x = \"in.x\"") && text.contains("targets = \"tgt.targets\""), "{text}");
    lab.ok(&["train", "recipe.toml", "--steps", "2"]);
    // Numbers to be hit, in tensors that are called nothing in particular.
    let zeros = |shape: &[u64]| {
        let count = shape.iter().product::<u64>() as usize;
        (DType::F32, shape.to_vec(), vec![0; 4 * count])
    };
    let x = precast_runtime::TensorFile::open(&lab.path("batch.safetensors")).unwrap();
    let row = x.tensor("in.x").unwrap().shape[1];
    let table = [("a".to_string(), zeros(&[40, row])), ("b".to_string(), zeros(&[40, 10]))];
    write_tensors(&lab.path("other.safetensors"), &Default::default(), &table.into()).unwrap();
    lab.ok(&["init", "model.onnx", "--data", "other.safetensors", "-o", "mse.toml"]);
    let text = lab.text("mse.toml");
    assert!(text.contains("x = \"a\"") && text.contains("b = \"b\""), "{text}");
    assert!(text.contains("kind = \"mse\""), "{text}");
    lab.ok(&["train", "mse.toml", "--steps", "2"]);
    // Nothing that fits.
    let table = [("a".to_string(), zeros(&[40, row + 1]))];
    write_tensors(&lab.path("none.safetensors"), &Default::default(), &table.into()).unwrap();
    let said = lab.ok(&["init", "model.onnx", "--data", "none.safetensors", "-o", "none.toml"]);
    assert!(said.contains("nothing in it was found for `x`"), "{said}");
    let (_, text) = lab.fails(&["check", "none.toml"]);
    assert!(text.contains("tensor `?`") && text.contains("its tensors are a"), "{text}");
}

#[test]
fn columns_of_tables_are_dealt_out() {
    let lab = lab(&[("tests/fixtures/mlp_mnist/model.onnx", "model.onnx")]);
    let features = {
        let said = lab.ok(&["init", "model.onnx", "-o", "width.toml"]);
        let line = said.lines().find(|l| l.starts_with("inputs")).expect("a line").to_string();
        let last = line.trim_end_matches(']').rsplit(", ").next().expect("an extent").to_string();
        last.parse::<usize>().expect("a number")
    };
    let mut text = "label".to_string();
    (0..features).for_each(|i| text += &format!(",p{i}"));
    for row in 0..20 {
        text += &format!("\n{}", row % 10);
        (0..features).for_each(|i| text += &format!(",0.{}", (i + row) % 10));
    }
    lab.write("data.csv", &(text + "\n"));
    lab.ok(&["init", "model.onnx", "--data", "data.csv"]);
    let recipe = lab.text("recipe.toml");
    let range = format!("x = \"p0..p{}\"", features - 1);
    assert!(recipe.contains(&range) && recipe.contains("label = \"label\""), "{recipe}");
    assert!(recipe.contains("kind = \"cross_entropy\""), "{recipe}");
    lab.write("few.csv", &table(8));
    let said = lab.ok(&["init", "model.onnx", "--data", "few.csv", "-o", "few.toml"]);
    assert!(said.contains("nothing in it was found for `x`"), "{said}");
}

#[test]
fn nothing_is_written_over() {
    let lab = lab(&[("examples/digits/model.onnx", "model.onnx")]);
    lab.write("recipe.toml", "mine");
    assert_eq!(lab.fails(&["init", "model.onnx"]).0, "P0016");
    assert_eq!(lab.text("recipe.toml"), "mine");
    assert_eq!(lab.fails(&["init", "recipe.toml"]).0, "P0001");
    assert_eq!(lab.fails(&["init", "model.onnx", "-o", "recipe.yaml"]).0, "P0011");
    let o = lab.run(&["init", "model.onnx", "-o", "other.toml", "--json"]);
    let v: serde_json::Value = serde_json::from_str(&stdout(&o)).expect("one object");
    assert_eq!((code(&o), &v["recipe"]), (0, &"other.toml".into()), "{}", stderr(&o));
}

#[test]
fn an_input_that_nothing_reads_is_left_out() {
    let lab = lab(&[("tests/fixtures/exported/unread.onnx", "model.onnx")]);
    lab.ok(&["init", "model.onnx"]);
    let text = lab.text("recipe.toml");
    assert!(text.contains("# mask is left out: no output of the model depends on it\n"), "{text}");
    let fed: Vec<&str> =
        text.lines().filter(|l| l.starts_with("x = ") || l.starts_with("mask")).collect();
    assert_eq!(fed.len(), 1, "{text}");
}
