//! `precast train`: compile, train, test, save.

use crate::failure::{Failure, Outcome};
use crate::follow::{self, Course, Follow, shortest};
use crate::identity::{self, Identity};
use crate::kernels;
use crate::listing;
use crate::lock::Lock;
use crate::memory::{self, Memory};
use crate::metrics::{self, Metrics};
use crate::next;
use crate::output::{can_write, quiet, write_file};
use crate::recipe_args::{self, RecipeArgs, compile, open, open_data};
use crate::resume::{Held, Interrupt, ResumeArgs};
use crate::saver::Saver;
use crate::signals::Signals;
use crate::skips::{Skips, Stop};
use precast_compiler::frontend::recipe::{MAX_STEPS, Recipe};
use precast_plan::Plan;
use precast_runtime::data::{DataState, Dataset};
use precast_runtime::files::Lines;
use precast_runtime::{Error, Session, StepReport};
use serde_json::{Map, Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Train the recipe's model and save its weights.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// Take this many optimizer steps instead of what the recipe says; a learning-rate schedule
    /// that ends with the run ends with it.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..=MAX_STEPS))]
    steps: Option<u64>,
    /// Write one JSON line a step to this file.
    #[arg(long)]
    log: Option<PathBuf>,
    /// Folder of what is saved.
    #[arg(short, long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    resume: ResumeArgs,
    /// Replay at most so many skipped steps to name what overflowed; by default all of
    /// them, and on a GPU, which waits for it, the first.
    #[arg(long, value_name = "N")]
    blame: Option<u64>,
    /// Where standard error is no terminal: seconds between lines of progress; 0 is a line a step.
    #[arg(long, value_name = "SECONDS", default_value_t = 5.0, value_parser = follow::seconds)]
    progress: f64,
    /// Time every kernel, and print the times beside the predicted ones; on the processor.
    #[arg(long)]
    profile: bool,
    /// Threads to use; 0 for every core.
    #[arg(long, default_value_t = 0, value_parser = recipe_args::threads)]
    threads: usize,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    args.resume.check()?;
    let mut recipe = args.recipe.load()?;
    recipe_args::take_steps(&mut recipe, args.steps);
    // What can be found wrong is found before the time of compiling and training is spent.
    recipe_args::has_model(&recipe)?;
    let data = open_data(&recipe)?;
    let out = args.out.clone().unwrap_or_else(|| recipe.out_dir());
    let mut lock = Lock::take(&out)?;
    let signals = Signals::checkpoints();
    let begin = Instant::now();
    let compiled = compile(&recipe, &args.recipe.options(false))?;
    let compiled_in = begin.elapsed().as_secs_f64();
    // Where a name looks like a buffer's, a person should see what will be trained.
    let guessed = compiled.warnings.iter().any(|w| matches!(w.code, "P0229" | "P0230"));
    let (plan, trained) = (compiled.plan, compiled.trained);
    let total = recipe.total_steps()?;
    let identity = Identity::of(&recipe, &plan, total)?;
    if !json && !quiet() {
        put!("{}", listing::summary(&plan));
        if guessed {
            say!("trains      {}", trained.join(", "));
        }
        say!("compiled    in {}", listing::duration(compiled_in * 1e9));
    }
    memory::give_back();
    let (mut session, mut data) = open(&recipe, plan, data, args.threads)?;
    let memory = Memory::of(&session, &data);
    if let Some(memory) = memory.filter(|_| !json && !quiet()) {
        say!("memory      {}", memory.text());
    }
    if args.profile {
        session.time_kernels()?;
    }
    let whose = |_: &Plan| Ok(identity.clone());
    let start = args.resume.begin(&out, u64::MAX, &whose, Held::Steps, &mut session, &mut data)?;
    if !json {
        args.resume.report(&start, &out)?;
    }
    let ema = recipe.train.ema.map(|_| ema(&out));
    for path in [weights(&out), plan_file(&out, session.plan())].into_iter().chain(ema) {
        can_write(&path)?;
    }
    let path = args.log.clone().or_else(|| recipe.train.log.as_ref().map(|p| recipe.resolve(p)));
    let log = path.as_deref().map(|path| Log::open(path, session.steps())).transpose()?;
    signals.listen();
    lock.begin();
    let mut saver = Saver::new(&out, &identity, recipe.train.keep, start.from.as_ref())?;
    let resumed = start.path().map(Path::to_path_buf);
    let changed = start.changed;
    drop(start.from);
    let mut saved = vec![];
    let options = args.recipe.options(false);
    let mut skips = Skips::new(&recipe, session.plan(), options, args.threads, args.blame);
    let run = Run { recipe: &recipe, total, signals: &signals, progress: args.progress };
    let begun = session.steps();
    let taken = steps(&run, log, &mut session, &mut data, &mut skips, &mut saver)?;
    if let Some(path) = path.filter(|_| taken.lost.is_none()) {
        saved.push(path);
    }
    let mut faults = vec![];
    let well = taken.stop.is_none() && taken.cut.is_none();
    let whole = well && session.steps() >= total;
    if let Some(stop) = taken.stop {
        let error = stopped(stop, &mut session, &data, &mut saver, &mut faults)?;
        faults.insert(0, Failure::Training(error));
    }
    // Weights of a run that a signal ended are in its checkpoint.
    let mut learned = whole || !well;
    if let Some(cut) = taken.cut {
        // What an earlier run left in the folder is worth more than what learned nothing.
        learned = cut.sound && session.steps() > begun;
        faults.push(Failure::Cut(cut.error));
        if let Some(state) = cut.state.filter(|_| learned) {
            faults.extend(saver.keep(&session, &state).err().map(Failure::Cut));
        }
    }
    // Before the test, which may find rows that cannot be read.
    if learned {
        faults.extend(save(&session, &out, &mut saved).err().map(cut_short));
    }
    // In this order, so that a signal is either answered or ends the process.
    signals.end_at_once();
    let interrupt = signals.end().filter(|_| well);
    let interrupt = interrupt.map(|s| Interrupt::of(s, total, &session, &data, &mut saver));
    faults.extend(saver.wait().err().map(Failure::Cut));
    let mut test = None;
    if whole {
        if interrupt.is_none() {
            match metrics::test(&recipe, &mut session, &data) {
                Ok(measured) => test = measured,
                Err(e) => faults.push(cut_short(e)),
            }
        }
        let finite = ", though weights and gradients are finite";
        let fault = judge(&session, taken.last, &skips)?;
        let fault = fault.or_else(|| metrics::judge(test.as_ref(), finite));
        if let Some(error) = fault {
            faults.insert(0, Failure::Training(error));
        }
    }
    faults.extend(taken.lost.map(Failure::Cut));
    faults.extend(interrupt.as_ref().map(|i| Failure::Signal(i.signal, i.text())));
    replaced(&data);
    saved.splice(0..0, saver.saved());
    let next = next::lines(&next::Ended {
        recipe: &args.recipe.recipe,
        options: &args.recipe.repeated(),
        out: &out,
        asked_out: args.out.as_deref(),
        saved: &saved,
        steps: session.steps(),
        total,
        bends: identity::ends_with_the_run(&recipe),
        good: faults.is_empty(),
    });
    // What goes on with a run that a signal ended is said last.
    let next = if interrupt.is_some() { vec![] } else { next };
    let done = Done {
        last: taken.last,
        test,
        trained: &trained,
        saved: &saved,
        next: &next,
        memory,
        profile: kernels::profile(&session),
        faults: &faults,
        interrupt: interrupt.as_ref(),
        resumed: resumed.as_deref(),
        changed: &changed,
    };
    let printed = report(json, &session, done, &skips, &saver);
    // The first says with which code the command ends; the others are told here. Ctrl-C ends the
    // other programs of a pipe, too, which changes nothing.
    let mut faults = faults.into_iter();
    let first = faults.next();
    faults.for_each(|f| tell!("{}", f.text()));
    first.map_or(printed, Err)
}

