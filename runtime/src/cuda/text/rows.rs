//! Programs with rows: reductions over the trailing axes, in one kernel or, where few rows are
//! long, in one kernel for each pass with partial results in scratch memory.

use super::code::{
    Class, Code, Section, Source, Target, Text, coordinates, offset, reduction, stored,
};
use super::shape::{Shape, Style, Work, cache_bytes};
use super::source::{Built, address, addresses, comment, finish, number, parameters};
use super::space::{Layout, Space};
use crate::cuda::launch::{Arg, Facts, Lowered, Task};
use precast_plan::{Instr, Reg};
use std::collections::BTreeSet;

/// What one kernel does.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Part {
    /// Everything.
    Whole,
    /// One pass of a row that several blocks share.
    Pass(usize),
    /// Of columns: the partial results of a pass become its results.
    Combine {
        pass: usize,
        /// Later kernels read the results.
        kept: bool,
        /// Row outputs are stored here: every result is known.
        stores: bool,
    },
    /// Row outputs alone, from the partial results, or from the results of columns.
    Finish,
}

pub(super) struct Kernel<'k> {
    pub(super) space: &'k Space<'k>,
    pub(super) code: &'k Code<'k>,
    pub(super) work: &'k Work,
    pub(super) shape: &'k Shape,
    pub(super) part: Part,
    pub(super) t: Text,
}

/// Lowers one space with rows.
pub fn lower(space: &Space, layout: &Layout, facts: &Facts, out: &mut Lowered) {
    let shape = Shape::new(space, layout, facts);
    let code = Code::new(space, layout, shape.columns);
    let work = Work::new(space, &code);
    let kernel = |part: Part, partial: Option<u64>| -> Task {
        let t = Text::default();
        let k = Kernel { space, code: &code, work: &work, shape: &shape, part, t };
        Task::Launch(k.build(facts, partial).launch())
    };
    if shape.chunks == 1 {
        out.tasks.push(kernel(Part::Whole, None));
        return;
    }
    if shape.columns {
        super::combine::lower(space, &code, &shape, facts, out);
        return;
    }
    let floats = work.reductions() as u64 * shape.chunks * layout.kept_len();
    let partial = Some(out.reserve(floats * 4));
    let last = work.passes();
    for p in 0..last {
        out.tasks.push(kernel(Part::Pass(p), partial));
    }
    if !work.stores[last].is_empty() {
        out.tasks.push(kernel(Part::Pass(last), partial));
    }
    if work.stores[last].is_empty() && !work.row_stores.is_empty() || work.finishes_alone() {
        out.tasks.push(kernel(Part::Finish, partial));
    }
}

impl Work {
    /// Whether the last pass must not store row outputs, since other blocks still read there.
    fn finishes_alone(&self) -> bool {
        self.in_place_rows && !self.row_stores.is_empty() && !self.stores[self.passes()].is_empty()
    }
}

