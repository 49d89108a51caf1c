//! Values that are put together from parts: concatenation, padding, the gradient of a split.

use super::{Access, Assembly, Body, Item, Lower, Read, Source};
use crate::ir::view::View;
use crate::ir::{Graph, Node, TensorType, ValueId};
use crate::ops::{Op, Part};
use precast_plan::{BinaryOp, Instr, Kind};
use std::collections::{BTreeMap, VecDeque};

/// Parts that are whole along every axis but one, along which they do not meet.
pub(super) struct Slabs {
    axis: usize,
    /// First elements and ends along the axis.
    ranges: BTreeMap<usize, usize>,
}

impl Slabs {
    /// `None` where the parts are not of this kind.
    pub(super) fn new(
        g: &Graph,
        ty: &TensorType,
        parts: &VecDeque<(ValueId, Part)>,
    ) -> Option<Slabs> {
        let whole = |v: ValueId, d: usize| g.shape(v)[d] == ty.shape[d];
        let first = parts.front()?.0;
        let axis = (0..ty.shape.rank()).find(|&d| !whole(first, d))?;
        let mut out = Slabs { axis, ranges: BTreeMap::new() };
        for (v, p) in parts {
            let others = (0..ty.shape.rank()).all(|d| d == axis || whole(*v, d));
            if !others || p.steps.iter().any(|&s| s != 1) {
                return None;
            }
            let one = BTreeMap::from([(p.starts[axis], p.starts[axis] + g.shape(*v)[axis])]);
            let one = Slabs { axis, ranges: one };
            if !out.apart(&one) {
                return None;
            }
            out.ranges.extend(one.ranges);
        }
        Some(out)
    }

    /// Whether no element is in both.
    fn apart(&self, other: &Slabs) -> bool {
        let (many, few) = match self.ranges.len() < other.ranges.len() {
            true => (&other.ranges, &self.ranges),
            false => (&self.ranges, &other.ranges),
        };
        few.iter().all(|(&from, &to)| many.range(..to).next_back().is_none_or(|m| *m.1 <= from))
    }

    fn with(mut self, mut other: Slabs) -> Slabs {
        if self.ranges.len() < other.ranges.len() {
            std::mem::swap(&mut self, &mut other);
        }
        self.ranges.extend(other.ranges);
        self
    }
}

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
        let (x, y) = (&self.pending[&a], &self.pending[&c]);
        let apart = match (&x.slabs, &y.slabs) {
            (Some(p), Some(q)) if p.axis == q.axis => p.apart(q),
            _ => self.parts_apart(x, y),
        };
        if !apart {
            return false;
        }
        let [mut x, mut y] = [a, c].map(|v| self.pending.remove(&v).expect("pending"));
        // The few join the many, in the order of both.
        let parts = if x.parts.len() < y.parts.len() {
            x.parts.into_iter().rev().for_each(|p| y.parts.push_front(p));
            y.parts
        } else {
            x.parts.append(&mut y.parts);
            x.parts
        };
        let slabs = match (x.slabs, y.slabs) {
            (Some(p), Some(q)) if p.axis == q.axis => Some(p.with(q)),
            _ => None,
        };
        let v = node.outputs[0];
        self.pending.insert(v, Assembly { ty: self.g.ty(v).clone(), parts, node: id, slabs });
        true
    }

    /// Whether no part of the one has an element of the other, and all are without gaps.
    fn parts_apart(&self, x: &Assembly, y: &Assembly) -> bool {
        let boxes = |a: &Assembly| -> Vec<(Vec<usize>, Vec<usize>)> {
            let list = a.parts.iter();
            list.map(|(x, p)| (p.starts.clone(), self.g.shape(*x).to_vec())).collect()
        };
        let dense = |a: &Assembly| a.parts.iter().all(|(_, p)| p.steps.iter().all(|&s| s == 1));
        let apart = |(s1, n1): &(Vec<usize>, Vec<usize>), (s2, n2): &(Vec<usize>, Vec<usize>)| {
            (0..s1.len()).any(|d| s1[d] + n1[d] <= s2[d] || s2[d] + n2[d] <= s1[d])
        };
        let (p, q) = (boxes(x), boxes(y));
        dense(x) && dense(y) && p.iter().all(|p| q.iter().all(|q| apart(p, q)))
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
