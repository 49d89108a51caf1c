//! From a program to block code: which values are scalars, rows or elements in an instance, which
//! pass computes them, and which scratch register holds them.

use super::fuse::shorten;
use super::ops;
use precast_plan::{DType, Instr, Program, ReduceOp, Reg, RegInfo};

/// How often a value exists in one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Once.
    Scalar,
    /// Once for each index of the kept axes.
    Row,
    /// At every point.
    Elem,
}

/// How an element instruction sees a row value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RowForm {
    /// A tile lies in one row: one value.
    Scalar,
    /// A tile has one lane per kept index: the row register itself.
    Lanes,
    /// Must be spread over the lanes of a tile first.
    Spread,
}

/// How the reductions of an instance run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A tile holds whole rows: one pass. Also programs that do not reduce.
    Whole,
    /// One pass over a row for each stage.
    Passes,
}

/// What lowering must know of an instance. Instances that agree share code.
#[derive(Clone, Debug, PartialEq)]
pub struct Form {
    pub style: Style,
    pub row_form: RowForm,
    /// Does the space have rows (kept against reduced axes)?
    pub rows: bool,
    /// Class of each input port.
    pub inputs: Vec<Class>,
    /// Input ports whose tiles can be read in place as lanes.
    pub direct_in: Vec<bool>,
    /// Output ports whose tiles can be computed in place.
    pub direct_out: Vec<bool>,
    /// Class of each `index` instruction, by register.
    pub index: Vec<Class>,
}

/// Where an operand is found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Src {
    None,
    Elem(u16),
    Row(u16),
    /// Lane 0 of a row register, as a scalar.
    RowScalar(u16),
    Scalar(u16),
    /// The tile of an input port, in place.
    In(u16),
    /// The tile of an output port, in place.
    Out(u16),
}

/// Where a result goes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Dst {
    Elem(u16),
    Row(u16),
    Scalar(u16),
    Out(u16),
}

/// One block instruction.
#[derive(Clone, Copy)]
pub struct Op {
    pub run: Run,
    pub dst: Dst,
    pub a: Src,
    pub b: Src,
    pub c: Src,
}

/// What a block instruction does.
#[derive(Clone, Copy)]
pub enum Run {
    Load(u16),
    Unary(ops::Unary),
    Binary(ops::Binary),
    Select,
    /// Coordinates: virtual port of the instance.
    Index(u16),
    Uniform {
        stream: u32,
    },
    /// Copies a scalar or a row register over the lanes of `dst`.
    Spread,
    /// Reduces whole rows of a tile.
    Reduce(ReduceOp),
}

/// A store: output port and the lanes to round.
#[derive(Clone, Copy, Debug)]
pub struct Store {
    pub port: u16,
    pub src: Src,
}

/// One reduction of a pass: the lanes reduced and the row register that receives the result.
#[derive(Clone, Copy, Debug)]
pub struct Reduction {
    pub op: ReduceOp,
    pub src: Src,
    pub row: u16,
}

/// One pass over a row.
#[derive(Default)]
pub struct Pass {
    pub elem: Vec<Op>,
    pub reductions: Vec<Reduction>,
    /// Row instructions that become possible after the pass.
    pub row: Vec<Op>,
}

/// A program lowered for a [`Form`].
pub struct Code {
    /// Scalar registers with a fixed value.
    pub consts: Vec<(u16, f32)>,
    /// Once per unit of work.
    pub scalars: Vec<Op>,
    /// Row instructions before the first pass ([`Style::Passes`]).
    pub rows: Vec<Op>,
    pub passes: Vec<Pass>,
    /// The last pass, or all of a [`Style::Whole`] program.
    pub body: Vec<Op>,
    pub stores: Vec<Store>,
    pub row_stores: Vec<Store>,
    /// Input ports whose next tile is fetched while one runs ([`Style::Whole`]).
    pub ahead: Vec<u16>,
    pub n_elem: usize,
    pub n_row: usize,
    pub n_scalar: usize,
}

