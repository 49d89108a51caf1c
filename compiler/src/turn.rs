//! Transposed products the other way round: `(A B)^T` as `B^T A^T`.
//!
//! Operands may be views, so the turned product costs the same, and its result is stored the way
//! its reader walks: the gradient of a matrix that the network multiplies by transposed, in the
//! order of the matrix itself, so that the optimizer streams through both. Exact: every sum keeps
//! its terms and their order.

use crate::egraph::rules::swaps_last;
use crate::ir::{Graph, ValueId};
use crate::ops::{Op, Transpose, matmul::Fused};
use smallvec::SmallVec;

/// Turns every plain product that is read only through one transposition of its last two axes.
/// The pass comes after the e-graph, where both forms have one price.
pub fn turn_products(g: &Graph) -> Graph {
    let mut reads = vec![0; g.value_count()];
    for (_, node) in g.nodes() {
        node.inputs.iter().for_each(|v| reads[v.0 as usize] += 1);
    }
    g.results.iter().chain(&g.updates).for_each(|r| reads[r.value.0 as usize] += 1);
    let mut out = Graph::new(g.name.clone());
    out.vars = g.vars.clone();
    let mut map: Vec<ValueId> = Vec::with_capacity(g.value_count());
    for (_, node) in g.nodes() {
        let types: Vec<_> = node.outputs.iter().map(|&v| g.ty(v).clone()).collect();
        let product = match &node.op {
            Op::Transpose(t) if swaps_last(&t.perm) && reads[node.inputs[0].0 as usize] == 1 => {
                Some(g.def(node.inputs[0]))
                    .filter(|p| matches!(&p.op, Op::MatMul(m) if m.fused == Fused::None))
            }
            _ => None,
        };
        let Some(product) = product else {
            let inputs: SmallVec<[ValueId; 4]> =
                node.inputs.iter().map(|v| map[v.0 as usize]).collect();
            map.extend(out.push(node.op.clone(), &inputs, types, node.name.clone(), node.region));
            continue;
        };
        let mut operands: SmallVec<[ValueId; 4]> = SmallVec::new();
        let mut name = format!("{}.turned", product.name);
        for v in [product.inputs[1], product.inputs[0]] {
            let before = out.node_count();
            operands.push(turned(&mut out, map[v.0 as usize], &name, node.region));
            if out.node_count() > before {
                name = format!("{}.turned.2", product.name);
            }
        }
        operands.extend(product.inputs[2..].iter().map(|v| map[v.0 as usize]));
        map.extend(out.push(
            product.op.clone(),
            &operands,
            types,
            product.name.clone(),
            product.region,
        ));
    }
    for (from, to) in [(&g.results, &mut out.results), (&g.updates, &mut out.updates)] {
        *to = from.clone();
        to.iter_mut().for_each(|r| r.value = map[r.value.0 as usize]);
    }
    out.without_dead_nodes()
}

/// `v` with its last two axes swapped; a swap of a swap is the value itself.
fn turned(g: &mut Graph, v: ValueId, name: &str, region: crate::ir::Region) -> ValueId {
    let def = g.def(v);
    if let Op::Transpose(t) = &def.op
        && swaps_last(&t.perm)
    {
        return def.inputs[0];
    }
    let mut ty = g.ty(v).clone();
    let rank = ty.shape.rank();
    let mut perm: Vec<usize> = (0..rank).collect();
    perm.swap(rank - 2, rank - 1);
    let (m, n) = (ty.shape[rank - 2], ty.shape[rank - 1]);
    (ty.shape[rank - 2], ty.shape[rank - 1]) = (n, m);
    g.push(Transpose { perm }.into(), &[v], vec![ty], name.into(), region)[0]
}

#[cfg(test)]
mod tests {
    use super::turn_products;

    fn check(text: &str) -> String {
        let g = crate::text::parse("test", text).expect("the test's text is right");
        let turned = turn_products(&g);
        crate::ir::verify::verify(&turned).expect("the result verifies");
        crate::text::print(&turned)
    }

    #[test]
    fn a_product_read_through_a_transposition_alone_is_turned() {
        let text = check(
            "graph g
forward:
  %x = input {name=\"x\"} : f32[2,3] @x
  %w = input {name=\"w\"} : f32[2,4] @w
  %a = transpose %x {perm=[1,0]} : f32[3,2] @a
  %p = matmul %a, %w {fused=none} : f32[3,4] @p
  %t = transpose %p {perm=[1,0]} : f32[4,3] @t
result out.t = %t
",
        );
        assert!(text.contains("transpose %1 {perm=[1,0]} : f32[4,2]"), "{text}");
        assert!(text.contains("matmul %2, %0 {fused=none} : f32[4,3] @p"), "{text}");
    }

    #[test]
    fn both_operands_that_are_turned_have_names() {
        let text = check(
            "graph g
forward:
  %x = input {name=\"x\"} : f32[3,2] @x
  %w = input {name=\"w\"} : f32[2,4] @w
  %p = matmul %x, %w {fused=none} : f32[3,4] @p
  %t = transpose %p {perm=[1,0]} : f32[4,3] @t
result out.t = %t
",
        );
        assert!(text.contains("@p.turned\n") && text.contains("@p.turned.2\n"), "{text}");
    }

    #[test]
    fn a_product_that_others_read_stays() {
        let text = check(
            "graph g
forward:
  %x = input {name=\"x\"} : f32[3,2] @x
  %w = input {name=\"w\"} : f32[2,4] @w
  %p = matmul %x, %w {fused=none} : f32[3,4] @p
  %t = transpose %p {perm=[1,0]} : f32[4,3] @t
result out.t = %t
result out.p = %p
",
        );
        assert!(text.contains("matmul %0, %1 {fused=none} : f32[3,4] @p"), "{text}");
        assert!(text.contains("transpose %2 {perm=[1,0]} : f32[4,3] @t"), "{text}");
    }
}
