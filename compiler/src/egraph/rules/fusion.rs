//! Epilogues: what a product can do to its sums before they are stored.

use super::{Rule, Rw};
use crate::ops::{MatMul, Op, activation::Act, matmul::Fused};
use egg::Id;
use precast_plan::BinaryOp;
use smallvec::SmallVec;

pub static RULES: &[Rule] = &[
    Rule { name: "product-bias", exact: true, root: "binary", apply: bias },
    Rule { name: "product-bias-activation", exact: true, root: "activate", apply: activation },
];

/// Products of a class, also those it is a reshape of (with the same last axis).
fn products(rw: &Rw, id: Id, fused: Fused) -> Vec<SmallVec<[Id; 4]>> {
    let is = |op: &Op| matches!(op, Op::MatMul(m) if m.fused == fused).then_some(());
    let mut found: Vec<_> = rw.nodes(id, is).into_iter().map(|(_, x)| x).collect();
    let last = |id: Id| rw.facts(id).ty().shape.last().copied();
    for (_, x) in rw.nodes(id, |op| matches!(op, Op::Reshape(_)).then_some(())) {
        if last(x[0]) == last(id) {
            found.extend(rw.nodes(x[0], is).into_iter().map(|(_, x)| x));
        }
    }
    found.sort();
    found.dedup();
    found
}

/// The vector [n] that `id` […,n] repeats along all axes but the last.
fn vector(rw: &mut Rw, id: Id) -> Option<Id> {
    let shape = rw.shape(id);
    let &n = shape.last()?;
    for (_, x) in rw.nodes(id, |op| matches!(op, Op::Broadcast(_)).then_some(())) {
        let small = rw.shape(x[0]);
        if small.last() == Some(&n) && small[..small.len() - 1].iter().all(|&d| d == 1) {
            return Some(rw.reshape(x[0], &[n]));
        }
    }
    None
}

fn bias(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    if !matches!(op, Op::Binary(b) if b.f == BinaryOp::Add) {
        return;
    }
    for (product, other) in [(x[0], x[1]), (x[1], x[0])] {
        let found = products(rw, product, Fused::None);
        if found.is_empty() {
            continue;
        }
        let Some(bias) = vector(rw, other) else { continue };
        for ab in found {
            let y = rw.add(MatMul::with(Fused::Bias), &[ab[0], ab[1], bias]);
            let shape = rw.shape(id);
            let y = rw.reshape(y, &shape);
            rw.unite(id, y);
        }
    }
}

fn activation(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let Op::Activate(a) = op else { return };
    let fused = match a.act {
        Act::Relu => Fused::BiasRelu,
        Act::Gelu => Fused::BiasGelu,
        Act::GeluTanh => Fused::BiasGeluTanh,
        Act::Silu | Act::Softplus => return,
    };
    let shape = rw.shape(id);
    for abc in products(rw, x[0], Fused::Bias) {
        let y = rw.add(MatMul::with(fused), &abc);
        if fused.has_aux() {
            // The gradient reads the pre-activation, which the kernel stores as well.
            let (act, pre) = (rw.proj(0, y), rw.proj(1, y));
            let (act, pre) = (rw.reshape(act, &shape), rw.reshape(pre, &shape));
            rw.unite(id, act);
            rw.unite(x[0], pre);
        } else {
            let y = rw.reshape(y, &shape);
            rw.unite(id, y);
        }
    }
}
