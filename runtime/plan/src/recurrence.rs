//! Recurrent networks: a kernel that walks time, with one gate program a kind of cell.

use crate::schema::Access;
use serde::{Deserialize, Serialize};

/// What a cell computes of the projected input x (biases included), its old state h (and c) and its
/// recurrent matrix R (rows by gate). Equations and the order of gates are those of ONNX's operators;
/// σ1, σ2, σ3 are the activations of [`RecurrenceShape::squash`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RecurrentCell {
    /// `h' = σ1(x + R h)`.
    Rnn,
    /// Gates i, o, f, g (Hochreiter & Schmidhuber, 1997; forget gate of Gers et al., 2000):
    /// `i, f = σ1(x + R h + p c)`, `g = σ2(x + R h)`, `c' = f c + i g`, `o = σ1(x + R h + p c')`,
    /// `h' = o σ3(c')`; p is 0 without peepholes.
    Lstm,
    /// Gates z, r, n (Cho et al., 2014): `z, r = σ1(x + R h)`, `n = σ2(x + R (r h))`,
    /// `h' = (1 − z) n + z h`.
    Gru,
    /// As `Gru` with the reset gate behind the product, as in cuDNN and PyTorch:
    /// `n = σ2(x + r (R h + bias))`.
    GruResetAfter,
}

impl RecurrentCell {
    pub const ALL: [RecurrentCell; 4] =
        [RecurrentCell::Rnn, RecurrentCell::Lstm, RecurrentCell::Gru, RecurrentCell::GruResetAfter];

    /// Gates: blocks of rows of R.
    pub const fn gates(self) -> usize {
        match self {
            RecurrentCell::Rnn => 1,
            RecurrentCell::Lstm => 4,
            RecurrentCell::Gru | RecurrentCell::GruResetAfter => 3,
        }
    }

    /// Vectors that its state is: h, and c of an LSTM.
    pub const fn states(self) -> usize {
        if matches!(self, RecurrentCell::Lstm) { 2 } else { 1 }
    }

    /// Vectors that a step keeps for the gradient: the gates after their activations in order, then
    /// the old c of an LSTM, `r h` of a GRU, or `R h + bias` of one that resets behind the product.
    pub const fn kept(self) -> usize {
        match self {
            RecurrentCell::Rnn => 1,
            RecurrentCell::Lstm => 5,
            RecurrentCell::Gru | RecurrentCell::GruResetAfter => 4,
        }
    }

    /// Whether the recurrent product of the last gate has a bias of its own.
    pub const fn has_bias(self) -> bool {
        matches!(self, RecurrentCell::GruResetAfter)
    }

    /// As text: `lstm`, `gru_reset_after`.
    pub const fn name(self) -> &'static str {
        match self {
            RecurrentCell::Rnn => "rnn",
            RecurrentCell::Lstm => "lstm",
            RecurrentCell::Gru => "gru",
            RecurrentCell::GruResetAfter => "gru_reset_after",
        }
    }
}

/// An activation of a gate. Its derivative follows from its value.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Squash {
    Sigmoid,
    Tanh,
    Relu,
}

impl Squash {
    pub const ALL: [Squash; 3] = [Squash::Sigmoid, Squash::Tanh, Squash::Relu];
}

/// Which way time is walked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    Forward,
    /// From the last step of a sequence to its first.
    Reverse,
    /// Two directions: the first forward, the second in reverse.
    Both,
}

impl Way {
    pub const fn directions(self) -> usize {
        if matches!(self, Way::Both) { 2 } else { 1 }
    }

    /// Whether this direction walks from the last step to the first.
    pub const fn reverse(self, direction: usize) -> bool {
        matches!((self, direction), (Way::Reverse, _) | (Way::Both, 1))
    }
}

/// Sizes and gate program of a recurrence.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecurrenceShape {
    pub cell: RecurrentCell,
    /// σ1, σ2, σ3.
    pub squash: [Squash; 3],
    pub way: Way,
    /// Steps of time, t below.
    pub steps: u64,
    /// Sequences, b below.
    pub batch: u64,
    /// Elements of a state vector, h below.
    pub hidden: u64,
}

impl RecurrenceShape {
    /// Whether no size is 0 or beyond what a tensor may have, so that extents can be computed.
    pub fn is_sound(&self) -> bool {
        let sizes = [self.steps, self.batch, self.hidden];
        sizes.iter().all(|n| (1..=crate::validate::MAX_ELEMENTS).contains(n))
    }

    /// Directions, d below.
    pub fn directions(&self) -> u64 {
        self.way.directions() as u64
    }

    /// Operations of the products with R: 2 a multiplication and addition.
    pub fn flops(&self) -> f64 {
        let rows = (self.steps * self.batch * self.directions()) as f64;
        2.0 * rows * (self.cell.gates() as u64 * self.hidden * self.hidden) as f64
    }