/// A failure behind training, whose result is still to be printed.
fn cut_short(failure: Failure) -> Failure {
    match failure {
        Failure::Run(e) => Failure::Cut(e),
        other => other,
    }
}

/// Tells of data files that were replaced while the run went on with those it had opened.
fn replaced(data: &Dataset) {
    for path in data.replaced() {
        tell!(
            "warning: {} was replaced during the run, which goes on with the file it began with; \
             resumed, it would read the other",
            path.display()
        );
    }
}

/// Keeps a checkpoint of a run that ends before its time; what it says to the person.
fn stopped(
    stop: Stop,
    session: &mut Session,
    data: &Dataset,
    saver: &mut Saver,
    faults: &mut Vec<Failure>,
) -> Outcome<Error> {
    let mut state = data.state();
    if let Some(before) = stop.before {
        // As it was before the step, which a resumed run takes again.
        session.rewind(stop.step, stop.scale)?;
        state = before;
    }
    faults.extend(saver.keep(session, &state).err().map(Failure::Cut));
    let error = stop.error;
    Ok(match session.not_finite()?.first() {
        Some((name, n)) => error.help(format!(
            "`{name}` was not finite before, in {n} of its elements: the step before went too far"
        )),
        None => error,
    })
}

/// What is wrong with a run that went to its end.
fn judge(session: &Session, last: Option<StepReport>, skips: &Skips) -> Outcome<Option<Error>> {
    let fault = |text: String| {
        Error::new("R0607", text)
            .help("a lower learning rate or `[train] clip_norm` may keep it finite")
    };
    if let Some(e) = skips.all() {
        return Ok(Some(e));
    }
    let bad = session.not_finite()?;
    if let Some((name, n)) = bad.first() {
        let more = match bad.len() - 1 {
            0 => String::new(),
            1 => ", and of another tensor".to_string(),
            more => format!(", and of {more} other tensors"),
        };
        let text = format!("training diverged: {n} elements of `{name}`{more} are not finite");
        return Ok(Some(Error::new("R0606", text).help(
            "a lower learning rate or `[train] clip_norm` may keep them finite; checkpoints of before \
             are as they were, and `--resume-changed` goes on from one with either",
        )));
    }
    let Some(r) = last else { return Ok(None) };
    if let Some(norm) = r.grad_norm.filter(|n| !n.is_finite()) {
        let text = format!("training diverged: the gradient norm of step {} is {norm}", r.step);
        return Ok(Some(fault(text)));
    }
    Ok((!r.loss.is_finite()).then(|| {
        fault(format!("the loss of step {} is {}, though its gradients are finite", r.step, r.loss))
    }))
}

