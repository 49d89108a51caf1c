//! Bias additions inside products: frameworks have one kernel for a product and its bias (`addmm`
//! in PyTorch, `_FusedMatMul` in TensorFlow), so that a baseline without it would look slower than
//! the system is.

use crate::ir::{Graph, Node, Result_, ValueId};
use crate::ops::{Binary, MatMul, Op, Reshape, matmul::Fused};
use precast_plan::BinaryOp;
use smallvec::SmallVec;

/// Products that end in the addition of a vector along their last axis, where nothing else reads
/// the bare product and both have one format.
pub fn fuse_biases(g: &Graph) -> Graph {
    let mut readers = vec![0usize; g.value_count()];
    for v in g.nodes().flat_map(|(_, n)| n.inputs.iter().copied()) {
        readers[v.0 as usize] += 1;
    }
    for r in g.results.iter().chain(&g.updates) {
        readers[r.value.0 as usize] += 1;
    }
    let mut out = Graph::new(g.name.clone());
    out.vars = g.vars.clone();
    let mut map: Vec<ValueId> = Vec::with_capacity(g.value_count());
    for (_, n) in g.nodes() {
        let inputs: SmallVec<[ValueId; 4]> = n.inputs.iter().map(|v| map[v.0 as usize]).collect();
        let Some((product, bias)) = biased(g, n, &readers) else {
            map.extend(out.push(n.op.clone(), &inputs, types(g, n), n.name.clone(), n.region));
            continue;
        };
        let bias = map[bias.0 as usize];
        let (a, b) = (map[product.inputs[0].0 as usize], map[product.inputs[1].0 as usize]);
        let op = MatMul::with(Fused::Bias);
        let name = product.name.clone();
        let y = out.push(op.into(), &[a, b, bias], types(g, product), name, n.region)[0];
        if g.shape(product.outputs[0]) == g.shape(n.outputs[0]) {
            map.push(y);
        } else {
            let shape = g.shape(n.outputs[0]).to_vec();
            let op = Reshape { shape };
            map.extend(out.push(op.into(), &[y], types(g, n), n.name.clone(), n.region));
        }
    }
    let rename = |rs: &[Result_]| -> Vec<Result_> {
        rs.iter()
            .map(|r| Result_ { name: r.name.clone(), value: map[r.value.0 as usize] })
            .collect()
    };
    out.results = rename(&g.results);
    out.updates = rename(&g.updates);
    out.without_dead_nodes()
}

fn types(g: &Graph, n: &Node) -> Vec<crate::ir::TensorType> {
    n.outputs.iter().map(|&v| g.ty(v).clone()).collect()
}

/// The product and the vector that an addition adds up.
fn biased<'g>(g: &'g Graph, n: &Node, readers: &[usize]) -> Option<(&'g Node, ValueId)> {
    let Op::Binary(Binary { f: BinaryOp::Add }) = n.op else { return None };
    [(0, 1), (1, 0)].into_iter().find_map(|(i, j)| {
        let (product, vector) = (product(g, n.inputs[i], readers)?, vector(g, n.inputs[j])?);
        let (sum, result) = (g.ty(product.outputs[0]), g.ty(n.outputs[0]));
        let fits = g.shape(vector)[..] == sum.shape[sum.shape.rank() - 1..];
        (fits && sum.dtype == result.dtype).then_some((product, vector))
    })
}

/// The product behind a value that has one reader, also through a reshape that keeps its last axis.
fn product<'g>(g: &'g Graph, v: ValueId, readers: &[usize]) -> Option<&'g Node> {
    let def = g.def(v);
    if readers[v.0 as usize] != 1 {
        return None;
    }
    match &def.op {
        Op::MatMul(m) if m.fused == Fused::None => Some(def),
        Op::Reshape(_) if g.shape(def.inputs[0]).last() == g.shape(v).last() => {
            product(g, def.inputs[0], readers)
        }
        _ => None,
    }
}

/// The vector that a value repeats along all axes but the last.
fn vector(g: &Graph, v: ValueId) -> Option<ValueId> {
    let def = g.def(v);
    match &def.op {
        Op::Broadcast(_) | Op::Reshape(_)
            if g.shape(def.inputs[0]).last() == g.shape(v).last()
                && g.shape(def.inputs[0]).elements() == *g.shape(v).last()? =>
        {
            let inner = def.inputs[0];
            if g.shape(inner).rank() == 1 { Some(inner) } else { vector(g, inner) }
        }
        _ => None,
    }
}
