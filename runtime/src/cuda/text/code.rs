//! Programs as C++: how registers are spelled, what an instruction computes, and the lines that
//! load, compute and store a vector of points.
//!
//! `s3`, `r3`, `x3` are register %3 where it exists once, once per row, once per point; `in0` and
//! `out0` are the addresses of ports, `a0` and `y0` the lanes loaded from and stored to them.

use super::moments::{self, Pair};
use super::space::{Layout, Space, Steps, live};
use precast_plan::{BinaryOp, DType, Instr, Kind, Program, ReduceOp, Reg, RegInfo, UnaryOp};
use std::collections::BTreeSet;
use std::fmt::Write;

/// Indented lines.
#[derive(Default)]
pub struct Text {
    pub out: String,
    depth: usize,
}

impl Text {
    pub fn line(&mut self, line: impl AsRef<str>) {
        let line = line.as_ref();
        let indent = if line.starts_with('#') { 0 } else { self.depth * 4 };
        let _ = writeln!(self.out, "{:indent$}{line}", "");
    }

    /// A line that ends in `{`.
    pub fn open(&mut self, line: impl AsRef<str>) {
        self.line(line);
        self.depth += 1;
    }

    pub fn close(&mut self) {
        self.depth -= 1;
        self.line("}");
    }
}

/// How often a value exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Once.
    Scalar,
    /// Once for each index of the kept axes.
    Row,
    /// At every point.
    Elem,
}

/// The C++ type of a stored element.
pub fn stored(d: DType) -> &'static str {
    match d {
        DType::F32 => "float",
        DType::F16 => "f16",
        DType::Bf16 => "bf16",
        DType::F8e4m3 => "f8e4m3",
        DType::F8e5m2 => "f8e5m2",
        DType::I64 => "i64",
        DType::I32 => "int",
        DType::U8 => "u8",
        DType::Bool => "flag",
    }
}

/// The C++ type of a register.
pub fn register(k: Kind) -> &'static str {
    match k {
        Kind::Real => "float",
        Kind::Int => "int",
        Kind::Bool => "bool",
    }
}

/// The combining operation of a reduction.
pub fn reduction(op: ReduceOp) -> &'static str {
    match op {
        ReduceOp::Sum => "Sum",
        ReduceOp::Max => "Max",
        ReduceOp::Min => "Min",
    }
}

/// A literal that reads back to the same bits.
fn real(x: f32) -> String {
    let text = format!("{x:?}f");
    // A compiler may read the digits as a double first; bits say what decimals might not.
    let plain = x.is_finite() && format!("{x:?}").parse::<f64>().is_ok_and(|d| d as f32 == x);
    match (plain, x.is_sign_negative()) {
        (false, _) => format!("float_of(0x{:08x}u)", x.to_bits()),
        (true, true) => format!("({text})"),
        (true, false) => text,
    }
}

fn int(x: i32) -> String {
    match x {
        i32::MIN => "(-2147483647 - 1)".into(),
        _ if x < 0 => format!("({x})"),
        _ => x.to_string(),
    }
}

/// `Σ coordinate · stride`, in elements.
pub fn offset(steps: &[i64], coordinates: &[String]) -> String {
    let terms: Vec<String> = steps
        .iter()
        .zip(coordinates)
        .filter(|(s, _)| **s != 0)
        .map(|(&s, c)| if s == 1 { c.clone() } else { format!("{c} * {}", wrap(s)) })
        .collect();
    if terms.is_empty() { "0".into() } else { terms.join(" + ") }
}

fn wrap(s: i64) -> String {
    if s < 0 { format!("({s})") } else { s.to_string() }
}