/// What the training loop is told.
struct Run<'a> {
    recipe: &'a Recipe,
    /// Length of the run in steps.
    total: u64,
    signals: &'a Signals,
    /// Seconds between lines of progress.
    progress: f64,
}

/// What the training loop did.
struct Taken {
    /// The last step that was applied; `None` where none was.
    last: Option<StepReport>,
    /// Why it ended before its time.
    stop: Option<Stop>,
    /// What ended it that is no matter of training.
    cut: Option<Cut>,
    /// Why it went on without its log.
    lost: Option<Error>,
}

/// The end of a run that could not read its data, write a checkpoint, or go on with its device.
struct Cut {
    error: Error,
    /// Weights and state are those of the last step that was taken.
    sound: bool,
    /// Where the data stood behind that step, where a checkpoint may still be written.
    state: Option<DataState>,
}

/// The training loop.
fn steps(
    run: &Run,
    mut log: Option<Log>,
    session: &mut Session,
    data: &mut Dataset,
    skips: &mut Skips,
    saver: &mut Saver,
) -> Outcome<Taken> {
    let Run { recipe, total, signals, .. } = *run;
    let course = Course::new(recipe, session.plan(), data, session.steps());
    let mut follow = Follow::new(course, session.plan(), (session.steps(), total), run.progress);
    let mut taken = Taken { last: None, stop: None, cut: None, lost: None };
    let mut epoch = data.position().epoch;
    let mut ends = false;
    while taken.stop.is_none() && taken.cut.is_none() && !ends && session.steps() < total {
        let before = data.state();
        skips.begins(session.steps() + 1, before);
        let submitted = session.submit(|| data.next_shared());
        let step = session.steps();
        let due = recipe.train.checkpoint.is_some_and(|n| step.is_multiple_of(n) || step == total);
        let asked = signals.takes_checkpoint();
        ends = signals.end().is_some();
        let saves = due || asked || ends;
        // Reports come some steps late from a GPU; what is saved, and the run's end, wait for all.
        let waits = saves || step == total || submitted.is_err();
        let (mut failed, mut reports) = match submitted {
            Ok(reports) => (None, reports),
            Err(e) => (Some(e), vec![]),
        };
        // A skipped step is replayed with the weights as they are, once nothing changes them.
        if waits || skips.waits(&reports) {
            let rest = session.finish().or_else(|e| {
                failed.get_or_insert(e);
                session.finish()
            });
            match rest {
                Ok(rest) => reports.extend(rest),
                Err(e) => failed = failed.or(Some(e)),
            }
        }
        for (i, r) in reports.iter().enumerate() {
            let ended = skips.ended(session, r, &reports[i + 1..]);
            if let Some(open) = &mut log
                && let Err(e) = open.line(r, course.log(r.step), ended.blame)
            {
                tell!("{e}\nThe run goes on without its log.");
                (log, taken.lost) = (None, Some(e));
            }
            follow.step(r, skips.count());
            if !r.skipped && r.counted != Some(0.0) {
                taken.last = Some(*r);
            }
            taken.stop = ended.stop;
            // Later steps, which a device behind the host had begun, it has not applied, or they
            // belong to the run that ends here.
            if taken.stop.is_some() {
                break;
            }
        }
        if let Some(error) = failed.filter(|_| taken.stop.is_none()) {
            // What a device behind the host refuses late, it may have computed with.
            let own = ["R02", "R03", "R04"].iter().any(|kind| error.code.starts_with(kind));
            let sound = own || session.plan().target.device != "cuda";
            taken.cut = Some(Cut { error, sound, state: Some(before) });
        } else if taken.stop.is_none() {
            // What is about to end has no time for tests.
            let test = match due && !ends && saver.keeps_best() {
                true => metrics::test(recipe, session, data),
                false => Ok(None),
            };
            // What is told of is not tried again; weights are smaller.
            let (kept, state) = match test {
                Ok(test) if saves => {
                    (saver.save(session, &data.state(), test.map(|t| t.loss)), None)
                }
                Ok(_) => (saver.poll(), None),
                Err(Failure::Run(e)) => (Err(e), Some(data.state())),
                Err(other) => return Err(other),
            };
            taken.cut = kept.err().map(|error| Cut { error, sound: true, state });
            if asked && taken.cut.is_none() {
                tell!("checkpoint asked for by SIGUSR1: {}", saver.path(step).display());
            }
        }
        if data.position().epoch != epoch {
            epoch = data.position().epoch;
            replaced(data);
        }
    }
    follow.finish();
    Ok(taken)
}