impl Kernel<'_> {
    pub(super) fn layout(&self) -> &Layout {
        self.code.layout
    }

    fn split(&self) -> bool {
        self.part != Part::Whole
    }

    pub(super) fn build(mut self, facts: &Facts, partial: Option<u64>) -> Built {
        let layout = self.code.layout;
        let shape = self.shape;
        let shared = match &shape.style {
            Style::Shared(ports) => {
                ports.iter().map(|&p| cache_bytes(self.space, layout.red_len(), p)).sum::<u64>()
            }
            _ => 0,
        };
        // Two blocks of a multiprocessor load and compute by turns, if their rows fit.
        let two = shared > 0 && 2 * (shared + 1024) <= u64::from(facts.shared_per_block);
        self.text(two);
        let mut args = addresses(self.space, self.code);
        let long = |n: u64| if layout.wide { Arg::I64(n as i64) } else { Arg::I32(n as i32) };
        args.push(long(if shape.columns { layout.red_len() } else { layout.kept_len() }));
        if let Some(offset) = partial {
            args.push(Arg::Scratch { offset });
            args.extend([Arg::I32(shape.chunks as i32), long(shape.chunk)]);
        }
        let rows = layout.kept_len();
        let chunks = if matches!(self.part, Part::Pass(_)) { shape.chunks as u32 } else { 1 };
        let grid = if shape.columns {
            let vectors = rows / u64::from(shape.v);
            [vectors.div_ceil(u64::from(shape.lanes)) as u32, chunks, 1]
        } else if self.split() {
            [chunks, rows as u32, 1]
        } else {
            let blocks = rows.div_ceil(u64::from(shape.turns()));
            let resident =
                facts.multiprocessors * (facts.threads_per_multiprocessor / shape.threads);
            [blocks.min(u64::from(resident.max(1)) * 4) as u32, 1, 1]
        };
        Built {
            source: finish(self.space.program, self.t, shape.threads),
            grid,
            block: [shape.threads, 1, 1],
            shared: shared as u32,
            args,
        }
    }

    fn text(&mut self, two: bool) {
        let (shape, layout) = (self.shape, self.code.layout);
        let int = layout.int();
        comment(&mut self.t, self.space.program);
        match self.part {
            Part::Whole => {}
            Part::Pass(p) => self.t.line(format!("// Pass {p}; several blocks share a row.")),
            Part::Combine { pass, .. } => {
                self.t.line(format!("// The results of pass {pass}, from its partial ones."));
            }
            Part::Finish => self.t.line("// The end of rows that several blocks shared."),
        }
        let threads = shape.threads;
        // Without a number of blocks ptxas may spill to fit more of them than there is use for.
        let blocks = if two { 1024 / threads.min(1024) } else { 512 / threads.min(512) };
        self.t.line(format!(
            "extern \"C\" __global__ __launch_bounds__({threads}, {blocks}) void KERNEL("
        ));
        let extent = if shape.columns { "points" } else { "rows" };
        let extra = if self.split() {
            // What reads results and writes others does both through one pointer.
            let writes = match self.part {
                Part::Pass(p) => p < self.work.passes(),
                Part::Combine { .. } => true,
                _ => false,
            };
            let restrict = if writes { "" } else { " __restrict__" };
            format!(", float*{restrict} partial, int chunks, {int} chunk")
        } else {
            String::new()
        };
        let ports = parameters(self.space, self.code);
        self.t.open(format!("    {ports}, {int} {extent}{extra}) {{"));
        if let Style::Shared(ports) = &shape.style {
            self.t.line("extern __shared__ __align__(128) unsigned char dyn_smem[];");
            let mut at = 0;
            for &p in ports {
                let ty = stored(self.space.inputs[p].dtype);
                self.t.line(format!("{ty}* cache{p} = ({ty}*)(dyn_smem + {at});"));
                at += cache_bytes(self.space, layout.red_len(), p);
            }
        }
        if shape.columns {
            self.columns();
        } else {
            self.rows();
        }
        self.t.close();
    }

    fn rows(&mut self) {
        let (shape, layout) = (self.shape, self.code.layout);
        let int = layout.int();
        let (lanes, threads) = (shape.lanes, shape.threads);
        let per_block = shape.turns();
        if lanes > 32 {
            self.t.line("__shared__ float shared[32];");
        }
        self.t.line(match lanes == threads {
            true => "const int lane = threadIdx.x;".to_string(),
            false => format!("const int lane = threadIdx.x % {lanes};"),
        });
        self.code.scalars(&mut self.t);
        if self.split() {
            self.t.line(format!("const {int} row = blockIdx.y;"));
            self.row();
            return;
        }
        let per_block_text = number(per_block, layout.wide);
        let step = format!("gridDim.x * {per_block_text}");
        let first = format!("blockIdx.x * {per_block_text}");
        if lanes >= 32 {
            let own =
                if per_block > 1 { format!(" + threadIdx.x / {lanes}") } else { String::new() };
            self.t.open(format!("for ({int} row = {first}{own}; row < rows; row += {step}) {{"));
        } else {
            // All lanes of a warp take part in its shuffles, so none leaves early.
            self.t.open(format!("for ({int} first = {first}; first < rows; first += {step}) {{"));
            self.t.line(format!("const {int} wanted = first + threadIdx.x / {lanes};"));
            self.t.line("const bool mine = wanted < rows;");
            self.t.line(format!("const {int} row = mine ? wanted : rows - 1;"));
        }
        self.row();
        self.t.close();
    }

    fn columns(&mut self) {
        let (shape, layout) = (self.shape, self.code.layout);
        let int = layout.int();
        let (tx, v) = (shape.lanes, shape.v);
        if shape.turns() > 1 {
            self.t.line(format!("__shared__ float shared[{}];", shape.threads * v));
        }
        self.t.line(format!("const int tx = threadIdx.x % {tx}, ty = threadIdx.x / {tx};"));
        self.code.scalars(&mut self.t);
        let m = layout.kept_len();
        self.t.line(format!(
            "const {int} wanted = (blockIdx.x * {} + tx) * {v};",
            number(tx, layout.wide)
        ));
        self.t.line(format!("const bool mine = wanted < {m};"));
        self.t.line(format!("const {int} row = mine ? wanted : {};", m - u64::from(v)));
        self.row();
    }

    /// Everything for one row, or for one vector of columns.
    fn row(&mut self) {
        let (shape, layout, work) = (self.shape, self.code.layout, self.work);
        let last = work.passes();
        let kept_at = coordinates(&mut self.t, "row", &layout.kept, "k", layout.wide);
        self.bases(&kept_at);
        if let Style::Registers(c) = shape.style {
            for &r in &work.kept {
                let ty = self.code.type_of(r);
                self.t.line(format!("{ty} h{r}[{c}][{}];", shape.v));
            }
        }
        let mut number = 0;
        let mut ready = BTreeSet::new();
        let mut cached = BTreeSet::new();
        for p in 0..=last {
            for stage in work.stages(p) {
                self.code.rows(&mut self.t, stage, &kept_at, shape.v);
            }
            let regs: &[Reg] = work.reduce.get(p).map_or(&[], Vec::as_slice);
            let first = number;
            number += regs.len();
            match self.part {
                Part::Pass(q) | Part::Combine { pass: q, .. } if p < q => self.results(regs, first),
                Part::Combine { pass, kept, stores } => {
                    if p == pass {
                        self.combine(regs, first);
                        if kept {
                            self.write_results(regs, first);
                        }
                        if !stores {
                            return;
                        }
                    }
                }
                Part::Finish if p < last => self.results(regs, first),
                Part::Finish => {}
                _ => {
                    if !regs.is_empty() || !work.stores[p].is_empty() {
                        self.pass(p, &kept_at, &mut ready, &mut cached);
                    }
                    let plain: Vec<Reg> =
                        regs.iter().copied().filter(|&r| !work.is_moment(r)).collect();
                    self.reduce(&plain);
                    if plain.len() < regs.len() {
                        self.reduce_moments();
                    }
                    if self.part == Part::Pass(p) && p < last {
                        self.write_partial(regs, first);
                        return;
                    }
                    regs.iter().for_each(|&r| self.name_result(r));
                }
            }
        }
        let here = match self.part {
            Part::Whole | Part::Finish => true,
            Part::Combine { stores, .. } => stores,
            Part::Pass(_) => !shape.columns && !work.finishes_alone(),
        };
        if here && !work.row_stores.is_empty() {
            self.row_stores(&kept_at);
        }
    }

    /// Addresses of the row for the ports with an element at every point.
    fn bases(&mut self, kept_at: &[String]) {
        let inputs = self.space.inputs.len();
        let loads = self.code.loads(Class::Elem);
        let ports = loads
            .into_iter()
            .map(|p| (p, format!("in{p}"), true))
            .chain(
                (0..self.space.outputs.len())
                    .filter(|&o| !self.code.stored_per_row(o))
                    .map(|o| (inputs + o, format!("out{o}"), false)),
            )
            .collect::<Vec<_>>();
        for (p, name, input) in ports {
            let at = offset(&self.layout().ports[p].kept, kept_at);
            let dtype = self.space.ports().nth(p).expect("a port").dtype;
            let (ty, const_) = (stored(dtype), if input { "const " } else { "" });
            let from = address(&name, &at);
            self.t.line(format!("{const_}{ty}* row_{name} = {from};"));
        }
    }

    /// The loop of one pass.
    fn pass(
        &mut self,
        p: usize,
        kept_at: &[String],
        ready: &mut BTreeSet<Reg>,
        cached: &mut BTreeSet<usize>,
    ) {
        let (shape, layout, work) = (self.shape, self.code.layout, self.work);
        let (int, v) = (layout.int(), shape.v);
        let regs: &[Reg] = work.reduce.get(p).map_or(&[], Vec::as_slice);
        for &r in regs {
            let Instr::Reduce(op, _) = self.code.program.code[r as usize] else {
                unreachable!("%{r} does not reduce")
            };
            let first = format!("{}::first()", reduction(op));
            if shape.columns {
                self.t.line(format!("float t{r}[{v}];"));
                self.t.line("#pragma unroll");
                self.t.line(format!("for (int j = 0; j < {v}; ++j) t{r}[j] = {first};"));
            } else {
                self.t.line(format!("float t{r} = {first};"));
            }
        }
        if p == 0 && !work.moments.is_empty() {
            self.t.line("float count = 0.0f;");
        }
        let vectors = layout.red_len() / u64::from(v);
        let loads = self.code.loads(Class::Elem).len();
        let unroll = if loads <= 2 { 4 } else { 2 };
        let split = self.split();
        let mut guarded = false;
        let index = if shape.columns {
            let ty = shape.turns();
            self.t.line(format!("#pragma unroll {unroll}"));
            if split {
                self.t.line(format!(
                    "for ({int} e = blockIdx.y * chunk + ty, end = e - ty + chunk < points ? e - ty + chunk : points;"
                ));
                self.t.open(format!("     e < end; e += {ty}) {{"));
            } else {
                self.t.open(format!("for ({int} e = ty; e < points; e += {ty}) {{"));
            }
            "e"
        } else {
            let lanes = u64::from(shape.lanes);
            if let Style::Registers(c) = shape.style {
                self.t.line("#pragma unroll");
                self.t.open(format!("for (int c = 0; c < {c}; ++c) {{"));
                self.t.line(format!("const {int} v = lane + c * {lanes};"));
                guarded = u64::from(c) * lanes != vectors;
                if guarded {
                    self.t.open(format!("if (v < {vectors}) {{"));
                }
            } else if split {
                self.t.line(format!("#pragma unroll {unroll}"));
                self.t.line(format!(
                    "for ({int} v = blockIdx.x * chunk + lane, end = v - lane + chunk < {vectors} ? v - lane + chunk : {vectors};"
                ));
                self.t.open(format!("     v < end; v += {lanes}) {{"));
            } else {
                self.t.line(format!("#pragma unroll {unroll}"));
                self.t.open(format!("for ({int} v = lane; v < {vectors}; v += {lanes}) {{"));
            }
            if v > 1 {
                self.t.line(format!("const {int} at = v * {v};"));
                "at"
            } else {
                "v"
            }
        };
        let guard_rows = self.guards_stores() && !work.stores[p].is_empty();
        let before = (ready.clone(), cached.clone());
        if p == 0 && !work.moments.is_empty() {
            self.t.line("count = count + 1.0f;");
            self.t.line("const float share = reciprocal(count);");
        }
        let red_at = coordinates(&mut self.t, index, &layout.red, "e", layout.wide);
        self.points(p, v, kept_at, &red_at, index, ready, cached, guard_rows);
        if guarded {
            self.t.close();
        }
        self.t.close();
        let tail = layout.red_len() % u64::from(v);
        if !shape.columns && tail > 0 {
            let end = if split { "blockIdx.x + 1 == chunks && " } else { "" };
            self.t.line("// The first lanes take what is left of the row.");
            self.t.open(format!("if ({end}lane < {tail}) {{"));
            self.t.line(format!("const {int} last = {} + lane;", layout.red_len() - tail));
            let (mut ready, mut cached) = before;
            let at = ["last".to_string()];
            self.points(p, 1, kept_at, &at, "last", &mut ready, &mut cached, guard_rows);
            self.t.close();
        }
    }

    /// Whether some threads stand in for a row that is not theirs.
    pub(super) fn guards_stores(&self) -> bool {
        self.shape.columns || self.shape.lanes < 32
    }

    #[allow(clippy::too_many_arguments, reason = "one call, the state of the loop around it")]
    fn points(
        &mut self,
        p: usize,
        v: u32,
        kept_at: &[String],
        red_at: &[String],
        index: &str,
        ready: &mut BTreeSet<Reg>,
        cached: &mut BTreeSet<usize>,
        guard: bool,
    ) {
        let (shape, code, work) = (self.shape, self.code, self.work);
        let inputs = self.space.inputs.len();
        let lane = |port: usize| -> i64 {
            let s = &code.layout.ports[port];
            if shape.columns { s.kept.last() } else { s.red.last() }.copied().unwrap_or(0)
        };
        let here: &[usize] = match &shape.style {
            Style::Shared(ports) => ports,
            _ => &[],
        };
        let before = cached.clone();
        let sources = |port: usize| -> Source {
            if before.contains(&port) {
                return Source::Memory {
                    address: address(&format!("cache{port}"), index),
                    step: 1,
                };
            }
            let at = offset(&code.layout.ports[port].red, red_at);
            Source::Memory { address: address(&format!("row_in{port}"), &at), step: lane(port) }
        };
        let loaded = |t: &mut Text, port: usize, lanes: &str| {
            if here.contains(&port) && !before.contains(&port) {
                t.line(format!("store<{v}>(cache{port} + {index}, {lanes});"));
            }
        };
        let stores: Vec<(usize, Target)> = work.stores[p]
            .iter()
            .map(|&o| {
                let at = offset(&code.layout.ports[inputs + o].red, red_at);
                let to = address(&format!("row_out{o}"), &at);
                (o, Target { address: to, step: lane(inputs + o) })
            })
            .collect();
        let none = BTreeSet::new();
        let kept = if matches!(shape.style, Style::Registers(_)) { &work.kept } else { &none };
        let reduce: &[Reg] = work.reduce.get(p).map_or(&[], Vec::as_slice);
        let plain: Vec<Reg> = reduce.iter().copied().filter(|&r| !work.is_moment(r)).collect();
        let section = Section {
            v,
            sources: &sources,
            kept,
            kept_name: &|r| format!("h{r}[c]"),
            ready,
            kept_at,
            red_at,
            reduce: &plain,
            moments: if p == 0 { &work.moments } else { &[] },
            stores: &stores,
            guard: if guard { "mine" } else { "" },
            loaded: &loaded,
        };
        code.section(&mut self.t, &section);
        // What this pass computed stays for the next ones.
        let wanted = work.wanted(code, p);
        let now = code.needed(&wanted, ready);
        for port in now.iter().filter_map(|&r| code.port_of(r)) {
            if here.contains(&port) {
                cached.insert(port);
            }
        }
        ready.extend(now.into_iter().filter(|r| kept.contains(r)));
    }

    /// Combines the threads' shares of a row.
    pub(super) fn reduce(&mut self, regs: &[Reg]) {
        let shape = self.shape;
        for &r in regs {
            let Instr::Reduce(op, _) = self.code.program.code[r as usize] else {
                unreachable!("%{r} does not reduce")
            };
            let op = reduction(op);
            let (lanes, v) = (shape.lanes, shape.v);
            if shape.columns {
                if shape.turns() > 1 {
                    self.t.line(format!(
                        "reduce_columns<{op}, {lanes}, {}, {v}>(t{r}, shared);",
                        shape.turns()
                    ));
                }
            } else if lanes > 32 {
                self.t.line(format!("t{r} = reduce_block<{op}, {lanes}>(t{r}, shared);"));
            } else if lanes > 1 {
                self.t.line(format!("t{r} = reduce_lanes<{op}, {lanes}>(t{r});"));
            }
        }
    }

    pub(super) fn name_result(&mut self, r: Reg) {
        let instr = self.code.program.code[r as usize];
        let v = self.shape.v;
        self.t.line(if self.shape.columns {
            format!("float (&r{r})[{v}] = t{r}; // %{r} = {instr}")
        } else {
            format!("const float r{r} = t{r}; // %{r} = {instr}")
        });
    }
}
