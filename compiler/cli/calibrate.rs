//! `precast calibrate`: measures this machine and writes a target description.

use crate::failure::Outcome;
use crate::listing::duration;
use crate::output::{can_write, write_file};
use crate::recipe_args;
use indicatif::{ProgressBar, ProgressStyle};
use precast_runtime::calibrate::calibrate;
use serde_json::json;
use std::path::PathBuf;

/// Measure this machine's kernels and write a target description (TOML), for `[target] table`.
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
    /// How often everything is measured; the best time counts.
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: u32,
}

pub fn run(args: &Args, as_json: bool) -> Outcome<()> {
    can_write(&args.out)?;
    let bar = ProgressBar::new_spinner().with_style(
        ProgressStyle::with_template("{spinner} measuring {msg}").expect("the template is right"),
    );
    let target = calibrate(&args.name, args.threads, args.rounds, &mut |what| {
        bar.set_message(what.to_string());
        bar.tick();
    })?;
    bar.finish_and_clear();
    let text = toml::to_string_pretty(&target).expect("a target is plain data");
    write_file(&args.out, text.as_bytes())?;
    if as_json {
        say!("{}", json!({ "ok": true, "out": args.out, "target": target }));
        return Ok(());
    }
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
    say!("saved       {}", args.out.display());
    Ok(())
}
