//! The rewrite rules, one row each.
//!
//! A rule looks at one e-node and the classes around it, and adds equal e-nodes. Patterns are Rust
//! functions rather than text because nearly every one reads attributes and shapes.

mod algebra;
mod fusion;
mod movement;
mod products;
mod scale;

use super::lang::{ENode, Eg, Facts, Kernels, Sym};
use crate::ops::{Op, Reshape, Transpose};
use egg::{
    Applier, Id, Language, PatternAst, Rewrite, SearchMatches, Searcher, Subst, Symbol, Var,
};
use smallvec::SmallVec;

/// One rule.
pub struct Rule {
    pub name: &'static str,
    /// Whether the two sides agree bit for bit in f32. The others reassociate sums or products.
    pub exact: bool,
    /// Mnemonic of the operation it starts from.
    pub root: &'static str,
    pub apply: fn(&mut Rw, Id, &Op, &[Id]),
}

/// Every rule, in the order they run.
pub static RULES: &[&[Rule]] =
    &[movement::RULES, algebra::RULES, products::RULES, fusion::RULES, scale::RULES];

pub fn all() -> impl Iterator<Item = &'static Rule> {
    RULES.iter().flat_map(|r| r.iter())
}

/// Rules whose results can still be differentiated: nothing is fused yet.
pub fn before_gradients() -> impl Iterator<Item = &'static Rule> {
    [movement::RULES, algebra::RULES, products::RULES].into_iter().flatten()
}

/// The e-graph while a rule is applied.
pub struct Rw<'a> {
    pub eg: &'a mut Eg,
    changed: Vec<Id>,
    rule: &'static str,
}

impl Rw<'_> {
    pub fn facts(&self, id: Id) -> &Facts {
        &self.eg[id].data
    }
    pub fn shape(&self, id: Id) -> Vec<usize> {
        self.eg[id].data.ty().shape.to_vec()
    }

    pub fn add(&mut self, op: impl Into<Op>, children: &[Id]) -> Id {
        self.add_sym(Sym::Op(op.into()), children)
    }
    pub fn add_sym(&mut self, sym: Sym, children: &[Id]) -> Id {
        let n = self.eg.analysis.intern(sym, SmallVec::from_slice(children));
        self.eg.add(n)
    }
    pub fn proj(&mut self, i: u32, tuple: Id) -> Id {
        self.add_sym(Sym::Proj(i), &[tuple])
    }

    /// The class of an e-node, where it is in the e-graph already.
    pub fn lookup(&self, op: impl Into<Op>, children: &[Id]) -> Option<Id> {
        let n = self.eg.analysis.find(&Sym::Op(op.into()), SmallVec::from_slice(children))?;
        self.eg.lookup(n)
    }

    /// States that two classes are one tensor.
    pub fn unite(&mut self, a: Id, b: Id) {
        self.unite_as(a, b, self.rule);
    }
    pub fn unite_as(&mut self, a: Id, b: Id, rule: &str) {
        if self.eg.union_trusted(a, b, Symbol::from(self.rule)) {
            self.changed.push(a);
            *self.eg.analysis.firings.entry(rule.to_string()).or_insert(0) += 1;
        }
    }

    /// The operations of a class that `pick` accepts, with their operands.
    pub fn nodes<T>(&self, id: Id, pick: impl Fn(&Op) -> Option<T>) -> Vec<(T, SmallVec<[Id; 4]>)> {
        let class = &self.eg[self.eg.find(id)];
        class
            .nodes
            .iter()
            .filter_map(|n| match self.eg.analysis.sym(n) {
                Sym::Op(op) => pick(op).map(|t| (t, n.children.clone())),
                _ => None,
            })
            .collect()
    }

    /// `id` under other extents, through no more than one reshape.
    pub fn reshape(&mut self, id: Id, shape: &[usize]) -> Id {
        if self.shape(id) == shape {
            return id;
        }
        let inner = self.nodes(id, |op| matches!(op, Op::Reshape(_)).then_some(()));
        for (_, x) in &inner {
            if self.shape(x[0]) == shape {
                return x[0];
            }
        }
        let from = inner.first().map_or(id, |(_, x)| x[0]);
        self.add(Reshape { shape: shape.to_vec() }, &[from])
    }

    pub fn transpose(&mut self, id: Id, perm: &[usize]) -> Id {
        if perm.iter().enumerate().all(|(i, &p)| i == p) {
            return id;
        }
        let inner = self.nodes(id, |op| match op {
            Op::Transpose(t) => Some(t.perm.clone()),
            _ => None,
        });
        if let Some((first, x)) = inner.first() {
            let both: Vec<usize> = perm.iter().map(|&p| first[p]).collect();
            if both.iter().enumerate().all(|(i, &p)| i == p) {
                return x[0];
            }
            return self.add(Transpose { perm: both }, &[x[0]]);
        }
        self.add(Transpose { perm: perm.to_vec() }, &[id])
    }

    /// Swaps the last two axes.
    pub fn swap_last(&mut self, id: Id) -> Id {
        let rank = self.shape(id).len();
        let mut perm: Vec<usize> = (0..rank).collect();
        perm.swap(rank - 2, rank - 1);
        self.transpose(id, &perm)
    }
}

