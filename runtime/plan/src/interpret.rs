//! The meaning of a row program, point by point: what backends are tested against.

use crate::dtype::{DType, Kind};
use crate::program::{BinaryOp, Instr, Program, ReduceOp, UnaryOp};

/// The value of a register at one point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Value {
    Real(f32),
    Int(i32),
    Bool(bool),
}

impl Value {
    fn real(self) -> f32 {
        match self {
            Value::Real(x) => x,
            _ => unreachable!("checked program"),
        }
    }

    fn int(self) -> i32 {
        match self {
            Value::Int(x) => x,
            _ => unreachable!("checked program"),
        }
    }

    fn bool(self) -> bool {
        match self {
            Value::Bool(x) => x,
            _ => unreachable!("checked program"),
        }
    }
}

/// Runs a program over the space `dims`, whose last `reduced` axes are reduced. `load(port, point)`
/// gives the elements of the inputs. Returns, for each output, the values before rounding in
/// row-major order of the points, or of the kept points where the register is per row.
///
/// Elementary functions are taken in f64 and rounded; sums are in f64.
///
/// # Errors
/// What [`Program::check`] finds.
pub fn interpret(
    program: &Program,
    dims: &[usize],
    reduced: usize,
    mut load: impl FnMut(usize, &[usize]) -> Value,
) -> Result<Vec<Vec<Value>>, String> {
    let infos = program.check()?;
    let kept = dims.len() - reduced;
    let columns: usize = dims[kept..].iter().product();
    let points: usize = dims.iter().product();
    let at = |mut linear: usize| -> Vec<usize> {
        let mut point = vec![0; dims.len()];
        for d in (0..dims.len()).rev() {
            point[d] = linear % dims[d];
            linear /= dims[d];
        }
        point
    };
    let mut regs: Vec<Vec<Value>> = vec![];
    for instr in &program.code {
        let mut out = Vec::with_capacity(points);
        if let Instr::Reduce(op, a) = *instr {
            for row in regs[a as usize].chunks(columns) {
                let r = reduce(op, row.iter().map(|v| v.real()));
                out.extend(std::iter::repeat_n(Value::Real(r), columns));
            }
        } else {
            #[allow(clippy::needless_range_loop)] // `p` is a point; it indexes some registers only
            for p in 0..points {
                let of = |r: u32| regs[r as usize][p];
                out.push(match *instr {
                    Instr::Load { port } => load(port as usize, &at(p)),
                    Instr::Real(x) => Value::Real(x),
                    Instr::Int(x) => Value::Int(x),
                    Instr::Bool(x) => Value::Bool(x),
                    Instr::Index { axis } => Value::Int(at(p)[axis as usize] as i32),
                    Instr::Unary(op, a) => unary(op, of(a)),
                    Instr::Binary(op, a, b) => binary(op, of(a), of(b)),
                    Instr::Select { cond, then, otherwise } => {
                        if of(cond).bool() {
                            of(then)
                        } else {
                            of(otherwise)
                        }
                    }
                    Instr::Round(d, a) => Value::Real(d.round(of(a).real())),
                    Instr::Reduce(..) => unreachable!("handled above"),
                    Instr::Uniform { seed, step, stream } => {
                        let key = [of(seed).int() as u32, of(step).int() as u32];
                        let c = [p as u32, (p as u64 >> 32) as u32, stream, 0];
                        Value::Real((philox(c, key)[0] >> 8) as f32 / 16_777_216.0)
                    }
                });
            }
        }
        regs.push(out);
    }
    Ok(program
        .outputs
        .iter()
        .map(|o| {
            let step = if infos[o.reg as usize].row { columns } else { 1 };
            regs[o.reg as usize].iter().copied().step_by(step).collect()
        })
        .collect())
}

fn reduce(op: ReduceOp, values: impl Iterator<Item = f32>) -> f32 {
    match op {
        ReduceOp::Sum => values.map(f64::from).sum::<f64>() as f32,
        ReduceOp::Max => values.fold(f32::NEG_INFINITY, |m, x| pick(m, x, m > x)),
        ReduceOp::Min => values.fold(f32::INFINITY, |m, x| pick(m, x, m < x)),
    }
}

