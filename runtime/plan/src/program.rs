//! Row programs: the one form for everything that is not a product.
//!
//! A row program runs over an iteration space whose trailing axes may be *reduced*. It is a
//! straight-line list of instructions in static single assignment form: instruction `i` defines
//! register `%i`. A register is *per element*, or *per row* (one value for each index of the kept
//! axes): loads from ports marked `row`, results of [`Instr::Reduce`], and whatever is computed
//! from those alone. Arithmetic is f32, `i32` or `bool`; loads widen and stores round, so a cast
//! inside a program costs nothing. An `i64` beyond 32 bits is loaded as the nearest `i32`.
//!
//! The meaning is the obvious one: evaluate every instruction at every point of the space, where a
//! reduction needs all points of its row first. How to block, vectorise or recompute is the
//! backend's business. Reductions are not associative in f32, so a backend fixes its own order and
//! keeps it for any number of threads.
//!
//! Programs are written as text, one instruction a line, in plan files and in snapshots:
//!
//! ```text
//! %0 = load 0
//! %1 = reduce.max %0
//! %2 = sub %0 %1
//! %3 = exp %2
//! %4 = reduce.sum %3
//! %5 = div %3 %4
//! ```

use crate::dtype::{DType, Kind};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// A register: the index of the instruction that defines it.
pub type Reg = u32;

macro_rules! op_table {
    ($(#[$doc:meta])* $ty:ident { $($(#[$vdoc:meta])* $variant:ident = $name:literal),* $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $ty { $($(#[$vdoc])* $variant),* }
        impl $ty {
            /// Every row of the table.
            pub const ALL: &'static [$ty] = &[$($ty::$variant),*];
            /// The mnemonic.
            pub const fn name(self) -> &'static str {
                match self { $($ty::$variant => $name),* }
            }
            /// The row with this mnemonic.
            pub fn from_name(name: &str) -> Option<Self> {
                Self::ALL.iter().copied().find(|op| op.name() == name)
            }
        }
    };
}

op_table! {
    /// One operand.
    UnaryOp {
        Neg = "neg",
        Abs = "abs",
        Exp = "exp",
        Expm1 = "expm1",
        Log = "log",
        Log1p = "log1p",
        Sqrt = "sqrt",
        Rsqrt = "rsqrt",
        Recip = "recip",
        Sin = "sin",
        Cos = "cos",
        Tanh = "tanh",
        /// Gauss error function.
        Erf = "erf",
        Sigmoid = "sigmoid",
        Floor = "floor",
        Ceil = "ceil",
        /// Nearest integer, ties to even.
        RoundEven = "round_even",
        /// Is neither infinite nor NaN; real to bool.
        IsFinite = "is_finite",
        Not = "not",
        /// Int or bool to real (bool: 0 or 1).
        ToReal = "to_real",
        /// Real or bool to int, towards zero.
        ToInt = "to_int",
        /// Real or int to bool: is not zero.
        ToBool = "to_bool",
    }
}

op_table! {
    /// Two operands. Arithmetic and comparisons take two reals or two ints; `and`, `or` two bools.
    /// `max` and `min` propagate NaN.
    BinaryOp {
        Add = "add",
        Sub = "sub",
        Mul = "mul",
        /// On ints: towards zero, as in C; dividing by zero gives zero.
        Div = "div",
        Max = "max",
        Min = "min",
        /// Reals only.
        Pow = "pow",
        Eq = "eq",
        Lt = "lt",
        Le = "le",
        And = "and",
        Or = "or",
    }
}

op_table! {
    /// Over the reduced axes. `max` propagates NaN.
    ReduceOp {
        Sum = "sum",
        Max = "max",
        Min = "min",
    }
}

/// One instruction. Operands are earlier registers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Instr {
    /// The element of input port `port` at the current index.
    Load {
        port: u32,
    },
    Real(f32),
    Int(i32),
    Bool(bool),
    /// The coordinate along axis `axis` of the iteration space, as an int.
    Index {
        axis: u32,
    },
    Unary(UnaryOp, Reg),
    Binary(BinaryOp, Reg, Reg),
    /// `if cond { then } else { otherwise }`; both are evaluated.
    Select {
        cond: Reg,
        then: Reg,
        otherwise: Reg,
    },
    /// Rounds a real to a narrower format and widens back.
    Round(DType, Reg),
    /// Over the reduced axes; the result is per row.
    Reduce(ReduceOp, Reg),
    /// A uniform real in [0, 1): word 0 of Philox 4x32-10 (Salmon et al., SC'11), top 24 bits
    /// times 2^-24. The counter is (linear index of the point in the iteration space: low word,
    /// high word, `stream`, 0), the key is (`seed`, `step`), both int registers per row.
    Uniform {
        seed: Reg,
        step: Reg,
        stream: u32,
    },
}

