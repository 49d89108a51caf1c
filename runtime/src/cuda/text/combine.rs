//! Columns that several blocks share: after every pass a small kernel makes results of the partial
//! ones, so that the blocks of later passes read one value a column and not all that others left.

use super::code::{Code, reduction};
use super::rows::{Kernel, Part};
use super::shape::{Shape, Style, Work};
use super::space::Space;
use crate::cuda::launch::{Facts, Lowered, Task};
use precast_plan::{Instr, Reg};

/// Threads of a block that combines.
const THREADS: u64 = 1024;

/// Lowers columns whose reduced axes are cut into chunks. Scratch memory holds the results, one a
/// reduction and column, then the partial results, one a reduction, chunk and column.
pub fn lower(space: &Space, code: &Code, shape: &Shape, facts: &Facts, out: &mut Lowered) {
    let work = &Work::new(space, code).with_moments(code);
    let columns = code.layout.kept_len();
    let results = work.reductions() as u64 * columns;
    let partial = Some(out.reserve((results + results * shape.chunks) * 4));
    let kernel = |part: Part, shape: &Shape| -> Task {
        let k = Kernel { space, code, work, shape, part, t: Default::default() };
        Task::Launch(k.build(facts, partial).launch())
    };
    let combine = combining(columns, shape);
    let last = work.passes();
    let ends = !work.stores[last].is_empty();
    let stores = !work.row_stores.is_empty();
    let early = stores && work.stores_rows_early(space, code);
    for pass in 0..last {
        out.tasks.push(kernel(Part::Pass(pass), shape));
        let end = pass + 1 == last;
        let part =
            Part::Combine { pass, kept: !end || ends || stores && !early, stores: end && early };
        out.tasks.push(kernel(part, &combine));
    }
    if ends {
        out.tasks.push(kernel(Part::Pass(last), shape));
    }
    if stores && !early {
        out.tasks.push(kernel(Part::Finish, &combine));
    }
}

/// The shape of the kernels that combine: few columns a block, many threads for each of them.
fn combining(columns: u64, shape: &Shape) -> Shape {
    let lanes = columns.next_power_of_two().min(32);
    let turns = (THREADS / lanes).min(shape.chunks.next_power_of_two());
    Shape {
        v: 1,
        lanes: lanes as u32,
        threads: (lanes * turns) as u32,
        style: Style::Stream,
        ..shape.clone()
    }
}

impl Work {
    /// How many reductions there are.
    pub fn reductions(&self) -> usize {
        self.reduce.iter().map(Vec::len).sum()
    }

    /// Whether row outputs may be stored before the last pass: none lies where it reads.
    fn stores_rows_early(&self, space: &Space, code: &Code) -> bool {
        let mut read = self.row_ports(code, self.passes());
        let wanted = self.wanted(code, self.passes());
        let points = code.needed(&wanted, &Default::default());
        read.extend(points.into_iter().filter_map(|r| code.port_of(r)));
        let met = |&o: &usize| read.iter().any(|&p| space.outputs[o].meets(&space.inputs[p]));
        !self.row_stores.iter().any(met)
    }
}

impl Kernel<'_> {
    fn op(&self, r: Reg) -> &'static str {
        let Instr::Reduce(op, _) = self.code.program.code[r as usize] else {
            unreachable!("%{r} does not reduce")
        };
        reduction(op)
    }

    /// Reads results that an earlier kernel combined.
    pub(super) fn read_results(&mut self, regs: &[Reg], first: usize) {
        let (v, m) = (self.shape.v, self.layout().kept_len());
        for (i, &r) in regs.iter().enumerate() {
            self.t.line(format!("float t{r}[{v}];"));
            self.t.line(format!("load<{v}>(t{r}, partial + {} + row);", (first + i) as u64 * m));
            self.name_result(r);
        }
    }

    /// Makes results of the partial ones.
    pub(super) fn combine(&mut self, regs: &[Reg], first: usize) {
        let (v, m) = (self.shape.v, self.layout().kept_len());
        let results = self.work.reductions() as u64 * m;
        let plain: Vec<Reg> = regs.iter().copied().filter(|&r| !self.work.is_moment(r)).collect();
        for (i, &r) in regs.iter().enumerate().filter(|(_, r)| plain.contains(r)) {
            let op = self.op(r);
            let at = format!("{results} + ({} * (i64)chunks + c) * {m} + row", first + i);
            self.t.line(format!("float t{r}[{v}] = {{{op}::first()}};"));
            self.t.line("#pragma unroll 8");
            self.t.open(format!("for (i64 c = ty; c < chunks; c += {}) {{", self.shape.turns()));
            self.t.line(format!("t{r}[0] = {op}::of(t{r}[0], partial[{at}]);"));
            self.t.close();
        }
        self.reduce(&plain);
        if plain.len() < regs.len() {
            self.combine_moments(regs, first);
        }
        regs.iter().for_each(|&r| self.name_result(r));
    }

    pub(super) fn write_results(&mut self, regs: &[Reg], first: usize) {
        let m = self.layout().kept_len();
        self.t.open("if (mine && ty == 0) {");
        for (i, &r) in regs.iter().enumerate() {
            self.t.line(format!("partial[{} + row] = t{r}[0];", (first + i) as u64 * m));
        }
        self.t.close();
    }

    pub(super) fn write_column_partial(&mut self, regs: &[Reg], first: usize) {
        let (v, m) = (self.shape.v, self.layout().kept_len());
        let results = self.work.reductions() as u64 * m;
        self.t.open("if (mine && ty == 0) {");
        for (i, &r) in regs.iter().enumerate() {
            let at = format!("{results} + ({} * (i64)chunks + blockIdx.y) * {m} + row", first + i);
            self.t.line(format!("store<{v}>(partial + {at}, t{r});"));
        }
        self.t.close();
    }
}
