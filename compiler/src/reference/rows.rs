//! Row programs: every instruction at every point of the space.

use super::functions::{erf, sigmoid, uniform};
use super::{Options, Tensor, tensor::Data};
use crate::ir::TensorType;
use crate::ops::{AxisMap, Op, ProgramBuilder, RowSpec};
use precast_plan::{BinaryOp, InPort, Instr, Kind, OutPort, Program, ReduceOp, UnaryOp};

/// One register at one point.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Scalar {
    Real(f64),
    Int(i32),
    Bool(bool),
}

impl Scalar {
    fn real(self) -> f64 {
        match self {
            Scalar::Real(x) => x,
            _ => panic!("{self:?} is not real"),
        }
    }
    fn int(self) -> i32 {
        match self {
            Scalar::Int(x) => x,
            _ => panic!("{self:?} is not an int"),
        }
    }
    fn bool(self) -> bool {
        match self {
            Scalar::Bool(x) => x,
            _ => panic!("{self:?} is not a bool"),
        }
    }
}

/// The iteration space of a `Rows` operation and its program, with operands as ports 0, 1, …
///
/// # Panics
/// Where the definition of the operation builds a program that does not check.
pub fn program_of(op: &Op, x: &[&TensorType], y: &[&TensorType]) -> (RowSpec, Program) {
    let spec = op.def().row_spec(x, y);
    let kept = spec.dims.len() - spec.reduced;
    let mut b = builder(&spec.dims, spec.reduced);
    let loads: Vec<_> =
        (0..x.len()).map(|port| b.push(Instr::Load { port: port as u32 })).collect();
    let regs = op.def().emit(&mut b, &loads);
    assert_eq!(regs.len(), y.len(), "`{}` emits one register a result", op.name());
    let port = |(t, map): (&&TensorType, &AxisMap)| InPort {
        dtype: t.dtype,
        row: map.iter().all(|&d| d < kept),
    };
    let program = Program {
        name: op.name().into(),
        inputs: x.iter().zip(&spec.inputs).map(port).collect(),
        code: b.code,
        outputs: y.iter().zip(regs).map(|(t, reg)| OutPort { dtype: t.dtype, reg }).collect(),
    };
    (spec, program)
}

fn builder(dims: &[usize], reduced: usize) -> ProgramBuilder {
    ProgramBuilder {
        row_elements: dims[dims.len() - reduced..].iter().product(),
        last_axis: dims.len().saturating_sub(1),
        last_extent: dims.last().copied().unwrap_or(1),
        ..ProgramBuilder::default()
    }
}

/// Runs a program.
///
/// # Panics
/// Where the program does not check, or a result varies along axes that its tensor lacks.
pub fn run(
    spec: &RowSpec,
    program: &Program,
    x: &[&Tensor],
    y: &[&TensorType],
    opt: &Options,
) -> Vec<Tensor> {
    let infos = program.check().unwrap_or_else(|e| panic!("{e}\n{program}"));
    let kept = spec.dims.len() - spec.reduced;
    let (dims, reduced) = spec.dims.split_at(kept);
    let (rows, width): (usize, usize) = (dims.iter().product(), reduced.iter().product());
    let stride = |t: &TensorType, map: &AxisMap| {
        let mut s = vec![0i64; spec.dims.len()];
        for (&d, st) in map.iter().zip(t.shape.strides()) {
            s[d] += st;
        }
        s
    };
    let in_strides: Vec<_> = x.iter().zip(&spec.inputs).map(|(t, m)| stride(&t.ty, m)).collect();
    let out_strides: Vec<_> = y.iter().zip(&spec.outputs).map(|(t, m)| stride(t, m)).collect();
    let mut out: Vec<Tensor> = y.iter().map(|t| Tensor::zeros(t)).collect();
    let mut regs: Vec<Vec<Scalar>> = Vec::new();
    for row in 0..rows {
        regs.clear();
        for (instr, info) in program.code.iter().zip(&infos) {
            let column = match *instr {
                Instr::Reduce(op, a) => {
                    // A row register that is reduced counts once for every point of the row.
                    let of = &regs[a as usize];
                    vec![reduce(op, (0..width).map(|p| of[p % of.len()].real()), opt)]
                }
                _ => {
                    let points = if info.row { 1 } else { width };
                    (0..points)
                        .map(|p| {
                            let at = Point { kept: dims, reduced, row, point: p };
                            let reg = |r: u32| {
                                let column = &regs[r as usize];
                                column[if infos[r as usize].row { 0 } else { p }]
                            };
                            step(instr, &at, reg, x, &in_strides, opt)
                        })
                        .collect()
                }
            };
            regs.push(column);
        }
        for ((o, port), strides) in out.iter_mut().zip(&program.outputs).zip(&out_strides) {
            let column = &regs[port.reg as usize];
            let varies = strides[kept..].iter().any(|&s| s != 0);
            assert!(
                varies || column.len() <= 1 || spec.reduced == 0,
                "%{} varies along the row of a result that does not\n{program}",
                port.reg
            );
            for p in 0..if varies { width } else { 1 } {
                let at = Point { kept: dims, reduced, row, point: p };
                let value = column[if column.len() == 1 { 0 } else { p }];
                let index = at.offset(strides);
                match (&mut o.data, value) {
                    (Data::Real(v), Scalar::Real(s)) => v[index] = s,
                    (Data::Int(v), Scalar::Int(s)) => {
                        v[index] = if o.ty.dtype == precast_plan::DType::U8 {
                            (s as u8).into()
                        } else {
                            s.into()
                        }
                    }
                    (Data::Bool(v), Scalar::Bool(s)) => v[index] = s,
                    (_, s) => panic!("{s:?} stored into {}", o.ty),
                }
            }
        }
    }
    out
}

