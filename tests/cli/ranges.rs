//! Ranges that are measured and used, and steps that are replayed to find what overflowed.

use super::code;
use super::lab::Lab;
use serde_json::Value;

/// The model of `tests/overflow`, its recipe with `old` replaced.
fn overflow(old: &str, new: &str) -> Lab {
    let lab = Lab { dir: tempfile::tempdir().expect("a temporary folder") };
    let from = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/overflow");
    for file in ["model.pir", "data.csv", "recipe.toml"] {
        let text = std::fs::read_to_string(from.join(file)).expect("the model is there");
        assert!(file != "recipe.toml" || text.contains(old), "{old}");
        lab.write(file, &if file == "recipe.toml" { text.replacen(old, new, 1) } else { text });
    }
    lab
}

const RANGES: &str = "policy = \"f16\"\nranges = \"ranges.json\"";

/// The model with its ranges measured.
fn measured() -> Lab {
    let lab = overflow("policy = \"f16\"", RANGES);
    lab.ok(&["profile", "recipe.toml", "--steps", "4", "-o", "ranges.json"]);
    lab
}

fn json(lab: &Lab, args: &[&str]) -> Value {
    let out = lab.ok(&[args, &["--json"]].concat());
    serde_json::from_str(&out).unwrap_or_else(|e| panic!("{e}: {out}"))
}

/// Lines of the log.
fn log(lab: &Lab) -> Vec<Value> {
    let lines = lab.text("log.jsonl");
    lines.lines().map(|l| serde_json::from_str(l).expect("an object")).collect()
}

/// Products of a plan by the format of their operands.
fn products(lab: &Lab) -> Vec<(String, String)> {
    lab.ok(&["compile", "recipe.toml", "-o", "p.plan"]);
    let all = json(lab, &["explain", "p.plan"]);
    let list = all["decisions"].as_array().expect("a list");
    let products = list.iter().filter(|d| {
        let rejected = d["rejected"].as_array().expect("a list");
        rejected.iter().any(|r| r["what"].as_str().is_some_and(|w| w.starts_with("operands in")))
    });
    let text = |v: &Value| v.as_str().expect("a string").to_string();
    let operand = |d: &Value| text(&d["chosen"]).split(',').next().expect("a format").to_string();
    products.map(|d| (text(&d["op"]), operand(d))).collect()
}

#[test]
fn ranges_of_every_tensor_are_measured() {
    let lab = overflow("", "");
    let out = lab.ok(&["profile", "recipe.toml", "--steps", "4", "-o", "ranges.json"]);
    let device = out.lines().position(|l| l.starts_with("device")).expect("the device is named");
    let lines: Vec<&str> =
        out.lines().enumerate().filter(|(i, _)| *i != device).map(|(_, l)| l).collect();
    insta::assert_snapshot!("profile", lines.join("\n"));
    let out = lab.ok(&["profile", "recipe.toml", "--steps", "1", "--tensor", "wid*"]);
    assert!(out.contains("\nwide, 32 elements") && out.contains("  2^16 "), "{out}");
    // The file is data: the same measurement gives the same bytes, on any number of threads.
    let first = lab.text("ranges.json");
    lab.ok(&["profile", "recipe.toml", "--steps", "4", "-o", "ranges.json", "--threads", "1"]);
    assert_eq!(lab.text("ranges.json"), first);
    let all = json(&lab, &["profile", "recipe.toml", "--steps", "4"]);
    let find = |name: &str| -> Value {
        let list = all["tensors"].as_array().expect("a list");
        list.iter().find(|t| t["name"] == name).unwrap_or_else(|| panic!("{name}")).clone()
    };
    // 3 · 30000 + 20000 + 0.5 · 10000; the weights hardly move.
    let wide = find("wide");
    let max = wide["max"].as_f64().expect("a number");
    assert!((114_990.0..115_010.0).contains(&max), "{max}");
    assert_eq!(wide["shares"][0]["format"], "f16");
    // One element of the 32 of every other batch.
    assert_eq!(wide["shares"][0]["above"], 1.0 / 64.0);
    assert_eq!(find("fc2.grad.1")["side"], "cotangent");
}

