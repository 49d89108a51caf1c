//! Along one axis: running sums, and the places of the largest.

use super::{GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, Reach, signature};
use crate::ir::TensorType;
use precast_plan::{DType, Kind};

op! {
    /// `y[…,i,…] = Σ_{k ≤ i} x[…,k,…]` along `axis`; without the element itself where `exclusive`,
    /// from the end where `reverse`. Reals or integers.
    CumSum = "cumsum" { axis: usize, exclusive: bool, reverse: bool }
}
op! {
    /// Places (i32) of the `k` largest elements along `axis`, largest first, of equal ones the first
    /// first; of the smallest where not `largest`, smallest first. NaN is larger than any number, and
    /// zeros of both signs are equal, as in PyTorch.
    TopK = "top_k" { axis: usize, k: usize, largest: bool }
}

fn axis_of(x: &TensorType, axis: usize) -> Result<usize, String> {
    x.shape.get(axis).copied().ok_or_else(|| format!("axis {axis} of {x}"))
}

impl OpDef for CumSum {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, ".")?;
        axis_of(x[0], self.axis)?;
        let dtype = match x[0].kind() {
            Kind::Real => DType::F32,
            Kind::Int => DType::I32,
            Kind::Bool => return Err(format!("running sums of {}", x[0])),
        };
        Ok(vec![TensorType::new(dtype, x[0].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn linear(&self) -> Linear {
        Linear::All
    }
    fn stored_f32(&self, _: usize) -> Option<&'static str> {
        Some("a sum or statistic is f32")
    }
    fn reach(&self, k: &Known) -> Reach {
        Reach::Times(k.reach(0) * k.shape(0)[self.axis].max(1) as f64)
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        if cx.ty(cx.y(0)).kind() != Kind::Real {
            return Ok(vec![None]);
        }
        let dy = cx.only_dy(0)?;
        Ok(vec![Some(cx.op(CumSum { reverse: !self.reverse, ..self.clone() }, &[dy]))])
    }
}

impl OpDef for TopK {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, ".")?;
        let n = axis_of(x[0], self.axis)?;
        if x[0].kind() == Kind::Bool {
            return Err(format!("the largest of {}", x[0]));
        }
        if self.k == 0 || self.k > n || i32::try_from(n).is_err() {
            return Err(format!("the {} largest of {n} elements of {}", self.k, x[0]));
        }
        let mut shape = x[0].shape.clone();
        shape[self.axis] = self.k;
        Ok(vec![TensorType::new(DType::I32, shape)])
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
