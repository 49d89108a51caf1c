//! A run is called good only where its numbers are: what becomes of steps that are not finite, or
//! have nothing to learn from, and how a run ends because of them.

use super::lab::Lab;
use super::small::table;
use super::{code, stderr, stdout};
use precast_runtime::TensorFile;
use precast_runtime::tensors::WeightSource;
use serde_json::Value;

fn log(lab: &Lab) -> Vec<Value> {
    let lines = lab.text("log.jsonl");
    lines.lines().map(|l| serde_json::from_str(l).expect("an object")).collect()
}

/// Six batches of four rows in the order of the file, of which `bad` rows are so large that the first
/// product overflows f32.
fn lab(bad: impl Fn(usize) -> bool, train: &str) -> Lab {
    let lab = Lab::with("steps = 4", &format!("steps = 6\nlog = \"log.jsonl\"\n{train}"));
    let recipe = lab.text("recipe.toml").replace("batch = 4", "batch = 4\nshuffle = false");
    lab.write("recipe.toml", &recipe);
    let text = table(24);
    let rows = text.lines().enumerate().map(|(i, line)| match i > 0 && bad(i - 1) {
        true => "3e38,3e38,-3e38,1\n".to_string(),
        false => format!("{line}\n"),
    });
    lab.write("data.csv", &rows.collect::<String>());
    lab
}

fn tensors(lab: &Lab, file: &str) -> Vec<(String, Vec<f32>)> {
    let file = TensorFile::open(&lab.path(file)).unwrap_or_else(|e| panic!("{e}"));
    file.names()
        .into_iter()
        .map(|n| (n.clone(), file.tensor(&n).expect("listed").to_f32()))
        .collect()
}

/// Exit code and first error's code.
fn ends(lab: &Lab, args: &[&str]) -> (i32, String, String) {
    let o = lab.run(args);
    let text = stderr(&o);
    let at = text.find("error[").unwrap_or_else(|| panic!("no code in {text}{}", stdout(&o)));
    (code(&o), text[at + 6..at + 11].to_string(), text)
}

#[test]
fn a_step_that_is_not_finite_stops_the_run_and_leaves_the_weights() {
    // Row 14 is in the fourth batch.
    for policy in ["f32", "bf16"] {
        let lab = lab(|row| row == 14, "ema = 0.9");
        let train = ["train", "recipe.toml", "--policy", policy];
        let (exit, code, text) = ends(&lab, &train);
        assert_eq!((exit, code.as_str()), (3, "R0602"), "{text}");
        assert!(
            text.contains("the gradients of step 4 are not finite; it was not applied"),
            "{text}"
        );
        assert!(text.contains("fc1") && text.contains("[2, "), "{text}");
        let lines = log(&lab);
        assert_eq!(lines.len(), 4, "no step was taken behind it");
        assert_eq!((&lines[3]["skipped"], &lines[2]["skipped"]), (&true.into(), &false.into()));
        assert!(lines[3]["blame"]["op"].as_str().expect("a name").contains("fc1"), "{}", lines[3]);
        // Weights, averages and the whole state are those of three steps.
        let other = self::lab(|row| row == 14, "ema = 0.9\ncheckpoint = 3");
        other.ok(&["train", "recipe.toml", "--policy", policy, "--steps", "3"]);
        for file in ["weights", "ema", "checkpoint-3"] {
            let file = format!("trained/{file}.safetensors");
            assert!(lab.read(&file) == other.read(&file), "{policy}: {file}");
        }
        // The checkpoint takes the step again; the recipe may say otherwise by then.
        let resume = ["--resume", "trained/checkpoint-3.safetensors"];
        let again = ends(&lab, &[&train[..], &resume].concat());
        assert_eq!((again.0, again.1.as_str()), (3, "R0602"));
        let recipe = lab.text("recipe.toml").replace("ema =", "on_nonfinite = \"skip\"\nema =");
        lab.write("recipe.toml", &recipe);
        let out = lab.ok(&[&train[..], &resume].concat());
        assert!(out.contains("trained     6 steps"), "{out}");
        let whole = self::lab(|row| row == 14, "on_nonfinite = \"skip\"\nema = 0.9");
        let out = whole.ok(&train);
        assert!(out.contains("skipped     1 step; step 4: "), "{out}");
        let file = "trained/weights.safetensors";
        assert!(lab.read(file) == whole.read(file), "{policy}");
        assert!(tensors(&whole, file).iter().all(|t| t.1.iter().all(|x| x.is_finite())));
        let v: Value =
            serde_json::from_str(&stdout(&other.run(&[&train[..], &["--json"]].concat())))
                .expect("one object");
        assert_eq!((&v["ok"], &v["errors"][0]["code"]), (&false.into(), &"R0602".into()));
    }
}

