//! Dropout; its own gradient, since the mask is recomputed.

use super::{
    GradCx, Grads, Linear, Lowering, NumericClass, OpDef, ProgramBuilder, RowSpec, signature,
};
use crate::ir::{Real, TensorType};
use precast_plan::{BinaryOp, Instr, Reg};

op! {
    /// `x / (1 − p)` where a Philox uniform is at least `p`, else 0. Operands: x, seed (int
    /// scalar), step (int scalar). `stream` tells the layers apart. Keeps the element order of x:
    /// its program is never run over a permuted space, so the mask is the same wherever it is
    /// recomputed.
    Dropout = "dropout" { p: Real, stream: u32 }
}

impl OpDef for Dropout {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "rii")?;
        if !(0.0..1.0).contains(&self.p.0) {
            return Err(format!("the probability is {}, not in [0, 1)", self.p.0));
        }
        if x[1].shape.rank() + x[2].shape.rank() != 0 {
            return Err("seed and step are scalars".into());
        }
        Ok(vec![TensorType::f32(x[0].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Pointwise
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[0])
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (seed, step, dy) = (cx.x(1), cx.x(2), cx.only_dy(0)?);
        Ok(vec![Some(cx.op(self.clone(), &[dy, seed, step])), None, None])
    }
    fn row_spec(&self, _: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        let mut spec = RowSpec::elementwise(3, y);
        spec.inputs[1] = vec![];
        spec.inputs[2] = vec![];
        spec
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let u = b.push(Instr::Uniform { seed: x[1], step: x[2], stream: self.stream });
        let p = b.real(self.p.0);
        let dropped = b.bin(BinaryOp::Lt, u, p);
        let kept = b.scale(x[0], 1.0 / (1.0 - self.p.0));
        let zero = b.real(0.0);
        vec![b.select(dropped, zero, kept)]
    }
}
