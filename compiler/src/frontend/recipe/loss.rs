//! The section `[loss]`: one loss, or several with weights.

use super::read::{Item, Table, holds};
use super::sections::or;
use super::{Data, Loss, LossKind, LossTerm};
use std::ops::Bound::{Excluded, Unbounded};

#[derive(Clone, Copy, PartialEq)]
enum Word {
    CrossEntropy,
    Mse,
    Output,
}

const WORDS: &[(&str, Word)] =
    &[("cross_entropy", Word::CrossEntropy), ("mse", Word::Mse), ("output", Word::Output)];

const KEYS: &[&str] = &[
    "kind",
    "prediction",
    "target",
    "ignore_index",
    "label_smoothing",
    "class_axis",
    "output",
    "outputs",
    "weights",
];

/// The loss; `data` is `None` where that section is wrong.
pub fn loss(t: Table, data: Option<&Data>) -> Option<Loss> {
    let Some(list) = t.get("terms") else {
        let terms = term(&t, data);
        t.finish();
        return Some(Loss { terms: terms? });
    };
    for key in KEYS {
        t.reject(key, "`terms` says what the loss is");
    }
    t.finish();
    let items = list.array()?;
    if items.is_empty() {
        return list.invalid("`terms` is empty", "name at least one", "");
    }
    let terms: Vec<_> = items.iter().map(|i| of_list(i, data)).collect();
    let terms: Vec<Vec<LossTerm>> = terms.into_iter().collect::<Option<_>>()?;
    Some(Loss { terms: terms.concat() })
}

/// One of `terms`: as the section, with a weight.
fn of_list(item: &Item, data: Option<&Data>) -> Option<Vec<LossTerm>> {
    let t = item.as_section()?;
    let weight = or(t.get("weight"), 1.0, |i| i.real((Excluded(0.0), Unbounded)));
    let terms = term(&t, data);
    t.finish();
    let (weight, mut terms) = (weight?, terms?);
    terms.iter_mut().for_each(|t| t.weight *= weight);
    if let Some(term) = terms.iter().find(|t| !holds(t.weight)) {
        let label = format!("times its own weight it is {:e}", term.weight);
        return item.invalid("the weight of an output is no number of f32", &label, "");
    }
    Some(terms)
}

/// What a table with a `kind` says.
fn term(t: &Table, data: Option<&Data>) -> Option<Vec<LossTerm>> {
    let kind = t.need("kind", "`kind` is \"cross_entropy\", \"mse\" or \"output\"");
    let kind = kind.and_then(|i| i.word(WORDS));
    if kind == Some(Word::Output) {
        return outputs(t);
    }
    for key in ["output", "outputs", "weights"] {
        if kind.is_some() {
            t.reject(key, "only `kind = \"output\"` takes outputs as they are");
        } else {
            t.get(key);
        }
    }
    let prediction = or(t.get("prediction"), None, |i| i.string().map(Some));
    let target = target(t, data);
    let kind = match kind {
        None | Some(Word::Output) => {
            for key in ["ignore_index", "label_smoothing", "class_axis"] {
                t.get(key);
            }
            None
        }
        Some(Word::CrossEntropy) => {
            // What programs compare it with has 32 bits.
            let most = i64::from(i32::MAX);
            let ignore_index = or(t.get("ignore_index"), -100, |i| i.int(-most - 1..=most));
            let smoothing = or(t.get("label_smoothing"), 0.0, |i| i.real(0.0..1.0));
            let class_axis = or(t.get("class_axis"), None, class_axis);
            match (ignore_index, smoothing, class_axis) {
                (Some(ignore_index), Some(label_smoothing), Some(class_axis)) => {
                    Some(LossKind::CrossEntropy { ignore_index, label_smoothing, class_axis })
                }
                _ => None,
            }
        }
        Some(Word::Mse) => {
            only_of_cross_entropy(t);
            Some(LossKind::Mse)
        }
    };
    Some(vec![LossTerm {
        kind: kind?,
        prediction: prediction?,
        target: Some(target?),
        weight: 1.0,
    }])
}

fn only_of_cross_entropy(t: &Table) {
    t.reject("ignore_index", "only cross-entropy ignores targets");
    t.reject("label_smoothing", "only cross-entropy smooths labels");
    t.reject("class_axis", "only cross-entropy has classes");
}

/// Outputs as they are: one, by `output` (or `prediction`, as in the other kinds), or several.
fn outputs(t: &Table) -> Option<Vec<LossTerm>> {
    t.reject("target", "the output is the loss, and takes no target");
    only_of_cross_entropy(t);
    let of = |prediction: Option<String>, weight: f64| LossTerm {
        kind: LossKind::Output,
        prediction,
        target: None,
        weight,
    };
    let Some(list) = t.get("outputs") else {
        t.reject("weights", "one output needs no weight");
        let key = if t.get("output").is_some() { "output" } else { "prediction" };
        if key == "output" {
            t.reject("prediction", "`output` is given too");
        }
        let name = or(t.get(key), None, |i| i.string().map(Some));
        return Some(vec![of(name?, 1.0)]);
    };
    t.reject("output", "`outputs` is given too");
    t.reject("prediction", "`outputs` is given too");
    let names: Vec<_> = list.array()?.iter().map(Item::string).collect();
    let names: Vec<String> = names.into_iter().collect::<Option<_>>()?;
    if names.is_empty() {
        return list.invalid("`outputs` is empty", "name at least one", "");
    }
    let weights = or(t.get("weights"), vec![1.0; names.len()], |i| {
        let weights: Vec<_> =
            i.array()?.iter().map(|w| w.real((Excluded(0.0), Unbounded))).collect();
        let weights: Vec<f64> = weights.into_iter().collect::<Option<_>>()?;
        if weights.len() != names.len() {
            let label = format!("{} outputs", names.len());
            return i.invalid("`weights` has another length than `outputs`", &label, "");
        }
        Some(weights)
    });
    Some(names.into_iter().zip(weights?).map(|(name, w)| of(Some(name), w)).collect())
}

fn target(t: &Table, data: Option<&Data>) -> Option<String> {
    match (t.get("target"), data) {
        (Some(item), data) => item.string().and_then(|name| {
            let targets = data.map(|d| &d.targets);
            if targets.is_some_and(|t| !t.contains_key(&name)) {
                let message = format!("the loss wants target `{name}`, which the data lacks");
                return item.invalid(message, "not in `targets` of [data]", "");
            }
            Some(name)
        }),
        // Already wrong elsewhere: nothing to infer from.
        (None, None) => None,
        (None, Some(data)) => match data.targets.len() {
            1 => data.targets.keys().next().cloned(),
            0 => {
                let help = "write `targets = { targets = \"…\" }` in [data]; a model whose output is \
                            the loss itself is trained with `kind = \"output\"`, without a target";
                t.missing("target", help);
                None
            }
            _ => {
                t.missing("target", "[data] has several targets; say which one the loss takes");
                None
            }
        },
    }
}

/// An axis of the logits other than the batch.
fn class_axis(item: Item) -> Option<Option<i64>> {
    match item.int(..)? {
        0 => item.invalid("axis 0 is the batch", "not classes", "1 as in PyTorch, or -1: the last"),
        axis => Some(Some(axis)),
    }
}
