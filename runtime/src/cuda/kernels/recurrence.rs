//! Recurrent networks: a block walks some sequences through all steps, with the recurrent matrix
//! read from the second-level cache in every step.

use super::text::{Head, Params, Size, address, blocks, c_type, dtype, launch, small};
use crate::cuda::launch::{Arg, Facts, Lowered, Task};
use crate::error::{Error, Result};
use precast_plan::{
    Access, Plan, Recurrence, RecurrenceGrad, RecurrenceShape, RecurrentCell, Squash,
};

/// Most threads of a block.
const THREADS: u64 = 512;
/// Parts of a sum that run beside each other.
const SPLIT: u64 = 4;

/// How a walk is cut up.
#[derive(Clone, Copy)]
struct Cut {
    /// Sequences of a block.
    rows: u64,
    threads: u64,
    /// Bytes of shared memory of a block.
    shared: u64,
}

fn cut(s: &RecurrenceShape, facts: &Facts) -> Result<Cut> {
    // No more threads than columns, in every part of a sum.
    let columns = (s.cell.gates() as u64 * s.hidden).next_power_of_two();
    let threads = (columns * SPLIT).clamp(128, THREADS);
    let each = (2 + s.cell.gates() as u64) * s.hidden + threads;
    // Where the device has blocks to spare, a sequence each; otherwise the matrix is read for several.
    let wanted = (s.batch * s.directions()).div_ceil(u64::from(facts.multiprocessors.max(1)));
    [8, 4, 2, 1]
        .into_iter()
        .filter(|&rows| rows < 2 * wanted.max(1))
        .map(|rows| Cut { rows, threads, shared: 4 * rows * each })
        .find(|cut| cut.shared <= u64::from(facts.shared_per_block))
        .ok_or_else(|| {
            Error::new("R0132", format!("a recurrence over states of {} elements", s.hidden))
                .help("a block of this device has not enough shared memory; use a narrower state")
        })
}

fn squash(f: Squash) -> u64 {
    match f {
        Squash::Sigmoid => 0,
        Squash::Tanh => 1,
        Squash::Relu => 2,
    }
}

/// What both directions say in their text.
fn head(s: &RecurrenceShape, cut: Cut, peephole: bool, lengths: Option<&'static str>) -> Head {
    let cell = match s.cell {
        RecurrentCell::Rnn => 0,
        RecurrentCell::Lstm => 1,
        RecurrentCell::Gru => 2,
        RecurrentCell::GruResetAfter => 3,
    };
    let directions = s.way.directions();
    let reverse: u64 = (0..directions).map(|d| u64::from(s.way.reverse(d)) << d).sum();
    let mut head = Head::default();
    head.constant("CELL", cell)
        .constant("GATES", s.cell.gates() as u64)
        .constant("KEPT", s.cell.kept() as u64)
        .constant("SQUASH1", squash(s.squash[0]))
        .constant("SQUASH2", squash(s.squash[1]))
        .constant("SQUASH3", squash(s.squash[2]))
        .constant("REVERSE", reverse)
        .constant("ROWS", cut.rows)
        .constant("THREADS", cut.threads)
        .constant("SPLIT", SPLIT)
        .flag("PEEPHOLE", peephole)
        .flag("LENGTHS", lengths.is_some());
    if let Some(ty) = lengths {
        head.alias("LengthT", ty);
    }
    head
}

fn sizes(p: &mut Params, s: &RecurrenceShape) -> Result<()> {
    let list = [
        ("steps", s.steps),
        ("batch", s.batch),
        ("hidden", s.hidden),
        ("directions", s.directions()),
    ];
    for (name, v) in list {
        p.i32(name, small("sizes of a recurrence", v)?);
    }
    // Columns of the matrix are counted in 32 bits too.
    small("gates of a recurrence", s.cell.gates() as u64 * s.hidden)?;
    Ok(())
}

/// An operand: the alias of its type, its name.
fn read(
    (plan, head): (&Plan, &mut Head),
    p: &mut Params,
    alias: &str,
    name: &str,
    a: Option<&Access>,
) {
    if let Some(a) = a {
        head.alias(alias, c_type(dtype(plan, a)));
        p.pointer(alias, name, address(plan, a));
    }
}

/// A result that may be in any format.
fn write((plan, head): (&Plan, &mut Head), p: &mut Params, alias: &str, name: &str, a: &Access) {
    head.alias(alias, c_type(dtype(plan, a)));
    p.pointer_mut(alias, name, address(plan, a));
}