fn pick(a: f32, b: f32, first: bool) -> f32 {
    if a.is_nan() || b.is_nan() {
        f32::NAN
    } else if first {
        a
    } else {
        b
    }
}

fn unary(op: UnaryOp, v: Value) -> Value {
    let wide = |f: fn(f64) -> f64| Value::Real(f(f64::from(v.real())) as f32);
    match op {
        UnaryOp::Neg => match v {
            Value::Int(x) => Value::Int(x.wrapping_neg()),
            _ => Value::Real(-v.real()),
        },
        UnaryOp::Abs => match v {
            Value::Int(x) => Value::Int(x.wrapping_abs()),
            _ => Value::Real(v.real().abs()),
        },
        UnaryOp::Exp => wide(f64::exp),
        UnaryOp::Expm1 => wide(f64::exp_m1),
        UnaryOp::Log => wide(f64::ln),
        UnaryOp::Log1p => wide(f64::ln_1p),
        UnaryOp::Sqrt => wide(f64::sqrt),
        UnaryOp::Rsqrt => wide(|x| 1.0 / x.sqrt()),
        UnaryOp::Recip => wide(f64::recip),
        UnaryOp::Sin => wide(f64::sin),
        UnaryOp::Cos => wide(f64::cos),
        UnaryOp::Tanh => wide(f64::tanh),
        UnaryOp::Erf => wide(erf),
        UnaryOp::Sigmoid => wide(|x| 1.0 / (1.0 + (-x).exp())),
        UnaryOp::Tan => wide(f64::tan),
        UnaryOp::Asin => wide(f64::asin),
        UnaryOp::Acos => wide(f64::acos),
        UnaryOp::Atan => wide(f64::atan),
        UnaryOp::Sinh => wide(f64::sinh),
        UnaryOp::Cosh => wide(f64::cosh),
        UnaryOp::Asinh => wide(f64::asinh),
        UnaryOp::Acosh => wide(f64::acosh),
        UnaryOp::Atanh => wide(f64::atanh),
        UnaryOp::Floor => wide(f64::floor),
        UnaryOp::Ceil => wide(f64::ceil),
        UnaryOp::RoundEven => wide(f64::round_ties_even),
        UnaryOp::IsFinite => Value::Bool(v.real().is_finite()),
        UnaryOp::Not => Value::Bool(!v.bool()),
        UnaryOp::ToReal => Value::Real(match v {
            Value::Real(x) => x,
            Value::Int(x) => x as f32,
            Value::Bool(x) => f32::from(u8::from(x)),
        }),
        UnaryOp::ToInt => Value::Int(match v {
            Value::Real(x) => x as i32,
            Value::Int(x) => x,
            Value::Bool(x) => i32::from(x),
        }),
        UnaryOp::ToBool => Value::Bool(match v {
            Value::Real(x) => x != 0.0,
            Value::Int(x) => x != 0,
            Value::Bool(x) => x,
        }),
    }
}

