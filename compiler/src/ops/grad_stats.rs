//! What the update must know of a gradient: its norm, and whether it is finite.

use super::{Lowering, NumericClass, OpDef, ProgramBuilder, RowSpec, signature};
use crate::ir::TensorType;
use precast_plan::{Reg, UnaryOp};

op! {
    /// (g, inverse loss scale (scalar)) → (Σ (g·inverse)², count of elements of g that are not
    /// finite), scalars. The count looks at g itself, as PyTorch's GradScaler does: a finite
    /// gradient whose squares overflow has an infinite norm but does not skip the step.
    GradStats = "grad_stats" {}
}

impl OpDef for GradStats {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "rr")?;
        if x[1].shape.rank() != 0 {
            return Err(format!("the inverse scale is {}, not a scalar", x[1]));
        }
        Ok(vec![TensorType::f32([]); 2])
    }
    fn class(&self) -> NumericClass {
        NumericClass::State
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        let rank = x[0].shape.rank();
        RowSpec {
            dims: x[0].shape.to_vec(),
            reduced: rank,
            inputs: vec![(0..rank).collect(), vec![]],
            outputs: vec![vec![], vec![]],
        }
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let g = b.mul(x[0], x[1]);
        let sq = b.mul(g, g);
        let sum = b.sum(sq);
        let ok = b.un(UnaryOp::IsFinite, x[0]);
        let (zero, one) = (b.real(0.0), b.real(1.0));
        let bad = b.select(ok, zero, one);
        vec![sum, b.sum(bad)]
    }
}
