//! Recurrences of every form.

use super::samples::Sample;
use super::{lower_recurrence, lower_recurrence_grad};
use crate::cuda::launch::{Facts, Lowered};
use precast_plan::{
    DType, Recurrence, RecurrenceGrad, RecurrenceShape, RecurrentCell, Squash, Way,
};

/// What varies between samples of recurrences.
#[derive(Clone, Debug)]
pub(super) struct RecurrenceSample {
    pub shape: RecurrenceShape,
    /// Of the gates (and their cotangents), the matrix, states, biases and peepholes, `y` (and its
    /// cotangent), `before`.
    pub dtypes: [DType; 5],
    pub peephole: bool,
    pub lengths: Option<DType>,
}

impl RecurrenceSample {
    pub fn build(&self, s: &mut Sample) -> (Recurrence, RecurrenceGrad) {
        let shape = &self.shape;
        let [gates, matrix, states, y, before] = self.dtypes;
        let mut lengths = || self.lengths.map(|d| s.dense(d, &[shape.batch]));
        let (forward_lengths, back_lengths) = (lengths(), lengths());
        let bias = shape.cell.has_bias().then(|| s.dense(states, &shape.bias_dims()));
        let mut peephole = || self.peephole.then(|| s.dense(states, &shape.peephole_dims()));
        let (forward_peephole, back_peephole) = (peephole(), peephole());
        let forward = Recurrence {
            shape: shape.clone(),
            gates: s.dense(gates, &shape.gates_dims()),
            matrix: s.dense(matrix, &shape.matrix_dims()),
            states: s.dense(states, &shape.states_dims()),
            bias,
            peephole: forward_peephole,
            lengths: forward_lengths,
            y: s.dense(y, &shape.y_dims()),
            kept: s.dense(DType::F32, &shape.kept_dims()),
            before: s.dense(before, &shape.before_dims()),
        };
        let back = RecurrenceGrad {
            shape: shape.clone(),
            matrix: forward.matrix.clone(),
            kept: forward.kept.clone(),
            before: forward.before.clone(),
            d_y: s.dense(y, &shape.y_dims()),
            peephole: back_peephole,
            lengths: back_lengths,
            d_gates: s.dense(gates, &shape.gates_dims()),
            d_states: s.dense(DType::F32, &shape.states_dims()),
        };
        (forward, back)
    }
}

/// One of every cell, direction, activation and format, with and without what is optional.
pub(super) fn varied(batch: u64, steps: u64, hidden: u64) -> Vec<RecurrenceSample> {
    use DType::{Bf16, F16, F32, I32, I64};
    use RecurrentCell::{Gru, GruResetAfter, Lstm, Rnn};
    use Squash::{Relu, Sigmoid, Tanh};
    let usual = [Sigmoid, Tanh, Tanh];
    [
        (Rnn, Way::Forward, [Tanh; 3], [F32; 5], false, None),
        (Rnn, Way::Both, [Relu; 3], [Bf16, F32, F32, Bf16, Bf16], false, Some(I64)),
        (Lstm, Way::Forward, usual, [F32; 5], false, None),
        (Lstm, Way::Reverse, usual, [F16, F32, F16, F16, F16], true, Some(I32)),
        (Lstm, Way::Both, [Tanh, Relu, Sigmoid], [Bf16, Bf16, F32, Bf16, F32], true, None),
        (Lstm, Way::Both, usual, [Bf16, F16, Bf16, F32, Bf16], true, Some(I64)),
        (Gru, Way::Reverse, usual, [F32; 5], false, Some(I64)),
        (Gru, Way::Both, [Sigmoid; 3], [F16, F32, F32, F16, Bf16], false, None),
        (GruResetAfter, Way::Forward, usual, [F32; 5], false, None),
        (GruResetAfter, Way::Both, usual, [Bf16, F32, Bf16, Bf16, Bf16], false, Some(I32)),
        (GruResetAfter, Way::Reverse, usual, [F16, F16, F16, F16, F16], false, None),
    ]
    .into_iter()
    .map(|(cell, way, squash, dtypes, peephole, lengths)| RecurrenceSample {
        shape: RecurrenceShape { cell, squash, way, steps, batch, hidden },
        dtypes,
        peephole,
        lengths,
    })
    .collect()
}

/// Lowers samples of few sequences and of many.
pub(super) fn recurrences(s: &mut Sample, facts: &Facts, out: &mut Lowered) {
    for batch in [4, 4096] {
        for sample in varied(batch, 16, 64) {
            let (forward, back) = sample.build(s);
            lower_recurrence(&s.plan, &forward, facts, out).expect("samples lower");
            lower_recurrence_grad(&s.plan, &back, facts, out).expect("samples lower");
        }
    }
}
