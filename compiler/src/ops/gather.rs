//! Rows of a table by index (embedding), and its gradient.

use super::{Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, signature};
use crate::ir::TensorType;

op! {
    /// table [v, rest…], ids […] → […, rest…]. Negative ids count from the end.
    Gather = "gather" {}
}
op! {
    /// ids […], dy […, rest…] → [rows, rest…]: row `ids[r]` is the sum of `dy[r]` in order of r,
    /// in f32.
    ScatterAdd = "scatter_add" { rows: usize }
}

op! {
    /// ids […] → i32 [rows]: 1 + the last place (in row-major order) at which `ids` names the row, 0
    /// where none does. Negative ids count from the end.
    LastIndex = "last_index" { rows: usize }
}

impl OpDef for Gather {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, ".i")?;
        if x[0].shape.rank() == 0 {
            return Err("the table is a scalar".into());
        }
        let shape: Vec<usize> = x[1].shape.iter().chain(&x[0].shape[1..]).copied().collect();
        Ok(vec![TensorType::new(x[0].dtype, shape)])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Movement
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[0])
    }
    fn bounds(&self, k: &Known) -> Bounds {
        k.x(0)
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (ids, dy) = (cx.x(1), cx.only_dy(0)?);
        let rows = cx.shape(cx.x(0))[0];
        Ok(vec![Some(cx.op(ScatterAdd { rows }, &[ids, dy])), None])
    }
}

impl OpDef for ScatterAdd {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "ir")?;
        let n = x[0].shape.rank();
        if x[1].shape.rank() < n || x[1].shape[..n] != x[0].shape[..] {
            return Err(format!("{} does not index {}", x[0], x[1]));
        }
        let mut shape = vec![self.rows];
        shape.extend_from_slice(&x[1].shape[n..]);
        Ok(vec![TensorType::f32(shape)])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[1])
    }
    fn stored_f32(&self, _: usize) -> Option<&'static str> {
        Some("a sum or statistic is f32")
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (ids, dy) = (cx.x(0), cx.only_dy(0)?);
        Ok(vec![None, Some(cx.op(Gather {}, &[dy, ids]))])
    }
}

impl OpDef for LastIndex {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "i")?;
        if i32::try_from(x[0].shape.elements()).is_err() {
            return Err(format!("the places of {} do not fit 32 bits", x[0]));
        }
        Ok(vec![TensorType::new(precast_plan::DType::I32, [self.rows])])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Leaf
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn gradient(&self, _: &mut GradCx) -> Result<Grads, String> {
        Ok(vec![None])
    }
}
