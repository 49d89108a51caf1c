//! The e-graph pass: structure by equality saturation and extraction, then precision by minimum
//! cut, for every candidate plan; the cheapest legal one that the policy admits wins.

pub use journal::formats;
pub use precast_plan::units::time as duration;

pub mod convert;
pub mod dominated;
mod every;
pub mod extract;
mod families;
mod journal;
pub mod lang;
mod lean;
mod names;
pub mod rules;
mod sets;
mod trees;

use crate::bound::{self, Admitted, Floor};
use crate::cost::Prices;
use crate::diagnostic::{Diagnostic, Result};
use crate::ir::{Graph, NodeId, ValueId};
use crate::ops::{NumericClass, Op};
use crate::precision::{self, Choices, Labels, Legal, Model, Policy, PrecisionOptions};
use dominated::Alternatives;
use egg::{Runner, SimpleScheduler, StopReason};
use precast_plan::{Bound, Candidate, DType, Decision, Precision, Target};
use precision::ranges::{Origin, Ranged};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::time::Duration;

/// Rounds of saturation, and e-nodes, at most. Both are counts: a limit by the clock would make
/// the result depend on the machine.
const ROUNDS: usize = 64;
const NODES: usize = 2_000_000;

/// `auto` leaves f32 only for a plan that the model says is cheaper by more than this share:
/// below it the prices are not that good.
const WORTHWHILE: f64 = 0.04;

/// The bound's labels are scheduled as well where the cut's prices find them dearer by no more than
/// this share.
const CLOSE: f64 = 0.005;

/// Predictions are sums in another order than the bound's.
const ROUNDING: f64 = 1e-9;

/// The chosen graph and why.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// Formats on every value, casts in place.
    pub graph: Graph,
    /// Whether it is the scaled graph.
    pub scaled: bool,
    /// Which of the candidates it is.
    pub chosen: usize,
    /// Which call of [`Scheduled`] priced it, from 0.
    pub scheduled: usize,
    pub candidates: Vec<Candidate>,
    /// One sentence: what was compared and why this won.
    pub choice: String,
    pub journal: Vec<Decision>,
    /// The same of casts.
    pub cast_journal: Vec<Decision>,
    /// How often each rule united two classes of the chosen graph's e-graph.
    pub rule_firings: BTreeMap<String, u64>,
    pub casts: u64,
    pub cast_elements: u64,
    /// Share of the floating-point operations of products by their precision.
    pub product_flops: Vec<(Precision, f64)>,
    pub predicted_ns: f64,
    /// Below this no plan that the policy admits can be predicted; `None` where formats were not
    /// chosen here.
    pub bound: Option<Bound>,
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
    /// By value: the original value that it equals.
    pub origins: Vec<Option<Origin>>,
    pub rule_firings: BTreeMap<String, u64>,
    /// What else the e-graph holds.
    pub alternatives: Alternatives,
}

/// Nanoseconds of a step as it will run: what the schedule makes of a graph with formats and casts.
pub type Scheduled<'a> = dyn FnMut(&Graph) -> Result<f64> + 'a;

/// Saturates a verified graph whose reals are f32 and extracts the cheapest equal graph.
///
/// # Panics
/// Where the result does not verify: a rule is wrong.
pub fn restructure(g: &Graph, options: &PrecisionOptions, target: &Target) -> Structured {
    let target = &options.usable(target);
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

/// Every graph that the e-graph holds, at most `most` of them: what a small graph's bound is checked
/// against.
///
/// # Panics
/// As [`restructure`].
pub fn structures(
    g: &Graph,
    options: &PrecisionOptions,
    target: &Target,
    most: usize,
) -> Vec<Structured> {
    let target = &options.usable(target);
    Saturated::new(g, options, rules::all()).every(target, most)
}

/// [`restructure`] with chosen rules.
pub fn restructure_with(
    g: &Graph,
    options: &PrecisionOptions,
    target: &Target,
    rules: impl Iterator<Item = &'static rules::Rule>,
    prefer: Prefer,
) -> Structured {
    Saturated::new(g, options, rules).extract(target, DType::F32, prefer).swap_remove(0)
}

/// A graph with everything that the rules found equal to it.
struct Saturated<'g> {
    g: &'g Graph,
    /// No format was decided by a person.
    free: bool,
    loaded: convert::Loaded,
}

