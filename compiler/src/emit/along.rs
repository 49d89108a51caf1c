//! Kernels along one axis, and the last index of every row.

use crate::ir::view::View;
use crate::ops::Op;
use crate::schedule::{dense_lines, flat, lines};
use precast_plan::{Access, CumSum, Kernel, LastIndex, TopK};

/// The kernel of an operation whose operand is seen through `view`; `with` accesses it by other strides.
///
/// # Panics
/// For another operation.
pub fn kernel(op: &Op, view: &View, with: impl Fn(Vec<i64>) -> Access, write: Access) -> Kernel {
    let along = |axis: usize| {
        let (dims, strides) = lines(view, axis).expect("operands were checked");
        (dims, with(strides.to_vec()))
    };
    match op {
        Op::LastIndex(op) => Kernel::LastIndex(LastIndex {
            rows: view.shape.elements() as u64,
            table_rows: op.rows as u64,
            ids: with(vec![flat(view).expect("operands were checked")]),
            out: write,
        }),
        Op::CumSum(op) => {
            let (dims, x) = along(op.axis);
            let y = Access { strides: dense_lines(dims), ..write };
            let (exclusive, reverse) = (op.exclusive, op.reverse);
            Kernel::CumSum(CumSum { dims, exclusive, reverse, x, y })
        }
        Op::TopK(op) => {
            let (dims, x) = along(op.axis);
            let (k, [outer, _, inner]) = (op.k as u64, dims);
            let index = Access { strides: dense_lines([outer, k, inner]), ..write };
            Kernel::TopK(TopK { dims, k, largest: op.largest, x, index })
        }
        op => panic!("`{}` has no kernel", op.name()),
    }
}
