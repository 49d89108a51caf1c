//! Commands that put plans beside one another: `compare`, `diff`, `explain --casts`.

use crate::lab::Lab;
use crate::{code, precast, stderr, stdout};
use serde_json::Value;
use std::path::Path;

const RECIPE: &str = "examples/digits/recipe.toml";

fn json(args: &[&str]) -> Value {
    let o = precast(args);
    assert_eq!(code(&o), 0, "{args:?}: {}", stderr(&o));
    serde_json::from_str(&stdout(&o)).expect("one object")
}

fn plan(dir: &Path, policy: &str) -> String {
    plan_of(RECIPE, dir, policy)
}

fn plan_of(recipe: &str, dir: &Path, policy: &str) -> String {
    let out = dir.join(format!("{policy}.plan")).display().to_string();
    let o = precast(&["compile", recipe, "--device", "sm_80", "--policy", policy, "-o", &out]);
    assert_eq!(code(&o), 0, "{}", stderr(&o));
    out
}

#[test]
fn compare_prices_every_policy_with_one_model() {
    let o = precast(&["compare", RECIPE, "--device", "sm_80"]);
    assert_eq!(code(&o), 0, "{}", stderr(&o));
    insta::assert_snapshot!("compare_digits", stdout(&o));
    let v = json(&["compare", RECIPE, "--device", "sm_80", "--json"]);
    let rows = v["rows"].as_array().expect("rows");
    let of = |policy: &str| {
        rows.iter().find(|r| r["policy"] == policy).unwrap_or_else(|| panic!("no {policy}: {v}"))
    };
    assert_eq!(of("f32")["casts"], 0);
    assert_eq!(of("f32")["products_16"], 0.0);
    assert!(of("torch-autocast")["cast_bytes"].as_u64() > Some(0));
    assert_eq!(of("torch-autocast")["products_16"], 1.0);
    // `auto` may choose what the best of our own policies is, and nothing dearer.
    let time = |policy: &str| of(policy)["predicted_ns"].as_f64().expect("a time");
    assert!(time("auto") <= time("f32") && time("auto") <= time("torch-autocast"));
    assert!(rows.iter().all(|r| r.get("measured_ns").is_none()));
}