impl<'g> Saturated<'g> {
    fn new(
        g: &'g Graph,
        options: &PrecisionOptions,
        rules: impl Iterator<Item = &'static rules::Rule>,
    ) -> Saturated<'g> {
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
        let free = options.pins.is_empty() && options.ranges.is_none();
        Saturated { g, free, loaded }
    }

    /// The cheapest equal graph where products run in `format`, and behind it, where that is
    /// another, the one that multiplies nothing twice.
    fn extract(&self, target: &Target, format: DType, prefer: Prefer) -> Vec<Structured> {
        let loaded = &self.loaded;
        let prices = Prices { target };
        let mut problem = self.problem(&prices, format);
        if prefer == Prefer::New {
            problem.avoid(&loaded.originals());
        }
        let mut choices = vec![problem.solve(&loaded.eg)];
        if prefer == Prefer::Cheap {
            choices.extend(lean::lean(&loaded.eg, &problem, &choices[0]));
        }
        choices.iter().map(|c| self.structured(&problem, c, &prices)).collect()
    }

    fn every(&self, target: &Target, most: usize) -> Vec<Structured> {
        let prices = Prices { target };
        let problem = self.problem(&prices, DType::F32);
        let choices = every::every(&problem, most);
        choices.iter().map(|c| self.structured(&problem, c, &prices)).collect()
    }

    fn problem(&self, prices: &Prices, format: DType) -> extract::Problem {
        let (g, loaded) = (self.g, &self.loaded);
        let class = |r: &crate::ir::Result_| loaded.class[r.value.0 as usize];
        let roots: Vec<egg::Id> = g.results.iter().chain(&g.updates).map(class).collect();
        extract::Problem::new(&loaded.eg, &roots, prices, format)
    }

    fn structured(
        &self,
        problem: &extract::Problem,
        choice: &extract::Choice,
        prices: &Prices,
    ) -> Structured {
        let (g, loaded) = (self.g, &self.loaded);
        let (graph, origins) = convert::unload(g, loaded, problem, choice);
        if let Err(e) = crate::ir::verify::verify(&graph) {
            panic!("extraction built a graph that does not verify:\n{e}");
        }
        let alternatives = dominated::alternatives(&loaded.eg, problem, choice, prices, self.free);
        let rule_firings = loaded.eg.analysis.firings.clone();
        Structured { graph, origins, rule_firings, alternatives }
    }
}

/// One labelled plan.
struct Plan {
    name: &'static str,
    scaled: bool,
    structured: Structured,
    model: Model,
    labels: Labels,
    legal: Legal,
    note: String,
    /// What ranges changed, for the summary.
    ranged: String,
    /// Formats on every value, casts in place.
    placed: Graph,
    ns: f64,
    /// What became of products in precisions that are not stored, or after all others.
    tf32: Choices,
    fp8: Choices,
    /// Which call of [`Scheduled`] priced it.
    call: usize,
    /// Below this no plan of the structure with formats of this kind can be predicted.
    floor: Floor,
}

impl Plan {
    /// The cheaper of two structures of a candidate. The bound of one that settles all others holds
    /// for both; where neither does, the lower one is that of the two.
    fn or(self, other: Plan) -> Plan {
        let of = |p: &Plan| (p.structured.alternatives, p.floor);
        let (mut low, mut high) = (of(&self), of(&other));
        if low.1.ns > high.1.ns {
            std::mem::swap(&mut low, &mut high);
        }
        let (most, floor) = match (low.0.open, high.0.open) {
            (_, 0) => high,
            (0, _) => low,
            (a, b) => (if a <= b { low.0 } else { high.0 }, low.1),
        };
        let mut best = if other.ns < self.ns { other } else { self };
        best.floor = floor;
        best.structured.alternatives = most;
        best
    }
}

/// Whether a target multiplies and stores a format.
pub fn supports(target: &Target, d: DType) -> bool {
    target.products.iter().any(|s| s.format == d.into()) && target.convert(d).is_some()
}

