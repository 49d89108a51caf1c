//! Choosing one e-node for every class that the step needs.
//!
//! A greedy dynamic programme over cost *sets* (each class keeps the set of classes it would make
//! the step compute, so that a shared class is paid once), then local search by exact marginal
//! cost: switch one class, or all results of an operation that has several at once.

use super::lang::{ENode, Eg, Sym};
use super::sets::Sets;
use crate::cost::Prices;
use crate::ir::TensorType;
use crate::work::Work;
use egg::{Id, Language};
use precast_plan::DType;
use rustc_hash::FxHashMap;
use smallvec::SmallVec;

/// Prices are integers (picoseconds), so that sums do not depend on their order.
pub type Price = u64;

pub struct Candidate {
    pub node: ENode,
    pub children: SmallVec<[u32; 4]>,
    pub price: Price,
}

impl Candidate {
    /// Each child once, in order.
    pub fn distinct(&self) -> impl Iterator<Item = &u32> {
        let before = |i: usize| &self.children[..i];
        self.children.iter().enumerate().filter(move |(i, c)| !before(*i).contains(c)).map(|x| x.1)
    }
}

/// The classes that the roots can reach, with what could compute them.
pub struct Problem {
    pub classes: Vec<Id>,
    pub index: FxHashMap<Id, u32>,
    pub candidates: Vec<Vec<Candidate>>,
    pub roots: Vec<u32>,
}

/// A candidate for every class (`None` where a class cannot be computed without itself).
pub type Choice = Vec<Option<u32>>;

impl Problem {
    pub fn new(eg: &Eg, roots: &[Id], prices: &Prices, format: DType) -> Problem {
        let mut p = Problem {
            classes: Vec::new(),
            index: FxHashMap::default(),
            candidates: Vec::new(),
            roots: Vec::new(),
        };
        p.roots = roots.iter().map(|&r| p.class(eg.find(r))).collect();
        let mut next = 0;
        while next < p.classes.len() {
            let class = p.classes[next];
            let mut list = Vec::new();
            for node in &eg[class].nodes {
                let children = node.children().iter().map(|&c| p.class(eg.find(c))).collect();
                list.push(Candidate {
                    price: price(eg, node, class, prices, format),
                    node: node.clone(),
                    children,
                });
            }
            // On equal prices the factor has moved on, and older symbols win.
            list.sort_by_key(|c| {
                let scales =
                    matches!(eg.analysis.sym(&c.node), Sym::Op(crate::ops::Op::ScaleBy(_)));
                (c.price, scales, c.node.sym, c.children.clone())
            });
            p.candidates.push(list);
            next += 1;
        }
        p
    }

    /// Makes given e-nodes that have operands dearer than anything else.
    pub fn avoid(&mut self, nodes: &FxHashMap<ENode, u32>) {
        for list in &mut self.candidates {
            for c in list.iter_mut() {
                if !c.children.is_empty() && nodes.contains_key(&c.node) {
                    c.price += 1 << 40;
                }
            }
        }
    }

    fn class(&mut self, id: Id) -> u32 {
        if let Some(&i) = self.index.get(&id) {
            return i;
        }
        let i = self.classes.len() as u32;
        self.classes.push(id);
        self.index.insert(id, i);
        i
    }

    /// Chooses.
    ///
    /// # Panics
    /// Where a root cannot be computed, which the original graph rules out.
    pub fn solve(&self, eg: &Eg) -> Choice {
        let mut choice = self.sets();
        self.climb(eg, &mut choice);
        choice
    }

    /// All classes, operands before what reads them where no class can be computed from itself.
    pub fn operands_first(&self) -> Vec<u32> {
        let mut seen = vec![false; self.classes.len()];
        let mut out = Vec::with_capacity(seen.len());
        for root in 0..self.classes.len() as u32 {
            if std::mem::replace(&mut seen[root as usize], true) {
                continue;
            }
            let children = |c: u32| self.candidates[c as usize].iter().flat_map(|k| &k.children);
            let mut stack = vec![(root, children(root))];
            while let Some((class, rest)) = stack.last_mut() {
                match rest.find(|&&c| !seen[c as usize]) {
                    Some(&c) => {
                        seen[c as usize] = true;
                        stack.push((c, children(c)));
                    }
                    None => {
                        out.push(*class);
                        stack.pop();
                    }
                }
            }
        }
        out
    }

