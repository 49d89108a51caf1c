//! The logarithm of a sum of exponentials.

use super::reduce::over_axes;
use super::{
    GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, ProgramBuilder, Reach, RowSpec,
    signature,
};
use crate::ir::TensorType;
use precast_plan::{ReduceOp, Reg, UnaryOp};

op! {
    /// `log Σ exp(x)` over `axes` (ascending), which disappear: `m + log Σ exp(x − m)` with m the
    /// maximum, and −∞ where every element is.
    LogSumExp = "log_sum_exp" { axes: Vec<usize> }
}
op! {
    /// (x, dy) → dx = `softmax(x) dy` over the axes of a [`LogSumExp`]; NaN where every element is −∞,
    /// as torch.logsumexp. Its result is not read: it has rounded away what large x differ by.
    LogSumExpGrad = "log_sum_exp_grad" { axes: Vec<usize> }
}

impl OpDef for LogSumExp {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        super::Reduce { f: ReduceOp::Max, axes: self.axes.clone() }.infer(x)
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
    fn reach(&self, _: &Known) -> Reach {
        Reach::Beyond("a logarithm is f32")
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (x, dy) = (cx.x(0), cx.only_dy(0)?);
        Ok(vec![Some(cx.op(LogSumExpGrad { axes: self.axes.clone() }, &[x, dy]))])
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
        signature(x, "rr")?;
        let row = LogSumExp { axes: self.axes.clone() }.infer(&x[..1])?;
        if x[1].shape != row[0].shape {
            return Err(format!("{} is not one number a row of {}", x[1], x[0]));
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
        Linear::Each(&[1])
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        let mut spec = over_axes(&x[0].shape, &self.axes);
        let row = spec.outputs.remove(0);
        spec.outputs.push(spec.inputs[0].clone());
        spec.inputs.push(row);
        spec
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let max = b.max_over(x[0]);
        let c = b.sub(x[0], max);
        let e = b.un(UnaryOp::Exp, c);
        let sum = b.sum(e);
        let share = b.div(x[1], sum);
        vec![b.mul(e, share)]
    }
}
