//! `detach`.

use super::{Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, signature};
use crate::ir::TensorType;
use crate::ir::view::View;

op! {
    /// The operand, which no cotangent passes. It stands until the graph is differentiated.
    StopGradient = "stop_gradient" {}
}

impl OpDef for StopGradient {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "r")?;
        Ok(vec![x[0].clone()])
    }

    fn class(&self) -> NumericClass {
        NumericClass::Movement
    }

    fn lowering(&self) -> Lowering {
        Lowering::View
    }

    fn linear(&self) -> Linear {
        Linear::All
    }

    fn bounds(&self, k: &Known) -> Bounds {
        k.x(0)
    }

    fn gradient(&self, _: &mut GradCx) -> Result<Grads, String> {
        Ok(vec![None])
    }

    fn view(&self, x: &View, _: &TensorType) -> Option<View> {
        Some(x.clone())
    }
}