fn binary(op: BinaryOp, a: Value, b: Value) -> Value {
    match (a, b) {
        (Value::Real(x), Value::Real(y)) => match op {
            BinaryOp::Add => Value::Real(x + y),
            BinaryOp::Sub => Value::Real(x - y),
            BinaryOp::Mul => Value::Real(x * y),
            BinaryOp::Div => Value::Real(x / y),
            BinaryOp::Rem => Value::Real(x % y),
            BinaryOp::Max => Value::Real(pick(x, y, x > y)),
            BinaryOp::Min => Value::Real(pick(x, y, x < y)),
            BinaryOp::Pow => Value::Real(f64::from(x).powf(f64::from(y)) as f32),
            BinaryOp::Eq => Value::Bool(x == y),
            BinaryOp::Lt => Value::Bool(x < y),
            BinaryOp::Le => Value::Bool(x <= y),
            BinaryOp::And | BinaryOp::Or => unreachable!("checked program"),
        },
        (Value::Int(x), Value::Int(y)) => match op {
            BinaryOp::Add => Value::Int(x.wrapping_add(y)),
            BinaryOp::Sub => Value::Int(x.wrapping_sub(y)),
            BinaryOp::Mul => Value::Int(x.wrapping_mul(y)),
            BinaryOp::Div => Value::Int(if y == 0 { 0 } else { x.wrapping_div(y) }),
            BinaryOp::Rem => Value::Int(if y == 0 { x } else { x.wrapping_rem(y) }),
            BinaryOp::And => Value::Int(x & y),
            BinaryOp::Or => Value::Int(x | y),
            BinaryOp::Max => Value::Int(x.max(y)),
            BinaryOp::Min => Value::Int(x.min(y)),
            BinaryOp::Eq => Value::Bool(x == y),
            BinaryOp::Lt => Value::Bool(x < y),
            BinaryOp::Le => Value::Bool(x <= y),
            BinaryOp::Pow => unreachable!("checked program"),
        },
        (Value::Bool(x), Value::Bool(y)) => Value::Bool(match op {
            BinaryOp::And => x && y,
            BinaryOp::Or => x || y,
            BinaryOp::Eq => x == y,
            _ => unreachable!("checked program"),
        }),
        _ => unreachable!("checked program"),
    }
}

/// The error function: its Maclaurin series, and Laplace's continued fraction for the complement
/// (Abramowitz and Stegun, 7.1.5 and 7.1.14).
fn erf(x: f64) -> f64 {
    let a = x.abs();
    if x.is_nan() || a == 0.0 {
        return x;
    }
    if a < 3.0 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-18 * sum.abs() {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        return (sum * std::f64::consts::FRAC_2_SQRT_PI).copysign(x);
    }
    let f = (1..60).rev().fold(a, |f, k| a + f64::from(k) / 2.0 / f);
    (1.0 - (-a * a).exp() / (f * std::f64::consts::PI.sqrt())).copysign(x)
}

/// Philox 4x32-10 (Salmon et al., SC'11).
fn philox(mut c: [u32; 4], mut k: [u32; 2]) -> [u32; 4] {
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xD251_1F53;
        let p1 = u64::from(c[2]) * 0xCD9E_8D57;
        c = [
            (p1 >> 32) as u32 ^ c[1] ^ k[0],
            p1 as u32,
            (p0 >> 32) as u32 ^ c[3] ^ k[1],
            p0 as u32,
        ];
        k = [k[0].wrapping_add(0x9E37_79B9), k[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

impl Value {
    /// What a buffer of `dtype` gives back after this value was stored in it.
    pub fn stored(self, dtype: DType) -> Value {
        match (self, dtype.kind()) {
            (Value::Real(x), Kind::Real) => Value::Real(dtype.round(x)),
            (Value::Int(x), Kind::Int) if dtype == DType::U8 => Value::Int(i32::from(x as u8)),
            (v, _) => v,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::program::{InPort, OutPort};

    #[test]
    fn softmax_sums_to_one() {
        let code = "load 0|reduce.max %0|sub %0 %1|exp %2|reduce.sum %3|div %3 %4";
        let p = Program {
            name: "softmax".into(),
            inputs: vec![InPort { dtype: DType::F32, row: false }],
            code: code.split('|').map(|l| l.parse().unwrap()).collect(),
            outputs: vec![
                OutPort { dtype: DType::F32, reg: 5 },
                OutPort { dtype: DType::F32, reg: 4 },
            ],
        };
        let out = interpret(&p, &[2, 3], 1, |_, at| Value::Real(at[1] as f32)).unwrap();
        assert_eq!((out[0].len(), out[1].len()), (6, 2));
        let sum: f32 = out[0][3..].iter().map(|v| v.real()).sum();
        assert!((sum - 1.0).abs() < 1e-6);
    }

    #[test]
    fn erf_matches_tabulated_values() {
        // Abramowitz and Stegun, table 7.1.
        for (x, y) in
            [(0.5, 0.5204998778), (1.0, 0.8427007929), (2.0, 0.9953222650), (3.5, 0.9999992569)]
        {
            assert!((erf(x) - y).abs() < 1e-10, "{x}");
            assert!((erf(-x) + y).abs() < 1e-10);
        }
    }
}
