//! How a program with rows runs: what each pass reduces and stores, and how threads share rows.

use super::code::{Class, Code};
use super::moments::Pair;
use super::space::{Layout, Space};
use crate::cuda::launch::Facts;
use precast_plan::{BinaryOp, Instr, Reg, UnaryOp};
use std::collections::BTreeSet;

/// Threads of a block that several blocks, or columns, share rows with.
pub const THREADS: u32 = 256;
/// Floats of a thread that may hold row values across passes.
const KEPT_FLOATS: u64 = 64;
/// And of a thread of a warp that has a row to itself.
const KEPT_FLOATS_OF_WARPS: u64 = 48;
/// Points of a row that need not be whole vectors.
const LONG: u64 = 2048;
/// Of more rows than this, what all of them read comes from a cache.
const MANY: u64 = 64;

/// The passes over a row: pass `p` needs the results of those before it. Pass `reduce.len()` is
/// the last one, which only stores.
pub struct Work {
    /// Registers that each pass reduces.
    pub reduce: Vec<Vec<Reg>>,
    /// Outputs with one element per point that each pass stores; one more than `reduce`.
    pub stores: Vec<Vec<usize>>,
    /// Outputs with one element per row.
    pub row_stores: Vec<usize>,
    /// Values of every point that a later pass reads again, if there is room for them.
    pub kept: BTreeSet<Reg>,
    /// Inputs that several passes load, if nothing is kept.
    pub reread: BTreeSet<usize>,
    /// A row output lies where a value of the row is read.
    pub in_place_rows: bool,
    /// Pairs that one pass finds, see [`super::moments`].
    pub moments: Vec<Pair>,
}

impl Work {
    pub fn new(space: &Space, code: &Code) -> Work {
        let stage = |r: Reg| code.infos[r as usize].stage as usize;
        let reductions: Vec<Reg> = (0..code.program.code.len() as Reg)
            .filter(|&r| code.live[r as usize])
            .filter(|&r| matches!(code.program.code[r as usize], Instr::Reduce(..)))
            .collect();
        let passes = reductions.iter().map(|&r| stage(r)).max().unwrap_or(0);
        let mut reduce = vec![vec![]; passes];
        reductions.iter().for_each(|&r| reduce[stage(r) - 1].push(r));
        let mut work = Work {
            reduce,
            stores: vec![vec![]; passes + 1],
            row_stores: vec![],
            kept: BTreeSet::new(),
            reread: BTreeSet::new(),
            in_place_rows: false,
            moments: vec![],
        };
        let elem_loads = code.loads(Class::Elem);
        for (o, out) in code.program.outputs.iter().enumerate() {
            let met = |p: &usize| space.outputs[o].meets(&space.inputs[*p]);
            if code.stored_per_row(o) {
                let once = code.loads(Class::Row).into_iter().chain(code.loads(Class::Scalar));
                work.in_place_rows |= once.collect::<Vec<_>>().iter().any(met);
                work.row_stores.push(o);
            } else if elem_loads.iter().any(met) {
                // Another pass may read what this would overwrite.
                work.stores[passes].push(o);
            } else {
                work.stores[stage(out.reg).min(passes)].push(o);
            }
        }
        work.find_kept(code);
        work
    }

    pub fn passes(&self) -> usize {
        self.reduce.len()
    }

    /// What pass `p` wants at every point.
    pub fn wanted(&self, code: &Code, p: usize) -> Vec<Reg> {
        let mut wanted: Vec<Reg> =
            self.stores[p].iter().map(|&o| code.program.outputs[o].reg).collect();
        // Of a pair, the first says what is summed.
        let second = |r: Reg| self.moments.iter().any(|m| m.1 == r);
        for &r in self.reduce.get(p).into_iter().flatten().filter(|&&r| !second(r)) {
            wanted.extend(code.program.code[r as usize].operands());
        }
        wanted
    }

    /// What does not differ from point to point of a row and is read at the points of pass `p`.
    fn read_apart(&self, code: &Code, p: usize) -> BTreeSet<Reg> {
        let wanted = self.wanted(code, p);
        let points = code.needed(&wanted, &BTreeSet::new());
        let operands = points.iter().flat_map(|&r| code.program.code[r as usize].operands());
        operands.chain(wanted.iter().copied()).filter(|&r| !code.is(r, Class::Elem)).collect()
    }

    /// Values of a row, read or reduced, that the loop of pass `p` holds.
    fn row_values(&self, code: &Code, p: usize) -> usize {
        let read = self.read_apart(code, p).into_iter().filter(|&r| code.is(r, Class::Row));
        read.count() + self.reduce.get(p).map_or(0, Vec::len)
    }

