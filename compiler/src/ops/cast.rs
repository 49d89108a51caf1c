//! Change of storage format between reals.

use super::{
    GradCx, Grads, Linear, Lowering, NumericClass, OpDef, ProgramBuilder, RowSpec, signature,
};
use crate::ir::TensorType;
use precast_plan::Reg;

op! {
    /// The same real numbers in another format: the format is that of the result's type, so the op
    /// has no attribute. Placed by the precision pass; importers drop casts between reals.
    Cast = "cast" {}
}

impl OpDef for Cast {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "r")?;
        Ok(vec![TensorType::f32(x[0].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Movement
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        Linear::All
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        // A cast back: the cotangent has the format of what it is the cotangent of.
        let dy = cx.only_dy(0)?;
        Ok(vec![Some(cx.op(Cast {}, &[dy]))])
    }
    fn row_spec(&self, _: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        RowSpec::elementwise(1, y)
    }
    fn emit(&self, _: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        vec![x[0]]
    }
}
