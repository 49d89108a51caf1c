//! What every class makes the step compute, as sets of classes with their prices.
//!
//! A class that one candidate alone asks for, once, is paid wherever that candidate is, so it needs no
//! place in a set: its price goes with the class that asks for it. Sets hold what several candidates
//! ask for, and whatever could need itself, so that cycles are seen.
//!
//! The set of a class is that of an operand and little more, so sets share what they have in common:
//! each is a tree over its places (`trees.rs`), and equal trees are one.

use super::extract::{Candidate, Price, Problem};
use super::trees::Trees;
use crate::work::Work;
use petgraph::graph::DiGraph;

/// The cheapest known candidate of every class, with what it needs.
pub struct Sets {
    /// By class: its place in sets, if it has one.
    place: Vec<Option<u32>>,
    /// By place: price of the class and of what only it asks for.
    shared: Vec<Price>,
    /// By class: the same.
    own: Vec<Price>,
    /// By class: price of all that it needs, itself included.
    total: Vec<Price>,
    /// By class: all that it needs and that has a place.
    set: Vec<u32>,
    trees: Trees,
}

impl Sets {
    /// Nothing is known of any class.
    pub fn new(p: &Problem) -> Sets {
        let n = p.classes.len();
        let mut asked = vec![0u32; n];
        for (c, list) in p.candidates.iter().enumerate() {
            for &child in list.iter().flat_map(Candidate::distinct) {
                asked[child as usize] += 1;
                // Itself among its children.
                if c == child as usize {
                    asked[c] += 1;
                }
            }
        }
        for component in components(p).iter().filter(|c| c.len() > 1) {
            component.iter().for_each(|&c| asked[c as usize] += 2);
        }
        // Places in the order in which operands come before what reads them: what a class needs then
        // has places close together, whose trees are shared.
        let mut places = 0;
        let mut place = vec![None; n];
        for c in p.operands_first() {
            if asked[c as usize] > 1 {
                place[c as usize] = Some(places);
                places += 1;
            }
        }
        let places = places as usize;
        Sets {
            place,
            shared: vec![0; places],
            own: vec![0; n],
            total: vec![Price::MAX; n],
            set: vec![Trees::EMPTY; n],
            trees: Trees::new(places),
        }
    }

    /// Takes a candidate for `class` where everything it needs is known, the class itself is not
    /// among it, and it costs less than what was taken before.
    pub fn improve(&mut self, class: usize, cand: &Candidate) -> bool {
        Work::Extraction.add(1 + cand.children.len());
        let place = self.place[class];
        let mut largest: Option<u32> = None;
        for &c in cand.distinct() {
            let has = |p: u32| self.trees.has(self.set[c as usize], p);
            let itself = c as usize == class || place.is_some_and(has);
            if self.total[c as usize] == Price::MAX || itself {
                return false;
            }
            if largest.is_none_or(|l| self.total[l as usize] < self.total[c as usize]) {
                largest = Some(c);
            }
        }
        let (mut sum, mut own) = (cand.price, cand.price);
        let private = |c: u32| self.place[c as usize].is_none();
        let of = cand.distinct().filter(|&&c| private(c));
        own += of.map(|&c| self.own[c as usize]).sum::<Price>();
        let mut out = Trees::EMPTY;
        if let Some(l) = largest {
            sum += self.total[l as usize];
            if sum >= self.total[class] {
                return false;
            }
            out = self.set[l as usize];
            for &c in cand.distinct().filter(|&&c| c != l) {
                if private(c) {
                    sum += self.own[c as usize];
                }
                let shared = &self.shared;
                let mut new = 0;
                out = self.trees.union(out, self.set[c as usize], |p| new += shared[p as usize]);
                sum += new;
            }
        }
        if sum >= self.total[class] {
            return false;
        }
        if let Some(p) = place {
            out = self.trees.with(out, p);
            self.shared[p as usize] = own;
        }
        self.total[class] = sum;
        self.own[class] = own;
        self.set[class] = out;
        true
    }
}

/// Classes that could be computed from each other, if every class were computed in every way.
pub fn components(p: &Problem) -> Vec<Vec<u32>> {
    let n = p.classes.len();
    let mut graph: DiGraph<(), (), u32> = DiGraph::with_capacity(n, n);
    let nodes: Vec<_> = (0..n).map(|_| graph.add_node(())).collect();
    for (c, list) in p.candidates.iter().enumerate() {
        for &child in list.iter().flat_map(Candidate::distinct) {
            graph.add_edge(nodes[c], nodes[child as usize], ());
        }
    }
    // Not Tarjan's: petgraph's calls itself as deep as the graph is.
    let all = petgraph::algo::kosaraju_scc(&graph);
    all.iter().map(|c| c.iter().map(|v| v.index() as u32).collect()).collect()
}
