//! Products of the same two operands, and what is computed from them by an epilogue.

use super::extract::{Candidate, Choice, Problem};
use super::lang::{Eg, Sym};
use crate::ir::TensorType;
use crate::ops::matmul::Fused;
use crate::ops::{Lowering, MatMul, Op};
use rustc_hash::FxHashMap;
use std::collections::BTreeSet;

/// Classes that some product of two given operands computes, alone or with an epilogue: the products
/// themselves, their results, and views of those.
pub struct Family {
    pub operands: [u32; 2],
    /// Classes of the products, which are tuples where there are two results.
    pub products: Vec<u32>,
    pub members: BTreeSet<u32>,
}

/// How the e-graph's candidates are read here.
pub struct Reader<'a> {
    pub eg: &'a Eg,
    pub p: &'a Problem,
    /// Classes with a candidate that reads each class.
    pub parents: Vec<Vec<u32>>,
    /// By class: the step must compute it.
    root: Vec<bool>,
}

impl<'a> Reader<'a> {
    pub fn new(eg: &'a Eg, p: &'a Problem) -> Reader<'a> {
        let mut parents: Vec<Vec<u32>> = vec![vec![]; p.classes.len()];
        for (c, list) in p.candidates.iter().enumerate() {
            for &child in list.iter().flat_map(|k| &k.children) {
                if parents[child as usize].last() != Some(&(c as u32)) {
                    parents[child as usize].push(c as u32);
                }
            }
        }
        let mut root = vec![false; p.classes.len()];
        p.roots.iter().for_each(|&c| root[c as usize] = true);
        Reader { eg, p, parents, root }
    }

    /// Whether a class is a root.
    pub fn is_root(&self, class: u32) -> bool {
        self.root[class as usize]
    }

    /// The type of a class with one result.
    pub fn ty(&self, class: u32) -> &'a TensorType {
        self.eg[self.p.classes[class as usize]].data.ty()
    }

    pub fn list(&self, class: u32) -> &'a [Candidate] {
        &self.p.candidates[class as usize]
    }

    pub fn op(&self, k: &Candidate) -> Option<&'a Op> {
        match self.eg.analysis.sym(&k.node) {
            Sym::Op(op) => Some(op),
            _ => None,
        }
    }

    pub fn view(&self, k: &Candidate) -> bool {
        self.op(k).is_some_and(|op| op.lowering() == Lowering::View)
    }

    pub fn projects(&self, k: &Candidate) -> bool {
        matches!(self.eg.analysis.sym(&k.node), Sym::Proj(_))
    }

    pub fn product(&self, k: &Candidate) -> Option<Fused> {
        match self.op(k) {
            Some(Op::MatMul(MatMul { fused, .. })) => Some(*fused),
            _ => None,
        }
    }

    /// What a row program makes of other members: the bias added, or the activation.
    pub fn behind(&self, k: &Candidate) -> bool {
        matches!(self.op(k), Some(Op::Binary(_) | Op::Activate(_)))
    }

    /// Every pair of operands with its family.
    pub fn families(&self) -> Vec<Family> {
        let mut at: FxHashMap<[u32; 2], usize> = FxHashMap::default();
        let mut out: Vec<Family> = vec![];
        for (c, list) in self.p.candidates.iter().enumerate() {
            for k in list.iter().filter(|k| self.product(k).is_some()) {
                let operands = [k.children[0], k.children[1]];
                let i = *at.entry(operands).or_insert_with(|| {
                    out.push(Family { operands, products: vec![], members: BTreeSet::new() });
                    out.len() - 1
                });
                if out[i].products.last() != Some(&(c as u32)) {
                    out[i].products.push(c as u32);
                }
            }
        }
        for f in &mut out {
            f.members = self.closure(f.products.clone(), |k| self.view(k) || self.projects(k));
        }
        out
    }

    /// `from`, and what candidates that `by` admits compute from it.
    pub fn closure(&self, from: Vec<u32>, by: impl Fn(&Candidate) -> bool) -> BTreeSet<u32> {
        let mut members: BTreeSet<u32> = from.iter().copied().collect();
        let mut stack = from;
        while let Some(c) = stack.pop() {
            for &p in &self.parents[c as usize] {
                let reads = |k: &Candidate| by(k) && k.children.contains(&c);
                if self.list(p).iter().any(reads) && members.insert(p) {
                    stack.push(p);
                }
            }
        }
        members
    }

    /// Classes in use that multiply these operands.
    pub fn multiplied(&self, f: &Family, choice: &Choice, used: &[u32]) -> Vec<u32> {
        let chosen = |c: u32| choice[c as usize].map(|k| &self.list(c)[k as usize]);
        let multiplies = |k: &Candidate| self.product(k).is_some() && k.children[..2] == f.operands;
        let list = f.products.iter().copied();
        list.filter(|&c| used[c as usize] > 0 && chosen(c).is_some_and(multiplies)).collect()
    }
}