/// Splits the linear index `of` into coordinates named `prefix` and a number; one axis is the
/// index itself.
pub fn coordinates(t: &mut Text, of: &str, dims: &[u64], prefix: &str, wide: bool) -> Vec<String> {
    if dims.len() <= 1 {
        return dims.iter().map(|_| of.to_string()).collect();
    }
    let (int, unsigned, suffix) = if wide { ("i64", "u64", "ull") } else { ("int", "u32", "u") };
    let mut below = 1;
    let mut parts = vec![];
    for (d, &n) in dims.iter().enumerate().rev() {
        let down = if below == 1 { String::new() } else { format!(" / {below}{suffix}") };
        let modulo = if d == 0 { String::new() } else { format!(" % {n}{suffix}") };
        parts.push(format!("{prefix}{d} = ({int})(({unsigned}){of}{down}{modulo})"));
        below *= n;
    }
    parts.reverse();
    t.line(format!("const {int} {};", parts.join(", ")));
    (0..dims.len()).map(|d| format!("{prefix}{d}")).collect()
}

/// Where a section finds the lanes of an input port.
#[derive(Clone, Debug, PartialEq)]
pub enum Source {
    /// V neighbours at an address, or one element for all lanes (`step` 0), or `step` apart.
    Memory { address: String, step: i64 },
    /// An array of lanes that exists already.
    Lanes(String),
    /// One value for all lanes that exists already.
    Value(String),
}

/// Where lanes of an output port go: `step` apart from an address.
#[derive(Clone, Debug)]
pub struct Target {
    pub address: String,
    pub step: i64,
}

/// A program in a layout.
pub struct Code<'a> {
    pub program: &'a Program,
    pub infos: &'a [RegInfo],
    pub layout: &'a Layout,
    pub class: Vec<Class>,
    pub live: Vec<bool>,
    /// A row value is an array over lanes (lanes run along kept axes).
    pub lane_rows: bool,
}

