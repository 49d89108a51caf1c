//! What f16's range asks of a graph of which nothing was measured: squares and what is computed from
//! them, divisors, arguments of logarithms and roots, and whatever a constant guards that f16 rounds
//! to 0. The operations say it of themselves ([`OpDef::reach`], [`OpDef::poles`]).
//!
//! [`OpDef::reach`]: crate::ops::OpDef::reach
//! [`OpDef::poles`]: crate::ops::OpDef::poles

use super::legal::Why;
use crate::ir::{Graph, Node, NodeId, Region, ValueId};
use crate::ops::range::Ranges;
use crate::ops::{Linear, Lowering, NumericClass, Op};
use precast_plan::DType;
use std::collections::BTreeSet;

/// By value: why it is stored in f32, and why not even a copy is narrower.
pub struct Needs {
    pub store: Vec<Option<Why>>,
    pub copy: Vec<Option<Why>>,
}

struct Finder<'a> {
    g: &'a Graph,
    half: DType,
    known: Ranges,
    /// By value: depends on the seed of the backward pass.
    cotangent: &'a [bool],
    /// By value: the constant that keeps it from 0, in words, where the format does not hold that.
    guard: Vec<Option<String>>,
    /// By value: why an operation needs it with all its digits.
    exact: Vec<Option<Why>>,
    /// By value: what such a cotangent was divided by, of those that have no copy.
    divisor: Vec<Option<ValueId>>,
    needs: Needs,
}

/// What `half`, a format of narrower range than f32, does not hold of a graph. `cotangent` tells by
/// value what depends on the seed of the backward pass.
pub fn needs(g: &Graph, half: DType, cotangent: &[bool]) -> Needs {
    let n = g.value_count();
    let known = Ranges::of(g, half.facts().max / super::ranges::HEADROOM);
    let needs = Needs { store: vec![None; n], copy: vec![None; n] };
    let mut f = Finder {
        g,
        half,
        known,
        cotangent,
        guard: vec![None; n],
        exact: vec![None; n],
        divisor: vec![None; n],
        needs,
    };
    for (_, node) in g.nodes().filter(|(_, n)| n.region != Region::Update) {
        f.literals(node);
        f.guarded(node);
        f.far(node);
        f.poles(node);
        f.quotients(node);
    }
    f.moved();
    f.needs
}

/// The value of a real literal all of whose elements are equal, and the literal's node.
fn literal(g: &Graph, v: ValueId) -> Option<(f64, NodeId)> {
    let mut v = v;
    while g.def(v).op.lowering() == Lowering::View {
        v = g.def(v).inputs[0];
    }
    match &g.def(v).op {
        Op::Const(c) => Some((c.data.splat()?.into(), g.value(v).node)),
        _ => None,
    }
}

