//! `precast compare`: one recipe under every policy.

use crate::failure::Outcome;
use crate::input::idle_for;
use crate::listing::{self, bytes, duration};
use crate::recipe_args::{self, RecipeArgs, compile, compile_quietly, open, open_data};
use precast_compiler::cost::step_bytes;
use precast_compiler::frontend::recipe::{Policy, Recipe};
use precast_compiler::pipeline::Compiled;
use precast_plan::Plan;
use precast_runtime::Session;
use precast_runtime::data::Batch;
use serde::Serialize;
use serde_json::json;

/// Compile a recipe under every policy and compare casts, traffic, time and memory.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Policies to compare, all of them by default; one that the target cannot run is left out.
    #[arg(long = "only", value_name = "POLICY", value_parser = recipe_args::policies())]
    only: Vec<Policy>,
    /// Run so many steps of each plan on this machine, plans taking turns, and report the median.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    measure: Option<u32>,
    /// Threads to measure with; 0 takes every core.
    #[arg(long, default_value_t = 0, value_parser = recipe_args::threads)]
    threads: usize,
}

type Compile = fn(&Recipe, &precast_compiler::pipeline::Options) -> Outcome<Compiled>;

/// One policy's plan in figures.
#[derive(Debug, Serialize)]
struct Row {
    policy: &'static str,
    /// Changes of format in a step.
    casts: usize,
    cast_elements: u64,
    /// Bytes that casts read and write where each is a kernel of its own.
    cast_bytes: u64,
    /// Share of the floating-point operations of products with operands of 16 bits or 8, 0 to 1.
    products_16: f64,
    /// The same by precision.
    products: std::collections::BTreeMap<&'static str, f64>,
    kernels: usize,
    /// Bytes that the kernels of a step read and write.
    moved_bytes: u64,
    predicted_ns: f64,
    /// Below this no plan of the policy can be predicted.
    #[serde(skip_serializing_if = "Option::is_none")]
    bound_ns: Option<f64>,
    /// Nanoseconds of the median measured step, and of the fastest.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured_ns: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fastest_ns: Option<f64>,
    peak_bytes: u64,
    choice: String,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    if let Some(policy) = args.recipe.policy {
        let flag = format!("--policy {}", policy.name());
        let help = format!("`--only {}` compiles that one alone", policy.name());
        return Err(idle_for("compare", flag, "it compiles under every policy", &help).into());
    }
    let recipe = args.recipe.load()?;
    let all: Vec<Policy> = match args.only.is_empty() {
        // Precisions that a person has to allow are compared where the recipe does.
        true => Policy::WORDS
            .iter()
            .map(|(_, p)| *p)
            .filter(|p| match p {
                Policy::Tf32 => recipe.precision.allow.tf32,
                Policy::Fp8 => recipe.precision.allow.fp8,
                _ => true,
            })
            .collect(),
        false => args.only.clone(),
    };
    let (mut rows, mut refused, mut runs) = (vec![], vec![], vec![]);
    let mut uncalibrated = None;
    for policy in all {
        let mut recipe = recipe.clone();
        recipe.precision.policy = policy;
        if !args.only.is_empty() {
            recipe.overrule("precision.policy", &format!("--only {}", policy.name()));
        }
        // What there is to warn of is said once.
        let compile: Compile = if rows.is_empty() { compile } else { compile_quietly };
        match compile(&recipe, &args.recipe.options(false)) {
            Ok(c) => {
                uncalibrated = listing::uncalibrated(&c.plan);
                rows.push(row(policy, &c));
                if args.measure.is_some() {
                    runs.push(Run::open(&recipe, c.plan, args.threads)?);
                }
            }
            // What was asked for by name is an error; the rest of the list is not.
            Err(e) if !args.only.is_empty() || rows.is_empty() => return Err(e),
            Err(_) => refused.push(policy.name()),
        }
    }
    if let Some(steps) = args.measure {
        measure(&mut runs, steps)?;
        for (row, run) in rows.iter_mut().zip(&mut runs) {
            run.ns.sort_by(f64::total_cmp);
            row.measured_ns = Some(run.ns[run.ns.len() / 2]);
            row.fastest_ns = Some(run.ns[0]);
        }
    }
    if json {
        let target = recipe.target.device;
        say!(
            "{}",
            json!({ "ok": true, "device": target, "uncalibrated": uncalibrated, "rows": rows,
                    "refused": refused })
        );
        return Ok(());
    }
    put!("{}", table(&rows));
    if !refused.is_empty() {
        say!("not possible with this recipe and target: {}", refused.join(", "));
    }
    if let Some(why) = uncalibrated {
        say!("{why}");
    }
    Ok(())
}

