//! Names for epilogues that vendor libraries know.

use crate::ops::matmul::Fused;
use crate::ops::{MatMul, Op};
use crate::schedule::fuse::Group;
use precast_plan::{Access, BinaryOp, EpilogueKind, Instr, Program, Reg};

/// The common name of an epilogue, read off what its outputs are, in whatever order the
/// instructions come.
pub fn kind(op: &Op, g: &Group, p: &Program, inputs: &[Access], along: usize) -> EpilogueKind {
    let vector = |a: &Access| a.strides.iter().enumerate().all(|(d, &s)| s == 0 || d == along);
    let has_bias = inputs.len() == 1 && vector(&inputs[0]);
    let at = |r: Reg| &p.code[r as usize];
    let sum = |r: Reg| at(r) == &Instr::Load { port: 0 };
    let vector = |r: Reg| has_bias && at(r) == &Instr::Load { port: 1 };
    let biased = |r: Reg| match *at(r) {
        Instr::Binary(BinaryOp::Add, a, b) => (sum(a) && vector(b)) || (sum(b) && vector(a)),
        _ => false,
    };
    let zero = |r: Reg| at(r) == &Instr::Real(0.0);
    let relu = |r: Reg| match *at(r) {
        Instr::Binary(BinaryOp::Max, a, b) => (biased(a) && zero(b)) || (biased(b) && zero(a)),
        _ => false,
    };
    match p.outputs[..] {
        [y] if sum(y.reg) => EpilogueKind::Store,
        [y] if biased(y.reg) => EpilogueKind::Bias,
        [y] if relu(y.reg) => EpilogueKind::BiasRelu,
        [_, pre] if g.items.len() == 1 && biased(pre.reg) => match op {
            Op::MatMul(MatMul { fused: Fused::BiasGelu }) => EpilogueKind::BiasGeluAux,
            Op::MatMul(MatMul { fused: Fused::BiasGeluTanh }) => EpilogueKind::BiasGeluTanhAux,
            _ => EpilogueKind::Program,
        },
        _ => EpilogueKind::Program,
    }
}
