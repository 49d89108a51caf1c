//! Maximum flow, by Dinic's algorithm: shortest paths first, every arc looked at once a round.
//!
//! petgraph's version forgets what it has seen after every single path, so that a network of n short
//! paths takes n² steps.

use crate::work::Work;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

/// An edge, and the way back along it.
struct Arc {
    to: u32,
    left: u64,
    back: u32,
}

/// A network that flow goes through.
struct Network {
    arcs: Vec<Arc>,
    /// By node: its arcs' first; one more at the end.
    from: Vec<u32>,
}

/// The most that flows from a source to a sink.
pub struct Flow {
    pub most: u64,
    net: Network,
}

/// Finds the most that flows.
pub fn maximum(graph: &DiGraph<(), u64>, source: NodeIndex, sink: NodeIndex) -> Flow {
    let mut net = Network::new(graph);
    let (source, sink) = (source.index(), sink.index());
    let mut most = 0;
    while let Some(level) = net.levels(source, sink) {
        most += net.block(source, sink, &level);
    }
    Flow { most, net }
}

impl Flow {
    /// By node: more could still flow from it to a node.
    pub fn reaching(&self, node: NodeIndex) -> Vec<bool> {
        self.net.walk(node.index(), |net, arc| net.arcs[arc.back as usize].left > 0)
    }

    /// By node: more could still flow to it from a node.
    pub fn reached(&self, node: NodeIndex) -> Vec<bool> {
        self.net.walk(node.index(), |_, arc| arc.left > 0)
    }
}

impl Network {
    fn new(graph: &DiGraph<(), u64>) -> Network {
        let n = graph.node_count();
        let mut from = vec![0u32; n + 1];
        for e in graph.edge_references() {
            from[e.source().index() + 1] += 1;
            from[e.target().index() + 1] += 1;
        }
        for i in 0..n {
            from[i + 1] += from[i];
        }
        let mut free = from.clone();
        let mut arcs: Vec<Arc> = (0..from[n]).map(|_| Arc { to: 0, left: 0, back: 0 }).collect();
        for e in graph.edge_references() {
            let (a, b) = (e.source().index(), e.target().index());
            let there = free[a];
            free[a] += 1;
            let back = free[b];
            free[b] += 1;
            arcs[there as usize] = Arc { to: b as u32, left: *e.weight(), back };
            arcs[back as usize] = Arc { to: a as u32, left: 0, back: there };
        }
        Network { arcs, from }
    }

    fn arcs_of(&self, node: usize) -> std::ops::Range<usize> {
        self.from[node] as usize..self.from[node + 1] as usize
    }

    /// Arcs on the shortest way to the sink, by node; `None` where the source reaches it no more.
    /// Found from the sink, so that nothing is looked at that leads nowhere.
    fn levels(&self, source: usize, sink: usize) -> Option<Vec<u32>> {
        let mut level = vec![u32::MAX; self.from.len() - 1];
        level[sink] = 0;
        let mut queue = std::collections::VecDeque::from([sink]);
        while let Some(v) = queue.pop_front() {
            Work::Flow.add(self.arcs_of(v).len());
            for arc in &self.arcs[self.arcs_of(v)] {
                let u = arc.to as usize;
                if level[u] == u32::MAX && self.arcs[arc.back as usize].left > 0 {
                    level[u] = level[v] + 1;
                    if u == source {
                        return Some(level);
                    }
                    queue.push_back(u);
                }
            }
        }
        None
    }

    /// Sends all that shortest ways take.
    fn block(&mut self, source: usize, sink: usize, level: &[u32]) -> u64 {
        let mut next = self.from.clone();
        let mut flow = 0;
        // Arcs from the source to where the walk is.
        let mut path: Vec<usize> = vec![];
        let mut at = source;
        loop {
            Work::Flow.add(1);
            if at == sink {
                Work::Flow.add(path.len());
                let most = path.iter().map(|&a| self.arcs[a].left).min().unwrap_or(0);
                let mut full = 0;
                for (i, &a) in path.iter().enumerate().rev() {
                    self.arcs[a].left -= most;
                    let back = self.arcs[a].back as usize;
                    self.arcs[back].left += most;
                    if self.arcs[a].left == 0 {
                        full = i;
                    }
                }
                flow += most;
                // On from before the first arc that is full.
                at = self.arcs[self.arcs[path[full]].back as usize].to as usize;
                path.truncate(full);
                continue;
            }
            let end = self.from[at + 1];
            let ahead = (next[at]..end).find(|&a| {
                let arc = &self.arcs[a as usize];
                let to = level[arc.to as usize];
                arc.left > 0 && to != u32::MAX && to + 1 == level[at]
            });
            next[at] = ahead.unwrap_or(end);
            match (ahead, path.pop()) {
                (Some(a), last) => {
                    path.extend(last);
                    path.push(a as usize);
                    at = self.arcs[a as usize].to as usize;
                }
                (None, None) => return flow,
                (None, Some(a)) => {
                    at = self.arcs[self.arcs[a].back as usize].to as usize;
                    next[at] += 1;
                }
            }
        }
    }

    /// What is found from a node along arcs that may be followed.
    fn walk(&self, from: usize, follow: impl Fn(&Network, &Arc) -> bool) -> Vec<bool> {
        let mut seen = vec![false; self.from.len() - 1];
        seen[from] = true;
        let mut stack = vec![from];
        while let Some(v) = stack.pop() {
            for arc in &self.arcs[self.arcs_of(v)] {
                let u = arc.to as usize;
                if !seen[u] && follow(self, arc) {
                    seen[u] = true;
                    stack.push(u);
                }
            }
        }
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flows_are_those_of_petgraph() {
        let mut state = 3u64;
        let mut next = |n: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % n
        };
        for _ in 0..300 {
            let n = 2 + next(12);
            let mut g: DiGraph<(), u64> = DiGraph::new();
            let nodes: Vec<_> = (0..n).map(|_| g.add_node(())).collect();
            for _ in 0..next(4 * n) {
                let (a, b) = (next(n), next(n));
                if a != b {
                    g.add_edge(nodes[a], nodes[b], next(9) as u64 + 1);
                }
            }
            let (want, flow) = petgraph::algo::dinics(&g, nodes[0], nodes[1]);
            let got = maximum(&g, nodes[0], nodes[1]);
            let reaches = got.reaching(nodes[1]);
            assert_eq!(got.most, want);
            let reached = got.reached(nodes[0]);
            assert!(reached.iter().zip(&reaches).all(|(a, b)| !(a & b)));
            // The smallest side of the sink is the same whatever the flow.
            let mut same = vec![false; n];
            same[1] = true;
            let mut stack = vec![nodes[1]];
            while let Some(v) = stack.pop() {
                let mut found: Vec<NodeIndex> = vec![];
                for e in g.edges_directed(v, petgraph::Incoming) {
                    if *e.weight() > flow[e.id().index()] {
                        found.push(e.source());
                    }
                }
                for e in g.edges_directed(v, petgraph::Outgoing) {
                    if flow[e.id().index()] > 0 {
                        found.push(e.target());
                    }
                }
                for u in found {
                    if !std::mem::replace(&mut same[u.index()], true) {
                        stack.push(u);
                    }
                }
            }
            assert_eq!(reaches, same);
        }
    }
}
