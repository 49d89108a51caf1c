//! Concatenation along one axis.

use super::{Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, Slice};
use crate::ir::TensorType;

op! {
    /// Operands one after the other along `axis`; other extents equal. At least one operand.
    Concat = "concat" { axis: usize }
}

impl OpDef for Concat {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let first = x.first().ok_or("takes at least one operand")?;
        if self.axis >= first.shape.rank() {
            return Err(format!("axis {} of {first}", self.axis));
        }
        let mut shape = first.shape.clone();
        shape[self.axis] = 0;
        for t in x {
            super::fits(t)?;
            let rest_differs = t.shape.rank() != shape.rank()
                || (0..shape.rank()).any(|d| d != self.axis && t.shape[d] != shape[d]);
            if rest_differs || t.kind() != first.kind() {
                return Err(format!(
                    "operands {first} and {t} do not fit along axis {}",
                    self.axis
                ));
            }
            shape[self.axis] = shape[self.axis].saturating_add(t.shape[self.axis]);
        }
        let dtype = if first.is_real() { precast_plan::DType::F32 } else { first.dtype };
        Ok(vec![TensorType::new(dtype, shape)])
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
        (1..k.node.inputs.len()).fold(k.x(0), |b, i| b.hull(k.x(i)))
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let dy = cx.only_dy(0)?;
        let mut at = 0;
        Ok((0..cx.arity())
            .map(|i| {
                let shape = cx.shape(cx.x(i));
                let mut starts = vec![0; shape.rank()];
                starts[self.axis] = at;
                at += shape[self.axis];
                let steps = vec![1; shape.rank()];
                Some(cx.op(Slice { starts, sizes: shape.to_vec(), steps }, &[dy]))
            })
            .collect())
    }
    fn parts(&self, x: &[&TensorType]) -> Vec<super::Part> {
        let mut at = 0;
        x.iter()
            .map(|t| {
                let mut starts = vec![0; t.shape.rank()];
                starts[self.axis] = at;
                at += t.shape[self.axis];
                super::Part { starts, steps: vec![1; t.shape.rank()] }
            })
            .collect()
    }
}
