//! The e-graph pass: structure by equality saturation and extraction, then precision by minimum
//! cut, for every candidate plan; the cheapest legal one that the policy admits wins.

pub mod convert;
pub mod extract;
mod journal;
pub mod lang;
mod names;
pub mod rules;

use crate::cost::Prices;
use crate::diagnostic::{Diagnostic, Result};
use crate::ir::Graph;
use crate::ops::{NumericClass, Op};
use crate::precision::{self, Labels, Legal, Model, Policy, PrecisionOptions};
use egg::{Runner, SimpleScheduler, StopReason};
use precast_plan::{Candidate, DType, Decision, Target};
use std::collections::BTreeMap;
use std::time::Duration;

/// Rounds of saturation, and e-nodes, at most. Both are counts: a limit by the clock would make
/// the result depend on the machine.
const ROUNDS: usize = 64;
const NODES: usize = 2_000_000;

/// `auto` leaves f32 only for a plan that the model says is cheaper by more than this share:
/// below it the prices are not that good.
const WORTHWHILE: f64 = 0.04;

/// The chosen graph and why.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Formats on every value, casts in place.
    pub graph: Graph,
    /// Whether it is the scaled graph.
    pub scaled: bool,
    pub candidates: Vec<Candidate>,
    /// One sentence: what was compared and why this won.
    pub choice: String,
    pub journal: Vec<Decision>,
    /// How often each rule united two classes of the chosen graph's e-graph.
    pub rule_firings: BTreeMap<String, u64>,
    pub casts: u64,
    pub cast_elements: u64,
    /// Share of the floating-point operations of products by operand format.
    pub product_flops: Vec<(DType, f64)>,
    pub predicted_ns: f64,
}

/// The two modes of a training graph, either of which may be absent: without a loss scale, and
/// with one.
#[derive(Clone, Copy, Debug, Default)]
pub struct Modes<'a> {
    pub plain: Option<&'a Graph>,
    pub scaled: Option<&'a Graph>,
}

/// A graph after saturation and extraction, all in f32.
#[derive(Clone, Debug)]
pub struct Structured {
    pub graph: Graph,
    pub rule_firings: BTreeMap<String, u64>,
}

/// Saturates a verified graph whose reals are f32 and extracts the cheapest equal graph.
///
/// # Panics
/// Where the result does not verify: a rule is wrong.
pub fn restructure(g: &Graph, options: &PrecisionOptions, target: &Target) -> Structured {
    restructure_with(g, options, target, rules::all(), Prefer::Cheap)
}

/// What extraction looks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prefer {
    /// The lowest price.
    Cheap,
    /// As little as possible of the graph as it was, whatever it costs: shows what rules made, for
    /// their tests.
    New,
}

/// [`restructure`] with chosen rules.
pub fn restructure_with(
    g: &Graph,
    options: &PrecisionOptions,
    target: &Target,
    rules: impl Iterator<Item = &'static rules::Rule>,
    prefer: Prefer,
) -> Structured {
    let leaves = convert::Leaves { seed: &options.seed, loss_scale: &options.loss_scale };
    let mut loaded = convert::load(g, &leaves);
    let eg = std::mem::take(&mut loaded.eg);
    let runner = Runner::<_, _, ()>::new(lang::Kernels::default())
        .with_egraph(eg)
        .with_scheduler(SimpleScheduler)
        .with_iter_limit(ROUNDS)
        .with_node_limit(NODES)
        .with_time_limit(Duration::from_secs(u64::from(u32::MAX)))
        .run(&rules::rewrites(rules));
    if !matches!(runner.stop_reason, Some(StopReason::Saturated)) {
        tracing::warn!("saturation of `{}` stopped early: {:?}", g.name, runner.stop_reason);
    }
    loaded.eg = runner.egraph;
    let roots: Vec<egg::Id> =
        g.results.iter().chain(&g.updates).map(|r| loaded.class[r.value.0 as usize]).collect();
    let prices = Prices { target };
    let mut problem = extract::Problem::new(&loaded.eg, &roots, &prices);
    if prefer == Prefer::New {
        problem.avoid(&loaded.originals());
    }
    let choice = problem.solve(&loaded.eg);
    let graph = convert::unload(g, &loaded, &problem, &choice);
    if let Err(e) = crate::ir::verify::verify(&graph) {
        panic!("extraction built a graph that does not verify:\n{e}");
    }
    Structured { graph, rule_firings: loaded.eg.analysis.firings }
}

/// One labelled plan.
struct Plan {
    name: &'static str,
    scaled: bool,
    model: Model,
    labels: Labels,
    legal: Legal,
    note: String,
    ns: f64,
}

