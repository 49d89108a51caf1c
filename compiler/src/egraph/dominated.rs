//! Which alternatives of the e-graph cannot make a step cheaper than the bound of the chosen one.
//!
//! Two kinds of alternatives are settled by argument, in the terms of [`crate::bound`]:
//!
//! - *the place of a factor*: multiplications by the loss scale are left out of the bound, so it is
//!   the same wherever they are;
//! - *an epilogue apart*: a product that adds its bias and applies its activation itself costs, in
//!   every choice of formats at its edges, what the product alone costs, less a value that is
//!   written and read and at most one kernel. That holds where nothing else reads the product
//!   alone; the result before the activation comes out of the fused product too.
//!
//! What is left is counted, and a plan says so.

use super::extract::{Choice, Problem};
use super::lang::{Eg, Sym};
use crate::ops::matmul::Fused;
use crate::ops::{Lowering, MatMul, Op};

/// Alternatives of classes in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alternatives {
    /// Settled by argument.
    pub settled: u64,
    /// Neither chosen nor settled.
    pub open: u64,
}

struct Search<'a> {
    eg: &'a Eg,
    p: &'a Problem,
    /// Classes with a candidate that reads each class.
    parents: Vec<Vec<u32>>,
}

/// Counts the alternatives that no choice but this one has.
pub fn alternatives(eg: &Eg, p: &Problem, choice: &Choice) -> Alternatives {
    let mut parents: Vec<Vec<u32>> = vec![vec![]; p.classes.len()];
    for (c, list) in p.candidates.iter().enumerate() {
        for &child in list.iter().flat_map(|k| &k.children) {
            if parents[child as usize].last() != Some(&(c as u32)) {
                parents[child as usize].push(c as u32);
            }
        }
    }
    let s = Search { eg, p, parents };
    let mut out = Alternatives::default();
    let used = p.references(choice);
    for (c, list) in p.candidates.iter().enumerate().filter(|(c, _)| used[*c] > 0) {
        let Some(chosen) = choice[c].map(|k| k as usize) else { continue };
        for k in (0..list.len()).filter(|&k| k != chosen) {
            if s.settled(c as u32, chosen, k) {
                out.settled += 1;
            } else {
                out.open += 1;
            }
        }
    }
    out
}

impl Search<'_> {
    fn sym(&self, class: u32, k: usize) -> &Sym {
        self.eg.analysis.sym(&self.p.candidates[class as usize][k].node)
    }

    fn children(&self, class: u32, k: usize) -> &[u32] {
        &self.p.candidates[class as usize][k].children
    }

    /// The fused product behind a candidate: its epilogue, and its operands.
    fn fused(&self, class: u32, k: usize) -> Option<(Fused, &[u32])> {
        let of = |class: u32, k: usize| match self.sym(class, k) {
            Sym::Op(Op::MatMul(m)) if m.fused != Fused::None => {
                Some((m.fused, self.children(class, k)))
            }
            _ => None,
        };
        match self.sym(class, k) {
            Sym::Proj(_) => {
                let tuple = self.children(class, k)[0];
                (0..self.p.candidates[tuple as usize].len()).find_map(|t| of(tuple, t))
            }
            Sym::Op(op) if op.lowering() == Lowering::View => {
                let inner = self.children(class, k)[0];
                let list = &self.p.candidates[inner as usize];
                (0..list.len()).find_map(|i| match self.sym(inner, i) {
                    Sym::Op(op) if op.lowering() == Lowering::View => None,
                    _ => self.fused(inner, i),
                })
            }
            _ => of(class, k),
        }
    }

    fn settled(&self, class: u32, chosen: usize, other: usize) -> bool {
        let scale = |k: usize| matches!(self.sym(class, k), Sym::Op(Op::ScaleBy(_)));
        if scale(chosen) || scale(other) {
            return true;
        }
        let Some((_, operands)) = self.fused(class, chosen) else { return false };
        // The same product with less behind it.
        if let Some((_, less)) = self.fused(class, other) {
            return less[..2] == operands[..2];
        }
        match self.sym(class, other) {
            Sym::Op(Op::Binary(_) | Op::Activate(_)) => self
                .children(class, other)
                .iter()
                .any(|&c| self.product(c, class, &operands[..2], 0)),
            _ => false,
        }
    }

    /// Whether `class` is, up to views, the product of these operands: alone and read by nothing
    /// but `reader`, or as a result of the fused one.
    fn product(&self, class: u32, reader: u32, operands: &[u32], depth: usize) -> bool {
        let list = &self.p.candidates[class as usize];
        (0..list.len()).any(|k| match self.sym(class, k) {
            Sym::Op(Op::MatMul(MatMul { fused: Fused::None, .. })) => {
                self.children(class, k) == operands && self.private(class, reader, 0)
            }
            Sym::Op(op) if op.lowering() == Lowering::View && depth < 4 => {
                self.product(self.children(class, k)[0], reader, operands, depth + 1)
            }
            _ => self.fused(class, k).is_some_and(|(_, o)| o[..2] == *operands),
        })
    }

    /// Whether everything that reads `class`, through views, is `reader`.
    fn private(&self, class: u32, reader: u32, depth: usize) -> bool {
        self.parents[class as usize].iter().all(|&p| {
            let views = self.p.candidates[p as usize]
                .iter()
                .filter(|k| k.children.contains(&class))
                .all(|k| {
                    matches!(self.eg.analysis.sym(&k.node),
                        Sym::Op(op) if op.lowering() == Lowering::View)
                });
            p == reader || (views && depth < 4 && self.private(p, reader, depth + 1))
        })
    }
}
