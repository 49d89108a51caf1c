//! What can be looked at while a plan runs: the values of the graph that it computes, and when
//! each lies whole in memory.

use crate::dtype::DType;
use crate::schema::Access;
use serde::{Deserialize, Serialize};

/// The part of the step a value belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Fed with every batch.
    Input,
    /// A weight, buffer or other tensor that outlives the step, as the step finds it.
    State,
    Forward,
    /// A value of the backward pass.
    Cotangent,
}

impl Side {
    pub const fn name(self) -> &'static str {
        match self {
            Side::Input => "input",
            Side::State => "state",
            Side::Forward => "forward",
            Side::Cotangent => "cotangent",
        }
    }
}

/// One real tensor of the graph, of forward or backward pass. Watches of a plan are in the order of
/// the graph: operands first, forward before backward.
#[derive(Clone, Debug, PartialEq)]
pub struct Watch {
    /// Stable: the operation's name, with `.i` where it has several results.
    pub name: String,
    /// Name of the operation, and its mnemonic (`matmul`, `cast`).
    pub op: String,
    pub kind: String,
    pub side: Side,
    /// The format that the step stores; `None` where it keeps the value in registers (then it is
    /// f32, and is stored for the watch alone).
    pub stored: Option<DType>,
    pub shape: Vec<u64>,
    /// Where the elements are, strides per axis of `shape`.
    pub access: Access,
    /// The step of [`crate::Plan::micro`] after which the value is whole; `None`: it is so before
    /// the first.
    pub after: Option<u32>,
    /// Watches that the value is computed from; what is not watched is looked through.
    pub operands: Vec<u32>,
    /// Reads a literal that holds an infinity, such as an additive mask.
    pub infinite_literal: bool,
}