/// A point of the space: a row, and a point of it.
struct Point<'a> {
    kept: &'a [usize],
    reduced: &'a [usize],
    row: usize,
    point: usize,
}

impl Point<'_> {
    /// Row-major index in the space.
    fn linear(&self) -> usize {
        self.row * self.reduced.iter().product::<usize>() + self.point
    }

    /// A row without points still has its row registers; it lies at reduced coordinates 0.
    fn coordinates(&self) -> impl Iterator<Item = usize> {
        let digits = |mut rest: usize, dims: &[usize]| {
            let mut c = vec![0; dims.len()];
            for (c, &n) in c.iter_mut().zip(dims).rev() {
                *c = rest % n.max(1);
                rest /= n.max(1);
            }
            c
        };
        digits(self.row, self.kept).into_iter().chain(digits(self.point, self.reduced))
    }

    fn offset(&self, strides: &[i64]) -> usize {
        self.coordinates().zip(strides).map(|(c, &s)| c as i64 * s).sum::<i64>() as usize
    }
}

fn step(
    instr: &Instr,
    at: &Point,
    reg: impl Fn(u32) -> Scalar,
    x: &[&Tensor],
    strides: &[Vec<i64>],
    opt: &Options,
) -> Scalar {
    let r = |x: f64| Scalar::Real(opt.round(x));
    match *instr {
        Instr::Load { port } => {
            let (t, s) = (x[port as usize], &strides[port as usize]);
            let index = at.offset(s);
            match &t.data {
                Data::Real(v) => Scalar::Real(v[index]),
                Data::Int(v) => Scalar::Int(v[index] as i32),
                Data::Bool(v) => Scalar::Bool(v[index]),
            }
        }
        Instr::Real(c) => Scalar::Real(c.into()),
        Instr::Int(c) => Scalar::Int(c),
        Instr::Bool(c) => Scalar::Bool(c),
        Instr::Index { axis } => {
            Scalar::Int(at.coordinates().nth(axis as usize).expect("an axis of the space") as i32)
        }
        Instr::Unary(op, a) => match unary(op, reg(a)) {
            Scalar::Real(v) => r(v),
            other => other,
        },
        Instr::Binary(op, a, b) => match binary(op, reg(a), reg(b)) {
            Scalar::Real(v) => r(v),
            other => other,
        },
        Instr::Select { cond, then, otherwise } => {
            if reg(cond).bool() {
                reg(then)
            } else {
                reg(otherwise)
            }
        }
        Instr::Round(d, a) => Scalar::Real(d.round(reg(a).real() as f32).into()),
        Instr::Uniform { seed, step, stream } => {
            Scalar::Real(uniform(at.linear() as u64, stream, reg(seed).int(), reg(step).int()))
        }
        Instr::Reduce(..) => unreachable!("reductions are run by row"),
    }
}

/// One operand.
pub fn unary(op: UnaryOp, a: Scalar) -> Scalar {
    use UnaryOp::*;
    let real = |f: fn(f64) -> f64| Scalar::Real(f(a.real()));
    match op {
        Neg | Abs if matches!(a, Scalar::Int(_)) => Scalar::Int(match op {
            Neg => a.int().wrapping_neg(),
            _ => a.int().wrapping_abs(),
        }),
        Neg => real(|x| -x),
        Abs => real(f64::abs),
        Exp => real(f64::exp),
        Expm1 => real(f64::exp_m1),
        Log => real(f64::ln),
        Log1p => real(f64::ln_1p),
        Sqrt => real(f64::sqrt),
        Rsqrt => real(|x| 1.0 / x.sqrt()),
        Recip => real(|x| 1.0 / x),
        Sin => real(f64::sin),
        Cos => real(f64::cos),
        Tanh => real(f64::tanh),
        Erf => real(erf),
        Sigmoid => real(sigmoid),
        Floor => real(f64::floor),
        Ceil => real(f64::ceil),
        RoundEven => real(f64::round_ties_even),
        IsFinite => Scalar::Bool(a.real().is_finite()),
        Not => Scalar::Bool(!a.bool()),
        ToReal => Scalar::Real(match a {
            Scalar::Real(x) => x,
            Scalar::Int(x) => x.into(),
            Scalar::Bool(x) => u8::from(x).into(),
        }),
        // `as` goes towards zero, saturates, and takes NaN to 0.
        ToInt => Scalar::Int(match a {
            Scalar::Real(x) => x as i32,
            Scalar::Int(x) => x,
            Scalar::Bool(x) => x.into(),
        }),
        ToBool => Scalar::Bool(match a {
            Scalar::Real(x) => x != 0.0,
            Scalar::Int(x) => x != 0,
            Scalar::Bool(x) => x,
        }),
    }
}

