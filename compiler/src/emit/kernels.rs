//! Kernels that do not fuse, and the sizes of convolutions.

use super::Bind;
use crate::ir::view::View;
use crate::ops::Op;
use crate::schedule::items::Body;
use crate::schedule::{flat, rows_of, table};
use precast_plan::{
    Access, Attention, AttentionGrad, ConvGeometry, ConvKind, Gather, Kernel, MaxPool,
};

impl Bind<'_> {
    pub(super) fn geometry(&self, op: &Op, operands: &[(usize, View)]) -> (ConvKind, ConvGeometry) {
        use crate::ir::TensorType;
        let ty = |i: usize| TensorType::f32(operands[i].1.shape.clone());
        let (kind, g) = match op {
            Op::Conv2d(c) => (ConvKind::Forward, c.geometry(&ty(0), &ty(1))),
            Op::Conv2dDataGrad(c) => (ConvKind::DataGrad, c.geometry(&ty(0), &ty(1))),
            Op::Conv2dFilterGrad(c) => (ConvKind::FilterGrad, c.geometry(&ty(0), &ty(1))),
            op => panic!("`{}` is not a convolution", op.name()),
        };
        (kind, g.expect("the graph was verified"))
    }

    pub(super) fn kernel(&self, i: usize) -> Kernel {
        let item = &self.s.items.items[i];
        let Body::Kernel { op, operands } = &item.body else { panic!("not a kernel") };
        let write = |k: usize| {
            let w = &item.writes[k];
            self.access(w, &self.s.items.values[w.value].shape)
        };
        let shape =
            |k: usize| -> Vec<u64> { operands[k].1.shape.iter().map(|&n| n as u64).collect() };
        let attention = |scale: f64, causal: bool, masked: bool, o: Access, lse: Access| {
            let (q, k) = (shape(0), shape(1));
            Attention {
                batch: q[0],
                heads: q[1],
                tq: q[2],
                tk: k[2],
                d: q[3],
                scale: scale as f32,
                causal,
                mask: masked.then(|| self.view(&operands[3])),
                q: self.view(&operands[0]),
                k: self.view(&operands[1]),
                v: self.view(&operands[2]),
                o,
                lse,
            }
        };
        match op {
            Op::Attention(a) => {
                Kernel::Attention(attention(a.scale.0, a.causal, a.masked, write(0), write(1)))
            }
            Op::AttentionGrad(a) => {
                let n = operands.len();
                let (o, lse) = (self.view(&operands[n - 3]), self.view(&operands[n - 2]));
                Kernel::AttentionGrad(AttentionGrad {
                    forward: attention(a.scale.0, a.causal, a.masked, o, lse),
                    d_o: self.view(&operands[n - 1]),
                    d_q: write(0),
                    d_k: write(1),
                    d_v: write(2),
                })
            }
            Op::MaxPool2d(p) => {
                let g = crate::ops::pool::pool_geometry(
                    &operands[0].1.shape,
                    p.kernel,
                    p.stride,
                    p.pad,
                );
                Kernel::MaxPool(MaxPool {
                    geometry: g.expect("the graph was verified"),
                    x: self.view(&operands[0]),
                    y: write(0),
                    index: write(1),
                })
            }
            Op::MaxPool2dGrad(p) => {
                let x = &self.s.items.values[item.writes[0].value].shape;
                let g = crate::ops::pool::pool_geometry(x, p.kernel, p.stride, p.pad);
                Kernel::MaxPoolGrad(MaxPool {
                    geometry: g.expect("the graph was verified"),
                    x: write(0),
                    y: self.view(&operands[0]),
                    index: self.view(&operands[1]),
                })
            }
            Op::Gather(_) => {
                let t = table(&operands[0].1).expect("operands were checked");
                let ids = &operands[1].1;
                let width = operands[0].1.shape[1..].iter().product::<usize>() as u64;
                Kernel::Gather(Gather {
                    rows: ids.shape.elements() as u64,
                    width,
                    table_rows: shape(0)[0],
                    table: self.with(&operands[0], t.to_vec()),
                    ids: self.with(&operands[1], vec![flat(ids).expect("operands were checked")]),
                    out: Access { strides: vec![width as i64, 1], ..write(0) },
                })
            }
            Op::ScatterAdd(s) => {
                let (ids, dy) = (&operands[0].1, &operands[1].1);
                let rows = ids.shape.elements();
                let width = dy.shape.elements() / rows.max(1);
                let seen = rows_of(dy, ids).expect("operands were checked");
                Kernel::ScatterAdd(Gather {
                    rows: rows as u64,
                    width: width as u64,
                    table_rows: s.rows as u64,
                    table: Access { strides: vec![width as i64, 1], ..write(0) },
                    ids: self.with(&operands[0], vec![flat(ids).expect("operands were checked")]),
                    out: self.with(&operands[1], seen.to_vec()),
                })
            }
            op => panic!("`{}` has no kernel", op.name()),
        }
    }
}
