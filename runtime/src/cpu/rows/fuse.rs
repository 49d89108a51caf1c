//! Shortcuts taken before lowering: operations that do nothing are skipped, and the tanh form of
//! GELU and its slope become one lane kernel each. Exact: every value keeps its bits.

use super::ops;
use precast_plan::{BinaryOp, Instr, Program, Reg, RegInfo, UnaryOp};

/// A program with shortcuts; registers keep their numbers.
pub struct Short {
    pub program: Program,
    /// Registers whose `unary` instruction runs this kernel instead.
    pub kernels: Vec<Option<ops::Unary>>,
}

/// Finds the shortcuts of `program`, whose check gave `infos`.
pub fn shorten(program: &Program, infos: &[RegInfo]) -> Short {
    let mut p = program.clone();
    let mut same: Vec<Reg> = (0..p.code.len() as Reg).collect();
    for i in 0..p.code.len() {
        p.code[i] = p.code[i].map_operands(|r| same[r as usize]);
        let real = |r: Reg, x: f32| p.code[r as usize] == Instr::Real(x);
        let operand = match p.code[i] {
            Instr::Binary(BinaryOp::Mul, a, one) if real(one, 1.0) => Some(a),
            Instr::Binary(BinaryOp::Mul, one, a) if real(one, 1.0) => Some(a),
            Instr::Select { cond, then, otherwise } => match p.code[cond as usize] {
                Instr::Bool(true) => Some(then),
                Instr::Bool(false) => Some(otherwise),
                _ => None,
            },
            _ => None,
        };
        // A value per row that stands for one per element would change how it is stored.
        if let Some(a) = operand
            && infos[a as usize].row == infos[i].row
        {
            same[i] = a;
        }
    }
    for out in &mut p.outputs {
        out.reg = same[out.reg as usize];
    }
    let mut kernels = vec![None; p.code.len()];
    for x in 0..p.code.len() as Reg {
        for (y, kernel) in gelu_tanh(&p.code, x) {
            p.code[y as usize] = Instr::Unary(UnaryOp::Tanh, x);
            kernels[y as usize] = Some(kernel);
        }
    }
    Short { program: p, kernels }
}

/// The registers that hold GELU of `x` in its tanh form, and its slope, with their kernels.
fn gelu_tanh(code: &[Instr], x: Reg) -> Vec<(Reg, ops::Unary)> {
    let position = |f: &dyn Fn(Instr) -> bool| code.iter().position(|&i| f(i)).map(|r| r as Reg);
    let binary = |op: BinaryOp, a: Reg, b: Reg| {
        position(&|i| i == Instr::Binary(op, a, b) || i == Instr::Binary(op, b, a))
    };
    let by = |op: BinaryOp, a: Reg, c: f32| {
        let is = |r: Reg| code[r as usize] == Instr::Real(c);
        position(&|i| match i {
            Instr::Binary(o, p, q) => o == op && (p == a && is(q) || q == a && is(p)),
            _ => false,
        })
    };
    let (add, mul) = (BinaryOp::Add, BinaryOp::Mul);
    let mut found = vec![];
    // Each step ends the search if the program has no such instruction.
    let mut search = || -> Option<()> {
        let xx = binary(mul, x, x)?;
        let p = by(add, by(mul, xx, ops::GELU_CUBIC)?, 1.0)?;
        let arg = by(mul, binary(mul, x, p)?, ops::GELU_SCALE)?;
        let t = position(&|i| i == Instr::Unary(UnaryOp::Tanh, arg))?;
        let t1 = by(add, t, 1.0)?;
        if let Some(y) = by(mul, x, 0.5).and_then(|half| binary(mul, half, t1)) {
            found.push((y, ops::GELU_TANH));
        }
        let s = by(add, by(mul, xx, ops::GELU_CUBIC_SLOPE)?, 1.0)?;
        let s = by(mul, s, ops::GELU_SCALE)?;
        let tt = binary(mul, t, t)?;
        let one_less = position(&|i| match i {
            Instr::Binary(BinaryOp::Sub, a, b) => b == tt && code[a as usize] == Instr::Real(1.0),
            _ => false,
        })?;
        let inner = binary(mul, binary(mul, one_less, s)?, x)?;
        found.push((by(mul, binary(add, t1, inner)?, 0.5)?, ops::GELU_TANH_SLOPE));
        Some(())
    };
    search();
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(code: &str, outputs: &[Reg]) -> Program {
        use precast_plan::{DType, InPort, OutPort};
        Program {
            name: "p".into(),
            inputs: vec![InPort { dtype: DType::F32, row: false }],
            code: code.split('|').map(|l| l.parse().expect("an instruction")).collect(),
            outputs: outputs.iter().map(|&reg| OutPort { dtype: DType::F32, reg }).collect(),
        }
    }

    const GELU: &str = "load 0|mul %0 %0|real 0.044715|mul %1 %2|real 1|add %3 %4|mul %0 %5|\
        real 0.7978846|mul %6 %7|tanh %8|add %9 %4|real 0.5|mul %0 %11|mul %12 %10|\
        real 0.134145|mul %1 %14|add %15 %4|mul %16 %7|mul %9 %9|sub %4 %18|mul %19 %17|\
        mul %20 %0|add %10 %21|mul %22 %11";

    #[test]
    fn gelu_and_its_slope_are_found_and_keep_every_bit() {
        let p = program(GELU, &[13, 23]);
        let short = shorten(&p, &p.check().unwrap());
        let found = |y: usize| {
            assert_eq!(short.program.code[y], Instr::Unary(UnaryOp::Tanh, 0));
            short.kernels[y].expect("a kernel")
        };
        let x: Vec<f32> = (-4000..4000).map(|i| i as f32 * 0.003_1).collect();
        let [mut y, mut slope, mut t] = [(); 3].map(|()| vec![0f32; x.len()]);
        found(13)(&x, &mut y);
        found(23)(&x, &mut slope);
        let arg: Vec<f32> =
            x.iter().map(|&x| x * (x * x * 0.044_715 + 1.0) * 0.797_884_6).collect();
        ops::unary(UnaryOp::Tanh, precast_plan::Kind::Real)(&arg, &mut t);
        for i in 0..x.len() {
            let (x, t) = (x[i], t[i]);
            assert_eq!(y[i].to_bits(), (x * 0.5 * (t + 1.0)).to_bits());
            let s = (x * x * 0.134_145 + 1.0) * 0.797_884_6;
            let want = (t + 1.0 + (1.0 - t * t) * s * x) * 0.5;
            assert_eq!(slope[i].to_bits(), want.to_bits());
        }
    }

    #[test]
    fn a_formula_that_is_almost_gelu_is_left_alone() {
        let p = program(&GELU.replace("0.044715", "0.0447"), &[13, 23]);
        let short = shorten(&p, &p.check().unwrap());
        assert!(short.kernels.iter().all(Option::is_none));
        assert_eq!(short.program, p);
    }

    #[test]
    fn operations_that_do_nothing_are_skipped() {
        let p = program("load 0|real 1|mul %0 %1|bool true|neg %2|select %3 %4 %0", &[5]);
        let short = shorten(&p, &p.check().unwrap());
        assert_eq!(short.program.outputs[0].reg, 4);
        assert_eq!(short.program.code[4], Instr::Unary(UnaryOp::Neg, 0));
    }
}