impl<'a> Code<'a> {
    pub fn new(space: &Space<'a>, layout: &'a Layout, lane_rows: bool) -> Code<'a> {
        let of = |s: &Steps| match (layout.rows, s.varies_kept(), s.varies_red()) {
            (_, false, false) => Class::Scalar,
            (true, _, false) => Class::Row,
            _ => Class::Elem,
        };
        let mut class: Vec<Class> = vec![];
        for (i, instr) in space.program.code.iter().enumerate() {
            class.push(match instr {
                Instr::Load { port } => of(&layout.ports[*port as usize]),
                Instr::Real(_) | Instr::Int(_) | Instr::Bool(_) => Class::Scalar,
                Instr::Index { .. } => layout.index.get(&(i as Reg)).map_or(Class::Scalar, of),
                Instr::Uniform { .. } => Class::Elem,
                Instr::Reduce(..) => Class::Row,
                _ => instr.operands().map(|r| class[r as usize]).max().expect("an operand"),
            });
        }
        let live = live(space.program);
        Code { program: space.program, infos: space.infos, layout, class, live, lane_rows }
    }

    pub fn is(&self, r: Reg, class: Class) -> bool {
        self.class[r as usize] == class
    }

    /// Whether an output is stored once per row.
    pub fn stored_per_row(&self, output: usize) -> bool {
        self.layout.rows && self.infos[self.program.outputs[output].reg as usize].row
    }

    /// Live registers of a class, in order, without literals.
    pub fn of_class(&self, class: Class) -> impl Iterator<Item = Reg> + '_ {
        (0..self.program.code.len() as Reg)
            .filter(move |&r| self.live[r as usize] && self.is(r, class) && !self.is_literal(r))
    }

    fn is_literal(&self, r: Reg) -> bool {
        matches!(self.program.code[r as usize], Instr::Real(_) | Instr::Int(_) | Instr::Bool(_))
    }

    pub fn type_of(&self, r: Reg) -> &'static str {
        register(self.infos[r as usize].kind)
    }

    /// Which input ports live registers of a class load.
    pub fn loads(&self, class: Class) -> BTreeSet<usize> {
        self.of_class(class).filter_map(|r| self.port_of(r)).collect()
    }

    pub fn port_of(&self, r: Reg) -> Option<usize> {
        match self.program.code[r as usize] {
            Instr::Load { port } => Some(port as usize),
            _ => None,
        }
    }

    /// The spelling of an operand. `elem` spells a register that exists at every point.
    pub fn operand(&self, r: Reg, elem: &dyn Fn(Reg) -> String) -> String {
        match self.program.code[r as usize] {
            Instr::Real(x) => return real(x),
            Instr::Int(x) => return int(x),
            Instr::Bool(x) => return x.to_string(),
            _ => {}
        }
        match self.class[r as usize] {
            Class::Scalar => format!("s{r}"),
            Class::Row if self.lane_rows => format!("r{r}[j]"),
            Class::Row => format!("r{r}"),
            Class::Elem => elem(r),
        }
    }

    /// What a register is computed from; not for loads, coordinates, reductions and `uniform`.
    pub fn expression(&self, r: Reg, elem: &dyn Fn(Reg) -> String) -> String {
        let get = |r: Reg| self.operand(r, elem);
        let kind = |r: Reg| self.infos[r as usize].kind;
        match self.program.code[r as usize] {
            Instr::Unary(op, a) => unary(op, kind(a), &get(a)),
            Instr::Binary(op, a, b) => binary(op, kind(a), &get(a), &get(b)),
            Instr::Select { cond, then, otherwise } => {
                format!("{} ? {} : {}", get(cond), get(then), get(otherwise))
            }
            Instr::Round(DType::F32, a) => get(a),
            Instr::Round(d, a) => format!("rounded<{}>({})", stored(d), get(a)),
            i => unreachable!("{i} is no expression"),
        }
    }

    /// The comment that ends the line of a register.
    fn note(&self, r: Reg) -> String {
        format!(" // %{r} = {}", self.program.code[r as usize])
    }

    /// Declares the values that exist once.
    pub fn scalars(&self, t: &mut Text) {
        for r in self.of_class(Class::Scalar) {
            let value = match self.program.code[r as usize] {
                Instr::Load { port } => format!("widen(in{port}[0])"),
                Instr::Index { .. } => "0".into(),
                _ => self.expression(r, &no_elem),
            };
            t.line(format!("const {} s{r} = {value};{}", self.type_of(r), self.note(r)));
        }
    }

    /// Declares the values of one stage that exist once per row; `coordinates` are those of the
    /// kept axes, of the first lane where rows are lanes.
    pub fn rows(&self, t: &mut Text, stage: u32, coordinates: &[String], v: u32) {
        for r in self.of_class(Class::Row).filter(|&r| self.infos[r as usize].stage == stage) {
            let ty = self.type_of(r);
            let note = self.note(r);
            match self.program.code[r as usize] {
                // Declared where the pass that reduces ends.
                Instr::Reduce(..) => {}
                Instr::Load { port } => {
                    let steps = &self.layout.ports[port as usize].kept;
                    let at = offset(steps, coordinates);
                    if self.lane_rows {
                        t.line(format!("{ty} r{r}[{v}];{note}"));
                        let lane = *steps.last().expect("an axis");
                        t.line(match lane {
                            1 => format!("load<{v}>(r{r}, in{port} + ({at}));"),
                            _ => format!("load_apart<{v}>(r{r}, in{port} + ({at}), {lane});"),
                        });
                    } else {
                        t.line(format!("const {ty} r{r} = widen(in{port}[{at}]);{note}"));
                    }
                }
                Instr::Index { .. } => {
                    let steps = &self.layout.index[&r].kept;
                    let at = offset(steps, coordinates);
                    let lane = steps.last().copied().unwrap_or(0);
                    self.row(
                        t,
                        r,
                        &format!("(int)({at}{})", lane_term(lane)),
                        &format!("(int)({at})"),
                        v,
                    );
                }
                _ => {
                    let value = self.expression(r, &no_elem);
                    self.row(t, r, &value, &value, v);
                }
            }
        }
    }

    fn row(&self, t: &mut Text, r: Reg, by_lane: &str, value: &str, v: u32) {
        let (ty, note) = (self.type_of(r), self.note(r));
        if self.lane_rows {
            t.line(format!("{ty} r{r}[{v}];{note}"));
            t.line("#pragma unroll");
            t.line(format!("for (int j = 0; j < {v}; ++j) r{r}[j] = {by_lane};"));
        } else {
            t.line(format!("const {ty} r{r} = {value};{note}"));
        }
    }

    /// Registers of every point that `wanted` needs, in order; registers in `stop` are there.
    pub fn needed(&self, wanted: &[Reg], stop: &BTreeSet<Reg>) -> BTreeSet<Reg> {
        let mut set = BTreeSet::new();
        let mut stack = wanted.to_vec();
        while let Some(r) = stack.pop() {
            if self.is(r, Class::Elem) && !stop.contains(&r) && set.insert(r) {
                stack.extend(self.program.code[r as usize].operands());
            }
        }
        set
    }
}

