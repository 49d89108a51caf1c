//! Builds the instruction list of a row program; equal instructions are one.

use precast_plan::{BinaryOp, Instr, ReduceOp, Reg, UnaryOp};

/// Appends instructions and hands out registers.
#[derive(Debug, Default)]
pub struct ProgramBuilder {
    pub code: Vec<Instr>,
    /// Elements of one row: the product of the reduced extents.
    pub row_elements: usize,
    /// The last axis of the operation's iteration space, and its extent.
    pub last_axis: usize,
    pub last_extent: usize,
}

impl ProgramBuilder {
    pub fn push(&mut self, i: Instr) -> Reg {
        // Literals are one where their bits are: -0.0 and 0.0 differ, a NaN equals itself.
        let same = |c: &Instr| match (c, &i) {
            (Instr::Real(a), Instr::Real(b)) => a.to_bits() == b.to_bits(),
            (a, b) => *a == *b,
        };
        if let Some(at) = self.code.iter().position(same) {
            return at as Reg;
        }
        self.code.push(i);
        (self.code.len() - 1) as Reg
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
