//! Files that change, vanish or cannot be written while a command runs: an error with a place, what
//! was there before whole, and what a run had learned kept.

use super::lab::Lab;
use super::{code, command, stderr, stdout};
use precast_plan::DType;
use precast_runtime::tensors::write_tensors;
use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Output, Stdio};
use std::time::Duration;

/// The small run with its rows in a safetensors file, of 40 rows.
fn tensors(train: &str) -> Lab {
    let lab = Lab::with("steps = 4", train);
    let recipe = lab
        .text("recipe.toml")
        .replace(
            "format = \"csv\"\nfile = \"data.csv\"",
            "format = \"safetensors\"\nfile = \"d.st\"",
        )
        .replace("\"a..c\"", "\"features\"");
    lab.write("recipe.toml", &recipe);
    rows(&lab.path("d.st"), |_| 0.0);
    lab
}

/// Rows of three features and a label; `more` is added to each.
fn rows(path: &Path, more: impl Fn(usize) -> f32) {
    let x = |i: usize| ((i * 7 + i / 3 * 5) % 11) as f32 / 5.5 - 1.0 + more(i);
    let features: Vec<u8> = (0..120).flat_map(|i| x(i).to_le_bytes()).collect();
    let labels: Vec<u8> = (0..40).map(|i| u8::from(i % 3 == 0)).collect();
    let tensors = BTreeMap::from([
        ("features".to_string(), (DType::F32, vec![40, 3], features)),
        ("label".to_string(), (DType::U8, vec![40], labels)),
    ]);
    write_tensors(path, &BTreeMap::new(), &tensors).expect("written");
}

/// A run that would last for hours, once it has taken some steps.
fn begun(lab: &Lab) -> Child {
    let child = command(&["train", "recipe.toml"])
        .current_dir(lab.dir.path())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the binary runs");
    let lines = || std::fs::read_to_string(lab.path("log.jsonl")).map_or(0, |t| t.lines().count());
    while lines() < 5 {
        std::thread::sleep(Duration::from_millis(5));
    }
    child
}

const LONG: &str = "steps = 16000000\nlog = \"log.jsonl\"";

/// The step that a run kept, and standard error.
fn kept(lab: &Lab, o: &Output) -> (u64, String) {
    let text = stderr(o);
    assert_eq!(code(o), 1, "{}{text}", stdout(o));
    assert!(text.contains("error[R0417]") && text.contains("d.st: row "), "{text}");
    assert!(text.contains("for input `x`") || text.contains("resume"), "{text}");
    let log = lab.text("log.jsonl");
    let last: serde_json::Value =
        serde_json::from_str(log.lines().last().expect("a step")).expect("an object");
    let step = last["step"].as_u64().expect("a number");
    assert!(lab.path("trained/weights.safetensors").exists(), "{text}");
    assert!(lab.path(&format!("trained/checkpoint-{step}.safetensors")).exists(), "{text}");
    assert!(stdout(o).contains(&format!("trained     {step} steps")), "{}", stdout(o));
    (step, text)
}

#[test]
fn data_that_changes_under_a_run_ends_it_with_what_it_learned() {
    for (what, change) in [
        (
            "was cut from ",
            (|p: &Path| {
                std::fs::File::options().write(true).open(p).unwrap().set_len(300).unwrap();
            }) as fn(&Path),
        ),
        // As large as it was.
        ("was written to", |p: &Path| {
            let mut file = std::fs::File::options().write(true).open(p).unwrap();
            file.write_all(b" ").unwrap();
        }),
        ("was removed", |p: &Path| std::fs::remove_file(p).unwrap()),
    ] {
        let lab = tensors(LONG);
        let child = begun(&lab);
        change(&lab.path("d.st"));
        let (step, text) = kept(&lab, &child.wait_with_output().expect("it ends"));
        assert!(text.contains(what), "{text}");
        // With the data put back the run goes on, as if nothing had been.
        rows(&lab.path("d.st"), |_| 0.0);
        let recipe = lab.text("recipe.toml");
        lab.write("recipe.toml", &recipe.replace("16000000", &(step + 3).to_string()));
        let checkpoint = format!("trained/checkpoint-{step}.safetensors");
        lab.ok(&["train", "recipe.toml", "--resume", &checkpoint]);
        let resumed = lab.read("trained/weights.safetensors");
        let whole = tensors(&format!("steps = {}", step + 3));
        whole.ok(&["train", "recipe.toml"]);
        assert!(whole.read("trained/weights.safetensors") == resumed, "{what}");
    }
}

#[test]
fn data_that_is_replaced_is_read_on_from_the_file_that_was_opened() {
    let lab = tensors(LONG);
    let mut child = begun(&lab);
    rows(&lab.path("other"), |_| f32::NAN);
    std::fs::rename(lab.path("other"), lab.path("d.st")).expect("renamed");
    let mut said = String::new();
    let mut lines = BufReader::new(child.stderr.take().expect("piped"));
    while !said.contains("was replaced") {
        assert!(lines.read_line(&mut said).expect("text") > 0, "it ended: {said}");
    }
    assert!(said.contains("warning: ") && !said.contains("error"), "{said}");
    child.kill().expect("ended");
    child.wait().expect("ended");
}