#[test]
fn what_overflows_f16_is_an_island_there_and_nowhere_else() {
    let lab = measured();
    let all = products(&lab);
    let of = |format: &str| -> Vec<&str> {
        all.iter().filter(|(_, f)| f == format).map(|(op, _)| op.as_str()).collect()
    };
    // What reads the activation: the product behind it, and the gradient of that product's weight.
    assert_eq!(of("f32"), ["fc2", "fc2.grad.3"]);
    assert_eq!(of("f16"), ["fc1", "fc3", "fc3.grad.1", "fc3.grad.3", "fc2.grad.1", "fc1.grad.3"]);
    let text = lab.ok(&["explain", "p.plan", "fc2"]);
    assert!(
        text.contains("because `wide` reached 1.15e5 in the ranges; f16 holds 65504"),
        "{text}"
    );
    let summary = lab.ok(&["explain", "p.plan"]);
    let choice = summary.lines().find(|l| l.starts_with("choice")).expect("a choice");
    assert!(choice.contains("by the ranges the loss scale begins at"), "{choice}");
    // Without ranges everything is f16 …
    let lab = overflow("", "");
    assert!(products(&lab).iter().all(|(_, f)| f == "f16"));
    // … and steps are skipped, which they are not with them.
    lab.ok(&["train", "recipe.toml"]);
    let skipped = |lab: &Lab| -> Vec<bool> {
        log(lab).iter().map(|l| l["skipped"].as_bool().expect("a truth")).collect()
    };
    assert_eq!(skipped(&lab), [true, false, true, false]);
    let lab = measured();
    lab.ok(&["train", "recipe.toml"]);
    assert_eq!(skipped(&lab), [false; 4]);
}

#[test]
fn the_loss_scale_begins_where_the_ranges_allow() {
    let first = |lab: &Lab| {
        lab.ok(&["train", "recipe.toml", "--steps", "1"]);
        log(lab)[0]["scale"].as_f64().expect("a scale")
    };
    let lab = measured();
    let scale = first(&lab);
    assert_eq!(scale.log2().fract(), 0.0);
    // The largest cotangent that may be f16 is below f16's largest number by a factor of 2 to 4.
    let all = json(&lab, &["profile", "recipe.toml", "--steps", "4"]);
    let list = all["tensors"].as_array().expect("a list");
    lab.ok(&["compile", "recipe.toml", "-o", "p.plan"]);
    let choice = json(&lab, &["explain", "p.plan"]);
    let choice = choice["summary"]["choice"].as_str().expect("a sentence").to_string();
    let limit = choice.split("for `").nth(1).and_then(|c| c.split('`').next()).expect("a name");
    let max = list.iter().find(|t| t["name"] == limit).expect("a tensor")["max"].as_f64();
    let reached = max.expect("a number") * scale;
    assert!((65504.0 / 4.0..=65504.0 / 2.0).contains(&reached), "{limit}: {reached}");
    // What the recipe says wins.
    let recipe = lab.text("recipe.toml");
    let with = |text: &str| {
        lab.write("recipe.toml", &format!("{recipe}\n[loss_scale]\n{text}\n"));
        first(&lab)
    };
    assert_eq!(with("init = 8"), 8.0);
    // A scale under which cotangents overflow makes them islands, with the reason.
    with("init = 1e9");
    let islands = products(&lab);
    assert!(islands.contains(&("fc3.grad.1".into(), "f32".into())), "{islands:?}");
    let text = lab.ok(&["explain", "p.plan", "fc3.grad.1"]);
    assert!(text.contains("under the loss scale 1000000000; f16 holds 65504"), "{text}");
}

