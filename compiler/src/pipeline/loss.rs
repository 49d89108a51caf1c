//! The recipe's loss.

use super::Options;
use crate::autodiff::{self, ClassAxis, LossSpec};
use crate::diagnostic::{Diagnostic, Result};
use crate::frontend::recipe::{LossKind, LossTerm, Normalize, Recipe};
use crate::ir::Graph;
use crate::ops::Op;
use precast_plan::{Classes, Plan, Storage};

/// Whether a result of a forward graph is a part of its loss, for [`autodiff::joint`] alone.
pub fn is_part(result: &str) -> bool {
    [autodiff::LOSS_SUM, autodiff::LOSS_COUNT].contains(&result)
}

/// The loss on some of the model's outputs, which are `outputs`.
///
/// # Errors
/// P0403 where the model has several outputs and the recipe does not say which to train, or where
/// terms that are means of different numbers of targets are to be summed over several batches.
pub fn spec(recipe: &Recipe, options: &Options, outputs: &[String]) -> Result<LossSpec> {
    let terms = &recipe.loss.terms;
    let counts = terms.iter().any(|t| matches!(t.kind, LossKind::CrossEntropy { .. }));
    let whole = recipe.train.normalize != Some(Normalize::Micro);
    if counts && terms.len() > 1 && recipe.train.accumulate > 1 && whole {
        let message = "terms of the loss are means over different numbers of targets, which gradients \
                       that several batches add up cannot tell apart";
        return Err(Diagnostic::error("P0403", message)
            .at(recipe.place(&["train.accumulate", "loss.terms"], "more than one batch a step"))
            .help("`[train] normalize = \"micro\"` takes the mean of the batches' own losses; or set `accumulate = 1` and a larger `batch`")
            .into());
    }
    let mut parts = terms
        .iter()
        .enumerate()
        .map(|(i, t)| Ok((t.weight, term(recipe, options, outputs, t, i)?)));
    match (&terms[..], parts.len()) {
        ([only], 1) if only.weight == 1.0 => Ok(parts.next().expect("there is one")?.1),
        _ => Ok(LossSpec::Sum(parts.collect::<Result<_>>()?)),
    }
}

fn term(
    recipe: &Recipe,
    options: &Options,
    outputs: &[String],
    term: &LossTerm,
    number: usize,
) -> Result<LossSpec> {
    let prediction = match (&term.prediction, outputs) {
        (Some(p), _) => p.clone(),
        (None, [only]) => only.clone(),
        (None, _) => {
            let keys = [
                format!("loss.terms.{number}"),
                "loss.prediction".to_string(),
                "loss.kind".to_string(),
            ];
            let key = if term.kind == LossKind::Output { "output" } else { "prediction" };
            return Err(Diagnostic::error(
                "P0403",
                format!(
                    "the model has {} outputs and the recipe does not say which to train",
                    outputs.len()
                ),
            )
            .at(recipe.place(&keys.each_ref().map(String::as_str), "which output?"))
            .help(format!("set `[loss] {key}` to one of: {}", outputs.join(", ")))
            .into());
        }
    };
    let target = term.target.clone().unwrap_or_default();
    Ok(match term.kind {
        LossKind::CrossEntropy { ignore_index, label_smoothing, class_axis } => {
            let class_axis = match (class_axis, options.target_rows.get(&target)) {
                (Some(axis), Some(row)) => ClassAxis::Said { axis, row: row.clone() },
                (Some(axis), None) => ClassAxis::At(axis),
                (None, Some(row)) => ClassAxis::Fits(row.clone()),
                (None, None) => ClassAxis::Last,
            };
            LossSpec::CrossEntropy { prediction, target, ignore_index, label_smoothing, class_axis }
        }
        LossKind::Mse => LossSpec::Mse { prediction, target },
        LossKind::Output => LossSpec::Output { output: prediction },
    })
}

/// The target inputs of cross-entropies, with the numbers of their classes. `forward` is the graph
/// with its loss.
pub fn classes(recipe: &Recipe, forward: &Graph, plan: &Plan) -> Vec<Classes> {
    // By its name: the model may compute one of its own.
    let mut losses = forward.nodes().filter_map(|(_, n)| match n.op {
        Op::CrossEntropy(_) if n.name.starts_with("loss.") => {
            forward.shape(n.inputs[0]).last().copied()
        }
        _ => None,
    });
    let mut found: Vec<Classes> = vec![];
    for term in &recipe.loss.terms {
        let LossKind::CrossEntropy { ignore_index, .. } = term.kind else { continue };
        let named = |name: &str| term.target.as_deref() == Some(name);
        let tensor = plan
            .tensors
            .iter()
            .position(|t| named(&t.name) && matches!(t.storage, Storage::Input { .. }));
        // Probabilities are no numbers of classes.
        if tensor.is_some_and(|t| plan.tensors[t].dtype.is_real()) {
            continue;
        }
        // In the order of the terms, as they were attached.
        let Some(count) = losses.next() else { break };
        if let Some(tensor) = tensor
            && found.iter().all(|c| c.tensor != tensor as u32)
        {
            let tensor = tensor as u32;
            found.push(Classes { tensor, count: count as u64, ignore: ignore_index });
        }
    }
    // Those of losses that the model computes.
    let own = forward.nodes().filter_map(|(_, n)| match &n.op {
        Op::CrossEntropy(op) if !n.name.starts_with("loss.") => Some((op.ignore_index, n)),
        _ => None,
    });
    for (ignore, n) in own {
        let Op::Input(input) = &forward.def(n.inputs[1]).op else { continue };
        let named = |t: &precast_plan::Tensor| {
            t.name == input.name && matches!(t.storage, Storage::Input { .. })
        };
        if let (Some(tensor), Some(&count)) =
            (plan.tensors.iter().position(named), forward.shape(n.inputs[0]).last())
            && found.iter().all(|c| c.tensor != tensor as u32)
        {
            let tensor = tensor as u32;
            found.push(Classes { tensor, count: count as u64, ignore });
        }
    }
    found
}

/// Inputs that the recipe feeds and nothing of the step or of its evaluation reads. Exporters keep
/// them where the module takes an argument that it does not use.
pub fn unread(recipe: &Recipe, plan: &Plan) -> Option<Diagnostic> {
    let read = |name: &str| {
        let input = |s: &Storage| matches!(s, Storage::Input { .. });
        plan.tensors.iter().any(|t| t.name == name && input(&t.storage))
    };
    let inputs = recipe.data.inputs.keys();
    // A target that no loss of the recipe's reads is an input of a model that computes its own.
    let targets = recipe.data.targets.keys().filter(|_| recipe.loss.in_model());
    let unread: Vec<&str> =
        inputs.chain(targets).map(String::as_str).filter(|n| !read(n)).collect();
    let first = unread.first()?;
    let keys = ["inputs", "targets"].map(|list| format!("data.{list}.{first}"));
    Some(
        reads_nothing_of(&unread)
            .at(recipe.place(&keys.each_ref().map(String::as_str), "not read")),
    )
}

/// The warning for inputs that nothing reads.
pub fn reads_nothing_of(inputs: &[&str]) -> Diagnostic {
    let list: Vec<String> = inputs.iter().map(|n| format!("`{n}`")).collect();
    let (what, them) = match inputs {
        [_] => ("input", "it"),
        _ => ("inputs", "them"),
    };
    Diagnostic::warning("P0233", format!("nothing reads the {what} {}", list.join(", "))).help(
        format!(
            "data for {them} makes no difference; leave {them} out, or export the model without"
        ),
    )
}