/// Chooses structure, formats and casts.
///
/// # Errors
/// P0501, see [`precision::legal::legality`]; P0502 where neither mode is given; P0503 where the
/// policy asks for a format that the target does not have.
pub fn run(modes: Modes, options: &PrecisionOptions, target: &Target) -> Result<Outcome> {
    let plain = modes.plain.map(|g| restructure(g, options, target));
    let scaled = modes.scaled.map(|g| restructure(g, options, target));
    let (Some(any), prefers_plain) = (plain.as_ref().or(scaled.as_ref()), plain.is_some()) else {
        return Err(Diagnostic::error("P0502", "there is no graph to choose formats for").into());
    };
    let prices = Prices { target };
    let build = |name: &'static str, s: bool, half: DType, forced: bool| -> Result<Plan> {
        let g = if s { scaled.as_ref() } else { plain.as_ref() };
        let g = &g.expect("the mode was given").graph;
        let legal = precision::legal::legality(g, half, options, target)?;
        let model = Model::new(g, &legal, &prices, forced);
        let labels = model.cut();
        let ns = model.price(&labels) as f64 * 1e-3;
        let note = if forced { "every legal product" } else { "by cost" }.to_string();
        Ok(Plan { name, scaled: s, model, labels, legal, note, ns })
    };
    let base_scaled = !prefers_plain;
    let f32_plan = || -> Result<Plan> {
        let g = &any.graph;
        let legal = precision::legal::legality(g, DType::Bf16, options, target)?;
        let model = Model::new(g, &legal, &prices, false);
        let labels = model.full();
        let ns = model.price(&labels) as f64 * 1e-3;
        let note = "everything in f32".to_string();
        Ok(Plan { name: "f32", scaled: base_scaled, model, labels, legal, note, ns })
    };
    let has =
        |d: DType| target.products.iter().any(|s| s.format == d) && target.convert(d).is_some();
    let mut plans = vec![f32_plan()?];
    let policy = options.policy;
    let demand = |d: DType| -> Result<()> {
        if has(d) {
            return Ok(());
        }
        Err(Diagnostic::error("P0503", format!("{} has no products in {d}", target.name))
            .help("choose `policy = \"auto\"` or \"f32\"")
            .into())
    };
    match policy {
        Policy::F32 => {}
        Policy::Bf16 => {
            demand(DType::Bf16)?;
            plans.push(build("bf16", base_scaled, DType::Bf16, true)?);
        }
        Policy::F16 => {
            demand(DType::F16)?;
            plans.push(build("f16", scaled.is_some(), DType::F16, true)?);
        }
        Policy::Auto => {
            if has(DType::Bf16) {
                plans.push(build("bf16", base_scaled, DType::Bf16, false)?);
            }
            if has(DType::F16) && scaled.is_some() {
                plans.push(build("f16", true, DType::F16, false)?);
            }
        }
    }
    let best = match policy {
        Policy::F32 => 0,
        Policy::Bf16 | Policy::F16 => 1,
        Policy::Auto => (0..plans.len())
            .filter(|&i| i == 0 || plans[i].ns < plans[0].ns * (1.0 - WORTHWHILE))
            .min_by(|&a, &b| plans[a].ns.total_cmp(&plans[b].ns))
            .expect("f32 is always a candidate"),
    };
    let choice = journal::choice(policy, &plans, best, target);
    let candidates = plans
        .iter()
        .map(|p| Candidate {
            name: p.name.into(),
            predicted_ns: p.ns,
            legal: true,
            note: match p.scaled {
                true => format!("{}, with loss scale", p.note),
                false => p.note.clone(),
            },
        })
        .collect();
    let chosen = &plans[best];
    let source = if chosen.scaled { &scaled } else { &plain };
    let source = source.as_ref().expect("the chosen mode was given");
    let journal = journal::decisions(&source.graph, chosen, &prices);
    let graph = precision::place::place(&source.graph, &chosen.model, &chosen.labels);
    if let Err(e) = crate::ir::verify::verify(&graph) {
        panic!("placing casts built a graph that does not verify:\n{e}");
    }
    let is_cast = |n: &&crate::ir::Node| matches!(n.op, Op::Cast(_));
    let cast_nodes = || graph.nodes().map(|(_, n)| n).filter(is_cast);
    Ok(Outcome {
        casts: cast_nodes().count() as u64,
        cast_elements: cast_nodes().map(|n| graph.shape(n.outputs[0]).elements() as u64).sum(),
        product_flops: product_flops(&graph),
        scaled: chosen.scaled,
        candidates,
        choice,
        journal,
        rule_firings: source.rule_firings.clone(),
        predicted_ns: chosen.ns,
        graph,
    })
}

/// Share of the floating-point operations of products by the format of their first operand.
fn product_flops(g: &Graph) -> Vec<(DType, f64)> {
    let mut by: BTreeMap<DType, f64> = BTreeMap::new();
    let mut total = 0.0;
    for (_, n) in g.nodes().filter(|(_, n)| n.op.class() == NumericClass::Product) {
        let x: Vec<_> = n.inputs.iter().map(|&v| g.ty(v)).collect();
        let y: Vec<_> = n.outputs.iter().map(|&v| g.ty(v)).collect();
        let flops = n.op.def().flops(&x, &y);
        *by.entry(x[0].dtype).or_insert(0.0) += flops;
        total += flops;
    }
    by.into_iter().filter(|_| total > 0.0).map(|(d, f)| (d, f / total)).collect()
}
