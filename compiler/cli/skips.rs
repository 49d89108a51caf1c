//! What training says about steps that were not applied, and when it ends because of them.

use crate::blame::Replay;
use precast_compiler::frontend::recipe::{LossScaleMode, OnNonfinite, Recipe};
use precast_compiler::pipeline;
use precast_plan::Plan;
use precast_runtime::data::DataState;
use precast_runtime::{Error, Session, StepReport};
use serde_json::{Value, json};
use std::collections::VecDeque;

/// What a replay says of a step whose norm alone overflowed.
const NORM_ALONE: &str = "every value is finite, but the sum of the gradients' squares is not";

/// When steps that are not applied end a run.
#[derive(Clone, Copy, Debug)]
struct Limits {
    /// The loss has a scale, static or dynamic.
    scaled: bool,
    /// The first does.
    first: bool,
    /// So many in a row do.
    in_a_row: u64,
    /// Where a dynamic loss scale ends: a step that overflows there does, behind another.
    floor: Option<f32>,
}

/// Why a run ends before its time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    First,
    Floor,
    InARow(u64),
}

impl Limits {
    fn of(recipe: &Recipe, plan: &Plan) -> Limits {
        let scaled = plan.summary.scaled;
        let dynamic = scaled && recipe.loss_scale.mode != LossScaleMode::Static;
        Limits {
            scaled,
            first: match recipe.train.on_nonfinite {
                Some(policy) => policy == OnNonfinite::Stop,
                None => !scaled,
            },
            in_a_row: recipe.train.max_skips,
            floor: dynamic.then(|| recipe.loss_scale.floor() as f32),
        }
    }

    /// Of a skipped step, the `in_a_row`-th without a clean one between.
    fn why(&self, report: &StepReport, in_a_row: u64) -> Option<Why> {
        let at_floor = self.floor.zip(report.scale).is_some_and(|(floor, s)| s <= floor);
        match () {
            () if self.first => Some(Why::First),
            () if at_floor && in_a_row > 1 => Some(Why::Floor),
            () if in_a_row >= self.in_a_row => Some(Why::InARow(in_a_row)),
            () => None,
        }
    }
}

/// A run that ends at a step.
#[derive(Clone, Debug)]
pub struct Stop {
    pub step: u64,
    /// The loss scale of the step.
    pub scale: Option<f32>,
    /// Where the data stood before it, where the weights are those of before it and no later step
    /// was taken.
    pub before: Option<DataState>,
    pub error: Error,
}

/// What has become of a step.
#[derive(Debug, Default)]
pub struct Ended {
    /// What the log says of a step that was replayed.
    pub blame: Option<Value>,
    pub stop: Option<Stop>,
}

/// Steps of a run that were not applied, each replayed to find what was not finite.
pub struct Skips {
    replay: Replay,
    /// Replays that are left, and whether there are none at all.
    left: u64,
    never: bool,
    limits: Limits,
    /// Steps that have not reported, with the place of the data before them.
    begun: VecDeque<(u64, DataState)>,
    count: u64,
    in_a_row: u64,
    /// Steps whose loss counted nothing, and the first of them.
    empty: u64,
    first_empty: u64,
    /// Steps that have ended.
    ended: u64,
    /// The first that was replayed, in words.
    first: Option<String>,
}

impl Skips {
    /// At most `limit` steps are replayed, by default all; on a GPU, which waits for the processor
    /// meanwhile, the first. A step that ends the run is replayed in any case, unless `limit` is 0.
    pub fn new(
        recipe: &Recipe,
        plan: &Plan,
        options: pipeline::Options,
        threads: usize,
        limit: Option<u64>,
    ) -> Skips {
        let replay = Replay::new(recipe.clone(), options, threads);
        let gpu = pipeline::is_gpu(&recipe.target.device);
        Skips {
            replay,
            left: limit.unwrap_or(if gpu { 1 } else { u64::MAX }),
            never: limit == Some(0),
            limits: Limits::of(recipe, plan),
            begun: VecDeque::new(),
            count: 0,
            in_a_row: 0,
            empty: 0,
            first_empty: 0,
            ended: 0,
            first: None,
        }
    }

    /// A step is about to take its batches.
    pub fn begins(&mut self, step: u64, data: DataState) {
        self.begun.push_back((step, data));
    }

    /// Whether one of these steps will be replayed or ends the run, so that everything must have come
    /// to rest.
    pub fn waits(&self, reports: &[StepReport]) -> bool {
        let mut in_a_row = self.in_a_row;
        reports.iter().any(|r| {
            in_a_row = if r.skipped { in_a_row + 1 } else { 0 };
            r.skipped && (self.left > 0 || self.limits.why(r, in_a_row).is_some())
        })
    }