fn no_elem(r: Reg) -> String {
    unreachable!("%{r} is computed at every point")
}

/// `+ j * lane`.
fn lane_term(lane: i64) -> String {
    match lane {
        0 => String::new(),
        1 => " + j".into(),
        _ => format!(" + j * {}", wrap(lane)),
    }
}

/// Lines for a vector of points: what is loaded, computed, reduced and stored.
pub struct Section<'s> {
    pub v: u32,
    /// For the input ports that are loaded here.
    pub sources: &'s dyn Fn(usize) -> Source,
    /// Registers that live in arrays across sections, and how one is spelled without `[j]`.
    pub kept: &'s BTreeSet<Reg>,
    pub kept_name: &'s dyn Fn(Reg) -> String,
    /// Of those, the ones that are computed already.
    pub ready: &'s BTreeSet<Reg>,
    /// Coordinates of the first lane.
    pub kept_at: &'s [String],
    pub red_at: &'s [String],
    /// Reduction registers that take in these points.
    pub reduce: &'s [Reg],
    /// Pairs that take them in, where lanes are columns.
    pub moments: &'s [Pair],
    pub stores: &'s [(usize, Target)],
    /// The condition for stores; empty where there is none.
    pub guard: &'s str,
    /// Lines after a port's lanes were loaded.
    pub loaded: &'s dyn Fn(&mut Text, usize, &str),
}

