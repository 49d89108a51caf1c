//! Sets of small numbers as trees that share what they have in common.
//!
//! A tree halves the range of places until 64 are left, which are bits. Equal trees are one, so that the
//! union of two sets looks only at where they differ.

use crate::work::Work;
use rustc_hash::FxHashMap;

/// All trees over so many places.
pub struct Trees {
    /// Halvings from the root to the bits.
    depth: u32,
    /// By tree: its halves, or its bits.
    nodes: Vec<[u32; 2]>,
    words: Vec<u64>,
    known: FxHashMap<[u32; 2], u32>,
    known_words: FxHashMap<u64, u32>,
}

impl Trees {
    /// The empty set, at every depth.
    pub const EMPTY: u32 = 0;

    /// Trees of sets of the places below `places`.
    pub fn new(places: usize) -> Trees {
        let depth = places.div_ceil(64).max(1).next_power_of_two().trailing_zeros();
        Trees {
            depth,
            nodes: vec![[0, 0]],
            words: vec![0],
            known: FxHashMap::default(),
            known_words: FxHashMap::default(),
        }
    }

    pub fn has(&self, tree: u32, place: u32) -> bool {
        let mut at = tree;
        for d in (0..self.depth).rev() {
            if at == Trees::EMPTY {
                return false;
            }
            at = self.nodes[at as usize][(place >> (6 + d) & 1) as usize];
        }
        self.words[at as usize] >> (place & 63) & 1 == 1
    }

    /// The set with a place.
    pub fn with(&mut self, tree: u32, place: u32) -> u32 {
        let mut path = vec![];
        let mut at = tree;
        for d in (0..self.depth).rev() {
            let side = (place >> (6 + d) & 1) as usize;
            let halves = if at == Trees::EMPTY { [0, 0] } else { self.nodes[at as usize] };
            path.push((halves, side));
            at = halves[side];
        }
        let mut new = self.word(self.words[at as usize] | 1 << (place & 63));
        while let Some((mut halves, side)) = path.pop() {
            halves[side] = new;
            new = self.node(halves);
        }
        new
    }

    /// All of two sets; `new` is told of every place of `b` that `a` lacks.
    pub fn union(&mut self, a: u32, b: u32, mut new: impl FnMut(u32)) -> u32 {
        let depth = self.depth;
        self.join(a, b, depth, 0, &mut new)
    }

    /// [`Trees::union`] of trees `depth` halvings above their bits, the first of which is of place `at`.
    /// It calls itself as deep as there are halvings.
    fn join(&mut self, a: u32, b: u32, depth: u32, at: u32, new: &mut impl FnMut(u32)) -> u32 {
        if a == b || b == Trees::EMPTY {
            return a;
        }
        if depth == 0 {
            let (x, y) = (self.words[a as usize], self.words[b as usize]);
            let mut more = y & !x;
            if more == 0 {
                return a;
            }
            while more != 0 {
                new(at + more.trailing_zeros());
                more &= more - 1;
            }
            return self.word(x | y);
        }
        Work::Extraction.add(1);
        let empty = [Trees::EMPTY; 2];
        let x = if a == Trees::EMPTY { empty } else { self.nodes[a as usize] };
        let y = self.nodes[b as usize];
        let half = 1 << (5 + depth);
        let halves = [
            self.join(x[0], y[0], depth - 1, at, new),
            self.join(x[1], y[1], depth - 1, at + half, new),
        ];
        if halves == x { a } else { self.node(halves) }
    }

    fn node(&mut self, halves: [u32; 2]) -> u32 {
        debug_assert!(halves != [Trees::EMPTY; 2], "the empty set is one");
        *self.known.entry(halves).or_insert_with(|| {
            self.nodes.push(halves);
            self.nodes.len() as u32 - 1
        })
    }

    fn word(&mut self, bits: u64) -> u32 {
        *self.known_words.entry(bits).or_insert_with(|| {
            self.words.push(bits);
            self.words.len() as u32 - 1
        })
    }
}

#[cfg(test)]
mod tests {
    use super::Trees;
    use std::collections::BTreeSet;

    #[test]
    fn trees_are_sets() {
        for places in [1, 64, 65, 1000] {
            let mut t = Trees::new(places);
            let mut state = 7u64;
            let mut next = || {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                (state >> 33) as usize
            };
            let mut sets: Vec<(u32, BTreeSet<u32>)> = vec![(Trees::EMPTY, BTreeSet::new())];
            for _ in 0..300 {
                let (x, y) = (next() % sets.len(), next() % sets.len());
                let ((a, p), (b, q)) = (sets[x].clone(), sets[y].clone());
                let mut new = vec![];
                let union = t.union(a, b, |place| new.push(place));
                assert_eq!(new, q.difference(&p).copied().collect::<Vec<_>>());
                let place = (next() % places) as u32;
                let tree = t.with(union, place);
                let mut set: BTreeSet<u32> = &p | &q;
                set.insert(place);
                for i in 0..places as u32 {
                    assert_eq!(t.has(tree, i), set.contains(&i));
                }
                // What is equal is one tree.
                let again = set.iter().fold(Trees::EMPTY, |t0, &i| t.with(t0, i));
                assert_eq!(again, tree);
                sets.push((tree, set));
            }
        }
    }
}
