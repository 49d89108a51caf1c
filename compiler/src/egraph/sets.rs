//! What every class makes the step compute, as sets of classes with their prices.
//!
//! A class that one candidate alone asks for, once, is paid wherever that candidate is, so it needs no
//! place in a set: its price goes with the class that asks for it. Sets hold what several candidates
//! ask for, and whatever could need itself, so that cycles are seen.

use super::extract::{Candidate, Price, Problem};
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
    /// By class: all that it needs and that has a place, as bits.
    set: Vec<Box<[u64]>>,
    scratch: Vec<u64>,
}

impl Sets {
    /// Nothing is known of any class.
    pub fn new(p: &Problem) -> Sets {
        let n = p.classes.len();
        let mut asked = vec![0u32; n];
        let mut graph: DiGraph<(), (), u32> = DiGraph::with_capacity(n, n);
        let nodes: Vec<_> = (0..n).map(|_| graph.add_node(())).collect();
        for (c, list) in p.candidates.iter().enumerate() {
            for &child in list.iter().flat_map(Candidate::distinct) {
                asked[child as usize] += 1;
                graph.add_edge(nodes[c], nodes[child as usize], ());
                // Itself among its children.
                if c == child as usize {
                    asked[c] += 1;
                }
            }
        }
        for component in petgraph::algo::tarjan_scc(&graph) {
            if component.len() > 1 {
                component.iter().for_each(|c| asked[c.index()] += 2);
            }
        }
        let mut places = 0;
        let place = asked.iter().map(|&a| {
            (a > 1).then(|| {
                places += 1;
                places - 1
            })
        });
        let place: Vec<Option<u32>> = place.collect();
        let places = places as usize;
        Sets {
            place,
            shared: vec![0; places],
            own: vec![0; n],
            total: vec![Price::MAX; n],
            set: vec![Box::default(); n],
            scratch: vec![0; places.div_ceil(64)],
        }
    }

    fn has(&self, c: u32, place: u32) -> bool {
        let (word, bit) = (place as usize / 64, place % 64);
        self.set[c as usize].get(word).is_some_and(|w| w >> bit & 1 == 1)
    }

    /// Takes a candidate for `class` where everything it needs is known, the class itself is not
    /// among it, and it costs less than what was taken before.
    pub fn improve(&mut self, class: usize, cand: &Candidate) -> bool {
        let place = self.place[class];
        let mut largest: Option<u32> = None;
        for &c in cand.distinct() {
            let itself = c as usize == class || place.is_some_and(|p| self.has(c, p));
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
        let out = &mut self.scratch;
        match largest {
            None => out.fill(0),
            Some(l) => {
                sum += self.total[l as usize];
                if sum >= self.total[class] {
                    return false;
                }
                out.copy_from_slice(&self.set[l as usize]);
                for &c in cand.distinct().filter(|&&c| c != l) {
                    if private(c) {
                        sum += self.own[c as usize];
                    }
                    for (w, (o, s)) in out.iter_mut().zip(&self.set[c as usize]).enumerate() {
                        let mut new = s & !*o;
                        *o |= s;
                        while new != 0 {
                            sum += self.shared[w * 64 + new.trailing_zeros() as usize];
                            new &= new - 1;
                        }
                    }
                }
            }
        }
        if sum >= self.total[class] {
            return false;
        }
        if let Some(p) = place {
            out[p as usize / 64] |= 1 << (p % 64);
            self.shared[p as usize] = own;
        }
        self.total[class] = sum;
        self.own[class] = own;
        if self.set[class].is_empty() {
            self.set[class] = out.clone().into_boxed_slice();
        } else {
            self.set[class].copy_from_slice(out);
        }
        true
    }
}