    /// Inputs without an element of its own for every point that pass `p` needs, results of
    /// reductions apart.
    pub fn row_ports(&self, code: &Code, p: usize) -> BTreeSet<usize> {
        let mut stack: Vec<Reg> = self.read_apart(code, p).into_iter().collect();
        let mut ports = BTreeSet::new();
        let mut seen = BTreeSet::new();
        while let Some(r) = stack.pop() {
            if !seen.insert(r) || matches!(code.program.code[r as usize], Instr::Reduce(..)) {
                continue;
            }
            ports.extend(code.port_of(r));
            stack.extend(code.program.code[r as usize].operands());
        }
        ports
    }

    /// Loads and costly values that a later pass needs again; cheap values are computed again.
    fn find_kept(&mut self, code: &Code) {
        let mut before: BTreeSet<Reg> = BTreeSet::new();
        let mut loaded: BTreeSet<usize> = BTreeSet::new();
        for p in 0..=self.passes() {
            let wanted = self.wanted(code, p);
            let costly: BTreeSet<Reg> =
                before.iter().copied().filter(|&r| worth_keeping(code, r)).collect();
            let here = code.needed(&wanted, &costly);
            let reads = here.iter().flat_map(|&r| code.program.code[r as usize].operands());
            self.kept.extend(reads.chain(wanted.clone()).filter(|r| costly.contains(r)));
            before.extend(here);
            for port in
                code.needed(&wanted, &BTreeSet::new()).iter().filter_map(|&r| code.port_of(r))
            {
                if !loaded.insert(port) {
                    self.reread.insert(port);
                }
            }
        }
    }
}

fn worth_keeping(code: &Code, r: Reg) -> bool {
    match code.program.code[r as usize] {
        Instr::Load { port } => {
            let each = code.layout.ports[port as usize].varies_kept();
            each || code.layout.kept_len() <= MANY
        }
        Instr::Uniform { .. } => true,
        Instr::Unary(op, _) => matches!(
            op,
            UnaryOp::Exp
                | UnaryOp::Expm1
                | UnaryOp::Log
                | UnaryOp::Log1p
                | UnaryOp::Sin
                | UnaryOp::Cos
                | UnaryOp::Tanh
                | UnaryOp::Erf
                | UnaryOp::Sigmoid
                | UnaryOp::Tan
                | UnaryOp::Asin
                | UnaryOp::Acos
                | UnaryOp::Atan
                | UnaryOp::Sinh
                | UnaryOp::Cosh
                | UnaryOp::Asinh
                | UnaryOp::Acosh
                | UnaryOp::Atanh
        ),
        Instr::Binary(op, ..) => matches!(op, BinaryOp::Pow | BinaryOp::Rem),
        _ => false,
    }
}

/// Where values that several passes need live in between.
#[derive(Clone, Debug, PartialEq)]
pub enum Style {
    /// In registers, so many vectors of each thread.
    Registers(u32),
    /// In shared memory: the inputs that are read again.
    Shared(Vec<usize>),
    /// Nowhere: they are read again.
    Stream,
}

/// How threads share the points.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    /// Lanes run along the kept axes, threads take turns along the reduced ones.
    pub columns: bool,
    /// Points of one access.
    pub v: u32,
    /// Threads of a block.
    pub threads: u32,
    /// Threads side by side: of one row, or of the columns of a block.
    pub lanes: u32,
    pub style: Style,
    /// Parts that a row is cut into, for several blocks; 1 is not at all.
    pub chunks: u64,
    /// Vectors (or, for columns, points of the reduced axes) of a part.
    pub chunk: u64,
}

impl Shape {
    pub fn new(space: &Space, layout: &Layout, facts: &Facts) -> Shape {
        let columns = along_columns(space, layout);
        let code = Code::new(space, layout, columns);
        let work = Work::new(space, &code);
        let inputs = space.inputs.len();
        let mut loaded = code.loads(Class::Elem);
        if columns {
            loaded.extend(code.loads(Class::Row));
        }
        let used = |p: usize| match p.checked_sub(inputs) {
            None => loaded.contains(&p),
            Some(o) => columns || !code.stored_per_row(o),
        };
        // Long rows of any length are read in vectors, and what is left of them apart.
        let tail = !columns && layout.red_len() >= LONG;
        let mut v = layout.width(space, columns, tail, &used);
        if columns {
            // Each lane of what a loop reads of its columns, and of what it sums, is a register.
            let rows = (0..=work.passes()).map(|p| work.row_values(&code, p));
            let rows = rows.max().unwrap_or(0) as u32;
            while v > 2 && v * rows > 64 {
                v /= 2;
            }
            return Shape::for_columns(layout, &work, v, facts);
        }
        Shape::for_rows(space, layout, &work, v, facts)
    }