/// The target's refusal of a policy that demands a format it does not have.
///
/// # Errors
/// P0503.
pub fn demand(target: &Target, d: DType) -> Result<()> {
    refuse(supports(target, d), target, d.into())
}

/// The same of TF32 and FP8. A CPU computes either with exact rounding, slower than f32, for who
/// asks for it by name.
fn demand_precision(target: &Target, p: Precision) -> Result<()> {
    refuse(target.device == "cpu" || target.multiplies(p), target, p)
}

fn refuse(has: bool, target: &Target, p: Precision) -> Result<()> {
    if has {
        return Ok(());
    }
    let able = |name: &&str| Target::shipped(name).is_some_and(|t| t.multiplies(p));
    let able: Vec<&str> = Target::SHIPPED.into_iter().filter(able).collect();
    Err(Diagnostic::error("P0503", format!("`{}` has no products in {p}", target.name))
        .help(format!(
            "{} have; on `{}`, `policy = \"auto\"` takes what it has",
            able.join(", "),
            target.name
        ))
        .into())
}

/// Chooses structure, formats and casts, candidates priced before scheduling.
///
/// # Errors
/// As [`run_scheduled`].
pub fn run(modes: Modes, options: &PrecisionOptions, target: &Target) -> Result<Outcome> {
    run_scheduled(modes, options, target, None)
}

