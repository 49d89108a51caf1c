//! Attention and its gradient.

use super::Bind;
use crate::ir::view::View;
use crate::ops;
use precast_plan::{Access, Attention, AttentionGrad, DType, Kernel};

/// Operands of a kernel: a stored value and how it is seen.
type Operands = [(usize, View)];

impl Bind<'_> {
    pub(super) fn attention(
        &self,
        op: &ops::Attention,
        operands: &Operands,
        results: [Access; 3],
    ) -> Kernel {
        Kernel::Attention(self.call(op, operands, results))
    }

    pub(super) fn attention_grad(
        &self,
        op: &ops::AttentionGrad,
        operands: &Operands,
        [d_q, d_k, d_v]: [Access; 3],
    ) -> Kernel {
        let n = operands.len();
        let results = [n - 4, n - 3, n - 2].map(|i| self.view(&operands[i]));
        let forward = self.call(&op.forward(), operands, results);
        let d_o = self.view(&operands[n - 1]);
        Kernel::AttentionGrad(AttentionGrad { forward, d_o, d_q, d_k, d_v })
    }

    fn call(
        &self,
        op: &ops::Attention,
        operands: &Operands,
        [o, lse, low]: [Access; 3],
    ) -> Attention {
        let shape = |k: usize| -> [u64; 4] { [0, 1, 2, 3].map(|d| operands[k].1.shape[d] as u64) };
        let ([batch, heads, tq, d], [_, _, tk, _]) = (shape(0), shape(1));
        let mask = operands.get(3).filter(|_| op.masked);
        // Bools choose between a score and a number; reals are added.
        let chosen = mask.is_some_and(|(v, _)| self.s.items.values[*v].dtype == DType::Bool);
        Attention {
            batch,
            heads,
            tq,
            tk,
            d,
            scale: op.scale.0 as f32,
            causal: op.causal,
            mask: mask.map(|m| self.view(m)),
            fill: Some(op.fill.0 as f32).filter(|f| chosen && f.is_finite()),
            safe: op.safe,
            q: self.view(&operands[0]),
            k: self.view(&operands[1]),
            v: self.view(&operands[2]),
            o,
            lse,
            low,
        }
    }
}
