//! Recurrences with their operands by name.

use super::Bind;
use crate::ir::TensorType;
use crate::ir::view::View;
use crate::ops::Op;
use crate::schedule::items::Body;
use precast_plan::{Access, Kernel, Recurrence, RecurrenceGrad};

impl Bind<'_> {
    /// The kernel of item `i`, a recurrence or its gradient.
    pub(super) fn recurrence(&self, i: usize) -> Kernel {
        let items = &self.s.items;
        let Body::Kernel { op, operands } = &items.items[i].body else { panic!("not a kernel") };
        let write = |k: usize| {
            let w = &items.items[i].writes[k];
            self.access(w, &items.values[w.value].shape)
        };
        let types: Vec<TensorType> = operands
            .iter()
            .map(|(root, view)| TensorType::new(items.values[*root].dtype, view.shape.clone()))
            .collect();
        let types: Vec<&TensorType> = types.iter().collect();
        let mut rest = operands.iter();
        let mut next = || self.dense(rest.next().expect("operands were checked"));
        match op {
            Op::Recurrence(r) => Kernel::Recurrence(Recurrence {
                shape: r.sizes(&types),
                gates: next(),
                matrix: next(),
                states: next(),
                bias: r.cell.has_bias().then(&mut next),
                peephole: r.peephole.then(&mut next),
                lengths: r.lengths.then(&mut next),
                y: write(0),
                kept: write(1),
                before: write(2),
            }),
            Op::RecurrenceGrad(r) => Kernel::RecurrenceGrad(RecurrenceGrad {
                shape: r.sizes(&types),
                matrix: next(),
                kept: next(),
                before: next(),
                d_y: next(),
                peephole: r.peephole.then(&mut next),
                lengths: r.lengths.then(&mut next),
                d_gates: write(0),
                d_states: write(1),
            }),
            op => panic!("`{}` is no recurrence", op.name()),
        }
    }

    /// An operand that the schedule made dense. Its axes of one element have the strides of a dense
    /// tensor too, whatever the view says of them.
    fn dense(&self, operand: &(usize, View)) -> Access {
        self.with(operand, operand.1.shape.strides())
    }
}