/// An input of a program.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct InPort {
    pub dtype: DType,
    /// Does not vary along the reduced axes.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub row: bool,
}

/// An output of a program: `reg` rounded to `dtype` and stored, once per element or, where `reg`
/// is per row, once per row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct OutPort {
    pub dtype: DType,
    pub reg: Reg,
}

/// A row program, without the tensors it is applied to.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Program {
    pub name: String,
    pub inputs: Vec<InPort>,
    pub code: Vec<Instr>,
    pub outputs: Vec<OutPort>,
}

/// What is known of a register from the text alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegInfo {
    pub kind: Kind,
    /// One value per row.
    pub row: bool,
    /// How many reductions must have finished, one after the other, before this value exists.
    pub stage: u32,
}

impl Instr {
    /// The registers read, in order.
    pub fn operands(&self) -> impl Iterator<Item = Reg> {
        let (a, b, c) = match *self {
            Instr::Load { .. }
            | Instr::Real(_)
            | Instr::Int(_)
            | Instr::Bool(_)
            | Instr::Index { .. } => (None, None, None),
            Instr::Unary(_, a) | Instr::Round(_, a) | Instr::Reduce(_, a) => (Some(a), None, None),
            Instr::Binary(_, a, b) => (Some(a), Some(b), None),
            Instr::Select { cond, then, otherwise } => (Some(cond), Some(then), Some(otherwise)),
            Instr::Uniform { seed, step, .. } => (Some(seed), Some(step), None),
        };
        [a, b, c].into_iter().flatten()
    }

    /// The same instruction over other registers.
    pub fn map_operands(self, mut f: impl FnMut(Reg) -> Reg) -> Instr {
        match self {
            Instr::Load { .. }
            | Instr::Real(_)
            | Instr::Int(_)
            | Instr::Bool(_)
            | Instr::Index { .. } => self,
            Instr::Unary(op, a) => Instr::Unary(op, f(a)),
            Instr::Round(d, a) => Instr::Round(d, f(a)),
            Instr::Reduce(op, a) => Instr::Reduce(op, f(a)),
            Instr::Binary(op, a, b) => Instr::Binary(op, f(a), f(b)),
            Instr::Select { cond, then, otherwise } => {
                Instr::Select { cond: f(cond), then: f(then), otherwise: f(otherwise) }
            }
            Instr::Uniform { seed, step, stream } => {
                Instr::Uniform { seed: f(seed), step: f(step), stream }
            }
        }
    }
}

impl Program {
    /// Kind, scope and stage of every register, or the first fault in words.
    pub fn check(&self) -> Result<Vec<RegInfo>, String> {
        let mut infos: Vec<RegInfo> = Vec::with_capacity(self.code.len());
        for (i, instr) in self.code.iter().enumerate() {
            if let Some(bad) = instr.operands().find(|&r| r as usize >= i) {
                return Err(format!("%{i} reads %{bad}, which is not defined before it"));
            }
            let info = self.infer(instr, &infos).map_err(|e| format!("%{i} = {instr}: {e}"))?;
            infos.push(info);
        }
        for (o, out) in self.outputs.iter().enumerate() {
            let Some(info) = infos.get(out.reg as usize) else {
                return Err(format!("output {o} stores %{}, which does not exist", out.reg));
            };
            if info.kind != out.dtype.kind() {
                return Err(format!(
                    "output {o} stores the {} %{} as {}",
                    info.kind, out.reg, out.dtype
                ));
            }
        }
        Ok(infos)
    }

