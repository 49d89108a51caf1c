//! Elementwise functions of two operands: one row per function.

use super::{
    Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, Pole, ProgramBuilder,
    Reach, RowSpec, Select, same_shape, signature,
};
use crate::ir::TensorType;
use precast_plan::{BinaryOp, DType, Kind, Reg, UnaryOp};

op! {
    /// `f(a, b)`, elementwise; equal shapes.
    Binary = "binary" { f: BinaryOp }
}

impl crate::ir::AttrValue for BinaryOp {
    fn to_attr(&self) -> crate::ir::Attr {
        crate::ir::Attr::Word(self.name().into())
    }
    fn from_attr(attr: crate::ir::Attr) -> Option<Self> {
        let crate::ir::Attr::Word(w) = attr else { return None };
        BinaryOp::from_name(&w)
    }
}

impl OpDef for Binary {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "..")?;
        same_shape(x)?;
        let kind = x[0].kind();
        if x[1].kind() != kind {
            return Err(format!("operands are {} and {}", x[0], x[1]));
        }
        use BinaryOp::*;
        let legal = match self.f {
            And | Or => kind != Kind::Real,
            Eq => true,
            Pow => kind == Kind::Real,
            _ => kind != Kind::Bool,
        };
        if !legal {
            return Err(format!("`{}` does not take {}", self.f.name(), x[0]));
        }
        let dtype = match (self.f, kind) {
            (Eq | Lt | Le, _) | (_, Kind::Bool) => DType::Bool,
            (_, Kind::Int) => DType::I32,
            _ => DType::F32,
        };
        Ok(vec![TensorType::new(dtype, x[0].shape.clone())])
    }

    fn class(&self) -> NumericClass {
        use BinaryOp::*;
        match self.f {
            Max | Min => NumericClass::Movement,
            Pow => NumericClass::Sensitive,
            Eq | Lt | Le | And | Or => NumericClass::Leaf,
            Add | Sub | Mul | Div | Rem => NumericClass::Pointwise,
        }
    }

    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }

    fn linear(&self) -> Linear {
        match self.f {
            BinaryOp::Add | BinaryOp::Sub => Linear::All,
            BinaryOp::Mul => Linear::Each(&[0, 1]),
            BinaryOp::Div => Linear::Each(&[0]),
            _ => Linear::No,
        }
    }

    fn bounds(&self, k: &Known) -> Bounds {
        use BinaryOp::*;
        let (a, b) = (k.x(0), k.x(1));
        match self.f {
            Add => a.plus(b),
            Sub => a.plus(b.negated()),
            Mul if k.same(0, 1) => {
                let a = a.abs();
                a.times(a)
            }
            Mul => a.times(b),
            Div => a.times(b.inverse()),
            Max => a.max(b),
            Min => a.min(b),
            Pow if a.lo >= 0.0 => Bounds::new(0.0, f64::INFINITY),
            _ => Bounds::ALL,
        }
    }

    fn reach(&self, k: &Known) -> Reach {
        use BinaryOp::*;
        match self.f {
            Mul if k.alike(0, 1) => {
                Reach::Beyond("a square overflows f16 beyond 256 and underflows below 0.008")
            }
            Mul => Reach::Times(k.factor(0) * k.factor(1)),
            Div if k.x(1).is_number() && k.x(1).lo != 0.0 => {
                Reach::Times(k.reach(0) / k.x(1).lo.abs())
            }
            // A divisor that f16 would hold as a normal number makes nothing much larger.
            Div if k.x(1).away(0.0) >= DType::F16.facts().min_normal => Reach::Times(k.reach(0)),
            Div => Reach::Beyond("a quotient by what may be small overflows f16"),
            Pow => Reach::Beyond("a power overflows or underflows in f16"),
            _ => Reach::Times(k.farthest()),
        }
    }

    fn poles(&self) -> &'static [Pole] {
        use BinaryOp::*;
        match self.f {
            Div => const { &[Pole::divisor(1)] },
            Pow => const { &[Pole::of(0, 0.0)] },
            _ => &[],
        }
    }

    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        use BinaryOp::*;
        if cx.ty(cx.y(0)).kind() != Kind::Real {
            return Ok(vec![None, None]);
        }
        let (a, b, y, dy) = (cx.x(0), cx.x(1), cx.y(0), cx.only_dy(0)?);
        let (da, db) = match self.f {
            Add => (dy, dy),
            Sub => (dy, cx.un(UnaryOp::Neg, dy)),
            Mul => (cx.mul(dy, b), cx.mul(dy, a)),
            Div => {
                let da = cx.bin(Div, dy, b);
                let t = cx.mul(da, y);
                (da, cx.un(UnaryOp::Neg, t))
            }
            Rem => {
                // a − q b: the quotient q is an integer, and constant where it is differentiable.
                let multiple = cx.bin(Sub, a, y);
                let q = cx.bin(Div, multiple, b);
                let q = cx.un(UnaryOp::RoundEven, q);
                let t = cx.mul(dy, q);
                (dy, cx.un(UnaryOp::Neg, t))
            }
            Max | Min => {
                // Equal operands share the cotangent, as in PyTorch.
                let half = cx.scale(dy, 0.5);
                let zero = cx.full(0.0, &cx.shape(dy));
                let less = cx.bin(Lt, a, b);
                let equal = cx.bin(Eq, a, b);
                let (won, lost) = if self.f == Max { (zero, dy) } else { (dy, zero) };
                let da = cx.op(Select {}, &[less, won, lost]);
                let db = cx.op(Select {}, &[less, lost, won]);
                (cx.op(Select {}, &[equal, half, da]), cx.op(Select {}, &[equal, half, db]))
            }
            Pow => {
                let one = cx.full(1.0, &cx.shape(b));
                let less = cx.bin(Sub, b, one);
                let p = cx.bin(Pow, a, less);
                let t = cx.mul(b, p);
                let da = cx.mul(dy, t);
                let log = cx.un(UnaryOp::Log, a);
                let t = cx.mul(y, log);
                let db = cx.mul(dy, t);
                // As PyTorch at base 0, where the formulas give 0 · ∞: a⁰ is constant, and 0^b
                // does not depend on b ≥ 0.
                let zero = cx.full(0.0, &cx.shape(b));
                let constant = cx.bin(Eq, b, zero);
                let da = cx.op(Select {}, &[constant, zero, da]);
                let vanishes = cx.bin(Eq, a, zero);
                let counts = cx.bin(Le, zero, b);
                let flat = cx.bin(And, vanishes, counts);
                (da, cx.op(Select {}, &[flat, zero, db]))
            }
            Eq | Lt | Le | And | Or => unreachable!("bool results have no cotangent"),
        };
        Ok(vec![Some(da), Some(db)])
    }

    fn row_spec(&self, _: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        RowSpec::elementwise(2, y)
    }

    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        vec![b.bin(self.f, x[0], x[1])]
    }
}