struct Lowering<'a> {
    program: &'a Program,
    kernels: &'a [Option<ops::Unary>],
    infos: &'a [RegInfo],
    form: &'a Form,
    class: Vec<Class>,
    live: Vec<bool>,
    /// Scalar or row register of each value of those classes.
    slot: Vec<u16>,
    /// Number of each `index` instruction among the virtual ports.
    index_port: Vec<u16>,
    direct_dst: Vec<Option<u16>>,
    n_row: usize,
    n_scalar: usize,
    n_elem: usize,
}

/// A straight run of block instructions over virtual element registers.
#[derive(Default)]
struct Section {
    ops: Vec<Op>,
    elem: Vec<Option<Src>>,
    spread: Vec<Option<Src>>,
    count: u16,
}

/// Lowers `program`; `infos` is its check's result.
pub fn lower(program: &Program, infos: &[RegInfo], form: &Form) -> Code {
    let n = program.code.len();
    let short = shorten(program, infos);
    let mut l = Lowering {
        program: &short.program,
        kernels: &short.kernels,
        infos,
        form,
        class: Vec::with_capacity(n),
        live: vec![false; n],
        slot: vec![0; n],
        index_port: vec![0; n],
        direct_dst: vec![None; n],
        n_row: 0,
        n_scalar: 0,
        n_elem: 0,
    };
    l.classify();
    l.run()
}