#[test]
fn a_run_that_stops_leaves_its_loss_scale_too() {
    let train = ["train", "recipe.toml", "--policy", "f16"];
    let of = |more: &str| {
        let lab = lab(|row| row == 14, &format!("on_nonfinite = \"stop\"{more}"));
        let recipe = lab.text("recipe.toml") + "\n[loss_scale]\ninit = 8\nhysteresis = 3\n";
        lab.write("recipe.toml", &recipe);
        lab
    };
    let stopped = of("");
    let (exit, code, text) = ends(&stopped, &train);
    assert_eq!((exit, code.as_str()), (3, "R0602"), "{text}");
    let other = of("\ncheckpoint = 3");
    other.ok(&[&train[..], &["--steps", "3"]].concat());
    let file = "trained/checkpoint-3.safetensors";
    let state = |lab: &Lab| -> Vec<(String, Vec<f32>)> {
        tensors(lab, file).into_iter().filter(|t| t.0.contains("machine.")).collect()
    };
    assert_eq!(state(&stopped), state(&other));
    assert!(state(&other).iter().any(|t| t.0.ends_with("growth_tracker") && t.1 == [3.0]));
}

#[test]
fn a_run_that_ignores_what_is_not_finite_is_not_good() {
    let lab = lab(|row| row == 14, "on_nonfinite = \"ignore\"");
    let (exit, code, text) = ends(&lab, &["train", "recipe.toml", "--policy", "f32"]);
    assert_eq!((exit, code.as_str()), (3, "R0606"), "{text}");
    assert!(text.contains("elements of") && text.contains("are not finite"), "{text}");
    assert_eq!(log(&lab).len(), 6);
    // Weights that only the last update takes too far are found, too.
    let lab = Lab::with("lr = 0.5", "lr = 3e38");
    let text = lab.text("recipe.toml").replace("batch = 4", "batch = 4\nscale = { x = 1e4 }");
    lab.write("recipe.toml", &text);
    let (exit, code, text) =
        ends(&lab, &["train", "recipe.toml", "--policy", "f32", "--steps", "3"]);
    assert!(exit == 3 && code == "R0606", "{exit} {text}");
    // Where a later step meets them, it says that they were given to it.
    let (exit, code, text) = ends(&lab, &["train", "recipe.toml", "--policy", "f32"]);
    assert!(exit == 3 && code == "R0602", "{exit} {text}");
    assert!(text.contains("the step before went too far"), "{text}");
}

#[test]
fn runs_of_skipped_steps_end() {
    let bad = "on_nonfinite = \"skip\"\nmax_skips = 3";
    let (exit, code, text) =
        ends(&lab(|_| true, bad), &["train", "recipe.toml", "--policy", "f32"]);
    assert_eq!((exit, code.as_str()), (3, "R0604"), "{text}");
    assert!(text.contains("3 steps in a row were skipped, the last of them step 3: "), "{text}");
    // Every second batch is in order: never three in a row.
    let lab = self::lab(|row| row / 4 % 2 == 0, bad);
    let out = lab.ok(&["train", "recipe.toml", "--policy", "f32"]);
    assert!(out.contains("skipped     3 steps"), "{out}");
    // A dynamic scale that has come to its floor, and still does not fit.
    let scale = "[loss_scale]\nmode = \"dynamic\"\ninit = 8\nmin = 4\n[train]";
    let lab = self::lab(|_| true, "");
    lab.write("recipe.toml", &lab.text("recipe.toml").replace("[train]", scale));
    let (exit, code, text) = ends(&lab, &["train", "recipe.toml", "--policy", "f16"]);
    assert_eq!((exit, code.as_str()), (3, "R0603"), "{text}");
    assert!(text.contains("reached its floor, 4e0, and step 2 still overflows: "), "{text}");
    assert_eq!(log(&lab).len(), 2);
    // One such step at the floor is a skip like any other.
    let lab = self::lab(|row| row == 14, "");
    lab.write("recipe.toml", &lab.text("recipe.toml").replace("[train]", &scale.replace('8', "4")));
    let out = lab.ok(&["train", "recipe.toml", "--policy", "f16"]);
    assert!(out.contains("skipped     1 step; step 4: "), "{out}");
}

