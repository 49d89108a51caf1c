//! Short-hand for appending scalar machinery in one region.

use crate::ir::{
    ConstData, Graph, Real, Region, Shape, TensorType, ValueId, Var, VarInit, VarRole,
};
use crate::ops::{self, Binary, Broadcast, Const, Op, Scale, Select, Unary};
use precast_plan::{BinaryOp, UnaryOp};

/// Appends nodes named `<prefix>.<what>` in one region.
pub struct Build<'a> {
    pub g: &'a mut Graph,
    pub region: Region,
}

impl Build<'_> {
    /// Appends a node; all results.
    ///
    /// # Panics
    /// Where the op rejects its operands: this module builds only well-typed nodes.
    pub fn all(&mut self, name: &str, op: impl Into<Op>, inputs: &[ValueId]) -> Vec<ValueId> {
        let op = op.into();
        match self.g.try_add(op.clone(), inputs, name, self.region) {
            Ok(v) => v.to_vec(),
            Err(e) => panic!("`{name}` = {op:?}: {e}"),
        }
    }

    pub fn op(&mut self, name: &str, op: impl Into<Op>, inputs: &[ValueId]) -> ValueId {
        self.all(name, op, inputs)[0]
    }

    pub fn un(&mut self, name: &str, f: UnaryOp, a: ValueId) -> ValueId {
        self.op(name, Unary { f }, &[a])
    }

    pub fn bin(&mut self, name: &str, f: BinaryOp, a: ValueId, b: ValueId) -> ValueId {
        self.op(name, Binary { f }, &[a, b])
    }

    pub fn select(&mut self, name: &str, cond: ValueId, a: ValueId, b: ValueId) -> ValueId {
        self.op(name, Select {}, &[cond, a, b])
    }

    pub fn scale(&mut self, name: &str, a: ValueId, by: f64) -> ValueId {
        self.op(name, Scale { by: Real(by) }, &[a])
    }

    /// A real scalar literal.
    pub fn real(&mut self, name: &str, x: f64) -> ValueId {
        self.op(name, Const { data: ConstData::scalar(x as f32) }, &[])
    }

    /// A real literal of any shape.
    pub fn full(&mut self, name: &str, x: f64, shape: &Shape) -> ValueId {
        if shape.rank() == 0 {
            return self.real(name, x);
        }
        let data = ConstData::from_f32(vec![1; shape.rank()], &[x as f32]);
        let one = self.op(&format!("{name}.value"), Const { data }, &[]);
        self.op(name, Broadcast { shape: shape.to_vec() }, &[one])
    }

    /// Declares a variable and reads it.
    pub fn var(&mut self, name: &str, ty: TensorType, role: VarRole, init: VarInit) -> ValueId {
        self.g.vars.insert(name.to_string(), Var { ty, role, init });
        self.read(name)
    }

    /// Reads a declared variable as it is at the beginning of the region's phase.
    pub fn read(&mut self, name: &str) -> ValueId {
        let ty = self.g.vars[name].ty.clone();
        let node = match self.region.phase() {
            crate::ir::Phase::Micro => name.to_string(),
            crate::ir::Phase::Update => format!("{name}.now"),
        };
        self.op(&node, ops::Var::new(name, &ty), &[])
    }

    pub fn update(&mut self, var: &str, value: ValueId) {
        self.g.updates.push(crate::ir::Result_ { name: var.to_string(), value });
    }

    pub fn result(&mut self, name: &str, value: ValueId) {
        self.g.results.push(crate::ir::Result_ { name: name.to_string(), value });
    }
}
