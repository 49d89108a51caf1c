//! `precast blame`: which value of a step was the first that is not finite; and the same for the
//! steps that training skips.

use crate::failure::Outcome;
use crate::identity::Identity;
use crate::recipe_args::{self, RecipeArgs, compile_quietly, open, open_data, watched};
use crate::resume::{Held, ResumeArgs};
use precast_compiler::frontend::recipe::{MAX_STEPS, Recipe};
use precast_compiler::{Diagnostic, Place, pipeline};
use precast_plan::{Plan, Watch};
use precast_runtime::blame::{Blame, Finder};
use precast_runtime::data::{DataState, Dataset};
use precast_runtime::{Session, StepReport};
use serde_json::json;

/// Replay a step and name the first operation, tensor and element that is not finite.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The step, as the log numbers it: 1 is the first.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MAX_STEPS))]
    step: u64,
    #[command(flatten)]
    resume: ResumeArgs,
    /// Length of the run, where it was started with `--steps`: a learning-rate schedule that ends
    /// with the run ends with it.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MAX_STEPS))]
    steps: Option<u64>,
    /// Threads to use; 0 for every core.
    #[arg(long, default_value_t = 0, value_parser = recipe_args::threads)]
    threads: usize,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    args.resume.check()?;
    let mut recipe = args.recipe.load()?;
    recipe_args::take_steps(&mut recipe, args.steps);
    let total = within(&recipe, args.step, "--step")?;
    let data = open_data(&recipe)?;
    let options = args.recipe.options(false);
    let plan = compile_quietly(&recipe, &options)?.plan;
    let (mut session, mut data) = open(&recipe, plan, data, args.threads)?;
    let out = recipe.out_dir();
    let whose = |plan: &Plan| Identity::of(&recipe, plan, total);
    let begun = args.resume.begin(&out, args.step, &whose, Held::Steps, &mut session, &mut data)?;
    if session.steps() >= args.step {
        let message = format!(
            "the checkpoint was saved after step {}, and step {} is to be replayed",
            session.steps(),
            args.step
        );
        return Err(Diagnostic::error("P0012", message)
            .at(Place::File { path: begun.path().unwrap_or(&out).into() })
            .help("name a checkpoint of before the step, or `auto`, which takes the last of those")
            .into());
    }
    while session.steps() + 1 < args.step {
        session.step_from(|| data.next_batch())?;
    }
    let mut replay = Replay::new(recipe, options, args.threads);
    let before = data.state();
    let (report, blame) = replay.step(&session, args.step, None, &before)?;
    if json {
        say!(
            "{}",
            json!({ "ok": true, "step": args.step, "loss": report.loss,
            "scale": report.scale, "skipped": report.skipped, "blame": blame,
            "resumed": begun.path(), "changed": begun.changed })
        );
        return Ok(());
    }
    args.resume.report(&begun, &out)?;
    let scale = report.scale.map_or(String::new(), |s| format!(", loss scale {s}"));
    let skipped = if report.skipped { ", skipped" } else { "" };
    say!("step        {}, loss {:.4}{scale}{skipped}", args.step, report.loss);
    match blame {
        Some(blame) => {
            say!("blame       {}", blame.sentence());
            say!(
                "            {} of its elements are not finite, batch {} of the step",
                blame.elements,
                blame.micro + 1
            );
        }
        None => say!("blame       nobody: every value of the step is finite"),
    }
    Ok(())
}

/// Checks that a run has a step of this number; how many it has.
///
/// # Errors
/// `P0013` with the number of steps that it has.
pub fn within(recipe: &Recipe, step: u64, option: &str) -> Outcome<u64> {
    let total = recipe.total_steps()?;
    if step <= total {
        return Ok(total);
    }
    let steps = if total == 1 { "step" } else { "steps" };
    let message = format!("`{option} {step}` is beyond the run, which has {total} {steps}");
    Err(Diagnostic::error("P0013", message)
        .at(recipe.place(&["train.steps", "train.epochs"], "the length of the run"))
        .help(format!("{option} is at most {total}"))
        .into())
}

/// Replays steps of a run on the CPU backend, one kernel at a time, with everything watched.
pub struct Replay {
    recipe: Recipe,
    options: pipeline::Options,
    threads: usize,
    loaded: Option<Loaded>,
}

struct Loaded {
    session: Session,
    data: Dataset,
    watches: Vec<Watch>,
}

impl Replay {
    /// The plan is made when the first step is replayed.
    pub fn new(recipe: Recipe, options: pipeline::Options, threads: usize) -> Replay {
        Replay { recipe, options, threads, loaded: None }
    }

    /// Replays step `step` with the weights that `of` has now and the batches that follow `data`.
    /// Its loss scale is `scale`, or the one that `of` has. The run is as it was.
    pub fn step(
        &mut self,
        of: &Session,
        step: u64,
        scale: Option<f32>,
        data: &DataState,
    ) -> Outcome<(StepReport, Option<Blame>)> {
        if self.loaded.is_none() {
            self.loaded = Some(self.load()?);
        }
        let Loaded { session, data: rows, watches } = self.loaded.as_mut().expect("just loaded");
        session.adopt(of)?;
        session.rewind(step, scale)?;
        rows.resume(data)?;
        let mut finder = Finder::new(watches);
        let report = session.step_watched(|| rows.next_batch(), watches, &mut |s| finder.see(s))?;
        Ok((report, finder.finish()))
    }

    fn load(&self) -> Outcome<Loaded> {
        let made = watched(&self.recipe, &self.options, pipeline::replay)?;
        let rows = open_data(&self.recipe)?;
        let (session, data) = open(&self.recipe, made.plan, rows, self.threads)?;
        Ok(Loaded { session, data, watches: made.watches })
    }
}
