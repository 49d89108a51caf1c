//! `precast calibrate`: measures this machine and writes a target description.

mod networks;
mod steps;
mod validation;

use crate::failure::{Failure, Outcome};
use crate::listing::duration;
use crate::output::{can_write, write_file};
use crate::recipe_args;
use indicatif::{ProgressBar, ProgressStyle};
use precast_compiler::{Diagnostic, Place};
use precast_plan::Target;
use precast_runtime::calibrate::{Limits, calibrate};
use serde_json::json;
use std::path::PathBuf;
use std::time::Duration;
use validation::Row;

/// Measure this machine's kernels and write a target description (TOML), for `[target] table`.
///
/// Everything is measured in rounds until three of them agree, and scaled to steps of three networks. Then
/// five others are planned with the new description and with the shipped one, and their steps are
/// measured: a description that predicts them worse, or makes them slower, is not written.
#[derive(clap::Args)]
pub struct Args {
    /// The file to write.
    #[arg(short, long, alias = "output")]
    out: PathBuf,
    /// Name of the description.
    #[arg(long, default_value = "cpu-calibrated")]
    name: String,
    /// Threads that plans will run with; 0 takes every core.
    #[arg(long, default_value_t = 0, value_parser = recipe_args::threads)]
    threads: usize,
    /// Most rounds. Fewer than three do not show whether figures agree.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: u32,
    /// No round begins after so many minutes, but for the first three.
    #[arg(long, default_value_t = 3.0, value_parser = minutes)]
    minutes: f64,
    /// Steps of each network that are measured, at least.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    steps: u32,
    /// Write the description even where it is worse than the shipped one; its `source` says so.
    #[arg(long)]
    force: bool,
}

fn minutes(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(x) if (0.0..=1440.0).contains(&x) => Ok(x),
        _ => Err("a number of minutes, up to 1440".into()),
    }
}

pub fn run(args: &Args, as_json: bool) -> Outcome<()> {
    can_write(&args.out)?;
    let bar = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{spinner} measuring {msg}").expect("the template is right"),
    );
    let mut progress = |what: &str| {
        bar.set_message(what.to_string());
        bar.tick();
    };
    let limits = Limits {
        rounds: args.rounds,
        time: Duration::from_secs_f64(args.minutes * 60.0),
        ..Limits::default()
    };
    let measured = calibrate(&args.name, args.threads, &limits, &mut progress)?;
    let mut target = steps::fit(&measured.target, args.threads, args.steps, &mut progress)?;
    let shipped = match recipe_args::options().bf16_products {
        true => "cpu-avx512bf16",
        false => "cpu-generic",
    };
    let shipped = Target::shipped(shipped).expect("it is shipped");
    let rows = validation::validate([&shipped, &target], args.threads, args.steps, &mut progress)?;
    bar.finish_and_clear();
    let objections: Vec<String> = rows.iter().filter_map(Row::objection).collect();
    if let Some(u) = &measured.unsteady {
        target.source += &format!("; {u}");
        recipe_args::warn(&[Diagnostic::warning("P0604", u.to_string())
            .help("end what else runs on this machine and calibrate again")]);
    }
    if !objections.is_empty() {
        if !args.force {
            if !as_json {
                put!("{}", table(&rows));
            }
            return Err(refused(args, &objections));
        }
        target.source += &format!("; written by --force though worse than {}", shipped.name);
    }
    let text = toml::to_string_pretty(&target).expect("a target is plain data");
    write_file(&args.out, text.as_bytes())?;
    if as_json {
        say!(
            "{}",
            json!({ "ok": true, "out": args.out, "target": target, "rounds": measured.rounds,
                "unsteady": measured.unsteady.map(|u| u.to_string()), "validation": rows,
                "worse": objections })
        );
        return Ok(());
    }
    say!("rounds      {}", measured.rounds);
    say!("memory      {:.1} GB/s streamed", target.bandwidth_gbs);
    say!("kernel      {} to start", duration(target.launch_ns));
    say!(
        "element     {:.3} ns simple, {:.3} ns division, {:.3} ns transcendental",
        target.simple_ns,
        target.divide_ns,
        target.transcendental_ns
    );
    for s in &target.products {
        let best = s.points.iter().map(|p| p.1).fold(0.0, f64::max);
        say!("{:<11} {:<5} up to {best:.0} GFLOP/s", format!("{:?}", s.family), s.format);
    }
    put!("{}", table(&rows));
    for objection in &objections {
        say!("worse       {objection}");
    }
    say!("saved       {}", args.out.display());
    Ok(())
}

fn refused(args: &Args, objections: &[String]) -> Failure {
    let text = format!(
        "the description measured here is worse than the shipped one and was not written: {}",
        objections.join("; ")
    );
    Diagnostic::error("P0605", text)
        .at(Place::File { path: args.out.clone() })
        .help(
            "end what else runs on this machine and calibrate again; without a table plans use the \
             shipped one; `--force` writes it all the same",
        )
        .into()
}

/// Predicted beside measured.
fn table(rows: &[Row]) -> String {
    let mut out = format!(
        "{:<11} {:>10} {:>10} {:>10} {:>10}\n",
        "a step of", "shipped", "measured", "calibrated", "measured"
    );
    for r in rows {
        let figures =
            [r.shipped, r.calibrated].map(|s| [s.predicted_ns, s.measured_ns].map(duration));
        let [[a, b], [c, d]] = figures;
        out += &format!("{:<11} {a:>10} {b:>10} {c:>10} {d:>10}\n", r.network);
    }
    out
}