/// One JSON line a step.
struct Log {
    lines: Lines,
}

impl Log {
    /// A new run begins the file. A run resumed after `done` steps goes on with it, without the
    /// lines of later steps, which will be taken again, and without a last line that was cut off.
    fn open(path: &Path, done: u64) -> Outcome<Log> {
        let step = |line: &str| {
            let line: serde_json::Value = serde_json::from_str(line).ok()?;
            line.get("step")?.as_u64()
        };
        if done > 0
            && let Ok(text) = fs::read_to_string(path)
        {
            let kept = text.lines().take_while(|l| step(l).is_some_and(|s| s <= done));
            let kept: String = kept.map(|l| format!("{l}\n")).collect();
            if kept != text {
                write_file(path, kept.as_bytes())?;
            }
        }
        Ok(Log { lines: Lines::open(path, done == 0)? })
    }

    fn line(
        &mut self,
        r: &StepReport,
        course: Map<String, Value>,
        blame: Option<Value>,
    ) -> Result<(), Error> {
        // JSON has no infinities and no NaN; those are null.
        let mut line = json!({ "step": r.step, "loss": r.loss, "lr": r.lr.map(shortest),
            "scale": r.scale, "skipped": r.skipped, "grad_norm": r.grad_norm,
            "seconds": r.seconds });
        line.as_object_mut().expect("made above").extend(course);
        if let Some(counted) = r.counted {
            line["counted"] = json!(counted);
        }
        if let Some(blame) = blame {
            line["blame"] = blame;
        }
        self.lines.push(&line.to_string())
    }
}

