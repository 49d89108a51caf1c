//! What kernels read through views, and how their writes are priced.

use super::sharing::Kind;
use crate::ir::view::View;
use crate::ir::{Graph, ValueId};
use crate::ops::{Lowering, Op};

/// Elements of memory that every operand of every node reads, as [`crate::schedule`] lays views
/// over storages.
pub fn touched(g: &Graph) -> Vec<Vec<usize>> {
    let mut views: Vec<View> = Vec::with_capacity(g.value_count());
    // Elements of memory that a value is made of: a copy of repeated elements has no more, for the
    // schedule may have its readers walk what it copies.
    let mut distinct: Vec<usize> = Vec::with_capacity(g.value_count());
    let mut out = Vec::with_capacity(g.node_count());
    for (_, n) in g.nodes() {
        let reads = |v: &View| -> usize {
            v.shape.iter().zip(&v.strides).map(|(&n, &s)| if s == 0 { 1 } else { n }).product()
        };
        let read = |v: usize| reads(&views[v]).min(distinct[v]);
        out.push(n.inputs.iter().map(|v| read(v.0 as usize)).collect());
        for &v in &n.outputs {
            let seen = match n.op.lowering() {
                Lowering::View => {
                    let def = n.op.def();
                    let x = &views[n.inputs[0].0 as usize];
                    def.view(x, g.ty(v)).or_else(|| {
                        // A copy of the operand, which is then dense.
                        def.view(&View::dense(&x.shape), g.ty(v))
                    })
                }
                _ => None,
            };
            let of = n.inputs.first().filter(|_| n.op.lowering() == Lowering::View);
            let whole = of.map_or(usize::MAX, |x| distinct[x.0 as usize]);
            let view = seen.unwrap_or_else(|| View::dense(g.shape(v)));
            distinct.push(reads(&view).min(whole));
            views.push(view);
        }
    }
    out
}

/// Whether what a kernel writes is priced apart from what it multiplies and reads.
pub fn writes_apart(op: &Op) -> bool {
    !matches!(op, Op::Attention(_) | Op::AttentionGrad(_) | Op::Gather(_))
}

/// By value: elements of a tensor put together from parts that kernels may write there which have it in
/// their own prices (see [`writes_apart`]), so that nobody else pays for them.
pub fn written_by_makers(g: &Graph, storage: &[ValueId], kind: &[Kind]) -> Vec<usize> {
    let mut out = vec![0; g.value_count()];
    for (id, n) in g.nodes() {
        for &y in &n.outputs {
            let all = g.shape(y).elements();
            let of = |x: &ValueId| match storage[x.0 as usize] {
                // What is repeated is written as often.
                root if g.shape(root).elements() < g.shape(*x).elements()
                    && out[root.0 as usize] > 0 =>
                {
                    all
                }
                root => out[root.0 as usize],
            };
            out[y.0 as usize] = match kind[id.0 as usize] {
                Kind::Parts | Kind::Maybe => {
                    n.inputs.iter().map(of).fold(0, usize::saturating_add).min(all)
                }
                _ if writes_apart(&n.op) => 0,
                _ => all,
            };
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::touched;

    /// What is repeated and then merged into one axis is no view, and still no more than it was.
    #[test]
    fn copies_of_repeated_elements_read_what_is_repeated() {
        let text = "graph g
forward:
  %x = input {name=\"x\"} : f32[2,1,3] @x
  %b = broadcast %x {shape=[2,50,3]} : f32[2,50,3] @b
  %r = reshape %b {shape=[2,150]} : f32[2,150] @r
  %y = unary %r {f=exp} : f32[2,150] @y
result out.y = %y
";
        let g = crate::text::parse("test", text).expect("the test's text is right");
        let reads: Vec<Vec<usize>> = touched(&g);
        assert_eq!(reads[3], [6]);
    }
}