    fn for_rows(space: &Space, layout: &Layout, work: &Work, v: u32, facts: &Facts) -> Shape {
        let (m, n) = (layout.kept_len(), layout.red_len());
        let vectors = n / u64::from(v);
        let sms = u64::from(facts.multiprocessors);
        let base = Shape {
            columns: false,
            v,
            threads: THREADS,
            lanes: 32,
            style: Style::Stream,
            chunks: 1,
            chunk: vectors,
        };
        if m < sms && n >= 16384 && m * n >= 1 << 19 {
            let step = u64::from(THREADS);
            let wanted = (sms * 4 / m).clamp(1, 1024).min(vectors / (2 * step));
            let chunk = vectors.div_ceil(wanted.max(1)).next_multiple_of(step);
            let chunks = vectors.div_ceil(chunk);
            if chunks > 1 {
                return Shape { lanes: THREADS, chunks, chunk, ..base };
            }
        }
        let kept = work.kept.len() as u64;
        let floats = |c: u64| c * u64::from(v) * kept;
        // Few long rows want all threads they can get; many short ones a warp each or less.
        let narrow = m * 32 >= sms * 256 || n <= 1024;
        let whole = n.is_multiple_of(u64::from(v));
        let lanes = vectors.next_power_of_two().min(32);
        let c = vectors.div_ceil(lanes);
        let held = whole && floats(c) <= KEPT_FLOATS_OF_WARPS;
        if narrow && (kept == 0 && c <= 64 || kept > 0 && held) {
            let style = if kept == 0 { Style::Stream } else { Style::Registers(c as u32) };
            return Shape { lanes: lanes as u32, style, ..base };
        }
        if kept == 0 {
            let threads = if vectors >= 4096 { 512 } else { THREADS };
            return Shape { lanes: threads, threads, ..base };
        }
        for threads in [128, 256, 512].into_iter().filter(|_| whole) {
            let c = vectors.div_ceil(u64::from(threads));
            if floats(c) <= if threads < 512 { 32 } else { KEPT_FLOATS } {
                return Shape {
                    lanes: threads,
                    threads,
                    style: Style::Registers(c as u32),
                    ..base
                };
            }
        }
        let bytes: u64 = work.reread.iter().map(|&p| cache_bytes(space, n, p)).sum();
        let style = if bytes + 1024 <= u64::from(facts.shared_per_block) {
            Style::Shared(work.reread.iter().copied().collect())
        } else {
            Style::Stream
        };
        Shape { lanes: 512, threads: 512, style, ..base }
    }

    fn for_columns(layout: &Layout, work: &Work, v: u32, facts: &Facts) -> Shape {
        let (m, n) = (layout.kept_len(), layout.red_len());
        let vectors = m / u64::from(v);
        let tx = vectors.next_power_of_two().min(32);
        let mut ty = u64::from(THREADS) / tx;
        while ty > n.next_power_of_two() {
            ty /= 2;
        }
        let blocks = vectors.div_ceil(tx);
        // More than are resident at once, so that the last ones to start are a small share.
        let wanted = (u64::from(facts.multiprocessors) * 8 / blocks).min(1024).min(n / (ty * 8));
        let chunk = n.div_ceil(wanted.max(1));
        let cut = wanted > 1 && work.passes() > 0;
        Shape {
            columns: true,
            v,
            threads: (tx * ty) as u32,
            lanes: tx as u32,
            style: Style::Stream,
            chunks: if cut { n.div_ceil(chunk) } else { 1 },
            chunk: if cut { chunk } else { n },
        }
    }

    /// Threads that take turns along a column.
    pub fn turns(&self) -> u32 {
        self.threads / self.lanes
    }
}

/// Bytes of a row of input `p` in shared memory, whole vectors.
pub fn cache_bytes(space: &Space, n: u64, p: usize) -> u64 {
    (n * space.inputs[p].dtype.size() as u64).next_multiple_of(16)
}

/// Whether memory runs along the kept axes rather than along the reduced ones.
fn along_columns(space: &Space, layout: &Layout) -> bool {
    let (Some(_), Some(_)) = (layout.kept.last(), layout.red.last()) else { return false };
    let bytes = |kept: bool| -> usize {
        let both =
            space.ports().zip(&layout.ports).filter(|(_, s)| s.varies_kept() && s.varies_red());
        let along = both
            .filter(|(_, s)| *(if kept { &s.kept } else { &s.red }).last().expect("an axis") == 1);
        along.map(|(b, _)| b.dtype.size()).sum()
    };
    bytes(true) > bytes(false)
}
