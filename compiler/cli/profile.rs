//! `precast profile`: how large a model's values become.

use crate::blame::within;
use crate::failure::Outcome;
use crate::identity::Identity;
use crate::input;
use crate::output::{can_write, write_file};
use crate::recipe_args::{self, RecipeArgs, open, open_data, watched};
use crate::resume::{Held, ResumeArgs};
use precast_compiler::diagnostic::suggestion;
use precast_compiler::frontend::recipe::{MAX_STEPS, Target};
use precast_compiler::{Diagnostic, Place, pipeline};
use precast_plan::{DType, Plan, RANGES_VERSION, Range, Ranges};
use precast_runtime::Session;
use precast_runtime::ranges::Meter;
use serde_json::{Value, json};
use std::fmt::Write;
use std::path::PathBuf;

/// Train a few steps in f32 and record the range of every tensor, forward and cotangent.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Optimizer steps to measure, at most as many as the run has; by default 10.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MAX_STEPS))]
    steps: Option<u64>,
    /// Where the ranges go, for `[precision] ranges` in a recipe.
    #[arg(short, long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    resume: ResumeArgs,
    /// Print only tensors whose names match this glob, with their histograms.
    #[arg(long, value_name = "GLOB")]
    tensor: Option<String>,
    /// Threads to use; 0 for every core.
    #[arg(long, default_value_t = 0, value_parser = recipe_args::threads)]
    threads: usize,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    args.recipe.only_f32_on_cpu("profile")?;
    args.resume.check()?;
    let chosen = args.tensor.as_deref().map(|g| glob(g, args)).transpose()?;
    let mut recipe = args.recipe.load()?;
    args.out.as_deref().map_or(Ok(()), can_write)?;
    let total = recipe.total_steps()?;
    let steps = match args.steps {
        Some(steps) => {
            within(&recipe, steps, "--steps")?;
            steps
        }
        None => total.min(10),
    };
    let run = recipe.clone();
    // The processor measures, whatever the recipe trains on.
    recipe.target = Target { device: "cpu".into(), table: None };
    let data = open_data(&recipe)?;
    let profiled = watched(&recipe, &args.recipe.options(false), pipeline::profile)?;
    let watches = &profiled.watches;
    let plan = profiled.plan.clone();
    let (mut session, mut data) = open(&recipe, plan, data, args.threads)?;
    let (folder, whose) = (run.out_dir(), |plan: &Plan| Identity::of(&run, plan, total));
    let begun = args.resume.begin(&folder, u64::MAX, &whose, Held::F32, &mut session, &mut data)?;
    let mut meter = Meter::new(watches.len());
    let mut loss = f32::NAN;
    for _ in 0..steps {
        let see = &mut |s: precast_runtime::Seen| meter.see(s.watch, s.values);
        loss = session.step_watched(|| data.next_batch(), watches, see)?.loss;
    }
    let ranges = Ranges {
        version: RANGES_VERSION,
        model: session.plan().model.clone(),
        digest: profiled.digest.clone(),
        steps,
        accumulate: session.plan().accumulate,
        tensors: meter.ranges(watches),
    };
    if let Some(out) = &args.out {
        write_file(out, ranges.to_json().as_bytes())?;
    }
    let shown: Vec<&Range> = match &chosen {
        Some(glob) => ranges.tensors.iter().filter(|t| glob.is_match(&t.name)).collect(),
        None => ranges.tensors.iter().collect(),
    };
    if shown.is_empty() {
        return Err(nothing(args, &ranges).into());
    }
    if json {
        let tensors: Vec<Value> = shown.iter().map(|t| json!(t)).collect();
        say!(
            "{}",
            json!({ "ok": true, "model": ranges.model, "digest": ranges.digest,
            "steps": ranges.steps, "accumulate": ranges.accumulate, "loss": loss,
            "tensors": tensors, "out": args.out, "resumed": begun.path(),
            "changed": begun.changed })
        );
        return Ok(());
    }
    args.resume.report(&begun, &folder)?;
    say!("{}", heading(&ranges, &session, loss));
    put!("{}", table(&shown));
    if chosen.is_some() {
        put!("{}", histograms(&shown));
    }
    if let Some(out) = &args.out {
        say!("saved       {}", out.display());
    }
    Ok(())
}

