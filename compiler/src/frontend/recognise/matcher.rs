//! What patterns look with and write with.

use crate::ir::{ConstData, Graph, Node, NodeId, Region, ValueId};
use crate::ops::{Binary, Broadcast, Const, Op, Reduce, Reshape, Scale, Unary};
use precast_plan::{BinaryOp, ReduceOp, UnaryOp};
use smallvec::SmallVec;
use std::collections::BTreeSet;

/// A graph seen from one node.
pub struct Matcher<'a> {
    pub graph: &'a Graph,
    pub uses: &'a [Vec<(NodeId, usize)>],
    /// Values that are results or updates.
    pub kept: &'a [bool],
    pub root: NodeId,
}

/// Relative agreement of a literal with the constant of a formula: literals are f32, and some
/// exporters round them further.
pub fn close(x: f64, want: f64) -> bool {
    (x - want).abs() <= 1e-6 * want.abs()
}

impl<'a> Matcher<'a> {
    pub fn node(&self) -> &'a Node {
        self.graph.node(self.root)
    }

    pub fn op(&self, v: ValueId) -> &'a Op {
        &self.graph.def(v).op
    }

    /// Whether exactly one operand slot reads the value, and it is not a result.
    pub fn once(&self, v: ValueId) -> bool {
        self.uses[v.0 as usize].len() == 1 && !self.kept[v.0 as usize]
    }

    /// Whether everything that reads these values is the root or computes one of them.
    pub fn private(&self, interior: &[ValueId]) -> bool {
        let nodes: BTreeSet<NodeId> = interior
            .iter()
            .map(|v| self.graph.value(*v).node)
            .chain(std::iter::once(self.root))
            .collect();
        interior.iter().all(|v| {
            !self.kept[v.0 as usize]
                && self.uses[v.0 as usize].iter().all(|(n, _)| nodes.contains(n))
        })
    }

    pub fn unary(&self, v: ValueId, f: UnaryOp) -> Option<ValueId> {
        match self.op(v) {
            Op::Unary(Unary { f: g }) if *g == f => Some(self.graph.def(v).inputs[0]),
            _ => None,
        }
    }

    pub fn binary(&self, v: ValueId, f: BinaryOp) -> Option<(ValueId, ValueId)> {
        match self.op(v) {
            Op::Binary(Binary { f: g }) if *g == f => {
                let n = self.graph.def(v);
                Some((n.inputs[0], n.inputs[1]))
            }
            _ => None,
        }
    }

    /// The operand of `1 / x`.
    pub fn inverse(&self, v: ValueId) -> Option<ValueId> {
        self.unary(v, UnaryOp::Recip).or_else(|| {
            let (one, x) = self.binary(v, BinaryOp::Div)?;
            (self.number(one) == Some(1.0)).then_some(x)
        })
    }

    /// The value of a real literal all of whose elements are equal, broadcast or not.
    pub fn number(&self, v: ValueId) -> Option<f64> {
        match self.op(v) {
            Op::Const(Const { data }) => data.splat().map(f64::from),
            Op::Broadcast(_) | Op::Reshape(_) => self.number(self.graph.def(v).inputs[0]),
            _ => None,
        }
    }

    /// `v = x + literal`.
    pub fn plus(&self, v: ValueId) -> Option<(ValueId, f64)> {
        let (a, b) = self.binary(v, BinaryOp::Add)?;
        match (self.number(a), self.number(b)) {
            (None, Some(c)) => Some((a, c)),
            (Some(c), None) => Some((b, c)),
            _ => None,
        }
    }

    /// A value as a literal times factors: products are taken apart as long as nothing else reads
    /// them. The value itself is taken apart even so.
    pub fn factors(&self, v: ValueId) -> (f64, Vec<ValueId>) {
        let mut by = 1.0;
        let mut out = Vec::new();
        let mut work = vec![(v, true)];
        while let Some((v, first)) = work.pop() {
            if let Some(x) = self.number(v) {
                by *= x;
                continue;
            }
            let open = first || self.once(v);
            match self.op(v) {
                Op::Scale(Scale { by: c }) if open => {
                    by *= c.0;
                    work.push((self.graph.def(v).inputs[0], false));
                }
                Op::Binary(Binary { f: BinaryOp::Mul }) if open => {
                    work.extend(self.graph.def(v).inputs.iter().map(|&i| (i, false)));
                }
                Op::Binary(Binary { f: BinaryOp::Div }) if open => {
                    let n = self.graph.def(v);
                    match self.number(n.inputs[1]) {
                        Some(c) => {
                            by /= c;
                            work.push((n.inputs[0], false));
                        }
                        None => out.push(v),
                    }
                }
                _ => out.push(v),
            }
        }
        (by, out)
    }

    /// Through reshapes that change only trailing extents of 1, and broadcasts: the statistic of
    /// rows behind a value spread over the columns. The stripped values are added to `interior`.
    pub fn unspread(&self, v: ValueId, interior: &mut Vec<ValueId>) -> Option<ValueId> {
        let mut v = v;
        loop {
            let n = self.graph.def(v);
            match n.op {
                Op::Broadcast(_) => {}
                Op::Reshape(_) => {
                    let trim = |v: ValueId| {
                        let s = self.graph.shape(v).to_vec();
                        let len = s.iter().rposition(|&d| d != 1).map_or(0, |i| i + 1);
                        s[..len].to_vec()
                    };
                    if trim(v) != trim(n.inputs[0]) {
                        return None;
                    }
                }
                _ => return Some(v),
            }
            interior.push(v);
            v = n.inputs[0];
        }
    }

    /// The operand and the number of trailing axes of a mean over them.
    pub fn mean(&self, v: ValueId, interior: &mut Vec<ValueId>) -> Option<(ValueId, usize)> {
        let v = self.unspread(v, interior)?;
        let Op::Scale(Scale { by }) = self.op(v) else { return None };
        interior.push(v);
        let sum = self.unspread(self.graph.def(v).inputs[0], interior)?;
        let Op::Reduce(Reduce { f: ReduceOp::Sum, axes }) = self.op(sum) else { return None };
        interior.push(sum);
        let x = self.graph.def(sum).inputs[0];
        let shape = self.graph.shape(x);
        let first = axes[0];
        let trailing = axes.iter().copied().eq(first..shape.rank());
        let count: usize = shape[first..].iter().product();
        (trailing && close(by.0 * count as f64, 1.0)).then_some((x, axes.len()))
    }
}

