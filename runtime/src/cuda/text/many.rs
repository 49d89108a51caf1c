//! One reduction over each of many tensors: one pass over all of them, then one small launch.

use super::code::{Class, Code, Text, reduction};
use super::flat::{parts, points, table_part, table_ports};
use super::shape::Work;
use super::source::{comment, finish, row, words};
use super::space::{Layout, Space};
use crate::cuda::launch::{Arg, Facts, Launch, Lowered, Table, Task};
use precast_plan::{Instr, Reg};
use std::sync::Arc;

const THREADS: u32 = 256;
/// Of the blocks that end a space.
const LAST: u32 = 128;

/// Whether a space is one row, reduced once.
pub fn fits(space: &Space, layout: &Layout) -> bool {
    let work = Work::new(space, &Code::new(space, layout, false));
    layout.kept.is_empty()
        && layout.red.len() <= 1
        && !layout.wide
        && work.passes() == 1
        && work.stores[1].is_empty()
}

fn op(code: &Code, r: Reg) -> &'static str {
    let Instr::Reduce(op, _) = code.program.code[r as usize] else {
        unreachable!("%{r} does not reduce")
    };
    reduction(op)
}

fn width(space: &Space, layout: &Layout) -> u32 {
    let code = Code::new(space, layout, false);
    let loaded = code.loads(Class::Elem);
    let inputs = space.inputs.len();
    let used = |p: usize| match p.checked_sub(inputs) {
        None => loaded.contains(&p),
        Some(o) => !code.stored_per_row(o),
    };
    layout.width(space, false, true, &used)
}

/// The text of the pass over all tensors; spaces with equal texts share a launch.
pub fn pass_text(space: &Space, layout: &Layout) -> Text {
    let code = Code::new(space, layout, false);
    let work = Work::new(space, &code);
    let v = width(space, layout);
    let ports = space.ports().count();
    let mut t = Text::default();
    comment(&mut t, space.program);
    t.line("// The pass over many spaces. One row of `spaces` for each: the addresses of its ports, its");
    t.line(
        "// points, its first block, its blocks. Block b runs through part `blocks[b].y` of space",
    );
    t.line("// `blocks[b].x`.");
    t.line(format!("extern \"C\" __global__ __launch_bounds__({THREADS}) void KERNEL("));
    t.line("    const u64* __restrict__ spaces, const uint2* __restrict__ blocks, int part,");
    t.open("    float* __restrict__ partial) {");
    t.line("__shared__ float shared[32];");
    t.line(format!("const u64* space = spaces + blocks[blockIdx.x].x * {}u;", ports + 3));
    table_ports(&mut t, space, &code);
    table_part(&mut t, space, "int");
    code.scalars(&mut t);
    let regs = &work.reduce[0];
    for &r in regs {
        t.line(format!("float t{r} = {}::first();", op(&code, r)));
    }
    let step = v * THREADS;
    t.line("#pragma unroll 2");
    t.open(format!("for (int at = begin + threadIdx.x * {v}; at + {v} <= end; at += {step}) {{"));
    points(&mut t, &code, "at", v, regs, &work.stores[0]);
    t.close();
    if v > 1 {
        t.open(format!("if (threadIdx.x < end % {v}) {{"));
        t.line(format!("const int last = end - end % {v} + threadIdx.x;"));
        points(&mut t, &code, "last", 1, regs, &work.stores[0]);
        t.close();
    }
    for &r in regs {
        t.line(format!("t{r} = reduce_block<{}, {THREADS}>(t{r}, shared);", op(&code, r)));
    }
    t.open("if (threadIdx.x == 0) {");
    for (i, r) in regs.iter().enumerate() {
        t.line(format!("partial[{i} * gridDim.x + blockIdx.x] = t{r};"));
    }
    t.close();
    t.close();
    t
}

fn last_text(space: &Space, layout: &Layout) -> Text {
    let code = Code::new(space, layout, false);
    let work = Work::new(space, &code);
    let ports = space.ports().count();
    let mut t = Text::default();
    comment(&mut t, space.program);
    t.line("// The end: block b combines the partial results of space b, in order.");
    t.line(format!("extern \"C\" __global__ __launch_bounds__({LAST}) void KERNEL("));
    t.open("    const u64* __restrict__ spaces, const float* __restrict__ partial, int blocks) {");
    t.line("__shared__ float shared[32];");
    t.line(format!("const u64* space = spaces + blockIdx.x * {}u;", ports + 3));
    t.line(format!(
        "const int first = (int)space[{}], count = (int)space[{}];",
        ports + 1,
        ports + 2
    ));
    table_ports(&mut t, space, &code);
    code.scalars(&mut t);
    code.rows(&mut t, 0, &[], 1);
    for (i, &r) in work.reduce[0].iter().enumerate() {
        let op = op(&code, r);
        t.line(format!("float t{r} = {op}::first();"));
        t.open(format!("for (int c = threadIdx.x; c < count; c += {LAST}) {{"));
        t.line(format!("t{r} = {op}::of(t{r}, partial[{i} * blocks + first + c]);"));
        t.close();
        t.line(format!(
            "const float r{r} = reduce_block<{op}, {LAST}>(t{r}, shared); // %{r} = {}",
            code.program.code[r as usize]
        ));
    }
    code.rows(&mut t, 1, &[], 1);
    t.line("__syncthreads();");
    t.open("if (threadIdx.x == 0) {");
    for &o in &work.row_stores {
        let value = code
            .operand(code.program.outputs[o].reg, &|r| unreachable!("%{r} is stored once per row"));
        t.line(format!("store_one(out{o}, {value});"));
    }
    t.close();
    t.close();
    t
}

/// Lowers spaces whose [`pass_text`]s are equal.
pub fn lower(spaces: &[(Space, Layout)], facts: &Facts, out: &mut Lowered) {
    let lengths: Vec<u64> = spaces.iter().map(|(_, l)| l.red_len()).collect();
    let (part, blocks) = parts(&lengths, facts);
    let grid = blocks.len() as u32 / 2;
    let (space, layout) = &spaces[0];
    let mut table = Table::default();
    let mut first = 0;
    for ((space, _), &n) in spaces.iter().zip(&lengths) {
        let count = n.div_ceil(part);
        row(&mut table, space, &[n, first, count]);
        first += count;
    }
    let table = Arg::Table(Arc::new(table));
    let work = Work::new(space, &Code::new(space, layout, false));
    let partial = out.reserve(work.reduce[0].len() as u64 * u64::from(grid) * 4);
    let partial = Arg::Scratch { offset: partial };
    out.tasks.push(Task::Launch(Launch {
        source: Arc::new(finish(space.program, pass_text(space, layout), THREADS)),
        grid: [grid, 1, 1],
        block: [THREADS, 1, 1],
        shared: 0,
        args: vec![table.clone(), words(&blocks), Arg::I32(part as i32), partial.clone()],
    }));
    if work.row_stores.is_empty() {
        return;
    }
    out.tasks.push(Task::Launch(Launch {
        source: Arc::new(finish(space.program, last_text(space, layout), LAST)),
        grid: [spaces.len() as u32, 1, 1],
        block: [LAST, 1, 1],
        shared: 0,
        args: vec![table, partial, Arg::I32(grid as i32)],
    }));
}