fn row(policy: Policy, c: &Compiled) -> Row {
    let plan = &c.plan;
    let narrow = plan.summary.product_flops.iter().filter(|(p, _)| p.size() < 4);
    Row {
        policy: policy.name(),
        casts: c.casts.len(),
        cast_elements: c.casts.iter().map(|r| r.elements).sum(),
        cast_bytes: c.casts.iter().map(|r| r.bytes()).sum(),
        // The sum of nothing is −0.
        products_16: narrow.map(|(_, share)| share).sum::<f64>() + 0.0,
        products: plan.summary.product_flops.iter().map(|(p, x)| (p.name(), *x)).collect(),
        kernels: plan.micro.len() + plan.update.len(),
        moved_bytes: moved(plan),
        predicted_ns: plan.summary.predicted_ns,
        bound_ns: plan.summary.bound.as_ref().map(|b| b.ns),
        measured_ns: None,
        fastest_ns: None,
        peak_bytes: listing::peak_bytes(plan),
        choice: plan.summary.choice.clone(),
    }
}

fn moved(plan: &Plan) -> u64 {
    let sum = |steps: &[precast_plan::Step]| steps.iter().map(|s| step_bytes(s, plan)).sum::<u64>();
    sum(&plan.micro) * u64::from(plan.accumulate) + sum(&plan.update)
}

/// A plan that can run, the batches of one step, and what its steps took.
struct Run {
    session: Session,
    batches: Vec<Batch>,
    ns: Vec<f64>,
}

impl Run {
    fn open(recipe: &Recipe, plan: Plan, threads: usize) -> Outcome<Run> {
        let (session, mut data) = open(recipe, plan, open_data(recipe)?, threads)?;
        let mut batches = vec![];
        for _ in 0..session.plan().accumulate {
            batches.push(data.next_batch()?);
        }
        Ok(Run { session, batches, ns: vec![] })
    }
}

/// Steps in one turn of a plan, after one that only warms the caches.
const TURN: u32 = 5;

/// Runs `steps` steps of every plan. They take turns, so that what else the machine does, and how
/// warm it is, falls on all of them.
fn measure(runs: &mut [Run], steps: u32) -> Outcome {
    let mut left = steps.max(1);
    while left > 0 {
        let turn = left.min(TURN);
        left -= turn;
        for run in &mut *runs {
            run.session.step(&run.batches)?;
            for _ in 0..turn {
                run.ns.push(run.session.step(&run.batches)?.seconds * 1e9);
            }
        }
    }
    Ok(())
}

fn table(rows: &[Row]) -> String {
    let measured = rows.iter().any(|r| r.measured_ns.is_some());
    let mut head = vec!["policy", "casts", "cast bytes", "16-bit products", "kernels", "moved"];
    head.extend(["predicted", "over bound"]);
    if measured {
        head.push("measured");
    }
    head.push("tensors");
    let mut lines: Vec<Vec<String>> = vec![head.into_iter().map(String::from).collect()];
    for r in rows {
        let mut line = vec![
            r.policy.to_string(),
            r.casts.to_string(),
            bytes(r.cast_bytes),
            format!("{:.0} %", r.products_16 * 100.0),
            r.kernels.to_string(),
            bytes(r.moved_bytes),
            duration(r.predicted_ns),
            r.bound_ns.map_or("–".into(), |b| listing::percent(r.predicted_ns / b - 1.0)),
        ];
        if measured {
            line.push(r.measured_ns.map_or("–".into(), duration));
        }
        line.push(bytes(r.peak_bytes));
        lines.push(line);
    }
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|c| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for line in lines {
        for (c, cell) in line.iter().enumerate() {
            let pad = " ".repeat(widths[c] - cell.chars().count());
            // The first column reads from the left, figures end in one column.
            out += &if c == 0 { format!("{cell}{pad}") } else { format!("  {pad}{cell}") };
        }
        out += "\n";
    }
    out
}