/// The permutation that swaps the last two axes.
pub fn swaps_last(perm: &[usize]) -> bool {
    let r = perm.len();
    r >= 2 && perm[r - 2] == r - 1 && perm[r - 1] == r - 2 && (0..r - 2).all(|i| perm[i] == i)
}

struct Row(&'static Rule);

/// egg's rewrites of these rules.
pub fn rewrites<'a>(rules: impl Iterator<Item = &'a Rule>) -> Vec<Rewrite<ENode, Kernels>>
where
    'a: 'static,
{
    rules
        .map(|r| Rewrite::new(r.name, Row(r), Row(r)).expect("rules have no pattern variables"))
        .collect()
}

impl Row {
    fn kind(&self) -> u16 {
        let at = Op::NAMES.iter().position(|n| *n == self.0.root);
        at.expect("a rule starts from an operation of the list") as u16
    }
}

impl Searcher<ENode, Kernels> for Row {
    fn search_with_limit(&self, eg: &Eg, limit: usize) -> Vec<SearchMatches<'_, ENode>> {
        let Some(classes) = eg.classes_for_op(&self.kind()) else { return vec![] };
        let mut ids: Vec<Id> = classes.collect();
        ids.sort_unstable();
        ids.truncate(limit);
        ids.into_iter()
            .map(|eclass| SearchMatches { eclass, substs: vec![Subst::default()], ast: None })
            .collect()
    }
    fn search_eclass_with_limit(
        &self,
        eg: &Eg,
        eclass: Id,
        _: usize,
    ) -> Option<SearchMatches<'_, ENode>> {
        let kind = self.kind();
        eg[eclass].nodes.iter().any(|n| n.kind == kind).then(|| SearchMatches {
            eclass,
            substs: vec![Subst::default()],
            ast: None,
        })
    }
    fn vars(&self) -> Vec<Var> {
        vec![]
    }
}

impl Applier<ENode, Kernels> for Row {
    fn apply_one(
        &self,
        eg: &mut Eg,
        id: Id,
        _: &Subst,
        _: Option<&PatternAst<ENode>>,
        _: Symbol,
    ) -> Vec<Id> {
        let kind = self.kind();
        let found: Vec<(Op, SmallVec<[Id; 4]>)> = eg[id]
            .nodes
            .iter()
            .filter(|n| n.kind == kind)
            .filter_map(|n| match eg.analysis.sym(n) {
                Sym::Op(op) => Some((op.clone(), n.children().into())),
                _ => None,
            })
            .collect();
        let mut rw = Rw { eg, changed: Vec::new(), rule: self.0.name };
        for (op, children) in found {
            (self.0.apply)(&mut rw, id, &op, &children);
        }
        rw.changed
    }
}
