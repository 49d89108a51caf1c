//! How much memory the tensors of a graph take at once.

use crate::ir::Graph;
use crate::ops::Lowering;

/// Bytes of variables, and of the values that are alive together where most are, nodes running in
/// order. An estimate from above before anything is scheduled: fused values have no memory, and the
/// schedule writes in place.
pub fn working_set(g: &Graph) -> u64 {
    let vars: usize = g.vars.values().map(|v| v.ty.bytes()).sum();
    // A view keeps alive what it looks at.
    let mut origin: Vec<u32> = (0..g.value_count() as u32).collect();
    let mut last: Vec<u32> = vec![0; g.value_count()];
    let mut owns = vec![false; g.value_count()];
    for (id, n) in g.nodes() {
        for &x in &n.inputs {
            last[origin[x.0 as usize] as usize] = id.0;
        }
        match n.op.lowering() {
            Lowering::Leaf => {}
            Lowering::View => origin[n.outputs[0].0 as usize] = origin[n.inputs[0].0 as usize],
            _ => n.outputs.iter().for_each(|y| owns[y.0 as usize] = true),
        }
    }
    let end = g.node_count() as u32;
    for r in g.results.iter().chain(&g.updates) {
        last[origin[r.value.0 as usize] as usize] = end;
    }
    let mut dies = vec![0u64; g.node_count() + 1];
    let (mut live, mut most) = (0u64, 0u64);
    for (id, n) in g.nodes() {
        for &y in n.outputs.iter().filter(|y| owns[y.0 as usize]) {
            let bytes = g.ty(y).bytes() as u64;
            live += bytes;
            dies[last[y.0 as usize].max(id.0) as usize] += bytes;
        }
        most = most.max(live);
        live -= dies[id.0 as usize];
    }
    vars as u64 + most
}