/// Chooses structure, formats and casts. Within a candidate, formats are chosen by the prices of
/// the graph; among candidates `scheduled` decides, where it is given.
///
/// # Errors
/// P0501, see [`precision::legal::legality`]; P0502 where neither mode is given; P0503 where the
/// policy asks for a format that the target does not have; what `scheduled` finds wrong.
pub fn run_scheduled(
    modes: Modes,
    options: &PrecisionOptions,
    target: &Target,
    mut scheduled: Option<&mut Scheduled>,
) -> Result<Outcome> {
    let saturate = |g| Saturated::new(g, options, rules::all());
    let plain = modes.plain.map(saturate);
    let scaled = modes.scaled.map(saturate);
    if plain.is_none() && scaled.is_none() {
        return Err(Diagnostic::error("P0502", "there is no graph to choose formats for").into());
    }
    let target = &options.usable(target);
    let prices = Prices { target };
    let mut calls = 0;
    let given = scheduled.is_some();
    let mut label = |structured: Structured,
                     name: &'static str,
                     s: bool,
                     half: DType,
                     kind: Kind|
     -> Result<Plan> {
        let eight = name.ends_with("fp8");
        let g = &structured.graph;
        let origins = &structured.origins;
        let Ranged { legal, scale, note: ranged } =
            precision::ranges::legality(g, origins, half, options, target)?;
        let model = Model::new(g, &legal, &prices, kind == Kind::Forced);
        let admitted = match kind {
            Kind::Full => Admitted::Full,
            Kind::Forced => Admitted::Half,
            Kind::Priced => Admitted::Any,
        };
        let floor = |eight| bound::floor(g, &legal, &prices, admitted, eight, options.micro, s);
        let (mut least, formats) = floor(false);
        if eight {
            least = floor(true).0;
        }
        let note = match kind {
            Kind::Full if options.policy == Policy::Tf32 => "everything stored in f32",
            Kind::Full => "everything in f32",
            Kind::Forced => journal::FORCED,
            Kind::Priced => "by cost",
        };
        // The cut sees fusion before it happens, in one of two ways. What the schedule makes of
        // either decides.
        let mut labellings = vec![if kind == Kind::Full { model.full() } else { model.cut() }];
        if kind != Kind::Full {
            let store = |v: ValueId| formats.stores[v.0 as usize];
            let kernel = |k: NodeId| formats.kernels[k.0 as usize];
            let other = model.labels(store, kernel);
            // Of labels that the prices find clearly dearer, scheduling would not find otherwise.
            let close = |l: &Labels| {
                model.price(l) as f64 <= model.price(&labellings[0]) as f64 * (1.0 + CLOSE)
            };
            labellings.extend(other.filter(|l| *l != labellings[0] && close(l)));
        }
        let pinned = if eight { legal.fixed(g) } else { BTreeMap::new() };
        let exact = legal.exact(g);
        let mut best: Option<(f64, usize, Labels, Graph, [Choices; 2])> = None;
        for labels in labellings {
            let mut placed = precision::place::place(g, &model, &labels);
            let mut fp8 = Choices::default();
            if eight {
                let all = kind == Kind::Forced;
                (placed, fp8) = precision::fp8::quantise(&placed, options, &pinned, &prices, all);
            }
            let all = options.policy == Policy::Tf32;
            let tf32 = precision::tf32::mark(&mut placed, &exact, &prices, all);
            if let Some(scale) = scale {
                precision::ranges::begin_at(&mut placed, &options.loss_scale, scale);
            }
            if let Err(e) = crate::ir::verify::verify(&placed) {
                panic!("placing casts built a graph that does not verify:\n{e}");
            }
            let ns = match &mut scheduled {
                Some(price) => price(&placed)?,
                None => model.price(&labels) as f64 * 1e-3,
            };
            if best.as_ref().is_none_or(|b| ns < b.0) {
                best = Some((ns, calls, labels, placed, [tf32, fp8]));
            }
            calls += 1;
        }
        let (ns, call, labels, placed, [tf32, fp8]) = best.expect("there is a labelling");
        tracing::debug!("{name}: {ns} ns, {least:?}, {:?}", structured.alternatives);
        let note = note.to_string();
        Ok(Plan {
            name,
            scaled: s,
            model,
            labels,
            legal,
            note,
            ranged,
            placed,
            ns,
            call,
            floor: least,
            structured,
            tf32,
            fp8,
        })
    };
    // A wrong bound is no reason to refuse a person's model, and no bound to show.
    let wrong = Cell::new(false);
    let below = |plan: &Plan| {
        let Plan { name, ns, floor, .. } = plan;
        if given && *ns < floor.ns * (1.0 - ROUNDING) {
            let message = format!(
                "{name} is predicted to take {ns} ns, and no plan can take less than {} ns: this is a \
                 bug of Precast, please report it with the model and the recipe",
                floor.ns
            );
            debug_assert!(false, "{message}");
            tracing::warn!("{message}; the plan is shown without a bound");
            wrong.set(true);
        }
    };
    let mut build = |name: &'static str, s: bool, half: DType, kind: Kind| -> Result<Plan> {
        let mode = if s { scaled.as_ref() } else { plain.as_ref() };
        let format = if kind == Kind::Full { DType::F32 } else { half };
        let list = mode.expect("the mode was given").extract(target, format, Prefer::Cheap);
        let mut best: Option<Plan> = None;
        for structured in list {
            let plan = label(structured, name, s, half, kind)?;
            below(&plan);
            best = Some(match best {
                None => plan,
                Some(other) => other.or(plan),
            });
        }
        let best = best.expect("there is a structure");
        below(&best);
        Ok(best)
    };
    let base = plain.is_none();
    let mut plans = vec![build("f32", base, DType::Bf16, Kind::Full)?];
    let policy = options.policy;
    match policy {
        Policy::Bf16 => {
            demand(target, DType::Bf16)?;
            plans.push(build("bf16", base, DType::Bf16, Kind::Forced)?);
        }
        Policy::F16 => {
            demand(target, DType::F16)?;
            plans.push(build("f16", scaled.is_some(), DType::F16, Kind::Forced)?);
        }
        Policy::Fp8 => {
            demand(target, DType::Bf16)?;
            demand_precision(target, Precision::Fp8)?;
            plans.push(build("fp8", base, DType::Bf16, Kind::Forced)?);
        }
        Policy::Auto => {
            if supports(target, DType::Bf16) {
                plans.push(build("bf16", base, DType::Bf16, Kind::Priced)?);
                if target.multiplies(Precision::Fp8) {
                    plans.push(build("bf16+fp8", base, DType::Bf16, Kind::Priced)?);
                }
            }
            if supports(target, DType::F16) && scaled.is_some() {
                plans.push(build("f16", true, DType::F16, Kind::Priced)?);
            }
        }
        Policy::Tf32 => demand_precision(target, Precision::Tf32)?,
        Policy::F32 | Policy::Baseline(_) => {}
    }
    let best = match policy {
        Policy::F32 | Policy::Tf32 | Policy::Baseline(_) => 0,
        Policy::Bf16 | Policy::F16 | Policy::Fp8 => 1,
        Policy::Auto => (0..plans.len())
            .filter(|&i| {
                // FP8 has to beat the 16 bits that it starts from by as much again.
                let from = if plans[i].name == "bf16+fp8" { i - 1 } else { 0 };
                i == 0 || plans[i].ns < plans[from].ns * (1.0 - WORTHWHILE)
            })
            .filter(|&i| i == 0 || plans[i].ns < plans[0].ns * (1.0 - WORTHWHILE))
            .min_by(|&a, &b| plans[a].ns.total_cmp(&plans[b].ns))
            .expect("f32 is always a candidate"),
    };
    if policy == Policy::Auto
        && best == 0
        && plans.len() > 1
        && count_casts(&plans[1].placed).0 == 0
    {
        // By cost the 16-bit candidate is the f32 plan again; say what mixed precision would be.
        let (name, scaled, half) = (plans[1].name, plans[1].scaled, plans[1].legal.half);
        plans.push(build(name, scaled, half, Kind::Forced)?);
    }
    let admitted: Vec<&Plan> = match policy {
        Policy::Auto => plans.iter().collect(),
        _ => vec![&plans[best]],
    };
    let least = admitted
        .iter()
        .min_by(|a, b| a.floor.ns.total_cmp(&b.floor.ns))
        .expect("one of the plans was chosen");
    let bound = Bound {
        ns: least.floor.ns,
        launches_ns: least.floor.launches_ns,
        settled: admitted.iter().map(|p| p.structured.alternatives.settled).sum(),
        open: admitted.iter().map(|p| p.structured.alternatives.open).sum(),
    };
    let choice = journal::choice(policy, &plans, best, target) + &plans[best].ranged;
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
    let mut journal = journal::decisions(&plans[best], &prices);
    journal::precisions(&plans[best], &prices, &mut journal);
    let cast_journal = journal::casts(&plans[best], &prices);
    let chosen = plans.swap_remove(best);
    let graph = chosen.placed;
    let casts = count_casts(&graph);
    Ok(Outcome {
        casts: casts.0,
        cast_elements: casts.1,
        product_flops: product_flops(&graph),
        scaled: chosen.scaled,
        chosen: best,
        scheduled: chosen.call,
        candidates,
        choice,
        journal,
        cast_journal,
        rule_firings: chosen.structured.rule_firings,
        predicted_ns: chosen.ns,
        bound: (!wrong.get()).then_some(bound),
        graph,
    })
}