    /// A step has ended; `later` steps have, too, since. A skipped one may be replayed; a replay that
    /// is not possible is no reason to end the run.
    pub fn ended(&mut self, session: &Session, report: &StepReport, later: &[StepReport]) -> Ended {
        while self.begun.front().is_some_and(|(step, _)| *step < report.step) {
            self.begun.pop_front();
        }
        self.ended += 1;
        if !report.skipped {
            self.in_a_row = 0;
            if report.counted == Some(0.0) {
                self.empty += 1;
                self.first_empty = if self.empty == 1 { report.step } else { self.first_empty };
            }
            return Ended::default();
        }
        self.count += 1;
        self.in_a_row += 1;
        let why = self.limits.why(report, self.in_a_row);
        let begun = self.begun.front().filter(|(step, _)| *step == report.step).map(|b| b.1);
        let may = !self.never && (self.left > 0 || why.is_some());
        let replayed = begun.filter(|_| may).map(|data| {
            self.left = self.left.saturating_sub(1);
            self.blame(session, report, later, &data)
        });
        let (blame, text) = replayed.unzip();
        // Nothing else of the step is infinite: what was found is no value.
        let norm_alone = blame.as_ref().is_some_and(|b| b["none"] == NORM_ALONE);
        let stop = why.map(|why| Stop {
            step: report.step,
            scale: report.scale,
            before: begun.filter(|_| why == Why::First),
            error: self.error(why, report, text, norm_alone),
        });
        Ended { blame, stop }
    }

    /// What the log says of a replayed step, and in words.
    fn blame(
        &mut self,
        session: &Session,
        report: &StepReport,
        later: &[StepReport],
        data: &DataState,
    ) -> (Value, String) {
        // A device that works ahead has applied these to the weights already.
        let updates_since = later.iter().filter(|r| !r.skipped).count();
        let (value, text) = match self.replay.step(session, report.step, report.scale, data) {
            Ok((_, Some(blame))) => {
                let mut value = json!(blame);
                value["updates_since"] = json!(updates_since);
                (value, blame.sentence())
            }
            Ok((_, None)) => {
                let text = match report.grad_norm {
                    Some(norm) if norm.is_infinite() => NORM_ALONE,
                    _ => "the replay on the processor is finite",
                };
                (json!({ "none": text, "updates_since": updates_since }), text.to_string())
            }
            Err(e) => {
                let text = format!("the step cannot be replayed: {}", e.message());
                (json!({ "error": text }), text)
            }
        };
        self.first.get_or_insert_with(|| format!("step {}: {text}", report.step));
        (value, text)
    }

    fn error(
        &self,
        why: Why,
        report: &StepReport,
        blame: Option<String>,
        norm_alone: bool,
    ) -> Error {
        let step = report.step;
        let blame = blame.map_or(String::new(), |b| format!(": {b}"));
        match why {
            Why::First if norm_alone => {
                let text = format!(
                    "the norm of step {step}'s gradients is beyond f32, though every gradient is \
                     finite: the sum of their squares overflows; it was not applied"
                );
                Error::new("R0602", text).help(
                    "gradients this large come from a loss or data of a wrong scale; what was saved is \
                     as before the step",
                )
            }
            Why::First => {
                let text = format!(
                    "the gradients of step {step} are not finite; it was not applied{blame}"
                );
                Error::new("R0602", text).help(
                    "what was saved is as before the step; `[train] on_nonfinite = \"skip\"` leaves \
                     such steps out",
                )
            }
            Why::Floor => {
                let scale = report.scale.unwrap_or(f32::NAN);
                let text = format!(
                    "the loss scale reached its floor, {scale:e}, and step {step} still overflows{blame}"
                );
                Error::new("R0603", text).help(
                    "what overflows under any scale is no matter of the scale: keep the operation in \
                     f32 with a pin, or by `[precision] ranges`",
                )
            }
            Why::InARow(n) => {
                let text =
                    format!("{n} steps in a row were skipped, the last of them step {step}{blame}");
                Error::new("R0604", text)
                    .help("`[train] max_skips` is how many a run may skip in a row")
            }
        }
    }

    /// How many steps were skipped.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// How many steps had no target that counts.
    pub fn empty(&self) -> u64 {
        self.empty
    }

    /// What is wrong with a run that took steps and applied none.
    pub fn all(&self) -> Option<Error> {
        let first = self.first.as_ref().map_or(String::new(), |f| format!("; {f}"));
        if self.ended == 0 || self.count + self.empty < self.ended {
            return None;
        }
        Some(match self.count {
            0 => Error::new("R0605", "no step had a target that counts: no weight changed")
                .help("look at the targets, and at `[loss] ignore_index`"),
            _ => Error::new("R0605", format!("every step was skipped: no weight changed{first}"))
                .help(match self.limits.scaled {
                    true => {
                        "train longer, so that the loss scale finds its level, or begin with a smaller \
                         `[loss_scale] init`"
                    }
                    false => {
                        "without a loss scale nothing makes the next step fit: look at what was not \
                         finite first, at the scale of the data, and at quotients, roots and logarithms"
                    }
                }),
        })
    }

    /// `2 steps; step 1: …`; `None` where none was skipped.
    pub fn summary(&self) -> Option<String> {
        let steps = if self.count == 1 { "step" } else { "steps" };
        let all =
            if self.count == self.ended { ", all of this run: no weight changed" } else { "" };
        let first = self.first.as_ref().map_or(String::new(), |f| format!("; {f}"));
        (self.count > 0).then(|| format!("{} {steps}{all}{first}", self.count))
    }

    /// Steps that had nothing to learn from, in words.
    pub fn empty_summary(&self) -> Option<String> {
        let (n, first) = (self.empty, self.first_empty);
        match n {
            0 => None,
            1 => Some(format!("step {first}: none of its targets counts, and it changed nothing")),
            n => Some(format!(
                "{n} steps, step {first} the first: none of their targets counts, and they changed nothing"
            )),
        }
    }
}
