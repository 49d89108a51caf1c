//! Along one axis: running sums, and the places of the largest. And the last index of every row.

use super::gather::fault_value;
use super::text::{Head, Params, Size, address, blocks, c_type, dtype, launch, small};
use crate::cuda::launch::{Arg, Facts, Lowered, Place, Task};
use crate::error::Result;
use precast_plan::{Access, CumSum, LastIndex, Plan, TopK};

/// Threads of a block.
const THREADS: u32 = 256;

/// What a block takes for its elements, as many as it has threads, in elements of a thread: a step for
/// each doubling of the distance, with barriers.
const BLOCK_OF_ELEMENTS: u64 = 32;

/// Whether a thread for each line is faster than a block: where there are lines enough for all
/// threads, or few elements a line. Threads whose lines are no neighbours in memory read a sector for
/// every element.
fn line_a_thread(s: &CumSum, facts: &Facts) -> bool {
    let [outer, n, inner] = s.dims;
    let lines = outer * inner;
    let sms = u64::from(facts.multiprocessors).max(1);
    let near = |a: &Access| {
        let step = if inner > 1 { a.strides[2] } else { a.strides[0] };
        lines == 1 || step.unsigned_abs() <= 1
    };
    let apart = if near(&s.x) && near(&s.y) { 1 } else { 8 };
    let resident = u64::from(facts.threads_per_multiprocessor).max(u64::from(THREADS));
    let by_thread = lines.div_ceil(sms * resident) * n * apart;
    let blocks = sms * (resident / u64::from(THREADS));
    let by_block = lines.div_ceil(blocks) * n.div_ceil(u64::from(THREADS)) * BLOCK_OF_ELEMENTS;
    by_thread <= by_block
}

/// Running sums in f64: a line is a thread's, or a block's, which sums 256 elements at a time.
///
/// # Errors
/// None for valid plans.
pub fn lower_cumsum(plan: &Plan, s: &CumSum, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let [outer, n, inner] = s.dims;
    let (from, to) = (dtype(plan, &s.x), dtype(plan, &s.y));
    let wide = line_a_thread(s, facts);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_threads_where_there_are_many_or_short_ones() {
        let facts = Facts {
            capability: (9, 0),
            multiprocessors: 132,
            shared_per_block: 232_448,
            threads_per_multiprocessor: 2048,
        };
        let wide = |dims: [u64; 3], strides: [i64; 3]| {
            let access = || Access { tensor: 0, offset: 0, strides: strides.to_vec() };
            let sum = CumSum { dims, exclusive: false, reverse: false, x: access(), y: access() };
            line_a_thread(&sum, &facts)
        };
        // Few lines are too few threads, however they lie.
        assert!(!wide([1, 1_000_000, 3], [3_000_000, 3, 1]));
        assert!(!wide([64, 4096, 1], [4096, 1, 1]));
        // Lines enough, side by side or not.
        assert!(wide([8, 512, 65536], [512 * 65536, 65536, 1]));
        assert!(wide([1 << 20, 8, 1], [8, 1, 1]));
        assert!(!wide([1 << 14, 4096, 1], [4096, 1, 1]));
        // Short lines.
        assert!(wide([4, 16, 4], [64, 4, 1]));
    }
}
