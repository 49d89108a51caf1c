//! The reverse sweep.

use crate::diagnostic::{Diagnostic, Place, Result};
use crate::ir::{Graph, NodeId, Region, ValueId};
use crate::ops::{Binary, Concat, GradCx, Op, Pad};
use precast_plan::BinaryOp;

/// Appends the backward pass of `output` (a scalar whose cotangent is `seed`) and returns the
/// cotangent of each of `wrt`; `None` where `output` does not depend on it.
///
/// Nodes that no cotangent needs may be appended; [`Graph::without_dead_nodes`] removes them.
///
/// # Errors
/// P0402 for an operation on the path that cannot be differentiated, naming it.
pub fn backward(
    g: &mut Graph,
    output: ValueId,
    seed: ValueId,
    wrt: &[ValueId],
) -> Result<Vec<Option<ValueId>>> {
    sweep(g, output, seed, wrt).map(|s| s.cotangents)
}

/// What a reverse sweep found.
pub(super) struct Sweep {
    /// Of what was asked for.
    pub cotangents: Vec<Option<ValueId>>,
    /// Nodes that had a cotangent and passed none on, though an operand needed one: their derivative
    /// is zero.
    pub flat: Vec<NodeId>,
    /// Values with several readers, and what each of these contributes to the cotangent.
    pub sums: Vec<(ValueId, Vec<(NodeId, ValueId)>)>,
}

/// [`backward`], with what it saw on its way.
///
/// # Errors
/// As [`backward`].
pub(super) fn sweep(
    g: &mut Graph,
    output: ValueId,
    seed: ValueId,
    wrt: &[ValueId],
) -> Result<Sweep> {
    let node_count = g.node_count();
    let mut needed = vec![false; g.value_count()];
    for v in wrt {
        needed[v.0 as usize] = true;
    }
    for (_, node) in g.nodes() {
        if node.inputs.iter().any(|v| needed[v.0 as usize]) {
            for &v in &node.outputs {
                needed[v.0 as usize] |= g.ty(v).is_real();
            }
        }
    }
    // Contributions to the cotangent of every value, in the order they are found.
    let mut parts: Vec<Vec<(NodeId, ValueId)>> = vec![Vec::new(); g.value_count()];
    parts[output.0 as usize].push((g.value(output).node, seed));
    let (mut flat, mut sums) = (Vec::new(), Vec::new());
    let mut taken = |g: &mut Graph, v: ValueId, parts: Vec<(NodeId, ValueId)>| {
        let sum = total(g, v, &parts.iter().map(|(_, p)| *p).collect::<Vec<_>>());
        if parts.len() > 1 {
            sums.push((v, parts));
        }
        sum
    };
    for n in (0..node_count as u32).rev().map(NodeId) {
        let (inputs, outputs) = (g.node(n).inputs.clone(), g.node(n).outputs.clone());
        if !inputs.iter().any(|v| needed[v.0 as usize]) {
            continue;
        }
        let mut cotangents = Vec::with_capacity(outputs.len());
        for &v in &outputs {
            cotangents.push(taken(g, v, std::mem::take(&mut parts[v.0 as usize])));
        }
        if cotangents.iter().all(Option::is_none) {
            continue;
        }
        let op = g.node(n).op.clone();
        let grads = op.def().gradient(&mut GradCx::new(g, n, cotangents)).map_err(|e| {
            Diagnostic::error("P0402", format!("the loss cannot be differentiated: {e}"))
                .at(Place::Node { name: g.node(n).name.clone() })
                .help("keep the operation off the path from parameters to loss, or export the model in training mode with differentiable operations")
        })?;
        debug_assert_eq!(grads.len(), inputs.len(), "{}", op.name());
        let mut passed = false;
        for (v, grad) in inputs.iter().zip(grads) {
            if let (true, Some(grad)) = (needed[v.0 as usize], grad) {
                debug_assert_eq!(g.shape(grad), g.shape(*v), "{}", op.name());
                parts[v.0 as usize].push((n, grad));
                passed = true;
            }
        }
        if !passed {
            flat.push(n);
        }
    }
    let cotangents =
        wrt.iter().map(|&v| taken(g, v, std::mem::take(&mut parts[v.0 as usize]))).collect();
    Ok(Sweep { cotangents, flat, sums })
}

/// The sum of contributions. Slices of one tensor give cotangents padded with zeros; where they
/// tile it, the sum is their concatenation.
fn total(g: &mut Graph, of: ValueId, parts: &[ValueId]) -> Option<ValueId> {
    let base = format!("{}.sum", value_name(g, of));
    if parts.len() > 1
        && let Some((axis, pieces)) = tiling(g, parts)
    {
        return Some(append(g, Concat { axis }.into(), &pieces, base));
    }
    let mut sum = *parts.first()?;
    for (i, &part) in parts.iter().enumerate().skip(1) {
        let name = if parts.len() == 2 { base.clone() } else { format!("{base}.{i}") };
        sum = append(g, Binary { f: BinaryOp::Add }.into(), &[sum, part], name);
    }
    Some(sum)
}

fn append(g: &mut Graph, op: Op, inputs: &[ValueId], name: String) -> ValueId {
    match g.try_add(op, inputs, name.clone(), Region::Backward) {
        Ok(v) => v[0],
        Err(e) => panic!("`{name}`: {e}"),
    }
}

/// A stable name for a value's cotangent.
fn value_name(g: &Graph, v: ValueId) -> String {
    let node = g.def(v);
    match g.value(v).index {
        0 => format!("{}.cotangent", node.name),
        i => format!("{}.{i}.cotangent", node.name),
    }
}

/// The axis and the pieces in order, where all parts are pads that tile their result.
fn tiling(g: &Graph, parts: &[ValueId]) -> Option<(usize, Vec<ValueId>)> {
    let mut pieces: Vec<(&Pad, ValueId)> = Vec::new();
    for &p in parts {
        let node = g.def(p);
        let Op::Pad(pad) = &node.op else { return None };
        if pad.steps.iter().any(|&s| s != 1) {
            return None;
        }
        pieces.push((pad, node.inputs[0]));
    }
    let whole = &pieces[0].0.shape;
    let axis = (0..whole.len()).find(|&d| g.shape(pieces[0].1)[d] != whole[d])?;
    pieces.sort_by_key(|(pad, _)| pad.starts[axis]);
    let mut at = 0;
    for (pad, piece) in &pieces {
        let shape = g.shape(*piece);
        let aligned =
            (0..whole.len()).all(|d| d == axis || (pad.starts[d] == 0 && shape[d] == whole[d]));
        if !aligned || pad.starts[axis] != at {
            return None;
        }
        at += shape[axis];
    }
    (at == whole[axis]).then(|| (axis, pieces.into_iter().map(|(_, v)| v).collect()))
}
