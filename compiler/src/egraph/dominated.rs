//! Which alternatives of the e-graph cannot make a step cheaper than the bound of the chosen one.
//!
//! Three kinds of alternatives are settled by argument, in the terms of [`crate::bound`]:
//!
//! - *the place of a factor*: multiplications by the loss scale are left out of the bound, so it is
//!   the same wherever they are;
//! - *a literal factor* against a tensor of it, which is the same program with an operand more;
//! - *what is behind a product*: all that the e-graph can compute by some product of two operands is
//!   a family (`families.rs`). It is settled where one product, which is the one chosen, has every result that
//!   anything outside the family may read, and the family has no other way to be computed. Any other
//!   structure then multiplies these operands at least once and stores at least one result, and the
//!   one chosen does that with nothing beside; where the other computes a bias or an activation in
//!   row programs, the bound already grants it all that this could save: of two results that are
//!   read only one is counted as stored and read, kernels may grow through the activation, and
//!   its arithmetic counts where no kernel could share it ([`crate::bound::floor`]). A result that
//!   nothing but row programs over its own elements reads need not be the product's: they compute it
//!   from what the product stores, and read that instead.
//!
//! The last argument needs formats to be free at both sides of the activation, and a bias that no
//! kernel computes. Where a person pinned formats or gave ranges, or a second product would be
//! needed, alternatives stay open. What is open is counted, and a plan says so.

use super::extract::{Candidate, Choice, Problem};
use super::families::{Family, Reader};
use super::lang::{Eg, Sym};
use crate::cost::Prices;
use crate::ir::TensorType;
use crate::ops::matmul::Fused;
use crate::ops::{Lowering, Op};
use precast_plan::Precision;
use std::collections::BTreeSet;

/// Alternatives of classes in use.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Alternatives {
    /// Settled by argument.
    pub settled: u64,
    /// Neither chosen nor settled.
    pub open: u64,
}

/// Counts the alternatives that no choice but this one has. `free`: no format was decided by a
/// person.
pub fn alternatives(
    eg: &Eg,
    p: &Problem,
    choice: &Choice,
    prices: &Prices,
    free: bool,
) -> Alternatives {
    let r = Reader::new(eg, p);
    let used = p.references(choice);
    let mut covered = vec![false; p.classes.len()];
    if free {
        for f in r.families() {
            if settled(&r, &f, choice, &used, prices) {
                f.members.iter().for_each(|&c| covered[c as usize] = true);
            }
        }
    }
    let scale = |k: &Candidate| matches!(eg.analysis.sym(&k.node), Sym::Op(Op::ScaleBy(_)));
    let mut out = Alternatives::default();
    for (c, list) in p.candidates.iter().enumerate().filter(|(c, _)| used[*c] > 0) {
        let Some(chosen) = choice[c].map(|k| k as usize) else { continue };
        // What reads its own class never computes it.
        let other = |k: &usize| *k != chosen && !list[*k].children.contains(&(c as u32));
        for k in (0..list.len()).filter(other) {
            let literal = by_literal(&r, &list[chosen], &list[k]);
            if covered[c] || literal || scale(&list[chosen]) || scale(&list[k]) {
                out.settled += 1;
            } else {
                out.open += 1;
            }
        }
    }
    out
}

/// Whether the one multiplies by a literal what the other multiplies by, or divides by, a tensor that
/// holds it: the same row program with an operand less.
fn by_literal(r: &Reader, chosen: &Candidate, other: &Candidate) -> bool {
    matches!((r.op(chosen), r.op(other)), (Some(Op::Scale(_)), Some(Op::Binary(_))))
        && other.children.contains(&chosen.children[0])
}

