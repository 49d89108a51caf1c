//! The scalars of a step: counters, learning rate, bias corrections, loss scale.

use super::build::Build;
use super::spec::{LrCurve, LrSpec, ScaleSpec};
use crate::ir::{TensorType, ValueId, VarInit, VarRole};
use precast_plan::{BinaryOp, UnaryOp};

/// Names of the machine's variables, as they appear in plans and checkpoints.
pub mod names {
    /// Optimizer steps begun, skipped ones included.
    pub const ITERATION: &str = "machine.iteration";
    /// Optimizer steps applied; what bias correction counts.
    pub const APPLIED: &str = "machine.applied";
    pub const LOSS_SCALE: &str = "machine.loss_scale";
    /// Clean steps since the scale last changed.
    pub const GROWTH_TRACKER: &str = "machine.growth_tracker";
    /// Overflows that are still tolerated.
    pub const HYSTERESIS: &str = "machine.hysteresis";
    /// What begins with [`precast_plan::STEP_ONLY`] says nothing between steps: sums over the
    /// batches of one, of the loss, of what it is divided by, and of counted targets.
    pub const LOSS: &str = "machine.step.loss";
    pub const WEIGHT: &str = "machine.step.weight";
    pub const COUNTED: &str = "machine.step.counted";
    /// 1 from a step on that was not applied and that the run stops at.
    pub const STOPPED: &str = "machine.step.stopped";
}

fn scalar() -> TensorType {
    TensorType::f32([])
}

/// Declares a counter, adds `by` to it, and returns its value before the addition.
pub fn counter(b: &mut Build, name: &str, by: ValueId) -> ValueId {
    let now = b.var(name, scalar(), VarRole::Machine, VarInit::Zeros);
    let next = b.bin(&format!("{name}.next"), BinaryOp::Add, now, by);
    b.update(name, next);
    now
}

/// The learning rate of iteration `i`, a scalar.
pub fn learning_rate(b: &mut Build, i: ValueId, spec: &LrSpec) -> ValueId {
    let warmup = spec.warmup_steps as f64;
    let after = match spec.curve {
        LrCurve::Constant => b.real("lr.base", spec.lr),
        LrCurve::Cosine { total_steps, min_lr } | LrCurve::Linear { total_steps, min_lr } => {
            let span = (total_steps.saturating_sub(spec.warmup_steps)).max(1) as f64;
            let offset = b.real("lr.warmup", warmup);
            let t = b.bin("lr.since_warmup", BinaryOp::Sub, i, offset);
            let t = b.scale("lr.fraction", t, 1.0 / span);
            let (zero, one) = (b.real("lr.zero", 0.0), b.real("lr.one", 1.0));
            let t = b.bin("lr.at_least", BinaryOp::Max, t, zero);
            let t = b.bin("lr.progress", BinaryOp::Min, t, one);
            let falling = if matches!(spec.curve, LrCurve::Cosine { .. }) {
                let angle = b.scale("lr.angle", t, std::f64::consts::PI);
                let cos = b.un("lr.cos", UnaryOp::Cos, angle);
                let raised = b.bin("lr.raised", BinaryOp::Add, cos, one);
                b.scale("lr.half", raised, 0.5)
            } else {
                b.bin("lr.remaining", BinaryOp::Sub, one, t)
            };
            let above = b.scale("lr.above_min", falling, spec.lr - min_lr);
            let min = b.real("lr.min", min_lr);
            b.bin("lr.curve", BinaryOp::Add, above, min)
        }
    };
    if spec.warmup_steps == 0 {
        return after;
    }
    let one = b.real("lr.first", 1.0);
    let n = b.bin("lr.step", BinaryOp::Add, i, one);
    let rising = b.scale("lr.rising", n, spec.lr / warmup);
    let end = b.real("lr.warmup_end", warmup);
    let warm = b.bin("lr.warming_up", BinaryOp::Lt, i, end);
    b.select("lr", warm, rising, after)
}

