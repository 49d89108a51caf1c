//! What a person sees of a run as it goes on: a bar on a terminal, elsewhere a line every few
//! seconds. The clock says when something is shown and how fast the run is, and nothing else.

use indicatif::{ProgressBar, ProgressStyle};
use precast_compiler::frontend::recipe::{DataSource, Recipe};
use precast_plan::{DType, Plan, Storage};
use precast_runtime::StepReport;
use precast_runtime::data::Dataset;
use serde_json::{Map, Value, json};
use std::io::IsTerminal;
use std::time::{Duration, Instant};

/// Most often that the bar's words change.
const REDRAWN: Duration = Duration::from_millis(100);

/// What a run goes through, counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Examples.
    Rows,
    /// Of so many a row.
    Tokens(u64),
}

impl Unit {
    pub const fn name(self) -> &'static str {
        match self {
            Unit::Rows => "rows",
            Unit::Tokens(_) => "tokens",
        }
    }

    const fn each(self) -> u64 {
        match self {
            Unit::Rows => 1,
            Unit::Tokens(n) => n,
        }
    }

    /// Tokens where rows are windows of text, or what feeds the model's first input is rows of whole
    /// numbers.
    fn of(recipe: &Recipe, plan: &Plan) -> Unit {
        if let Some(DataSource::Bytes { context, .. }) = &recipe.data.source {
            return Unit::Tokens(*context as u64);
        }
        let first = recipe.data.inputs.keys().next();
        let fed = plan
            .tensors
            .iter()
            .find(|t| matches!(t.storage, Storage::Input { .. }) && Some(&t.name) == first);
        match fed {
            Some(t) if t.shape.len() == 2 && matches!(t.dtype, DType::I32 | DType::I64) => {
                Unit::Tokens(t.shape[1])
            }
            _ => Unit::Rows,
        }
    }
}

/// Where in its data a run is after each of its steps.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    unit: Unit,
    /// Steps that had been taken, and batches, when this began.
    from: (u64, u64),
    accumulate: u64,
    rows_per_batch: u64,
    batches_per_epoch: u64,
}

impl Course {
    /// Of a session that has taken `steps`, from where its data stands.
    pub fn new(recipe: &Recipe, plan: &Plan, data: &Dataset, steps: u64) -> Course {
        let (state, batches_per_epoch) = (data.state(), data.batches_per_epoch());
        let position = state.position;
        Course {
            unit: Unit::of(recipe, plan),
            from: (steps, position.epoch * batches_per_epoch + position.batch),
            accumulate: u64::from(plan.accumulate),
            rows_per_batch: state.batch,
            batches_per_epoch,
        }
    }

    fn batches(&self, step: u64) -> u64 {
        self.from.1 + step.saturating_sub(self.from.0) * self.accumulate
    }

    /// Epochs that the first `step` steps went through.
    pub fn epoch(&self, step: u64) -> f64 {
        self.batches(step) as f64 / self.batches_per_epoch.max(1) as f64
    }

    /// Rows or tokens that the first `step` steps took.
    pub fn count(&self, step: u64) -> u64 {
        self.batches(step) * self.rows_per_batch * self.unit.each()
    }

    /// What the log says of a step beside its report.
    pub fn log(&self, step: u64) -> Map<String, Value> {
        let mut fields = Map::new();
        fields.insert("epoch".into(), json!(self.epoch(step)));
        fields.insert(self.unit.name().into(), json!(self.count(step)));
        fields
    }
}

/// A number of f32 as the shortest decimal that reads back, `null` where it is not finite.
pub fn shortest(x: f32) -> Value {
    json!(format!("{x}").parse::<f64>().ok().filter(|x| x.is_finite()))
}

/// Seconds between two lines, at most a day.
pub fn seconds(text: &str) -> Result<f64, String> {
    let fits = |s: &f64| (0.0..=86_400.0).contains(s);
    text.parse().ok().filter(fits).ok_or_else(|| "a number of seconds from 0 to 86400".into())
}

/// How a run is shown.
enum Shown {
    Nothing,
    Bar(ProgressBar),
    /// A line at the first step, then when so much time has passed, and at the last step.
    Lines(Duration),
}

/// Follows one run.
pub struct Follow {
    course: Course,
    shown: Shown,
    scaled: bool,
    /// The step that a run ends with, and the one before the first.
    total: u64,
    done: u64,
    began: Instant,
    /// When and at which step something was last shown.
    last: Option<(Instant, u64)>,
}

impl Follow {
    /// Of a run to step `total` that has taken `done` steps. `every`: seconds between lines where
    /// standard error is no terminal.
    pub fn new(course: Course, plan: &Plan, (done, total): (u64, u64), every: f64) -> Follow {
        let shown = if crate::output::quiet() {
            Shown::Nothing
        } else if std::io::stderr().is_terminal() {
            let style = ProgressStyle::with_template("{bar:12} {eta} left  {msg}")
                .expect("the template is a constant");
            Shown::Bar(ProgressBar::new(total).with_position(done).with_style(style))
        } else {
            Shown::Lines(Duration::from_secs_f64(every))
        };
        let (scaled, began) = (plan.summary.scaled, Instant::now());
        Follow { course, shown, scaled, total, done, began, last: None }
    }

