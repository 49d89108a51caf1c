//! Integers of 8 and 16 bits. A graph's integers have 32, so that what has left the range of its type
//! is brought back after every operator that can leave it.

use super::convert::{most, whole};
use super::fold::cast_target;
use super::import::{Importer, Res, Val};
use super::node::{Attrs, Seen};
use super::proto::NodeProto;
use super::tensor::Elem;
use crate::ir::ValueId;
use crate::ops::{self, Op};
use precast_plan::{BinaryOp as B, Kind, UnaryOp as U};

/// Operators whose results can be beyond the type of their operands, or of what is cast to.
const LEAVING: &[&str] = &[
    "Abs",
    "Add",
    "BitwiseNot",
    "Cast",
    "CastLike",
    "CumSum",
    "Div",
    "Einsum",
    "Gemm",
    "MatMul",
    "Mean",
    "Mul",
    "Neg",
    "Pow",
    "ReduceL1",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "ScatterElements",
    "ScatterND",
    "Sub",
    "Sum",
];

/// Operators whose results are bools or places, whatever their operands are.
const OTHER: &[&str] = &[
    "ArgMax",
    "ArgMin",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "IsInf",
    "IsNaN",
    "Less",
    "LessOrEqual",
    "NonZero",
    "SequenceLength",
    "Shape",
    "Size",
];

/// A type's bits and whether it has a sign, where it is narrow.
fn bits(elem: Elem) -> Option<(u32, bool)> {
    match elem {
        Elem::U8 => Some((8, false)),
        Elem::I8 => Some((8, true)),
        Elem::U16 => Some((16, false)),
        Elem::I16 => Some((16, true)),
        _ => None,
    }
}

/// Whether every number of one narrow type is one of another.
fn holds(to: Elem, from: Elem) -> bool {
    match (bits(to), bits(from)) {
        (Some((to, signed)), Some((from, was_signed))) => match (signed, was_signed) {
            (true, false) => to > from,
            (false, true) => false,
            _ => to >= from,
        },
        _ => false,
    }
}

impl Importer<'_> {
    /// The narrow type of a value's integers; `None` for every other type.
    pub(super) fn narrow_type(&self, name: &str) -> Option<Elem> {
        match self.values.get(name) {
            Some(Val::Const(t)) => Some(t.elem).filter(|e| bits(*e).is_some()),
            _ => self.narrow.get(name).copied(),
        }
    }

    pub(super) fn set_narrow_type(&mut self, name: &str, elem: Option<Elem>) {
        match elem.filter(|e| bits(*e).is_some()) {
            Some(e) => self.narrow.insert(name.into(), e),
            None => self.narrow.remove(name),
        };
    }

    /// The narrow type of result `k` of a node, from those of its operands.
    fn result_type(&self, node: &NodeProto, k: usize) -> Res<Option<Elem>> {
        let op = node.op_type.as_deref().unwrap_or_default();
        let of = |i: usize| node.input.get(i).and_then(|x| self.narrow_type(x));
        Ok(match op {
            "Cast" => {
                let seen = Seen::default();
                Some(cast_target(&Attrs::new(node, &seen))?)
            }
            "CastLike" => of(1),
            "OneHot" => of(2),
            "SequenceInsert" => of(0).or_else(|| of(1)),
            "TopK" if k == 1 => None,
            "Where" => of(1).or_else(|| of(2)),
            _ if OTHER.contains(&op) => None,
            _ => of(0),
        })
    }

    /// Notes the types of a node's results, and brings integers back into the range of theirs.
    pub(super) fn in_range(&mut self, node: &NodeProto, mut results: Vec<Val>) -> Res<Vec<Val>> {
        let op = node.op_type.as_deref().unwrap_or_default();
        for (k, (name, value)) in node.output.iter().zip(&mut results).enumerate() {
            let elem = self.result_type(node, k)?;
            self.set_narrow_type(name, elem);
            let (Some(elem), Val::Node(x)) = (elem, &*value) else { continue };
            let from = node.input.first().and_then(|x| self.narrow_type(x));
            let cast = matches!(op, "Cast" | "CastLike");
            let kept = cast && from.is_some_and(|from| holds(elem, from));
            if LEAVING.contains(&op) && self.graph.ty(*x).kind() == Kind::Int && !kept {
                *value = Val::Node(self.wrapped(*x, elem)?);
            }
        }
        Ok(results)
    }

    /// Integers of which as many bits are kept as a narrow type has.
    fn wrapped(&mut self, x: ValueId, to: Elem) -> Res<ValueId> {
        let Some((bits, signed)) = bits(to) else { return Ok(x) };
        if most(self, x).is_some_and(|most| most < 1 << (bits - u32::from(signed))) {
            return Ok(x);
        }
        let shape = self.graph.shape(x).to_vec();
        let mask = whole(self, (1 << bits) - 1, &shape)?;
        if !signed {
            return self.one("wrapped", ops::Binary { f: B::And }, &[x, mask]);
        }
        let half = whole(self, 1 << (bits - 1), &shape)?;
        let moved = self.one("moved", ops::Binary { f: B::Add }, &[x, half])?;
        let kept = self.one("kept", ops::Binary { f: B::And }, &[moved, mask])?;
        self.one("wrapped", ops::Binary { f: B::Sub }, &[kept, half])
    }

    /// Whether integers are never negative, as far as a few of the nodes that make them show.
    pub(super) fn never_negative(&self, v: ValueId) -> bool {
        let mut left = 64;
        self.never_below(v, &mut left)
    }

    fn never_below(&self, v: ValueId, left: &mut u32) -> bool {
        if most(self, v).is_some() {
            return true;
        }
        let Some(less) = left.checked_sub(1) else { return false };
        *left = less;
        let n = self.graph.def(v);
        let mut is = |x: &ValueId| self.never_below(*x, left);
        match &n.op {
            Op::Iota(_) | Op::TopK(_) | Op::LastIndex(_) => true,
            Op::Unary(u) if u.f == U::Abs => true,
            Op::Binary(b) => match b.f {
                B::Add | B::Mul | B::Div | B::Min => n.inputs.iter().all(is),
                B::And | B::Max => n.inputs.iter().any(is),
                B::Rem => is(&n.inputs[0]),
                _ => false,
            },
            Op::Select(_) => n.inputs[1..].iter().all(is),
            Op::Concat(_) | Op::CumSum(_) | Op::ReduceInt(_) => n.inputs.iter().all(is),
            Op::Gather(_) | Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice(_) => {
                is(&n.inputs[0])
            }
            _ => false,
        }
    }
}
