//! Model and recipe in, plan out: the passes in order, each with the reason for its place.

use crate::autodiff::{self, LossSpec, LrCurve, LrSpec, OptimizerSpec, ScaleSpec, TrainSpec};
use crate::diagnostic::{Diagnostic, Place, Result};
use crate::frontend::onnx::{self, ImportOptions, Imported};
use crate::frontend::recipe::{
    LossKind, LossScaleMode, NoDecay, OptimizerKind, Policy, Recipe, ScheduleKind, WeightInit,
};
use crate::ir::{Graph, VarInit};
use crate::ops::dropout::SEED_VAR;
use crate::schedule::Capabilities;
use crate::{emit, ir, simplify, text};
use precast_plan::{Math, Plan, Summary, TargetSummary};
use std::collections::BTreeMap;

/// What the caller knows that the recipe does not say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Extents of model inputs and targets, from the data, the batch first.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Length of the run in optimizer steps, where a learning-rate curve ends with it.
    pub total_steps: Option<u64>,
    /// Overrides the recipe's policy.
    pub policy: Option<Policy>,
    /// Keep every parameter's gradient as a result `grad.<parameter>`.
    pub keep_gradients: bool,
}

/// A plan and how it came about.
#[derive(Clone, Debug)]
pub struct Compiled {
    pub plan: Plan,
    /// Name and text of every stage, in order; each text can be read back in.
    pub stages: Vec<(&'static str, String)>,
    pub warnings: Vec<Diagnostic>,
}

/// Names of the stages, in order.
pub const STAGES: &[&str] = &["import", "autodiff", "egraph", "plan"];

/// Compiles a recipe.
///
/// # Errors
/// Whatever is wrong with model, recipe or data shapes, each with its place.
pub fn compile(recipe: &Recipe, options: &Options) -> Result<Compiled> {
    let mut stages = Vec::new();
    // import: the forward graph as trained (batch statistics, dropout), and as evaluated. Two
    // imports, because what differs between them is the exporter's business, not ours.
    let imported = import(recipe, options, true)?;
    let warnings = imported.warnings;
    let mut forward = imported.graph;
    seed(&mut forward, recipe.train.seed);
    let loss_spec = loss_spec(recipe, &imported.outputs)?;
    let loss = autodiff::attach_loss(&mut forward, &loss_spec)?;
    let mut eval = import(recipe, options, false)?.graph;
    autodiff::attach_loss(&mut eval, &loss_spec)?;
    eval.updates.clear();
    stages.push(("import", text::print(&forward)));

    // autodiff: on the whole forward graph, before any rewriting, so that rewriting sees forward
    // and backward together. With and without a loss scale: which of the two is cheaper is not
    // known before formats are chosen.
    let policy = options.policy.unwrap_or(recipe.precision.policy);
    let joint = |scale: Option<ScaleSpec>| -> Result<Graph> {
        let spec = train_spec(recipe, options, scale)?;
        let g = autodiff::joint(forward.clone(), loss, &spec, options.keep_gradients)?;
        // simplify: what differentiation leaves behind (zeros, identities, repeats) would only
        // feed the e-graph.
        let g = simplify::simplify(&g)?;
        ir::verify::verify(&g)?;
        Ok(g)
    };
    let fixed = scale_spec(recipe);
    let (plain, scaled) = match recipe.loss_scale.mode {
        LossScaleMode::Off => (Some(joint(None)?), None),
        LossScaleMode::Static | LossScaleMode::Dynamic => (None, Some(joint(Some(fixed))?)),
        LossScaleMode::Auto => {
            let wants_f16 = matches!(policy, Policy::F16 | Policy::Auto);
            (Some(joint(None)?), if wants_f16 { Some(joint(Some(fixed))?) } else { None })
        }
    };
    let shown = plain.as_ref().or(scaled.as_ref()).expect("one of the modes was built");
    stages.push(("autodiff", text::print(shown)));

    let graph = shown.clone();
    let eval = simplify::simplify(&eval)?;

    // schedule: last, since what is one kernel decides what is stored, and what is stored decides
    // the memory.
    let lowering = emit::Options {
        target: TargetSummary { name: "cpu".into(), device: "cpu".into() },
        capabilities: Capabilities::CPU,
        accumulate: recipe.train.accumulate,
        seed: recipe.weights.seed,
        math: Math::Exact,
        price: None,
    };
    let mut plan = emit::lower(&graph, Some(&eval), &lowering)?;
    plan.model = model_name(recipe);
    plan.summary = Summary { policy: policy.name().into(), ..plan.summary };
    if let Err(errors) = plan.validate() {
        let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
        panic!("the compiler made an invalid plan:\n{}", list.join("\n"));
    }
    Ok(Compiled { plan, stages, warnings })
}

/// The imported forward graph alone, for `check` and `show`.
///
/// # Errors
/// As [`compile`].
pub fn import(recipe: &Recipe, options: &Options, training: bool) -> Result<Imported> {
    let import = ImportOptions {
        dims: recipe.data.dims.iter().map(|(k, &v)| (k.clone(), v)).collect(),
        input_shapes: options.shapes.clone(),
        weights: recipe.weights.file.as_ref().map(|p| recipe.resolve(p)),
        init: recipe.weights.init.map(|WeightInit::Default| onnx::InitScheme::Default),
        training,
    };
    onnx::load(&recipe.model_path(), &import)
}

fn model_name(recipe: &Recipe) -> String {
    let stem = |p: &std::path::Path| p.file_stem().map(|s| s.to_string_lossy().into_owned());
    stem(&recipe.model).unwrap_or_else(|| "model".into())
}

/// Dropout masks follow the recipe's seed.
fn seed(g: &mut Graph, seed: u64) {
    if let Some(var) = g.vars.get_mut(SEED_VAR) {
        var.init = VarInit::Value(f64::from(seed as u32 as i32));
    }
}

fn loss_spec(recipe: &Recipe, outputs: &[String]) -> Result<LossSpec> {
    let prediction = match (&recipe.loss.prediction, outputs) {
        (Some(p), _) => p.clone(),
        (None, [only]) => only.clone(),
        (None, _) => {
            return Err(Diagnostic::error(
                "P0403",
                format!("the model has {} outputs and the recipe does not say which to train", outputs.len()),
            )
            .at(Place::File { path: recipe.path.clone() })
            .help(format!("set `[loss] prediction` to one of: {}", outputs.join(", ")))
            .into());
        }
    };
    let target = recipe.loss.target.clone();
    Ok(match recipe.loss.kind {
        LossKind::CrossEntropy { ignore_index, label_smoothing } => {
            LossSpec::CrossEntropy { prediction, target, ignore_index, label_smoothing }
        }
        LossKind::Mse => LossSpec::Mse { prediction, target },
    })
}

fn scale_spec(recipe: &Recipe) -> ScaleSpec {
    let s = &recipe.loss_scale;
    let pytorch = ScaleSpec::default();
    ScaleSpec {
        init: s.init,
        dynamic: s.mode != LossScaleMode::Static,
        growth: s.growth,
        backoff: s.backoff,
        interval: s.interval,
        hysteresis: s.hysteresis,
        min: s.min.unwrap_or(pytorch.min),
        max: s.max.unwrap_or(pytorch.max),
    }
}

fn train_spec(recipe: &Recipe, options: &Options, scale: Option<ScaleSpec>) -> Result<TrainSpec> {
    let o = &recipe.optimizer;
    let optimizer = match o.kind {
        OptimizerKind::Sgd { momentum, nesterov } => {
            OptimizerSpec::Sgd { momentum, nesterov, weight_decay: o.weight_decay }
        }
        OptimizerKind::Adam { betas: [beta1, beta2], eps }
        | OptimizerKind::Adamw { betas: [beta1, beta2], eps } => OptimizerSpec::Adam {
            beta1,
            beta2,
            eps,
            weight_decay: o.weight_decay,
            decoupled: matches!(o.kind, OptimizerKind::Adamw { .. }),
        },
    };
    let s = &recipe.schedule;
    let end = || -> Result<u64> {
        s.steps.or(options.total_steps).ok_or_else(|| {
            Diagnostic::error("P0406", "the learning-rate curve has no end")
                .at(Place::File { path: recipe.path.clone() })
                .help("set `[schedule] steps`, or give the run a length the data can tell")
                .into()
        })
    };
    let min_lr = o.lr * s.final_ratio;
    let curve = match s.kind {
        ScheduleKind::Constant => LrCurve::Constant,
        ScheduleKind::Cosine => LrCurve::Cosine { total_steps: end()?, min_lr },
        ScheduleKind::Linear => LrCurve::Linear { total_steps: end()?, min_lr },
    };
    Ok(TrainSpec {
        optimizer,
        lr: LrSpec { lr: o.lr, warmup_steps: s.warmup, curve },
        accumulate: recipe.train.accumulate,
        clip_norm: recipe.train.clip_norm,
        ema: recipe.train.ema,
        no_decay_vectors: o.no_decay == NoDecay::BiasAndNorm,
        scale,
    })
}