#[test]
fn ranges_of_another_model_are_refused() {
    let lab = measured();
    let compile = ["compile", "recipe.toml", "-o", "p.plan"];
    let text = lab.text("ranges.json");
    lab.write("ranges.json", &text.replacen("\"count\":96", "\"count\":97", 1));
    let (code, message) = lab.fails(&compile);
    assert_eq!(code, "P0504", "{message}");
    assert!(message.contains("add up") && message.contains("ranges.json"), "{message}");
    std::fs::remove_file(lab.path("ranges.json")).expect("removed");
    assert_eq!(lab.fails(&compile).0, "P0504");
    // Ranges that do not fit are measured again without a complaint about them.
    lab.ok(&["profile", "recipe.toml", "--steps", "1", "-o", "ranges.json"]);
    lab.ok(&compile);
    let model = lab.text("model.pir");
    lab.write("model.pir", &model.replace("act=gelu", "act=relu"));
    let (code, message) = lab.fails(&compile);
    assert_eq!(code, "P0505", "{message}");
    assert!(message.contains("recipe.toml:21:") && message.contains("profile"), "{message}");
    lab.write("model.pir", &model);
    // First values are no part of the model's digest.
    lab.write("model.pir", &model.replace("uniform(0.8, 2)", "uniform(0.7, 2)"));
    assert_eq!(lab.warnings(&compile), "");
    // Other parameters are trained than were measured, so cotangents have other names.
    let recipe = lab.text("recipe.toml");
    lab.write("recipe.toml", &(recipe.clone() + "freeze = [\"w1\"]\n"));
    assert_eq!(lab.fails(&compile).0, "P0505");
    lab.write("recipe.toml", &recipe);
    let text = lab.text("ranges.json");
    lab.write("ranges.json", &text.replacen("\"name\":\"wide\"", "\"name\":\"wider\"", 1));
    let warnings = lab.warnings(&compile);
    assert!(warnings.contains("P0521") && warnings.contains("hold `wider`"), "{warnings}");
    lab.write("ranges.json", &text.replacen("\"name\":\"fc2\"", "\"name\":\"wide2\"", 1));
    assert!(lab.warnings(&compile).contains("hold `wide2`"));
    lab.write("ranges.json", &text);
    lab.write("recipe.toml", &recipe.replace("policy = \"f16\"", "policy = \"bf16\""));
    let warnings = lab.warnings(&compile);
    assert!(warnings.contains("P0121") && warnings.contains("no value is f16"), "{warnings}");
    let (code, message) = lab.fails(&["profile", "recipe.toml", "--tensor", "wide2"]);
    assert_eq!(code, "P0005", "{message}");
    assert!(message.contains("did you mean `wide`"), "{message}");
}

#[test]
fn a_forward_overflow_is_blamed_on_its_operation_and_element() {
    let lab = overflow("", "");
    let out = lab.ok(&["train", "recipe.toml"]);
    let want = "skipped     2 steps; step 1: wide[5, 2] = inf, the first value that is not finite, \
                in the forward pass";
    assert!(out.contains(want), "{out}");
    let lines = log(&lab);
    let blame = &lines[0]["blame"];
    assert_eq!(blame["op"], "wide");
    assert_eq!(blame["tensor"], "wide");
    assert_eq!(blame["side"], "forward");
    assert_eq!(blame["index"], serde_json::json!([5, 2]));
    assert_eq!(blame["value"], "inf");
    assert_eq!(blame["format"], "f16");
    assert_eq!(blame["elements"], 1);
    assert_eq!(blame["updates_since"], 0);
    assert_eq!(lines[2]["blame"]["index"], blame["index"]);
    assert!(lines[1].get("blame").is_none(), "{}", lines[1]);
    // On demand: the same, from the start and from a checkpoint.
    let mut again = json(&lab, &["blame", "recipe.toml", "--step", "3"]);
    let object = again["blame"].as_object_mut().expect("an object");
    object.insert("updates_since".into(), 0.into());
    assert_eq!(again["blame"], lines[2]["blame"]);
    assert_eq!(again["skipped"], true);
    assert_eq!(again["scale"], lines[2]["scale"]);
    insta::assert_snapshot!("blame", lab.ok(&["blame", "recipe.toml", "--step", "1"]));
    let fine = lab.ok(&["blame", "recipe.toml", "--step", "2"]);
    assert!(fine.contains("nobody: every value of the step is finite"), "{fine}");
    let recipe = lab.text("recipe.toml");
    lab.write("recipe.toml", &(recipe + "checkpoint = 2\n"));
    lab.ok(&["train", "recipe.toml"]);
    let file = "trained/checkpoint-2.safetensors";
    let resumed = json(&lab, &["blame", "recipe.toml", "--step", "3", "--resume", file]);
    assert_eq!(resumed["blame"]["index"], blame["index"]);
    assert_eq!(resumed["loss"], again["loss"]);
    let (code, message) = lab.fails(&["blame", "recipe.toml", "--step", "2", "--resume", file]);
    assert_eq!(code, "P0012", "{message}");
    // A limit leaves later skips unnamed, and a run without replays is the same run.
    lab.ok(&["train", "recipe.toml", "--blame", "1"]);
    let limited = log(&lab);
    assert!(limited[0].get("blame").is_some() && limited[2].get("blame").is_none());
    for (a, b) in limited.iter().zip(&lines) {
        assert_eq!((&a["loss"], &a["scale"]), (&b["loss"], &b["scale"]));
    }
}

