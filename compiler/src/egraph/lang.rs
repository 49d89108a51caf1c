//! The e-graph's language: operations as interned ids, and what is known of every class.
//!
//! One class is one real-valued tensor (or the tuple of results of an operation that has several).
//! Formats are not part of a node: they are chosen after extraction.

use crate::ir::{Phase, TensorType};
pub use crate::precision::degree::{Degree, linear};

use crate::ops::Op;
use egg::{Analysis, DidMerge, EGraph, Id, Language};
use indexmap::IndexSet;
use precast_plan::BinaryOp;
use smallvec::SmallVec;
use std::collections::BTreeMap;
use std::sync::Arc;

/// What an e-node is, without its children.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Sym {
    Op(Op),
    /// Result `i` of a tuple class.
    Proj(u32),
    /// A variable as it is at the beginning of a phase: a variable that the micro-batch phase
    /// updates has another value in the update phase, so the two reads must not be one class.
    Var(Op, Phase),
    /// The seed of the backward pass, a literal that must not merge with an equal one.
    Seed(Op),
}

impl Sym {
    pub fn op(&self) -> Option<&Op> {
        match self {
            Sym::Op(op) | Sym::Var(op, _) | Sym::Seed(op) => Some(op),
            Sym::Proj(_) => None,
        }
    }

    /// Groups symbols for e-matching: one number an op mnemonic.
    fn kind(&self) -> u16 {
        match self {
            Sym::Op(op) => op.kind_index() as u16,
            Sym::Proj(_) => PROJ,
            Sym::Var(..) => PROJ + 1,
            Sym::Seed(_) => PROJ + 2,
        }
    }
}

/// The kind of projections.
pub const PROJ: u16 = u16::MAX - 2;

/// An e-node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ENode {
    pub kind: u16,
    pub sym: u32,
    pub children: SmallVec<[Id; 4]>,
}

impl Language for ENode {
    type Discriminant = u16;

    fn discriminant(&self) -> u16 {
        self.kind
    }
    fn matches(&self, other: &ENode) -> bool {
        self.sym == other.sym && self.children.len() == other.children.len()
    }
    fn children(&self) -> &[Id] {
        &self.children
    }
    fn children_mut(&mut self) -> &mut [Id] {
        &mut self.children
    }
}

/// What is known of a class. All of it is a property of the tensor, not of one way to compute it.
#[derive(Clone, Debug)]
pub struct Facts {
    /// One type, or one a result of a tuple.
    pub types: Arc<[TensorType]>,
    /// Degree in the seed of the backward pass: 1 for a cotangent.
    pub degree: Degree,
    /// Degree in the loss scale.
    pub exponent: Degree,
    /// All elements are this literal (bits of an f32).
    pub splat: Option<u32>,
    /// Smallest index of an original value of this class ([`u32::MAX`]: made by a rule).
    pub origin: u32,
}

impl Facts {
    pub fn ty(&self) -> &TensorType {
        &self.types[0]
    }
    pub fn splat(&self) -> Option<f32> {
        self.splat.map(f32::from_bits)
    }
}

/// The analysis, and the table of symbols.
#[derive(Default)]
pub struct Kernels {
    syms: IndexSet<Sym>,
    /// The variable whose degree is [`Facts::exponent`].
    pub loss_scale: Option<String>,
    /// Gradient accumulators: they hold scaled cotangents of earlier batches.
    pub accumulators: IndexSet<String>,
    /// How often each rule united two classes.
    pub firings: BTreeMap<String, u64>,
}

pub type Eg = EGraph<ENode, Kernels>;

impl Kernels {
    pub fn intern(&mut self, sym: Sym, children: SmallVec<[Id; 4]>) -> ENode {
        let kind = sym.kind();
        let sym = self.syms.insert_full(sym).0 as u32;
        ENode { kind, sym, children }
    }

    /// The e-node, where its symbol is known.
    pub fn find(&self, sym: &Sym, children: SmallVec<[Id; 4]>) -> Option<ENode> {
        let index = self.syms.get_index_of(sym)?;
        Some(ENode { kind: sym.kind(), sym: index as u32, children })
    }

    pub fn sym(&self, n: &ENode) -> &Sym {
        self.syms.get_index(n.sym as usize).expect("symbols are interned")
    }

    pub fn op(&self, n: &ENode) -> Option<&Op> {
        self.sym(n).op()
    }

