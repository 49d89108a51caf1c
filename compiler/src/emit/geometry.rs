//! Sizes of convolutions.

use crate::ir::TensorType;
use crate::ir::view::View;
use crate::ops::Op;
use precast_plan::{ConvGeometry, ConvKind};

/// Which product of a convolution an operation is, and its sizes.
///
/// # Panics
/// If it is none.
pub fn of(op: &Op, operands: &[(usize, View)]) -> (ConvKind, ConvGeometry) {
    let ty = |i: usize| TensorType::f32(operands[i].1.shape.clone());
    let (kind, g) = match op {
        Op::Conv2d(c) => (ConvKind::Forward, c.geometry(&ty(0), &ty(1))),
        Op::Conv2dDataGrad(c) => (ConvKind::DataGrad, c.geometry(&ty(0), &ty(1))),
        Op::Conv2dFilterGrad(c) => (ConvKind::FilterGrad, c.geometry(&ty(0), &ty(1))),
        op => panic!("`{}` is not a convolution", op.name()),
    };
    (kind, g.expect("the graph was verified"))
}