#[test]
fn compare_measures_where_it_is_asked_to() {
    let v =
        json(&["compare", RECIPE, "--only", "f32", "--only", "all-16", "--measure", "1", "--json"]);
    let rows = v["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 2);
    assert!(rows.iter().all(|r| r["measured_ns"].as_f64() > Some(0.0)), "{v}");
}

#[test]
fn a_plan_predicts_what_its_candidate_was_priced_at() {
    for policy in ["auto", "bf16", "tf-grappler"] {
        let dir = tempfile::tempdir().unwrap();
        let out = plan(dir.path(), policy);
        let text = std::fs::read_to_string(&out).unwrap();
        let v: Value = serde_json::from_str(&text).expect("a plan");
        let (s, steps) = (&v["summary"], |phase: &str| {
            let steps = v[phase].as_array().expect("steps");
            steps.iter().map(|s| s["predicted_ns"].as_f64().expect("a time")).sum::<f64>()
        });
        let whole = s["predicted_ns"].as_f64().expect("a time");
        assert!((steps("micro") + steps("update") - whole).abs() < 1e-6 * whole);
        let candidates = s["candidates"].as_array().expect("candidates");
        let same = candidates.iter().any(|c| c["predicted_ns"].as_f64() == Some(whole));
        assert!(same, "{policy}: {candidates:#?}");
    }
}

#[test]
fn prices_of_operations_add_up_to_the_steps_that_they_name() {
    let dir = tempfile::tempdir().unwrap();
    let text = std::fs::read_to_string(plan(dir.path(), "bf16")).unwrap();
    let v: Value = serde_json::from_str(&text).expect("a plan");
    let list = |v: &Value| v.as_array().expect("a list").clone();
    let steps = [list(&v["micro"]), list(&v["update"])].concat();
    let mut prices = std::collections::BTreeMap::new();
    for d in list(&v["journal"]) {
        let (op, price) = (d["op"].as_str().expect("a name"), d["cost_ns"].as_f64());
        prices.entry(op.to_string()).or_insert(price.expect("a price"));
    }
    let names = |step: &Value| -> Vec<String> {
        list(&step["ops"]).iter().map(|o| o.as_str().expect("a name").to_string()).collect()
    };
    let named = |step: &&Value| names(step).iter().any(|o| prices.contains_key(o));
    let time = |step: &Value| step["predicted_ns"].as_f64().expect("a time");
    let want: f64 = steps.iter().filter(named).map(time).sum();
    let computed: Vec<String> = steps.iter().flat_map(names).collect();
    let have: f64 = prices.iter().filter(|(op, _)| computed.contains(op)).map(|p| p.1).sum();
    assert!(want > 0.5 * v["summary"]["predicted_ns"].as_f64().expect("a time"));
    assert!((have / want - 1.0).abs() < 1e-9, "{have} {want}");
}

#[test]
fn diff_says_what_changed() {
    let dir = tempfile::tempdir().unwrap();
    let (f32, bf16) = (plan(dir.path(), "f32"), plan(dir.path(), "bf16"));
    let o = precast(&["diff", &f32, &bf16]);
    assert_eq!(code(&o), 0, "{}", stderr(&o));
    insta::assert_snapshot!("diff_f32_bf16", stdout(&o));
    let same = precast(&["diff", &bf16, &bf16]);
    assert!(stdout(&same).contains("the same operations in the same formats and kernels"));
    let torch = plan(dir.path(), "torch-autocast-bf16");
    insta::assert_snapshot!("diff_bf16_torch", stdout(&precast(&["diff", &bf16, &torch])));
    let v = json(&["diff", &f32, &bf16, "--json"]);
    assert!(v["diff"]["formats"].as_array().is_some_and(|f| !f.is_empty()));
    assert_eq!(v["diff"]["predicted_ns"].as_array().map(Vec::len), Some(2));
}

#[test]
fn explain_says_who_asked_for_every_cast() {
    let dir = tempfile::tempdir().unwrap();
    let gpt = "examples/bytes_gpt/recipe.toml";
    for (recipe, policy, name) in [
        (RECIPE, "auto", "casts_auto"),
        (RECIPE, "bf16", "casts_bf16"),
        (RECIPE, "f16", "casts_f16"),
        (RECIPE, "torch-autocast", "casts_torch"),
        (RECIPE, "torch-autocast-bf16", "casts_torch_bf16"),
        (RECIPE, "all-16-bf16", "casts_all_bf16"),
        (gpt, "auto", "casts_gpt_auto"),
        (gpt, "f16", "casts_gpt_f16"),
        (gpt, "torch-autocast-bf16", "casts_gpt_torch"),
    ] {
        let o = precast(&["explain", &plan_of(recipe, dir.path(), policy), "--casts"]);
        assert_eq!(code(&o), 0, "{}", stderr(&o));
        insta::assert_snapshot!(name, stdout(&o));
    }
    let o = precast(&["explain", &plan(dir.path(), "f32"), "--casts"]);
    assert_eq!(stdout(&o), "the plan has no casts\n");
}

#[test]
fn precision_plans_are_text_to_snapshot() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(RECIPE);
    let text = precast_compiler::snapshot::precision(path).unwrap_or_else(|e| panic!("{e}"));
    insta::assert_snapshot!("precision_digits", text);
}

#[test]
fn a_plan_that_was_changed_is_refused_until_it_is_sealed() {
    let lab = Lab::new();
    lab.ok(&["compile", "recipe.toml", "-o", "a.plan"]);
    assert!(lab.ok(&["check", "a.plan"]).contains("as it was written"));
    let text = lab.text("a.plan");
    // The learning rate is an input; what momentum keeps is a constant of a program.
    let changed = text.replace("real 0.9", "real 0.8");
    assert_ne!(changed, text);
    lab.write("a.plan", &changed);
    for command in ["check", "show", "explain"] {
        let (code, said) = lab.fails(&[command, "a.plan"]);
        assert_eq!(code, "P0021", "{said}");
        assert!(said.contains("check --seal"), "{said}");
    }
    assert!(lab.ok(&["check", "--seal", "a.plan"]).contains("sealed"));
    assert!(lab.ok(&["check", "a.plan"]).contains("as it was written"));
    assert_ne!(lab.text("a.plan"), changed);
    // A plan that is not valid gets no digest, and what is no plan has none.
    lab.write("a.plan", &changed.replacen("\"accumulate\": 1", "\"accumulate\": 0", 1));
    assert_eq!(lab.fails(&["check", "--seal", "a.plan"]).0, "P0007");
    assert_eq!(lab.fails(&["check", "--seal", "recipe.toml"]).0, "P0011");
    // One that a person wrote has none either.
    let digest = text.find("\"digest\"").expect("it has a digest");
    let end = digest + text[digest..].find(',').expect("more fields follow") + 1;
    lab.write("a.plan", &format!("{}{}", &text[..digest], &text[end..]));
    assert!(lab.ok(&["check", "a.plan"]).contains("without a digest"));
    // What a plan says for people may be changed.
    lab.write("a.plan", &text.replacen("\"model\": \"small\"", "\"model\": \"mine\"", 1));
    assert!(lab.ok(&["check", "a.plan"]).contains("as it was written"));
}