fn max(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.max(b) }
}

fn min(a: f64, b: f64) -> f64 {
    if a.is_nan() || b.is_nan() { f64::NAN } else { a.min(b) }
}

/// Two operands of one kind.
pub fn binary(op: BinaryOp, a: Scalar, b: Scalar) -> Scalar {
    use BinaryOp::*;
    match (a, b) {
        (Scalar::Real(a), Scalar::Real(b)) => match op {
            Add => Scalar::Real(a + b),
            Sub => Scalar::Real(a - b),
            Mul => Scalar::Real(a * b),
            Div => Scalar::Real(a / b),
            Max => Scalar::Real(max(a, b)),
            Min => Scalar::Real(min(a, b)),
            Pow => Scalar::Real(a.powf(b)),
            Eq => Scalar::Bool(a == b),
            Lt => Scalar::Bool(a < b),
            Le => Scalar::Bool(a <= b),
            And | Or => panic!("{} of reals", op.name()),
        },
        (Scalar::Int(a), Scalar::Int(b)) => match op {
            Add => Scalar::Int(a.wrapping_add(b)),
            Sub => Scalar::Int(a.wrapping_sub(b)),
            Mul => Scalar::Int(a.wrapping_mul(b)),
            Div => Scalar::Int(if b == 0 { 0 } else { a.wrapping_div(b) }),
            Max => Scalar::Int(a.max(b)),
            Min => Scalar::Int(a.min(b)),
            Eq => Scalar::Bool(a == b),
            Lt => Scalar::Bool(a < b),
            Le => Scalar::Bool(a <= b),
            Pow | And | Or => panic!("{} of ints", op.name()),
        },
        (Scalar::Bool(a), Scalar::Bool(b)) => match op {
            Eq => Scalar::Bool(a == b),
            And => Scalar::Bool(a && b),
            Or => Scalar::Bool(a || b),
            _ => panic!("{} of bools", op.name()),
        },
        _ => panic!("{} of {a:?} and {b:?}", op.name()),
    }
}

/// Over the points of a row, in row-major order. No points: 0, −∞, ∞.
fn reduce(op: ReduceOp, row: impl Iterator<Item = f64>, opt: &Options) -> Scalar {
    Scalar::Real(match op {
        ReduceOp::Sum => row.fold(0.0, |acc, x| opt.round(acc + x)),
        ReduceOp::Max => row.fold(f64::NEG_INFINITY, max),
        ReduceOp::Min => row.fold(f64::INFINITY, min),
    })
}

/// Runs instructions elementwise over tensors of one shape or, where shorter, along its last axes:
/// the epilogue of a product.
pub(super) fn elementwise(
    shape: &TensorType,
    x: &[&Tensor],
    results: usize,
    opt: &Options,
    emit: impl FnOnce(&mut ProgramBuilder, &[u32]) -> Vec<u32>,
) -> Vec<Tensor> {
    let rank = shape.shape.rank();
    let mut b = builder(&shape.shape, 0);
    let loads: Vec<_> =
        (0..x.len()).map(|port| b.push(Instr::Load { port: port as u32 })).collect();
    let regs = emit(&mut b, &loads);
    let program = Program {
        name: "epilogue".into(),
        inputs: x.iter().map(|t| InPort { dtype: t.ty.dtype, row: true }).collect(),
        code: b.code,
        outputs: regs.iter().map(|&reg| OutPort { dtype: shape.dtype, reg }).collect(),
    };
    let spec = RowSpec {
        dims: shape.shape.to_vec(),
        reduced: 0,
        inputs: x.iter().map(|t| (rank - t.shape().rank()..rank).collect()).collect(),
        outputs: vec![(0..rank).collect(); results],
    };
    debug_assert_eq!(shape.kind(), Kind::Real);
    run(&spec, &program, x, &vec![shape; results], opt)
}
