//! Names for epilogues that vendor libraries know.

use crate::ops::matmul::Fused;
use crate::ops::{MatMul, Op};
use crate::schedule::fuse::Group;
use precast_plan::{Access, BinaryOp, DType, EpilogueKind, Instr, Program, Reg};

/// The common name of an epilogue, read off what its outputs are, in whatever order the
/// instructions come; and the input that the sums are multiplied with first, where there is one.
pub fn kind(
    op: &Op,
    g: &Group,
    p: &Program,
    inputs: &[Access],
    outputs: &[Access],
    along: usize,
) -> (EpilogueKind, Option<u32>) {
    let at = |r: Reg| &p.code[r as usize];
    let acc = |r: Reg| at(r) == &Instr::Load { port: 0 };
    let scalar = |r: Reg| match *at(r) {
        Instr::Load { port } if port > 0 => {
            let input = port - 1;
            inputs[input as usize].strides.iter().all(|&s| s == 0).then_some(input)
        }
        _ => None,
    };
    let factor_of = |i: &Instr| match *i {
        Instr::Binary(BinaryOp::Mul, a, b) if acc(a) => scalar(b),
        Instr::Binary(BinaryOp::Mul, a, b) if acc(b) => scalar(a),
        _ => None,
    };
    let scaled = matches!(op, Op::MatMul(MatMul { scaled: true, .. }));
    let scale = scaled.then(|| p.code.iter().find_map(factor_of)).flatten();
    let sum = |r: Reg| match scale {
        None => acc(r),
        scale => factor_of(at(r)) == scale,
    };
    let others: Vec<usize> = (0..inputs.len()).filter(|&i| Some(i as u32) != scale).collect();
    let vector = |a: &Access| a.strides.iter().enumerate().all(|(d, &s)| s == 0 || d == along);
    let bias = match others[..] {
        [i] if vector(&inputs[i]) => Some(i as u32 + 1),
        _ => None,
    };
    let vector = |r: Reg| bias.is_some_and(|port| at(r) == &Instr::Load { port });
    let biased = |r: Reg| match *at(r) {
        Instr::Binary(BinaryOp::Add, a, b) => (sum(a) && vector(b)) || (sum(b) && vector(a)),
        _ => false,
    };
    let zero = |r: Reg| at(r) == &Instr::Real(0.0);
    let relu = |r: Reg| match *at(r) {
        Instr::Binary(BinaryOp::Max, a, b) => (biased(a) && zero(b)) || (biased(b) && zero(a)),
        _ => false,
    };
    // What stands where the only result goes, in its format.
    let old = |r: Reg| match (at(r), outputs) {
        (&Instr::Load { port }, [y]) if port > 0 => inputs[port as usize - 1] == *y,
        _ => false,
    };
    let added = |r: Reg| match *at(r) {
        Instr::Binary(BinaryOp::Add, a, b) => (sum(a) && old(b)) || (sum(b) && old(a)),
        _ => false,
    };
    let kind = match p.outputs[..] {
        [y] if sum(y.reg) => EpilogueKind::Store,
        [y] if y.dtype == DType::F32 && added(y.reg) => EpilogueKind::Accumulate,
        [_] if g.gelu_gradient => EpilogueKind::GeluTanhGrad,
        [y] if biased(y.reg) => EpilogueKind::Bias,
        [y] if relu(y.reg) => EpilogueKind::BiasRelu,
        [_, pre] if g.items.len() == 1 && biased(pre.reg) => match op {
            Op::MatMul(MatMul { fused: Fused::BiasGelu, .. }) => EpilogueKind::BiasGeluAux,
            Op::MatMul(MatMul { fused: Fused::BiasGeluTanh, .. }) => EpilogueKind::BiasGeluTanhAux,
            _ => EpilogueKind::Program,
        },
        _ => EpilogueKind::Program,
    };
    (kind, scale)
}
