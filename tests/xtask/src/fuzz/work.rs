//! How much a plan's step computes, roughly, from its extents: validation bounds memory, not time, and
//! a plan may say to work for a year.

use precast_plan::{Attention, ConvGeometry, Kernel, Plan, Step};

/// Points of iteration spaces times what happens at each, over all steps of a plan.
pub fn total_work(plan: &Plan) -> u128 {
    let steps = plan.micro.iter().chain(&plan.update).chain(&plan.eval);
    steps.map(|s| step(plan, s)).fold(0, u128::saturating_add)
}

fn product(list: &[u64]) -> u128 {
    list.iter().fold(1u128, |n, &x| n.saturating_mul(u128::from(x)))
}

fn conv(g: &ConvGeometry) -> u128 {
    product(&[g.n, g.o, g.oh, g.ow, g.c / g.groups.max(1), g.kh, g.kw])
        .saturating_add(product(&[g.n, g.c, g.h, g.w]))
}

fn attention(a: &Attention) -> u128 {
    product(&[a.batch, a.heads, a.tq, a.tk, a.d])
}

fn step(plan: &Plan, step: &Step) -> u128 {
    match &step.kernel {
        Kernel::Rows(r) => {
            let code = plan.programs.get(r.program as usize).map_or(1, |p| p.code.len().max(1));
            let points: u128 =
                r.instances.iter().map(|i| product(&i.dims)).fold(0, u128::saturating_add);
            points.saturating_mul(code as u128)
        }
        Kernel::Gemm(g) => product(&[g.batch[0], g.batch[1], g.m, g.n, g.k]),
        Kernel::Conv(c) => conv(&c.geometry),
        Kernel::Attention(a) => attention(a),
        Kernel::AttentionGrad(g) => attention(&g.forward).saturating_mul(3),
        Kernel::Recurrence(r) => r.shape.flops() as u128,
        Kernel::RecurrenceGrad(r) => r.shape.flops() as u128 * 3,
        Kernel::MaxPool(p) | Kernel::MaxPoolGrad(p) => conv(&p.geometry),
        Kernel::Gather(g) | Kernel::ScatterAdd(g) => {
            product(&[g.rows, g.width]).saturating_add(product(&[g.table_rows, g.width]))
        }
        Kernel::LastIndex(l) => u128::from(l.rows) + u128::from(l.table_rows),
        Kernel::CumSum(c) => product(&c.dims),
        Kernel::TopK(t) => product(&t.dims).saturating_mul(u128::from(t.k.min(64))),
    }
}
