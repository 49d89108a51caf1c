//! Softmax cross-entropy against class indices.

use super::{
    GradCx, Grads, Linear, Lowering, NumericClass, OpDef, ProgramBuilder, RowSpec, signature,
};
use crate::ir::{Real, TensorType};
use precast_plan::{BinaryOp, Reg, UnaryOp};

op! {
    /// (logits […,v], targets […] int) → (loss […], m […], l […]): m the largest logit and
    /// `l = log Σ exp(x − m)`; with label smoothing ε, `loss = m + l − (1−ε) x_t − ε mean(x)`, and 0
    /// where the target is `ignore_index` (l has no meaning there).
    CrossEntropy = "cross_entropy" { ignore_index: i64, label_smoothing: Real }
}
op! {
    /// (logits, targets, m, l, dloss […]) → dlogits.
    CrossEntropyGrad = "cross_entropy_grad" { ignore_index: i64, label_smoothing: Real }
}

fn check(x: &[&TensorType], ignore: i64) -> Result<TensorType, String> {
    let Some((&classes, rows)) = x[0].shape.split_last() else {
        return Err("logits are a scalar".into());
    };
    if x[1].shape[..] != *rows || classes == 0 {
        return Err(format!("targets {} are not one class for each row of {}", x[1], x[0]));
    }
    if i32::try_from(ignore).is_err() {
        return Err(format!("ignore_index {ignore} does not fit 32 bits"));
    }
    Ok(TensorType::f32(rows.to_vec()))
}

fn spec(x: &[&TensorType], rows_in: usize, outputs: Vec<Vec<usize>>) -> RowSpec {
    let rank = x[0].shape.rank();
    let mut spec = RowSpec::last_axis(&x[0].shape, 1 + rows_in, 0);
    for map in &mut spec.inputs[1..] {
        map.truncate(rank - 1);
    }
    spec.outputs = outputs;
    spec
}

impl OpDef for CrossEntropy {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "ri")?;
        let row = check(x, self.ignore_index)?;
        Ok(vec![row.clone(), row.clone(), row])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn compares(&self) -> &'static [usize] {
        &[0]
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let (x, t, max, log, dy) = (cx.x(0), cx.x(1), cx.y(1), cx.y(2), cx.only_dy(0)?);
        let &CrossEntropy { ignore_index, label_smoothing } = self;
        let grad = CrossEntropyGrad { ignore_index, label_smoothing };
        Ok(vec![Some(cx.op(grad, &[x, t, max, log, dy])), None])
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        let rows: Vec<usize> = (0..x[0].shape.rank() - 1).collect();
        spec(x, 1, vec![rows.clone(), rows.clone(), rows])
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let max = b.max_over(x[0]);
        let c = b.sub(x[0], max);
        let e = b.un(UnaryOp::Exp, c);
        let axis = b.last_axis;
        let at = b.index(axis);
        let hit = b.bin(BinaryOp::Eq, at, x[1]);
        let zero = b.real(0.0);
        let picked = b.select(hit, c, zero);
        let picked = b.sum(picked);
        // The target's exponential is added after the others: where it is the largest, it is 1, and
        // log1p keeps what little the others are.
        let others = b.select(hit, zero, e);
        let others = b.sum(others);
        let own = b.un(UnaryOp::Exp, picked);
        let whole = b.add(others, own);
        let log = b.un(UnaryOp::Log, whole);
        let near = b.un(UnaryOp::Log1p, others);
        let largest = b.bin(BinaryOp::Eq, picked, zero);
        let log = b.select(largest, near, log);
        // Centred by the maximum like the logarithm of the sum, so that nothing large cancels.
        let eps = self.label_smoothing.0;
        let mut loss = b.scale(picked, 1.0 - eps);
        if eps != 0.0 {
            let all = b.sum(c);
            let n = b.ones_over_count();
            let mean = b.mul(all, n);
            let t = b.scale(mean, eps);
            loss = b.add(loss, t);
        }
        let loss = b.sub(log, loss);
        let ignore = b.int(self.ignore_index as i32);
        let ignored = b.bin(BinaryOp::Eq, x[1], ignore);
        vec![b.select(ignored, zero, loss), max, log]
    }
}

impl OpDef for CrossEntropyGrad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "rirrr")?;
        let row = check(x, self.ignore_index)?;
        if let Some(t) = x[2..].iter().find(|t| t.shape != row.shape) {
            return Err(format!("{t} is not one number a row"));
        }
        Ok(vec![TensorType::f32(x[0].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Sensitive
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[4])
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        let mut s = spec(x, 4, vec![(0..x[0].shape.rank()).collect()]);
        // Nothing is reduced: the rows may run together with other elementwise work.
        s.reduced = 0;
        s
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        let c = b.sub(x[0], x[2]);
        let c = b.sub(c, x[3]);
        let p = b.un(UnaryOp::Exp, c);
        let axis = b.last_axis;
        let at = b.index(axis);
        let hit = b.bin(BinaryOp::Eq, at, x[1]);
        let (zero, eps) = (b.real(0.0), self.label_smoothing.0);
        // p − 1 of the target vanishes with confidence, so it is not a difference.
        let mut own = b.un(UnaryOp::Expm1, c);
        if eps != 0.0 {
            let eps = b.real(eps);
            own = b.add(own, eps);
        }
        let mut d = b.select(hit, own, p);
        if eps != 0.0 {
            let n = b.last_extent as f64;
            let share = b.real(eps / n);
            d = b.sub(d, share);
        }
        let d = b.mul(d, x[4]);
        let ignore = b.int(self.ignore_index as i32);
        let ignored = b.bin(BinaryOp::Eq, x[1], ignore);
        vec![b.select(ignored, zero, d)]
    }
}
