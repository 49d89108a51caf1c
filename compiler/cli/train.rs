//! `precast train`: compile, train, test, save.

use crate::failure::{Failure, Outcome};
use crate::listing;
use crate::metrics::{self, Metrics};
use crate::recipe_args::{RecipeArgs, compile, open};
use indicatif::{ProgressBar, ProgressStyle};
use precast_compiler::frontend::recipe::{Recipe, TrainLength};
use precast_runtime::data::Dataset;
use precast_runtime::{Session, StepReport};
use serde_json::json;
use std::fs::{self, File};
use std::io::{BufWriter, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Train the recipe's model and save its weights.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Take this many optimizer steps instead of what the recipe says; a learning-rate schedule
    /// that ends with the run ends with it.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    steps: Option<u64>,
    /// Write one JSON line a step to this file.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Folder of what is saved.
    #[arg(long)]
    out: Option<PathBuf>,
    /// Continue from this checkpoint.
    #[arg(long)]
    resume: Option<PathBuf>,
    /// Threads to use; 0 for every core.
    #[arg(long, default_value_t = 0)]
    threads: usize,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let mut recipe = args.recipe.load()?;
    if let Some(steps) = args.steps {
        recipe.train.length = TrainLength::Steps(steps);
    }
    let begin = Instant::now();
    let plan = compile(&recipe, false)?.plan;
    let compiled_in = begin.elapsed().as_secs_f64();
    if !json {
        put!("{}", listing::summary(&plan));
        say!("compiled    in {compiled_in:.2} s");
    }
    let (mut session, mut data) = open(&recipe, plan, args.threads)?;
    if let Some(path) = &args.resume {
        let position = session.load_checkpoint(path)?;
        data.set_position(position);
    }
    let out = args.out.clone().unwrap_or_else(|| recipe.out_dir());
    fs::create_dir_all(&out)?;
    let log = args.log.clone().or_else(|| recipe.train.log.as_ref().map(|p| recipe.resolve(p)));
    let mut saved = vec![];
    let last = steps(&recipe, &mut session, &mut data, log.as_deref(), &out, &mut saved, json)?;
    if let Some(log) = log {
        saved.push(log);
    }
    let test = metrics::test(&recipe, &mut session, &data)?;
    save(&session, &out, &mut saved)?;
    report(json, &session, last, test, &saved)?;
    match last {
        Some(r) if !r.loss.is_finite() => Err(Failure::Diverged { step: r.step, loss: r.loss }),
        _ => Ok(()),
    }
}

/// The training loop; gives the last step's report, `None` where no step was left to take.
fn steps(
    recipe: &Recipe,
    session: &mut Session,
    data: &mut Dataset,
    log: Option<&Path>,
    out: &Path,
    saved: &mut Vec<PathBuf>,
    quiet: bool,
) -> Outcome<Option<StepReport>> {
    let total = recipe.total_steps()?;
    // A resumed run goes on with its log; a new run begins one.
    let resumed = session.steps() > 0;
    let open = |path: &Path| {
        File::options().create(true).write(true).append(resumed).truncate(!resumed).open(path)
    };
    let mut log = log.map(open).transpose()?.map(BufWriter::new);
    let bar = progress(total, session.steps(), quiet);
    let mut last = None;
    while session.steps() < total {
        let mut batches = vec![];
        for _ in 0..session.plan().accumulate {
            let batch = data.next_batch()?;
            metrics::check_targets(recipe, session, &batch)?;
            batches.push(batch);
        }
        let submitted = session.submit(&batches);
        let step = session.steps();
        let saves = recipe.train.checkpoint.is_some_and(|n| step % n == 0 || step == total);
        // Reports come some steps late from a GPU; what is saved, and the run's end, wait for all.
        let waits = saves || step == total || submitted.is_err();
        let (failed, mut reports) = match submitted {
            Ok(reports) => (None, reports),
            Err(e) => (Some(e), vec![]),
        };
        if waits {
            reports.extend(session.finish()?);
        }
        for r in reports {
            if let Some(log) = &mut log {
                // JSON has no infinities and no NaN; those are null.
                let line = json!({ "step": r.step, "loss": r.loss, "scale": r.scale,
                    "skipped": r.skipped, "grad_norm": r.grad_norm, "seconds": r.seconds });
                writeln!(log, "{line}")?;
                // An interrupted run keeps the lines of the steps it took.
                log.flush()?;
            }
            bar.set_position(r.step);
            bar.set_message(format!("loss {:.4}", r.loss));
            last = Some(r);
        }
        if let Some(e) = failed {
            return Err(e.into());
        }
        if saves {
            let path = out.join(format!("checkpoint-{step}.safetensors"));
            session.save_checkpoint(&path, data.position())?;
            saved.push(path);
        }
    }
    bar.finish_and_clear();
    Ok(last)
}

fn progress(total: u64, done: u64, quiet: bool) -> ProgressBar {
    if quiet || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {msg} {per_sec} {eta}")
        .expect("the template is a constant");
    ProgressBar::new(total).with_position(done).with_style(style)
}

fn save(session: &Session, out: &Path, saved: &mut Vec<PathBuf>) -> Outcome {
    let weights = out.join("weights.safetensors");
    session.save_weights(&weights)?;
    saved.push(weights);
    let ema = out.join("ema.safetensors");
    if session.save_ema(&ema)? {
        saved.push(ema);
    }
    let plan = out.join(format!("{}.plan", session.plan().model));
    fs::write(&plan, session.plan().to_json())?;
    saved.push(plan);
    Ok(())
}

fn report(
    json: bool,
    session: &Session,
    last: Option<StepReport>,
    test: Option<Metrics>,
    saved: &[PathBuf],
) -> Outcome {
    if json {
        let result = json!({
            "ok": last.is_none_or(|r| r.loss.is_finite()),
            "steps": session.steps(),
            "loss": last.map(|r| r.loss),
            "test_loss": test.as_ref().map(|t| t.loss),
            "test_accuracy": test.as_ref().and_then(|t| t.accuracy),
            "summary": session.plan().summary,
            "peak_bytes": listing::peak_bytes(session.plan()),
            "saved": saved,
        });
        say!("{result}");
        return Ok(());
    }
    say!("device      {}", session.describe());
    match last {
        Some(r) => say!("trained     {} steps, loss {:.4}", r.step, r.loss),
        None => say!("trained     nothing: the run had ended at step {}", session.steps()),
    }
    if let Some(test) = test {
        say!("test loss: {:.4}", test.loss);
        if let Some(accuracy) = test.accuracy {
            say!("test accuracy: {accuracy:.4}");
        }
    }
    for path in saved {
        say!("saved       {}", path.display());
    }
    Ok(())
}
