//! Batched products that are one larger product.

use super::{Rule, Rw, swaps_last};
use crate::ops::{MatMul, Op, matmul::Fused};
use egg::Id;
use precast_plan::ReduceOp;

pub static RULES: &[Rule] = &[
    Rule { name: "product-with-shared-matrix", exact: true, root: "matmul", apply: shared },
    Rule { name: "sum-of-products", exact: false, root: "reduce", apply: summed },
];

pub fn plain(op: &Op) -> Option<()> {
    matches!(op, Op::MatMul(m) if m.fused == Fused::None).then_some(())
}

/// The matrix [k,n] that `id` [b…,k,n] repeats along its leading axes.
fn repeated(rw: &mut Rw, id: Id, depth: usize) -> Option<Id> {
    let shape = rw.shape(id);
    let r = shape.len();
    if shape[..r - 2].iter().all(|&n| n == 1) {
        return Some(rw.reshape(id, &shape[r - 2..]));
    }
    for (_, x) in rw.nodes(id, |op| matches!(op, Op::Broadcast(_)).then_some(())) {
        let small = rw.shape(x[0]);
        if small[r - 2..] == shape[r - 2..] && small[..r - 2].iter().all(|&n| n == 1) {
            return Some(rw.reshape(x[0], &shape[r - 2..]));
        }
    }
    if depth == 0 {
        return None;
    }
    let turned = |op: &Op| matches!(op, Op::Transpose(t) if swaps_last(&t.perm)).then_some(());
    for (_, x) in rw.nodes(id, turned) {
        if let Some(m) = repeated(rw, x[0], depth - 1) {
            return Some(rw.transpose(m, &[1, 0]));
        }
    }
    None
}

/// `[b…,m,k] · (one [k,n] for all b)` is `[b…·m,k] · [k,n]`.
fn shared(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let a = rw.shape(x[0]);
    let r = a.len();
    if plain(op).is_none() || r < 3 {
        return;
    }
    let Some(matrix) = repeated(rw, x[1], 2) else { return };
    let rows = a[..r - 1].iter().product();
    let flat = rw.reshape(x[0], &[rows, a[r - 1]]);
    let product = rw.add(MatMul::plain(), &[flat, matrix]);
    let shape = rw.shape(id);
    let y = rw.reshape(product, &shape);
    rw.unite(id, y);
}

/// `Σ_b a_b · c_b` is one product over the axes b and k together: the gradient of a matrix that a
/// batch shares.
fn summed(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let Op::Reduce(reduce) = op else { return };
    let r = rw.shape(x[0]).len();
    if reduce.f != ReduceOp::Sum || r < 3 || reduce.axes != (0..r - 2).collect::<Vec<_>>() {
        return;
    }
    for (_, ab) in rw.nodes(x[0], plain) {
        let (a, b) = (rw.shape(ab[0]), rw.shape(ab[1]));
        let depth: usize = b[..r - 1].iter().product();
        let at = rw.swap_last(ab[0]);
        let at = rw.reshape(at, &[depth, a[r - 2]]);
        let a2 = rw.transpose(at, &[1, 0]);
        let b2 = rw.reshape(ab[1], &[depth, b[r - 1]]);
        let y = rw.add(MatMul::plain(), &[a2, b2]);
        rw.unite(id, y);
    }
}
