//! Nodes, values, variables.

use super::types::TensorType;
use crate::ops::Op;
use indexmap::IndexMap;
use precast_plan::DType;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;
use std::fmt;

/// Name of the literal that seeds the backward pass: the cotangent of the loss. What depends on it
/// is a cotangent, so no pass folds it or merges it with an equal literal.
pub const SEED: &str = "loss.seed";

/// Index of a node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId(pub u32);

/// Index of a value: one result of one node.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ValueId(pub u32);

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{}", self.0)
    }
}
impl fmt::Debug for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}
impl fmt::Display for ValueId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "%{}", self.0)
    }
}

/// Which part of the step a node belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Region {
    Forward,
    Backward,
    /// After accumulation: norm, finite check, clipping, optimizer, loss scale.
    Update,
}

/// Which schedule a region runs in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    Micro,
    Update,
}

impl Region {
    pub fn phase(self) -> Phase {
        if self == Region::Update { Phase::Update } else { Phase::Micro }
    }
    pub const fn name(self) -> &'static str {
        match self {
            Region::Forward => "forward",
            Region::Backward => "backward",
            Region::Update => "update",
        }
    }
}

/// One operation applied to values.
#[derive(Clone, Debug)]
pub struct Node {
    pub op: Op,
    pub inputs: SmallVec<[ValueId; 4]>,
    /// Consecutive values.
    pub outputs: SmallVec<[ValueId; 2]>,
    /// Unique in the graph and stable under changes to unrelated layers: the model's own node
    /// name, with a suffix for what the compiler made of it (`fc1/Gemm.grad.1`).
    pub name: String,
    pub region: Region,
}

/// One result of one node.
#[derive(Clone, Debug)]
pub struct Value {
    pub ty: TensorType,
    pub node: NodeId,
    /// Which result of the node.
    pub index: u32,
}

/// What a variable (a tensor that outlives the step) is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum VarRole {
    /// FP32 master weight.
    Param,
    /// Model buffer, such as running statistics.
    Buffer,
    /// Momentum and moments.
    Optimizer,
    Ema,
    /// Gradient accumulator.
    Accumulator,
    /// Loss scale, growth tracker, counters.
    Machine,
    /// Low-precision copy of a master weight.
    WeightCopy,
}

/// How a variable begins.
#[derive(Clone, Debug, PartialEq)]
pub enum VarInit {
    Zeros,
    Value(f64),
    /// From the weight file under this name.
    Weights(String),
    Uniform {
        bound: f64,
        stream: u32,
    },
    Normal {
        mean: f64,
        std: f64,
        stream: u32,
    },
    /// A literal of the model file.
    Data(super::ConstData),
    /// Little-endian elements of format `dtype` in a file (a path relative to the model's folder,
    /// inside it), from byte `offset`, as many as the variable has; rounded to the variable's own
    /// format.
    File {
        path: String,
        offset: u64,
        dtype: DType,
    },
    /// As another variable begins, rounded.
    CopyOf(String),
    /// As another variable of [o,c,h,w] begins, rounded, as [o,h,w,c].
    ChannelsLastOf(String),
}

/// A tensor that outlives the step. Read by [`crate::ops::Var`] nodes, written by
/// [`Graph::updates`].
#[derive(Clone, Debug, PartialEq)]
pub struct Var {
    pub ty: TensorType,
    pub role: VarRole,
    pub init: VarInit,
}

/// A named result.
#[derive(Clone, Debug, PartialEq)]
pub struct Result_ {
    pub name: String,
    pub value: ValueId,
}

/// A program over tensors, in topological order.
#[derive(Clone, Debug, Default)]
pub struct Graph {
    pub name: String,
    nodes: Vec<Node>,
    values: Vec<Value>,
    /// By name.
    pub vars: IndexMap<String, Var>,
    /// What a caller can read after the step.
    pub results: Vec<Result_>,
    /// New values of variables, all written at the end of the phase: reads see the old value.
    pub updates: Vec<Result_>,
}

impl Graph {
    pub fn new(name: impl Into<String>) -> Graph {
        Graph { name: name.into(), ..Graph::default() }
    }

