//! Max pooling and its gradient.

use super::text::{Head, Params, Size, address, blocks, c_type, dtype, launch, small, wide};
use crate::cuda::launch::{Facts, Lowered, Task};
use crate::error::Result;
use precast_plan::{MaxPool, Plan};

/// Writes y and the window index of each maximum.
///
/// # Errors
/// `R0131` for sizes beyond 2^31.
pub fn lower_max_pool(plan: &Plan, m: &MaxPool, facts: &Facts, out: &mut Lowered) -> Result<()> {
    lower(plan, m, true, facts, out)
}

/// Each input collects the cotangents of the windows that chose it, in row order of the windows:
/// no atomics, so sums do not depend on the run.
///
/// # Errors
/// `R0131` for sizes beyond 2^31.
pub fn lower_max_pool_grad(
    plan: &Plan,
    m: &MaxPool,
    facts: &Facts,
    out: &mut Lowered,
) -> Result<()> {
    lower(plan, m, false, facts, out)
}

fn lower(plan: &Plan, m: &MaxPool, forward: bool, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let g = &m.geometry;
    let written = if forward { &m.y } else { &m.x };
    let channels_last = written.strides[1] == 1 && g.c > 1;
    // Neighbouring channels move 16 bytes at a time.
    let vec = 16 / dtype(plan, &m.x).size() as u64;
    let index = &m.index;
    let along = index.strides[1] == 1
        && index.offset.is_multiple_of(vec)
        && [0, 2, 3].iter().all(|&d| index.strides[d].unsigned_abs().is_multiple_of(vec));
    let even = channels_last
        && dtype(plan, &m.x) == dtype(plan, &m.y)
        && [&m.x, &m.y].iter().all(|a| wide(plan, a, 1, g.c))
        && along;
    let vec = if even { vec } else { 1 };
    let mut head = Head::default();
    head.alias("XT", c_type(dtype(plan, &m.x)))
        .alias("YT", c_type(dtype(plan, &m.y)))
        .constant("KH", g.kh)
        .constant("KW", g.kw)
        .constant("STRIDE_H", g.stride[0])
        .constant("STRIDE_W", g.stride[1])
        .constant("DILATION_H", g.dilation[0])
        .constant("DILATION_W", g.dilation[1])
        .flag("FORWARD", forward)
        .constant("VEC", vec)
        .flag("CHANNELS_LAST", channels_last);
    let mut p = Params::default();
    let (x, y, index) = (address(plan, &m.x), address(plan, &m.y), address(plan, &m.index));
    if forward {
        p.pointer("XT", "x", x);
        p.pointer_mut("YT", "y", y);
        p.pointer_mut("u8", "index", index);
    } else {
        p.pointer_mut("XT", "x", x);
        p.pointer("YT", "y", y);
        p.pointer("u8", "index", index);
    }
    for (name, v) in [("n", g.n), ("c", g.c), ("h", g.h), ("w", g.w), ("oh", g.oh), ("ow", g.ow)] {
        p.u32(name, small("sizes of a pool", v)?);
    }
    for (d, name) in ["pad_h", "pad_w"].iter().enumerate() {
        // Every place that a window reaches fits as well.
        let (size, taps) = ([g.h, g.w][d], [g.kh, g.kw][d]);
        let reach = size + g.pad[d] + g.pad[d + 2] + taps * g.dilation[d] + g.stride[d];
        small("sizes of a pool", reach)?;
        p.i32(name, small("sizes of a pool", g.pad[d])?);
    }
    p.strides("x", &m.x.strides);
    p.strides("y", &m.y.strides);
    p.strides("index", &m.index.strides);
    let points = if forward { g.n * g.c * g.oh * g.ow } else { g.n * g.c * g.h * g.w };
    let grid = [blocks(points / vec, 256, facts.multiprocessors * 32), 1, 1];
    let family = if forward { "max_pool" } else { "max_pool_grad" };
    let text = include_str!("pool.cuh");
    out.tasks.push(Task::Launch(launch(
        family,
        &[],
        &head,
        text,
        p,
        Size { grid, threads: 256, shared: 0 },
    )));
    Ok(())
}
