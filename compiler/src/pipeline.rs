//! Model and recipe in, plan out: the passes in order, each with the reason for its place.

mod baseline;
mod loss;
mod ranges;
mod reasons;
mod watched;

pub use loss::reads_nothing_of;
pub use watched::{Watched, profile, replay};

use crate::autodiff::{self, LrCurve, LrSpec, OptimizerSpec, ScaleSpec, TrainSpec};
use crate::diagnostic::{Diagnostic, Diagnostics, Place, Result, nearest};
use crate::egraph::{self, Modes};
use crate::frontend::onnx::{self, ImportOptions, Imported};
use crate::frontend::recipe::{
    Facts, LossScaleMode, NoDecay, Normalize, OnNonfinite, OptimizerKind, Policy, Recipe,
    ScheduleKind, WeightInit,
};
use crate::frontend::{recognise, textual};
use crate::ir::{Graph, ValueId, VarInit, VarRole};
use crate::ops::dropout::SEED_VAR;
use crate::precision::{PrecisionOptions, casts};
use crate::schedule::{Capabilities, Schedule, schedule};
use crate::turn::turn_products;
use crate::{cost, emit, ir, simplify, text};
use precast_plan::{DType, MAX_BYTES, Plan, Ranges, Step, Storage, Summary, Target};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the caller knows that the recipe does not say.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Extents of model inputs and targets, from the data, the batch first.
    pub shapes: BTreeMap<String, Vec<usize>>,
    /// Extents that one row of the data gives to each target of the loss, where they are known.
    pub target_rows: BTreeMap<String, Vec<usize>>,
    /// Length of the run in optimizer steps, where a learning-rate curve ends with it.
    pub total_steps: Option<u64>,
    /// Overrides the recipe's policy.
    pub policy: Option<Policy>,
    /// Whether this machine's processor multiplies bf16 natively, for `device = "cpu"`.
    pub bf16_products: bool,
    /// Compute capability of the GPU that `device = "cuda"` means, where the caller found one.
    pub capability: Option<(u32, u32)>,
    /// Keep every parameter's gradient as a result `grad.<parameter>`.
    pub keep_gradients: bool,
    /// Run the verifier after every pass; builds with debug assertions do so anyway.
    pub verify: bool,
}

