//! Scaled dot-product attention without a stored score matrix (Dao et al., 2022).

use super::{GradCx, Grads, Linear, Lowering, NumericClass, OpDef, fits, signature};
use crate::ir::{Real, Shape, TensorType};
use precast_plan::Kind;

op! {
    /// (q [b,h,tq,d], k [b,h,tk,d], v [b,h,tk,d], mask [b,h,tq,tk] if `masked`) →
    /// (o [b,h,tq,d], lse [b,h,tq], low [b,h,tq]): `softmax(s) v`, where s is `scale · q kᵀ`. A mask of
    /// reals is added to s; a mask of bools puts `fill` in the place of every score that it is false at.
    /// `causal`: query i sees keys j ≤ i + tk − tq.
    ///
    /// `lse + low` is the logarithm of the softmax's denominator, `log Σ exp s`, unevaluated: lse the
    /// nearest number of its format and low the rest, without which the probabilities of a row of
    /// large scores could not be found again. A row that has no key, since all its scores are −∞, is
    /// NaN as softmax is, and 0 with lse = −∞ where attention is `safe`.
    Attention = "attention" { scale: Real, causal: bool, masked: bool } or { fill: Real, safe: bool }
}
op! {
    /// (q, k, v, mask if `masked`, o, lse, low, do) → (dq, dk, dv). A row of `do` that is 0 adds
    /// nothing, whatever the row's probabilities are.
    AttentionGrad = "attention_grad" { scale: Real, causal: bool, masked: bool } or { fill: Real, safe: bool }
}

impl AttentionGrad {
    /// What it is the gradient of.
    pub fn forward(&self) -> Attention {
        let &AttentionGrad { scale, causal, masked, fill, safe } = self;
        Attention { scale, causal, masked, fill, safe }
    }
}

/// The most negative f32 is the mask of many models, and infinite in 16 bits: a row of it would have no
/// keys instead of all alike.
const MASK_F32: &[(usize, &str)] =
    &[(3, "a mask is f32: its large numbers are infinite in 16 bits")];

/// Checks counts and kinds: queries, keys, values, a mask where there is one, and `more` reals.
fn kinds(x: &[&TensorType], masked: bool, more: usize) -> Result<(), String> {
    let mut want = "r".repeat(3 + usize::from(masked) + more);
    if masked && x.get(3).is_some_and(|m| m.kind() == Kind::Bool) {
        fits(x[3])?;
        want.replace_range(3..4, "b");
    }
    signature(x, &want)
}

fn check(x: &[&TensorType], masked: bool) -> Result<(Shape, Shape), String> {
    let (q, k, v) = (&x[0].shape, &x[1].shape, &x[2].shape);
    if q.rank() != 4
        || k.rank() != 4
        || k != v
        || q[..2] != k[..2]
        || q[3] != k[3]
        || q.elements() == 0
        || k.elements() == 0
    {
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
        kinds(x, self.masked, 0)?;
        if self.fill.0.is_nan() || self.fill.0 == f64::INFINITY {
            return Err(format!("scores cannot be filled with {}", self.fill.0));
        }
        let (o, lse) = check(x, self.masked)?;
        if self.causal && x[0].shape[2] > x[1].shape[2] {
            return Err("a causal query longer than the keys has rows that see nothing".into());
        }
        Ok(vec![TensorType::f32(o), TensorType::f32(lse.clone()), TensorType::f32(lse)])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Product
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn reads_f32(&self) -> &'static [(usize, &'static str)] {
        if self.masked { MASK_F32 } else { &[] }
    }
    fn stored_f32(&self, result: usize) -> Option<&'static str> {
        (result > 0).then_some("a statistic is f32")
    }
    fn any_strides(&self) -> bool {
        true
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let &Attention { scale, causal, masked, fill, safe } = self;
        let n = cx.arity();
        let mut inputs: Vec<_> = (0..n).map(|i| cx.x(i)).collect();
        inputs.extend([cx.y(0), cx.y(1), cx.y(2), cx.only_dy(0)?]);
        let d = cx.all(AttentionGrad { scale, causal, masked, fill, safe }, &inputs);
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
        kinds(x, self.masked, 4)?;
        let (o, lse) = check(x, self.masked)?;
        let n = x.len();
        if [n - 4, n - 1].iter().any(|&i| x[i].shape != o)
            || [n - 3, n - 2].iter().any(|&i| x[i].shape != lse)
        {
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
    fn reads_f32(&self) -> &'static [(usize, &'static str)] {
        if self.masked { MASK_F32 } else { &[] }
    }
    fn any_strides(&self) -> bool {
        true
    }
    fn linear(&self) -> Linear {
        if self.masked { Linear::Each(&[7]) } else { Linear::Each(&[6]) }
    }
    fn flops(&self, x: &[&TensorType], _: &[&TensorType]) -> f64 {
        2.5 * attention_flops(x, self.causal)
    }
}
