//! Names of operations that rules made: from the original operations they stand for.

use super::lang::{ENode, Eg, Sym};
use crate::ir::{Graph, NodeId};
use crate::ops::matmul::Fused;
use crate::ops::{MatMul, Op};
use egg::{Id, Language};
use rustc_hash::FxHashMap;

/// Names of e-nodes that are not original.
pub struct Names<'a> {
    pub eg: &'a Eg,
    pub g: &'a Graph,
    pub original: &'a FxHashMap<ENode, u32>,
}

impl Names<'_> {
    /// A name for `enode` of class `id`.
    pub fn of(&self, enode: &ENode, id: Id) -> String {
        let op = self.eg.analysis.op(enode).expect("projections are not operations");
        if let Op::MatMul(m) = op
            && let Some(what) = m.fused.suffix()
            && let Some(base) = self.product(enode)
        {
            return format!("{base}+{what}");
        }
        let standing = match op {
            Op::ScaleBy(_) => self.any(enode.children[1], 3).map(|n| format!("{n}.scaled")),
            op => self.like(id, op, 4).or_else(|| self.any(id, 0)),
        };
        standing.unwrap_or_else(|| {
            let mut children = enode.children.iter();
            let child = children.find_map(|&c| self.any(c, 3)).unwrap_or_else(|| "new".into());
            format!("{child}.{}", op.name())
        })
    }

    fn name(&self, i: u32) -> String {
        self.g.node(NodeId(i)).name.clone()
    }

    /// The name of the product that a fused product began as: unfused, or with less behind it.
    fn product(&self, enode: &ENode) -> Option<String> {
        for (fused, operands) in [(Fused::None, 2), (Fused::Bias, 3)] {
            let sym = Sym::Op(MatMul::with(fused).into());
            let n = self.eg.analysis.find(&sym, enode.children[..operands].into());
            let class = n.and_then(|n| self.eg.lookup(n));
            let op = MatMul::plain().into();
            if let Some(name) = class.and_then(|class| self.like(class, &op, 4)) {
                return Some(name);
            }
        }
        None
    }

    /// The first original node of a class, or of what it views, at most `depth` views deep.
    fn any(&self, id: Id, depth: usize) -> Option<String> {
        let class = &self.eg[self.eg.find(id)];
        let originals = class.nodes.iter().filter_map(|n| self.original.get(n).copied());
        if let Some(i) = originals.min() {
            return Some(self.name(i));
        }
        if depth == 0 {
            return None;
        }
        class.nodes.iter().find_map(|n| match self.eg.analysis.op(n) {
            Some(Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_)) => {
                self.any(n.children[0], depth - 1)
            }
            _ => None,
        })
    }

    /// The original operation of the kind of `op` that a class stands for: of the class itself, or
    /// of what it scales or reshapes, or of what reshapes it.
    fn like(&self, id: Id, op: &Op, depth: usize) -> Option<String> {
        let id = self.eg.find(id);
        let class = &self.eg[id];
        let same = |n: &&ENode| self.eg.analysis.op(n).is_some_and(|o| o.name() == op.name());
        let originals = class.nodes.iter().filter(same);
        if let Some(i) = originals.filter_map(|n| self.original.get(n).copied()).min() {
            return Some(self.name(i));
        }
        if depth == 0 {
            return None;
        }
        // The scaled form of a cotangent is called like the cotangent; a product that was
        // flattened is called like the product.
        let within = class.nodes.iter().find_map(|n| match self.eg.analysis.op(n) {
            Some(Op::ScaleBy(_)) => self.like(n.children[1], op, depth - 1),
            Some(Op::Reshape(_)) => self.like(n.children[0], op, depth - 1),
            _ => None,
        });
        within.or_else(|| {
            class.parents().find_map(|p| {
                let p = self.eg.find(p);
                let views = self.eg[p].nodes.iter().any(|n| {
                    matches!(self.eg.analysis.op(n), Some(Op::Reshape(_)))
                        && n.children().iter().any(|&c| self.eg.find(c) == id)
                });
                if views { self.like(p, op, 0) } else { None }
            })
        })
    }
}
