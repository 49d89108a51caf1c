//! Placement into zeros: the gradient of a slice.

use super::{
    Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, Slice, signature,
};
use crate::ir::TensorType;

op! {
    /// A tensor of zeros of extents `shape` in which element `starts + k · steps` is operand
    /// element `k`.
    Pad = "pad" { starts: Vec<usize>, steps: Vec<i64>, shape: Vec<usize> }
}

impl OpDef for Pad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "r")?;
        // Exactly the operands that the slice of a tensor of this shape would give.
        let slice = Slice {
            starts: self.starts.clone(),
            sizes: x[0].shape.to_vec(),
            steps: self.steps.clone(),
        };
        let whole = TensorType::f32(self.shape.clone());
        slice.infer(&[&whole])?;
        Ok(vec![whole])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Movement
    }
    fn lowering(&self) -> Lowering {
        Lowering::Assemble
    }
    fn linear(&self) -> Linear {
        Linear::All
    }
    fn bounds(&self, k: &Known) -> Bounds {
        k.x(0).hull(Bounds::at(0.0))
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (dy, sizes) = (cx.only_dy(0)?, cx.shape(cx.x(0)).to_vec());
        let slice = Slice { starts: self.starts.clone(), sizes, steps: self.steps.clone() };
        Ok(vec![Some(cx.op(slice, &[dy]))])
    }
    fn parts(&self, _: &[&TensorType]) -> Vec<super::Part> {
        vec![super::Part { starts: self.starts.clone(), steps: self.steps.clone() }]
    }
}