    pub fn nodes(&self) -> impl DoubleEndedIterator<Item = (NodeId, &Node)> + ExactSizeIterator {
        self.nodes.iter().enumerate().map(|(i, n)| (NodeId(i as u32), n))
    }

    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.0 as usize]
    }

    pub fn node_count(&self) -> usize {
        self.nodes.len()
    }

    pub fn value_count(&self) -> usize {
        self.values.len()
    }

    pub fn value(&self, id: ValueId) -> &Value {
        &self.values[id.0 as usize]
    }

    pub fn ty(&self, id: ValueId) -> &TensorType {
        &self.values[id.0 as usize].ty
    }

    pub fn shape(&self, id: ValueId) -> &super::Shape {
        &self.ty(id).shape
    }

    /// The node that defines a value.
    pub fn def(&self, id: ValueId) -> &Node {
        self.node(self.value(id).node)
    }

    /// A value's name: its operation's, with `.i` where that has several results; of an input or a
    /// variable, its own.
    pub fn value_name(&self, id: ValueId) -> String {
        let node = self.def(id);
        match &node.op {
            Op::Input(input) => input.name.clone(),
            Op::Var(var) => var.name.clone(),
            _ if node.outputs.len() > 1 => format!("{}.{}", node.name, self.value(id).index),
            _ => node.name.clone(),
        }
    }

    /// Changes the storage format of a value. The verifier says whether the result is legal.
    pub fn set_dtype(&mut self, id: ValueId, dtype: DType) {
        self.values[id.0 as usize].ty.dtype = dtype;
    }

    /// Changes the operation of a node, its operands and results left as they are. The verifier says
    /// whether the result is legal.
    pub fn set_op(&mut self, id: NodeId, op: Op) {
        self.nodes[id.0 as usize].op = op;
    }

    /// Gives a node another name, unchecked.
    pub fn rename(&mut self, id: NodeId, name: String) {
        self.nodes[id.0 as usize].name = name;
    }

    /// Appends a node; result types are inferred, reals as f32.
    ///
    /// # Errors
    /// What is wrong with the operands, in words, without the node's name.
    pub fn try_add(
        &mut self,
        op: impl Into<Op>,
        inputs: &[ValueId],
        name: impl Into<String>,
        region: Region,
    ) -> Result<SmallVec<[ValueId; 2]>, String> {
        let op = op.into();
        let outputs = {
            let types: SmallVec<[&TensorType; 4]> = inputs.iter().map(|&v| self.ty(v)).collect();
            op.def().infer(&types)?
        };
        outputs.iter().try_for_each(crate::ops::fits)?;
        Ok(self.push(op, inputs, outputs, name.into(), region))
    }

    /// Appends a node with stated result types, unchecked: for passes that rebuild a graph. The
    /// verifier checks it afterwards.
    pub fn push(
        &mut self,
        op: Op,
        inputs: &[ValueId],
        types: Vec<TensorType>,
        name: String,
        region: Region,
    ) -> SmallVec<[ValueId; 2]> {
        let node = NodeId(self.nodes.len() as u32);
        let mut outputs = SmallVec::new();
        for (index, ty) in types.into_iter().enumerate() {
            outputs.push(ValueId(self.values.len() as u32));
            self.values.push(Value { ty, node, index: index as u32 });
        }
        let inputs = SmallVec::from_slice(inputs);
        self.nodes.push(Node { op, inputs, outputs: outputs.clone(), name, region });
        outputs
    }

    /// The value a variable's update writes, if it has one.
    pub fn update_of(&self, var: &str) -> Option<ValueId> {
        self.updates.iter().find(|u| u.name == var).map(|u| u.value)
    }

    /// [`Graph::update_of`] of every variable that has one.
    pub fn updated(&self) -> FxHashMap<&str, ValueId> {
        self.updates.iter().rev().map(|u| (u.name.as_str(), u.value)).collect()
    }

    pub fn result(&self, name: &str) -> Option<ValueId> {
        self.results.iter().find(|r| r.name == name).map(|r| r.value)
    }

    /// Every value with its readers: `uses[value]` lists (node, operand index).
    pub fn uses(&self) -> Vec<Vec<(NodeId, usize)>> {
        let mut uses = vec![Vec::new(); self.values.len()];
        for (id, node) in self.nodes() {
            for (i, v) in node.inputs.iter().enumerate() {
                uses[v.0 as usize].push((id, i));
            }
        }
        uses
    }

    /// The same graph without nodes that no result or update depends on. Order is kept.
    pub fn without_dead_nodes(&self) -> Graph {
        let mut live = vec![false; self.nodes.len()];
        for r in self.results.iter().chain(&self.updates) {
            live[self.value(r.value).node.0 as usize] = true;
        }
        for (id, node) in self.nodes().rev() {
            if live[id.0 as usize] {
                for &v in &node.inputs {
                    live[self.value(v).node.0 as usize] = true;
                }
            }
        }
        let mut out =
            Graph { name: self.name.clone(), vars: self.vars.clone(), ..Graph::default() };
        let mut map = vec![ValueId(u32::MAX); self.values.len()];
        for (id, node) in self.nodes() {
            if !live[id.0 as usize] {
                continue;
            }
            let inputs: SmallVec<[ValueId; 4]> =
                node.inputs.iter().map(|v| map[v.0 as usize]).collect();
            let types = node.outputs.iter().map(|&v| self.ty(v).clone()).collect();
            let new = out.push(node.op.clone(), &inputs, types, node.name.clone(), node.region);
            for (old, new) in node.outputs.iter().zip(new) {
                map[old.0 as usize] = new;
            }
        }
        let rename = |rs: &[Result_]| {
            rs.iter()
                .map(|r| Result_ { name: r.name.clone(), value: map[r.value.0 as usize] })
                .collect()
        };
        out.results = rename(&self.results);
        out.updates = rename(&self.updates);
        out
    }
}
