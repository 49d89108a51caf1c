//! `where`.

use super::{
    Binary, Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, ProgramBuilder,
    RowSpec, same_shape, signature,
};
use crate::ir::TensorType;
use precast_plan::{BinaryOp, DType, Kind, Reg};

op! {
    /// `cond ? a : b`, elementwise; equal shapes.
    Select = "select" {}
}

impl OpDef for Select {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "b..")?;
        same_shape(x)?;
        if x[1].kind() != x[2].kind() {
            return Err(format!("branches are {} and {}", x[1], x[2]));
        }
        let dtype = match x[1].kind() {
            Kind::Real => DType::F32,
            Kind::Int => DType::I32,
            Kind::Bool => DType::Bool,
        };
        Ok(vec![TensorType::new(dtype, x[1].shape.clone())])
    }

    fn class(&self) -> NumericClass {
        NumericClass::Movement
    }

    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }

    /// In both branches; the condition is not a real.
    fn linear(&self) -> Linear {
        Linear::All
    }

    fn bounds(&self, k: &Known) -> Bounds {
        let (a, b) = (k.x(1), k.x(2));
        // `x < y ? x : y` is a minimum, `x < y ? y : x` a maximum.
        if let super::Op::Binary(Binary { f: BinaryOp::Lt | BinaryOp::Le }) = k.def(0).op
            && let [x, y] = k.def(0).inputs[..]
        {
            let (first, second) = (k.node.inputs[1], k.node.inputs[2]);
            if k.equal(x, first) && k.equal(y, second) {
                return a.min(b);
            }
            if k.equal(x, second) && k.equal(y, first) {
                return a.max(b);
            }
        }
        a.hull(b)
    }

    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (cond, dy) = (cx.x(0), cx.only_dy(0)?);
        let zero = cx.full(0.0, &cx.shape(dy));
        let da = cx.op(Select {}, &[cond, dy, zero]);
        let db = cx.op(Select {}, &[cond, zero, dy]);
        Ok(vec![None, Some(da), Some(db)])
    }

    fn row_spec(&self, _: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        RowSpec::elementwise(3, y)
    }

    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        vec![b.select(x[0], x[1], x[2])]
    }
}
