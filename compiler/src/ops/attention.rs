//! Scaled dot-product attention without a stored score matrix (Dao et al., 2022).

use super::{GradCx, Grads, Linear, Lowering, NumericClass, OpDef, signature};
use crate::ir::{Real, Shape, TensorType};

op! {
    /// (q [b,h,tq,d], k [b,h,tk,d], v [b,h,tk,d], mask [b,h,tq,tk] if `masked`) →
    /// (o [b,h,tq,d], lse [b,h,tq]): `softmax(scale · q kᵀ + mask) v`. `causal`: query i sees keys
    /// j ≤ i + tk − tq.
    Attention = "attention" { scale: Real, causal: bool, masked: bool }
}
op! {
    /// (q, k, v, mask if `masked`, o, lse, do) → (dq, dk, dv).
    AttentionGrad = "attention_grad" { scale: Real, causal: bool, masked: bool }
}

fn check(x: &[&TensorType], masked: bool) -> Result<(Shape, Shape), String> {
    let (q, k, v) = (&x[0].shape, &x[1].shape, &x[2].shape);
    if q.rank() != 4 || k.rank() != 4 || k != v || q[..2] != k[..2] || q[3] != k[3] || q.elements() == 0 || k.elements() == 0 {
        return Err(format!("{}, {}, {} are not a query, keys and values", x[0], x[1], x[2]));
    }
    if masked && x[3].shape[..] != [q[0], q[1], q[2], k[2]] {
        return Err(format!("the mask is {}, not [{},{},{},{}]", x[3], q[0], q[1], q[2], k[2]));
    }
    Ok((q.clone(), Shape::new(&q[..3])))
}

fn attention_flops(x: &[&TensorType], causal: bool) -> f64 {
    let (q, k) = (&x[0].shape, &x[1].shape);
    let full = 4.0 * q.elements() as f64 * k[2] as f64;
    if causal { full / 2.0 } else { full }
}

impl OpDef for Attention {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, if self.masked { "rrrr" } else { "rrr" })?;
        let (o, lse) = check(x, self.masked)?;
        if self.causal && x[0].shape[2] > x[1].shape[2] {
            return Err("a causal query longer than the keys has rows that see nothing".into());
        }
        Ok(vec![TensorType::f32(o), TensorType::f32(lse)])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Product
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let &Attention { scale, causal, masked } = self;
        let n = cx.arity();
        let mut inputs: Vec<_> = (0..n).map(|i| cx.x(i)).collect();
        inputs.extend([cx.y(0), cx.y(1), cx.only_dy(0)?]);
        let d = cx.all(AttentionGrad { scale, causal, masked }, &inputs);
        let mut grads: Grads = d.into_iter().map(Some).collect();
        // The mask is data; a learned bias must stay an addition to the scores.
        grads.resize(n, None);
        Ok(grads)
    }
    fn flops(&self, x: &[&TensorType], _: &[&TensorType]) -> f64 {
        attention_flops(x, self.causal)
    }
}

impl OpDef for AttentionGrad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, if self.masked { "rrrrrrr" } else { "rrrrrr" })?;
        let (o, lse) = check(x, self.masked)?;
        let n = x.len();
        if x[n - 3].shape != o || x[n - 1].shape != o || x[n - 2].shape != lse {
            return Err(format!("{x:?} are not an attention's operands, results and cotangent"));
        }
        Ok(x[..3].iter().map(|t| TensorType::f32(t.shape.clone())).collect())
    }
    fn class(&self) -> NumericClass {
        NumericClass::Product
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn linear(&self) -> Linear {
        if self.masked { Linear::Each(&[6]) } else { Linear::Each(&[5]) }
    }
    fn flops(&self, x: &[&TensorType], _: &[&TensorType]) -> f64 {
        2.5 * attention_flops(x, self.causal)
    }
}
