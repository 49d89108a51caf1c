//! `precast compare`: one recipe under every policy.

use crate::failure::Outcome;
use crate::listing::{self, bytes, duration};
use crate::recipe_args::{RecipeArgs, compile, compile_quietly, open, open_data};
use precast_compiler::cost::step_bytes;
use precast_compiler::frontend::recipe::{Policy, Recipe};
use precast_compiler::pipeline::Compiled;
use precast_plan::{DType, Plan};
use serde::Serialize;
use serde_json::json;

/// Compile a recipe under every policy and compare casts, traffic, time and memory.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Policies to compare, all of them by default; one that the target cannot run is left out.
    #[arg(long = "only", value_name = "POLICY")]
    only: Vec<Policy>,
    /// Run so many steps of each plan on this machine, and report the fastest of them.
    #[arg(long, value_name = "N")]
    measure: Option<u32>,
    /// Threads to measure with; 0 takes every core.
    #[arg(long, default_value_t = 0)]
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
    /// Share of the floating-point operations of products with 16-bit operands, 0 to 1.
    products_16: f64,
    kernels: usize,
    /// Bytes that the kernels of a step read and write.
    moved_bytes: u64,
    predicted_ns: f64,
    /// Nanoseconds of the fastest measured step.
    #[serde(skip_serializing_if = "Option::is_none")]
    measured_ns: Option<f64>,
    peak_bytes: u64,
    choice: String,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let recipe = args.recipe.load()?;
    let all: Vec<Policy> = match args.only.is_empty() {
        true => Policy::WORDS.iter().map(|(_, p)| *p).collect(),
        false => args.only.clone(),
    };
    let (mut rows, mut refused) = (vec![], vec![]);
    for policy in all {
        let mut recipe = recipe.clone();
        recipe.precision.policy = policy;
        // What there is to warn of is said once.
        let compile: Compile = if rows.is_empty() { compile } else { compile_quietly };
        match compile(&recipe, &args.recipe.options(false)) {
            Ok(c) => rows.push(row(&recipe, policy, c, args)?),
            // What was asked for by name is an error; the rest of the list is not.
            Err(e) if !args.only.is_empty() || rows.is_empty() => return Err(e),
            Err(_) => refused.push(policy.name()),
        }
    }
    if json {
        let target = recipe.target.device;
        let text = json!({ "ok": true, "device": target, "rows": rows, "refused": refused });
        say!("{text}");
        return Ok(());
    }
    put!("{}", table(&rows));
    if !refused.is_empty() {
        say!("not possible with this recipe and target: {}", refused.join(", "));
    }
    Ok(())
}

fn row(recipe: &Recipe, policy: Policy, c: Compiled, args: &Args) -> Outcome<Row> {
    let measured_ns = match args.measure {
        Some(steps) => Some(measure(recipe, c.plan.clone(), steps.max(1), args.threads)?),
        None => None,
    };
    let plan = &c.plan;
    let narrow = plan.summary.product_flops.iter().filter(|(d, _)| *d != DType::F32);
    Ok(Row {
        policy: policy.name(),
        casts: c.casts.len(),
        cast_elements: c.casts.iter().map(|r| r.elements).sum(),
        cast_bytes: c.casts.iter().map(|r| r.bytes()).sum(),
        // The sum of nothing is −0.
        products_16: narrow.map(|(_, share)| share).sum::<f64>() + 0.0,
        kernels: plan.micro.len() + plan.update.len(),
        moved_bytes: moved(plan),
        predicted_ns: plan.summary.predicted_ns,
        measured_ns,
        peak_bytes: listing::peak_bytes(plan),
        choice: plan.summary.choice.clone(),
    })
}

fn moved(plan: &Plan) -> u64 {
    let sum = |steps: &[precast_plan::Step]| steps.iter().map(|s| step_bytes(s, plan)).sum::<u64>();
    sum(&plan.micro) * u64::from(plan.accumulate) + sum(&plan.update)
}

/// Nanoseconds of the fastest step, after one that is not counted.
fn measure(recipe: &Recipe, plan: Plan, steps: u32, threads: usize) -> Outcome<f64> {
    let (mut session, mut data) = open(recipe, plan, open_data(recipe)?, threads)?;
    let mut batches = vec![];
    for _ in 0..session.plan().accumulate {
        batches.push(data.next_batch()?);
    }
    session.step(&batches)?;
    let mut best = f64::INFINITY;
    for _ in 0..steps {
        best = best.min(session.step(&batches)?.seconds);
    }
    Ok(best * 1e9)
}

fn table(rows: &[Row]) -> String {
    let measured = rows.iter().any(|r| r.measured_ns.is_some());
    let mut head = vec!["policy", "casts", "cast bytes", "16-bit products", "kernels", "moved"];
    head.push("predicted");
    if measured {
        head.push("measured");
    }
    head.push("peak memory");
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