/// `1 − β^(applied + 1)`. PyTorch computes the power in f64; in f32 `1 − β^t` would lose four
/// digits at t = 1 for β = 0.999, so it is `−expm1((applied + 1) ln β)`.
pub fn bias_correction(b: &mut Build, name: &str, applied: ValueId, beta: f64) -> ValueId {
    let one = b.real(&format!("{name}.one"), 1.0);
    let t = b.bin(&format!("{name}.t"), BinaryOp::Add, applied, one);
    let power = b.scale(&format!("{name}.log"), t, beta.ln());
    let e = b.un(&format!("{name}.expm1"), UnaryOp::Expm1, power);
    b.un(name, UnaryOp::Neg, e)
}

/// Whether a step is not to be applied in a run that stops at the first that is at fault: it is, or
/// one before it was. A device that works behind the host has begun further steps by the time that
/// the host knows.
pub fn stop(b: &mut Build, fault: ValueId) -> ValueId {
    let stopped = b.var(names::STOPPED, scalar(), VarRole::Machine, VarInit::Zeros);
    let zero = b.real("machine.running", 0.0);
    let before = b.bin("machine.stopped_before", BinaryOp::Lt, zero, stopped);
    let bad = b.bin("machine.stops", BinaryOp::Or, fault, before);
    let next = b.un("machine.stopped_now", UnaryOp::ToReal, bad);
    b.update(names::STOPPED, next);
    bad
}

/// Updates scale, growth tracker and hysteresis after a step; `overflow` is a bool scalar.
///
/// PyTorch's `_amp_update_scale_`: on overflow the scale is multiplied by `backoff` and the tracker
/// returns to 0; otherwise the tracker is incremented and, where it reaches `interval`, the scale
/// grows unless that would make it infinite, and the tracker returns to 0.
///
/// Nothing changes where `stopped`, a bool scalar: the run ends as before the step.
pub fn update_scale(
    b: &mut Build,
    scale: ValueId,
    overflow: ValueId,
    stopped: Option<ValueId>,
    spec: &ScaleSpec,
) {
    if !spec.dynamic {
        return;
    }
    let tracker = b.var(names::GROWTH_TRACKER, scalar(), VarRole::Machine, VarInit::Zeros);
    let update = |b: &mut Build, name: &str, old: ValueId, next: ValueId| {
        let next = match stopped {
            Some(stopped) => b.select(&format!("{name}.unless_stopped"), stopped, old, next),
            None => next,
        };
        b.update(name, next);
    };
    let (zero, one) = (b.real("machine.zero", 0.0), b.real("machine.one", 1.0));
    let count = b.bin("machine.clean_steps", BinaryOp::Add, tracker, one);
    let interval = b.real("machine.interval", spec.interval as f64);
    let due = b.bin("machine.due", BinaryOp::Le, interval, count);
    let grown = b.scale("machine.grown", scale, spec.growth);
    let finite = b.un("machine.grown_finite", UnaryOp::IsFinite, grown);
    let max = b.real("machine.max", spec.max);
    let capped = b.bin("machine.capped", BinaryOp::Min, grown, max);
    let grown = b.select("machine.grown_or_kept", finite, capped, scale);
    let clean_scale = b.select("machine.clean_scale", due, grown, scale);
    let clean_tracker = b.select("machine.clean_tracker", due, zero, count);
    let min = b.real("machine.min", spec.min);
    let lowered = b.scale("machine.backed_off", scale, spec.backoff);
    let mut lowered = b.bin("machine.floored", BinaryOp::Max, lowered, min);
    if spec.hysteresis > 1 {
        let full = spec.hysteresis as f64;
        let left = b.var(names::HYSTERESIS, scalar(), VarRole::Machine, VarInit::Value(full));
        let less = b.bin("machine.hysteresis_less", BinaryOp::Sub, left, one);
        let less = b.bin("machine.hysteresis_left", BinaryOp::Max, less, zero);
        let exhausted = b.bin("machine.exhausted", BinaryOp::Le, less, zero);
        lowered = b.select("machine.tolerated", exhausted, lowered, scale);
        let refill = b.real("machine.hysteresis_full", full);
        let clean = b.select("machine.hysteresis_clean", due, refill, left);
        let next = b.select("machine.hysteresis_next", overflow, less, clean);
        update(b, names::HYSTERESIS, left, next);
    }
    let next = b.select("machine.loss_scale.next", overflow, lowered, clean_scale);
    update(b, names::LOSS_SCALE, scale, next);
    let next = b.select("machine.growth_tracker.next", overflow, zero, clean_tracker);
    update(b, names::GROWTH_TRACKER, tracker, next);
}
