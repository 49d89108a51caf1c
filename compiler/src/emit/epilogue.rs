//! Names for epilogues that vendor libraries know.

use crate::ops::matmul::Fused;
use crate::ops::{MatMul, Op};
use crate::schedule::fuse::Group;
use precast_plan::{Access, EpilogueKind, Program};

/// The common name of an epilogue.
pub fn kind(op: &Op, g: &Group, p: &Program, inputs: &[Access], along: usize) -> EpilogueKind {
    use precast_plan::{BinaryOp, Instr as I};
    let vector = |a: &Access| a.strides.iter().enumerate().all(|(d, &s)| s == 0 || d == along);
    let bias = inputs.len() == 1 && vector(&inputs[0]);
    match p.code[..] {
        [I::Load { port: 0 }] if p.outputs.len() == 1 => EpilogueKind::Store,
        [I::Load { port: 0 }, I::Load { port: 1 }, I::Binary(BinaryOp::Add, ..)]
            if bias && p.outputs.len() == 1 =>
        {
            EpilogueKind::Bias
        }
        [
            I::Load { port: 0 },
            I::Load { port: 1 },
            I::Binary(BinaryOp::Add, ..),
            I::Real(0.0),
            I::Binary(BinaryOp::Max, ..),
        ] if bias && p.outputs.len() == 1 && p.outputs[0].reg == 4 => EpilogueKind::BiasRelu,
        _ => match op {
            Op::MatMul(MatMul { fused }) if g.items.len() == 1 && p.outputs.len() == 2 => {
                match fused {
                    Fused::BiasGelu => EpilogueKind::BiasGeluAux,
                    Fused::BiasGeluTanh => EpilogueKind::BiasGeluTanhAux,
                    _ => EpilogueKind::Program,
                }
            }
            _ => EpilogueKind::Program,
        },
    }
}
