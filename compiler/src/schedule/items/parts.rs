//! Values that are put together from parts: concatenation, padding, the gradient of a split.

use super::{Access, Assembly, Body, Item, Lower, Read, Source};
use crate::ir::view::View;
use crate::ir::{Node, ValueId};
use crate::ops::Op;
use precast_plan::{BinaryOp, Instr, Kind};

impl Lower<'_> {
    /// An addition of two values made of disjoint parts, both read by nothing else, is the value
    /// made of all the parts: the gradient of a split.
    pub(super) fn add_of_parts(&mut self, id: crate::ir::NodeId, node: &Node) -> bool {
        let Op::Binary(b) = &node.op else { return false };
        let &[a, c] = node.inputs.as_slice() else { return false };
        let single = |v: ValueId| self.uses[v.0 as usize] == 1 && self.pending.contains_key(&v);
        if b.f != BinaryOp::Add || a == c || !single(a) || !single(c) {
            return false;
        }
        let boxes = |v: ValueId| -> Vec<(Vec<usize>, Vec<usize>)> {
            let list = &self.pending[&v].parts;
            list.iter().map(|(x, p)| (p.starts.clone(), self.g.shape(*x).to_vec())).collect()
        };
        let dense = |v: ValueId| {
            self.pending[&v].parts.iter().all(|(_, p)| p.steps.iter().all(|&s| s == 1))
        };
        let apart = |(s1, n1): &(Vec<usize>, Vec<usize>), (s2, n2): &(Vec<usize>, Vec<usize>)| {
            (0..s1.len()).any(|d| s1[d] + n1[d] <= s2[d] || s2[d] + n2[d] <= s1[d])
        };
        let (x, y) = (boxes(a), boxes(c));
        if !dense(a) || !dense(c) || x.iter().any(|p| y.iter().any(|q| !apart(p, q))) {
            return false;
        }
        let mut parts = self.pending.remove(&a).expect("pending").parts;
        parts.extend(self.pending.remove(&c).expect("pending").parts);
        let v = node.outputs[0];
        self.pending.insert(v, Assembly { ty: self.g.ty(v).clone(), parts, node: id });
        true
    }

    pub(super) fn assemble(&mut self, v: ValueId, a: Assembly) {
        let node = self.g.node(a.node);
        let phase = node.region.phase();
        let located: Vec<(usize, View)> = a.parts.iter().map(|(x, _)| self.locate(*x)).collect();
        let to = self.value_of(node.name.clone(), v, Source::Computed);
        let whole = self.out.values[to].view().strides;
        let covered: usize = located.iter().map(|(_, view)| view.shape.elements()).sum();
        if covered < a.ty.shape.elements() {
            let zero = match a.ty.kind() {
                Kind::Real => Instr::Real(0.0),
                Kind::Int => Instr::Int(0),
                Kind::Bool => Instr::Bool(false),
            };
            self.out.items.push(Item {
                name: format!("{}.zero", node.name),
                op: Some(node.name.clone()),
                phase,
                dims: a.ty.shape.to_vec(),
                reduced: 0,
                reads: vec![Read::Literal(zero)],
                writes: vec![Access { value: to, offset: 0, strides: whole.clone() }],
                body: Body::Copy,
                origin: 0,
                clone_of: None,
            });
        }
        for (i, ((root, view), (_, part))) in located.iter().zip(&a.parts).enumerate() {
            let offset = part.starts.iter().zip(&whole).map(|(&b, s)| b as i64 * s).sum();
            let strides = part.steps.iter().zip(&whole).map(|(k, s)| k * s).collect();
            let name = format!("{}.part{i}", node.name);
            self.copy_item(
                name,
                Some(node.name.clone()),
                phase,
                (*root, view),
                (to, offset, strides),
            );
        }
    }
}
