//! What leads to what in a graph, as intervals.
//!
//! Nodes are numbered along a spanning forest, so that all below a node of the forest have numbers in
//! a row. What a node leads to is then a few intervals, since training graphs are long paths with
//! short side branches: one or two for each node where bits for every pair would take the square of
//! the graph. The sets are exact in every graph, and only their number of intervals depends on it
//! (R. Agrawal, A. Borgida, H. V. Jagadish: Efficient management of transitive relationships in large
//! data and knowledge bases, SIGMOD 1989).

use crate::work::Work;

/// Numbers of nodes along a spanning forest, whose indices are a topological order.
#[derive(Debug)]
pub struct Forest {
    place: Vec<u32>,
}

/// A set of nodes for every node, as ascending intervals of places.
#[derive(Debug)]
pub struct Sets {
    spans: Vec<(u32, u32)>,
    /// By node: its intervals' first, and one past their last.
    of: Vec<(u32, u32)>,
}

impl Forest {
    /// Of edges that lead to larger indices. Every node hangs from the node that leads to it at the end
    /// of the longest path, so that long paths stay whole; of several from the last.
    pub fn new(next: &[Vec<usize>]) -> Forest {
        let n = next.len();
        let mut parent = vec![usize::MAX; n];
        let mut depth = vec![0u32; n];
        for (i, list) in next.iter().enumerate() {
            for &j in list {
                debug_assert!(i < j, "indices are a topological order");
                if parent[j] == usize::MAX || depth[i] >= depth[parent[j]] {
                    parent[j] = i;
                    depth[j] = depth[i] + 1;
                }
            }
        }
        let mut size = vec![1u32; n];
        for j in (0..n).rev().filter(|&j| parent[j] != usize::MAX) {
            size[parent[j]] += size[j];
        }
        // A node's children follow it in ascending order.
        let (mut place, mut free) = (vec![0; n], vec![0u32; n]);
        let mut roots = 0;
        for j in 0..n {
            let from = match parent[j] {
                usize::MAX => &mut roots,
                p => &mut free[p],
            };
            place[j] = *from;
            *from += size[j];
            free[j] = place[j] + 1;
        }
        Forest { place }
    }

    /// The number of a node.
    pub fn place(&self, node: usize) -> u32 {
        self.place[node]
    }

    /// For every node, what it leads to at any distance, without itself.
    pub fn reach(&self, next: &[Vec<usize>]) -> Sets {
        self.sets(next.len(), |i, found, sets| {
            for &j in &next[i] {
                found.push(self.point(j));
                found.extend_from_slice(sets.spans(j));
            }
        })
    }

    /// A set for every node, the last node first; `fill` gathers its intervals, of which some may
    /// overlap, from the sets of later nodes.
    pub fn sets(
        &self,
        count: usize,
        mut fill: impl FnMut(usize, &mut Vec<(u32, u32)>, &Sets),
    ) -> Sets {
        let mut out = Sets { spans: vec![], of: vec![(0, 0); count] };
        let mut found = vec![];
        for i in (0..count).rev() {
            found.clear();
            fill(i, &mut found, &out);
            found.sort_unstable();
            let from = out.spans.len();
            for &(a, b) in &found {
                match out.spans[from..].last_mut() {
                    Some(last) if a <= last.1 => last.1 = last.1.max(b),
                    _ => out.spans.push((a, b)),
                }
            }
            Work::Reach.add(found.len() + 1);
            out.of[i] = (from as u32, out.spans.len() as u32);
        }
        out
    }

    /// A node alone, as an interval.
    pub fn point(&self, node: usize) -> (u32, u32) {
        (self.place[node], self.place[node] + 1)
    }
}

impl Sets {
    /// The intervals of a node's set.
    pub fn spans(&self, node: usize) -> &[(u32, u32)] {
        let (from, to) = self.of[node];
        &self.spans[from as usize..to as usize]
    }

    /// Whether a node's set holds a place.
    pub fn holds(&self, node: usize, place: u32) -> bool {
        let spans = self.spans(node);
        let after = spans.partition_point(|s| s.0 <= place);
        after > 0 && place < spans[after - 1].1
    }

    /// All intervals of all nodes.
    pub fn intervals(&self) -> usize {
        self.spans.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Bits by a fixed rule: no two runs differ.
    fn next(state: &mut u64) -> usize {
        *state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (*state >> 33) as usize
    }

    fn plain(next: &[Vec<usize>], from: usize) -> Vec<bool> {
        let mut seen = vec![false; next.len()];
        let mut stack = vec![from];
        while let Some(i) = stack.pop() {
            for &j in &next[i] {
                if !std::mem::replace(&mut seen[j], true) {
                    stack.push(j);
                }
            }
        }
        seen
    }

    #[test]
    fn sets_are_what_a_walk_finds() {
        let mut state = 1;
        for n in 1..60 {
            let mut edges = vec![vec![]; n];
            for j in 1..n {
                for _ in 0..next(&mut state) % 4 {
                    let i = next(&mut state) % j;
                    edges[i].push(j);
                }
            }
            let forest = Forest::new(&edges);
            let mut places: Vec<u32> = (0..n).map(|i| forest.place(i)).collect();
            places.sort_unstable();
            assert_eq!(places, (0..n as u32).collect::<Vec<_>>());
            let sets = forest.reach(&edges);
            for i in 0..n {
                let seen = plain(&edges, i);
                for (j, s) in seen.iter().enumerate() {
                    assert_eq!(sets.holds(i, forest.place(j)), *s, "{i} to {j} in {edges:?}");
                }
            }
        }
    }

    #[test]
    fn long_paths_with_readers_far_behind_take_few_intervals() {
        // Forward, and backward with a read of every forward value.
        let n = 1000;
        let mut edges = vec![vec![]; 2 * n];
        for (i, list) in edges.iter_mut().enumerate().take(2 * n - 1) {
            list.push(i + 1);
        }
        for (i, list) in edges.iter_mut().enumerate().take(n) {
            list.push(2 * n - 1 - i);
        }
        assert!(Forest::new(&edges).reach(&edges).intervals() < 2 * n);
        // And what is computed again between the two, behind everything in the order.
        let mut again = vec![vec![]; 3 * n];
        for i in 0..n {
            again[i].extend([i + 1, n + i].iter().filter(|&&j| j != n));
            again[n + i].push(3 * n - 1 - i);
        }
        for (i, list) in again.iter_mut().enumerate().take(3 * n - 1).skip(2 * n) {
            list.push(i + 1);
        }
        again.iter_mut().for_each(|l| l.sort_unstable());
        assert!(Forest::new(&again).reach(&again).intervals() < 6 * n);
    }
}
