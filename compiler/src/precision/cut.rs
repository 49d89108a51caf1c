//! Minimum cut over variables with two sides, in integers.

use petgraph::graph::{DiGraph, NodeIndex};
use petgraph::visit::EdgeRef;

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

    pub fn cut(self) -> Cut {
        let (flow_value, flow) = petgraph::algo::dinics(&self.graph, self.source, self.sink);
        // Nodes from which the sink can still be reached in the residual network.
        let mut reaches = vec![false; self.graph.node_count()];
        reaches[self.sink.index()] = true;
        let mut stack = vec![self.sink];
        while let Some(v) = stack.pop() {
            let mut visit = |u: NodeIndex| {
                if !reaches[u.index()] {
                    reaches[u.index()] = true;
                    stack.push(u);
                }
            };
            for e in self.graph.edges_directed(v, petgraph::Incoming) {
                if *e.weight() > flow[e.id().index()] {
                    visit(e.source());
                }
            }
            for e in self.graph.edges_directed(v, petgraph::Outgoing) {
                if flow[e.id().index()] > 0 {
                    visit(e.target());
                }
            }
        }
        Cut { price: self.least + flow_value, sink: reaches }
    }
}