#[test]
fn what_is_not_finite_in_data_has_a_row_and_an_element() {
    let lab = tensors("steps = 40");
    rows(&lab.path("d.st"), |i| if i == 3 * 17 + 2 { f32::INFINITY } else { 0.0 });
    let (code, text) = lab.fails(&["train", "recipe.toml"]);
    assert_eq!(code, "R0418", "{text}");
    assert!(text.contains("element [2] of `features` is inf"), "{text}");
    assert!(text.contains("d.st: row 17, for input `x`"), "{text}");
    // What the data's scale makes infinite is not in the file.
    let recipe = lab.text("recipe.toml");
    rows(&lab.path("d.st"), |i| if i == 5 { 2e30 } else { 0.0 });
    lab.write(
        "recipe.toml",
        &recipe.replace("batch = 4", "batch = 4\nshuffle = false\nscale = { x = 1e20 }"),
    );
    let (code, text) = lab.fails(&["train", "recipe.toml"]);
    assert_eq!(code, "R0418", "{text}");
    assert!(text.contains("is 2e30, which, scaled and shifted, is more than f32 holds"), "{text}");
    rows(&lab.path("d.st"), |i| if i == 5 { f32::NAN } else { 0.0 });
    lab.write("recipe.toml", &recipe.replace("batch = 4", "batch = 4\non_nonfinite = \"allow\""));
    let o = lab.run(&["train", "recipe.toml"]);
    assert!(super::code(&o) == 3 && stderr(&o).contains("R0602"), "{}", stderr(&o));

    let lab = Lab::new();
    for (cell, x) in [("nan", "NaN"), ("-inf", "-inf")] {
        let table = super::small::table(24).replacen("\n-0.091,", &format!("\n{cell},"), 1);
        lab.write("data.csv", &table);
        let line = 1 + table.lines().position(|l| l.starts_with(cell)).expect("a row");
        let (code, text) = lab.fails(&["train", "recipe.toml"]);
        assert_eq!(code, "R0418", "{text}");
        assert!(text.contains(&format!("column `a` holds {x}")), "{text}");
        assert!(text.contains(&format!("data.csv: line {line}")), "{text}");
    }
}

/// Files of a folder and below.
fn names(folder: &Path) -> Vec<String> {
    let mut found = vec![];
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            found.extend(names(&path));
        } else {
            found.push(path.file_name().expect("a name").to_string_lossy().into_owned());
        }
    }
    found.sort();
    found
}

/// Every file that a command writes, where the system takes no byte of it.
#[cfg(unix)]
#[test]
fn writes_beyond_the_limit_of_file_sizes_are_errors() {
    for (args, file) in [
        (&["compile", "recipe.toml", "-o", "a.plan"][..], "a.plan"),
        (&["compile", "recipe.toml", "--to", "import", "-o", "a.pir"], "a.pir"),
        (&["compile", "recipe.toml", "-o", "b.plan", "--dump", "stages"], "b.plan"),
        (&["profile", "recipe.toml", "-o", "r.json"], "r.json"),
        (&["grad", "recipe.toml", "-o", "g.st"], "g.st"),
        (&["train", "recipe.toml"], "trained/weights.safetensors"),
    ] {
        let lab = Lab::new();
        lab.ok(args);
        let (before, files) = (lab.read(file), names(lab.dir.path()));
        let words: Vec<String> = args.iter().map(|a| format!("'{a}'")).collect();
        let script =
            format!("ulimit -f 0; exec '{}' {}", env!("CARGO_BIN_EXE_precast"), words.join(" "));
        let o = std::process::Command::new("sh")
            .args(["-c", &script])
            .current_dir(lab.dir.path())
            .output()
            .expect("a shell");
        let text = stderr(&o);
        assert_eq!(code(&o), 1, "{args:?}: {text}");
        assert!(text.contains("error[R0206]") && text.contains(file), "{args:?}: {text}");
        assert!(text.contains("`ulimit -f`"), "{args:?}: {text}");
        assert!(lab.read(file) == before, "{args:?}: {file} is damaged");
        assert_eq!(names(lab.dir.path()), files, "{args:?}");
    }
}

