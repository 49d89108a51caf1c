//! Programs without rows: every point on its own. One launch runs through the points of one space
//! vector by vector; a table lets one launch run through many spaces of one form; an input that is
//! transposed against the outputs passes through tiles of shared memory.

use super::code::{Class, Code, Section, Source, Target, Text, coordinates, offset, stored};
use super::source::{Built, address, comment, finish, number, parameters, words};
use super::space::{Layout, Space};
use crate::cuda::launch::{Arg, Facts, Launch, Table};
use precast_plan::{Kind, Reg};
use std::collections::BTreeSet;
use std::sync::Arc;

/// Threads of a block.
const THREADS: u64 = 256;
/// Side of a tile that turns.
const TILE: u64 = 32;
/// Tiles that fit into the 48 KiB of shared memory that a kernel has without asking.
const MOST_TILES: usize = (48 << 10) / (TILE * (TILE + 1) * 4) as usize;
/// Fewer points are not worth a tile.
const TILED_POINTS: u64 = 4096;

/// How a space is run; equal forms share a source.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    pub v: u32,
    /// Axis of the second group along which some inputs run, while the outputs run along the last.
    turned: Option<usize>,
    turned_inputs: BTreeSet<usize>,
}

pub fn form(space: &Space, layout: &Layout) -> Form {
    let loaded = Code::new(space, layout, false).loads(Class::Elem);
    let used = |p: usize| p >= space.inputs.len() || loaded.contains(&p);
    let v = layout.width(space, false, true, &used);
    let mut form = Form { v, turned: None, turned_inputs: BTreeSet::new() };
    let Some(last) = layout.red.len().checked_sub(1) else { return form };
    if layout.red[last] < 8 || layout.red_len() < TILED_POINTS {
        return form;
    }
    let jumps = |p: usize, axis: usize| {
        let s = &layout.ports[p].red;
        s[axis] == 1 && s[last].unsigned_abs() > 1 && layout.red[axis] >= 8
    };
    let mut inputs = loaded.iter().copied();
    form.turned = inputs.find_map(|p| (0..last).find(|&axis| jumps(p, axis)));
    if let Some(axis) = form.turned {
        // Others are read as they lie.
        let turned = loaded.iter().copied().filter(|&p| jumps(p, axis));
        form.turned_inputs = turned.take(MOST_TILES).collect();
        form.v = 1;
    }
    form
}

fn sources<'c>(code: &'c Code, at: &'c [String]) -> impl Fn(usize) -> Source + 'c {
    move |p| {
        let steps = &code.layout.ports[p].red;
        Source::Memory {
            address: address(&format!("in{p}"), &offset(steps, at)),
            step: steps.last().copied().unwrap_or(1),
        }
    }
}

fn targets(code: &Code, at: &[String], outputs: &[usize]) -> Vec<(usize, Target)> {
    let inputs = code.program.inputs.len();
    outputs
        .iter()
        .map(|&o| {
            let steps = &code.layout.ports[inputs + o].red;
            let address = address(&format!("out{o}"), &offset(steps, at));
            (o, Target { address, step: steps.last().copied().unwrap_or(1) })
        })
        .collect()
}

/// The lines for `v` points from the linear index `of` on.
pub fn points(t: &mut Text, code: &Code, of: &str, v: u32, reduce: &[Reg], store: &[usize]) {
    let at = coordinates(t, of, &code.layout.red, "e", code.layout.wide);
    let none = BTreeSet::new();
    code.section(
        t,
        &Section {
            v,
            sources: &sources(code, &at),
            kept: &none,
            kept_name: &|r| format!("x{r}"),
            ready: &none,
            kept_at: &[],
            red_at: &at,
            reduce,
            moments: &[],
            stores: &targets(code, &at, store),
            guard: "",
            loaded: &|_, _, _| {},
        },
    );
}

