//! Keys that are right by themselves and do nothing in this run.

use super::{LossKind, LossScaleMode, LossTerm, NoDecay, OnNonfinite, Policy, Recipe};
use crate::diagnostic::Diagnostic;
use precast_plan::DType;

/// What is known once a recipe has been compiled.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    /// The policy that was used.
    pub policy: Policy,
    /// Length of the run in optimizer steps, where it is known.
    pub total_steps: Option<u64>,
    /// Whether first values were drawn.
    pub drawn: bool,
    /// Whether the model is textual IR, which states every extent.
    pub textual: bool,
}

impl Recipe {
    /// A warning, `P0121`, for every key that does nothing, and `P0122` for a warm-up that the run
    /// does not reach the end of.
    pub fn idle_keys(&self, facts: &Facts) -> Vec<Diagnostic> {
        let mut found = vec![];
        let mut idle = |keys: &[&str], why: &str, help: &str| {
            let written: Vec<&str> = keys.iter().copied().filter(|k| self.wrote(k)).collect();
            let names: Vec<String> = written
                .iter()
                .map(|k| format!("`{}`", k.split_once('.').map_or(*k, |(_, key)| key)))
                .collect();
            if names.is_empty() {
                return;
            }
            let verb = if names.len() == 1 { "does" } else { "do" };
            let message = format!("{} {verb} nothing here", names.join(", "));
            let d = Diagnostic::warning("P0121", message).at(self.place(&written, why));
            found.push(if help.is_empty() { d } else { d.help(help) });
        };
        let (data, policy) = (&self.data, facts.policy);
        if self.weights.init.is_some() && !facts.drawn {
            let why = "every weight has a first value in the model or the weight file";
            idle(&["weights.init", "weights.seed"], why, "`init` draws what they lack");
        }
        if data.source.is_none() {
            let keys =
                ["data.shuffle", "data.split", "data.scale", "data.shift", "data.on_nonfinite"];
            idle(&keys, "the recipe names no data", "give `format` and `file` in [data]");
            if facts.textual {
                idle(&["data.batch"], "textual IR states its own extents", "");
            }
        } else if data.batch.is_none() && data.shuffle {
            let help = "give `batch` to draw rows from the file";
            idle(&["data.shuffle"], "without `batch` the whole file is one batch", help);
        }
        let read = |name: &String| self.loss.in_model() || self.loss.targets().any(|t| t == name);
        for name in data.targets.keys().filter(|n| !read(n)) {
            let key = format!("data.targets.{name}");
            idle(&[&key], "the loss takes another target", "");
        }
        if self.train.accumulate == 1 {
            let why = "a step is one batch";
            idle(&["train.normalize"], why, "`accumulate` makes a step of several");
        }
        let counts = |t: &LossTerm| matches!(t.kind, LossKind::CrossEntropy { .. });
        if !self.loss.terms.iter().any(counts) {
            idle(&["train.normalize"], "every batch counts as many elements", "");
        }
        if self.optimizer.no_decay != NoDecay::None && self.optimizer.weight_decay == 0.0 {
            idle(&["optimizer.no_decay"], "there is no `weight_decay`", "");
        }
        if policy == Policy::F32 {
            for (i, _) in self.precision.pins.iter().enumerate().filter(|p| p.1.dtype == DType::F32)
            {
                idle(&[&format!("precision.pins.{i}")], "the policy is f32 already", "");
            }
        }
        if matches!(policy, Policy::Baseline(_)) {
            for (i, _) in self.precision.pins.iter().enumerate() {
                let why = format!("{} has rules of its own", policy.name());
                idle(&[&format!("precision.pins.{i}")], &why, "");
            }
        }
        match policy {
            Policy::F32 | Policy::Bf16 | Policy::Tf32 | Policy::Fp8 => {
                let why = format!("no value is f16 under policy {}", policy.name());
                idle(&["precision.ranges"], &why, "");
            }
            Policy::Baseline(_) => {
                let why = format!("{} has rules of its own", policy.name());
                idle(&["precision.ranges"], &why, "");
            }
            Policy::F16 | Policy::Auto => {}
        }
        let unscaled = match policy {
            Policy::F32 | Policy::Bf16 | Policy::Tf32 | Policy::Fp8 => true,
            Policy::Baseline(b) => b.half != DType::F16,
            Policy::F16 | Policy::Auto => false,
        };
        if self.loss_scale.mode == LossScaleMode::Auto && unscaled {
            let keys = ["init", "growth", "backoff", "interval", "hysteresis", "min", "max"];
            let keys = keys.map(|k| format!("loss_scale.{k}"));
            let why = format!("no gradient is f16 under policy {}", policy.name());
            let help = "`mode = \"dynamic\"` or \"static\" scales the loss in any case";
            idle(&keys.each_ref().map(String::as_str), &why, help);
        }
        let mode = self.loss_scale.mode;
        let never = mode == LossScaleMode::Off || (mode == LossScaleMode::Auto && unscaled);
        if never && self.train.on_nonfinite != Some(OnNonfinite::Skip) {
            let help = "`on_nonfinite = \"skip\"` skips steps without one, too";
            idle(&["train.max_skips"], "no step is skipped without a loss scale", help);
        }
        if let Some(steps) = facts.total_steps
            && self.schedule.warmup >= steps
            && self.schedule.warmup > 0
        {
            let warmup = self.schedule.warmup;
            let message = format!("the run of {steps} steps ends within the warm-up of {warmup}");
            found.push(
                Diagnostic::warning("P0122", message)
                    .at(self.place(&["schedule.warmup"], "the rate never leaves the warm-up"))
                    .help("shorten `warmup`, or train longer"),
            );
        }
        found
    }
    /// A warning, `P0121`, where the recipe says to apply steps that are not finite and the plan
    /// scales the loss, which no key said.
    pub fn idle_ignore(&self, scaled: bool) -> Option<Diagnostic> {
        if !scaled || self.train.on_nonfinite != Some(OnNonfinite::Ignore) {
            return None;
        }
        let message = "`on_nonfinite = \"ignore\"` does nothing here";
        let why = "gradients are f16 and the loss is scaled: a step that overflows is skipped";
        Some(
            Diagnostic::warning("P0121", message)
                .at(self.place(&["train.on_nonfinite"], why))
                .help("\"skip\" says so; `[loss_scale] mode = \"off\"` applies every step"),
        )
    }
}
