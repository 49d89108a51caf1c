//! Losses over several batches, losses that the model computes, and sums of losses.

use super::lab::Lab;
use super::small::MODEL;
use super::stderr;
use precast_runtime::TensorFile;
use precast_runtime::tensors::WeightSource;
use std::collections::BTreeMap;

/// The model over another number of rows.
fn of_rows(rows: usize) -> String {
    MODEL
        .replace("f32[4,3]\n  %w1", &format!("f32[{rows},3]\n  %w1"))
        .replace("shape=[4,4]", &format!("shape=[{rows},4]"))
}

/// Loss and gradients of the first step.
fn gradients(lab: &Lab, policy: &str) -> BTreeMap<String, Vec<f32>> {
    lab.ok(&["grad", "recipe.toml", "-o", "g.safetensors", "--policy", policy]);
    let file = TensorFile::open(&lab.path("g.safetensors")).unwrap_or_else(|e| panic!("{e}"));
    let named = file.names().into_iter().filter(|n| n == "loss" || n.starts_with("grad."));
    named.map(|n| (n.clone(), file.tensor(&n).expect("listed").to_f32())).collect()
}

#[track_caller]
fn close(have: &BTreeMap<String, Vec<f32>>, want: &BTreeMap<String, Vec<f32>>, allowed: f64) {
    for (name, want) in want {
        let have = &have[name];
        let d: f64 = have.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let n: f64 = want.iter().map(|b| f64::from(*b).powi(2)).sum();
        assert!((d / n).sqrt() <= allowed, "{name}: {have:?}, not {want:?}");
    }
}

/// Rows in the order of the file; targets of the rows that `ignored` names do not count.
fn lab(rows: usize, accumulate: usize, ignored: &[usize], train: &str) -> Lab {
    let lab = Lab::with("steps = 4", &format!("steps = 1\naccumulate = {accumulate}\n{train}"));
    lab.write("model.pir", &of_rows(rows));
    let text = lab.text("recipe.toml");
    lab.write(
        "recipe.toml",
        &text.replace("batch = 4", &format!("batch = {rows}\nshuffle = false")),
    );
    let rows = lab.text("data.csv");
    let rows =
        rows.lines().enumerate().map(|(i, line)| match i > 0 && ignored.contains(&(i - 1)) {
            true => format!("{},-100\n", line.rsplit_once(',').expect("columns").0),
            false => format!("{line}\n"),
        });
    lab.write("data.csv", &rows.collect::<String>());
    lab
}

/// Of 12 rows 7 count: 3, 1, 0 and 3 of the four batches.
const IGNORED: &[usize] = &[4, 5, 6, 7, 8];

#[test]
fn several_batches_are_one_of_all_their_targets() {
    for (policy, allowed) in
        [("f32", 2e-6), ("bf16", 2e-2), ("f16", 5e-3), ("torch-autocast", 5e-3)]
    {
        let whole = gradients(&lab(12, 1, IGNORED, ""), policy);
        let parts = gradients(&lab(3, 4, IGNORED, ""), policy);
        close(&parts, &whole, allowed);
    }
    // The log has the same loss, and clipping sees the same norm.
    let clip = "log = \"log.jsonl\"\nclip_norm = 0.01";
    let logs = [lab(12, 1, IGNORED, clip), lab(3, 4, IGNORED, clip)].map(|lab| {
        lab.ok(&["train", "recipe.toml", "--policy", "f32"]);
        let line: serde_json::Value =
            serde_json::from_str(&lab.text("log.jsonl")).expect("one line");
        let w = TensorFile::open(&lab.path("trained/weights.safetensors")).expect("saved");
        (line, w.tensor("w1").expect("a weight").to_f32())
    });
    for key in ["loss", "grad_norm", "counted"] {
        let [a, b] = [&logs[0], &logs[1]].map(|l| l.0[key].as_f64().expect("a number"));
        assert!((a - b).abs() <= 1e-6 * a.abs(), "{key}: {a} and {b}");
    }
    assert_eq!(logs[0].0["counted"], 7.0);
    assert!(logs[0].1.iter().zip(&logs[1].1).all(|(a, b)| (a - b).abs() < 1e-7));
}