/// Whether a space of this form ends in the middle of a vector.
pub fn tail(layout: &Layout, form: &Form) -> bool {
    !layout.red_len().is_multiple_of(u64::from(form.v))
}

/// The kernel of one space; extents of several axes are constants, of one axis an argument.
pub fn single(space: &Space, layout: &Layout, form: &Form, facts: &Facts) -> Built {
    let code = Code::new(space, layout, false);
    if form.turned.is_some() {
        return turned(space, &code, form, facts);
    }
    let (int, v) = (layout.int(), form.v);
    let mut t = Text::default();
    comment(&mut t, space.program);
    t.line(format!("extern \"C\" __global__ __launch_bounds__({THREADS}) void KERNEL("));
    t.open(format!("    {}, {int} points) {{", parameters(space, &code)));
    let block = number(THREADS as u32, layout.wide);
    t.line(format!("{int} v = blockIdx.x * {block} + threadIdx.x;"));
    t.line("if (v >= points) return;");
    let all = all_outputs(&code);
    code.scalars(&mut t);
    let full = if v == 1 { "points".into() } else { format!("points / {v}") };
    t.open(format!("for (; v < {full}; v += gridDim.x * {block}) {{"));
    if v > 1 {
        t.line(format!("const {int} at = v * {v};"));
    }
    points(&mut t, &code, if v == 1 { "v" } else { "at" }, v, &[], &all);
    t.close();
    if tail(layout, form) {
        t.line(format!("// The first threads of the grid take the last points % {v}."));
        t.open(format!("if (blockIdx.x == 0 && threadIdx.x < points % {v}) {{"));
        t.line(format!("const {int} at = points - points % {v} + threadIdx.x;"));
        points(&mut t, &code, "at", 1, &[], &all);
        t.close();
    }
    t.close();
    let n = layout.red_len();
    let vectors = n.div_ceil(u64::from(v));
    let mut args = super::source::addresses(space, &code);
    args.push(if layout.wide { Arg::I64(n as i64) } else { Arg::I32(n as i32) });
    let most = u64::from(facts.multiprocessors * facts.threads_per_multiprocessor) / THREADS * 4;
    // A single point may be read and written in place: no other thread may load it.
    let block = if n == 1 { 1 } else { THREADS };
    Built {
        source: finish(space.program, t, THREADS as u32),
        grid: [vectors.div_ceil(THREADS).min(most.max(1)) as u32, 1, 1],
        block: [block as u32, 1, 1],
        shared: 0,
        args,
    }
}

/// Declares the ports of the row `space` of a table.
pub fn table_ports(t: &mut Text, space: &Space, code: &Code) {
    let loaded: BTreeSet<usize> = &code.loads(Class::Elem) | &code.loads(Class::Scalar);
    for (p, b) in space.inputs.iter().enumerate().filter(|(p, _)| loaded.contains(p)) {
        let ty = stored(b.dtype);
        t.line(format!("const {ty}* in{p} = (const {ty}*)space[{p}];"));
    }
    for (o, b) in space.outputs.iter().enumerate() {
        let ty = stored(b.dtype);
        t.line(format!("{ty}* out{o} = ({ty}*)space[{}];", space.inputs.len() + o));
    }
}

/// Declares the points of this block: `begin` to `end`.
pub fn table_part(t: &mut Text, space: &Space, int: &str) {
    let ports = space.ports().count();
    t.line(format!("const {int} points = ({int})space[{ports}];"));
    t.line(format!("const {int} begin = blocks[blockIdx.x].y * part;"));
    t.line(format!("const {int} end = begin + part < points ? begin + part : points;"));
}

fn all_outputs(code: &Code) -> Vec<usize> {
    (0..code.program.outputs.len()).collect()
}

