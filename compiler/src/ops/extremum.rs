//! The largest or smallest element along an axis, where the first of equal ones counts.

use super::reduce::over_axes;
use super::{
    Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, ProgramBuilder, Reach,
    Reduce, RowSpec, signature,
};
use crate::ir::TensorType;
use precast_plan::{BinaryOp, Instr, ReduceOp, Reg, UnaryOp};

op! {
    /// `max` or `min` along `axis`, which disappears. Unlike [`super::Reduce`] it gives its
    /// cotangent to the first of equal elements, as torch.max(dim) does.
    Extremum = "extremum" { f: ReduceOp, axis: usize }
}
op! {
    /// (x, dy) → dx of an extremum over `axes` (ascending): dy at the `first` element that is the
    /// extremum, or shared evenly by all that are. What is largest is found anew in x, so that it
    /// does not matter in which formats x and the result were stored. NaN is the extremum where there
    /// is one: the first of several has the cotangent, as of torch.max(dim); shared it is NaN
    /// throughout, 0 / 0, as of torch.amax.
    ExtremumGrad = "extremum_grad" { f: ReduceOp, axes: Vec<usize>, first: bool }
}

/// Positions along the axis are compared as f32.
const MOST: usize = 1 << 24;

impl OpDef for Extremum {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        if self.f == ReduceOp::Sum {
            return Err("a sum is no extremum".into());
        }
        let y = Reduce { f: self.f, axes: vec![self.axis] }.infer(x)?;
        match x[0].shape[self.axis] {
            n if n > MOST => Err(format!("{n} elements along axis {}", self.axis)),
            _ => Ok(y),
        }
    }
    fn class(&self) -> NumericClass {
        NumericClass::Movement
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn bounds(&self, k: &Known) -> Bounds {
        k.x(0)
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (x, dy) = (cx.x(0), cx.only_dy(0)?);
        let grad = ExtremumGrad { f: self.f, axes: vec![self.axis], first: true };
        Ok(vec![Some(cx.op(grad, &[x, dy]))])
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        over_axes(&x[0].shape, &[self.axis])
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        vec![b.push(Instr::Reduce(self.f, x[0]))]
    }
}

impl OpDef for ExtremumGrad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "rr")?;
        let row = match (self.first, &self.axes[..]) {
            (true, &[axis]) => Extremum { f: self.f, axis }.infer(&x[..1])?,
            (true, _) => return Err("the first of one axis is found".into()),
            (false, _) if self.f == ReduceOp::Sum => return Err("a sum is no extremum".into()),
            (false, _) => Reduce { f: self.f, axes: self.axes.clone() }.infer(&x[..1])?,
        };
        if x[1].shape != row[0].shape {
            return Err(format!("{} is not one number a row of {}", x[1], x[0]));
        }
        Ok(vec![TensorType::f32(x[0].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Movement
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[1])
    }
    fn reach(&self, k: &Known) -> Reach {
        Reach::Times(k.reach(1))
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        let mut spec = over_axes(&x[0].shape, &self.axes);
        let row = spec.outputs.remove(0);
        spec.outputs.push(spec.inputs[0].clone());
        spec.inputs.push(row);
        spec
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let most = b.push(Instr::Reduce(self.f, x[0]));
        let hit = b.bin(BinaryOp::Eq, x[0], most);
        let zero = b.real(0.0);
        if !self.first {
            let one = b.real(1.0);
            let ones = b.select(hit, one, zero);
            let count = b.sum(ones);
            let share = b.div(x[1], count);
            let none = b.mul(share, zero);
            return vec![b.select(hit, share, none)];
        }
        let number = b.bin(BinaryOp::Eq, x[0], x[0]);
        let nan = b.un(UnaryOp::Not, number);
        let hit = b.bin(BinaryOp::Or, hit, nan);
        let axis = b.last_axis;
        let at = b.index(axis);
        let at = b.un(UnaryOp::ToReal, at);
        let never = b.real(f64::INFINITY);
        let place = b.select(hit, at, never);
        let first = b.push(Instr::Reduce(ReduceOp::Min, place));
        let is = b.bin(BinaryOp::Eq, at, first);
        vec![b.select(is, x[1], zero)]
    }
}