/// Turns the matrix, then walks.
///
/// # Errors
/// `R0131` for sizes beyond 2^31, `R0132` for states that no block's shared memory holds.
pub fn lower_recurrence(
    plan: &Plan,
    r: &Recurrence,
    facts: &Facts,
    out: &mut Lowered,
) -> Result<()> {
    let s = &r.shape;
    let cut = cut(s, facts)?;
    let total = s.directions() * s.cell.gates() as u64 * s.hidden * s.hidden;
    let turned = out.reserve(total * 4);
    let mut of_matrix = Head::default();
    let mut p = Params::default();
    read((plan, &mut of_matrix), &mut p, "MatrixT", "matrix", Some(&r.matrix));
    p.pointer_mut("float", "turned", Arg::Scratch { offset: turned });
    p.i64("gates", (s.cell.gates() as u64 * s.hidden) as i64);
    p.i64("hidden", s.hidden as i64);
    p.i64("total", total as i64);
    let grid = [blocks(total, 256, facts.multiprocessors * 16), 1, 1];
    let text = include_str!("recurrence_turn.cuh");
    let size = Size { grid, threads: 256, shared: 0 };
    out.tasks.push(Task::Launch(launch("recurrence_turn", &[], &of_matrix, text, p, size)));

    let lengths = r.lengths.as_ref().map(|a| c_type(dtype(plan, a)));
    let mut head = head(s, cut, r.peephole.is_some(), lengths);
    let mut p = Params::default();
    read((plan, &mut head), &mut p, "GatesT", "gates", Some(&r.gates));
    p.pointer("float", "turned", Arg::Scratch { offset: turned });
    read((plan, &mut head), &mut p, "StatesT", "states", Some(&r.states));
    read((plan, &mut head), &mut p, "BiasT", "bias", r.bias.as_ref());
    read((plan, &mut head), &mut p, "PeepholeT", "peephole", r.peephole.as_ref());
    if let Some(a) = &r.lengths {
        p.pointer("LengthT", "lengths", address(plan, a));
    }
    write((plan, &mut head), &mut p, "YT", "y", &r.y);
    p.pointer_mut("float", "kept", address(plan, &r.kept));
    write((plan, &mut head), &mut p, "BeforeT", "before", &r.before);
    sizes(&mut p, s)?;
    let text = include_str!("recurrence_forward.cuh");
    push("recurrence", &mut head, text, p, (s, cut), out)
}

/// Walks back.
///
/// # Errors
/// As [`lower_recurrence`].
pub fn lower_recurrence_grad(
    plan: &Plan,
    g: &RecurrenceGrad,
    facts: &Facts,
    out: &mut Lowered,
) -> Result<()> {
    let s = &g.shape;
    let cut = cut(s, facts)?;
    let lengths = g.lengths.as_ref().map(|a| c_type(dtype(plan, a)));
    let mut head = head(s, cut, g.peephole.is_some(), lengths);
    let mut p = Params::default();
    read((plan, &mut head), &mut p, "MatrixT", "matrix", Some(&g.matrix));
    p.pointer("float", "kept", address(plan, &g.kept));
    read((plan, &mut head), &mut p, "BeforeT", "before", Some(&g.before));
    read((plan, &mut head), &mut p, "DYT", "d_y", Some(&g.d_y));
    read((plan, &mut head), &mut p, "PeepholeT", "peephole", g.peephole.as_ref());
    if let Some(a) = &g.lengths {
        p.pointer("LengthT", "lengths", address(plan, a));
    }
    write((plan, &mut head), &mut p, "DGatesT", "d_gates", &g.d_gates);
    p.pointer_mut("float", "d_states", address(plan, &g.d_states));
    sizes(&mut p, s)?;
    let text = include_str!("recurrence_backward.cuh");
    push("recurrence_grad", &mut head, text, p, (s, cut), out)
}

fn push(
    family: &str,
    head: &mut Head,
    text: &str,
    p: Params,
    (s, cut): (&RecurrenceShape, Cut),
    out: &mut Lowered,
) -> Result<()> {
    head.text(include_str!("recurrence.cuh"));
    let blocks = s.batch.div_ceil(cut.rows) * s.directions();
    let grid = [small("blocks of a recurrence", blocks)?, 1, 1];
    let size = Size { grid, threads: cut.threads as u32, shared: cut.shared as u32 };
    out.tasks.push(Task::Launch(launch(family, &[], head, text, p, size)));
    Ok(())
}