/// The part of a space that one block of a table's launch runs through, and how many there are:
/// a multiple of every vector times the threads.
pub fn parts(points: &[u64], facts: &Facts) -> (u64, Vec<u32>) {
    let total: u64 = points.iter().sum();
    // Several times what is resident at once, so that the last blocks to start are a small share.
    let wanted = u64::from(facts.multiprocessors) * 64;
    let part = (total / wanted.max(1)).next_multiple_of(2048).clamp(2048, 1 << 16);
    let mut blocks = vec![];
    for (i, n) in points.iter().enumerate() {
        for part in 0..n.div_ceil(part) {
            blocks.extend([i as u32, part as u32]);
        }
    }
    (part, blocks)
}

/// The text of the kernel that runs through spaces of this form listed in a table.
fn table_text(space: &Space, layout: &Layout, form: &Form, tail: bool) -> Text {
    let code = Code::new(space, layout, false);
    let (int, v) = (layout.int(), form.v);
    let ports = space.ports().count();
    let mut t = Text::default();
    comment(&mut t, space.program);
    t.line(
        "// One row of `spaces` for each space: the addresses of its ports, its points. Block b",
    );
    t.line("// runs through part `blocks[b].y` of space `blocks[b].x`.");
    // Without a number of blocks ptxas holds updates with an average to 64 registers and spills.
    t.line(format!("extern \"C\" __global__ __launch_bounds__({THREADS}, 3) void KERNEL("));
    t.open("    const u64* __restrict__ spaces, const uint2* __restrict__ blocks, int part) {");
    t.line(format!("const u64* space = spaces + blocks[blockIdx.x].x * {}u;", ports + 1));
    let all = all_outputs(&code);
    table_ports(&mut t, space, &code);
    table_part(&mut t, space, int);
    t.line(format!("{int} at = begin + threadIdx.x * {v};"));
    t.line("if (begin + (int)threadIdx.x >= end) return;");
    code.scalars(&mut t);
    t.open(format!("for (; at + {v} <= end; at += {}) {{", u64::from(v) * THREADS));
    points(&mut t, &code, "at", v, &[], &all);
    t.close();
    if tail {
        t.open(format!("if (threadIdx.x < end % {v}) {{"));
        t.line(format!("const {int} last = end - end % {v} + threadIdx.x;"));
        points(&mut t, &code, "last", 1, &[], &all);
        t.close();
    }
    t.close();
    t
}

/// The text that spaces have to share to run in one launch; `None` where a space needs its own.
pub fn table(space: &Space, layout: &Layout) -> Option<Text> {
    let form = form(space, layout);
    form.turned.is_none().then(|| table_text(space, layout, &form, true))
}

/// Several spaces with equal [`table`]s.
pub fn many(spaces: &[(Space, Layout)], facts: &Facts) -> Launch {
    let form = &form(&spaces[0].0, &spaces[0].1);
    let any_tail = spaces.iter().any(|(_, l)| tail(l, form));
    let text = table_text(&spaces[0].0, &spaces[0].1, form, any_tail);
    let points: Vec<u64> = spaces.iter().map(|(_, l)| l.red_len()).collect();
    let (part, blocks) = parts(&points, facts);
    let mut table = Table::default();
    for ((space, _), n) in spaces.iter().zip(&points) {
        super::source::row(&mut table, space, &[*n]);
    }
    let grid = blocks.len() as u32 / 2;
    Launch {
        source: Arc::new(finish(spaces[0].0.program, text, THREADS as u32)),
        grid: [grid, 1, 1],
        block: [THREADS as u32, 1, 1],
        shared: 0,
        args: vec![Arg::Table(Arc::new(table)), words(&blocks), Arg::I32(part as i32)],
    }
}

