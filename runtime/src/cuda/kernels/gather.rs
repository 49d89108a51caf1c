//! Rows of a table by index, and the gradient: rows summed at indices.

use super::text::{Head, Params, Size, address, blocks, c_type, dtype, launch, small, wide};
use crate::cuda::launch::{Arg, Facts, Fault, Lowered, Place, Task};
use crate::error::Result;
use precast_plan::{Access, Gather, Plan};

pub(super) fn fault_value(step: u32) -> Arg {
    Arg::I64((i64::from(step) << 40) | i64::from(Fault::IdOutOfRange as u32))
}

/// Whether an access over `[rows, width]` is a whole dense matrix.
fn dense(a: &Access, rows: u64, width: u64) -> bool {
    let one = |n: u64, s: i64, want: u64| n == 1 || s == want as i64;
    one(width, a.strides[1], 1) && one(rows, a.strides[0], width)
}

/// `out[r, :] = table[ids[r], :]`. An id outside the table gives a row of zeros and a
/// [`Fault::IdOutOfRange`] of `step`.
///
/// # Errors
/// None for valid plans.
pub fn lower_gather(
    plan: &Plan,
    g: &Gather,
    step: u32,
    facts: &Facts,
    out: &mut Lowered,
) -> Result<()> {
    let (from, to) = (dtype(plan, &g.table), dtype(plan, &g.out));
    let copy = from == to && wide(plan, &g.table, 1, g.width) && wide(plan, &g.out, 1, g.width);
    let vec = if copy { 16 / from.size() as u64 } else { 1 };
    let mut head = Head::default();
    head.alias("TableT", c_type(from))
        .alias("OutT", c_type(to))
        .alias("IdT", c_type(dtype(plan, &g.ids)))
        .constant("VEC", vec)
        .flag("COPY16", copy);
    let mut p = Params::default();
    p.pointer("TableT", "table", address(plan, &g.table));
    p.pointer("IdT", "ids", address(plan, &g.ids));
    p.pointer_mut("OutT", "out", address(plan, &g.out));
    p.pointer_mut("u64", "fault", Arg::Fault);
    p.add("u64", "fault_value", fault_value(step));
    p.i64("rows", g.rows as i64);
    p.i64("width", g.width as i64);
    p.i64("table_rows", g.table_rows as i64);
    p.strides("table", &g.table.strides);
    p.strides("ids", &g.ids.strides);
    p.strides("out", &g.out.strides);
    let grid = [blocks(g.rows * (g.width / vec), 256, facts.multiprocessors * 16), 1, 1];
    let text = include_str!("gather.cuh");
    out.tasks.push(Task::Launch(launch(
        "gather",
        &[],
        &head,
        text,
        p,
        Size { grid, threads: 256, shared: 0 },
    )));
    Ok(())
}

