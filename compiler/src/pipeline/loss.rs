//! The recipe's loss.

use super::Options;
use crate::autodiff::{ClassAxis, LossSpec};
use crate::diagnostic::{Diagnostic, Result};
use crate::frontend::recipe::{LossKind, Recipe};

/// The loss on one of the model's outputs, which are `outputs`.
///
/// # Errors
/// P0403 where the model has several outputs and the recipe does not say which to train.
pub fn spec(recipe: &Recipe, options: &Options, outputs: &[String]) -> Result<LossSpec> {
    let prediction = match (&recipe.loss.prediction, outputs) {
        (Some(p), _) => p.clone(),
        (None, [only]) => only.clone(),
        (None, _) => {
            return Err(Diagnostic::error(
                "P0403",
                format!(
                    "the model has {} outputs and the recipe does not say which to train",
                    outputs.len()
                ),
            )
            .at(recipe.place(&["loss.prediction", "loss.kind"], "which output?"))
            .help(format!("set `[loss] prediction` to one of: {}", outputs.join(", ")))
            .into());
        }
    };
    let target = recipe.loss.target.clone();
    Ok(match recipe.loss.kind {
        LossKind::CrossEntropy { ignore_index, label_smoothing, class_axis } => {
            let class_axis = match (class_axis, &options.target_row) {
                (Some(axis), Some(row)) => ClassAxis::Said { axis, row: row.clone() },
                (Some(axis), None) => ClassAxis::At(axis),
                (None, Some(row)) => ClassAxis::Fits(row.clone()),
                (None, None) => ClassAxis::Last,
            };
            LossSpec::CrossEntropy { prediction, target, ignore_index, label_smoothing, class_axis }
        }
        LossKind::Mse => LossSpec::Mse { prediction, target },
    })
}
