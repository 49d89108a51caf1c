//! Builds the instruction list of a row program; equal instructions are one.

use precast_plan::{BinaryOp, Instr, ReduceOp, Reg, UnaryOp};
use rustc_hash::FxHashMap;

/// An instruction as numbers: its kind, its function, its operands.
pub(crate) type Key = (u8, u32, [u32; 3]);

/// Literals are one where their bits are: -0.0 and 0.0 differ, a NaN equals itself.
pub(crate) fn key(i: &Instr) -> Key {
    match *i {
        Instr::Load { port } => (0, port, [0; 3]),
        Instr::Real(x) => (1, x.to_bits(), [0; 3]),
        Instr::Int(x) => (2, x.cast_unsigned(), [0; 3]),
        Instr::Bool(x) => (3, u32::from(x), [0; 3]),
        Instr::Index { axis } => (4, axis, [0; 3]),
        Instr::Unary(f, a) => (5, f as u32, [a, 0, 0]),
        Instr::Binary(f, a, b) => (6, f as u32, [a, b, 0]),
        Instr::Select { cond, then, otherwise } => (7, 0, [cond, then, otherwise]),
        Instr::Round(d, a) => (8, d as u32, [a, 0, 0]),
        Instr::Reduce(f, a) => (9, f as u32, [a, 0, 0]),
        Instr::Uniform { seed, step, stream } => (10, stream, [seed, step, 0]),
    }
}

/// Appends instructions and hands out registers.
#[derive(Clone, Debug, Default)]
pub struct ProgramBuilder {
    pub code: Vec<Instr>,
    /// Elements of one row: the product of the reduced extents.
    pub row_elements: usize,
    /// The last axis of the operation's iteration space, and its extent.
    pub last_axis: usize,
    pub last_extent: usize,
    /// Registers by what they hold.
    pub(crate) seen: FxHashMap<Key, Reg>,
}

impl ProgramBuilder {
    pub fn push(&mut self, i: Instr) -> Reg {
        let next = self.code.len() as Reg;
        let reg = *self.seen.entry(key(&i)).or_insert(next);
        if reg == next {
            self.code.push(i);
        }
        reg
    }
    pub fn real(&mut self, x: f64) -> Reg {
        self.push(Instr::Real(x as f32))
    }
    pub fn int(&mut self, x: i32) -> Reg {
        self.push(Instr::Int(x))
    }
    pub fn un(&mut self, op: UnaryOp, a: Reg) -> Reg {
        self.push(Instr::Unary(op, a))
    }
    pub fn bin(&mut self, op: BinaryOp, a: Reg, b: Reg) -> Reg {
        self.push(Instr::Binary(op, a, b))
    }
    pub fn add(&mut self, a: Reg, b: Reg) -> Reg {
        self.bin(BinaryOp::Add, a, b)
    }
    pub fn sub(&mut self, a: Reg, b: Reg) -> Reg {
        self.bin(BinaryOp::Sub, a, b)
    }
    pub fn mul(&mut self, a: Reg, b: Reg) -> Reg {
        self.bin(BinaryOp::Mul, a, b)
    }
    pub fn div(&mut self, a: Reg, b: Reg) -> Reg {
        self.bin(BinaryOp::Div, a, b)
    }
    /// `a * x` for a literal.
    pub fn scale(&mut self, a: Reg, x: f64) -> Reg {
        let c = self.real(x);
        self.mul(a, c)
    }
    /// The literal 1 / [`ProgramBuilder::row_elements`], for means.
    pub fn ones_over_count(&mut self) -> Reg {
        self.real(1.0 / self.row_elements as f64)
    }
    pub fn select(&mut self, cond: Reg, then: Reg, otherwise: Reg) -> Reg {
        self.push(Instr::Select { cond, then, otherwise })
    }
    pub fn sum(&mut self, a: Reg) -> Reg {
        self.push(Instr::Reduce(ReduceOp::Sum, a))
    }
    pub fn max_over(&mut self, a: Reg) -> Reg {
        self.push(Instr::Reduce(ReduceOp::Max, a))
    }
    pub fn index(&mut self, axis: usize) -> Reg {
        self.push(Instr::Index { axis: axis as u32 })
    }
}