impl Code<'_> {
    /// Whether lanes run along the kept axes.
    fn lane_of(&self, s: &Steps) -> i64 {
        if self.lane_rows { s.kept.last() } else { s.red.last() }.copied().unwrap_or(0)
    }

    /// The offset of a virtual port at the first lane.
    fn at(&self, s: &Steps, section: &Section) -> String {
        let (a, b) = (offset(&s.kept, section.kept_at), offset(&s.red, section.red_at));
        match (a.as_str(), b.as_str()) {
            ("0", _) => b,
            (_, "0") => a,
            _ => format!("{a} + {b}"),
        }
    }

    pub fn section(&self, t: &mut Text, section: &Section) {
        let v = section.v;
        let mut wanted: Vec<Reg> =
            section.stores.iter().map(|s| self.program.outputs[s.0].reg).collect();
        for &r in section.reduce.iter().chain(section.moments.iter().map(|m| &m.0)) {
            wanted.extend(self.program.code[r as usize].operands());
        }
        let needed = self.needed(&wanted, section.ready);
        // How registers of every point are spelled inside the loop over lanes.
        let mut names = vec![String::new(); self.program.code.len()];
        for &r in section.kept {
            names[r as usize] = format!("{}[j]", (section.kept_name)(r));
        }
        let mut computed = vec![];
        for &r in &needed {
            let Some(port) = self.port_of(r) else {
                if !section.kept.contains(&r) {
                    names[r as usize] = format!("x{r}");
                }
                computed.push(r);
                continue;
            };
            let ty = self.type_of(r);
            let kept = section.kept.contains(&r);
            let lanes = if kept { (section.kept_name)(r) } else { format!("a{port}") };
            match (section.sources)(port) {
                Source::Lanes(name) => names[r as usize] = format!("{name}[j]"),
                Source::Value(name) => names[r as usize] = name,
                Source::Memory { address, step: 0 } if !kept && v > 1 => {
                    t.line(format!("const {ty} {lanes} = widen(*({address}));{}", self.note(r)));
                    names[r as usize] = lanes;
                }
                Source::Memory { address, step } => {
                    if !kept {
                        t.line(format!("{ty} {lanes}[{v}];{}", self.note(r)));
                    }
                    t.line(match step {
                        1 => format!("load<{v}>({lanes}, {address});"),
                        _ if v == 1 => format!("load<1>({lanes}, {address});"),
                        _ => format!("load_apart<{v}>({lanes}, {address}, {step});"),
                    });
                    (section.loaded)(t, port, &lanes);
                    names[r as usize] = format!("{lanes}[j]");
                }
            }
        }
        for (o, _) in section.stores {
            let ty = register(self.program.outputs[*o].dtype.kind());
            t.line(format!("{ty} y{o}[{v}];"));
        }
        let sums = section.reduce.len() + section.moments.len();
        if computed.is_empty() && sums == 0 && section.stores.is_empty() {
            return;
        }
        t.line("#pragma unroll");
        t.open(format!("for (int j = 0; j < {v}; ++j) {{"));
        let elem = |r: Reg| names[r as usize].clone();
        for r in computed {
            let value = match self.program.code[r as usize] {
                Instr::Index { .. } => {
                    let s = &self.layout.index[&r];
                    format!("(int)({}{})", self.at(s, section), lane_term(self.lane_of(s)))
                }
                Instr::Uniform { seed, step, stream } => {
                    let s = &self.layout.linear;
                    let at = format!("{}{}", self.at(s, section), lane_term(self.lane_of(s)));
                    let (seed, step) = (self.operand(seed, &elem), self.operand(step, &elem));
                    format!("uniform((u64)({at}), {stream}u, {seed}, {step})")
                }
                _ => self.expression(r, &elem),
            };
            let declare = if section.kept.contains(&r) {
                String::new()
            } else {
                format!("const {} ", self.type_of(r))
            };
            t.line(format!("{declare}{} = {value};{}", names[r as usize], self.note(r)));
        }
        for &r in section.reduce {
            let Instr::Reduce(op, a) = self.program.code[r as usize] else {
                unreachable!("%{r} does not reduce")
            };
            let acc = if self.lane_rows { format!("t{r}[j]") } else { format!("t{r}") };
            let (op, a) = (reduction(op), self.operand(a, &elem));
            t.line(format!("{acc} = {op}::of({acc}, {a});{}", self.note(r)));
        }
        for &pair in section.moments {
            let Instr::Reduce(_, x) = self.program.code[pair.0 as usize] else {
                unreachable!("%{} does not reduce", pair.0)
            };
            moments::take(t, pair, &self.operand(x, &elem));
        }
        for (o, _) in section.stores {
            let reg = self.program.outputs[*o].reg;
            t.line(format!("y{o}[j] = {};", self.operand(reg, &elem)));
        }
        t.close();
        if section.stores.is_empty() {
            return;
        }
        if !section.guard.is_empty() {
            t.open(format!("if ({}) {{", section.guard));
        }
        for (o, target) in section.stores {
            let address = &target.address;
            t.line(match target.step {
                1 => format!("store<{v}>({address}, y{o});"),
                _ if v == 1 => format!("store<1>({address}, y{o});"),
                step => format!("store_apart<{v}>({address}, {step}, y{o});"),
            });
        }
        if !section.guard.is_empty() {
            t.close();
        }
    }
}

