//! Which format every value is stored in, and where casts go.
//!
//! The structure is fixed when this runs. Every storage has a label (f32 or the candidate 16-bit
//! format) and every product one for its operands; legality fixes some, and an exact minimum cut
//! chooses the others, every cast paid once however many read it.

pub mod baselines;
pub mod casts;
pub mod cut;
pub mod degree;
pub mod filled;
mod flow;
pub mod fp8;
pub mod labels;
pub mod legal;
pub mod narrow;
pub mod place;
pub mod ranges;
pub mod tf32;

pub use crate::frontend::recipe::{Allow, Pin, Policy};
pub use labels::{Labels, Model};
pub use legal::Legal;
pub use ranges::FirstScale;

use crate::ir::{Graph, ValueId};
use crate::ops::{Lowering, NumericClass, Op};
use precast_plan::{Precision, Ranges, Target};
use std::collections::BTreeMap;
use std::sync::Arc;

/// What the person asked for.
#[derive(Clone, Debug)]
pub struct PrecisionOptions {
    pub policy: Policy,
    /// Later pins win.
    pub pins: Vec<Pin>,
    /// Formats that may be chosen where they are cheaper.
    pub allow: Allow,
    /// Name of the node that seeds the backward pass.
    pub seed: String,
    /// Name of the variable that holds the loss scale.
    pub loss_scale: String,
    /// Batches for one update: how often the forward and backward pass run in a step.
    pub micro: u32,
    /// Ranges measured of the model.
    pub ranges: Option<Arc<Ranges>>,
    /// The first loss scale, as far as it is known before formats are chosen.
    pub first_scale: FirstScale,
}

impl PrecisionOptions {
    /// A policy without pins, with the names that [`crate::autodiff::joint`] uses.
    pub fn new(policy: Policy) -> PrecisionOptions {
        PrecisionOptions {
            policy,
            pins: Vec::new(),
            allow: Allow::default(),
            seed: crate::ir::SEED.into(),
            loss_scale: "machine.loss_scale".into(),
            micro: 1,
            ranges: None,
            first_scale: FirstScale::Given(65536.0),
        }
    }
}

impl PrecisionOptions {
    /// The target as far as the person lets it be used: without the precisions that are neither
    /// allowed nor asked for.
    pub fn usable(&self, target: &Target) -> Target {
        let mut t = target.clone();
        if !self.allow.tf32 && self.policy != Policy::Tf32 {
            t = t.without(Precision::Tf32);
        }
        if !self.allow.fp8 && self.policy != Policy::Fp8 {
            t = t.without(Precision::Fp8);
        }
        t
    }
}

/// What became of the products that a pass looked at, by name.
#[derive(Clone, Debug, Default)]
pub struct Choices {
    /// Those that changed, with what the step would cost more without, ns.
    pub taken: BTreeMap<String, f64>,
    /// Why the others did not.
    pub refused: BTreeMap<String, String>,
}

/// Operands that must share one format, in which the kernel works.
pub fn uniform_operands(op: &Op, arity: usize) -> &'static [usize] {
    match op {
        Op::MatMul(_) | Op::Conv2d(_) | Op::Conv2dDataGrad(_) | Op::Conv2dFilterGrad(_) => &[0, 1],
        Op::Attention(_) => &[0, 1, 2],
        // q, k, v, the result and its cotangent; statistics and masks have formats of their own.
        Op::AttentionGrad(_) if arity == 7 => &[0, 1, 2, 3, 6],
        Op::AttentionGrad(_) => &[0, 1, 2, 4, 7],
        Op::Gather(_) | Op::MaxPool2d(_) | Op::MaxPool2dGrad(_) => &[0],
        _ => &[],
    }
}

/// Kernels that copy elements: what they write has the format of what they read.
pub fn keeps_format(op: &Op) -> bool {
    matches!(op, Op::Gather(_) | Op::MaxPool2d(_) | Op::MaxPool2dGrad(_))
}

/// The storage behind every value: views share their operand's.
pub fn storages(g: &Graph) -> Vec<ValueId> {
    let mut of: Vec<ValueId> = (0..g.value_count() as u32).map(ValueId).collect();
    for (_, n) in g.nodes() {
        if n.op.lowering() == Lowering::View {
            of[n.outputs[0].0 as usize] = of[n.inputs[0].0 as usize];
        }
    }
    of
}

/// Whether every operand and result of a row program has one shape, so that it can run inside
/// another kernel's loop.
pub fn elementwise(g: &Graph, n: &crate::ir::Node) -> bool {
    n.op.lowering() == Lowering::Rows
        && n.op.class() != NumericClass::State
        && n.outputs.iter().all(|&v| g.shape(v) == g.shape(n.outputs[0]))
        && !matches!(
            n.op,
            Op::Softmax(_)
                | Op::SoftmaxGrad(_)
                | Op::LayerNormGrad(_)
                | Op::Reduce(_)
                | Op::Iota(_)
        )
        && n.inputs.iter().all(|&v| {
            let s = g.shape(v);
            s == g.shape(n.outputs[0]) || s.rank() < g.shape(n.outputs[0]).rank()
        })
}
