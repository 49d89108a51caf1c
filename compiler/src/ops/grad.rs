//! What an operation sees while it is differentiated.

use super::{Binary, Broadcast, Const, Op, Reduce, Reshape, Scale, Transpose, Unary};
use crate::ir::{ConstData, Graph, NodeId, Real, Region, Shape, TensorType, ValueId};
use precast_plan::{BinaryOp, ReduceOp, UnaryOp};

/// Appends backward nodes for one forward node.
pub struct GradCx<'a> {
    pub graph: &'a mut Graph,
    node: NodeId,
    cotangents: Vec<Option<ValueId>>,
    made: usize,
}

impl<'a> GradCx<'a> {
    pub fn new(graph: &'a mut Graph, node: NodeId, cotangents: Vec<Option<ValueId>>) -> Self {
        GradCx { graph, node, cotangents, made: 0 }
    }

    /// Operand `i` of the forward node.
    pub fn x(&self, i: usize) -> ValueId {
        self.graph.node(self.node).inputs[i]
    }

    /// Number of operands.
    pub fn arity(&self) -> usize {
        self.graph.node(self.node).inputs.len()
    }

    /// Result `i` of the forward node.
    pub fn y(&self, i: usize) -> ValueId {
        self.graph.node(self.node).outputs[i]
    }

    /// Cotangent of result `i`, if anything depends on it.
    pub fn dy(&self, i: usize) -> Option<ValueId> {
        self.cotangents[i]
    }

    /// Cotangent of the only result that has one.
    ///
    /// # Errors
    /// Where another result has a cotangent too: that result is not differentiable.
    pub fn only_dy(&self, i: usize) -> Result<ValueId, String> {
        if let Some(j) =
            (0..self.cotangents.len()).find(|&j| j != i && self.cotangents[j].is_some())
        {
            return Err(format!("result {j} is not differentiable"));
        }
        self.cotangents[i].ok_or_else(|| "no result has a cotangent".into())
    }

    pub fn ty(&self, v: ValueId) -> TensorType {
        self.graph.ty(v).clone()
    }

    pub fn shape(&self, v: ValueId) -> Shape {
        self.graph.shape(v).clone()
    }

    /// Appends a node and returns all its results.
    ///
    /// # Panics
    /// Where the op rejects its operands: a gradient rule that builds an ill-typed graph is a bug.
    pub fn all(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> Vec<ValueId> {
        let base = &self.graph.node(self.node).name;
        let name = match self.made {
            0 => format!("{base}.grad"),
            k => format!("{base}.grad.{k}"),
        };
        self.made += 1;
        let op = op.into();
        let text = format!("{op:?}");
        match self.graph.try_add(op, inputs, name, Region::Backward) {
            Ok(outputs) => outputs.to_vec(),
            Err(e) => panic!("gradient of `{}` built {text}: {e}", self.graph.node(self.node).name),
        }
    }

    /// Appends a node with one result.
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        self.all(op, inputs)[0]
    }

    pub fn un(&mut self, f: UnaryOp, a: ValueId) -> ValueId {
        self.op(Unary { f }, &[a])
    }
    pub fn bin(&mut self, f: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
        self.op(Binary { f }, &[a, b])
    }
    pub fn mul(&mut self, a: ValueId, b: ValueId) -> ValueId {
        self.bin(BinaryOp::Mul, a, b)
    }
    pub fn scale(&mut self, a: ValueId, by: f64) -> ValueId {
        self.op(Scale { by: Real(by) }, &[a])
    }
    /// A real constant of the given shape.
    pub fn full(&mut self, x: f64, shape: &Shape) -> ValueId {
        let c =
            self.op(Const { data: ConstData::from_f32(vec![1; shape.rank()], &[x as f32]) }, &[]);
        self.op(Broadcast { shape: shape.to_vec() }, &[c])
    }
    pub fn reshape(&mut self, a: ValueId, shape: &Shape) -> ValueId {
        if self.graph.shape(a) == shape {
            return a;
        }
        self.op(Reshape { shape: shape.to_vec() }, &[a])
    }
    pub fn transpose(&mut self, a: ValueId, perm: &[usize]) -> ValueId {
        self.op(Transpose { perm: perm.to_vec() }, &[a])
    }
    /// Sum over axes, which disappear.
    pub fn sum(&mut self, a: ValueId, axes: &[usize]) -> ValueId {
        self.op(Reduce { f: ReduceOp::Sum, axes: axes.to_vec() }, &[a])
    }
}