/// How formats of a candidate are chosen.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Full,
    Forced,
    Priced,
}

/// Casts of a graph, and the elements they convert.
pub fn count_casts(g: &Graph) -> (u64, u64) {
    let casts = g.nodes().map(|(_, n)| n).filter(|n| matches!(n.op, Op::Cast(_)));
    casts.fold((0, 0), |(n, elements), c| {
        (n + 1, elements + g.shape(c.outputs[0]).elements() as u64)
    })
}

/// Share of the floating-point operations of products by precision.
pub fn product_flops(g: &Graph) -> Vec<(Precision, f64)> {
    let mut by: BTreeMap<Precision, f64> = BTreeMap::new();
    let mut total = 0.0;
    for (_, n) in g.nodes().filter(|(_, n)| n.op.class() == NumericClass::Product) {
        let x: Vec<_> = n.inputs.iter().map(|&v| g.ty(v)).collect();
        let y: Vec<_> = n.outputs.iter().map(|&v| g.ty(v)).collect();
        let flops = n.op.def().flops(&x, &y);
        *by.entry(Precision::of(x[0].dtype, n.op.math())).or_insert(0.0) += flops;
        total += flops;
    }
    by.into_iter().filter(|_| total > 0.0).map(|(d, f)| (d, f / total)).collect()
}
