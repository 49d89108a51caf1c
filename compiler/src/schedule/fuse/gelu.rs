//! The derivative of a GELU in the product that makes its cotangent, where a vendor's library has that
//! epilogue: the cotangent of the activation is never stored, and a kernel is not started.

use super::{Fuser, Group, over_product};
use crate::ops::activation::Act;
use crate::ops::matmul::Fused;
use crate::ops::{ActivateGrad, MatMul, Op};
use crate::schedule::affine::Access;
use crate::schedule::items::{Body, Read};
use precast_plan::DType;

/// Rows of what the library reads beside the sums begin at multiples of this many elements
/// (`CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD`).
const ALIGNED: i64 = 8;

impl Fuser<'_> {
    /// Lets products in 16 bits end in the derivative of a GELU by tanh.
    ///
    /// It is taken where it saves something in every schedule: another kernel needs the gradient in
    /// memory anyway, so that the cotangent's write and reads are saved, and at most one row program
    /// reads it. Two might have shared one kernel with the derivative, and become two without it.
    pub(super) fn gelu_gradients(&mut self) {
        for product in 0..self.items.items.len() {
            let Some(gradient) = self.gelu_gradient(product) else { continue };
            let (a, b) = (self.group_of(product), self.group_of(gradient));
            let Some(merged) = self.try_merge(a, b) else { continue };
            if merged.group().is_some_and(|g| self.ends_in_gradient(product, g)) {
                self.merge(a, b, merged);
                self.groups[a].as_mut().expect("a merged group").gelu_gradient = true;
            }
        }
    }

    /// The derivative that alone reads a product, and whose result a kernel reads from memory.
    fn gelu_gradient(&self, product: usize) -> Option<usize> {
        let item = &self.items.items[product];
        let Body::Product { op: Op::MatMul(m), .. } = &item.body else { return None };
        if !matches!(m, MatMul { fused: Fused::None, scaled: false, .. }) {
            return None;
        }
        let cotangent = item.writes[0].value;
        let &[gradient] = self.readers[cotangent].as_slice() else { return None };
        let item = &self.items.items[gradient];
        let Body::Rows(Op::ActivateGrad(ActivateGrad { act: Act::GeluTanh })) = item.body else {
            return None;
        };
        let reads = |k: usize| matches!(&item.reads[k], Read::At(a) if a.value == cotangent);
        if reads(0) || !reads(1) {
            return None;
        }
        let result = item.writes[0].value;
        let in_memory = |&r: &usize| match &self.items.items[r].body {
            Body::Product { operands, .. } | Body::Kernel { operands, .. } => {
                operands.iter().any(|o| o.0 == result)
            }
            _ => false,
        };
        let (memory, rows): (Vec<usize>, Vec<usize>) =
            self.readers[result].iter().copied().partition(in_memory);
        (!memory.is_empty() && rows.len() <= 1).then_some(gradient)
    }

    /// Whether the library runs a product with this epilogue: everything in one 16-bit format, and
    /// the operand of the GELU in the order of the result.
    fn ends_in_gradient(&self, product: usize, g: &Group) -> bool {
        let item = &self.items.items[product];
        let (Ok(built), Body::Product { operands, .. }) = (self.build(g), &item.body) else {
            return false;
        };
        let ([x], [y]) = (&built.inputs[..], &built.outputs[..]) else { return false };
        let format = |value: usize| self.items.values[value].dtype;
        let half = format(y.value);
        let formats = [x.value, operands[0].0, operands[1].0];
        if !matches!(half, DType::F16 | DType::Bf16) || formats.iter().any(|&v| format(v) != half) {
            return false;
        }
        let physical = |a: &Access| {
            let p = self.items.physical(a, &g.dims)?;
            Some((p.offset, over_product(&g.dims, &p, &item.dims)?))
        };
        let (Some(x), Some(y)) = (physical(x), physical(y)) else { return false };
        let rank = item.dims.len();
        let wide = |d: &usize| item.dims[*d] > 1;
        let aligned = |s: i64| s % ALIGNED == 0;
        // Dense along one axis of the matrix.
        let lines = |inner: usize, outer: usize| {
            let n = item.dims[inner] as i64;
            let line = if wide(&outer) { y.1[outer] } else { n };
            (y.1[inner] == 1 || n == 1) && line >= n && aligned(line)
        };
        (0..rank).filter(wide).all(|d| x.1[d] == y.1[d])
            && (0..rank - 2).filter(wide).all(|d| aligned(y.1[d]))
            && aligned(x.0)
            && aligned(y.0)
            && (lines(rank - 1, rank - 2) || lines(rank - 2, rank - 1))
    }
}