/// Targets of a whole batch that do not count: the loss is 0/0, the weights stay.
#[test]
fn a_step_without_a_counted_target_changes_nothing() {
    let adam = "kind = \"adamw\"\nlr = 0.1\nweight_decay = 0.5";
    let run = |ignored: std::ops::Range<usize>, train: &str, steps: &str| {
        let lab = lab(|_| false, train);
        let text =
            lab.text("recipe.toml").replace("kind = \"sgd\"\nlr = 0.5\nmomentum = 0.9", adam);
        lab.write("recipe.toml", &text);
        let rows = lab.text("data.csv");
        let rows =
            rows.lines().enumerate().map(|(i, line)| match i > 0 && ignored.contains(&(i - 1)) {
                true => format!("{},-100\n", line.rsplit_once(',').expect("columns").0),
                false => format!("{line}\n"),
            });
        lab.write("data.csv", &rows.collect::<String>());
        let o = lab.run(&["train", "recipe.toml", "--policy", "f32", "--steps", steps]);
        (lab, o)
    };
    let file = "trained/weights.safetensors";
    let (lab, o) = run(20..24, "", "6");
    assert_eq!(code(&o), 0, "{}", stderr(&o));
    assert!(
        stdout(&o).contains("uncounted   step 6: none of its targets counts"),
        "{}",
        stdout(&o)
    );
    let last = &log(&lab)[5];
    assert_eq!(
        (&last["loss"], &last["counted"], &last["skipped"]),
        (&Value::Null, &0.0.into(), &false.into())
    );
    let (five, _) = run(20..24, "", "5");
    assert!(lab.read(file) == five.read(file), "decay and moments stay as they were");
    // One of the batches of a step is as if it were not there.
    let (half, o) = run(4..8, "accumulate = 2", "1");
    assert_eq!((code(&o), &log(&half)[0]["counted"]), (0, &4.0.into()), "{}", stderr(&o));
    let (alone, _) = run(4..8, "", "1");
    for ((name, a), (_, b)) in tensors(&half, file).iter().zip(&tensors(&alone, file)) {
        let near = a.iter().zip(b).all(|(a, b)| (a - b).abs() <= 1e-6);
        assert!(near, "{name}: {a:?}, not {b:?}");
    }
    // Both: nothing is there to learn from, in all of the run.
    let (_, o) = run(0..24, "accumulate = 2", "2");
    assert_eq!(code(&o), 3);
    assert!(
        stderr(&o).contains("R0605") && stderr(&o).contains("no step had a target"),
        "{}",
        stderr(&o)
    );
}

#[test]
fn a_norm_that_overflows_is_no_gradient_that_does() {
    // Gradients of about 1e20, whose squares f32 does not hold.
    let lab = lab(|_| false, "");
    let text = lab.text("recipe.toml").replace("batch = 4", "batch = 4\nscale = { x = 1e20 }");
    lab.write("recipe.toml", &text);
    let (exit, code, text) = ends(&lab, &["train", "recipe.toml", "--policy", "f32"]);
    assert_eq!((exit, code.as_str()), (3, "R0602"), "{text}");
    assert!(text.contains("'s gradients is beyond f32"), "{text}");
    assert!(text.contains("every gradient is finite"), "{text}");
}

#[test]
fn help_speaks_of_a_loss_scale_where_there_is_one() {
    let bad = "on_nonfinite = \"skip\"\nmax_skips = 9";
    let (exit, code, text) =
        ends(&lab(|_| true, bad), &["train", "recipe.toml", "--policy", "f32"]);
    assert_eq!((exit, code.as_str()), (3, "R0605"), "{text}");
    assert!(text.contains("without a loss scale") && !text.contains("[loss_scale]"), "{text}");
    let (_, code, text) = ends(
        &lab(|_| true, "max_skips = 9"),
        &["train", "recipe.toml", "--policy", "f16", "--steps", "2"],
    );
    assert_eq!(code, "R0605", "{text}");
    assert!(text.contains("[loss_scale] init"), "{text}");
}

#[test]
fn ignoring_what_a_loss_scale_skips_is_warned_of() {
    let lab = lab(|_| false, "on_nonfinite = \"ignore\"");
    let said = lab.warnings(&["compile", "recipe.toml", "--policy", "f16"]);
    assert!(said.contains("P0121") && said.contains("`on_nonfinite = \"ignore\"`"), "{said}");
    assert_eq!(lab.warnings(&["compile", "recipe.toml", "--policy", "f32"]), "");
}

#[test]
fn gradients_that_are_not_finite_are_no_success() {
    let lab = lab(|row| row == 2, "");
    let o = lab.run(&["grad", "recipe.toml", "-o", "g.st", "--policy", "f32", "--json"]);
    assert_eq!(super::code(&o), 3, "{}", stderr(&o));
    let v: Value = serde_json::from_str(&stdout(&o)).expect("one object");
    assert_eq!((&v["ok"], &v["errors"][0]["code"]), (&false.into(), &"R0609".into()));
    // How many are not, and what made the first such number.
    let said = v["errors"][0]["message"].as_str().expect("a message");
    assert!(said.contains("other gradients of 3"), "{said}");
    assert!(said.contains("the first value that is not finite, in the forward pass"), "{said}");
    assert!(tensors(&lab, "g.st").iter().any(|t| t.0.starts_with("grad.")));
}
