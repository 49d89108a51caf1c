//! Elementwise functions of one operand: one row per function.

use super::{
    Binary, Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, Pole,
    ProgramBuilder, Reach, RowSpec, signature,
};
use crate::ir::{TensorType, ValueId};
use precast_plan::{BinaryOp, DType, Kind, Reg, UnaryOp};
use std::f64::consts::{FRAC_PI_2, PI};

op! {
    /// `f(x)`, elementwise.
    Unary = "unary" { f: UnaryOp }
}

impl crate::ir::AttrValue for UnaryOp {
    fn to_attr(&self) -> crate::ir::Attr {
        crate::ir::Attr::Word(self.name().into())
    }
    fn from_attr(attr: crate::ir::Attr) -> Option<Self> {
        let crate::ir::Attr::Word(w) = attr else { return None };
        UnaryOp::from_name(&w)
    }
}

impl OpDef for Unary {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, ".")?;
        use UnaryOp::*;
        let (kinds, dtype): (&[Kind], DType) = match self.f {
            IsFinite => (&[Kind::Real], DType::Bool),
            Not => (&[Kind::Bool], DType::Bool),
            ToReal => (&[Kind::Int, Kind::Bool], DType::F32),
            ToInt => (&[Kind::Real, Kind::Bool], DType::I32),
            ToBool => (&[Kind::Real, Kind::Int], DType::Bool),
            Neg | Abs if x[0].kind() == Kind::Int => (&[Kind::Int], DType::I32),
            _ => (&[Kind::Real], DType::F32),
        };
        if !kinds.contains(&x[0].kind()) {
            return Err(format!("`{}` does not take {}", self.f.name(), x[0]));
        }
        Ok(vec![TensorType::new(dtype, x[0].shape.clone())])
    }

    fn class(&self) -> NumericClass {
        use UnaryOp::*;
        match self.f {
            Neg | Abs => NumericClass::Movement,
            Exp | Expm1 | Log | Log1p | Rsqrt | Recip | Tan | Asin | Acos | Sinh | Cosh | Acosh
            | Atanh => NumericClass::Sensitive,
            IsFinite | Not | ToReal | ToInt | ToBool => NumericClass::Leaf,
            _ => NumericClass::Pointwise,
        }
    }

    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }

    fn linear(&self) -> Linear {
        if self.f == UnaryOp::Neg { Linear::All } else { Linear::No }
    }

    fn bounds(&self, k: &Known) -> Bounds {
        use UnaryOp::*;
        let x = k.x(0);
        match self.f {
            Neg => x.negated(),
            Abs => x.abs(),
            Exp => x.growing(f64::exp),
            Expm1 => x.growing(f64::exp_m1),
            Log if x.hi > 0.0 => x.growing(|x| x.max(0.0).ln()),
            Log1p if x.hi > -1.0 => x.growing(|x| x.max(-1.0).ln_1p()),
            Sqrt if x.hi >= 0.0 => x.growing(|x| x.max(0.0).sqrt()),
            Rsqrt if x.hi > 0.0 => Bounds::new(x.hi.sqrt().recip(), x.lo.max(0.0).sqrt().recip()),
            Recip => x.inverse(),
            Sin | Cos | Erf => Bounds::new(-1.0, 1.0),
            Asin => Bounds::new(-FRAC_PI_2, FRAC_PI_2),
            Acos => Bounds::new(0.0, PI),
            Atan => x.growing(f64::atan),
            Asinh => x.growing(f64::asinh),
            Acosh => Bounds::new(0.0, x.hi.max(1.0).acosh()),
            Tanh => x.growing(f64::tanh),
            Sigmoid => x.growing(|x| 1.0 / (1.0 + (-x).exp())),
            Floor => x.growing(f64::floor),
            Ceil => x.growing(f64::ceil),
            RoundEven => x.growing(f64::round_ties_even),
            ToReal if k.graph.ty(k.node.inputs[0]).kind() == Kind::Bool => Bounds::new(0.0, 1.0),
            _ => Bounds::ALL,
        }
    }

    fn reach(&self, k: &Known) -> Reach {
        use UnaryOp::*;
        match self.f {
            Exp | Expm1 => Reach::Beyond("an exponential overflows or underflows in f16"),
            Log | Log1p => Reach::Beyond("a logarithm is f32"),
            Sqrt => Reach::Beyond("a root is f32"),
            Asin | Acos | Tan | Sinh | Cosh | Atanh => {
                Reach::Beyond("a function that grows without limit, or its slope, is f32")
            }
            Rsqrt | Recip => Reach::Beyond("a reciprocal overflows or underflows in f16"),
            ToReal if k.graph.ty(k.node.inputs[0]).kind() == Kind::Int => {
                Reach::Beyond("f16 does not hold every integer above 2048")
            }
            Sin | Cos | Tanh | Erf | Sigmoid | Atan | Asinh | Acosh => Reach::ORDINARY,
            Neg | Abs | Floor | Ceil | RoundEven => Reach::Times(k.reach(0)),
            IsFinite | Not | ToReal | ToInt | ToBool => Reach::ORDINARY,
        }
    }

    fn poles(&self) -> &'static [Pole] {
        use UnaryOp::*;
        match self.f {
            Rsqrt | Recip => const { &[Pole::divisor(0)] },
            Log | Sqrt => const { &[Pole::of(0, 0.0)] },
            Log1p => const { &[Pole::of(0, -1.0)] },
            Asin | Acos | Atanh => const { &[Pole::of(0, -1.0), Pole::of(0, 1.0)] },
            Acosh => const { &[Pole::of(0, 1.0)] },
            _ => &[],
        }
    }

    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        use UnaryOp::*;
        if matches!(self.f, IsFinite | Not | ToReal | ToInt | ToBool | Floor | Ceil | RoundEven) {
            // Piecewise constant: the derivative is zero wherever it exists.
            return Ok(vec![None]);
        }
        let (x, y, dy) = (cx.x(0), cx.y(0), cx.only_dy(0)?);
        // The factor that dy is multiplied by, or the cotangent itself.
        let one_minus = |cx: &mut GradCx, a: ValueId| {
            let one = cx.full(1.0, &cx.shape(a));
            cx.bin(BinaryOp::Sub, one, a)
        };
        // 1 − x² or x² − 1 as a product, which loses nothing beside 1.
        let beside_one = |cx: &mut GradCx, a: ValueId, below: bool| {
            let one = cx.full(1.0, &cx.shape(a));
            let (p, q) = if below { (one, a) } else { (a, one) };
            let near = cx.bin(BinaryOp::Sub, p, q);
            let far = cx.bin(BinaryOp::Add, a, one);
            cx.mul(near, far)
        };
        let dx = match self.f {
            Neg => cx.un(Neg, dy),
            Abs => {
                let zero = cx.full(0.0, &cx.shape(x));
                let negative = cx.op(Binary { f: BinaryOp::Lt }, &[x, zero]);
                let positive = cx.op(Binary { f: BinaryOp::Lt }, &[zero, x]);
                let minus = cx.un(Neg, dy);
                let left = cx.op(super::Select {}, &[negative, minus, zero]);
                cx.op(super::Select {}, &[positive, dy, left])
            }
            Exp => cx.mul(dy, y),
            Expm1 => {
                let e = cx.un(Exp, x);
                cx.mul(dy, e)
            }
            Log => cx.bin(BinaryOp::Div, dy, x),
            Log1p => {
                let one = cx.full(1.0, &cx.shape(x));
                let d = cx.bin(BinaryOp::Add, one, x);
                cx.bin(BinaryOp::Div, dy, d)
            }
            Sqrt => {
                let half = cx.scale(dy, 0.5);
                cx.bin(BinaryOp::Div, half, y)
            }
            Rsqrt => {
                let cube = cx.bin(BinaryOp::Div, y, x);
                let t = cx.mul(dy, cube);
                cx.scale(t, -0.5)
            }
            Recip => {
                let t = cx.mul(dy, y);
                let t = cx.mul(t, y);
                cx.un(Neg, t)
            }
            Sin => {
                let c = cx.un(Cos, x);
                cx.mul(dy, c)
            }
            Cos => {
                let s = cx.un(Sin, x);
                let t = cx.mul(dy, s);
                cx.un(Neg, t)
            }
            Tan => {
                let yy = cx.mul(y, y);
                let one = cx.full(1.0, &cx.shape(x));
                let d = cx.bin(BinaryOp::Add, one, yy);
                cx.mul(dy, d)
            }
            Asin | Acos => {
                let d = beside_one(cx, x, true);
                let d = cx.un(Rsqrt, d);
                let t = cx.mul(dy, d);
                if self.f == Asin { t } else { cx.un(Neg, t) }
            }
            Atan => {
                let xx = cx.mul(x, x);
                let one = cx.full(1.0, &cx.shape(x));
                let d = cx.bin(BinaryOp::Add, one, xx);
                cx.bin(BinaryOp::Div, dy, d)
            }
            Sinh => {
                let c = cx.un(Cosh, x);
                cx.mul(dy, c)
            }
            Cosh => {
                let s = cx.un(Sinh, x);
                cx.mul(dy, s)
            }
            Asinh => {
                let xx = cx.mul(x, x);
                let one = cx.full(1.0, &cx.shape(x));
                let d = cx.bin(BinaryOp::Add, xx, one);
                let d = cx.un(Rsqrt, d);
                cx.mul(dy, d)
            }
            Acosh => {
                let d = beside_one(cx, x, false);
                let d = cx.un(Rsqrt, d);
                cx.mul(dy, d)
            }
            Atanh => {
                let d = beside_one(cx, x, true);
                cx.bin(BinaryOp::Div, dy, d)
            }
            Tanh => {
                let yy = cx.mul(y, y);
                let d = one_minus(cx, yy);
                cx.mul(dy, d)
            }
            Erf => {
                let xx = cx.mul(x, x);
                let minus = cx.un(Neg, xx);
                let e = cx.un(Exp, minus);
                let t = cx.mul(dy, e);
                cx.scale(t, std::f64::consts::FRAC_2_SQRT_PI)
            }
            Sigmoid => {
                let rest = one_minus(cx, y);
                let t = cx.mul(y, rest);
                cx.mul(dy, t)
            }
            IsFinite | Not | ToReal | ToInt | ToBool | Floor | Ceil | RoundEven => unreachable!(),
        };
        Ok(vec![Some(dx)])
    }

    fn row_spec(&self, _: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        RowSpec::elementwise(1, y)
    }

    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        vec![b.un(self.f, x[0])]
    }
}