fn glob(text: &str, args: &Args) -> Outcome<globset::GlobMatcher> {
    let glob = globset::Glob::new(text).map_err(|e| {
        Diagnostic::error("P0005", format!("`{text}` is not a glob: {}", e.kind()))
            .at(Place::File { path: args.recipe.recipe.clone() })
            .help("in a glob `*`, `?`, `[…]` and `{a,b}` stand for others; `[*]` is the character itself")
    })?;
    Ok(glob.compile_matcher())
}

fn nothing(args: &Args, ranges: &Ranges) -> Diagnostic {
    let glob = args.tensor.as_deref().unwrap_or_default();
    let names: Vec<&str> = ranges.tensors.iter().map(|t| t.name.as_str()).collect();
    let otherwise = suggestion("tensors", glob, &names);
    let help = input::instead_of_name(glob, names.iter().copied(), &otherwise);
    Diagnostic::error("P0005", format!("no tensor is called `{glob}`"))
        .at(Place::File { path: args.recipe.recipe.clone() })
        .help(help)
}

fn heading(ranges: &Ranges, session: &Session, loss: f32) -> String {
    format!(
        "ranges      {} tensors of {} over {} steps in f32, last loss {loss:.4}\ndevice      {}",
        ranges.tensors.len(),
        ranges.model,
        ranges.steps,
        session.describe()
    )
}

/// `0`, `12 %`, `<0.1 %`
fn percent(share: f64) -> String {
    match share * 100.0 {
        0.0 => "–".into(),
        x if x < 0.1 => "<0.1 %".into(),
        x if x < 9.95 => format!("{x:.1} %"),
        x => format!("{x:.0} %"),
    }
}

/// One line a tensor: below and above are shares of its elements.
fn table(tensors: &[&Range]) -> String {
    let formats = [DType::F16, DType::F8e4m3, DType::F8e5m2];
    let mut lines: Vec<Vec<String>> = vec![vec!["tensor".into(), "side".into(), "max".into()]];
    lines[0].push("exponents".into());
    for d in formats {
        lines[0].extend([format!("<{d}"), format!(">{d}")]);
    }
    for t in tensors {
        let exponents = match (t.histogram.bins().next(), t.histogram.bins().last()) {
            (Some((low, _)), Some((high, _))) => format!("{low}..{high}"),
            _ => "–".into(),
        };
        let max = match t.not_finite {
            0 => format!("{:.3e}", t.max),
            n => format!("{:.3e}, {n} not finite", t.max),
        };
        let mut line = vec![t.name.clone(), t.side.name().into(), max, exponents];
        for d in formats {
            let share = t.share(d);
            line.push(percent(share.map_or(0.0, |s| s.below)));
            line.push(percent(share.map_or(0.0, |s| s.above)));
        }
        lines.push(line);
    }
    let widths: Vec<usize> = (0..lines[0].len())
        .map(|c| lines.iter().map(|l| l[c].chars().count()).max().unwrap_or(0))
        .collect();
    let mut out = String::new();
    for line in lines {
        for (c, cell) in line.iter().enumerate() {
            let pad = " ".repeat(widths[c] - cell.chars().count());
            // Names read from the left, figures end in one column.
            out += &if c < 2 { format!("{cell}{pad}  ") } else { format!("{pad}{cell}  ") };
        }
        out.truncate(out.trim_end().len());
        out.push('\n');
    }
    out
}

/// A bar for every binary exponent.
fn histograms(tensors: &[&Range]) -> String {
    let mut out = String::new();
    for t in tensors {
        writeln!(out, "\n{}, {} elements, {} zeros", t.name, t.count, t.zeros)
            .expect("writing to a String");
        let most = t.histogram.counts.iter().copied().max().unwrap_or(0).max(1);
        for (exponent, n) in t.histogram.bins() {
            let bar = "█".repeat((n as u128 * 40).div_ceil(u128::from(most)) as usize);
            writeln!(out, "  2^{exponent:<4} {n:>10} {bar}").expect("writing to a String");
        }
    }
    out
}
