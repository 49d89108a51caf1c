//! Along one axis: running sums, and the places of the largest. And the last index of every row.

use super::gather::fault_value;
use super::text::{Head, Params, Size, address, blocks, c_type, dtype, launch, small};
use crate::cuda::launch::{Arg, Facts, Lowered, Place, Task};
use crate::error::Result;
use precast_plan::{CumSum, LastIndex, Plan, TopK};

/// Threads of a block.
const THREADS: u32 = 256;

/// Running sums in f64. Lines whose neighbours are neighbours in memory take a thread each; others a
/// block each, which sums 256 elements at a time.
///
/// # Errors
/// None for valid plans.
pub fn lower_cumsum(plan: &Plan, s: &CumSum, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let [outer, n, inner] = s.dims;
    let (from, to) = (dtype(plan, &s.x), dtype(plan, &s.y));
    let wide = inner > 1;
    let mut head = Head::default();
    head.alias("XT", c_type(from))
        .alias("YT", c_type(to))
        .alias("SumT", if from.is_real() { "double" } else { "int" })
        .flag("REAL", from.is_real())
        .flag("EXCLUSIVE", s.exclusive)
        .flag("REVERSE", s.reverse)
        .flag("LINE_A_THREAD", wide);
    let mut p = Params::default();
    p.pointer("XT", "x", address(plan, &s.x));
    p.pointer_mut("YT", "y", address(plan, &s.y));
    p.i64("outer", outer as i64);
    p.i64("n", n as i64);
    p.i64("inner", inner as i64);
    p.strides("x", &s.x.strides);
    p.strides("y", &s.y.strides);
    let most = facts.multiprocessors * 16;
    let lines = outer * inner;
    let wanted =
        if wide { blocks(lines, u64::from(THREADS), most) } else { blocks(lines, 1, most) };
    let size = Size { grid: [wanted, 1, 1], threads: THREADS, shared: 0 };
    let text = include_str!("cumsum.cuh");
    out.tasks.push(Task::Launch(launch("cumsum", &[], &head, text, p, size)));
    Ok(())
}

/// Elements of a line that are sorted in shared memory: 32 KiB of keys.
const SHARED_KEYS: u64 = 4096;

/// Every line is sorted whole by one block, a bitonic network over keys that are all different: what
/// comes out does not depend on the order of threads.
///
/// # Errors
/// `R0131` for lines beyond 2^31.
pub fn lower_top_k(plan: &Plan, t: &TopK, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let [outer, n, inner] = t.dims;
    let from = dtype(plan, &t.x);
    let keys = n.next_power_of_two();
    let shared = keys <= SHARED_KEYS;
    let lines = outer * inner;
    let grid = blocks(lines, 1, facts.multiprocessors * if shared { 8 } else { 1 });
    let mut head = Head::default();
    head.alias("XT", c_type(from))
        .flag("REAL", from.is_real())
        .flag("LARGEST", t.largest)
        .flag("SHARED", shared)
        .constant("KEYS", if shared { keys } else { 1 });
    let mut p = Params::default();
    p.pointer("XT", "x", address(plan, &t.x));
    p.pointer_mut("int", "index", address(plan, &t.index));
    let at = if shared { 0 } else { out.reserve(u64::from(grid) * keys * 8) };
    p.pointer_mut("u64", "scratch", Arg::Scratch { offset: at });
    p.i64("lines", lines as i64);
    p.i64("inner", inner as i64);
    p.u32("n", small("elements of a line", n)?);
    p.u32("keys_all", small("elements of a line", keys)?);
    p.u32("k", small("elements of a line", t.k)?);
    p.strides("x", &t.x.strides);
    p.strides("index", &t.index.strides);
    let size = Size { grid: [grid, 1, 1], threads: THREADS, shared: 0 };
    out.tasks.push(Task::Launch(launch("top_k", &[], &head, include_str!("top_k.cuh"), p, size)));
    Ok(())
}

/// The largest place wins, whatever the order of threads. An id outside the table is a
/// [`crate::cuda::launch::Fault::IdOutOfRange`] of `step`.
///
/// # Errors
/// `R0131` for more than 2^31 ids.
pub fn lower_last_index(
    plan: &Plan,
    l: &LastIndex,
    step: u32,
    facts: &Facts,
    out: &mut Lowered,
) -> Result<()> {
    let place = Place::Tensor { tensor: l.out.tensor, offset: l.out.offset * 4 };
    out.tasks.push(Task::Clear { place, bytes: l.table_rows * 4 });
    let mut head = Head::default();
    head.alias("IdT", c_type(dtype(plan, &l.ids)));
    let mut p = Params::default();
    p.pointer("IdT", "ids", address(plan, &l.ids));
    p.pointer_mut("int", "out", address(plan, &l.out));
    p.pointer_mut("u64", "fault", Arg::Fault);
    p.add("u64", "fault_value", fault_value(step));
    p.u32("rows", small("ids", l.rows)?);
    p.i64("table_rows", l.table_rows as i64);
    p.strides("ids", &l.ids.strides);
    let grid = [blocks(l.rows, u64::from(THREADS), facts.multiprocessors * 8), 1, 1];
    let size = Size { grid, threads: THREADS, shared: 0 };
    let text = include_str!("last_index.cuh");
    out.tasks.push(Task::Launch(launch("last_index", &[], &head, text, p, size)));
    Ok(())
}
