//! Names of operations that rules made: from the original operations they stand for.

use super::lang::{ENode, Eg, Sym};
use crate::ir::{Graph, NodeId};
use crate::ops::{MatMul, Op};
use egg::{Id, Language};
use rustc_hash::FxHashMap;

/// A name for `enode` of class `id`, which is not an original node.
pub fn of_new(
    eg: &Eg,
    g: &Graph,
    original: &FxHashMap<ENode, u32>,
    enode: &ENode,
    id: Id,
) -> String {
    let op = eg.analysis.op(enode).expect("projections are not operations");
    if let Op::MatMul(m) = op
        && m.fused.has_bias()
    {
        // The plain product is still in the e-graph; it carries the model's name.
        let children = enode.children[..2].into();
        let plain = eg
            .analysis
            .find(&Sym::Op(MatMul::plain().into()), children)
            .and_then(|n| eg.lookup(n))
            .and_then(|class| named(eg, g, original, class, op, 4));
        if let Some(base) = plain {
            let what = match m.fused.act() {
                None => "bias",
                Some(crate::ops::activation::Act::Relu) => "relu",
                Some(crate::ops::activation::Act::Gelu | crate::ops::activation::Act::GeluTanh) => {
                    "gelu"
                }
                Some(crate::ops::activation::Act::Silu) => "silu",
            };
            return format!("{base}+{what}");
        }
    }
    if let Some(name) = named(eg, g, original, id, op, 4) {
        return name;
    }
    let child = enode
        .children
        .iter()
        .find_map(|&c| named(eg, g, original, eg.find(c), op, 2))
        .unwrap_or_else(|| "new".into());
    format!("{child}.{}", op.name())
}

/// The name of the original operation that a class stands for: one of the class itself, or of what
/// it scales or views.
fn named(
    eg: &Eg,
    g: &Graph,
    original: &FxHashMap<ENode, u32>,
    id: Id,
    op: &Op,
    depth: usize,
) -> Option<String> {
    let id = eg.find(id);
    let class = &eg[id];
    let name_of = |i: u32| g.node(NodeId(i)).name.clone();
    let same_kind = |n: &&ENode| eg.analysis.op(n).is_some_and(|o| o.name() == op.name());
    let of_same_kind: Option<u32> =
        class.nodes.iter().filter(same_kind).filter_map(|n| original.get(n).copied()).min();
    if let Some(i) = of_same_kind {
        return Some(name_of(i));
    }
    if depth > 0 {
        // The scaled form of a cotangent is called like the cotangent; a product that was
        // flattened is called like the product.
        for n in &class.nodes {
            let inner = match eg.analysis.op(n) {
                Some(Op::ScaleBy(_)) => n.children[1],
                Some(Op::Reshape(_)) => n.children[0],
                _ => continue,
            };
            if let Some(name) = named(eg, g, original, inner, op, depth - 1) {
                return Some(name);
            }
        }
        for parent in class.parents() {
            let parent = eg.find(parent);
            let views = eg[parent].nodes.iter().any(|n| {
                matches!(eg.analysis.op(n), Some(Op::Reshape(_)))
                    && n.children().iter().any(|&c| eg.find(c) == id)
            });
            if views && let Some(name) = named(eg, g, original, parent, op, 0) {
                return Some(name);
            }
        }
    }
    let any: Option<u32> = class.nodes.iter().filter_map(|n| original.get(n).copied()).min();
    if depth < 4 { any.map(name_of).filter(|_| depth == 2) } else { any.map(name_of) }
}
