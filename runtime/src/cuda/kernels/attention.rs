//! Scaled dot-product attention and its gradient, without ever storing the scores.
//!
//! Tensors of one 16-bit format go through tensor cores: weights and their cotangents are rounded
//! to that format before they multiply, sums are f32. Everything else is computed in f32. The
//! gradient recomputes the scores from the saved logarithms, once for q and once for k and v, so
//! that no sum needs atomics and results do not depend on the run.

use super::text::{Head, MMA, Params, Size, address, c_type, dtype, launch, small, wide};
use crate::cuda::launch::{Arg, Facts, Launch, Lowered, Task};
use crate::error::{Error, Result};
use precast_plan::{Access, Attention, AttentionGrad, DType, Plan};

/// Which of the three kernels.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    Forward,
    Keys,
    Queries,
}

/// How a kernel is cut up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Cut {
    /// Rows that a block owns.
    own: u64,
    /// Rows of the other side that it takes at a time.
    tile: u64,
    warps: u64,
    /// Fragments of 16 rows per warp (tensor cores), or rows per thread.
    mt: u64,
    /// Bytes of shared memory.
    shared: u64,
    /// Blocks that a multiprocessor should hold, for the compiler's register budget.
    resident: u64,
}

/// Channels that one block accumulates, and blocks for all of them.
fn slices(d: u64) -> (u64, u64) {
    let n = d.div_ceil(128);
    (d.div_ceil(n).next_multiple_of(16), n)
}

/// The first cut, best first, that fits into the shared memory of a block.
fn tensor_cut(which: Which, d: u64, mask: bool, facts: &Facts) -> Option<Cut> {
    let (slice, n) = slices(d);
    let dp = slice * n;
    let list: &[(u64, u64, u64, u64)] = match (which, dp) {
        // Addresses of a mask need registers.
        (Which::Forward, ..=64) if mask => &[(8, 1, 64, 1)],
        (Which::Forward, ..=128) if mask => &[(8, 1, 32, 1), (4, 1, 32, 1)],
        (Which::Keys, ..=64) if mask => &[(8, 1, 32, 1)],
        (Which::Keys, ..=128) if mask => &[(8, 1, 16, 1), (4, 1, 16, 1)],
        (Which::Forward, ..=64) => &[(4, 2, 64, 2)],
        (Which::Forward, ..=128) => &[(4, 2, 32, 1), (4, 1, 32, 2)],
        (Which::Keys, ..=64) => &[(4, 2, 32, 1)],
        (Which::Keys, ..=128) => &[(8, 1, 32, 1), (4, 1, 32, 1)],
        (Which::Queries, ..=64) => &[(4, 2, 32, 2)],
        (Which::Queries, ..=128) => &[(8, 1, 32, 1), (4, 1, 32, 2)],
        _ => &[(4, 1, 32, 1), (4, 1, 16, 1), (2, 1, 16, 1)],
    };
    list.iter().find_map(|&(warps, mt, tile, resident)| {
        let own = warps * mt * 16;
        let rows = if which == Which::Forward { own } else { 2 * own } + 4 * tile;
        let vectors = if which == Which::Keys { 24 * tile } else { 0 };
        let shared = rows * (dp + 8) * 2 + vectors;
        let fits = shared <= u64::from(facts.shared_per_block);
        fits.then_some(Cut { own, tile, warps, mt, shared, resident })
    })
}

fn plain_cut(which: Which, d: u64, facts: &Facts) -> Result<Cut> {
    let row = d.next_multiple_of(4) + 4;
    let wide = if which == Which::Keys { 128 } else { 256 };
    let most = match d {
        d if d <= wide => 4,
        d if d <= 2 * wide => 2,
        _ => 1,
    };
    let list = [(4, 4), (4, 2), (2, 2), (2, 1), (1, 1)];
    list.iter()
        .filter(|(own, _)| *own <= most)
        .map(|&(ro, rt)| {
            let (own, tile) = (16 * ro, 16 * rt);
            let (tiles, weights) = match which {
                Which::Forward => (own + 2 * tile, own),
                Which::Keys => (2 * own + 2 * tile, 2 * own),
                Which::Queries => (2 * own + 2 * tile, own),
            };
            let shared = (tiles * row + weights * (tile + 4)) * 4;
            Cut { own, tile, warps: 8, mt: ro, shared, resident: 1 }
        })
        .find(|cut| cut.shared <= u64::from(facts.shared_per_block))
        .ok_or_else(|| {
            Error::new("R0132", format!("attention over {d} channels a head"))
                .help("a block of this device has not enough shared memory; use narrower heads")
        })
}

