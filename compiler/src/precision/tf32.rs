//! TF32: f32 operands of a product rounded to ten stored significand bits on their way into the
//! tensor cores, sums in f32. Nothing is stored in another format and no cast is made, so the
//! choice is one product's alone: the cut takes the cheaper price of an f32 product, and this pass
//! writes down which of the two it was.

use super::Choices;
use crate::cost::Prices;
use crate::ir::{Graph, NodeId};
use crate::ops::NumericClass;
use precast_plan::{DType, Math, Precision};
use std::collections::{BTreeMap, BTreeSet};

/// Why a pinned product stays exact.
const PINNED: &str = "pinned to f32, which is exact";

/// Lets products of a graph with formats round their f32 operands, but for those of `exact`, by
/// name: where that is cheaper, or everywhere with `all`.
pub fn mark(g: &mut Graph, exact: &BTreeSet<String>, prices: &Prices, all: bool) -> Choices {
    let mut choices = Choices::default();
    if !all && !prices.target.multiplies(Precision::Tf32) {
        return choices;
    }
    let mut marked = BTreeMap::new();
    for (id, n) in g.nodes().filter(|(_, n)| n.op.class() == NumericClass::Product) {
        let x: Vec<_> = n.inputs.iter().map(|&v| g.ty(v)).collect();
        let y: Vec<_> = n.outputs.iter().map(|&v| g.ty(v)).collect();
        if x[..2].iter().any(|t| t.dtype != DType::F32) {
            continue;
        }
        let refuse = |why: &str| Some((n.name.clone(), why.to_string()));
        let slower = prices.multiply(&n.op, &x, &y, Precision::F32);
        let faster = prices.multiply(&n.op, &x, &y, Precision::Tf32);
        let gain = slower.zip(faster).map(|(s, f)| s - f);
        let refused = match (n.op.with_math(Math::Tf32), gain) {
            (None, _) => refuse("attention over f32 is multiplied exactly"),
            _ if exact.contains(&n.name) => refuse(PINNED),
            (_, None) if !all => refuse("the target has no such kernel in tf32"),
            (_, Some(gain)) if gain <= 0.0 && !all => refuse("no faster in tf32"),
            (Some(op), gain) => {
                marked.insert(id, op);
                choices.taken.insert(n.name.clone(), gain.unwrap_or(0.0));
                None
            }
        };
        choices.refused.extend(refused);
    }
    let marked: Vec<(NodeId, _)> = marked.into_iter().collect();
    marked.into_iter().for_each(|(id, op)| g.set_op(id, op));
    choices
}