    fn infer(&self, instr: &Instr, infos: &[RegInfo]) -> Result<RegInfo, String> {
        let of = |r: Reg| infos[r as usize];
        let row = instr.operands().all(|r| of(r).row);
        let stage = instr.operands().map(|r| of(r).stage).max().unwrap_or(0);
        let want = |r: Reg, kind: Kind| {
            if of(r).kind == kind {
                Ok(())
            } else {
                Err(format!("%{r} is {}, not {kind}", of(r).kind))
            }
        };
        let info = |kind| RegInfo { kind, row, stage };
        Ok(match *instr {
            Instr::Load { port } => {
                let p = self
                    .inputs
                    .get(port as usize)
                    .ok_or_else(|| format!("there is no input {port}"))?;
                RegInfo { kind: p.dtype.kind(), row: p.row, stage: 0 }
            }
            Instr::Real(_) => info(Kind::Real),
            Instr::Int(_) => info(Kind::Int),
            Instr::Bool(_) => info(Kind::Bool),
            // Which axes are reduced is the instance's business, so an index counts as per element.
            Instr::Index { .. } => RegInfo { kind: Kind::Int, row: false, stage: 0 },
            Instr::Unary(op, a) => info(match op {
                UnaryOp::IsFinite => {
                    want(a, Kind::Real)?;
                    Kind::Bool
                }
                UnaryOp::Not => {
                    want(a, Kind::Bool)?;
                    Kind::Bool
                }
                UnaryOp::ToReal => Kind::Real,
                UnaryOp::ToInt => Kind::Int,
                UnaryOp::ToBool => Kind::Bool,
                UnaryOp::Neg | UnaryOp::Abs if of(a).kind == Kind::Int => Kind::Int,
                _ => {
                    want(a, Kind::Real)?;
                    Kind::Real
                }
            }),
            Instr::Binary(op, a, b) => {
                let kind = of(a).kind;
                want(b, kind)?;
                info(match op {
                    BinaryOp::And | BinaryOp::Or => {
                        want(a, Kind::Bool)?;
                        Kind::Bool
                    }
                    BinaryOp::Eq => Kind::Bool,
                    _ if kind == Kind::Bool => return Err("bool operands".into()),
                    BinaryOp::Lt | BinaryOp::Le => Kind::Bool,
                    BinaryOp::Pow => {
                        want(a, Kind::Real)?;
                        Kind::Real
                    }
                    _ => kind,
                })
            }
            Instr::Select { cond, then, otherwise } => {
                want(cond, Kind::Bool)?;
                want(otherwise, of(then).kind)?;
                info(of(then).kind)
            }
            Instr::Round(d, a) => {
                want(a, Kind::Real)?;
                if !d.is_real() {
                    return Err(format!("{d} is not a real format"));
                }
                info(Kind::Real)
            }
            Instr::Reduce(_, a) => {
                want(a, Kind::Real)?;
                RegInfo { kind: Kind::Real, row: true, stage: of(a).stage + 1 }
            }
            Instr::Uniform { seed, step, .. } => {
                want(seed, Kind::Int)?;
                want(step, Kind::Int)?;
                if !row {
                    return Err("the key of uniform varies along the row".into());
                }
                RegInfo { kind: Kind::Real, row: false, stage }
            }
        })
    }

    /// Whether any instruction reduces.
    pub fn reduces(&self) -> bool {
        self.code.iter().any(|i| matches!(i, Instr::Reduce(..)))
    }
}

impl fmt::Display for Instr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match *self {
            Instr::Load { port } => write!(f, "load {port}"),
            // `{:?}` prints the shortest text that reads back to the same f32.
            Instr::Real(x) if x.is_nan() => write!(f, "real nan"),
            Instr::Real(x) => write!(f, "real {x:?}"),
            Instr::Int(x) => write!(f, "int {x}"),
            Instr::Bool(x) => write!(f, "bool {x}"),
            Instr::Index { axis } => write!(f, "index {axis}"),
            Instr::Unary(op, a) => write!(f, "{} %{a}", op.name()),
            Instr::Binary(op, a, b) => write!(f, "{} %{a} %{b}", op.name()),
            Instr::Select { cond, then, otherwise } => {
                write!(f, "select %{cond} %{then} %{otherwise}")
            }
            Instr::Round(d, a) => write!(f, "round.{d} %{a}"),
            Instr::Reduce(op, a) => write!(f, "reduce.{} %{a}", op.name()),
            Instr::Uniform { seed, step, stream } => {
                write!(f, "uniform %{seed} %{step} {stream}")
            }
        }
    }
}

impl FromStr for Instr {
    type Err = String;

