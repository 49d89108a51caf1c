//! What training says about the steps it skipped.

use crate::blame::Replay;
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline;
use precast_runtime::data::DataState;
use precast_runtime::{Session, StepReport};
use serde_json::{Value, json};
use std::collections::VecDeque;

/// Skipped steps of a run, each replayed to find what was not finite.
pub struct Skips {
    replay: Replay,
    /// Replays that are left.
    left: u64,
    /// Steps that have not reported, with the place of the data before them.
    begun: VecDeque<(u64, DataState)>,
    count: u64,
    /// Steps that have ended.
    ended: u64,
    /// The first that was replayed, in words.
    first: Option<String>,
}

impl Skips {
    /// At most `limit` steps are replayed, by default all; on a GPU, which waits for the processor
    /// meanwhile, the first.
    pub fn new(
        recipe: &Recipe,
        options: pipeline::Options,
        threads: usize,
        limit: Option<u64>,
    ) -> Skips {
        let replay = Replay::new(recipe.clone(), options, threads);
        let gpu = pipeline::is_gpu(&recipe.target.device);
        let left = limit.unwrap_or(if gpu { 1 } else { u64::MAX });
        Skips { replay, left, begun: VecDeque::new(), count: 0, ended: 0, first: None }
    }

    /// A step is about to take its batches.
    pub fn begins(&mut self, step: u64, data: DataState) {
        self.begun.push_back((step, data));
    }

    /// Whether one of these steps will be replayed.
    pub fn replays(&self, reports: &[StepReport]) -> bool {
        self.left > 0 && reports.iter().any(|r| r.skipped)
    }

    /// A step has ended; `later` steps have, too, since. Of a skipped one that is replayed: what the
    /// log says of it. A replay that is not possible is no reason to end the run.
    pub fn ended(
        &mut self,
        session: &Session,
        report: &StepReport,
        later: &[StepReport],
    ) -> Option<Value> {
        while self.begun.front().is_some_and(|(step, _)| *step < report.step) {
            self.begun.pop_front();
        }
        self.ended += 1;
        if !report.skipped {
            return None;
        }
        self.count += 1;
        let (_, data) = self.begun.front().filter(|(step, _)| *step == report.step)?;
        self.left = self.left.checked_sub(1)?;
        // A device that works ahead has applied these to the weights already.
        let updates_since = later.iter().filter(|r| !r.skipped).count();
        let (value, text) = match self.replay.step(session, report.step, report.scale, data) {
            Ok((_, Some(blame))) => {
                let mut value = json!(blame);
                value["updates_since"] = json!(updates_since);
                (value, blame.sentence())
            }
            Ok((_, None)) => {
                let text = "the replay on the processor is finite";
                (json!({ "none": text, "updates_since": updates_since }), text.to_string())
            }
            Err(e) => {
                let text = format!("the step cannot be replayed: {}", e.message());
                (json!({ "error": text }), text)
            }
        };
        self.first.get_or_insert_with(|| format!("step {}: {text}", report.step));
        Some(value)
    }

    /// How many steps were skipped.
    pub fn count(&self) -> u64 {
        self.count
    }

    /// `2 steps; step 1: …`; `None` where none was skipped.
    pub fn summary(&self) -> Option<String> {
        let steps = if self.count == 1 { "step" } else { "steps" };
        let all =
            if self.count == self.ended { ", all of this run: no weight changed" } else { "" };
        let first = self.first.as_ref().map_or(String::new(), |f| format!("; {f}"));
        (self.count > 0).then(|| format!("{} {steps}{all}{first}", self.count))
    }
}
