//! Sums and extrema of integers over axes, exact.

use super::reduce::over_axes;
use super::{
    GradCx, Grads, Lowering, NumericClass, OpDef, ProgramBuilder, Reduce, RowSpec, signature,
};
use crate::ir::TensorType;
use precast_plan::{BinaryOp, DType, Instr, ReduceOp, Reg, UnaryOp};

op! {
    /// Over `axes` (ascending), which disappear. A sum beyond 32 bits is the nearest i32.
    ReduceInt = "reduce_int" { f: ReduceOp, axes: Vec<usize> }
}

/// Up to here f32 holds every integer, so that sums that stay below are exact in any order.
const EXACT: usize = 1 << 24;

impl OpDef for ReduceInt {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "i")?;
        let real = TensorType::f32(x[0].shape.clone());
        let y = Reduce { f: self.f, axes: self.axes.clone() }.infer(&[&real])?;
        let count: usize = self.axes.iter().map(|&a| x[0].shape[a]).product();
        if count > EXACT {
            return Err(format!("the {} of {count} integers; at most {EXACT}", self.f.name()));
        }
        Ok(vec![TensorType::new(DType::I32, y[0].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Leaf
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn gradient(&self, _: &mut GradCx) -> Result<Grads, String> {
        Ok(vec![None])
    }
    fn row_spec(&self, x: &[&TensorType], _: &[&TensorType]) -> RowSpec {
        over_axes(&x[0].shape, &self.axes)
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        vec![match self.f {
            ReduceOp::Sum => sum(b, x[0]),
            ReduceOp::Max | ReduceOp::Min => extremum(b, self.f, x[0]),
        }]
    }
}

/// The lowest bits of an integer as a number from 0 to `most`, one less than a power of two, and what
/// is left, divided by that power: `x = left · (most + 1) + lowest`, also below zero.
fn cut(b: &mut ProgramBuilder, x: Reg, most: i32) -> (Reg, Reg) {
    let (mask, base) = (b.int(most), b.int(most + 1));
    let lowest = b.bin(BinaryOp::And, x, mask);
    let above = b.sub(x, lowest);
    (lowest, b.div(above, base))
}

/// Programs reduce in f32: digits of so few bits that their sums are exact, then carried.
fn sum(b: &mut ProgramBuilder, x: Reg) -> Reg {
    let bits = (1..=8).rev().find(|&bits| ((1 << bits) - 1) * b.row_elements <= EXACT).unwrap_or(1);
    let most = (1 << bits) - 1;
    let mut digits = vec![];
    let mut left = x;
    for _ in 0..31 / bits {
        let (lowest, above) = cut(b, left, most);
        digits.push(lowest);
        left = above;
    }
    // The last digit has the sign, and is no larger than the others.
    digits.push(left);
    let total = |b: &mut ProgramBuilder, digit: Reg| {
        let real = b.un(UnaryOp::ToReal, digit);
        let total = b.sum(real);
        b.un(UnaryOp::ToInt, total)
    };
    let sums: Vec<Reg> = digits.into_iter().map(|d| total(b, d)).collect();
    let (&last, lower) = sums.split_last().expect("one digit at least");
    let mut carried = vec![];
    let mut carry = b.int(0);
    for &s in lower {
        let total = b.add(s, carry);
        let (digit, above) = cut(b, total, most);
        carried.push(digit);
        carry = above;
    }
    let high = b.add(last, carry);
    let base = b.int(most + 1);
    let value = carried.iter().rev().fold(high, |v, &digit| {
        let v = b.mul(v, base);
        b.add(v, digit)
    });
    // What the last digit of an i32 can be.
    let end = 1i32 << (31 - bits * (31 / bits));
    let (first, last) = (b.int(-end), b.int(end - 1));
    let (below, above) = (b.bin(BinaryOp::Lt, high, first), b.bin(BinaryOp::Lt, last, high));
    let (least, largest) = (b.int(i32::MIN), b.int(i32::MAX));
    let value = b.select(below, least, value);
    b.select(above, largest, value)
}

/// The extremum of the upper halves, then that of the lower halves of those that have it.
fn extremum(b: &mut ProgramBuilder, f: ReduceOp, x: Reg) -> Reg {
    let (low, high) = cut(b, x, 0xffff);
    let real = b.un(UnaryOp::ToReal, high);
    let best = b.push(Instr::Reduce(f, real));
    let has_it = b.bin(BinaryOp::Eq, real, best);
    let low = b.un(UnaryOp::ToReal, low);
    let never = b.real(if f == ReduceOp::Max { -1.0 } else { 65536.0 });
    let low = b.select(has_it, low, never);
    let low = b.push(Instr::Reduce(f, low));
    let (best, low) = (b.un(UnaryOp::ToInt, best), b.un(UnaryOp::ToInt, low));
    let base = b.int(1 << 16);
    let best = b.mul(best, base);
    b.add(best, low)
}