fn unary(op: UnaryOp, kind: Kind, a: &str) -> String {
    let call = |f: &str| format!("{f}({a})");
    match (op, kind) {
        (UnaryOp::Neg, Kind::Int) => format!("int_sub(0, {a})"),
        (UnaryOp::Neg, _) => format!("-{a}"),
        (UnaryOp::Abs, Kind::Int) => call("int_abs"),
        (UnaryOp::Abs, _) => call("fabsf"),
        (UnaryOp::Exp, _) => call("expf"),
        (UnaryOp::Expm1, _) => call("expm1f"),
        (UnaryOp::Log, _) => call("logf"),
        (UnaryOp::Log1p, _) => call("log1pf"),
        (UnaryOp::Sqrt, _) => call("sqrtf"),
        (UnaryOp::Rsqrt, _) => call("reciprocal_root"),
        (UnaryOp::Recip, _) => call("reciprocal"),
        (UnaryOp::Sin, _) => call("sinf"),
        (UnaryOp::Cos, _) => call("cosf"),
        (UnaryOp::Tanh, _) => call("tanhf"),
        (UnaryOp::Erf, _) => call("erff"),
        (UnaryOp::Sigmoid, _) => call("sigmoid"),
        (UnaryOp::Tan, _) => call("tanf"),
        (UnaryOp::Asin, _) => call("asinf"),
        (UnaryOp::Acos, _) => call("acosf"),
        (UnaryOp::Atan, _) => call("atanf"),
        (UnaryOp::Sinh, _) => call("sinhf"),
        (UnaryOp::Cosh, _) => call("coshf"),
        (UnaryOp::Asinh, _) => call("asinhf"),
        (UnaryOp::Acosh, _) => call("acoshf"),
        (UnaryOp::Atanh, _) => call("atanhf"),
        (UnaryOp::Floor, _) => call("floorf"),
        (UnaryOp::Ceil, _) => call("ceilf"),
        (UnaryOp::RoundEven, _) => call("rintf"),
        (UnaryOp::IsFinite, _) => call("finite"),
        (UnaryOp::Not, _) => format!("!{a}"),
        (UnaryOp::ToReal, Kind::Real)
        | (UnaryOp::ToInt, Kind::Int)
        | (UnaryOp::ToBool, Kind::Bool) => a.into(),
        (UnaryOp::ToReal, Kind::Int) => format!("(float){a}"),
        (UnaryOp::ToReal, Kind::Bool) => format!("{a} ? 1.0f : 0.0f"),
        (UnaryOp::ToInt, Kind::Real) => call("to_int"),
        (UnaryOp::ToInt, Kind::Bool) => format!("{a} ? 1 : 0"),
        (UnaryOp::ToBool, Kind::Real) => format!("{a} != 0.0f"),
        (UnaryOp::ToBool, Kind::Int) => format!("{a} != 0"),
    }
}

fn binary(op: BinaryOp, kind: Kind, a: &str, b: &str) -> String {
    let int = kind == Kind::Int;
    let infix = |op: &str| format!("{a} {op} {b}");
    let call = |f: &str| format!("{f}({a}, {b})");
    match op {
        BinaryOp::Add if int => call("int_add"),
        BinaryOp::Sub if int => call("int_sub"),
        BinaryOp::Mul if int => call("int_mul"),
        BinaryOp::Div if int => call("int_div"),
        BinaryOp::Rem if int => call("int_rem"),
        BinaryOp::And if int => infix("&"),
        BinaryOp::Or if int => infix("|"),
        BinaryOp::Max if int => call("int_max"),
        BinaryOp::Min if int => call("int_min"),
        BinaryOp::Add => infix("+"),
        BinaryOp::Sub => infix("-"),
        BinaryOp::Mul => infix("*"),
        BinaryOp::Div => infix("/"),
        BinaryOp::Rem => call("fmodf"),
        BinaryOp::Max => call("largest"),
        BinaryOp::Min => call("smallest"),
        BinaryOp::Pow => call("powf"),
        BinaryOp::Eq => infix("=="),
        BinaryOp::Lt => infix("<"),
        BinaryOp::Le => infix("<="),
        BinaryOp::And => infix("&&"),
        BinaryOp::Or => infix("||"),
    }
}
