//! Every command is given every kind of file.

use super::lab::Lab;
use super::{code, precast, stderr, stdout};
use std::collections::BTreeMap;
use std::fmt::Write;

/// What takes a file, as `FILE`; kinds of file that it accepts. `M` is a plan that is in order.
const TAKERS: &[(&str, &[&str])] = &[
    ("compile FILE -o out.plan", &["recipe"]),
    ("train FILE --steps 1", &["recipe"]),
    ("grad FILE -o grad.safetensors", &["recipe"]),
    ("compare FILE --only f32", &["recipe"]),
    ("profile FILE --steps 1", &["recipe"]),
    ("blame FILE --step 1", &["recipe"]),
    ("eval FILE", &["recipe"]),
    ("init FILE -o new.toml", &["onnx"]),
    (
        "init m.onnx -o new.toml --data FILE",
        &["safetensors", "csv", "binary", "text", "json", "toml"],
    ),
    ("show FILE", &["recipe", "ir", "plan"]),
    ("check FILE", &["recipe", "onnx", "ir", "plan"]),
    ("explain FILE", &["plan"]),
    ("diff FILE m.plan", &["plan"]),
    ("diff m.plan FILE", &["plan"]),
    ("eval recipe.toml --weights FILE", &["safetensors", "checkpoint"]),
    ("train recipe.toml --resume FILE", &["checkpoint"]),
    ("profile recipe.toml --steps 1 --resume FILE", &["checkpoint"]),
    ("blame recipe.toml --step 3 --resume FILE", &["checkpoint"]),
    ("compile recipe.toml -o out.plan --device FILE", &["table"]),
    // Files that a recipe names.
    ("check model.toml", &["ir"]),
    ("check weights.toml", &["safetensors", "checkpoint"]),
    ("check ranges.toml", &["ranges"]),
    ("check table.toml", &["table"]),
    ("check data.toml", &["csv"]),
    ("check tensors.toml", &[]),
];

/// Commands that are given no file to read.
const OTHERS: &[&str] = &["calibrate", "doctor", "completions", "man", "help"];

/// A folder with a file of every kind, as (kind, name).
fn files() -> (Lab, Vec<(&'static str, &'static str)>) {
    let lab = Lab::with("steps = 4", "steps = 4\ncheckpoint = 2");
    lab.ok(&["compile", "recipe.toml", "-o", "m.plan"]);
    lab.ok(&["train", "recipe.toml", "--out", "run"]);
    lab.ok(&["profile", "recipe.toml", "--steps", "1", "-o", "r.json"]);
    let table = precast_plan::Target::shipped("cpu-generic").expect("shipped");
    lab.write("t.toml", &toml::to_string(&table).expect("plain data"));
    let onnx = Lab::fixture("mlp_mnist").read("model.onnx");
    std::fs::write(lab.path("m.onnx"), onnx).unwrap();
    std::fs::create_dir(lab.path("folder")).unwrap();
    let bytes = |name: &str, bytes: &[u8]| std::fs::write(lab.path(name), bytes).unwrap();
    bytes("m.pt", b"PK\x03\x04\x14\0\0\0\0\0archive/data.pkl\x80\x02}");
    bytes("m.pt2", b"PK\x03\x04\x14\0\0\0\0\0model/archive_format");
    bytes("x.npy", b"\x93NUMPY\x01\0v\0{'descr': '<f4'}");
    bytes("junk.bin", &[0x7f, 0, 1, 2, 0xff, 0xfe, 3, 0x80, 9, 9, 9, 9]);
    lab.write("empty", "");
    lab.write("notes.txt", "Dear reader,\nthis is a letter.\n");
    lab.write("other.json", "{\"a\": 1}\n");
    lab.write("other.toml", "[package]\nname = \"x\"\n");
    let files = vec![
        ("recipe", "recipe.toml"),
        ("onnx", "m.onnx"),
        ("ir", "model.pir"),
        ("plan", "m.plan"),
        ("safetensors", "run/weights.safetensors"),
        ("checkpoint", "run/checkpoint-2.safetensors"),
        ("ranges", "r.json"),
        ("table", "t.toml"),
        ("csv", "data.csv"),
        ("pt", "m.pt"),
        ("pt2", "m.pt2"),
        ("numpy", "x.npy"),
        ("folder", "folder"),
        ("empty", "empty"),
        ("binary", "junk.bin"),
        ("text", "notes.txt"),
        ("json", "other.json"),
        ("toml", "other.toml"),
    ];
    (lab, files)
}