impl Finder<'_> {
    fn keep(&mut self, v: ValueId, why: impl Into<Why>) {
        if self.g.ty(v).is_real() {
            self.needs.store[v.0 as usize].get_or_insert(why.into());
        }
    }

    /// A constant that is added, compared with or chosen, and that the format rounds to 0 or to a
    /// subnormal number: a floor below it would be another number. In a product a small factor is a
    /// matter of reach.
    fn literals(&mut self, node: &Node) {
        let (g, facts) = (self.g, self.half.facts());
        if node.op.lowering() != Lowering::Rows {
            return;
        }
        let factor = |i: usize| matches!(node.op.def().linear(), Linear::Each(l) if l.contains(&i));
        let small =
            node.inputs.iter().enumerate().filter(|(i, _)| !factor(*i)).find_map(|(i, &v)| {
                let (c, at) = literal(g, v)?;
                (c != 0.0 && c.abs() < facts.min_normal).then_some((i, c, at))
            });
        let Some((i, c, at)) = small else { return };
        let state = match self.half.round(c as f32) {
            0.0 => "0",
            _ => "a subnormal number",
        };
        let name = &g.node(at).name;
        let why = format!("`{name}` {:e} is {state} in {}", c as f32, self.half);
        let y = node.outputs[0];
        if g.ty(y).is_real() {
            self.guard[y.0 as usize] = Some(why.clone());
            self.keep(y, why.clone());
        }
        // Numbers as small as the constant count, so they are not rounded on their way in.
        let others = node.inputs.iter().enumerate().filter(|(j, _)| *j != i);
        others.for_each(|(_, &v)| self.exact(v, why.clone().into()));
    }

    fn exact(&mut self, v: ValueId, why: Why) {
        let at = self.storage(v);
        if self.g.ty(v).is_real() {
            self.exact[at.0 as usize].get_or_insert(why.clone());
            self.keep(v, why);
        }
    }

    /// What is moved or chosen from tensors has the digits that they were stored with.
    fn moved(&mut self) {
        for (_, node) in self.g.nodes().rev().filter(|(_, n)| n.region != Region::Update) {
            let why = self.exact[node.outputs[0].0 as usize].clone();
            if let (Some(why), NumericClass::Movement) = (why, node.op.class()) {
                node.inputs.iter().for_each(|&v| self.exact(v, why.clone()));
            }
        }
    }

    /// The guard of an operand holds of what is made of that operand alone.
    fn guarded(&mut self, node: &Node) {
        let [x] = node.inputs[..] else { return };
        let ends = node.op.def().poles().iter().any(|p| p.divides);
        let y = node.outputs[0];
        if let (Some(why), false) = (self.guard[x.0 as usize].clone(), ends) {
            self.guard[y.0 as usize].get_or_insert(why.clone());
            self.keep(y, why);
        }
    }

    /// Results that ordinary operands say nothing about, and what reaches far or nowhere with them.
    fn far(&mut self, node: &Node) {
        let y = node.outputs[0];
        let at = y.0 as usize;
        let poles = node.op.def().poles();
        let operand = |i: usize| node.inputs[i].0 as usize;
        let guard = poles.iter().find_map(|p| self.guard[operand(p.operand)].clone());
        if let Some(why) = self.known.beyond[at] {
            self.keep(y, guard.map_or(why.into(), Why::from));
        }
        let reach = self.known.reach[at];
        if let Some(from) = self.known.from[at] {
            match &self.g.def(from).name {
                name if from != y => {
                    self.keep(y, format!("made of `{name}`, which {} may not hold", self.half));
                }
                _ => self
                    .keep(y, format!("it reaches {reach:.0} times as far as what it is made of")),
            }
        }
        // A cotangent's size is the loss scale's business.
        let facts = self.half.facts();
        if reach < facts.min_normal && !self.cotangent[at] && self.g.ty(y).is_real() {
            let why = format!("a factor of {reach:.0e} leaves nothing of it in {}", self.half);
            self.needs.copy[at].get_or_insert(why.clone().into());
            self.keep(y, why);
        }
    }

    /// Operands whose rounding decides whether a result is finite.
    fn poles(&mut self, node: &Node) {
        for p in node.op.def().poles() {
            let x = node.inputs[p.operand];
            let enough = if p.at == 0.0 { self.half.facts().min_normal } else { p.at.abs() / 2.0 };
            if self.known.bounds[x.0 as usize].away(p.at) >= enough {
                continue;
            }
            let why = match &self.guard[x.0 as usize] {
                Some(why) => why.clone(),
                None if p.at == 0.0 => format!(
                    "`{}` needs to know how near it is to 0: {} rounds to 0 what is below {:.0e}",
                    node.name,
                    self.half,
                    self.half.facts().min_subnormal / 2.0
                ),
                None => format!("`{}` needs to know how near it is to {}", node.name, p.at),
            };
            self.exact(x, why.into());
        }
    }

    /// Cotangents divided by what nothing but a guard keeps from 0, a guard that the format does not
    /// hold: where it acts, rows of zeros, they are beyond the format under any useful loss scale.
    fn quotients(&mut self, node: &Node) {
        let y = node.outputs[0];
        let cotangent = |v: ValueId| self.cotangent[v.0 as usize];
        if !cotangent(y) || !self.g.ty(y).is_real() {
            return;
        }
        let least = self.half.facts().min_normal;
        let Linear::Each(list) = node.op.def().linear() else { return self.carried(node) };
        let own = (0..node.inputs.len()).find_map(|i| {
            let x = node.inputs[i];
            let divides_linear = list.iter().any(|&j| j != i && cotangent(node.inputs[j]));
            if cotangent(x) || !divides_linear {
                return None;
            }
            if let Some(p) = node.op.def().poles().iter().find(|p| p.operand == i) {
                let away = self.known.bounds[x.0 as usize].away(0.0);
                let guarded = p.divides && away > 0.0 && away < least;
                return guarded.then(|| Some((self.guard[x.0 as usize].clone()?, x)))?;
            }
            // A factor that is itself one over what is guarded.
            let v = self.storage(x);
            let inverse = self.g.def(v);
            let p = inverse.op.def().poles().iter().find(|p| p.divides)?;
            let d = inverse.inputs[p.operand];
            let alone = inverse.inputs.iter().all(|&v| v == d || literal(self.g, v).is_some());
            let most = self.known.bounds[v.0 as usize].abs().hi;
            let large = alone && most.is_finite() && most > 1.0 / least;
            large.then(|| Some((self.guard[d.0 as usize].clone()?, d)))?
        });
        match own {
            Some((why, divisor)) => {
                let why = format!("a cotangent divided by what is as small as its guard: {why}");
                self.unbounded(y, why.into(), divisor);
            }
            None => self.carried(node),
        }
    }

    fn storage(&self, v: ValueId) -> ValueId {
        let mut v = v;
        while self.g.def(v).op.lowering() == Lowering::View {
            v = self.g.def(v).inputs[0];
        }
        v
    }

    fn unbounded(&mut self, y: ValueId, why: Why, divisor: ValueId) {
        self.divisor[y.0 as usize] = Some(divisor);
        self.needs.copy[y.0 as usize].get_or_insert(why.clone());
        self.keep(y, why);
    }

    /// What is made of such a cotangent is one too, up to the next product or normalisation. A sum
    /// with an ordinary cotangent is not: that is where a residual stream takes it in, and the loss
    /// scale is there for what overflows in it.
    fn carried(&mut self, node: &Node) {
        let class = node.op.class();
        let moves = matches!(class, NumericClass::Pointwise | NumericClass::Movement);
        if !moves && !matches!(node.op.def().linear(), Linear::All) {
            return;
        }
        let all: Vec<ValueId> = node.inputs.iter().copied().collect();
        let all: Vec<_> = all.into_iter().filter(|v| self.cotangent[v.0 as usize]).collect();
        let found = |v: &ValueId| {
            Some((self.needs.copy[v.0 as usize].clone()?, self.divisor[v.0 as usize]?))
        };
        let sums = class == NumericClass::Pointwise && node.op.def().linear() == Linear::All;
        if sums && all.iter().any(|v| found(v).is_none()) {
            return;
        }
        let Some((why, divisor)) = all.iter().find_map(found) else { return };
        // Where what is guarded is 0, so is what it was computed from, and this with it.
        let mask = node.op.def().masked_by();
        if mask.is_some_and(|i| self.depends(divisor, node.inputs[i])) {
            return;
        }
        self.unbounded(node.outputs[0], why, divisor);
    }

    /// Whether a value is computed from another, short of a product.
    fn depends(&self, v: ValueId, on: ValueId) -> bool {
        let on = self.storage(on);
        let (mut seen, mut work) = (BTreeSet::new(), vec![v]);
        while let Some(v) = work.pop() {
            if v == on {
                return true;
            }
            let n = self.g.def(v);
            if n.op.class() != NumericClass::Product && seen.insert(v) {
                work.extend(&n.inputs);
            }
        }
        false
    }
}