    fn leaf_degrees(&self, sym: &Sym) -> (Degree, Degree) {
        match sym {
            Sym::Seed(_) => (Degree::Is(1), Degree::ZERO),
            Sym::Var(Op::Var(v), _) if self.loss_scale.as_ref() == Some(&v.name) => {
                (Degree::ZERO, Degree::Is(1))
            }
            Sym::Var(Op::Var(v), _) if self.accumulators.contains(&v.name) => {
                (Degree::Is(1), Degree::Is(i8::from(self.loss_scale.is_some())))
            }
            _ => (Degree::ZERO, Degree::ZERO),
        }
    }
}

impl Analysis<ENode> for Kernels {
    type Data = Facts;

    fn make(eg: &mut Eg, n: &ENode, _: Id) -> Facts {
        let sym = eg.analysis.sym(n);
        let op = match sym {
            Sym::Proj(i) => {
                let f = &eg[n.children[0]].data;
                let types: Arc<[TensorType]> = Arc::new([f.types[*i as usize].clone()]);
                return Facts { types, splat: None, origin: u32::MAX, ..*f };
            }
            Sym::Op(op) | Sym::Var(op, _) | Sym::Seed(op) => op,
        };
        let data = |i: usize| &eg[n.children[i]].data;
        let count = n.children.len();
        let types: SmallVec<[&TensorType; 4]> = (0..count).map(|i| data(i).ty()).collect();
        let types: Arc<[TensorType]> = match op.def().infer(&types) {
            Ok(t) => t.into(),
            Err(e) => panic!("a rule built {op:?} of {types:?}: {e}"),
        };
        let mut splat = splat(op, &(0..count).map(|i| data(i).splat).collect::<Vec<_>>());
        if matches!(sym, Sym::Seed(_)) {
            splat = None;
        }
        let (degree, exponent) = if count == 0 {
            eg.analysis.leaf_degrees(sym)
        } else {
            let degrees: SmallVec<[Degree; 4]> = (0..count).map(|i| data(i).degree).collect();
            let exponents: SmallVec<[Degree; 4]> = (0..count).map(|i| data(i).exponent).collect();
            (Degree::of(op, &degrees), Degree::of(op, &exponents))
        };
        let zero = splat.is_some_and(|s| f32::from_bits(s) == 0.0);
        let any = |d: Degree| Degree::settled(d, zero, types[0].is_real());
        let (degree, exponent) = (any(degree), any(exponent));
        Facts { types, degree, exponent, splat, origin: u32::MAX }
    }

    fn merge(&mut self, a: &mut Facts, b: Facts) -> DidMerge {
        assert_eq!(a.types, b.types, "a rule united tensors of different types");
        let mut did = DidMerge(false, false);
        let mut degree = |a: &mut Degree, b: Degree, what: &str| {
            // A rule may learn more than the operands showed, but never something else.
            let known = match (*a, b) {
                (x, y) if x == y => x,
                (Degree::Any, _) | (_, Degree::Any) => Degree::Any,
                (Degree::Mixed, x) | (x, Degree::Mixed) => x,
                (x, y) => panic!("a rule united tensors of {what} degree {x:?} and {y:?}"),
            };
            did.0 |= *a != known;
            did.1 |= b != known;
            *a = known;
        };
        degree(&mut a.degree, b.degree, "seed");
        degree(&mut a.exponent, b.exponent, "loss-scale");
        let splat = a.splat.or(b.splat);
        did.0 |= a.splat != splat;
        did.1 |= b.splat != splat;
        a.splat = splat;
        let origin = a.origin.min(b.origin);
        did.0 |= a.origin != origin;
        did.1 |= b.origin != origin;
        a.origin = origin;
        did
    }
}

/// The one literal that every element of a result is, from the operands'.
fn splat(op: &Op, x: &[Option<u32>]) -> Option<u32> {
    let real = |i: usize| x[i].map(f32::from_bits);
    match op {
        Op::Const(c) => c.data.splat().map(f32::to_bits),
        Op::Reshape(_) | Op::Transpose(_) | Op::Broadcast(_) | Op::Slice(_) => x[0],
        Op::Scale(s) => real(0).map(|v| (v * s.by.0 as f32).to_bits()),
        Op::ScaleBy(_) if real(1) == Some(0.0) => x[1],
        Op::Binary(b) => {
            let (a, c) = (real(0)?, real(1)?);
            let v = match b.f {
                BinaryOp::Add => a + c,
                BinaryOp::Sub => a - c,
                BinaryOp::Mul => a * c,
                BinaryOp::Div => a / c,
                _ => return None,
            };
            Some(v.to_bits())
        }
        _ => None,
    }
}