/// Whether pairs of neighbouring channels can be stored as one word.
fn pairs(plan: &Plan, a: &Access, format: DType, d: u64) -> bool {
    let even = |s: i64| s % 2 == 0;
    dtype(plan, a) == format
        && a.strides[3] == 1
        && a.offset.is_multiple_of(2)
        && a.strides[..3].iter().all(|&s| even(s))
        && d.is_multiple_of(2)
}

/// Writes o, lse and low.
///
/// # Errors
/// `R0131` for sizes beyond 2^31, `R0132` for heads that no block's shared memory holds.
pub fn lower_attention(plan: &Plan, a: &Attention, facts: &Facts, out: &mut Lowered) -> Result<()> {
    let one = kernel(plan, a, None, Which::Forward, [0; 3], facts)?;
    out.tasks.push(Task::Launch(one));
    Ok(())
}

/// Writes the gradients of q, k and v: a pass for Σ d_o o and which rows have a gradient, one over keys,
/// one over queries.
///
/// # Errors
/// As [`lower_attention`].
pub fn lower_attention_grad(
    plan: &Plan,
    g: &AttentionGrad,
    facts: &Facts,
    out: &mut Lowered,
) -> Result<()> {
    let a = &g.forward;
    let rows = a.batch * a.heads * a.tq;
    let statistics = [(); 3].map(|()| out.reserve(rows * 4));
    let [delta, high, rest] = statistics;
    let mut head = Head::default();
    head.alias("OT", c_type(dtype(plan, &a.o)))
        .alias("GT", c_type(dtype(plan, &g.d_o)))
        .constant("D", a.d);
    let mut p = Params::default();
    p.pointer("OT", "o", address(plan, &a.o));
    p.pointer("GT", "d_o", address(plan, &g.d_o));
    p.pointer("float", "lse", address(plan, &a.lse));
    p.pointer("float", "low", address(plan, &a.low));
    p.pointer_mut("float", "delta", Arg::Scratch { offset: delta });
    p.pointer_mut("float", "high", Arg::Scratch { offset: high });
    p.pointer_mut("float", "rest", Arg::Scratch { offset: rest });
    p.i64("rows", rows as i64);
    p.i64("tq", a.tq as i64);
    p.i64("heads", a.heads as i64);
    p.strides("o", &a.o.strides);
    p.strides("d_o", &g.d_o.strides);
    p.strides("lse", &a.lse.strides);
    p.strides("low", &a.low.strides);
    let grid = [small("rows of attention", rows.div_ceil(8))?, 1, 1];
    let text = include_str!("attention_delta.cuh");
    let first =
        launch("attention_delta", &[], &head, text, p, Size { grid, threads: 256, shared: 0 });
    out.tasks.push(Task::Launch(first));
    for which in [Which::Keys, Which::Queries] {
        let one = kernel(plan, a, Some(g), which, statistics, facts)?;
        out.tasks.push(Task::Launch(one));
    }
    Ok(())
}

