//! Views of views.

use super::{Rule, Rw};
use crate::ops::{Broadcast, Op, Transpose};
use egg::Id;

pub static RULES: &[Rule] = &[
    Rule { name: "transpose-of-transpose", exact: true, root: "transpose", apply: transposes },
    Rule { name: "reshape-of-reshape", exact: true, root: "reshape", apply: reshapes },
    Rule { name: "transpose-of-broadcast", exact: true, root: "transpose", apply: under_broadcast },
];

fn transposes(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let Op::Transpose(t) = op else { return };
    let y = rw.transpose(x[0], &t.perm);
    rw.unite(id, y);
}

fn reshapes(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let Op::Reshape(r) = op else { return };
    let y = rw.reshape(x[0], &r.shape);
    rw.unite(id, y);
}

/// A transpose moves under a broadcast, where the view it makes is of fewer elements.
fn under_broadcast(rw: &mut Rw, id: Id, op: &Op, x: &[Id]) {
    let Op::Transpose(t) = op else { return };
    for (_, inner) in rw.nodes(x[0], |op| matches!(op, Op::Broadcast(_)).then_some(())) {
        let small = rw.add(Transpose { perm: t.perm.clone() }, &inner);
        let wide = rw.shape(id);
        let y = rw.add(Broadcast { shape: wide }, &[small]);
        rw.unite(id, y);
    }
}
