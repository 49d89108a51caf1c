//! Every edit of a single field of a plan file is refused, or says the same, or is an edit of what
//! `docs/PLAN.md` calls description.

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline;
use precast_plan::{Plan, Seal};
use serde_json::{Map, Number, Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

#[path = "cli/small.rs"]
mod small;

/// A key of an object or an index of a list.
type Place = Vec<Value>;

/// Every place in a value below the root.
fn places(v: &Value, at: &mut Place, out: &mut Vec<Place>) {
    let mut visit = |key: Value, child: &Value| {
        at.push(key);
        out.push(at.clone());
        places(child, at, out);
        at.pop();
    };
    match v {
        Value::Array(list) => list.iter().enumerate().for_each(|(i, c)| visit(json!(i), c)),
        Value::Object(map) => map.iter().for_each(|(k, c)| visit(json!(k), c)),
        _ => {}
    }
}

fn find<'v>(v: &'v mut Value, path: &[Value]) -> &'v mut Value {
    path.iter().fold(v, |v, key| match key {
        Value::String(k) => v.get_mut(k).expect("the place exists"),
        k => v.get_mut(k.as_u64().expect("an index") as usize).expect("the place exists"),
    })
}

/// A place as the documentation writes it: `micro[].kernel.gemm.m`.
fn pattern(path: &[Value]) -> String {
    let mut out = String::new();
    for key in path {
        match key {
            Value::String(k) if out.is_empty() => out += k,
            Value::String(k) => out += &format!(".{k}"),
            _ => out += "[]",
        }
    }
    out
}

fn is_description(pattern: &str) -> bool {
    Plan::DESCRIPTION.iter().any(|d| {
        pattern.strip_prefix(d).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
    })
}

/// Other values for one: neighbours of a number, other words that stand in such a place, and other
/// values of this document in such a place.
fn others(old: &Value, alike: &BTreeSet<String>) -> Vec<Value> {
    let mut out = match old {
        Value::Number(n) if n.is_f64() => {
            let x = n.as_f64().expect("a number");
            [x + 1.0, -x, x * 2.0, x * 1.001]
                .map(|x| Number::from_f64(x).map_or(Value::Null, Value::Number))
                .to_vec()
        }
        Value::Number(n) => {
            let x = n.as_i64().unwrap_or(0);
            [x + 1, x - 1, x * 2, 0].map(|x| json!(x)).to_vec()
        }
        Value::Bool(b) => vec![json!(!b)],
        Value::String(s) => {
            // Code: another register, another operation, another constant.
            let bump = |c: char| match c.to_digit(10) {
                Some(d) => char::from_digit((d + 1) % 10, 10).expect("a digit"),
                None => c,
            };
            let mut list = vec![format!("{s}x"), s.chars().map(bump).collect::<String>()];
            list.extend(s.contains("add").then(|| s.replace("add", "mul")));
            list.extend(s.contains("sub").then(|| s.replace("sub", "add")));
            list.extend(s.contains("real ").then(|| s.replace("real ", "real -")));
            list.into_iter().map(Value::String).collect()
        }
        Value::Null | Value::Array(_) | Value::Object(_) => vec![],
    };
    // Two of the values that stand in such places elsewhere.
    out.extend(alike.iter().take(2).map(|t| serde_json::from_str(t).expect("printed")));
    out.retain(|v| v != old);
    out
}

/// What becomes of the list or object around a place without it, and of a list with the place and the
/// one behind it in each other's.
fn arrangements(parent: &Value, last: &Value) -> Vec<Value> {
    match (parent, last) {
        (Value::Array(list), i) => {
            let i = i.as_u64().expect("an index") as usize;
            let mut less = list.clone();
            less.remove(i);
            let mut out = vec![Value::Array(less)];
            if i + 1 < list.len() {
                let mut swapped = list.clone();
                swapped.swap(i, i + 1);
                out.push(Value::Array(swapped));
            }
            out
        }
        (Value::Object(map), k) => {
            let mut less = map.clone();
            less.remove(k.as_str().expect("a key"));
            vec![Value::Object(less)]
        }
        _ => unreachable!("a place lies in a list or an object"),
    }
}