fn weights(out: &Path) -> PathBuf {
    out.join("weights.safetensors")
}

fn ema(out: &Path) -> PathBuf {
    out.join("ema.safetensors")
}

fn plan_file(out: &Path, plan: &Plan) -> PathBuf {
    out.join(format!("{}.plan", plan.model))
}

fn save(session: &Session, out: &Path, saved: &mut Vec<PathBuf>) -> Outcome {
    let (weights, ema) = (weights(out), ema(out));
    session.save_weights(&weights)?;
    saved.push(weights);
    if session.save_ema(&ema)? {
        saved.push(ema);
    }
    let plan = plan_file(out, session.plan());
    write_file(&plan, session.plan().to_json().as_bytes())?;
    saved.push(plan);
    Ok(())
}

/// What a run came to.
struct Done<'a> {
    last: Option<StepReport>,
    test: Option<Metrics>,
    /// Names of the parameters that steps updated.
    trained: &'a [String],
    saved: &'a [PathBuf],
    next: &'a [(String, &'static str)],
    memory: Option<Memory>,
    /// Where it was asked for.
    profile: Option<kernels::Profile>,
    /// What is wrong with it.
    faults: &'a [Failure],
    interrupt: Option<&'a Interrupt>,
    /// The checkpoint that it went on from.
    resumed: Option<&'a Path>,
    /// What was not as the checkpoint has it, and was allowed.
    changed: &'a [String],
}

/// `1 step`, `2 steps`
fn counted(steps: u64) -> String {
    format!("{steps} {}", if steps == 1 { "step" } else { "steps" })
}

fn report(json: bool, session: &Session, done: Done, skips: &Skips, saver: &Saver) -> Outcome {
    let Done { last, test, trained, saved, next, memory, profile, faults, interrupt, .. } = done;
    let best = saver.best_path();
    if json {
        let result = json!({
            "ok": faults.is_empty(),
            "device": session.describe(),
            "steps": session.steps(),
            "loss": last.map(|r| r.loss),
            "skipped": skips.count(),
            "uncounted": skips.empty(),
            "test_loss": test.as_ref().map(|t| t.loss),
            "test_accuracy": test.as_ref().and_then(|t| t.accuracy),
            "summary": session.plan().summary,
            "peak_bytes": listing::peak_bytes(session.plan()),
            "uncalibrated": listing::uncalibrated(session.plan()),
            "memory": memory,
            "memory_at_most": memory.map(|m| m.process_at_most()),
            "profile": profile,
            "trained": trained,
            "saved": saved,
            "best": best.map(|(path, loss)| json!({ "file": path, "test_loss": loss })),
            "resumed": done.resumed,
            "changed": done.changed,
            "interrupted": interrupt.map(|i| i.signal.name()),
            "resume": interrupt.and_then(Interrupt::command),
            "errors": faults.iter().flat_map(Failure::errors).collect::<Vec<_>>(),
        });
        say!("{result}");
        return Ok(());
    }
    if quiet() {
        // What was asked for by its own option.
        if let Some(profile) = profile {
            put!("{}", kernels::text(session.plan(), &profile));
        }
        return Ok(());
    }
    say!("device      {}", session.describe());
    match last {
        Some(r) => say!("trained     {}, loss {:.4}", counted(session.steps()), r.loss),
        None if skips.count() + skips.empty() > 0 => {
            say!("trained     nothing: no step was applied")
        }
        None if !faults.is_empty() => say!("trained     nothing: no step was taken"),
        None => say!("trained     nothing: the run had ended at step {}", session.steps()),
    }
    if let Some(text) = skips.empty_summary() {
        say!("uncounted   {text}");
    }
    if let Some(text) = skips.summary() {
        say!("skipped     {text}");
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
    if let Some((path, loss)) = best {
        say!("best        {}, test loss {loss:.4}", path.display());
    }
    for path in saver.aside() {
        say!("set aside   {}", path.display());
    }
    if let Some(profile) = profile {
        put!("{}", kernels::text(session.plan(), &profile));
    }
    for (i, (line, what)) in next.iter().enumerate() {
        say!("{:12}{line}  # {what}", if i == 0 { "next" } else { "" });
    }
    Ok(())
}
