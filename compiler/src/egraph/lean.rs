//! A second structure, for where epilogues store what row programs would have kept in registers.
//!
//! Extraction prices every operation alone, with all that it reads and writes. By those prices a
//! second product over few columns can be cheaper than an activation over its many results, though
//! the schedule would compute the activation inside the program that reads it, for nothing. The
//! same holds for the second result of a product where only row programs read the first. Which is
//! cheaper is known once both are scheduled.

use super::extract::{Candidate, Choice, Problem};
use super::families::{Family, Reader};
use super::lang::{Eg, Sym};
use crate::ops::Lowering;
use crate::ops::matmul::Fused;
use std::collections::BTreeSet;

/// The choice with every pair of operands multiplied once, and nothing behind the product but what
/// other kernels need; `None` where that is the choice already.
pub fn lean(eg: &Eg, p: &Problem, choice: &Choice) -> Option<Choice> {
    let r = Reader::new(eg, p);
    let (mut best, mut used) = (choice.clone(), p.references(choice));
    for f in r.families().iter().filter(|f| f.products.len() > 1) {
        let products = r.multiplied(f, &best, &used);
        let wasteful = products.len() > 1
            || products.first().is_some_and(|&t| registers_would_do(&r, &best, &used, t));
        if wasteful && let Some(better) = once(&r, f, &best) {
            used = p.references(&better);
            best = better;
        }
    }
    (best != *choice).then_some(best)
}

/// Whether a product stores two results of which only row programs read the first.
fn registers_would_do(r: &Reader, choice: &Choice, used: &[u32], product: u32) -> bool {
    let chosen = |c: u32| choice[c as usize].map(|k| &r.list(c)[k as usize]);
    let Some(Some(fused)) = chosen(product).map(|k| r.product(k)) else { return false };
    if !fused.has_aux() {
        return false;
    }
    let results: Vec<u32> = r.parents[product as usize]
        .iter()
        .copied()
        .filter(|&c| used[c as usize] > 0)
        .filter(|&c| chosen(c).is_some_and(|k| r.projects(k) && k.children[0] == product))
        .collect();
    let first = results.iter().find(|&&c| {
        let sym = chosen(c).map(|k| r.eg.analysis.sym(&k.node));
        matches!(sym, Some(Sym::Proj(0)))
    });
    let (Some(&first), 2) = (first, results.len()) else { return false };
    let mut stack = vec![first];
    while let Some(c) = stack.pop() {
        if r.is_root(c) {
            return false;
        }
        for &reader in r.parents[c as usize].iter().filter(|&&x| used[x as usize] > 0) {
            let Some(k) = chosen(reader).filter(|k| k.children.contains(&c)) else { continue };
            match r.op(k).map(|op| op.lowering()) {
                Some(Lowering::Rows) => {}
                Some(Lowering::View) => stack.push(reader),
                _ => return false,
            }
        }
    }
    true
}

/// The choice with one product of the family's operands, with as little behind it as is needed
/// once; everything else is a view or a row program.
fn once(r: &Reader, f: &Family, choice: &Choice) -> Option<Choice> {
    for fused in [Fused::Bias, Fused::None] {
        for &base in &f.products {
            let own = |k: &Candidate| r.product(k) == Some(fused) && k.children[..2] == f.operands;
            let Some(k) = r.list(base).iter().position(own) else { continue };
            let mut new = choice.clone();
            new[base as usize] = Some(k as u32);
            derive(r, f, base, &mut new);
            if acyclic(r.p, &new) {
                let used = r.p.references(&new);
                if r.multiplied(f, &new, &used) == [base] {
                    return Some(new);
                }
            }
        }
    }
    None
}

/// Chooses, for every member that can be had so, a view or a row program over the members that are
/// had already, beginning with `base`.
fn derive(r: &Reader, f: &Family, base: u32, choice: &mut Choice) {
    let mut had = BTreeSet::from([base]);
    loop {
        let pick = |rows: bool, had: &BTreeSet<u32>| {
            f.members.iter().filter(|c| !had.contains(c)).find_map(|&c| {
                let fits = |k: &Candidate| {
                    let inside: Vec<_> =
                        k.children.iter().filter(|x| f.members.contains(x)).collect();
                    (if rows { r.behind(k) } else { r.view(k) })
                        && !inside.is_empty()
                        && inside.iter().all(|x| had.contains(x))
                };
                r.list(c).iter().position(fits).map(|k| (c, k))
            })
        };
        let Some((c, k)) = pick(false, &had).or_else(|| pick(true, &had)) else { return };
        choice[c as usize] = Some(k as u32);
        had.insert(c);
    }
}

/// Whether nothing in use is computed from itself, and everything can be computed.
pub fn acyclic(p: &Problem, choice: &Choice) -> bool {
    let mut colour = vec![0u8; choice.len()];
    for &root in &p.roots {
        let mut stack = vec![(root, 0)];
        if colour[root as usize] == 2 {
            continue;
        }
        colour[root as usize] = 1;
        while let Some((c, at)) = stack.pop() {
            let Some(k) = choice[c as usize] else { return false };
            let children = &p.candidates[c as usize][k as usize].children;
            let Some(&next) = children.get(at) else {
                colour[c as usize] = 2;
                continue;
            };
            stack.push((c, at + 1));
            match colour[next as usize] {
                0 => {
                    colour[next as usize] = 1;
                    stack.push((next, 0));
                }
                1 => return false,
                _ => {}
            }
        }
    }
    true
}
