//! Products that are added to what stands where they go: gradients of several batches, in a library's
//! product.

use super::super::items::{Body, Item, Items, Read, Source};
use super::super::program::{Built, still};
use super::{Fuser, over_product};
use crate::ops::{Binary, MatMul, Op};
use precast_plan::{BinaryOp, DType, Instr};

impl Fuser<'_> {
    /// Lets products that only store be added to what an f32 variable holds, where it stands.
    pub(super) fn accumulations(&mut self) {
        let items = self.items;
        for (i, item) in items.items.iter().enumerate() {
            let at = self.group_of(i);
            if self.group(at).product != Some(i) {
                continue;
            }
            for j in self.consumers(at) {
                let &[only] = &self.group(j).items[..] else { continue };
                if !adds_to_variable(items, only) {
                    continue;
                }
                let Some(merged) = self.try_merge(at, j) else { continue };
                let in_place = merged
                    .group()
                    .is_some_and(|g| self.build(g).is_ok_and(|b| adds_in_place(item, &g.dims, &b)));
                if in_place {
                    self.merge(at, j, merged);
                    break;
                }
            }
        }
    }
}

/// Whether an item adds something to what an f32 variable held.
pub fn adds_to_variable(items: &Items, i: usize) -> bool {
    let item = &items.items[i];
    let Body::Rows(Op::Binary(Binary { f: BinaryOp::Add })) = item.body else { return false };
    let [w] = &item.writes[..] else { return false };
    let value = &items.values[w.value];
    let Some(var) = &value.updates else { return false };
    let old = |r: &Read| match r {
        Read::At(a) => items.values[a.value].source == Source::Var(var.clone()),
        Read::Literal(_) => false,
    };
    value.dtype == DType::F32 && item.reads.iter().filter(|r| old(r)).count() == 1
}

/// Whether a product's program does nothing but add its sums, times their factor, to what lies where
/// the result goes. A library's product takes a result that is turned; its convolutions know one
/// order of all their tensors, so that the result must lie as the convolution would store it.
fn adds_in_place(product: &Item, dims: &[usize], built: &Built) -> bool {
    let ([.., last], [y], [w]) = (&built.program.code[..], &built.outputs[..], &product.writes[..])
    else {
        return false;
    };
    let others = built.program.code.iter().filter(|i| !matches!(i, Instr::Load { .. })).count();
    let (multiplies, scaled) = match &product.body {
        Body::Product { op: Op::MatMul(MatMul { scaled, .. }), .. } => (true, *scaled),
        _ => (false, false),
    };
    let order = |strides: Option<Vec<i64>>| {
        strides.map(|mut s| {
            still(&mut s, &product.dims);
            s
        })
    };
    let lies =
        multiplies || order(over_product(dims, y, &product.dims)) == order(Some(w.strides.clone()));
    matches!(last, Instr::Binary(BinaryOp::Add, ..)) && others == 1 + usize::from(scaled) && lies
}
