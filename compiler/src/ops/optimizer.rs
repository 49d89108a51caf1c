//! Optimizer updates of one master weight. All scalars are rank 0; nothing changes where `apply`
//! is false, so a skipped step leaves no trace. `factor` is what the stored gradient is multiplied
//! by first: inverse loss scale times clip coefficient.

use super::{Lowering, NumericClass, OpDef, ProgramBuilder, RowSpec, same_shape, signature};
use crate::ir::{Real, TensorType};
use precast_plan::{Reg, UnaryOp};

op! {
    /// (w, v, g, lr, factor, apply) → (w', v'); without momentum (w, g, lr, factor, apply) → w'.
    /// PyTorch's SGD: `g += decay·w; v' = momentum·v + g; w' = w − lr·(nesterov ? g + momentum·v' : v')`.
    SgdUpdate = "sgd_update" { momentum: Real, nesterov: bool, weight_decay: Real }
}
op! {
    /// (w, m, v, g, lr, factor, apply, c1, c2) → (w', m', v'), where c1 = 1 − β1^t and
    /// c2 = 1 − β2^t: Adam (Kingma & Ba, 2015), or AdamW (Loshchilov & Hutter, 2019) where
    /// `decoupled`; both in PyTorch's order of operations.
    AdamUpdate = "adam_update" {
        beta1: Real, beta2: Real, eps: Real, weight_decay: Real, decoupled: bool,
    }
}
op! {
    /// (ema, w', apply) → ema + (1 − decay)(w' − ema).
    EmaUpdate = "ema_update" { decay: Real }
}

/// The first `tensors` operands have one shape, the others are scalars.
fn check(x: &[&TensorType], kinds: &str, tensors: usize) -> Result<(), String> {
    signature(x, kinds)?;
    same_shape(&x[..tensors])?;
    match x[tensors..].iter().find(|t| t.shape.rank() != 0) {
        Some(t) => Err(format!("{t} is not a scalar")),
        None => Ok(()),
    }
}

fn spec(y: &[&TensorType], tensors: usize, scalars: usize) -> RowSpec {
    let mut spec = RowSpec::elementwise(tensors + scalars, y);
    for map in &mut spec.inputs[tensors..] {
        map.clear();
    }
    spec
}

macro_rules! update_op {
    ($ty:ident, |$self:ident| ($kinds:expr, $tensors:expr, $results:expr), |$s:ident, $b:ident, $x:ident| $emit:block) => {
        impl OpDef for $ty {
            fn infer(&$self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
                check(x, $kinds, $tensors)?;
                Ok(vec![TensorType::f32(x[0].shape.clone()); $results])
            }
            fn class(&self) -> NumericClass {
                NumericClass::State
            }
            fn lowering(&self) -> Lowering {
                Lowering::Rows
            }
            fn row_spec(&$self, x: &[&TensorType], y: &[&TensorType]) -> RowSpec {
                let tensors = $tensors;
                spec(y, tensors, x.len() - tensors)
            }
            fn emit(&self, $b: &mut ProgramBuilder, $x: &[Reg]) -> Vec<Reg> {
                let $s = self;
                $emit
            }
        }
    };
}

update_op!(
    SgdUpdate,
    |self| (
        if self.momentum.0 == 0.0 { "rrrrb" } else { "rrrrrb" },
        if self.momentum.0 == 0.0 { 2 } else { 3 },
        if self.momentum.0 == 0.0 { 1 } else { 2 }
    ),
    |s, b, x| {
        let plain = s.momentum.0 == 0.0;
        let (w, scalars) = (x[0], &x[if plain { 1 } else { 2 }..]);
        let (g, lr, factor, apply) = (scalars[0], scalars[1], scalars[2], scalars[3]);
        let mut g = b.mul(g, factor);
        if s.weight_decay.0 != 0.0 {
            let d = b.scale(w, s.weight_decay.0);
            g = b.add(g, d);
        }
        if plain {
            let step = b.mul(g, lr);
            let next = b.sub(w, step);
            return vec![b.select(apply, next, w)];
        }
        let kept = b.scale(x[1], s.momentum.0);
        let v = b.add(kept, g);
        let direction = if s.nesterov {
            let t = b.scale(v, s.momentum.0);
            b.add(g, t)
        } else {
            v
        };
        let step = b.mul(direction, lr);
        let next = b.sub(w, step);
        vec![b.select(apply, next, w), b.select(apply, v, x[1])]
    }
);

update_op!(AdamUpdate, |self| ("rrrrrrbrr", 4, 3), |s, b, x| {
    let &[w, m, v, g, lr, factor, apply, c1, c2] = x else { panic!("operands were checked") };
    let mut g = b.mul(g, factor);
    let mut start = w;
    if s.weight_decay.0 != 0.0 {
        if s.decoupled {
            let d = b.scale(lr, s.weight_decay.0);
            let one = b.real(1.0);
            let keep = b.sub(one, d);
            start = b.mul(w, keep);
        } else {
            let d = b.scale(w, s.weight_decay.0);
            g = b.add(g, d);
        }
    }
    // m + (1−β1)(g − m), as torch.lerp.
    let d = b.sub(g, m);
    let d = b.scale(d, 1.0 - s.beta1.0);
    let m1 = b.add(m, d);
    let gg = b.mul(g, g);
    let gg = b.scale(gg, 1.0 - s.beta2.0);
    let kept = b.scale(v, s.beta2.0);
    let v1 = b.add(kept, gg);
    let root = b.un(UnaryOp::Sqrt, v1);
    let c = b.un(UnaryOp::Rsqrt, c2);
    let root = b.mul(root, c);
    let eps = b.real(s.eps.0);
    let denominator = b.add(root, eps);
    let rate = b.div(lr, c1);
    let q = b.div(m1, denominator);
    let step = b.mul(q, rate);
    let next = b.sub(start, step);
    vec![b.select(apply, next, w), b.select(apply, m1, m), b.select(apply, v1, v)]
});

update_op!(EmaUpdate, |self| ("rrb", 2, 1), |s, b, x| {
    let d = b.sub(x[1], x[0]);
    let d = b.scale(d, 1.0 - s.decay.0);
    let next = b.add(x[0], d);
    vec![b.select(x[2], next, x[0])]
});