fn settled(r: &Reader, f: &Family, choice: &Choice, used: &[u32], prices: &Prices) -> bool {
    let &[product] = r.multiplied(f, choice, used).as_slice() else { return false };
    let k = choice[product as usize].expect("a class in use");
    let bias = r.list(product)[k as usize].children.get(2);
    if bias.is_some_and(|&b| !leaf(r, b, 0)) {
        return false;
    }
    let results = derived(r, f, r.closure(vec![product], |k| r.view(k) || r.projects(k)));
    let within = |c: &u32| f.members.contains(c);
    f.members.iter().all(|&c| {
        let read = r.is_root(c) || !r.parents[c as usize].iter().all(within);
        (!read || results.contains(&c))
            && r.list(c).iter().all(|k| match r.product(k) {
                Some(_) if k.children[..2] == f.operands => {
                    k.children.get(2).is_none_or(|b| bias.is_none_or(|own| b == own))
                }
                Some(fused) => fused == Fused::None && no_faster(r, c, k, f, prices),
                None => {
                    (r.view(k) || r.projects(k) || r.behind(k)) && k.children.iter().any(within)
                }
            })
    })
}

/// Points of the iteration space of a candidate that is a row program.
fn points(r: &Reader, class: u32, k: &Candidate) -> Option<usize> {
    let op = r.op(k).filter(|op| op.lowering() == Lowering::Rows)?;
    let types = |c: u32| r.eg[r.p.classes[c as usize]].data.types.iter();
    let x: Vec<&TensorType> = k.children.iter().map(|&c| r.ty(c)).collect();
    let y: Vec<&TensorType> = types(class).collect();
    Some(op.def().row_spec(&x, &y).dims.iter().product())
}

/// Results of the chosen product, and what is as well computed by the row programs that read it: all
/// of them have its elements as their points, so that each can compute it from the results, once for
/// every time that it would have read it.
fn derived(r: &Reader, f: &Family, mut results: BTreeSet<u32>) -> BTreeSet<u32> {
    let elements = |c: u32| r.ty(c).shape.elements();
    let in_rows = |c: u32| {
        let outside = r.parents[c as usize].iter().filter(|p| !f.members.contains(p));
        !r.is_root(c)
            && outside.copied().all(|p| {
                let reads = r.list(p).iter().filter(|k| k.children.contains(&c));
                reads.into_iter().all(|k| points(r, p, k) == Some(elements(c)))
            })
    };
    loop {
        let next = f.members.iter().copied().find(|&c| {
            let from = |k: &Candidate| {
                let mut inside = k.children.iter().filter(|x| f.members.contains(x)).peekable();
                (r.behind(k) || r.view(k))
                    && inside.peek().is_some()
                    && inside.all(|x| results.contains(x))
            };
            !results.contains(&c) && r.list(c).iter().any(from) && in_rows(c)
        });
        let Some(c) = next else { return results };
        results.insert(c);
    }
}

/// Whether a class is, up to views, in memory when the step begins.
fn leaf(r: &Reader, class: u32, depth: usize) -> bool {
    r.list(class).iter().any(|k| match r.eg.analysis.op(&k.node).map(|op| op.lowering()) {
        Some(Lowering::Leaf) => true,
        Some(Lowering::View) => depth < 4 && leaf(r, k.children[0], depth + 1),
        _ => false,
    })
}

/// Whether another product with the same result, such as the batched one over a matrix that is
/// repeated, multiplies no faster in any precision.
fn no_faster(r: &Reader, class: u32, k: &Candidate, f: &Family, prices: &Prices) -> bool {
    let y: [&TensorType; 1] = [r.ty(class)];
    let x = |list: &[u32]| -> Vec<&'_ TensorType> { list.iter().map(|&c| r.ty(c)).collect() };
    let (theirs, own) = (x(&k.children[..2]), x(&f.operands));
    let plain = Op::MatMul(crate::ops::MatMul::plain());
    let all = [Precision::F32, Precision::Tf32, Precision::Bf16, Precision::F16, Precision::Fp8];
    let volume = |x: &[&TensorType]| plain.def().flops(x, &y);
    volume(&theirs) == volume(&own)
        && all.into_iter().all(|p| {
            let a = prices.multiply(&plain, &theirs, &y, p);
            let b = prices.multiply(&plain, &own, &y, p);
            a.is_none_or(|a| b.is_some_and(|b| b <= a))
        })
}