fn plan(model: &str, changes: &[(&str, &str)]) -> Plan {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(model);
    let mut text = small::RECIPE.to_string();
    for (from, to) in changes {
        assert!(text.contains(from), "{from}");
        text = text.replace(from, to);
    }
    let recipe = Recipe::parse(folder.join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
    let dir = tempfile::tempdir().expect("a temporary folder");
    let recipe = match model {
        "" => {
            std::fs::write(dir.path().join("model.pir"), small::MODEL).expect("written");
            std::fs::write(dir.path().join("data.csv"), small::table(24)).expect("written");
            Recipe::parse(dir.path().join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"))
        }
        _ => recipe,
    };
    pipeline::compile(&recipe, &pipeline::Options::default()).unwrap_or_else(|e| panic!("{e}")).plan
}

/// Plans that have most kinds of fields between them.
fn plans() -> Vec<(&'static str, Plan)> {
    const NO_DATA: (&str, &str) = ("format = \"csv\"\nfile = \"data.csv\"\nbatch = 4", "");
    let no_inputs = |dims: &'static str| ("inputs = { x = \"a..c\" }", dims);
    let onnx = ("model.pir", "model.onnx");
    let bf16 = ("[train]", "[precision]\npolicy = \"bf16\"\n[train]");
    let f16 = (
        "[train]\nsteps = 4",
        "[precision]\npolicy = \"f16\"\n[train]\nsteps = 4\nclip_norm = 1.0\nema = 0.9\naccumulate = 2",
    );
    vec![
        ("small, f32", plan("", &[])),
        ("small, f16 with everything", plan("", &[f16])),
        (
            "a convolutional network, bf16",
            plan("cifar_cnn", &[NO_DATA, onnx, bf16, no_inputs("dims = { batch = 2 }")]),
        ),
    ]
}

/// What becomes of every edit of a plan: how many were refused, how many say the same, and the
/// patterns of those that passed. Fields of one pattern are tried `most` times.
fn edits(whole: &Value, most: usize) -> (usize, usize, BTreeMap<String, usize>) {
    let original = Plan::from_json(&whole.to_string()).expect("the plan itself is read");
    let mut document = whole.clone();
    let mut all = vec![];
    places(whole, &mut vec![], &mut all);
    let mut alike: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for path in &all {
        let v = find(&mut document, path);
        if !v.is_array() && !v.is_object() {
            let list = alike.entry(pattern(path)).or_default();
            list.extend((list.len() < 3).then(|| v.to_string()));
        }
    }
    let (mut refused, mut same, mut passed) = (0, 0, BTreeMap::new());
    let mut tried: BTreeMap<String, usize> = BTreeMap::new();
    let empty = BTreeSet::new();
    for path in &all {
        let pattern = pattern(path);
        let times = tried.entry(pattern.clone()).or_default();
        *times += 1;
        if *times > most {
            continue;
        }
        let (last, parent) = path.split_last().expect("not the root");
        let old = find(&mut document, path).clone();
        let around = find(&mut document, parent).clone();
        let values = others(&old, alike.get(&pattern).unwrap_or(&empty)).into_iter();
        let changes = values.map(|v| (&path[..], v));
        let orders = arrangements(&around, last).into_iter().map(|v| (parent, v));
        for (at, new) in changes.chain(orders).collect::<Vec<_>>() {
            let before = std::mem::replace(find(&mut document, at), new);
            match Plan::from_json(&document.to_string()) {
                Ok(plan) if plan == original => same += 1,
                Ok(plan) if plan.validate().is_ok() => {
                    *passed.entry(pattern.clone()).or_default() += 1;
                }
                _ => refused += 1,
            }
            *find(&mut document, at) = before;
        }
    }
    assert_eq!(document, *whole);
    (refused, same, passed)
}

#[test]
fn every_edit_of_a_field_that_means_something_is_refused() {
    let mut described: BTreeSet<&&str> = BTreeSet::new();
    for (name, plan) in plans() {
        let whole: Value = serde_json::from_str(&plan.to_json()).expect("a plan is JSON");
        let (refused, same, passed) = edits(&whole, 6);
        println!("{name}: {refused} edits refused, {same} say the same, {passed:?} pass");
        assert!(refused > 500, "{name}: only {refused}");
        let wrong: Vec<&String> = passed.keys().filter(|p| !is_description(p)).collect();
        assert!(wrong.is_empty(), "{name}: edits of these fields pass: {wrong:?}");
        let covers = |d: &&&str| passed.keys().any(|p| p.starts_with(**d));
        described.extend(Plan::DESCRIPTION.iter().filter(covers));
        // Only what says the same as before may be without effect: an empty list left out, a digest left
        // out.
        assert!(same < refused / 20, "{name}: {same}");
    }
    let idle: Vec<_> = Plan::DESCRIPTION.iter().filter(|d| !described.contains(*d)).collect();
    assert!(idle.is_empty(), "no edit of these passed, though they are description: {idle:?}");
}

#[test]
fn the_documentation_lists_what_is_description() {
    let book = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/PLAN.md"))
        .expect("the documentation");
    let rows = book.lines().skip_while(|l| !l.starts_with("Fields that the digest does not cover"));
    let rows = rows.skip_while(|l| !l.starts_with("| `")).take_while(|l| l.starts_with('|'));
    let listed: BTreeSet<String> = rows
        .flat_map(|l| {
            let cell = l.split('|').nth(1).expect("a cell");
            cell.split(',').map(|c| c.trim().trim_matches('`').to_string()).collect::<Vec<_>>()
        })
        .collect();
    let own: BTreeSet<String> = Plan::DESCRIPTION.iter().map(ToString::to_string).collect();
    assert_eq!(listed, own);
}

#[test]
fn a_plan_without_a_digest_is_as_good_as_its_validation() {
    let plan = plan("", &[]);
    let mut whole: Value = serde_json::from_str(&plan.to_json()).expect("a plan is JSON");
    let sealed = whole.to_string();
    assert_eq!(Plan::unsealed(&sealed).expect("read").1, Seal::Whole);
    let Value::Object(map) = &mut whole else { unreachable!("a plan is an object") };
    let digest = map.remove("digest").expect("it has one");
    assert_eq!(Plan::unsealed(&whole.to_string()).expect("read"), (plan.clone(), Seal::Absent));
    assert_eq!(Plan::from_json(&whole.to_string()), Ok(plan.clone()));
    // A digest that is not its own, or two.
    whole["digest"] = json!("0123456789abcdef");
    let e = Plan::from_json(&whole.to_string()).unwrap_err();
    assert!(e.contains(&plan.digest()) && e.contains("changed since"), "{e}");
    let two = sealed.replacen('{', &format!("{{\"digest\":{digest},"), 1);
    assert!(Plan::from_json(&two).unwrap_err().contains("duplicate field `digest`"));
    // What is no plan at all stays so.
    whole["digest"] = json!(7);
    assert!(Plan::from_json(&whole.to_string()).unwrap_err().contains("damaged"));
    let empty = Value::Object(Map::new());
    assert!(Plan::from_json(&empty.to_string()).is_err());
}