    fn sets(&self) -> Choice {
        let n = self.classes.len();
        let mut parents: Vec<Vec<u32>> = vec![Vec::new(); n];
        for (c, list) in self.candidates.iter().enumerate() {
            for child in list.iter().flat_map(|k| &k.children) {
                parents[*child as usize].push(c as u32);
            }
        }
        for list in &mut parents {
            list.sort_unstable();
            list.dedup();
        }
        let mut sets = Sets::new(self);
        let mut choice: Choice = vec![None; n];
        let mut queued = vec![true; n];
        // Leaves were discovered last.
        let mut queue: std::collections::VecDeque<u32> = (0..n as u32).rev().collect();
        while let Some(c) = queue.pop_front() {
            let c = c as usize;
            queued[c] = false;
            let mut better = false;
            for (k, cand) in self.candidates[c].iter().enumerate() {
                if sets.improve(c, cand) {
                    choice[c] = Some(k as u32);
                    better = true;
                }
            }
            if better {
                for &p in &parents[c] {
                    if !queued[p as usize] {
                        queued[p as usize] = true;
                        queue.push_back(p);
                    }
                }
            }
        }
        choice
    }

    /// References to every class from the roots under a choice.
    pub fn references(&self, choice: &Choice) -> Vec<u32> {
        let mut refs = vec![0; self.classes.len()];
        for &r in &self.roots {
            self.acquire(choice, &mut refs, r).expect("every root can be computed");
        }
        refs
    }

    /// Adds a reference; the price of what must now be computed as well.
    fn acquire(&self, choice: &Choice, refs: &mut [u32], class: u32) -> Option<Price> {
        let (mut added, mut stack) = (0, vec![class]);
        let mut complete = true;
        while let Some(c) = stack.pop() {
            refs[c as usize] += 1;
            if refs[c as usize] == 1 {
                match choice[c as usize] {
                    Some(k) => {
                        let k = &self.candidates[c as usize][k as usize];
                        added += k.price;
                        stack.extend(&k.children);
                    }
                    None => complete = false,
                }
            }
        }
        complete.then_some(added)
    }

    /// Drops a reference; the price of what need no longer be computed.
    fn release(&self, choice: &Choice, refs: &mut [u32], class: u32) -> Price {
        let (mut freed, mut stack) = (0, vec![class]);
        while let Some(c) = stack.pop() {
            Work::Climbing.add(1);
            refs[c as usize] -= 1;
            if refs[c as usize] == 0
                && let Some(k) = choice[c as usize]
            {
                let k = &self.candidates[c as usize][k as usize];
                freed += k.price;
                stack.extend(&k.children);
            }
        }
        freed
    }

    /// Whether a class of the moves is computed from itself once they are made. `circles`: by class,
    /// its number among sets of classes that could be computed from each other; a circle stays in one.
    fn cyclic(&self, choice: &Choice, moves: &[(u32, u32)], circles: &[u32]) -> bool {
        // Depth-first search with colours over the chosen graph, moves applied.
        let pick = |c: u32| moves.iter().find(|m| m.0 == c).map(|m| m.1).or(choice[c as usize]);
        let mut colour: FxHashMap<u32, u8> = FxHashMap::default();
        for &(start, _) in moves {
            if colour.contains_key(&start) {
                continue;
            }
            colour.insert(start, 1);
            let mut stack = vec![(start, 0usize)];
            while let Some((c, i)) = stack.pop() {
                Work::Climbing.add(1);
                let Some(k) = pick(c) else { return true };
                let children = &self.candidates[c as usize][k as usize].children;
                if i == children.len() {
                    colour.insert(c, 2);
                    continue;
                }
                stack.push((c, i + 1));
                let d = children[i];
                if circles[d as usize] != circles[c as usize] {
                    continue;
                }
                match colour.get(&d) {
                    None => {
                        colour.insert(d, 1);
                        stack.push((d, 0));
                    }
                    Some(1) => return true,
                    _ => {}
                }
            }
        }
        false
    }