/// `table[ids[r], :] = Σ out[r, :]`, rows summed in order of r in f32; zeros where no id points.
///
/// Rows are counted per table row, every table row that has some gets a stretch of a list, and a
/// block sums each stretch in order. An id outside the table adds nothing and reports a
/// [`Fault::IdOutOfRange`] of `step`.
///
/// # Errors
/// `R0131` for more than 2^31 ids or table rows.
pub fn lower_scatter_add(
    plan: &Plan,
    g: &Gather,
    step: u32,
    facts: &Facts,
    out: &mut Lowered,
) -> Result<()> {
    let rows = small("ids", g.rows)?;
    let table_rows = small("rows of a table", g.table_rows)?;
    let most = rows.min(table_rows);
    let table = dtype(plan, &g.table);
    if dense(&g.table, g.table_rows, g.width) {
        let place =
            Place::Tensor { tensor: g.table.tensor, offset: g.table.offset * table.size() as u64 };
        let bytes = g.table_rows * g.width * table.size() as u64;
        out.tasks.push(Task::Clear { place, bytes });
    } else {
        let mut head = Head::default();
        head.alias("TableT", c_type(table));
        let mut p = Params::default();
        p.pointer_mut("TableT", "table", address(plan, &g.table));
        p.i64("table_rows", g.table_rows as i64);
        p.i64("width", g.width as i64);
        p.strides("table", &g.table.strides);
        let grid = [blocks(g.table_rows * g.width, 256, facts.multiprocessors * 16), 1, 1];
        let text = include_str!("zero.cuh");
        out.tasks.push(Task::Launch(launch(
            "zero",
            &[],
            &head,
            text,
            p,
            Size { grid, threads: 256, shared: 0 },
        )));
    }

    // counts and cursor are cleared together.
    let counts = out.reserve(u64::from(table_rows) * 4 + 8);
    let cursor = counts + u64::from(table_rows) * 4;
    let start = out.reserve(u64::from(table_rows) * 4);
    let arrival = out.reserve(u64::from(rows) * 4);
    let order = out.reserve(u64::from(rows) * 4);
    let touched = out.reserve(u64::from(most) * 4);
    out.tasks.push(Task::Clear {
        place: Place::Scratch { offset: counts },
        bytes: u64::from(table_rows) * 4 + 8,
    });

    let mut head = Head::default();
    head.alias("IdT", c_type(dtype(plan, &g.ids)));
    let base = |p: &mut Params| {
        p.pointer("IdT", "ids", address(plan, &g.ids));
        p.u32("rows", rows);
        p.i64("table_rows", i64::from(table_rows));
        p.strides("ids", &g.ids.strides);
    };
    let scratch = |p: &mut Params, name: &str, offset: u64| {
        p.pointer_mut("u32", name, Arg::Scratch { offset });
    };
    let grid = [blocks(g.rows, 256, facts.multiprocessors * 8), 1, 1];
    let mut push = |family: &str, text: &str, p: Params| {
        out.tasks.push(Task::Launch(launch(
            family,
            &[],
            &head,
            text,
            p,
            Size { grid, threads: 256, shared: 0 },
        )));
    };
    let mut p = Params::default();
    base(&mut p);
    scratch(&mut p, "counts", counts);
    scratch(&mut p, "arrival", arrival);
    p.pointer_mut("u64", "fault", Arg::Fault);
    p.add("u64", "fault_value", fault_value(step));
    push("scatter_count", include_str!("scatter_count.cuh"), p);
    let mut p = Params::default();
    base(&mut p);
    for (name, at) in [
        ("counts", counts),
        ("arrival", arrival),
        ("start", start),
        ("cursor", cursor),
        ("touched", touched),
    ] {
        scratch(&mut p, name, at);
    }
    push("scatter_start", include_str!("scatter_start.cuh"), p);
    let mut p = Params::default();
    base(&mut p);
    for (name, at) in [("arrival", arrival), ("start", start), ("order", order)] {
        scratch(&mut p, name, at);
    }
    push("scatter_place", include_str!("scatter_place.cuh"), p);

    let grad = dtype(plan, &g.out);
    let is_wide = wide(plan, &g.out, 1, g.width);
    let vec = if is_wide { 16 / grad.size() as u64 } else { 1 };
    head.alias("GradT", c_type(grad))
        .alias("TableT", c_type(table))
        .constant("VEC", vec)
        .flag("WIDE", is_wide);
    let mut p = Params::default();
    base(&mut p);
    p.pointer("GradT", "grad", address(plan, &g.out));
    p.pointer_mut("TableT", "table", address(plan, &g.table));
    for (name, at) in [
        ("counts", counts),
        ("start", start),
        ("order", order),
        ("touched", touched),
        ("cursor", cursor),
    ] {
        scratch(&mut p, name, at);
    }
    p.i64("width", g.width as i64);
    p.strides("grad", &g.out.strides);
    p.strides("table", &g.table.strides);
    let columns = g.width.div_ceil(128 * vec);
    let grid = [most.min(facts.multiprocessors * 16), small("columns of a table", columns)?, 1];
    let text = include_str!("scatter_sum.cuh");
    out.tasks.push(Task::Launch(launch(
        "scatter_sum",
        &[],
        &head,
        text,
        p,
        Size { grid, threads: 128, shared: 0 },
    )));
    Ok(())
}