/// Recipes that name `file` in one place each.
fn name_in_recipes(lab: &Lab, file: &str) {
    let recipe = lab.text("recipe.toml");
    let write = |name: &str, old: &str, new: &str| {
        assert!(recipe.contains(old), "{old}");
        lab.write(name, &recipe.replacen(old, new, 1));
    };
    let model = "model = \"model.pir\"";
    // A model's format is told by its name.
    let named = if file.ends_with(".pir") { file.to_string() } else { format!("{file}.onnx") };
    if !file.ends_with(".pir") {
        let (from, to) = (lab.path(file), lab.path(&named));
        let _ = std::fs::remove_file(&to);
        std::os::unix::fs::symlink(from, to).unwrap();
    }
    write("model.toml", model, &format!("model = \"{named}\""));
    write("weights.toml", model, &format!("{model}\n[weights]\nfile = \"{file}\""));
    write("ranges.toml", "[train]", &format!("[precision]\nranges = \"{file}\"\n[train]"));
    write("table.toml", "[train]", &format!("[target]\ntable = \"{file}\"\n[train]"));
    write("data.toml", "file = \"data.csv\"", &format!("file = \"{file}\""));
    let tensors = format!("format = \"safetensors\"\nfile = \"{file}\"");
    write("tensors.toml", "format = \"csv\"\nfile = \"data.csv\"", &tensors);
}

/// Of every kind of file: who takes it, and what the others say.
#[test]
fn every_command_says_what_it_got_and_what_it_takes() {
    let (lab, files) = files();
    let mut out = String::new();
    for (kind, file) in files {
        name_in_recipes(&lab, file);
        let mut taken = vec![];
        let mut said: BTreeMap<String, Vec<&str>> = BTreeMap::new();
        for (taker, accepts) in TAKERS {
            let line = taker.replace("FILE", file);
            let args: Vec<&str> = line.split(' ').collect();
            // A draft is not written over.
            let _ = std::fs::remove_file(lab.path("new.toml"));
            let o = lab.run(&args);
            let text = stderr(&o);
            if accepts.contains(&kind) {
                assert_eq!(code(&o), 0, "{line}: {text}");
                taken.push(*taker);
                continue;
            }
            assert_eq!(code(&o), 1, "{line}: {}{text}", stdout(&o));
            assert!(!text.contains("panicked"), "{line}: {text}");
            // Which command it is differs, and where this test runs.
            let command = format!("`{}` takes", args[0]);
            let text = text.replacen(&command, "`COMMAND` takes", 1).replace(&lab.dir(), "");
            said.entry(text).or_default().push(taker);
        }
        writeln!(out, "==== {kind}: {file}\ntaken by {}", list(&taken)).unwrap();
        for (text, takers) in &said {
            writeln!(out, "\n{}:\n{}", list(takers), text.trim_end()).unwrap();
        }
        out.push('\n');
    }
    insta::assert_snapshot!(out);
}

fn list(takers: &[&str]) -> String {
    if takers.is_empty() { "nothing".into() } else { takers.join(", ") }
}

/// A command that comes later is tried too.
#[test]
fn no_command_is_left_out() {
    let help = stdout(&precast(&["--help"]));
    let commands = help.split("Commands:\n").nth(1).expect("it lists them");
    let commands = commands.lines().take_while(|l| l.starts_with("  "));
    let names: Vec<&str> = commands.filter_map(|l| l.split_whitespace().next()).collect();
    assert!(names.len() > 10, "{names:?}");
    for name in names {
        let known = TAKERS.iter().any(|(t, _)| t.split(' ').next() == Some(name));
        assert!(known || OTHERS.contains(&name), "`{name}` is in no row of this test");
    }
}

#[test]
fn a_folder_suggests_what_is_in_it() {
    let lab = Lab::new();
    std::fs::create_dir(lab.path("run")).unwrap();
    let (_, text) = lab.fails(&["train", "run"]);
    assert!(text.contains("takes a recipe, and this is a folder"), "{text}");
    assert!(text.contains("name a file"), "{text}");
    std::fs::copy(lab.path("recipe.toml"), lab.path("run/recipe.toml")).unwrap();
    let (_, text) = lab.fails(&["train", "run"]);
    assert!(text.contains("did you mean `run/recipe.toml`?"), "{text}");
    std::fs::copy(lab.path("recipe.toml"), lab.path("run/again.toml")).unwrap();
    let (_, text) = lab.fails(&["train", "run"]);
    assert!(text.contains("such as `run/again.toml`"), "{text}");
}

/// A file that is meant to be of the right kind, and is damaged, is its reader's.
#[test]
fn damaged_files_are_told_by_their_names() {
    let lab = Lab::new();
    lab.ok(&["compile", "recipe.toml", "-o", "m.plan"]);
    lab.write("bad.plan", "{ \"version\"");
    assert_eq!(lab.fails(&["explain", "bad.plan"]).0, "P0003");
    lab.write("bad.toml", "modle \"m.onnx\"\n");
    assert_eq!(lab.fails(&["train", "bad.toml"]).0, "P0101");
    std::fs::write(lab.path("bad.onnx"), [0xff; 40]).unwrap();
    assert_eq!(lab.fails(&["check", "bad.onnx"]).0, "P0202");
    // A name is not needed where the content says what a file is.
    std::fs::copy(lab.path("m.plan"), lab.path("plan")).unwrap();
    lab.ok(&["explain", "plan"]);
    std::fs::copy(lab.path("recipe.toml"), lab.path("recipe")).unwrap();
    lab.ok(&["check", "recipe"]);
}
