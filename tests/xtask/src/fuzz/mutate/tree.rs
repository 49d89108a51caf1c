//! Documents of values, maps and lists: JSON, and TOML by way of it.

use super::rng::Rng;
use super::{INTEGERS, REALS};
use serde_json::{Map, Number, Value};

/// A JSON document with one value changed, removed, repeated or moved; `None` where it is none.
pub fn json(input: &[u8], other: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
    let mut value: Value = serde_json::from_slice(input).ok()?;
    let other = serde_json::from_slice(other).unwrap_or(Value::Null);
    change(&mut value, &other, rng);
    Some(value.to_string().into_bytes())
}

/// The same for TOML; `None` also where the change has no form in TOML.
pub fn toml(input: &[u8], other: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
    let read =
        |bytes: &[u8]| -> Option<Value> { toml::from_str(std::str::from_utf8(bytes).ok()?).ok() };
    let mut value = read(input)?;
    let other = read(other).unwrap_or(Value::Null);
    change(&mut value, &other, rng);
    let table: toml::Table = serde_json::from_value(value).ok()?;
    Some(toml::to_string(&table).ok()?.into_bytes())
}

/// Paths to every value but the root.
fn paths(v: &Value, at: &mut Vec<usize>, out: &mut Vec<Vec<usize>>) {
    let children: Vec<&Value> = match v {
        Value::Array(list) => list.iter().collect(),
        Value::Object(map) => map.values().collect(),
        _ => return,
    };
    for (i, child) in children.into_iter().enumerate() {
        at.push(i);
        out.push(at.clone());
        paths(child, at, out);
        at.pop();
    }
}

fn find<'v>(v: &'v mut Value, path: &[usize]) -> Option<&'v mut Value> {
    path.iter().try_fold(v, |v, &i| match v {
        Value::Array(list) => list.get_mut(i),
        Value::Object(map) => map.values_mut().nth(i),
        _ => None,
    })
}

/// Changes one value below `root`.
pub fn change(root: &mut Value, other: &Value, rng: &mut Rng) {
    let mut all = vec![];
    paths(root, &mut vec![], &mut all);
    let Some(path) = rng.of(&all).cloned() else { return };
    match rng.below(8) {
        // Most often a leaf becomes another leaf.
        0..=3 => {
            let leaves: Vec<&Vec<usize>> = all.iter().collect();
            let mut pick = path;
            for _ in 0..8 {
                match find(root, &pick) {
                    Some(Value::Array(_) | Value::Object(_)) => {
                        pick = rng.of(&leaves).map_or(pick, |p| (*p).clone());
                    }
                    _ => break,
                }
            }
            if let Some(v) = find(root, &pick) {
                let old = v.take();
                *v = leaf(old, rng);
            }
        }
        // A value takes the place of another, of this document or another one.
        4 => {
            let from = rng.of(&all).cloned().unwrap_or_default();
            let value = find(root, &from).cloned().unwrap_or_default();
            if let Some(v) = find(root, &path) {
                *v = value;
            }
        }
        5 => {
            let mut theirs = vec![];
            paths(other, &mut vec![], &mut theirs);
            let from = rng.of(&theirs).cloned().unwrap_or_default();
            let value = find(&mut other.clone(), &from).cloned().unwrap_or_default();
            if let Some(v) = find(root, &path) {
                *v = value;
            }
        }
        // Removed, or repeated.
        kind => {
            let (last, parent) = path.split_last().expect("not the root");
            match find(root, parent) {
                Some(Value::Array(list)) if *last < list.len() => {
                    if kind == 6 {
                        list.remove(*last);
                    } else if list.len() < 4096 {
                        let again = list[*last].clone();
                        list.insert(*last, again);
                    }
                }
                Some(Value::Object(map)) => {
                    if let Some(key) = map.keys().nth(*last).cloned() {
                        let value = map.remove(&key).unwrap_or_default();
                        if kind == 7 {
                            map.insert(word(&key, rng), value);
                        }
                    }
                }
                _ => {}
            }
        }
    }
}

/// A name that is nearly another.
fn word(key: &str, rng: &mut Rng) -> String {
    match rng.below(4) {
        0 => format!("{key}x"),
        1 => String::new(),
        2 => "\u{1F980}\n\"".into(),
        _ => key.chars().rev().collect(),
    }
}

fn leaf(old: Value, rng: &mut Rng) -> Value {
    let integer = |rng: &mut Rng| Value::from(*rng.of(INTEGERS).expect("there are some"));
    match (&old, rng.below(6)) {
        (Value::Number(n), 0..=2) => {
            let by = [1, -1, 2, -2, 16][rng.below(5)];
            match (n.as_i64(), n.as_f64()) {
                (Some(x), _) => Value::from(x.wrapping_add(by)),
                (None, Some(x)) => {
                    let near = [x * 2.0, -x, x + 1.0, x / 3.0, 1.0 / x][rng.below(5)];
                    Number::from_f64(near).map_or(Value::Null, Value::Number)
                }
                _ => integer(rng),
            }
        }
        (Value::Number(n), 3) if n.as_f64().is_some() => {
            let text = rng.of(REALS).expect("there are some");
            text.parse().ok().and_then(Number::from_f64).map_or(Value::Null, Value::Number)
        }
        (Value::String(s), 0..=3) => Value::String(near(s, rng)),
        (Value::Bool(b), 0..=3) => Value::Bool(!b),
        (_, 4) => integer(rng),
        (_, 5) => [
            Value::Null,
            Value::Bool(true),
            Value::Array(vec![]),
            Value::Object(Map::new()),
            "x".into(),
        ][rng.below(5)]
        .clone(),
        _ => integer(rng),
    }
}

/// A string with a number, a word or a character of it changed.
fn near(s: &str, rng: &mut Rng) -> String {
    if s.is_empty() || rng.one_in(8) {
        return word(s, rng);
    }
    String::from_utf8_lossy(&super::words::mutate(s.as_bytes(), s.as_bytes(), rng)).into_owned()
}
