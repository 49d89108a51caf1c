//! The ranges that a recipe names: read, and checked to be of this model.

use super::{Forward, ScaleSpec, scale_spec};
use crate::diagnostic::{Diagnostic, Place, Result};
use crate::frontend::recipe::Recipe;
use crate::ir::{Graph, Phase, VarInit};
use crate::ops::{Lowering, NumericClass};
use crate::precision::{FirstScale, ranges};
use crate::text;
use precast_plan::Ranges;
use std::collections::BTreeSet;
use std::sync::Arc;

/// The ranges of `[precision] ranges`, if the recipe has it; `train` is the forward graph with its
/// loss, `frozen` names the parameters that are not trained.
///
/// # Errors
/// P0504 where the file cannot be read or contradicts itself, P0505 where it is of another model.
pub fn load(recipe: &Recipe, train: &Graph, frozen: &[String]) -> Result<Option<Arc<Ranges>>> {
    let Some(file) = &recipe.precision.ranges else { return Ok(None) };
    let path = recipe.resolve(file);
    let again = "measure them: `precast profile RECIPE -o FILE`";
    let unusable = |e: String| {
        Diagnostic::error("P0504", format!("the ranges cannot be used: {e}"))
            .at(Place::File { path: path.clone() })
            .help(again)
    };
    let text = std::fs::read_to_string(&path).map_err(|e| unusable(e.to_string()))?;
    let ranges = Ranges::from_json(&text).map_err(unusable)?;
    let own = digest(train, frozen);
    if ranges.digest != own {
        let message = format!(
            "the ranges are of another model, loss, batch or set of frozen parameters: their digest \
             is {}, this recipe's {own}",
            ranges.digest
        );
        let label = format!("`{}`, of `{}`", file.display(), ranges.model);
        let place = recipe.place(&["precision.ranges"], &label);
        return Err(Diagnostic::error("P0505", message)
            .at(place)
            .help("measure them again: `precast profile RECIPE -o FILE`")
            .into());
    }
    Ok(Some(Arc::new(ranges)))
}

/// Of the forward graph with its loss as text, without first values, and of what is trained: ranges
/// of one model are told from those of another, or of other extents. FNV-1a, 64 bits: against mistakes, not against
/// forgery.
pub fn digest(train: &Graph, frozen: &[String]) -> String {
    let mut g = train.clone();
    g.vars.values_mut().for_each(|v| v.init = VarInit::Zeros);
    g.results.retain(|r| !super::loss::is_part(&r.name));
    let step = |h: u64, b: u8| (h ^ u64::from(b)).wrapping_mul(0x0000_0100_0000_01b3);
    let text = format!("{}frozen {frozen:?}\n", text::print(&g));
    format!("{:016x}", text.bytes().fold(0xcbf2_9ce4_8422_2325, step))
}

/// How the first loss scale is found: by the ranges, unless the recipe says.
pub fn first_scale(recipe: &Recipe) -> FirstScale {
    let ScaleSpec { init, min, max, .. } = scale_spec(recipe);
    match recipe.precision.ranges.is_none() || recipe.wrote("loss_scale.init") {
        true => FirstScale::Given(init),
        false => FirstScale::Free { default: init, min, max },
    }
}

/// A warning, P0521, where ranges are of other tensors than the step's: a change of the compiler may
/// name them otherwise.
pub fn coverage(recipe: &Recipe, forward: &Forward, joint: &Graph) -> Option<Diagnostic> {
    let known = forward.ranges.as_deref()?;
    let names: BTreeSet<String> = ranges::names(joint).map(|(_, name)| name).collect();
    let measured: BTreeSet<&str> = known.tensors.iter().map(|t| t.name.as_str()).collect();
    let mut strange = known.tensors.iter().filter(|t| !names.contains(&t.name));
    let mut missing = joint.nodes().map(|(_, n)| n).filter(|n| {
        let counts = n.op.class() == NumericClass::Product && n.op.lowering() != Lowering::View;
        counts
            && n.region.phase() == Phase::Micro
            && !measured.contains(joint.value_name(n.outputs[0]).as_str())
    });
    let message = match (strange.next(), missing.next()) {
        (None, None) => return None,
        (Some(first), _) => {
            let more = strange.count();
            let others = if more == 0 { String::new() } else { format!(" and {more} others") };
            format!("the ranges hold `{}`{others}, which this step does not compute", first.name)
        }
        (None, Some(first)) => {
            let more = missing.count();
            let others =
                if more == 0 { String::new() } else { format!(" and {more} other products") };
            format!("the ranges lack `{}`{others}", first.name)
        }
    };
    let place = recipe.place(&["precision.ranges"], "measured with another version of Precast?");
    Some(
        Diagnostic::warning("P0521", message)
            .at(place)
            .help("what has no range is judged without; measure again to know all"),
    )
}
