//! Scale motion: a factor on a cotangent moves to the seed of the backward pass.
//!
//! One rule for the whole op table, generated from [`crate::ops::OpDef::linear`]: the factor moves
//! into the operands in which an operation is linear and that depend on the seed. The degree of a
//! value in the seed is a fact of its class, so that a factor never moves into an activation.

use super::{Rule, Rw};
use crate::egraph::lang::{Degree, Sym, linear};
use crate::ops::{Linear, Op, ScaleBy};
use egg::Id;
use smallvec::SmallVec;

pub static RULES: &[Rule] =
    &[Rule { name: "scale-motion", exact: false, root: "scale_by", apply: motion }];

/// Moves as far as it goes at once: egg's rounds would take one operation each.
fn motion(rw: &mut Rw, _: Id, _: &Op, x: &[Id]) {
    let factor = x[0];
    let scalar_free = matches!(rw.facts(factor).degree, Degree::ZERO);
    if !scalar_free {
        return;
    }
    let mut todo = vec![x[1]];
    while let Some(value) = todo.pop() {
        if rw.facts(value).degree == Degree::Any && rw.facts(value).splat() == Some(0.0) {
            let scaled = rw.add(ScaleBy {}, &[factor, value]);
            rw.unite_as(scaled, value, "scale-of-zero");
            continue;
        }
        if rw.facts(value).degree != Degree::Is(1) {
            continue;
        }
        let scaled = rw.add(ScaleBy {}, &[factor, value]);
        for (sym, children) in producers(rw, value) {
            let (tuple, result) = match sym {
                Sym::Proj(i) => (children[0], Some(i)),
                _ => (value, None),
            };
            let nodes = match result {
                Some(_) => producers(rw, tuple),
                None => vec![(sym, children)],
            };
            for (sym, children) in nodes {
                let Sym::Op(op) = &sym else { continue };
                let Some(moved) = operands(rw, op, factor, &children, &mut todo) else { continue };
                let mut y = rw.add(op.clone(), &moved);
                if let Some(i) = result {
                    y = rw.proj(i, y);
                }
                rw.unite_as(scaled, y, &format!("scale-through-{}", op.name()));
            }
        }
    }
}

fn producers(rw: &Rw, id: Id) -> Vec<(Sym, SmallVec<[Id; 4]>)> {
    let class = &rw.eg[rw.eg.find(id)];
    class.nodes.iter().map(|n| (rw.eg.analysis.sym(n).clone(), n.children.clone())).collect()
}

/// The operands with the factor moved into those that carry the seed; notes which scaled values
/// are new.
fn operands(
    rw: &mut Rw,
    op: &Op,
    factor: Id,
    x: &[Id],
    todo: &mut Vec<Id>,
) -> Option<SmallVec<[Id; 4]>> {
    let carries = |rw: &Rw, id: Id| rw.facts(id).degree == Degree::Is(1);
    let inert = |rw: &Rw, id: Id| matches!(rw.facts(id).degree, Degree::Any | Degree::ZERO);
    let which: Vec<usize> = match linear(op) {
        Linear::No => return None,
        Linear::All => {
            let real = |i: &usize| rw.facts(x[*i]).ty().is_real();
            let all: Vec<usize> = (0..x.len()).filter(real).collect();
            // A zero stays a zero.
            let ok = |i: &usize| carries(rw, x[*i]) || rw.facts(x[*i]).splat() == Some(0.0);
            if !all.iter().all(ok) {
                return None;
            }
            all.into_iter().filter(|&i| carries(rw, x[i])).collect()
        }
        Linear::Each(list) => {
            let carriers: Vec<usize> =
                list.iter().copied().filter(|&i| carries(rw, x[i])).collect();
            let rest = (0..x.len()).filter(|i| !carriers.contains(i));
            if carriers.len() != 1 || !rest.into_iter().all(|i| inert(rw, x[i])) {
                return None;
            }
            carriers
        }
    };
    let mut moved: SmallVec<[Id; 4]> = x.into();
    for i in which {
        let known = rw.lookup(ScaleBy {}, &[factor, x[i]]);
        moved[i] = match known {
            Some(id) => id,
            None => {
                todo.push(x[i]);
                rw.add(ScaleBy {}, &[factor, x[i]])
            }
        };
    }
    Some(moved)
}
