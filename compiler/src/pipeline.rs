//! Model and recipe in, plan out: the passes in order, each with the reason for its place.

mod baseline;

use crate::autodiff::{self, LossSpec, LrCurve, LrSpec, OptimizerSpec, ScaleSpec, TrainSpec};
use crate::diagnostic::{Diagnostic, Place, Result};
use crate::egraph::{self, Modes};
use crate::frontend::onnx::{self, ImportOptions, Imported};
use crate::frontend::recipe::{
    LossKind, LossScaleMode, NoDecay, OptimizerKind, Policy, Recipe, ScheduleKind, WeightInit,
};
use crate::frontend::recognise;
use crate::ir::{Graph, ValueId, VarInit, VarRole};
use crate::ops::Op;
use crate::ops::dropout::SEED_VAR;
use crate::precision::{PrecisionOptions, casts};
use crate::schedule::Capabilities;
use crate::turn::turn_products;
use crate::{cost, emit, ir, simplify, text};
use precast_plan::{DType, Math, Plan, Step, Summary, Target};
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
    /// Whether this machine's processor multiplies bf16 natively, for `device = "cpu"`.
    pub bf16_products: bool,
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
    /// Every change of format in a step, in the order of the graph.
    pub casts: Vec<casts::CastRecord>,
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
    let target = target(recipe, options)?;
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

    // The evaluated model stays in f32: it runs a few times, on weights that are there in f32.
    let eval_graph = simplify::simplify(&eval)?;
    let f32_only = PrecisionOptions::new(Policy::F32);
    let eval_graph = egraph::restructure(&eval_graph, &f32_only, &target).graph;

    // schedule: last, since what is one kernel decides what is stored, and what is stored decides
    // the memory. Every candidate is scheduled, so that what is compared is what would run.
    let price = |step: &Step, plan: &Plan| cost::step_ns(&target, step, plan);
    let lower = |g: &Graph, casts_alone: bool| -> Result<Plan> {
        let lowering = emit::Options {
            target: target.summary(),
            capabilities: Capabilities { any_epilogue: target.device == "cpu", casts_alone },
            accumulate: recipe.train.accumulate,
            seed: recipe.weights.seed,
            math: Math::Exact,
            price: Some(&price),
        };
        emit::lower(g, Some(&eval_graph), &lowering)
    };

    // egraph: structure, formats and scale motion, priced on the target.
    let mut precision = PrecisionOptions::new(policy);
    precision.pins = recipe.precision.pins.clone();
    let modes = Modes { plain: plain.as_ref(), scaled: scaled.as_ref() };
    let mut lowered: Vec<Plan> = Vec::new();
    // turn: after the e-graph, which sees no difference between a product and its transpose.
    let mut scheduled = |g: &Graph| -> Result<f64> {
        let plan = lower(&turn_products(g), false)?;
        let ns = plan.summary.predicted_ns;
        lowered.push(plan);
        Ok(ns)
    };
    let mut outcome = egraph::run_scheduled(modes, &precision, &target, Some(&mut scheduled))?;
    let mut plan = lowered.swap_remove(outcome.chosen);
    outcome.graph = turn_products(&outcome.graph);
    if let Policy::Baseline(b) = policy {
        // A baseline casts in the forward graph, before it is differentiated, and is compared with
        // the f32 plan that the e-graph made.
        let scale = match recipe.loss_scale.mode {
            LossScaleMode::Off => None,
            LossScaleMode::Auto if b.half != DType::F16 => None,
            _ => Some(ScaleSpec { at_seed: true, ..fixed }),
        };
        let joint = |g: Graph, loss: ValueId| -> Result<Graph> {
            let spec = train_spec(recipe, options, scale)?;
            autodiff::joint(g, loss, &spec, options.keep_gradients)
        };
        let built = baseline::build(&forward, b, &target, &joint)?;
        outcome.graph = turn_products(&built.graph);
        plan = lower(&outcome.graph, true)?;
        built.describe(&mut outcome, policy, &target, plan.summary.predicted_ns, scale.is_some());
    }
    stages.push(("egraph", text::print(&outcome.graph)));

    plan.model = model_name(recipe);
    let casts = casts::records(&outcome.graph);
    plan.summary = Summary {
        policy: policy.name().into(),
        choice: outcome.choice,
        candidates: outcome.candidates,
        scaled: outcome.scaled,
        predicted_ns: plan.summary.predicted_ns,
        casts: outcome.casts,
        cast_elements: outcome.cast_elements,
        product_flops: outcome.product_flops,
    };
    // Casts after the operations: what a person asks of them is asked apart.
    plan.journal = outcome.journal;
    plan.journal.extend(outcome.cast_journal);
    if let Err(errors) = plan.validate() {
        let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
        panic!("the compiler made an invalid plan:\n{}", list.join("\n"));
    }
    Ok(Compiled { plan, stages, warnings, casts })
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
    let path = recipe.model_path();
    if path.extension().is_some_and(|e| e == "pir") {
        return textual(&path);
    }
    let mut imported = onnx::load(&path, &import)?;
    // recognise: before differentiation, so that composite operations get their own gradients.
    let simple = simplify::simplify(&imported.graph)?;
    imported.graph = simplify::simplify(&recognise::recognise(&simple))?;
    Ok(imported)
}

/// A model in textual IR: extents are as written, and training and evaluation are the same graph.
fn textual(path: &std::path::Path) -> Result<Imported> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Diagnostic::error("P0407", format!("cannot read the model: {e}"))
            .at(Place::File { path: path.into() })
    })?;
    let graph = text::parse(path, &text)?;
    ir::verify::verify(&graph)?;
    let inputs = graph.nodes().filter_map(|(_, n)| match &n.op {
        Op::Input(i) => Some((i.name.clone(), graph.ty(n.outputs[0]).clone())),
        _ => None,
    });
    let params = graph.vars.iter().filter(|(_, v)| v.role == VarRole::Param);
    Ok(Imported {
        inputs: inputs.collect(),
        outputs: graph
            .results
            .iter()
            .filter_map(|r| Some(r.name.strip_prefix("out.")?.to_string()))
            .collect(),
        params: params.map(|(name, _)| name.clone()).collect(),
        warnings: vec![],
        graph,
    })
}

/// What the plan is priced on: the recipe's table, a shipped description, or for `cpu` the shipped
/// description of the instruction set that the caller found.
fn target(recipe: &Recipe, options: &Options) -> Result<Target> {
    let t = &recipe.target;
    if let Some(table) = &t.table {
        let path = recipe.resolve(table);
        let bad = |e: String| {
            Diagnostic::error("P0601", format!("the target description cannot be used: {e}"))
                .at(Place::File { path: path.clone() })
                .help("write one with `precast calibrate`")
        };
        let text = std::fs::read_to_string(&path).map_err(|e| bad(e.to_string()))?;
        let target: Target = toml::from_str(&text).map_err(|e| bad(e.to_string()))?;
        target.check().map_err(bad)?;
        return Ok(target);
    }
    let name = match t.device.as_str() {
        "cpu" if options.bf16_products => "cpu-avx512bf16",
        "cpu" => "cpu-generic",
        name => name,
    };
    Target::shipped(name).ok_or_else(|| {
        Diagnostic::error("P0602", format!("there is no target `{name}`"))
            .at(Place::File { path: recipe.path.clone() })
            .help(format!(
                "`[target] device` is `cpu` or one of {}; `table` names a description of another",
                Target::SHIPPED.join(", ")
            ))
            .into()
    })
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
                format!(
                    "the model has {} outputs and the recipe does not say which to train",
                    outputs.len()
                ),
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
        at_seed: false,
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