    /// Evaluations of an activation, of all steps.
    pub fn squashed(&self) -> f64 {
        let rows = (self.steps * self.batch * self.directions()) as f64;
        let each = self.cell.gates() + usize::from(self.cell == RecurrentCell::Lstm);
        rows * each as f64 * self.hidden as f64
    }

    pub fn gates_dims(&self) -> Vec<u64> {
        let d = self.directions();
        vec![self.steps, self.batch, d, self.cell.gates() as u64 * self.hidden]
    }
    pub fn matrix_dims(&self) -> Vec<u64> {
        vec![self.directions(), self.cell.gates() as u64 * self.hidden, self.hidden]
    }
    pub fn states_dims(&self) -> Vec<u64> {
        vec![self.cell.states() as u64, self.batch, self.directions(), self.hidden]
    }
    /// Outputs of all steps, then the final states.
    pub fn y_dims(&self) -> Vec<u64> {
        let rows = self.steps + self.cell.states() as u64;
        vec![rows, self.batch, self.directions(), self.hidden]
    }
    pub fn kept_dims(&self) -> Vec<u64> {
        let d = self.directions();
        vec![self.steps, self.batch, d, self.cell.kept() as u64 * self.hidden]
    }
    pub fn before_dims(&self) -> Vec<u64> {
        vec![self.steps, self.batch, self.directions(), self.hidden]
    }
    pub fn bias_dims(&self) -> Vec<u64> {
        vec![self.directions(), self.hidden]
    }
    pub fn peephole_dims(&self) -> Vec<u64> {
        vec![self.directions(), 3 * self.hidden]
    }
}

/// Walks sequences through a cell. All tensors are dense. Sequences shorter than t end after their
/// length: their later outputs are 0 and their final states those of their last step (reverse: the
/// walk begins there). Arithmetic and states are f32 whatever the formats.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Recurrence {
    pub shape: RecurrenceShape,
    /// The projected inputs with their biases, \[t, b, d, gates · h].
    pub gates: Access,
    /// \[d, gates · h, h].
    pub matrix: Access,
    /// First states, \[states, b, d, h].
    pub states: Access,
    /// \[d, h], of cells that have one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bias: Option<Access>,
    /// Of i, o, f of an LSTM, \[d, 3 · h].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peephole: Option<Access>,
    /// Steps of every sequence, \[b]; counts below 0 or above t mean 0 and t.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lengths: Option<Access>,
    /// Outputs and then the final states, \[t + states, b, d, h].
    pub y: Access,
    /// [`RecurrentCell::kept`], f32, \[t, b, d, kept · h]; 0 behind the end of a sequence.
    pub kept: Access,
    /// The state h that every step began with, \[t, b, d, h].
    pub before: Access,
}

/// The gradient of [`Recurrence`] with respect to its projected inputs and first states. Those of
/// the matrix, the bias and the peepholes are products and sums of `d_gates`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RecurrenceGrad {
    pub shape: RecurrenceShape,
    pub matrix: Access,
    pub kept: Access,
    pub before: Access,
    /// Cotangent of `y`.
    pub d_y: Access,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub peephole: Option<Access>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lengths: Option<Access>,
    pub d_gates: Access,
    /// f32.
    pub d_states: Access,
}

impl Recurrence {
    /// What is read, with its extents.
    pub fn reads(&self) -> Vec<(&'static str, &Access, Vec<u64>)> {
        let s = &self.shape;
        let mut list = vec![
            ("gates", &self.gates, s.gates_dims()),
            ("matrix", &self.matrix, s.matrix_dims()),
            ("states", &self.states, s.states_dims()),
        ];
        list.extend(self.bias.as_ref().map(|a| ("bias", a, s.bias_dims())));
        list.extend(self.peephole.as_ref().map(|a| ("peephole", a, s.peephole_dims())));
        list
    }

    /// What is written, with its extents.
    pub fn writes(&self) -> Vec<(&'static str, &Access, Vec<u64>)> {
        let s = &self.shape;
        vec![
            ("y", &self.y, s.y_dims()),
            ("kept", &self.kept, s.kept_dims()),
            ("before", &self.before, s.before_dims()),
        ]
    }
}

impl RecurrenceGrad {
    /// What is read, with its extents.
    pub fn reads(&self) -> Vec<(&'static str, &Access, Vec<u64>)> {
        let s = &self.shape;
        let mut list = vec![
            ("matrix", &self.matrix, s.matrix_dims()),
            ("kept", &self.kept, s.kept_dims()),
            ("before", &self.before, s.before_dims()),
            ("d_y", &self.d_y, s.y_dims()),
        ];
        list.extend(self.peephole.as_ref().map(|a| ("peephole", a, s.peephole_dims())));
        list
    }

    /// What is written, with its extents.
    pub fn writes(&self) -> Vec<(&'static str, &Access, Vec<u64>)> {
        let s = &self.shape;
        vec![
            ("d_gates", &self.d_gates, s.gates_dims()),
            ("d_states", &self.d_states, s.states_dims()),
        ]
    }
}