/// The graph being written.
pub struct Rewriter {
    pub out: Graph,
    pub map: Vec<Option<ValueId>>,
    names: BTreeSet<String>,
}

impl Rewriter {
    pub fn new(g: &Graph) -> Rewriter {
        let mut out = Graph::new(g.name.clone());
        out.vars = g.vars.clone();
        let names = g.nodes().map(|(_, n)| n.name.clone()).collect();
        Rewriter { out, map: vec![None; g.value_count()], names }
    }

    /// An old value in the new graph.
    pub fn get(&self, v: ValueId) -> ValueId {
        self.map[v.0 as usize].expect("operands come before their readers")
    }

    pub fn copy(&mut self, node: &Node) {
        let inputs: SmallVec<[ValueId; 4]> = node.inputs.iter().map(|&v| self.get(v)).collect();
        let types = self.types(node, &inputs);
        let new = self.out.push(node.op.clone(), &inputs, types, node.name.clone(), node.region);
        for (old, new) in node.outputs.iter().zip(new) {
            self.map[old.0 as usize] = Some(new);
        }
    }

    fn types(&self, node: &Node, inputs: &[ValueId]) -> Vec<crate::ir::TensorType> {
        let types: Vec<_> = inputs.iter().map(|&v| self.out.ty(v)).collect();
        node.op.def().infer(&types).unwrap_or_else(|e| panic!("copying `{}`: {e}", node.name))
    }

    pub fn replace(&mut self, node: &Node, values: &[ValueId]) {
        for (old, new) in node.outputs.iter().zip(values) {
            self.map[old.0 as usize] = Some(*new);
        }
    }

    /// Appends a node in the root's place. The main one takes the root's name (empty suffix).
    ///
    /// # Panics
    /// Where the operation rejects its operands: a pattern that builds an ill-typed graph is a bug.
    pub fn all(
        &mut self,
        root: &Node,
        suffix: &str,
        op: impl Into<Op>,
        inputs: &[ValueId],
    ) -> SmallVec<[ValueId; 2]> {
        let name = if suffix.is_empty() {
            root.name.clone()
        } else {
            self.fresh(format!("{}.{suffix}", root.name))
        };
        match self.out.try_add(op, inputs, name, root.region) {
            Ok(v) => v,
            Err(e) => panic!("rewriting `{}`: {e}", root.name),
        }
    }

    fn fresh(&mut self, stem: String) -> String {
        let mut name = stem.clone();
        let mut k = 1;
        while !self.names.insert(name.clone()) {
            k += 1;
            name = format!("{stem}.{k}");
        }
        name
    }

    /// Appends a node that belongs to no root.
    ///
    /// # Panics
    /// As [`Rewriter::all`].
    pub fn add(
        &mut self,
        stem: String,
        op: impl Into<Op>,
        inputs: &[ValueId],
        region: Region,
    ) -> ValueId {
        let name = self.fresh(stem);
        self.out.try_add(op, inputs, name, region).expect("a rewrite is well typed")[0]
    }

    pub fn one(
        &mut self,
        root: &Node,
        suffix: &str,
        op: impl Into<Op>,
        inputs: &[ValueId],
    ) -> ValueId {
        self.all(root, suffix, op, inputs)[0]
    }

    /// A real constant of the given extents.
    pub fn full(&mut self, root: &Node, x: f32, shape: &[usize]) -> ValueId {
        let data = ConstData::from_f32(vec![1; shape.len()], &[x]);
        let c = self.one(root, "const", Const { data }, &[]);
        if shape.iter().all(|&d| d == 1) {
            return c;
        }
        self.one(root, "broadcast", Broadcast { shape: shape.to_vec() }, &[c])
    }

    pub fn reshape(&mut self, root: &Node, v: ValueId, shape: &[usize]) -> ValueId {
        if self.out.shape(v)[..] == *shape {
            return v;
        }
        self.one(root, "reshape", Reshape { shape: shape.to_vec() }, &[v])
    }
}
