//! Values that are not computed: graph inputs, variables, literals, coordinates.

use super::{
    Bounds, GradCx, Grads, Known, Lowering, NumericClass, OpDef, ProgramBuilder, RowSpec, signature,
};
use crate::ir::{ConstData, TensorType};
use precast_plan::{DType, Reg};

op! {
    /// A tensor the caller supplies for every batch.
    Input = "input" { name: String, dtype: String, shape: Vec<usize> }
}

op! {
    /// The value of a variable at the beginning of the phase.
    Var = "var" { name: String, dtype: String, shape: Vec<usize> }
}

op! {
    /// A literal.
    Const = "const" { data: ConstData }
}

op! {
    /// The coordinate along `axis`, as i32.
    Iota = "iota" { shape: Vec<usize>, axis: usize }
}

impl Input {
    pub fn new(name: impl Into<String>, ty: &TensorType) -> Input {
        Input { name: name.into(), dtype: ty.dtype.name().into(), shape: ty.shape.to_vec() }
    }
}

impl Var {
    pub fn new(name: impl Into<String>, ty: &TensorType) -> Var {
        Var { name: name.into(), dtype: ty.dtype.name().into(), shape: ty.shape.to_vec() }
    }
}

macro_rules! leaf {
    ($ty:ident, $self:ident => $infer:expr, $bounds:expr) => {
        impl OpDef for $ty {
            fn infer(&$self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
                signature(x, "")?;
                $infer
            }
            fn class(&self) -> NumericClass {
                NumericClass::Leaf
            }
            fn lowering(&self) -> Lowering {
                Lowering::Leaf
            }
            fn stored_f32(&self, _: usize) -> Option<&'static str> {
                Some("stored in f32 as it arrives")
            }
            fn bounds(&$self, _: &Known) -> Bounds {
                $bounds
            }
            fn gradient(&self, _: &mut GradCx) -> Result<Grads, String> {
                Ok(vec![])
            }
        }
    };
}
leaf!(Input, self => Ok(vec![TensorType::new(self.dtype.parse()?, self.shape.clone())]), Bounds::ALL);
leaf!(Var, self => Ok(vec![TensorType::new(self.dtype.parse()?, self.shape.clone())]), Bounds::ALL);
leaf!(Const, self => Ok(vec![self.data.ty()]), Bounds::around(self.data.f32s().unwrap_or_default().into_iter().map(f64::from)));

impl OpDef for Iota {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "")?;
        if self.axis >= self.shape.len() {
            return Err(format!("axis {} of rank {}", self.axis, self.shape.len()));
        }
        Ok(vec![TensorType::new(DType::I32, self.shape.clone())])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Leaf
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn gradient(&self, _: &mut GradCx) -> Result<Grads, String> {
        Ok(vec![])
    }
    fn row_spec(&self, _: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        RowSpec::elementwise(0, y)
    }
    fn emit(&self, b: &mut ProgramBuilder, _: &[Reg]) -> Vec<Reg> {
        vec![b.index(self.axis)]
    }
}
