//! Plans to be watched: the model in f32, for measuring ranges, and a recipe's own plan, for finding
//! what overflowed. Both run on the CPU backend, whatever the recipe's device.

use super::{
    Forward, Joint, Options, choose, differentiate, forward, loss, model_name, ranges, target,
    warnings,
};
use crate::cost;
use crate::diagnostic::{Diagnostic, Result};
use crate::emit;
use crate::frontend::recipe::{LossScaleMode, Policy, Recipe};
use crate::ir::Graph;
use crate::schedule::Capabilities;
use precast_plan::{Plan, TargetSummary, Watch};

/// A plan without evaluation that stores everything it computes, and where that is found when.
#[derive(Clone, Debug)]
pub struct Watched {
    pub plan: Plan,
    pub watches: Vec<Watch>,
    /// What [`precast_plan::Ranges::digest`] is to be of this model.
    pub digest: String,
    pub warnings: Vec<Diagnostic>,
}

/// The joint graph in f32, without a loss scale and before any rewriting, so that every value of
/// the model has its own name. What rewriting and the choice of formats make of the graph is known
/// by these names ([`crate::precision::ranges`]).
///
/// # Errors
/// As [`super::compile`].
pub fn profile(recipe: &Recipe, options: &Options) -> Result<Watched> {
    let mut recipe = recipe.clone();
    recipe.precision.policy = Policy::F32;
    // Ranges that no longer fit the model are a reason to measure it.
    recipe.precision.ranges = None;
    recipe.loss_scale.mode = LossScaleMode::Off;
    let options = Options { policy: None, ..options.clone() };
    let forward = forward(&recipe, &options)?;
    let joint = differentiate(&recipe, &options, &forward)?;
    let graph = joint.plain.expect("there is no loss scale");
    watched(&recipe, &options, &forward, &graph, Capabilities::CPU)
}

/// The plan that [`super::compile`] makes, to be watched: the same formats, kernels and roundings.
/// Kernels of products run on the processor, so sums may be in another order than on a GPU.
///
/// # Errors
/// As [`super::compile`].
pub fn replay(recipe: &Recipe, options: &Options) -> Result<Watched> {
    let forward = forward(recipe, options)?;
    let joint: Joint = differentiate(recipe, options, &forward)?;
    let target = target(recipe, options)?.for_working_set(cost::working_set(joint.shown()));
    let (outcome, _) = choose(recipe, options, &target, &forward, &joint)?;
    let casts_alone = matches!(super::policy(recipe, options), Policy::Baseline(_));
    // Layouts change no value, and the processor's kernels take dense operands.
    let of_plan = Capabilities::of(&target, casts_alone);
    let capabilities = Capabilities { channels_last: 0, operand_sums: false, ..of_plan };
    watched(recipe, options, &forward, &outcome.graph, capabilities)
}

fn watched(
    recipe: &Recipe,
    options: &Options,
    forward: &Forward,
    graph: &Graph,
    capabilities: Capabilities,
) -> Result<Watched> {
    let lowering = emit::Options {
        target: TargetSummary { name: "cpu".into(), device: "cpu".into() },
        capabilities,
        accumulate: recipe.train.accumulate,
        seed: recipe.weights.seed,
        price: None,
    };
    let (mut plan, watches) = emit::lower_watched(graph, &lowering)?;
    plan.model = model_name(recipe);
    plan.classes = loss::classes(recipe, &forward.train, &plan);
    if let Err(errors) = plan.validate() {
        let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
        panic!("the compiler made an invalid plan:\n{}", list.join("\n"));
    }
    let warnings = warnings(recipe, options, forward);
    Ok(Watched { plan, watches, digest: ranges::digest(&forward.train, &forward.frozen), warnings })
}
