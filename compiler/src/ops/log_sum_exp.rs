//! The logarithm of a sum of exponentials.

use super::reduce::{order, over_axes};
use super::{
    GradCx, Grads, Linear, Lowering, NumericClass, OpDef, ProgramBuilder, RowSpec, signature,
};
use crate::ir::TensorType;
use precast_plan::{ReduceOp, Reg, UnaryOp};

op! {
    /// `log Σ exp(x)` over `axes` (ascending), which disappear: `m + log Σ exp(x − m)` with m the
    /// maximum, and −∞ where every element is.
    LogSumExp = "log_sum_exp" { axes: Vec<usize> }
}
op! {
    /// (x, y, dy) → dx = `exp(x − y) dy`, y the result of [`LogSumExp`]; NaN where every element is
    /// −∞, as torch.logsumexp.
    LogSumExpGrad = "log_sum_exp_grad" { axes: Vec<usize> }
}

impl OpDef for LogSumExp {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        super::Reduce { f: ReduceOp::Max, axes: self.axes.clone() }.infer(x)
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (x, y, dy) = (cx.x(0), cx.y(0), cx.only_dy(0)?);
        Ok(vec![Some(cx.op(LogSumExpGrad { axes: self.axes.clone() }, &[x, y, dy]))])
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        over_axes(&x[0].shape, &self.axes)
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let max = b.max_over(x[0]);
        // An infinite maximum is not subtracted: ∞ − ∞ would be NaN.
        let finite = b.un(UnaryOp::IsFinite, max);
        let zero = b.real(0.0);
        let m = b.select(finite, max, zero);
        let c = b.sub(x[0], m);
        let e = b.un(UnaryOp::Exp, c);
        let sum = b.sum(e);
        let log = b.un(UnaryOp::Log, sum);
        vec![b.add(m, log)]
    }
}

impl OpDef for LogSumExpGrad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "rrr")?;
        let row = LogSumExp { axes: self.axes.clone() }.infer(&x[..1])?;
        if x[1].shape != row[0].shape || x[2].shape != row[0].shape {
            return Err(format!("{} and {} are not one number a row of {}", x[1], x[2], x[0]));
        }
        Ok(vec![TensorType::f32(x[0].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[2])
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        // Nothing is reduced: rows may run together with other elementwise work.
        let whole: Vec<usize> = (0..x[0].shape.rank()).collect();
        let (kept, _) = order(whole.len(), &self.axes);
        RowSpec {
            dims: x[0].shape.to_vec(),
            reduced: 0,
            inputs: vec![whole.clone(), kept.clone(), kept],
            outputs: vec![whole],
        }
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let c = b.sub(x[0], x[1]);
        let p = b.un(UnaryOp::Exp, c);
        vec![b.mul(p, x[2])]
    }
}
