//! Multiplication by one number.

use super::{
    Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, ProgramBuilder, Reach,
    RowSpec, signature,
};
use crate::ir::{Real, TensorType};
use precast_plan::{BinaryOp, Reg};

op! {
    /// `by * x` for a literal.
    Scale = "scale" { by: Real }
}

op! {
    /// `s * x` for a scalar tensor `s` (rank 0): the loss scale, a clip factor.
    ScaleBy = "scale_by" {}
}

impl OpDef for Scale {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "r")?;
        Ok(vec![TensorType::f32(x[0].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Pointwise
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        Linear::All
    }
    fn bounds(&self, k: &Known) -> Bounds {
        k.x(0).times(Bounds::at(self.by.0))
    }
    fn reach(&self, k: &Known) -> Reach {
        Reach::Times(k.reach(0) * self.by.0.abs().max(f64::MIN_POSITIVE))
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let dy = cx.only_dy(0)?;
        Ok(vec![Some(cx.op(self.clone(), &[dy]))])
    }
    fn row_spec(&self, _: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        RowSpec::elementwise(1, y)
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        vec![b.scale(x[0], self.by.0)]
    }
}

impl OpDef for ScaleBy {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "rr")?;
        if x[0].shape.rank() != 0 {
            return Err(format!("the factor is {}, not a scalar", x[0]));
        }
        Ok(vec![TensorType::f32(x[1].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Pointwise
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[0, 1])
    }
    fn reach(&self, k: &Known) -> Reach {
        Reach::Times(k.reach(1))
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (s, x, dy) = (cx.x(0), cx.x(1), cx.only_dy(0)?);
        let t = cx.bin(BinaryOp::Mul, dy, x);
        let rank = cx.shape(t).rank();
        let ds = if rank == 0 { t } else { cx.sum(t, &(0..rank).collect::<Vec<_>>()) };
        Ok(vec![Some(ds), Some(cx.op(ScaleBy {}, &[s, dy]))])
    }
    fn row_spec(&self, _: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        let mut spec = RowSpec::elementwise(2, y);
        spec.inputs[0] = vec![];
        spec
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        vec![b.mul(x[0], x[1])]
    }
}