    /// A step has ended, after `skipped` steps of this run that were not applied.
    pub fn step(&mut self, report: &StepReport, skipped: u64) {
        let step = report.step;
        let wait = match &self.shown {
            Shown::Nothing => return,
            Shown::Bar(bar) => {
                bar.set_position(step);
                REDRAWN
            }
            Shown::Lines(every) => *every,
        };
        let now = Instant::now();
        let due = self.last.is_none_or(|(when, _)| now - when >= wait);
        if !due && step != self.total {
            return;
        }
        // The first step is known by its own time alone: what went before it was no step.
        let (seconds, from) = match self.last {
            Some((when, from)) if from < step => ((now - when).as_secs_f64(), from),
            _ => (report.seconds, step - 1),
        };
        let counted = self.course.count(step) - self.course.count(from);
        let speed = counted as f64 / seconds.max(1e-9);
        let text = self.words(report, skipped, speed);
        match &self.shown {
            Shown::Nothing => {}
            Shown::Bar(bar) => bar.set_message(text),
            Shown::Lines(_) => {
                let spent = (now - self.began).as_secs_f64();
                let each = spent / (step.saturating_sub(self.done)).max(1) as f64;
                let left = each * self.total.saturating_sub(step) as f64;
                tell!("{text}  {} left", clock(left));
            }
        }
        self.last = Some((now, step));
    }

    /// `step  120/1000  epoch 2.14  loss 0.3412  lr 0.001  scale 65536  skipped 2  12.3k rows/s`
    fn words(&self, r: &StepReport, skipped: u64, speed: f64) -> String {
        let (step, total) = (r.step, self.total);
        let width = total.to_string().len();
        let mut text = format!(
            "step {step:>width$}/{total}  epoch {:.2}  loss {}",
            self.course.epoch(step),
            figures(r.loss)
        );
        if let Some(lr) = r.lr {
            text += &format!("  lr {}", figures(lr));
        }
        if let Some(scale) = r.scale.filter(|_| self.scaled) {
            text += &format!("  scale {}", figures(scale));
        }
        if skipped > 0 {
            text += &format!("  skipped {skipped}");
        }
        text + &format!("  {} {}/s", short(speed), self.course.unit.name())
    }

    /// Takes the bar away.
    pub fn finish(self) {
        if let Shown::Bar(bar) = self.shown {
            bar.finish_and_clear();
        }
    }
}

/// Four significant digits, or fewer where a number has no more.
fn figures(x: f32) -> String {
    let whole = format!("{x}");
    match x.abs() {
        _ if whole.len() <= 6 => whole,
        a if !(1e-3..1e6).contains(&a) => format!("{x:.3e}"),
        a => format!("{x:.*}", (3 - a.log10().floor() as i32).max(0) as usize),
    }
}

/// `731`, `12.3k`, `4.56M`
fn short(x: f64) -> String {
    let (value, suffix) = match x {
        x if x < 999.5 => (x, ""),
        x if x < 999.5e3 => (x / 1e3, "k"),
        x if x < 999.5e6 => (x / 1e6, "M"),
        _ => (x / 1e9, "G"),
    };
    let digits = match value {
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.digits$}{suffix}")
}

/// `0:42`, `12:05`, `3:04:05`, `2 d 3:04:05`
fn clock(seconds: f64) -> String {
    // Nobody waits for longer than a u64 holds.
    let s = seconds.round() as u64;
    let (d, h, m, s) = (s / 86400, s / 3600 % 24, s / 60 % 60, s % 60);
    match (d, h) {
        (0, 0) => format!("{m}:{s:02}"),
        (0, h) => format!("{h}:{m:02}:{s:02}"),
        (d, h) => format!("{d} d {h}:{m:02}:{s:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_short_and_keep_their_digits() {
        let cases = [
            (0.0, "0"),
            (0.5, "0.5"),
            (65536.0, "65536"),
            (2.402_585, "2.403"),
            (123.456_78, "123.5"),
            (0.012_345_67, "0.01235"),
            (12_345.67, "12346"),
            (3.333_333e-5, "3.333e-5"),
            (1e-3, "0.001"),
            (1.677_721_6e7, "1.678e7"),
            (f32::INFINITY, "inf"),
            (f32::NAN, "NaN"),
        ];
        for (x, want) in cases {
            assert_eq!(figures(x), want, "{x:e}");
        }
    }

    #[test]
    fn speeds_and_times_are_read_at_a_glance() {
        for (x, want) in [(0.5, "0.50"), (731.2, "731"), (12_345.0, "12.3k"), (4.56e6, "4.56M")] {
            assert_eq!(short(x), want);
        }
        for (s, want) in
            [(42.4, "0:42"), (725.0, "12:05"), (11_045.0, "3:04:05"), (183_845.0, "2 d 3:04:05")]
        {
            assert_eq!(clock(s), want);
        }
    }

    #[test]
    fn a_course_goes_on_where_a_run_was_left() {
        let whole = Course {
            unit: Unit::Tokens(8),
            from: (0, 0),
            accumulate: 2,
            rows_per_batch: 4,
            batches_per_epoch: 5,
        };
        assert_eq!((whole.epoch(5), whole.count(5)), (2.0, 5 * 2 * 4 * 8));
        // Three steps are six batches: one of the second epoch.
        let rest = Course { from: (3, 6), ..whole };
        for step in 3..9 {
            assert_eq!(
                (rest.epoch(step), rest.count(step)),
                (whole.epoch(step), whole.count(step))
            );
        }
    }
}