#[cfg(unix)]
#[test]
fn a_run_outlives_its_log() {
    let lab = Lab::new();
    let o = lab.run(&["train", "recipe.toml", "--log", "/dev/full"]);
    let (text, out) = (stderr(&o), stdout(&o));
    assert_eq!(code(&o), 1, "{text}");
    assert!(text.contains("cannot write the log") && text.contains("/dev/full"), "{text}");
    assert!(text.contains("goes on without its log"), "{text}");
    assert!(out.contains("trained     4 steps"), "{out}");
    let kept = lab.read("trained/weights.safetensors");
    lab.ok(&["train", "recipe.toml"]);
    assert!(lab.read("trained/weights.safetensors") == kept);
    let v: serde_json::Value = serde_json::from_str(&stdout(&lab.run(&[
        "train",
        "recipe.toml",
        "--log",
        "/dev/full",
        "--json",
    ])))
    .expect("one object");
    assert_eq!((&v["ok"], &v["errors"][0]["code"]), (&false.into(), &"R0206".into()));
    // Standard output, too.
    let full = || Stdio::from(std::fs::File::create("/dev/full").expect("a device"));
    for args in [&["show", "model.pir"][..], &["check", "model.pir"]] {
        let o = command(args).current_dir(lab.dir.path()).stdout(full()).output().expect("runs");
        assert!(code(&o) == 1 && stderr(&o).contains("P0010"), "{args:?}: {}", stderr(&o));
    }
}

#[test]
fn paths_that_cannot_be_written_say_why() {
    let lab = Lab::new();
    for (args, place, help) in [
        (
            &["compile", "recipe.toml", "-o", "no/a.plan"][..],
            "no/a.plan",
            "the folder `no` does not",
        ),
        (&["compile", "recipe.toml", "-o", "."], ".", "that is a folder"),
        (&["compile", "recipe.toml", "-o", "data.csv/a"], "data.csv/a", "`data.csv` is a file"),
        (&["grad", "recipe.toml", "-o", "data.csv/a"], "data.csv/a", "`data.csv` is a file"),
        (&["profile", "recipe.toml", "-o", "no/r.json"], "no/r.json", "the folder `no` does not"),
        (&["calibrate", "-o", "data.csv/t"], "data.csv/t", "`data.csv` is a file"),
        (&["train", "recipe.toml", "--out", "data.csv"], "data.csv", "`data.csv` is a file"),
        (&["train", "recipe.toml", "--out", "data.csv/a"], "data.csv/a", "`data.csv` is a file"),
        (&["train", "recipe.toml", "--log", "no/log"], "no/log", "the folder `no` does not"),
    ] {
        let (code, text) = lab.fails(args);
        assert_eq!(code, "R0206", "{args:?}: {text}");
        assert!(text.contains(&format!("--> {place}\n")) && text.contains(help), "{text}");
    }
    assert_eq!(names(lab.dir.path()), ["data.csv", "model.pir", "recipe.toml"]);
    // Before a step is taken that could not be saved.
    std::fs::create_dir_all(lab.path("trained/weights.safetensors")).expect("made");
    let o = lab.run(&["train", "recipe.toml"]);
    assert!(code(&o) == 1 && stderr(&o).contains("that is a folder"), "{}", stderr(&o));
    assert!(!stdout(&o).contains("trained  "), "{}", stdout(&o));
}

/// A large row among those held back: the run is in order, its test is not.
#[test]
fn a_test_loss_that_is_no_number_ends_with_a_code_and_the_weights() {
    let mut found = 0;
    for row in 0..24 {
        let lab = Lab::new();
        let recipe = lab.text("recipe.toml").replace("batch = 4", "batch = 4\nsplit = 0.25");
        lab.write("recipe.toml", &recipe);
        let table = super::small::table(24);
        let table = table.lines().enumerate().map(|(i, line)| match i == row + 1 {
            true => "3e38,3e38,-3e38,1\n".to_string(),
            false => format!("{line}\n"),
        });
        lab.write("data.csv", &table.collect::<String>());
        let o = lab.run(&["train", "recipe.toml", "--policy", "f32", "--steps", "9"]);
        // A row that an epoch leaves over may never be met.
        assert!([0, 3].contains(&code(&o)), "{}", stderr(&o));
        if stderr(&o).contains("R0608") {
            assert_eq!(code(&o), 3);
            assert!(stdout(&o).contains("test loss: "), "{}", stdout(&o));
            assert!(stdout(&o).contains("trained/weights.safetensors"), "{}", stdout(&o));
            found += 1;
            if found == 2 {
                break;
            }
        }
    }
    assert_eq!(found, 2);
}

#[test]
fn steps_beyond_the_run_are_errors() {
    let lab = Lab::new();
    for (args, option) in [
        (&["blame", "recipe.toml", "--step", "5"][..], "--step 5"),
        (&["profile", "recipe.toml", "--steps", "5"], "--steps 5"),
    ] {
        let (code, text) = lab.fails(args);
        assert_eq!(code, "P0013", "{text}");
        assert!(
            text.contains(&format!("`{option}` is beyond the run, which has 4 steps")),
            "{text}"
        );
        assert!(text.contains("recipe.toml:15:"), "{text}");
    }
    lab.ok(&["blame", "recipe.toml", "--step", "5", "--steps", "5"]);
    lab.ok(&["blame", "recipe.toml", "--step", "4"]);
    // As many as the run has, where it is shorter than what is measured by default.
    assert!(lab.ok(&["profile", "recipe.toml"]).contains("over 4 steps"));
}
