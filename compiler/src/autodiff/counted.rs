//! The loss of a step over several batches: sums and counts of each are added up, and divided once,
//! behind the last. So the step is one over a batch of all their rows, and processes that share a
//! step need only add up what the accumulators hold.

use super::build::Build;
use super::loss::{COUNT, SUM};
use super::machine::names;
use super::spec::{Normalize, TrainSpec};
use crate::ir::{Graph, Region, TensorType, ValueId, VarInit, VarRole};
use crate::ops::Op;
use precast_plan::{BinaryOp, UnaryOp};

/// What one batch adds to the loss of its step. Scalars.
pub struct Share {
    /// What is differentiated.
    pub value: ValueId,
    /// How much of the step it is; `None` where every batch is as much as any other.
    weight: Option<ValueId>,
    /// Targets that the loss counts, where it counts.
    count: Option<ValueId>,
    /// The largest weight that a batch can have. The seed of the backward pass is divided by it, so
    /// that cotangents are as small as those of a mean over the batch, whatever its weight.
    pub full: usize,
}

/// Takes the parts of the forward graph's loss off its results.
pub fn share(g: &mut Graph, loss: ValueId, spec: &TrainSpec) -> Share {
    let parts = g.result(SUM).zip(g.result(COUNT));
    g.results.retain(|r| r.name != SUM && r.name != COUNT);
    let Some((sum, count)) = parts else {
        return Share { value: loss, weight: None, count: None, full: 1 };
    };
    if spec.accumulate == 1 {
        return Share { value: loss, weight: None, count: Some(count), full: 1 };
    }
    match spec.normalize {
        Normalize::Whole => {
            let full = g.def(count).inputs.first().map_or(1, |&v| g.shape(v).elements());
            Share { value: sum, weight: Some(count), count: Some(count), full: full.max(1) }
        }
        Normalize::Micro => {
            // The mean of a batch; 0, with weight 0, where nothing counts.
            let mut b = Build { g, region: Region::Forward };
            let one = b.real("loss.one", 1.0);
            let some = b.bin("loss.some", BinaryOp::Max, count, one);
            let value = b.bin("loss.of_batch", BinaryOp::Div, sum, some);
            let weight = b.bin("loss.any", BinaryOp::Min, count, one);
            Share { value, weight: Some(weight), count: Some(count), full: 1 }
        }
    }
}

/// What is known of a step once its last batch is through. Scalars of the update.
#[derive(Clone, Copy)]
pub struct Step {
    /// What summed gradients are multiplied by to be those of the step's loss; `None`: by 1.
    pub correction: Option<ValueId>,
    /// Targets that the loss counts, where it counts.
    pub count: Option<ValueId>,
}

/// Adds up the shares of a step's batches. The result `loss` becomes that of the step, `counted` is
/// added where the loss counts targets.
pub fn step(g: &mut Graph, share: &Share, spec: &TrainSpec) -> Step {
    if spec.accumulate == 1 {
        if let Some(count) = share.count {
            Build { g, region: Region::Update }.result("counted", count);
        }
        return Step { correction: None, count: share.count };
    }
    let batches = f64::from(spec.accumulate);
    let total = total(g, names::LOSS, share.value);
    let weight = share.weight.map(|w| self::total(g, names::WEIGHT, w));
    let count = match share.count {
        c if c == share.weight => weight,
        c => c.map(|c| self::total(g, names::COUNTED, c)),
    };
    let mut b = Build { g, region: Region::Update };
    let (loss, correction) = match weight {
        None => (b.scale("step.loss", total, 1.0 / batches), None),
        Some(w) => {
            let loss = b.bin("step.loss", BinaryOp::Div, total, w);
            let one = b.real("step.one", 1.0);
            let some = b.bin("step.some", BinaryOp::Max, w, one);
            let full = b.real("step.full", batches * share.full as f64);
            (loss, Some(b.bin("step.correction", BinaryOp::Div, full, some)))
        }
    };
    for r in b.g.results.iter_mut().filter(|r| r.name == "loss") {
        r.value = loss;
    }
    if let Some(count) = count {
        b.result("counted", count);
    }
    Step { correction, count }
}

/// The sum of a scalar over the batches of a step, kept in the variable `name`.
fn total(g: &mut Graph, name: &str, x: ValueId) -> ValueId {
    let region = g.def(x).region;
    let mut b = Build { g, region };
    let so_far = b.var(name, TensorType::f32([]), VarRole::Machine, VarInit::Zeros);
    let sum = b.bin(&format!("{name}.sum"), BinaryOp::Add, so_far, x);
    b.update(name, sum);
    b.region = Region::Update;
    let total = b.read(name);
    let zero = b.real(&format!("{name}.reset"), 0.0);
    b.update(name, zero);
    total
}

/// Keeps what a batch leaves in the model's buffers (running statistics) as it was, element by
/// element, where it is not finite: a step that is not applied must not be remembered there.
pub fn guard_buffers(g: &mut Graph) {
    for i in 0..g.updates.len() {
        let (name, value) = (g.updates[i].name.clone(), g.updates[i].value);
        let buffer = g.vars.get(&name).is_some_and(|v| v.role == VarRole::Buffer);
        if !buffer || !g.ty(value).is_real() {
            continue;
        }
        let read = g.nodes().find_map(|(_, n)| match &n.op {
            Op::Var(v) if v.name == name => Some(n.outputs[0]),
            _ => None,
        });
        let region = g.def(value).region;
        let mut b = Build { g, region };
        let old = read.unwrap_or_else(|| b.read(&name));
        let finite = b.un(&format!("{name}.finite"), UnaryOp::IsFinite, value);
        let kept = b.select(&format!("{name}.kept"), finite, value, old);
        g.updates[i].value = kept;
    }
}