fn kernel(
    plan: &Plan,
    a: &Attention,
    grad: Option<&AttentionGrad>,
    which: Which,
    [delta, high, rest]: [u64; 3],
    facts: &Facts,
) -> Result<Launch> {
    let mut read = vec![("q", &a.q), ("k", &a.k), ("v", &a.v)];
    read.extend(grad.map(|g| ("d_o", &g.d_o)));
    let format = dtype(plan, &a.q);
    let tensor = facts.capability >= (8, 0)
        && matches!(format, DType::F16 | DType::Bf16)
        && read.iter().all(|(_, x)| dtype(plan, x) == format);
    let cut = if tensor { tensor_cut(which, a.d, a.mask.is_some(), facts) } else { None };
    let (tensor, cut) = match cut {
        Some(cut) => (true, cut),
        None => (false, plain_cut(which, a.d, facts)?),
    };
    let writes: Vec<(&str, &Access)> = match grad {
        None => vec![("o", &a.o)],
        Some(g) if which == Which::Keys => vec![("d_k", &g.d_k), ("d_v", &g.d_v)],
        Some(g) => vec![("d_q", &g.d_q)],
    };

    let mut head = Head::default();
    head.constant("D", a.d).flag("CAUSAL", a.causal).flag("MASK", a.mask.is_some());
    let select = a.mask.as_ref().is_some_and(|m| dtype(plan, m) == DType::Bool);
    head.flag("SELECT", select).flag("SAFE", a.safe);
    let names = ["q", "k", "v", "d_o"];
    let types = ["QT", "KT", "VT", "GT"];
    if tensor {
        let (slice, n) = slices(a.d);
        head.constant("DP", slice * n)
            .constant("SLICE", slice)
            .constant("WARPS", cut.warps)
            .constant("MT", cut.mt)
            .constant("TILE", cut.tile)
            .constant("MINBLOCKS", cut.resident)
            .flag("RAW_MAX", a.mask.is_none() && a.scale > 0.0)
            .alias("T", c_type(format));
        for (&(_, x), flag) in read.iter().zip(["VEC_Q", "VEC_K", "VEC_V", "VEC_G"]) {
            head.flag(flag, wide(plan, x, 3, a.d));
        }
        for (name, x) in &writes {
            let flag = format!("PAIR_{}", name[name.len() - 1..].to_uppercase());
            head.flag(&flag, pairs(plan, x, format, a.d));
        }
    } else {
        head.constant("RO", cut.mt)
            .constant("RT", cut.tile / 16)
            .flag("FORWARD", which == Which::Forward)
            .flag("KEYS", which == Which::Keys);
        for (&(_, x), name) in read.iter().zip(types) {
            head.alias(name, c_type(dtype(plan, x)));
        }
    }
    let mut p = Params::default();
    for (&(name, x), c) in read.iter().zip(types) {
        debug_assert!(names.contains(&name));
        p.pointer(if tensor { "T" } else { c }, name, address(plan, x));
        p.strides(name, &x.strides);
    }
    if let Some(m) = &a.mask {
        head.alias("MaskT", c_type(dtype(plan, m)));
        p.pointer("MaskT", "mask", address(plan, m));
        p.strides("mask", &m.strides);
    }
    head.text(include_str!("attention_scores.cuh"));
    if tensor {
        head.text(include_str!("attention.cuh"));
    }
    for (name, x) in &writes {
        p.pointer_mut(c_type(dtype(plan, x)), name, address(plan, x));
        p.strides(name, &x.strides);
    }
    if which == Which::Forward {
        p.pointer_mut("float", "lse", address(plan, &a.lse));
        p.strides("lse", &a.lse.strides);
        p.pointer_mut("float", "low", address(plan, &a.low));
        p.strides("low", &a.low.strides);
    } else {
        p.pointer("float", "delta", Arg::Scratch { offset: delta });
        p.pointer("float", "high", Arg::Scratch { offset: high });
        p.pointer("float", "low", Arg::Scratch { offset: rest });
    }
    let rows = if which == Which::Keys { a.tk } else { a.tq };
    let blocks = rows.div_ceil(cut.own);
    let heads_all = a.batch * a.heads;
    for (name, v) in
        [("heads", a.heads), ("pairs", heads_all), ("tq", a.tq), ("tk", a.tk), ("blocks", blocks)]
    {
        p.add("int", name, Arg::I32(small("sizes of attention", v)?.cast_signed()));
    }
    p.f32("scale", a.scale);
    if select {
        p.f32("fill", a.fill.unwrap_or(f32::NEG_INFINITY));
    }
    let n = if tensor { slices(a.d).1 as u32 } else { 1 };
    let grid = [small("blocks of attention", blocks * heads_all)?, n, 1];
    let (family, text) = match which {
        Which::Forward => ("attention", include_str!("attention_forward.cuh")),
        Which::Keys => ("attention_keys", include_str!("attention_keys.cuh")),
        Which::Queries => ("attention_queries", include_str!("attention_queries.cuh")),
    };
    let parts: &[&str] = if tensor { &[MMA] } else { &[] };
    let text = if tensor { text } else { include_str!("attention_plain.cuh") };
    let threads = cut.warps as u32 * 32;
    Ok(launch(family, parts, &head, text, p, Size { grid, threads, shared: cut.shared as u32 }))
}