#[test]
fn the_mean_of_means_is_over_the_batches_that_count() {
    let micro = "normalize = \"micro\"";
    let have = gradients(&lab(3, 4, IGNORED, micro), "f32");
    // By hand: batches 0, 1 and 3; of batch 2 nothing counts.
    let part = |k: usize| {
        let l = lab(3, 1, IGNORED, "");
        let text = l.text("data.csv");
        let lines: Vec<&str> = text.lines().collect();
        let rows = [&lines[..1], &lines[1 + 3 * k..4 + 3 * k]].concat();
        l.write("data.csv", &(rows.join("\n") + "\n"));
        gradients(&l, "f32")
    };
    let counted: Vec<usize> =
        (0..4).filter(|k| (0..3).any(|i| !IGNORED.contains(&(3 * k + i)))).collect();
    assert!(counted.len() < 4, "one batch counts nothing");
    let parts: Vec<_> = counted.iter().map(|&k| part(k)).collect();
    let mut want = parts[0].clone();
    for (name, sum) in &mut want {
        for (i, x) in sum.iter_mut().enumerate() {
            *x = parts.iter().map(|p| p[name][i]).sum::<f32>() / parts.len() as f32;
        }
    }
    close(&have, &want, 2e-6);
    // With one batch a step the key does nothing, and says so.
    let text = lab(12, 1, IGNORED, micro).warnings(&["compile", "recipe.toml"]);
    assert!(text.contains("P0121") && text.contains("normalize"), "{text}");
}

/// The mean of the squares of an output, computed by the model: a scalar, or one number a row.
const OWN: &str = "  %sq = binary %y, %y {f=mul} @squares
  %rows = reduce %sq {f=sum, axes=[1]} @rows
  %all = reduce %rows {f=sum, axes=[0]} @all
  %one = scale %all {by=0.125} @one
result out.rows = %rows
result out.one = %one
";

fn own(loss: &str) -> Lab {
    let lab = Lab::new();
    lab.write("model.pir", &MODEL.replace("result out.y", &format!("{OWN}result out.y")));
    let text = lab.text("recipe.toml");
    let text =
        text.replace("targets = { t = \"label\" }\n", "targets = { zero = [\"a\", \"b\"] }\n");
    let text = text
        .replace("[loss]\nkind = \"cross_entropy\"", loss)
        .replace("batch = 4", "batch = 4\nshuffle = false");
    lab.write("recipe.toml", &text);
    lab
}

/// The same without targets.
fn bare(loss: &str) -> Lab {
    let lab = own(loss);
    let text = lab.text("recipe.toml");
    lab.write("recipe.toml", &text.replace("targets = { zero = [\"a\", \"b\"] }\n", ""));
    lab
}

#[test]
fn an_output_is_trained_as_it_is() {
    let one = gradients(&bare("[loss]\nkind = \"output\"\noutput = \"one\""), "f32");
    // The mean over rows is four times the mean over all elements, halved.
    let rows = gradients(&bare("[loss]\nkind = \"output\"\nprediction = \"rows\""), "f32");
    let twice: BTreeMap<_, _> =
        one.iter().map(|(n, x)| (n.clone(), x.iter().map(|x| 2.0 * x).collect())).collect();
    close(&rows, &twice, 1e-6);
    // A sum with weights: 0.5 · rows + 3 · one = 4 · one.
    let sum = "[loss]\nkind = \"output\"\noutputs = [\"rows\", \"one\"]\nweights = [0.5, 3]";
    let four: BTreeMap<_, _> =
        one.iter().map(|(n, x)| (n.clone(), x.iter().map(|x| 4.0 * x).collect())).collect();
    close(&gradients(&bare(sum), "f32"), &four, 1e-6);
    for policy in ["bf16", "f16", "all-16"] {
        let lab = bare(sum);
        lab.write("recipe.toml", &(lab.text("recipe.toml") + "[loss_scale]\ninit = 64\n"));
        close(&gradients(&lab, policy), &four, 3e-2);
    }
    // It trains, over several batches too, and is tested on rows that were held back.
    let lab = bare("[loss]\nkind = \"output\"\noutput = \"one\"");
    let text = lab.text("recipe.toml").replace("batch = 4", "batch = 4\nsplit = 0.25");
    lab.write(
        "recipe.toml",
        &text.replace("steps = 4", "steps = 40\naccumulate = 2").replace("lr = 0.5", "lr = 0.05"),
    );
    let out = lab.ok(&["train", "recipe.toml"]);
    assert!(out.contains("test loss: 0.0"), "{out}");
}

