//! Softmax and log-softmax over the last axis.

use super::{
    Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, ProgramBuilder, RowSpec,
    same_shape, signature,
};
use crate::ir::TensorType;
use precast_plan::{BinaryOp, Reg, UnaryOp};

op! {
    /// `exp(x − max) / Σ exp(x − max)`, or its logarithm.
    Softmax = "softmax" { log: bool }
}
op! {
    /// (y, dy) → dx, y the result of [`Softmax`]. A row whose cotangent is 0 has the gradient 0 even where
    /// y is NaN, as that of −∞ alone is: whoever selects such rows away means that nothing comes of them.
    SoftmaxGrad = "softmax_grad" { log: bool }
}

impl OpDef for Softmax {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "r")?;
        match x[0].shape.last() {
            Some(&n) if n > 0 => Ok(vec![TensorType::f32(x[0].shape.clone())]),
            _ => Err(format!("{} has no last axis to normalise", x[0])),
        }
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn compares(&self) -> &'static [usize] {
        &[0]
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn bounds(&self, _: &Known) -> Bounds {
        if self.log { Bounds::new(f64::NEG_INFINITY, 0.0) } else { Bounds::new(0.0, 1.0) }
    }
    fn stored_f32(&self, _: usize) -> Option<&'static str> {
        self.log.then_some("logarithms of probabilities are f32")
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (y, dy) = (cx.y(0), cx.only_dy(0)?);
        Ok(vec![Some(cx.op(SoftmaxGrad { log: self.log }, &[y, dy]))])
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        RowSpec::last_axis(&x[0].shape, 1, 1)
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let max = b.max_over(x[0]);
        let centred = b.sub(x[0], max);
        let e = b.un(UnaryOp::Exp, centred);
        let sum = b.sum(e);
        if self.log {
            let log = b.un(UnaryOp::Log, sum);
            vec![b.sub(centred, log)]
        } else {
            let inverse = b.un(UnaryOp::Recip, sum);
            vec![b.mul(e, inverse)]
        }
    }
}

impl OpDef for SoftmaxGrad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "rr")?;
        same_shape(x)?;
        Softmax { log: self.log }.infer(&x[..1])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[1])
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        RowSpec::last_axis(&x[0].shape, 2, 1)
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let (y, dy) = (x[0], x[1]);
        if self.log {
            let total = b.sum(dy);
            let p = b.un(UnaryOp::Exp, y);
            let t = zero_times(b, total, p);
            vec![b.sub(dy, t)]
        } else {
            let t = zero_times(b, dy, y);
            let dot = b.sum(t);
            let d = b.sub(dy, dot);
            vec![zero_times(b, d, y)]
        }
    }
}

/// `x · y`, 0 where x is 0 whatever y is.
fn zero_times(b: &mut ProgramBuilder, x: Reg, y: Reg) -> Reg {
    let (zero, product) = (b.real(0.0), b.mul(x, y));
    let none = b.bin(BinaryOp::Eq, x, zero);
    b.select(none, zero, product)
}