    fn from_str(text: &str) -> Result<Instr, String> {
        let mut words = text.split_whitespace();
        let head = words.next().ok_or("empty instruction")?;
        let args: Vec<&str> = words.collect();
        fn number<T: FromStr>(s: &str) -> Result<T, String> {
            s.parse().map_err(|_| format!("`{s}` is not a number of the right type"))
        }
        let reg = |s: &str| -> Result<Reg, String> {
            number(s.strip_prefix('%').ok_or_else(|| format!("`{s}` is not a register"))?)
        };
        let instr = match (head, args.as_slice()) {
            ("load", [p]) => Instr::Load { port: number(p)? },
            ("real", ["nan"]) => Instr::Real(f32::NAN),
            ("real", [x]) => Instr::Real(number(x)?),
            ("int", [x]) => Instr::Int(number(x)?),
            ("bool", [x]) => Instr::Bool(number(x)?),
            ("index", [a]) => Instr::Index { axis: number(a)? },
            ("select", [c, t, o]) => {
                Instr::Select { cond: reg(c)?, then: reg(t)?, otherwise: reg(o)? }
            }
            ("uniform", [a, b, s]) => {
                Instr::Uniform { seed: reg(a)?, step: reg(b)?, stream: number(s)? }
            }
            (_, [a]) if head.starts_with("round.") => Instr::Round(head[6..].parse()?, reg(a)?),
            (_, [a]) if head.starts_with("reduce.") => {
                let op = ReduceOp::from_name(&head[7..])
                    .ok_or_else(|| format!("unknown reduction `{head}`"))?;
                Instr::Reduce(op, reg(a)?)
            }
            (_, [a]) => match UnaryOp::from_name(head) {
                Some(op) => Instr::Unary(op, reg(a)?),
                None => return Err(format!("unknown instruction `{text}`")),
            },
            (_, [a, b]) => match BinaryOp::from_name(head) {
                Some(op) => Instr::Binary(op, reg(a)?, reg(b)?),
                None => return Err(format!("unknown instruction `{text}`")),
            },
            _ => return Err(format!("unknown instruction `{text}`")),
        };
        Ok(instr)
    }
}

impl Serialize for Instr {
    fn serialize<S: serde::Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Instr {
    fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

impl fmt::Display for Program {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "program {}(", self.name)?;
        for (i, p) in self.inputs.iter().enumerate() {
            let sep = if i > 0 { ", " } else { "" };
            write!(f, "{sep}{i}: {}{}", p.dtype, if p.row { " row" } else { "" })?;
        }
        writeln!(f, ")")?;
        for (i, instr) in self.code.iter().enumerate() {
            writeln!(f, "  %{i} = {instr}")?;
        }
        for (i, o) in self.outputs.iter().enumerate() {
            writeln!(f, "  store {i}: {} %{}", o.dtype, o.reg)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn softmax() -> Program {
        let code = "load 0|reduce.max %0|sub %0 %1|exp %2|reduce.sum %3|div %3 %4";
        Program {
            name: "softmax".into(),
            inputs: vec![InPort { dtype: DType::Bf16, row: false }],
            code: code.split('|').map(|l| l.parse().unwrap()).collect(),
            outputs: vec![OutPort { dtype: DType::F16, reg: 5 }],
        }
    }

    #[test]
    fn instructions_print_and_parse_back() {
        let mut all: Vec<Instr> = softmax().code;
        all.extend(UnaryOp::ALL.iter().map(|&op| Instr::Unary(op, 1)));
        all.extend(BinaryOp::ALL.iter().map(|&op| Instr::Binary(op, 1, 2)));
        all.extend(ReduceOp::ALL.iter().map(|&op| Instr::Reduce(op, 1)));
        all.extend(DType::ALL.map(|d| Instr::Round(d, 3)));
        all.extend([
            Instr::Real(0.1),
            Instr::Real(f32::INFINITY),
            Instr::Real(-0.0),
            Instr::Real(1e-45),
            Instr::Int(-3),
            Instr::Bool(true),
            Instr::Index { axis: 2 },
            Instr::Select { cond: 1, then: 2, otherwise: 3 },
            Instr::Uniform { seed: 1, step: 2, stream: 7 },
        ]);
        for i in all {
            assert_eq!(i.to_string().parse::<Instr>().unwrap(), i);
        }
        assert!("frobnicate %1".parse::<Instr>().is_err());
        assert!("exp 1".parse::<Instr>().is_err());
    }

    #[test]
    fn stages_count_reductions_in_sequence() {
        let infos = softmax().check().unwrap();
        let stages: Vec<u32> = infos.iter().map(|i| i.stage).collect();
        assert_eq!(stages, [0, 1, 1, 1, 2, 2]);
        assert_eq!(
            infos.iter().map(|i| i.row).collect::<Vec<_>>(),
            [false, true, false, false, true, false]
        );
    }

    #[test]
    fn faults_name_the_instruction() {
        let mut p = softmax();
        p.code[3] = Instr::Unary(UnaryOp::Exp, 9);
        assert_eq!(p.check().unwrap_err(), "%3 reads %9, which is not defined before it");
        let mut p = softmax();
        p.code[2] = Instr::Binary(BinaryOp::And, 0, 1);
        assert_eq!(p.check().unwrap_err(), "%2 = and %0 %1: %0 is real, not bool");
        let mut p = softmax();
        p.outputs[0].dtype = DType::I32;
        assert_eq!(p.check().unwrap_err(), "output 0 stores the real %5 as i32");
    }
}
