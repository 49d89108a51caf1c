//! Products that a library could add to an accumulator, or to another variable.

use super::sharing::Kind;
use crate::ir::{Graph, ValueId};
use crate::ops::{Binary, Op};
use precast_plan::BinaryOp;
use rustc_hash::{FxHashMap, FxHashSet};

/// Products with the additions to variables of what they make: up to views, and to what may vanish
/// in between.
pub fn added(g: &Graph, storage: &[ValueId], kind: &[Kind]) -> FxHashSet<(usize, usize)> {
    let updates = g.updates.iter().map(|u| (storage[u.value.0 as usize], u.name.as_str()));
    let updates: FxHashMap<ValueId, &str> = updates.collect();
    let mut found = FxHashSet::default();
    for (id, n) in g.nodes() {
        let adds = n.op == Op::Binary(Binary { f: BinaryOp::Add });
        let Some(var) = n.outputs.first().and_then(|v| updates.get(v)).filter(|_| adds) else {
            continue;
        };
        let old = |v: &ValueId| {
            let def = g.def(storage[v.0 as usize]);
            matches!(&def.op, Op::Var(x) if x.name == **var)
        };
        let mut stack: Vec<ValueId> = n.inputs.iter().copied().filter(|v| !old(v)).collect();
        let mut seen = FxHashSet::default();
        while let Some(v) = stack.pop() {
            let from = g.value(storage[v.0 as usize]).node;
            match kind[from.0 as usize] {
                Kind::Product => {
                    found.insert((from.0 as usize, id.0 as usize));
                }
                Kind::Maybe => {
                    let inputs = &g.node(from).inputs;
                    stack.extend(inputs.iter().copied().filter(|v| seen.insert(v.0)));
                }
                _ => {}
            }
        }
    }
    found
}