/// Inputs that run along another axis than the outputs are turned in shared memory.
fn turned(space: &Space, code: &Code, form: &Form, facts: &Facts) -> Built {
    let layout = code.layout;
    let (last, axis) = (layout.red.len() - 1, form.turned.expect("a turned axis"));
    let (nl, na) = (layout.red[last], layout.red[axis]);
    let int = layout.int();
    let outer: Vec<usize> = (0..last).filter(|&d| d != axis).collect();
    let outer_dims: Vec<u64> = outer.iter().map(|&d| layout.red[d]).collect();
    let (tl, ta) = (nl.div_ceil(TILE), na.div_ceil(TILE));
    let tiles = tl * ta * outer_dims.iter().product::<u64>();
    let mut t = Text::default();
    comment(&mut t, space.program);
    t.line("// Inputs that run along another axis than the outputs pass through a tile.");
    // Without a number of blocks ptxas holds updates to 32 registers and spills.
    t.line(format!("extern \"C\" __global__ __launch_bounds__({THREADS}, 2) void KERNEL("));
    t.open(format!("    {}) {{", parameters(space, code)));
    let kind = |p: usize| match space.inputs[p].dtype.kind() {
        Kind::Real => "float",
        Kind::Int => "int",
        Kind::Bool => "bool",
    };
    for &p in &form.turned_inputs {
        t.line(format!("__shared__ {} tile{p}[{TILE}][{}];", kind(p), TILE + 1));
    }
    t.line(format!("const int tx = threadIdx.x % {TILE}, ty = threadIdx.x / {TILE};"));
    code.scalars(&mut t);
    t.open(format!("for ({int} tile = blockIdx.x; tile < {tiles}; tile += gridDim.x) {{"));
    let parts =
        coordinates(&mut t, "tile", &[outer_dims.iter().product(), ta, tl], "p", layout.wide);
    let outer_at = coordinates(&mut t, &parts[0], &outer_dims, "o", layout.wide);
    t.line(format!("const {int} a0 = {} * {TILE}, l0 = {} * {TILE};", parts[1], parts[2]));
    let at = |a: &str, l: &str| -> Vec<String> {
        (0..=last)
            .map(|d| match d {
                _ if d == axis => a.to_string(),
                _ if d == last => l.to_string(),
                _ => outer_at[outer.iter().position(|&o| o == d).expect("an outer axis")].clone(),
            })
            .collect()
    };
    let rows = THREADS / TILE;
    t.line("__syncthreads();");
    t.line("#pragma unroll");
    t.open(format!("for (int y = ty; y < {TILE}; y += {rows}) {{"));
    t.line(format!("const {int} a = a0 + tx, l = l0 + y;"));
    t.open(format!("if (a < {na} && l < {nl}) {{"));
    for &p in &form.turned_inputs {
        let from = offset(&layout.ports[p].red, &at("a", "l"));
        t.line(format!("tile{p}[y][tx] = widen(in{p}[{from}]);"));
    }
    t.close();
    t.close();
    t.line("__syncthreads();");
    t.line("#pragma unroll");
    t.open(format!("for (int y = ty; y < {TILE}; y += {rows}) {{"));
    t.line(format!("const {int} a = a0 + y, l = l0 + tx;"));
    t.open(format!("if (a < {na} && l < {nl}) {{"));
    let here = at("a", "l");
    let memory = sources(code, &here);
    let none = BTreeSet::new();
    code.section(
        &mut t,
        &Section {
            v: 1,
            sources: &|p| {
                if form.turned_inputs.contains(&p) {
                    Source::Value(format!("tile{p}[tx][y]"))
                } else {
                    memory(p)
                }
            },
            kept: &none,
            kept_name: &|r| format!("x{r}"),
            ready: &none,
            kept_at: &[],
            red_at: &here,
            reduce: &[],
            moments: &[],
            stores: &targets(code, &here, &all_outputs(code)),
            guard: "",
            loaded: &|_, _, _| {},
        },
    );
    t.close();
    t.close();
    t.close();
    t.close();
    let most = u64::from(facts.multiprocessors * facts.threads_per_multiprocessor) / THREADS * 4;
    Built {
        source: finish(space.program, t, THREADS as u32),
        grid: [tiles.min(most.max(1)) as u32, 1, 1],
        block: [THREADS as u32, 1, 1],
        shared: 0,
        args: super::source::addresses(space, code),
    }
}