#[test]
fn a_cotangent_overflow_is_blamed_on_its_operation_and_element() {
    // The forward pass is finite; one logit is wrong by much more than the others, so under this
    // scale the cotangents of few elements are beyond f16.
    let lab = overflow("", "");
    let model = lab.text("model.pir");
    lab.write("model.pir", &model.replace("30000.0", "300.0").replace("20000.0", "200.0"));
    let out = lab.ok(&["grad", "recipe.toml", "-o", "f32.safetensors", "--policy", "f32"]);
    assert!(out.contains("saved"), "{out}");
    let bytes = lab.read("f32.safetensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("safetensors");
    let logits: Vec<f64> = file
        .tensor("out.y")
        .expect("the logits")
        .data()
        .chunks(4)
        .map(|b| f64::from(f32::from_le_bytes(b.try_into().expect("four bytes"))))
        .collect();
    let labels: Vec<usize> = lab
        .text("data.csv")
        .lines()
        .skip(1)
        .take(8)
        .map(|l| l.rsplit(',').next().and_then(|x| x.parse().ok()).expect("a label"))
        .collect();
    // (softmax - one hot) / 8 by hand.
    let mut cotangent = vec![];
    for (row, label) in logits.chunks(3).zip(&labels) {
        let sum: f64 = row.iter().map(|x| x.exp()).sum();
        for (c, x) in row.iter().enumerate() {
            cotangent.push((x.exp() / sum - f64::from(u8::from(c == *label))) / 8.0);
        }
    }
    let mut sizes: Vec<f64> = cotangent.iter().map(|x| x.abs()).collect();
    sizes.sort_by(f64::total_cmp);
    // A scale between the largest magnitudes: the larger ones overflow, well apart from the others.
    let gap =
        (12..23).max_by(|&a, &b| (sizes[a + 1] / sizes[a]).total_cmp(&(sizes[b + 1] / sizes[b])));
    let gap = gap.expect("a range");
    assert!(sizes[gap + 1] / sizes[gap] > 1.02, "{sizes:?}");
    let scale = 65504.0 / (sizes[gap] * sizes[gap + 1]).sqrt();
    let first = cotangent.iter().position(|x| x.abs() > sizes[gap]).expect("one is larger");
    let recipe = lab.text("recipe.toml");
    let section = format!("\n[loss_scale]\nmode = \"static\"\ninit = {scale}\n");
    lab.write("recipe.toml", &(recipe + &section));
    // The only step of the run is skipped.
    assert_eq!(code(&lab.run(&["train", "recipe.toml", "--steps", "1"])), 3);
    let line = log(&lab).remove(0);
    assert_eq!(line["skipped"], true);
    let blame = &line["blame"];
    assert_eq!(blame["side"], "cotangent");
    assert_eq!(blame["op"], "loss.cross_entropy.grad");
    assert_eq!(blame["index"], serde_json::json!([first / 3, first % 3]));
    let sign = if cotangent[first] > 0.0 { "inf" } else { "-inf" };
    assert_eq!(blame["value"], sign);
    assert_eq!(blame["elements"], 24 - gap as u64 - 1);
    assert_eq!(line["scale"].as_f64().map(|s| s as f32), Some(scale as f32));
}
