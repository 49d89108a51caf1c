//! Minimum cut over variables with two sides, in integers.

use indexmap::IndexMap;
use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::unionfind::UnionFind;
use petgraph::visit::EdgeRef;
use rustc_hash::FxBuildHasher;

/// A price in picoseconds: integers, so that the cut is exact.
pub type Price = u64;

/// More than any sum of prices.
pub const NEVER: Price = 1 << 50;

/// Prices of both sides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Either {
    /// On the source side: f32.
    pub full: Price,
    /// On the sink side: the 16-bit format.
    pub half: Price,
}

impl Either {
    pub fn of(&self, half: bool) -> Price {
        if half { self.half } else { self.full }
    }
}

/// A network whose minimum cut is asked for.
pub struct Net {
    graph: DiGraph<(), Price>,
    pub source: NodeIndex,
    pub sink: NodeIndex,
    /// What both sides of a variable cost.
    least: Price,
}

impl Default for Net {
    fn default() -> Net {
        let mut graph = DiGraph::default();
        let (source, sink) = (graph.add_node(()), graph.add_node(()));
        Net { graph, source, sink, least: 0 }
    }
}

/// A minimum cut.
pub struct Cut {
    pub price: Price,
    /// By node of the network, whether it is on the sink side; of several minimum cuts, the one
    /// with the smallest sink side.
    pub sink: Vec<bool>,
}

impl Net {
    /// A node that costs nothing on either side.
    pub fn node(&mut self) -> NodeIndex {
        self.graph.add_node(())
    }

    /// A variable: on the source side it costs `full`, on the sink side `half`.
    pub fn variable(&mut self, e: Either) -> NodeIndex {
        let v = self.graph.add_node(());
        let least = e.full.min(e.half);
        self.least += least;
        self.edge(v, self.sink, e.full - least);
        self.edge(self.source, v, e.half - least);
        v
    }

    /// Costs `price` where `from` is on the source side and `to` on the sink side.
    pub fn edge(&mut self, from: NodeIndex, to: NodeIndex, price: Price) {
        if price > 0 {
            self.graph.add_edge(from, to, price.min(NEVER));
        }
    }

    /// The minimum cut. What no edge joins but through the ends is cut apart from the rest, so that
    /// the time goes with the number of parts and not with its square.
    pub fn cut(self) -> Cut {
        let (source, sink) = (self.source, self.sink);
        let end = |v: NodeIndex| v == source || v == sink;
        let mut parts = UnionFind::<usize>::new(self.graph.node_count());
        for e in self.graph.edge_references() {
            if !end(e.source()) && !end(e.target()) {
                parts.union(e.source().index(), e.target().index());
            }
        }
        let mut cut = Cut { price: self.least, sink: vec![false; self.graph.node_count()] };
        cut.sink[sink.index()] = true;
        // By part, in order of its first node: its nodes.
        let mut nodes: IndexMap<usize, Vec<NodeIndex>, FxBuildHasher> = IndexMap::default();
        for v in self.graph.node_indices().filter(|&v| !end(v)) {
            nodes.entry(parts.find(v.index())).or_default().push(v);
        }
        let mut at = vec![NodeIndex::end(); self.graph.node_count()];
        for part in nodes.values() {
            let mut net = DiGraph::with_capacity(part.len() + 2, 0);
            (at[source.index()], at[sink.index()]) = (net.add_node(()), net.add_node(()));
            part.iter().for_each(|v| at[v.index()] = net.add_node(()));
            let here = |v: NodeIndex| at[v.index()];
            for &v in part {
                for e in self.graph.edges(v) {
                    net.add_edge(here(v), here(e.target()), *e.weight());
                }
                for e in self.graph.edges_directed(v, petgraph::Incoming) {
                    if e.source() == source {
                        net.add_edge(here(source), here(v), *e.weight());
                    }
                }
            }
            let flow = super::flow::maximum(&net, here(source), here(sink));
            let reaches = flow.reaching(here(sink));
            cut.price += flow.most;
            part.iter().for_each(|&v| cut.sink[v.index()] = reaches[here(v).index()]);
        }
        for e in self.graph.edges_connecting(source, sink) {
            cut.price += e.weight();
        }
        cut
    }
}
