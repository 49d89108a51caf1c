//! What a pass over rows leaves: partial results, and what exists once per row.

use super::code::{offset, reduction};
use super::rows::{Kernel, Part};
use super::source::address;
use precast_plan::{Instr, Reg};

impl Kernel<'_> {
    /// Reads the results of an earlier pass.
    pub(super) fn results(&mut self, regs: &[Reg], first: usize) {
        if self.shape.columns {
            self.read_results(regs, first);
            return;
        }
        for (i, &r) in regs.iter().enumerate() {
            let Instr::Reduce(op, _) = self.code.program.code[r as usize] else {
                unreachable!("%{r} does not reduce")
            };
            let op = reduction(op);
            let base = format!("({} * chunks + c)", first + i);
            self.t.line(format!("float t{r} = {op}::first();"));
            self.t.open(format!("for (i64 c = lane; c < chunks; c += {}) {{", self.shape.lanes));
            self.t.line(format!("t{r} = {op}::of(t{r}, partial[{base} * rows + row]);"));
            self.t.close();
        }
        self.reduce(regs);
        regs.iter().for_each(|&r| self.name_result(r));
    }

    pub(super) fn write_partial(&mut self, regs: &[Reg], first: usize) {
        if self.shape.columns {
            self.write_column_partial(regs, first);
            return;
        }
        self.t.open("if (lane == 0) {");
        for (i, &r) in regs.iter().enumerate() {
            let at = format!("(({} * (i64)chunks + blockIdx.x) * rows + row)", first + i);
            self.t.line(format!("partial[{at}] = t{r};"));
        }
        self.t.close();
    }

    /// Stores what exists once per row, when every thread has read what it needs.
    pub(super) fn row_stores(&mut self, kept_at: &[String]) {
        let (shape, code) = (self.shape, self.code);
        let inputs = self.space.inputs.len();
        self.t.line(if shape.columns || shape.lanes > 32 {
            "__syncthreads();"
        } else {
            "__syncwarp();"
        });
        let first_block = match self.part {
            Part::Pass(_) => " && blockIdx.x == 0",
            _ => "",
        };
        let own = if shape.columns { "ty == 0" } else { "lane == 0" };
        let mine = if self.guards_stores() { "mine && " } else { "" };
        self.t.open(format!("if ({mine}{own}{first_block}) {{"));
        for &o in &self.work.row_stores {
            let steps = &code.layout.ports[inputs + o].kept;
            let to = address(&format!("out{o}"), &offset(steps, kept_at));
            let value = code.operand(code.program.outputs[o].reg, &|r| {
                unreachable!("%{r} is stored once per row")
            });
            if !shape.columns {
                self.t.line(format!("store_one({to}, {value});"));
                continue;
            }
            let v = shape.v;
            let ty = super::code::register(code.program.outputs[o].dtype.kind());
            self.t.line(format!("{ty} y{o}[{v}];"));
            self.t.line("#pragma unroll");
            self.t.line(format!("for (int j = 0; j < {v}; ++j) y{o}[j] = {value};"));
            self.t.line(match steps.last().copied().unwrap_or(1) {
                1 => format!("store<{v}>({to}, y{o});"),
                lane => format!("store_apart<{v}>({to}, {lane}, y{o});"),
            });
        }
        self.t.close();
    }
}