#[test]
fn terms_add_up() {
    let mse = |weight: &str| {
        format!("[[loss.terms]]\nkind = \"mse\"\nprediction = \"y\"\ntarget = \"zero\"\n{weight}")
    };
    let one = gradients(&own(&mse("")), "f32");
    let both = own(&(mse("weight = 2")
        + "\n[[loss.terms]]\nkind = \"output\"\noutput = \"one\"\nweight = 0.5\n"));
    let output = gradients(&bare("[loss]\nkind = \"output\"\noutput = \"one\""), "f32");
    let want: BTreeMap<_, _> = one
        .iter()
        .map(|(n, x)| {
            (n.clone(), x.iter().zip(&output[n]).map(|(a, b)| 2.0 * a + 0.5 * b).collect())
        })
        .collect();
    close(&gradients(&both, "f32"), &want, 1e-6);
}

#[test]
fn a_term_of_which_nothing_counts_is_nothing() {
    let lab = lab(4, 1, &[0, 1, 2, 3], "");
    lab.write("model.pir", &MODEL.replace("result out.y", &format!("{OWN}result out.y")));
    let terms = "[[loss.terms]]\nkind = \"cross_entropy\"\nprediction = \"y\"\ntarget = \"t\"\n\n\
                 [[loss.terms]]\nkind = \"output\"\noutput = \"one\"\nweight = 0.5\n";
    let text = lab.text("recipe.toml").replace("[loss]\nkind = \"cross_entropy\"", terms);
    lab.write("recipe.toml", &text);
    let output = gradients(&bare("[loss]\nkind = \"output\"\noutput = \"one\""), "f32");
    let half = |x: &Vec<f32>| x.iter().map(|x| 0.5 * x).collect();
    let want = output.iter().map(|(n, x)| (n.clone(), half(x))).collect();
    close(&gradients(&lab, "f32"), &want, 1e-6);
    lab.ok(&["train", "recipe.toml", "--policy", "f32"]);
}

#[test]
fn losses_that_do_not_fit_are_refused() {
    let refused = |loss: &str, code: &str, want: &str| {
        let lab = own(loss);
        let (have, text) = lab.fails(&["train", "recipe.toml"]);
        assert!(have == code && text.contains(want), "{loss}: {text}");
    };
    let mse = "[loss]\nkind = \"mse\"\nprediction = \"one\"\ntarget = \"zero\"";
    refused(mse, "P0403", "output `one` is one number");
    refused(mse, "P0403", "kind = \"output\"");
    let output = "[loss]\nkind = \"output\"\n";
    refused(output, "P0403", "set `[loss] output` to one of: rows, one, y");
    refused(&format!("{output}output = \"two\""), "P0403", "the model has no output `two`");
    refused(&format!("{output}output = \"one\"\ntarget = \"zero\""), "P0107", "takes no target");
    refused(
        &format!("{output}output = \"one\"\nprediction = \"one\""),
        "P0107",
        "`output` is given",
    );
    refused(&format!("{output}outputs = []"), "P0105", "`outputs` is empty");
    refused(&format!("{output}outputs = [\"one\"]\nweights = [1, 2]"), "P0105", "another length");
    refused("[loss]\nkind = \"mse\"\nprediction = \"y\"\noutput = \"y\"", "P0107", "as they are");
    refused("[loss]\nkind = \"mse\"\nterms = []", "P0107", "`terms` says");
    refused(
        "[loss]\nterms = [{ kind = \"mse\", prediction = \"y\", wieght = 2 }]",
        "P0102",
        "`weight`",
    );
    // Means over different numbers of targets cannot be told apart behind several batches.
    let lab = own(
        "[[loss.terms]]\nkind = \"cross_entropy\"\nprediction = \"y\"\ntarget = \"t\"\n[[loss.terms]]\nkind = \"output\"\noutput = \"one\"\n",
    );
    let text = lab.text("recipe.toml").replace("zero = [\"a\", \"b\"]", "t = \"label\"");
    lab.write("recipe.toml", &text);
    lab.ok(&["train", "recipe.toml", "--policy", "f32"]);
    lab.write("recipe.toml", &text.replace("steps = 4", "steps = 4\naccumulate = 2"));
    let (code, message) = lab.fails(&["train", "recipe.toml"]);
    assert!(code == "P0403" && message.contains("normalize = \"micro\""), "{message}");
    lab.write(
        "recipe.toml",
        &text.replace("steps = 4", "steps = 4\naccumulate = 2\nnormalize = \"micro\""),
    );
    lab.ok(&["train", "recipe.toml", "--policy", "f32"]);
    // A target of one row beside data of many.
    let o = own("[loss]\nkind = \"mse\"\nprediction = \"y\"").run(&["check", "recipe.toml"]);
    assert!(stderr(&o).is_empty(), "{}", stderr(&o));
}
