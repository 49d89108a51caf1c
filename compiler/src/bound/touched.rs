//! What kernels read through views, and how their writes are priced.

use crate::ir::Graph;
use crate::ir::view::View;
use crate::ops::{Lowering, Op};

/// Elements of memory that every operand of every node reads, as [`crate::schedule`] lays views
/// over storages.
pub fn touched(g: &Graph) -> Vec<Vec<usize>> {
    let mut views: Vec<View> = Vec::with_capacity(g.value_count());
    // What no strides say is copied, or read through a finer space: then no more elements than the
    // operand has, however often they are repeated.
    let mut most: Vec<usize> = Vec::with_capacity(g.value_count());
    let mut out = Vec::with_capacity(g.node_count());
    for (_, n) in g.nodes() {
        let reads = |v: &View| -> usize {
            v.shape.iter().zip(&v.strides).map(|(&n, &s)| if s == 0 { 1 } else { n }).product()
        };
        let touched = |v: &crate::ir::ValueId| reads(&views[v.0 as usize]).min(most[v.0 as usize]);
        out.push(n.inputs.iter().map(touched).collect());
        for &v in &n.outputs {
            let mut limit = usize::MAX;
            let seen = match n.op.lowering() {
                Lowering::View => {
                    let def = n.op.def();
                    let x = &views[n.inputs[0].0 as usize];
                    limit = most[n.inputs[0].0 as usize];
                    def.view(x, g.ty(v)).or_else(|| {
                        limit = limit.min(reads(x));
                        // A copy of the operand, which is then dense.
                        def.view(&View::dense(&x.shape), g.ty(v))
                    })
                }
                _ => None,
            };
            views.push(seen.unwrap_or_else(|| View::dense(g.shape(v))));
            most.push(limit);
        }
    }
    out
}

/// Whether what a kernel writes is priced apart from what it multiplies and reads.
pub fn writes_apart(op: &Op) -> bool {
    !matches!(op, Op::Attention(_) | Op::AttentionGrad(_) | Op::Gather(_))
}
