//! Mean and sum of squared differences from it in one pass over columns that several blocks share.
//!
//! A program says `mean = Σ x / n` and then `Σ (x − mean)²`: two passes over memory. Each thread
//! instead keeps the mean of what it has seen and the sum of squared differences from that
//! (B. P. Welford, Technometrics 4, 1962), which is as accurate as two passes. Shares of several
//! threads and blocks are put together by `M = Σ nᵢ mᵢ / n` and `Σ Sᵢ + nᵢ (mᵢ − M)²`.

use super::code::{Code, Text};
use super::rows::Kernel;
use super::shape::Work;
use precast_plan::{BinaryOp, Instr, ReduceOp, Reg};

/// A sum, and the sum of squared differences from its mean.
pub type Pair = (Reg, Reg);

/// The pair whose second is `b`, over `n` points.
fn pair(code: &Code, b: Reg, n: u64) -> Option<Pair> {
    let instr = |r: Reg| code.program.code[r as usize];
    let Instr::Reduce(ReduceOp::Sum, square) = instr(b) else { return None };
    let Instr::Binary(BinaryOp::Mul, d, e) = instr(square) else { return None };
    let Instr::Binary(BinaryOp::Sub, x, mean) = instr(d) else { return None };
    let Instr::Binary(BinaryOp::Mul, p, q) = instr(mean) else { return None };
    let (a, share) = match (instr(p), instr(q)) {
        (Instr::Reduce(..), Instr::Real(share)) => (p, share),
        (Instr::Real(share), Instr::Reduce(..)) => (q, share),
        _ => return None,
    };
    let of = matches!(instr(a), Instr::Reduce(ReduceOp::Sum, of) if of == x);
    let mean = (f64::from(share) * n as f64 - 1.0).abs() < 1e-6;
    (d == e && of && mean).then_some((a, b))
}

impl Work {
    /// The passes with the second one in the first, where all it does is to square differences from
    /// means of what the first sums.
    pub fn with_moments(mut self, code: &Code) -> Work {
        if self.passes() < 2 || !self.stores[1].is_empty() {
            return self;
        }
        let n = code.layout.red_len();
        let found: Option<Vec<Pair>> = self.reduce[1].iter().map(|&b| pair(code, b, n)).collect();
        let Some(found) = found else { return self };
        if !found.iter().all(|p| self.reduce[0].contains(&p.0)) {
            return self;
        }
        let second = self.reduce.remove(1);
        self.reduce[0].extend(second);
        self.stores.remove(1);
        self.moments = found;
        self
    }

    /// Whether a reduction is part of a pair.
    pub fn is_moment(&self, r: Reg) -> bool {
        self.moments.iter().any(|p| p.0 == r || p.1 == r)
    }

    /// The stages whose values are known where pass `p` begins and were not before.
    pub fn stages(&self, p: usize) -> std::ops::RangeInclusive<u32> {
        let p = p as u32;
        match (self.moments.is_empty(), p) {
            (true, _) | (_, 0) => p..=p,
            (false, 1) => 1..=2,
            (false, _) => p + 1..=p + 1,
        }
    }
}

/// The points of the chunk `c`, as a float.
fn points_of(c: &str, int: &str) -> String {
    let rest = format!("points - ({int}){c} * chunk");
    format!("(float)({rest} < chunk ? {rest} : chunk)")
}

/// The lines that take in one value `x`; `share` is 1 over how many there are with it.
pub fn take(t: &mut Text, (a, b): Pair, x: &str) {
    t.line(format!("const float d{a} = {x} - t{a}[j];"));
    t.line(format!("t{a}[j] = t{a}[j] + d{a} * share;"));
    t.line(format!("t{b}[j] = t{b}[j] + d{a} * ({x} - t{a}[j]);"));
}

impl Kernel<'_> {
    /// Puts the threads' shares of a chunk together: its means and sums of squared differences.
    pub(super) fn reduce_moments(&mut self) {
        let (v, int) = (self.shape.v, self.layout().int());
        let combine = |k: &mut Self, name: &str| {
            let (lanes, turns) = (k.shape.lanes, k.shape.turns());
            if turns > 1 {
                k.t.line(format!("reduce_columns<Sum, {lanes}, {turns}, {v}>({name}, shared);"));
            }
        };
        self.t.line(format!("const float own = {};", points_of("blockIdx.y", int)));
        for (a, b) in self.work.moments.clone() {
            self.t.line(format!("float m{a}[{v}];"));
            self.t.line("#pragma unroll");
            self.t.line(format!("for (int j = 0; j < {v}; ++j) m{a}[j] = t{a}[j] * count;"));
            combine(self, &format!("m{a}"));
            self.t.line("#pragma unroll");
            self.t.open(format!("for (int j = 0; j < {v}; ++j) {{"));
            self.t.line(format!("const float mean = m{a}[j] / own, apart = t{a}[j] - mean;"));
            self.t.line(format!("t{b}[j] = t{b}[j] + count * apart * apart;"));
            self.t.line(format!("t{a}[j] = mean;"));
            self.t.close();
            combine(self, &format!("t{b}"));
        }
    }

    /// Puts the chunks together: the sum, and the sum of squared differences from its mean. `first`
    /// is the place of a reduction among the partial results.
    pub(super) fn combine_moments(&mut self, regs: &[Reg], first: usize) {
        let (m, int) = (self.layout().kept_len(), self.layout().int());
        let results = self.work.reductions() as u64 * m;
        let (lanes, turns) = (self.shape.lanes, self.shape.turns());
        let own = points_of("c", int);
        for (a, b) in self.work.moments.clone() {
            let at = |r: Reg| {
                let i = first + regs.iter().position(|&x| x == r).expect("a reduction of the pass");
                format!("partial[{results} + ({i} * (i64)chunks + c) * {m} + row]")
            };
            for (r, text) in [
                (a, format!("t{a}[0] = t{a}[0] + {own} * {};", at(a))),
                (b, format!("t{b}[0] = t{b}[0] + {} + {own} * apart * apart;", at(b))),
            ] {
                if r == b {
                    self.t.line(format!("const float mean{a} = t{a}[0] / (float)points;"));
                }
                self.t.line(format!("float t{r}[1] = {{0.0f}};"));
                self.t.line("#pragma unroll 8");
                self.t.open(format!("for (i64 c = ty; c < chunks; c += {turns}) {{"));
                if r == b {
                    self.t.line(format!("const float apart = {} - mean{a};", at(a)));
                }
                self.t.line(text);
                self.t.close();
                if turns > 1 {
                    self.t.line(format!("reduce_columns<Sum, {lanes}, {turns}, 1>(t{r}, shared);"));
                }
            }
        }
    }
}
