//! Dropout; its own gradient, since the mask is recomputed.

use super::{
    Binary, Const, GradCx, Grads, Linear, Lowering, NumericClass, Op, OpDef, ProgramBuilder,
    RowSpec, Var, signature,
};
use crate::ir::{
    ConstData, Graph, Real, Region, Result_, TensorType, ValueId, Var as IrVar, VarInit, VarRole,
};
use precast_plan::{BinaryOp, DType, Instr, Reg};

op! {
    /// `x / (1 − p)` where a Philox uniform is at least `p`, else 0. Operands: x, seed (int
    /// scalar), step (int scalar). `stream` tells the layers apart. Keeps the element order of x:
    /// its program is never run over a permuted space, so the mask is the same wherever it is
    /// recomputed.
    Dropout = "dropout" { p: Real, stream: u32 }
}

/// The variable that holds the seed of all masks, i32 scalar.
pub const SEED_VAR: &str = "machine.seed";
/// The variable that counts batches, i32 scalar: every batch has its own masks.
pub const BATCH_VAR: &str = "machine.batch";

/// The key of the masks: reads of [`SEED_VAR`] and [`BATCH_VAR`], declared (and the counter
/// advanced) at the first call.
///
/// # Errors
/// The name of the two that a variable of the model has.
pub fn key(g: &mut Graph) -> Result<(ValueId, ValueId), &'static str> {
    for name in [SEED_VAR, BATCH_VAR] {
        if g.vars.get(name).is_some_and(|v| v.role != VarRole::Machine) {
            return Err(name);
        }
    }
    let ty = TensorType::new(DType::I32, []);
    let mut read = |name: &str| {
        let found = g.nodes().find_map(|(_, n)| match &n.op {
            Op::Var(v) if v.name == name => Some(n.outputs[0]),
            _ => None,
        });
        found.unwrap_or_else(|| {
            let init = VarInit::Value(0.0);
            g.vars.insert(name.into(), IrVar { ty: ty.clone(), role: VarRole::Machine, init });
            let inputs = &[];
            let v = g.try_add(Var::new(name, &ty), inputs, name, Region::Forward);
            v.expect("a variable read takes no operands")[0]
        })
    };
    let (seed, batch) = (read(SEED_VAR), read(BATCH_VAR));
    if g.update_of(BATCH_VAR).is_none() {
        let mut add = |op: Op, x: &[ValueId], name: &str| {
            g.try_add(op, x, format!("{BATCH_VAR}.{name}"), Region::Forward)
                .expect("adding two integers")[0]
        };
        let data = ConstData::from_i32([], &[1]);
        let one = add(Const { data }.into(), &[], "one");
        let next = add(Binary { f: BinaryOp::Add }.into(), &[batch, one], "next");
        g.updates.push(Result_ { name: BATCH_VAR.into(), value: next });
    }
    Ok((seed, batch))
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
