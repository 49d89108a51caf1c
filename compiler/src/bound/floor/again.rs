//! Values that may be computed again where they are read, instead of being stored.

use super::super::sharing::Kind;
use super::{Admitted, Builder, down};
use crate::ir::{NodeId, ValueId};
use crate::ops::Op;
use crate::precision::cut::Price;
use precast_plan::DType;

impl Builder<'_> {
    /// The operands of `p` as its own fusion sees them: an operand that is at least as large as the
    /// result and cannot be computed again, with whether it is in memory anyway.
    fn hard_operand(&self, p: NodeId, elements: usize) -> Option<(ValueId, bool)> {
        let n = self.g.node(p);
        let mut found = None;
        for (at, v) in n.inputs.iter().enumerate() {
            let root = self.storage[v.0 as usize];
            let def = self.g.value(root).node;
            let hard = match self.sharing.kind[def.0 as usize] {
                // Of two results of a product either may be in memory.
                Kind::Product => self.g.node(def).outputs.len() == 1,
                Kind::Alone | Kind::Parts => true,
                Kind::Rows => !self.again(def),
                Kind::Maybe | Kind::Nothing => false,
            };
            let only = self.rows[root.0 as usize].iter().all(|r| r.0 == p);
            if hard && only && self.touched[p.0 as usize][at] >= elements {
                let stored = self.must[root.0 as usize] || self.demanded[root.0 as usize];
                if found.is_none_or(|(_, s)| s && !stored) {
                    found = Some((root, stored));
                }
            }
        }
        found
    }

    /// Whether the schedule may compute the result of a node again.
    pub(super) fn again(&self, id: NodeId) -> bool {
        let n = self.g.node(id);
        self.sharing.kind[id.0 as usize] == Kind::Rows
            && !matches!(n.op, Op::Dropout(_))
            && self.sharing.space[id.0 as usize].reduced == 1
    }

    /// What a value costs at least that may be stored or computed again where it is read.
    pub(super) fn computed_again(
        &self,
        v: ValueId,
        outside: &[(NodeId, usize)],
        illegal: bool,
    ) -> Price {
        let elements = self.g.shape(v).elements();
        let producer = self.g.value(v).node;
        let Some((operand, stored)) = self.hard_operand(producer, elements) else { return 0 };
        // What a product reads is written for it anyway, and then others may read that.
        let stored = stored || self.demanded[v.0 as usize] || self.in_part[v.0 as usize];
        // Either the value is read, or that operand is.
        let narrow = !illegal || self.legal.store[operand.0 as usize].is_none();
        let narrow = narrow && self.admitted != Admitted::Full;
        let phase = self.g.node(producer).region.phase();
        let moved = |d: DType| {
            let written = if stored { 0.0 } else { self.moved(elements, d, phase) };
            let read = |&(r, t): &(NodeId, usize)| {
                self.moved(t.min(elements), d, self.g.node(r).region.phase())
            };
            written + outside.iter().map(read).sum::<f64>()
        };
        // Where conversion is slow, fewer bytes may take longer. A value in both formats moves at least
        // as much.
        let full = moved(DType::F32);
        down(if narrow { full.min(moved(self.legal.half)) } else { full })
    }
}