/// A plan and how it came about.
#[derive(Clone, Debug)]
pub struct Compiled {
    pub plan: Plan,
    /// Name and text of every stage before the plan, in order; each text can be read back in.
    pub stages: Vec<(&'static str, String)>,
    pub warnings: Vec<Diagnostic>,
    /// Every change of format in a step, in the order of the graph.
    pub casts: Vec<casts::CastRecord>,
    /// Names of the parameters that a step updates, in the model's order.
    pub trained: Vec<String>,
}

/// Names of the stages, in order.
pub const STAGES: &[&str] = &["import", "autodiff", "egraph", "plan"];

/// Compiles a recipe.
///
/// # Errors
/// Whatever is wrong with model, recipe or data shapes, each with its place.
pub fn compile(recipe: &Recipe, options: &Options) -> Result<Compiled> {
    let mut stages = Vec::new();
    let forward = forward(recipe, options)?;
    stages.push(("import", text::print(&forward.train)));
    let target = target(recipe, options)?;
    let joint = differentiate(recipe, options, &forward)?;
    let target = target.for_working_set(cost::working_set(joint.shown()));
    stages.push(("autodiff", text::print(joint.shown())));
    let (outcome, plan) = choose(recipe, options, &target, &forward, &joint)?;
    stages.push(("egraph", text::print(&outcome.graph)));
    let mut warnings = warnings(recipe, options, &forward);
    warnings.extend(ranges::coverage(recipe, &forward, joint.shown()));
    let casts = casts::records(&outcome.graph);
    let trained = trained(joint.shown());
    let plan = finish(recipe, options, &forward, outcome, plan)?;
    warnings.extend(recipe.idle_ignore(plan.summary.scaled));
    warnings.extend(loss::unread(recipe, &plan));
    Ok(Compiled { plan, stages, warnings, casts, trained })
}

/// Parameters that a joint graph updates.
fn trained(joint: &Graph) -> Vec<String> {
    let updated = |name: &String| joint.updates.iter().any(|u| u.name == *name);
    let params = joint.vars.iter().filter(|(_, v)| v.role == VarRole::Param);
    params.map(|(name, _)| name.clone()).filter(updated).collect()
}

/// The text of one stage before the plan, with the warnings so far; later passes do not run.
///
/// # Errors
/// As [`compile`].
///
/// # Panics
/// If there is no such stage.
pub fn stage(recipe: &Recipe, options: &Options, stage: &str) -> Result<(String, Vec<Diagnostic>)> {
    assert!(STAGES.contains(&stage) && stage != "plan", "`{stage}` is no stage before the plan");
    let forward = forward(recipe, options)?;
    let warnings = warnings(recipe, options, &forward);
    if stage == "import" {
        return Ok((text::print(&forward.train), warnings));
    }
    let joint = differentiate(recipe, options, &forward)?;
    if stage == "autodiff" {
        return Ok((text::print(joint.shown()), warnings));
    }
    let target = target(recipe, options)?.for_working_set(cost::working_set(joint.shown()));
    let (outcome, _) = choose(recipe, options, &target, &forward, &joint)?;
    Ok((text::print(&outcome.graph), warnings))
}

/// What a pass made, after the verifier: a graph that it refuses is a bug of the pass.
fn verified(pass: &str, g: Graph, options: &Options) -> Graph {
    if (options.verify || cfg!(debug_assertions))
        && let Err(e) = ir::verify::verify(&g)
    {
        panic!("the pass `{pass}` made an inconsistent graph:\n{e}");
    }
    g
}

fn policy(recipe: &Recipe, options: &Options) -> Policy {
    options.policy.unwrap_or(recipe.precision.policy)
}

/// The imported model with its loss.
struct Forward {
    /// As trained: batch statistics, dropout.
    train: Graph,
    loss: ValueId,
    /// As evaluated.
    eval: Graph,
    /// Parameters that keep their values.
    frozen: Vec<String>,
    /// Rows of others that do.
    frozen_rows: Vec<(String, Vec<usize>)>,
    drawn: bool,
    /// Measured ranges that the recipe names.
    ranges: Option<Arc<Ranges>>,
    warnings: Vec<Diagnostic>,
}

/// import: the forward graph as trained, and as evaluated. Two imports, because what differs between
/// them is the exporter's business, not ours.
fn forward(recipe: &Recipe, options: &Options) -> Result<Forward> {
    let imported = import(recipe, options, true)?;
    let frozen = recipe.frozen(&imported.params, &imported.buffers)?;
    let shape = |p: &String| (p.clone(), imported.graph.vars[p].ty.shape.to_vec());
    let params: Vec<_> = imported.params.iter().map(shape).collect();
    let frozen_rows = recipe.frozen_rows(&params, &frozen)?;
    let mut train = imported.graph;
    seed(&mut train, recipe.train.seed);
    let spec = loss::spec(recipe, options, &imported.outputs)?;
    let place = |e: Diagnostics| {
        let keys: &[&str] = match e.0.first().map(|d| d.code) {
            Some("P0404") => &["loss.target", "data.targets"],
            _ => &["loss.class_axis", "loss.prediction", "loss.kind"],
        };
        e.at(|| recipe.place(keys, "the loss"))
    };
    let loss = autodiff::attach_loss(&mut train, &spec).map_err(place)?;
    let mut eval = import(recipe, options, false)?.graph;
    autodiff::attach_loss(&mut eval, &spec).map_err(place)?;
    eval.results.retain(|r| !loss::is_part(&r.name));
    eval.updates.clear();
    let eval = autodiff::without_stops(&eval);
    let mut warnings = imported.warnings;
    warnings.extend(autodiff::vanishing(&train, &[loss], &frozen));
    let ranges = ranges::load(recipe, &train, &frozen)?;
    Ok(Forward {
        ranges,
        train: verified("import", train, options),
        loss,
        eval: verified("import", eval, options),
        frozen,
        frozen_rows,
        drawn: !imported.drawn.is_empty(),
        warnings,
    })
}

/// What a person should know though it is no error.
fn warnings(recipe: &Recipe, options: &Options, forward: &Forward) -> Vec<Diagnostic> {
    let facts = Facts {
        policy: policy(recipe, options),
        total_steps: options.total_steps,
        drawn: forward.drawn,
        textual: recipe.is_textual(),
    };
    let mut warnings = forward.warnings.clone();
    warnings.extend(recipe.idle_keys(&facts));
    warnings
}

/// The joint graph without a loss scale and with one; the recipe may leave only one of them.
struct Joint {
    plain: Option<Graph>,
    scaled: Option<Graph>,
}

impl Joint {
    fn shown(&self) -> &Graph {
        self.plain.as_ref().or(self.scaled.as_ref()).expect("one of the modes was built")
    }
}

/// autodiff: on the whole forward graph, before any rewriting, so that rewriting sees forward and
/// backward together. With and without a loss scale: which of the two is cheaper is not known before
/// formats are chosen.
fn differentiate(recipe: &Recipe, options: &Options, forward: &Forward) -> Result<Joint> {
    let joint = |scale: Option<ScaleSpec>| -> Result<Graph> {
        let spec = train_spec(recipe, options, forward, scale)?;
        let g = forward.train.clone();
        let g = autodiff::joint(g, forward.loss, &spec, options.keep_gradients)
            .map_err(|e| unreached(recipe, e).at(|| Place::File { path: recipe.model_path() }))?;
        // simplify: what differentiation leaves behind (zeros, identities, repeats) would only
        // feed the e-graph.
        Ok(verified("autodiff", simplify::simplify(&g)?, options))
    };
    let fixed = scale_spec(recipe);
    Ok(match recipe.loss_scale.mode {
        LossScaleMode::Off => Joint { plain: Some(joint(None)?), scaled: None },
        LossScaleMode::Static | LossScaleMode::Dynamic => {
            Joint { plain: None, scaled: Some(joint(Some(fixed))?) }
        }
        LossScaleMode::Auto => {
            let wants_f16 = matches!(policy(recipe, options), Policy::F16 | Policy::Auto);
            let scaled = if wants_f16 { Some(joint(Some(fixed))?) } else { None };
            Joint { plain: Some(joint(None)?), scaled }
        }
    })
}

/// Stops that a recipe asks for are its own fault, and not the model's.
fn unreached(recipe: &Recipe, mut e: Diagnostics) -> Diagnostics {
    let key = "train.stop_gradient";
    for d in e.0.iter_mut().filter(|d| d.message == autodiff::STOPPED && recipe.wrote(key)) {
        d.place = Some(recipe.place(&[key], "stops every gradient"));
    }
    e
}

/// The evaluated model stays in f32: it runs a few times, on weights that are there in f32.
fn evaluated(options: &Options, target: &Target, forward: &Forward) -> Result<Graph> {
    let eval = simplify::simplify(&forward.eval)?;
    let f32_only = PrecisionOptions::new(Policy::F32);
    let eval = egraph::restructure(&eval, &f32_only, target).graph;
    Ok(verified("egraph", eval, options))
}

/// egraph: structure, formats and scale motion, priced on the target. turn: after the e-graph, which
/// sees no difference between a product and its transpose. schedule: last, since what is one kernel
/// decides what is stored, and what is stored decides the memory; every candidate is scheduled, so
/// that what is compared is what would run.
fn choose(
    recipe: &Recipe,
    options: &Options,
    target: &Target,
    forward: &Forward,
    joint: &Joint,
) -> Result<(egraph::Outcome, Plan)> {
    let policy = policy(recipe, options);
    let eval = evaluated(options, target, forward)?;
    let price = |step: &Step, plan: &Plan| cost::step_ns(target, step, plan);
    let lowering = |casts_alone: bool| emit::Options {
        target: target.summary(),
        capabilities: Capabilities::of(target, casts_alone),
        accumulate: recipe.train.accumulate,
        seed: recipe.weights.seed,
        price: Some(&price),
    };
    let decides = |e: Diagnostics| {
        e.at(|| recipe.place(&["precision.policy", "target.device"], "decides the formats"))
    };
    let mut precision = PrecisionOptions::new(policy);
    precision.pins = recipe.precision.pins.clone();
    precision.allow = recipe.precision.allow;
    let usable = &precision.usable(target);
    precision.micro = recipe.train.accumulate;
    precision.ranges = forward.ranges.clone();
    precision.first_scale = ranges::first_scale(recipe);
    let modes = Modes { plain: joint.plain.as_ref(), scaled: joint.scaled.as_ref() };
    let mut schedules: Vec<Schedule> = Vec::new();
    let own = lowering(false);
    let mut scheduled = |g: &Graph| -> Result<f64> {
        let s = schedule(&turn_products(g), None, &own.capabilities)?;
        let ns = emit::lower_scheduled(&s, None, &own)?.summary.predicted_ns;
        schedules.push(s);
        Ok(ns)
    };
    let mut outcome =
        egraph::run_scheduled(modes, &precision, target, Some(&mut scheduled)).map_err(decides)?;
    // Evaluation takes no part in the choice, so it is scheduled once.
    let best = schedules.swap_remove(outcome.scheduled);
    let mut plan = emit::lower_scheduled(&best, Some(&eval), &own)?;
    outcome.graph = verified("egraph", outcome.graph, options);
    outcome.graph = verified("turn", turn_products(&outcome.graph), options);
    if let Policy::Baseline(b) = policy {
        // A baseline casts in the forward graph, before it is differentiated, and is compared with
        // the f32 plan that the e-graph made.
        let scale = match recipe.loss_scale.mode {
            LossScaleMode::Off => None,
            LossScaleMode::Auto if b.half != DType::F16 => None,
            _ => Some(ScaleSpec { at_seed: true, ..scale_spec(recipe) }),
        };
        let joint = |g: Graph, loss: ValueId| -> Result<Graph> {
            let spec = train_spec(recipe, options, forward, scale)?;
            autodiff::joint(g, loss, &spec, options.keep_gradients)
        };
        let built = baseline::build(&forward.train, b, usable, &joint).map_err(decides)?;
        outcome.graph = verified("turn", turn_products(&built.graph), options);
        plan = emit::lower(&outcome.graph, Some(&eval), &lowering(true))?;
        built.describe(&mut outcome, policy, usable, plan.summary.predicted_ns, scale.is_some());
    }
    Ok((outcome, plan))
}

/// Names the plan, and says what was compared and why everything is as it is.
///
/// # Errors
/// P0408 where no machine could hold it.
fn finish(
    recipe: &Recipe,
    options: &Options,
    forward: &Forward,
    outcome: egraph::Outcome,
    mut plan: Plan,
) -> Result<Plan> {
    plan.model = model_name(recipe);
    plan.classes = loss::classes(recipe, &forward.train, &plan);
    plan.summary = Summary {
        policy: policy(recipe, options).name().into(),
        choice: outcome.choice,
        candidates: outcome.candidates,
        scaled: outcome.scaled,
        predicted_ns: plan.summary.predicted_ns,
        casts: outcome.casts,
        cast_elements: outcome.cast_elements,
        product_flops: outcome.product_flops,
        bound: outcome.bound,
    };
    // Casts after the operations: what a person asks of them is asked apart.
    plan.journal = outcome.journal;
    plan.journal.extend(outcome.cast_journal);
    reasons::share_steps(&mut plan);
    let inputs = plan.tensors.iter().filter(|t| matches!(t.storage, Storage::Input { .. }));
    let inputs: u64 = inputs.map(|t| t.shape.iter().product::<u64>() * t.dtype.size() as u64).sum();
    if plan.arena_bytes.max(plan.persistent_bytes).max(inputs) > MAX_BYTES / 2 {
        let tib = |bytes: u64| bytes as f64 / f64::from(1u32 << 20).powi(2);
        let message = format!(
            "a step would need {:.0} TiB for temporaries, {:.0} for what outlives it and {:.0} for \
             inputs",
            tib(plan.arena_bytes),
            tib(plan.persistent_bytes),
            tib(inputs)
        );
        return Err(Diagnostic::error("P0408", message)
            .at(recipe.place(&["data.batch", "data.context", "data.dims"], "decides the extents"))
            .help("lower the batch, or the extents of the model's dynamic dimensions")
            .into());
    }
    if let Err(errors) = plan.validate() {
        let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
        panic!("the compiler made an invalid plan:\n{}", list.join("\n"));
    }
    Ok(plan)
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
        parameters: recipe.train.parameters.clone(),
        settled: recipe.settled(),
        stop_gradient: recipe.train.stop_gradient.clone(),
        training,
        ..ImportOptions::default()
    };
    let path = recipe.model_path();
    if recipe.is_textual() {
        for (key, said, help) in [
            ("parameters", !recipe.train.parameters.is_empty(), "declare the variable as `param`"),
            ("stop_gradient", !recipe.train.stop_gradient.is_empty(), "write `stop_gradient`"),
        ] {
            if said {
                let message = format!("`{key}` does not apply to a textual model");
                let place = recipe.place(&[&format!("train.{key}")], "the model says it itself");
                return Err(Diagnostic::error("P0107", message).at(place).help(help).into());
            }
        }
        let imported = textual::load(&path, import.weights.as_deref())?;
        let inputs: Vec<&str> = imported.inputs.iter().map(|(n, _)| n.as_str()).collect();
        recipe.check_against(&inputs, &[])?;
        return Ok(imported);
    }
    let named = |e: Diagnostics| match e.0.iter().all(|d| d.code == "P0112") {
        true => {
            e.at(|| recipe.place(&["train.stop_gradient", "train.parameters"], "not in the model"))
        }
        false => e,
    };
    let mut imported = onnx::load(&path, &import).map_err(named)?;
    // recognise: before differentiation, so that composite operations get their own gradients.
    let simple = simplify::simplify(&imported.graph)?;
    imported.graph = simplify::simplify(&recognise::recognise(&simple))?;
    Ok(imported)
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
        if recipe.wrote("target.device") && t.device != target.device && t.device != target.name {
            let message = format!("`device` is `{}`, and `table` describes another", t.device);
            let label = format!("`{}`, which runs on `{}`", target.name, target.device);
            return Err(Diagnostic::error("P0107", message)
                .at(recipe.place(&["target.table"], &label))
                .help("remove one of the two")
                .into());
        }
        return Ok(target);
    }
    if is_gpu(&t.device) {
        let unknown = |e: String, help: &str| {
            Diagnostic::error("P0603", e)
                .at(Place::File { path: recipe.path.clone() })
                .help(help.to_string())
        };
        let Some((major, minor)) = options.capability else {
            return Err(unknown(
                format!("`{}` is this machine's GPU, and none was found", t.device),
                "to plan for a GPU that is not here, name its architecture: `device = \"sm_90\"`",
            )
            .into());
        };
        return Target::for_capability(major, minor).ok_or_else(|| {
            unknown(
                format!("nothing is known of a GPU of compute capability {major}.{minor}"),
                "7.0 is the oldest that plans are made for; `table` names a description of another",
            )
            .into()
        });
    }
    let name = match t.device.as_str() {
        "cpu" if options.bf16_products => "cpu-avx512bf16",
        "cpu" => "cpu-generic",
        name => name,
    };
    Target::shipped(name).ok_or_else(|| {
        let known = ["cpu", "cuda"].into_iter().chain(Target::SHIPPED);
        let help = match nearest(name, known) {
            Some(near) => format!("did you mean `{near}`?"),
            None => format!(
                "a device is `cpu`, `cuda`, `cuda:1`, or one of {}; `--device` takes a file that \
                 describes another, as `precast calibrate` writes it, and so does `[target] table`",
                Target::SHIPPED.join(", ")
            ),
        };
        Diagnostic::error("P0602", format!("there is no device `{name}`"))
            .at(recipe.place(&["target.device"], "unknown"))
            .help(help)
            .into()
    })
}