impl Lowering<'_> {
    fn classify(&mut self) {
        let program = self.program;
        let mut indices = 0;
        for (i, instr) in program.code.iter().enumerate() {
            let of = |r: Reg, l: &Self| l.class[r as usize];
            let class = match *instr {
                Instr::Load { port } => self.form.inputs[port as usize],
                Instr::Real(_) | Instr::Int(_) | Instr::Bool(_) => Class::Scalar,
                Instr::Index { .. } => {
                    self.index_port[i] = indices;
                    indices += 1;
                    self.form.index[i]
                }
                Instr::Uniform { .. } => Class::Elem,
                Instr::Reduce(..) => Class::Row,
                _ => instr.operands().map(|r| of(r, self)).max().expect("an operand"),
            };
            self.class.push(class);
        }
        for out in &program.outputs {
            self.live[out.reg as usize] = true;
        }
        for (i, instr) in program.code.iter().enumerate().rev() {
            if self.live[i] {
                instr.operands().for_each(|r| self.live[r as usize] = true);
            }
        }
        for i in (0..n(program)).filter(|&i| self.live[i]) {
            match self.class[i] {
                Class::Scalar => {
                    self.slot[i] = self.n_scalar as u16;
                    self.n_scalar += 1;
                }
                Class::Row => {
                    self.slot[i] = self.n_row as u16;
                    self.n_row += 1;
                }
                Class::Elem => {}
            }
        }
        for (o, out) in program.outputs.iter().enumerate() {
            let r = out.reg as usize;
            let computed = !matches!(program.code[r], Instr::Load { .. });
            if self.form.direct_out[o]
                && self.class[r] == Class::Elem
                && computed
                && out.dtype == DType::F32
                && self.direct_dst[r].is_none()
            {
                self.direct_dst[r] = Some(o as u16);
            }
        }
    }

    /// Whether an output is stored once per row.
    fn stored_per_row(&self, reg: Reg) -> bool {
        self.form.rows && self.infos[reg as usize].row
    }

    fn run(mut self) -> Code {
        let program = self.program;
        let consts = (0..n(program))
            .filter(|&i| self.live[i])
            .filter_map(|i| {
                let bits = match program.code[i] {
                    Instr::Real(x) => x,
                    Instr::Int(x) => f32::from_bits(x as u32),
                    Instr::Bool(x) => f32::from_bits(u32::from(x)),
                    _ => return None,
                };
                Some((self.slot[i], bits))
            })
            .collect();
        let is_const =
            |i: usize| matches!(program.code[i], Instr::Real(_) | Instr::Int(_) | Instr::Bool(_));
        let scalar_regs: Vec<usize> = (0..n(program))
            .filter(|&i| self.live[i] && self.class[i] == Class::Scalar && !is_const(i))
            .collect();
        let mut section = self.section();
        for &i in &scalar_regs {
            self.emit(&mut section, i, false);
        }
        let scalars = section.ops;

        let mut code = Code {
            consts,
            scalars,
            rows: vec![],
            passes: vec![],
            body: vec![],
            stores: vec![],
            row_stores: vec![],
            ahead: vec![],
            n_elem: 0,
            n_row: 0,
            n_scalar: self.n_scalar,
        };
        if self.form.style == Style::Passes {
            self.passes(&mut code);
        }
        let mut section = self.section();
        if self.form.style == Style::Whole {
            for i in 0..n(program) {
                if self.live[i] && self.class[i] != Class::Scalar {
                    self.emit(&mut section, i, true);
                }
            }
        } else {
            let roots = program.outputs.iter().filter(|o| !self.stored_per_row(o.reg));
            let needed = self.elements_for(roots.map(|o| o.reg).collect());
            for i in needed {
                self.emit(&mut section, i, true);
            }
        }
        for (o, out) in program.outputs.iter().enumerate() {
            let (o16, r) = (o as u16, out.reg as usize);
            if self.stored_per_row(out.reg) {
                let src = if self.class[r] == Class::Row {
                    Src::Row(self.slot[r])
                } else {
                    // The same in every row: spread over a row register of its own.
                    let row = self.n_row as u16;
                    self.n_row += 1;
                    let target = if self.form.style == Style::Whole {
                        &mut section.ops
                    } else {
                        &mut code.rows
                    };
                    target.push(op(Run::Spread, Dst::Row(row), Src::Scalar(self.slot[r])));
                    Src::Row(row)
                };
                code.row_stores.push(Store { port: o16, src });
            } else if self.direct_dst[r] != Some(o16) {
                let src = self.lanes(&mut section, out.reg);
                code.stores.push(Store { port: o16, src });
            }
        }
        let mut uses: Vec<Src> = code.stores.iter().map(|s| s.src).collect();
        code.body = self.allocate(section, &mut uses);
        for (s, src) in code.stores.iter_mut().zip(uses) {
            s.src = src;
        }
        code.n_elem = self.n_elem;
        code.n_row = self.n_row;
        code.ahead = self.ahead(&code.body);
        code
    }

    /// Input ports worth fetching ahead: where there is arithmetic enough to hide it behind.
    fn ahead(&self, body: &[Op]) -> Vec<u16> {
        let ports = (0..self.form.inputs.len())
            .filter(|&p| self.form.inputs[p] == Class::Elem && self.form.direct_in[p]);
        if body.len() < 4 { vec![] } else { ports.map(|p| p as u16).collect() }
    }

    fn passes(&mut self, code: &mut Code) {
        let program = self.program;
        let live_rows: Vec<usize> =
            (0..n(program)).filter(|&i| self.live[i] && self.class[i] == Class::Row).collect();
        let is_reduce = |i: usize| matches!(program.code[i], Instr::Reduce(..));
        let last = live_rows.iter().map(|&i| self.infos[i].stage).max().unwrap_or(0);
        let mut section = self.section();
        for &i in live_rows.iter().filter(|&&i| self.infos[i].stage == 0) {
            self.emit(&mut section, i, false);
        }
        code.rows = section.ops;
        for stage in 1..=last {
            let here: Vec<usize> =
                live_rows.iter().copied().filter(|&i| self.infos[i].stage == stage).collect();
            let reduces: Vec<(ReduceOp, Reg, u16)> = here
                .iter()
                .filter_map(|&i| match program.code[i] {
                    Instr::Reduce(op, a) => Some((op, a, self.slot[i])),
                    _ => None,
                })
                .collect();
            let mut section = self.section();
            for i in self.elements_for(reduces.iter().map(|r| r.1).collect()) {
                self.emit(&mut section, i, false);
            }
            let mut reductions: Vec<Reduction> = reduces
                .iter()
                .map(|&(op, a, row)| Reduction { op, src: self.lanes(&mut section, a), row })
                .collect();
            let mut uses: Vec<Src> = reductions.iter().map(|r| r.src).collect();
            let elem = self.allocate(section, &mut uses);
            reductions.iter_mut().zip(uses).for_each(|(r, src)| r.src = src);
            let mut section = self.section();
            for &i in here.iter().filter(|&&i| !is_reduce(i)) {
                self.emit(&mut section, i, false);
            }
            code.passes.push(Pass { elem, reductions, row: section.ops });
        }
    }

    /// The element instructions that `roots` need, in order.
    fn elements_for(&self, roots: Vec<Reg>) -> Vec<usize> {
        let mut needed = vec![false; n(self.program)];
        for r in roots {
            needed[r as usize] = self.class[r as usize] == Class::Elem;
        }
        for i in (0..n(self.program)).rev() {
            if needed[i] {
                for r in self.program.code[i].operands() {
                    needed[r as usize] |= self.class[r as usize] == Class::Elem;
                }
            }
        }
        (0..n(self.program)).filter(|&i| needed[i]).collect()
    }

    fn section(&self) -> Section {
        let n = n(self.program);
        Section { ops: vec![], elem: vec![None; n], spread: vec![None; n], count: 0 }
    }

    /// The lanes of a value of any class, spread if need be.
    fn lanes(&mut self, s: &mut Section, r: Reg) -> Src {
        let i = r as usize;
        if self.class[i] == Class::Elem {
            return s.elem[i].expect("computed earlier in the section");
        }
        if self.class[i] == Class::Row && self.form.row_form == RowForm::Lanes {
            return Src::Row(self.slot[i]);
        }
        if let Some(src) = s.spread[i] {
            return src;
        }
        let from = match self.class[i] {
            Class::Scalar => Src::Scalar(self.slot[i]),
            _ if self.form.row_form == RowForm::Scalar => Src::RowScalar(self.slot[i]),
            _ => Src::Row(self.slot[i]),
        };
        let dst = s.count;
        s.count += 1;
        s.ops.push(op(Run::Spread, Dst::Elem(dst), from));
        s.spread[i] = Some(Src::Elem(dst));
        Src::Elem(dst)
    }

    /// An operand of an instruction of class `at`.
    fn operand(&mut self, s: &mut Section, r: Reg, at: Class) -> Src {
        let i = r as usize;
        match (self.class[i], at) {
            (Class::Scalar, _) => Src::Scalar(self.slot[i]),
            (Class::Row, Class::Elem) => match self.form.row_form {
                RowForm::Scalar => Src::RowScalar(self.slot[i]),
                _ => self.lanes(s, r),
            },
            (Class::Row, _) => Src::Row(self.slot[i]),
            (Class::Elem, _) => s.elem[i].expect("computed earlier in the section"),
        }
    }

    /// Appends the instruction of register `i`. `last`: this section stores the outputs.
    fn emit(&mut self, s: &mut Section, i: usize, last: bool) {
        let program = self.program;
        let class = self.class[i];
        let instr = program.code[i];
        if let Instr::Load { port } = instr
            && class == Class::Elem
            && self.form.direct_in[port as usize]
            && !program.outputs.iter().any(|o| o.reg as usize == i)
        {
            s.elem[i] = Some(Src::In(port as u16));
            return;
        }
        let mut args = [Src::None; 3];
        let kind = |r: Reg| self.infos[r as usize].kind;
        let run = match instr {
            Instr::Load { port } => Run::Load(port as u16),
            Instr::Real(_) | Instr::Int(_) | Instr::Bool(_) => return,
            Instr::Index { .. } => Run::Index(self.index_port[i]),
            Instr::Unary(op, a) => {
                Run::Unary(self.kernels[i].unwrap_or_else(|| ops::unary(op, kind(a))))
            }
            Instr::Round(d, _) => Run::Unary(ops::round(d)),
            Instr::Binary(op, a, _) => Run::Binary(ops::binary(op, kind(a))),
            Instr::Select { .. } => Run::Select,
            Instr::Uniform { stream, .. } => Run::Uniform { stream },
            Instr::Reduce(op, _) => Run::Reduce(op),
        };
        for (k, r) in instr.operands().enumerate() {
            let needs_lanes = class != Class::Scalar
                && match instr {
                    Instr::Unary(..) | Instr::Round(..) | Instr::Reduce(..) => true,
                    Instr::Select { .. } => k == 0,
                    Instr::Uniform { .. } => self.class[r as usize] != Class::Scalar,
                    _ => false,
                };
            let at = if matches!(instr, Instr::Reduce(..)) { Class::Elem } else { class };
            args[k] = match (needs_lanes, at) {
                (true, Class::Elem) => self.lanes(s, r),
                (true, _) if self.class[r as usize] == Class::Row => {
                    Src::Row(self.slot[r as usize])
                }
                (true, _) => self.row_lanes(s, r),
                _ => self.operand(s, r, at),
            };
        }
        let dst = match class {
            Class::Scalar => Dst::Scalar(self.slot[i]),
            Class::Row => Dst::Row(self.slot[i]),
            Class::Elem => match self.direct_dst[i] {
                Some(o) if last => {
                    s.elem[i] = Some(Src::Out(o));
                    Dst::Out(o)
                }
                _ => {
                    let d = s.count;
                    s.count += 1;
                    s.elem[i] = Some(Src::Elem(d));
                    Dst::Elem(d)
                }
            },
        };
        s.ops.push(Op { run, dst, a: args[0], b: args[1], c: args[2] });
    }

    /// A scalar spread over a fresh row register.
    fn row_lanes(&mut self, s: &mut Section, r: Reg) -> Src {
        let row = self.n_row as u16;
        self.n_row += 1;
        s.ops.push(op(Run::Spread, Dst::Row(row), Src::Scalar(self.slot[r as usize])));
        Src::Row(row)
    }

    /// Gives the virtual element registers of a section physical ones; `uses` are read at its end.
    fn allocate(&mut self, section: Section, uses: &mut [Src]) -> Vec<Op> {
        let mut ops = section.ops;
        let count = section.count as usize;
        let mut last_use = vec![0usize; count];
        for (at, op) in ops.iter().enumerate() {
            for src in [op.a, op.b, op.c] {
                if let Src::Elem(v) = src {
                    last_use[v as usize] = at;
                }
            }
        }
        for src in uses.iter() {
            if let Src::Elem(v) = *src {
                last_use[v as usize] = usize::MAX;
            }
        }
        let mut place = vec![0u16; count];
        let mut free: Vec<u16> = vec![];
        let mut used = 0;
        for (at, op) in ops.iter_mut().enumerate() {
            let mut dead = [None; 3];
            for (k, src) in [&mut op.a, &mut op.b, &mut op.c].into_iter().enumerate() {
                if let Src::Elem(v) = src {
                    let virt = *v as usize;
                    *v = place[virt];
                    if last_use[virt] == at && !dead.contains(&Some(place[virt])) {
                        dead[k] = Some(place[virt]);
                    }
                }
            }
            // The result never shares a register with an operand: kernels read and write
            // distinct slices.
            if let Dst::Elem(v) = &mut op.dst {
                let p = free.pop().unwrap_or_else(|| {
                    used += 1;
                    used - 1
                });
                place[*v as usize] = p;
                *v = p;
            }
            free.extend(dead.into_iter().flatten());
        }
        for src in uses.iter_mut() {
            if let Src::Elem(v) = src {
                *v = place[*v as usize];
            }
        }
        self.n_elem = self.n_elem.max(used as usize);
        ops
    }
}

fn n(program: &Program) -> usize {
    program.code.len()
}

fn op(run: Run, dst: Dst, a: Src) -> Op {
    Op { run, dst, a, b: Src::None, c: Src::None }
}