    /// Makes the moves if they lower the price of the whole step.
    fn attempt(
        &self,
        choice: &mut Choice,
        refs: &mut [u32],
        moves: &[(u32, u32)],
        circles: &[u32],
    ) -> bool {
        let at = |c: u32, k: u32| &self.candidates[c as usize][k as usize];
        let before: Vec<(u32, u32)> =
            moves.iter().map(|&(c, _)| (c, choice[c as usize].expect("a class in use"))).collect();
        // A class of the moves may lose its references meanwhile; hold all of them, and what the new
        // candidates find in use, so that it is not taken apart and put together again.
        moves.iter().for_each(|&(c, _)| refs[c as usize] += 1);
        let (mut found, mut missing) = (vec![], vec![]);
        let (mut added, mut freed) = (0, 0);
        for (&(c, k), &(_, old)) in moves.iter().zip(&before) {
            added += at(c, k).price;
            freed += at(c, old).price;
            for &child in &at(c, k).children {
                let used = refs[child as usize] > 0;
                if used { &mut found } else { &mut missing }.push(child);
            }
        }
        found.iter().for_each(|&c| refs[c as usize] += 1);
        for &(c, old) in &before {
            for &child in &at(c, old).children {
                freed += self.release(choice, refs, child);
            }
        }
        moves.iter().for_each(|&(c, k)| choice[c as usize] = Some(k));
        // References that were added, of which the price is known to be too much before the last.
        let mut log = vec![];
        let mut fits = added < freed;
        for &child in &missing {
            fits = fits && self.acquire_below(choice, refs, child, freed, &mut added, &mut log);
        }
        let good = fits && !self.cyclic(choice, moves, circles);
        if !good {
            log.iter().for_each(|&c| refs[c as usize] -= 1);
            before.iter().for_each(|&(c, old)| choice[c as usize] = Some(old));
            for &(c, old) in &before {
                for &child in &at(c, old).children {
                    self.acquire(choice, refs, child);
                }
            }
            found.iter().for_each(|&c| refs[c as usize] -= 1);
        }
        moves.iter().for_each(|&(c, _)| refs[c as usize] -= 1);
        good
    }

    /// Adds a reference, and to `sum` the price of what must now be computed as well; stops where
    /// that is no less than `limit`, or cannot be computed. `log`: every reference that was added.
    fn acquire_below(
        &self,
        choice: &Choice,
        refs: &mut [u32],
        class: u32,
        limit: Price,
        sum: &mut Price,
        log: &mut Vec<u32>,
    ) -> bool {
        let mut stack = vec![class];
        while let Some(c) = stack.pop() {
            Work::Climbing.add(1);
            refs[c as usize] += 1;
            log.push(c);
            if refs[c as usize] == 1 {
                let Some(k) = choice[c as usize] else { return false };
                let k = &self.candidates[c as usize][k as usize];
                *sum += k.price;
                if *sum >= limit {
                    return false;
                }
                stack.extend(&k.children);
            }
        }
        true
    }

    fn climb(&self, eg: &Eg, choice: &mut Choice) {
        // Results of one operation: (class, candidate) of every projection of a tuple class.
        let mut tuples: Vec<Vec<(u32, u32)>> = vec![Vec::new(); self.classes.len()];
        for (c, list) in self.candidates.iter().enumerate() {
            for (k, cand) in list.iter().enumerate() {
                if matches!(eg.analysis.sym(&cand.node), Sym::Proj(_)) {
                    tuples[cand.children[0] as usize].push((c as u32, k as u32));
                }
            }
        }
        let mut circles = vec![0; self.classes.len()];
        for (i, circle) in super::sets::components(self).iter().enumerate() {
            circle.iter().for_each(|&c| circles[c as usize] = i as u32);
        }
        let mut refs = self.references(choice);
        for _ in 0..6 {
            let mut moved = false;
            for projections in tuples.iter().filter(|p| p.len() > 1) {
                let moves: Vec<(u32, u32)> = projections
                    .iter()
                    .copied()
                    .filter(|&(c, k)| refs[c as usize] > 0 && choice[c as usize] != Some(k))
                    .collect();
                let mut distinct: Vec<u32> = moves.iter().map(|m| m.0).collect();
                distinct.dedup();
                if !moves.is_empty() && distinct.len() == moves.len() {
                    moved |= self.attempt(choice, &mut refs, &moves, &circles);
                }
            }
            for c in 0..self.classes.len() as u32 {
                for k in 0..self.candidates[c as usize].len() as u32 {
                    if refs[c as usize] > 0 && choice[c as usize] != Some(k) {
                        moved |= self.attempt(choice, &mut refs, &[(c, k)], &circles);
                    }
                }
            }
            if !moved {
                return;
            }
        }
    }

    /// The price of the whole step, every class once.
    pub fn price(&self, choice: &Choice) -> Price {
        let refs = self.references(choice);
        let chosen = |c: usize| choice[c].map_or(0, |k| self.candidates[c][k as usize].price);
        (0..refs.len()).filter(|&c| refs[c] > 0).map(chosen).sum()
    }
}

/// The price of an e-node on its own. At least one picosecond, so that totals fall along every
/// chosen edge and no choice can be cyclic.
fn price(eg: &Eg, node: &ENode, class: Id, prices: &Prices, format: DType) -> Price {
    let Some(op) = eg.analysis.op(node) else { return 1 };
    let x: SmallVec<[&TensorType; 4]> = node.children.iter().map(|&c| eg[c].data.ty()).collect();
    let y: SmallVec<[&TensorType; 4]> = eg[class].data.types.iter().collect();
    (prices.alone(op, &x, &y, format) * 1e3) as Price + 1
}

#[cfg(test)]
#[path = "oracle_tests.rs"]
mod oracle;