/// Whether a device names a GPU of this machine: `cuda`, or `cuda:` and its number.
pub fn is_gpu(device: &str) -> bool {
    let number = |n: &str| !n.is_empty() && n.bytes().all(|c| c.is_ascii_digit());
    device == "cuda" || device.strip_prefix("cuda:").is_some_and(number)
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
        min: s.floor(),
        max: s.max.unwrap_or(pytorch.max),
    }
}

fn train_spec(
    recipe: &Recipe,
    options: &Options,
    forward: &Forward,
    scale: Option<ScaleSpec>,
) -> Result<TrainSpec> {
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
                .at(recipe.place(&["schedule.kind"], "ends with the run"))
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
        normalize: match recipe.train.normalize {
            None | Some(Normalize::Whole) => autodiff::Normalize::Whole,
            Some(Normalize::Micro) => autodiff::Normalize::Micro,
        },
        on_nonfinite: match (recipe.train.on_nonfinite, scale) {
            (Some(OnNonfinite::Stop), _) | (None, None) => autodiff::OnNonfinite::Stop,
            (Some(OnNonfinite::Skip), _) | (_, Some(_)) => autodiff::OnNonfinite::Skip,
            (Some(OnNonfinite::Ignore), None) => autodiff::OnNonfinite::Ignore,
        },
        clip_norm: recipe.train.clip_norm,
        ema: recipe.train.ema,
        no_decay_vectors: o.no_decay == NoDecay::BiasAndNorm,
        frozen: forward.frozen.clone(),
        frozen_rows: forward.frozen_rows.clone(),
        scale,
    })
}
