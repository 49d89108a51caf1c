//! Stops of gradients, once they have done what they are for.

use crate::ir::{Graph, Result_, ValueId};
use crate::ops::Op;
use smallvec::SmallVec;

/// The graph without its `stop_gradient` nodes, and without choices between one value and itself,
/// which is what a stop on a part of a tensor leaves.
pub fn without_stops(g: &Graph) -> Graph {
    let mut out = Graph::new(g.name.clone());
    out.vars = g.vars.clone();
    let mut map: Vec<ValueId> = Vec::with_capacity(g.value_count());
    for (_, node) in g.nodes() {
        let inputs: SmallVec<[ValueId; 4]> =
            node.inputs.iter().map(|v| map[v.0 as usize]).collect();
        match (&node.op, &inputs[..]) {
            (Op::StopGradient(_), &[x]) => map.push(x),
            (Op::Select(_), &[_, a, b]) if a == b => map.push(a),
            _ => {
                let types = node.outputs.iter().map(|&v| g.ty(v).clone()).collect();
                let name = node.name.clone();
                map.extend(out.push(node.op.clone(), &inputs, types, name, node.region));
            }
        }
    }
    let rename = |rs: &[Result_]| {
        let new = |r: &Result_| Result_ { name: r.name.clone(), value: map[r.value.0 as usize] };
        rs.iter().map(new).collect()
    };
    out.results = rename(&g.results);
    out.updates = rename(&g.updates);
    out.without_dead_nodes()
}
