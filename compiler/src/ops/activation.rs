//! Activations that networks use as one step, and their gradients.

use super::{
    Bounds, GradCx, Grads, Known, Linear, Lowering, NumericClass, OpDef, ProgramBuilder, Reach,
    RowSpec, same_shape, signature,
};
use crate::ir::TensorType;
use precast_plan::{BinaryOp, Reg, UnaryOp};

/// Which activation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Act {
    Relu,
    /// `x Φ(x)` with the Gauss error function (Hendrycks & Gimpel, 2016).
    Gelu,
    /// Its tanh approximation.
    GeluTanh,
    /// `x σ(x)`.
    Silu,
    /// `log(1 + exp(x))`, for any x; its negative at −x is the logarithm of the sigmoid.
    Softplus,
}
crate::word_attr!(Act {
    Act::Relu = "relu",
    Act::Gelu = "gelu",
    Act::GeluTanh = "gelu_tanh",
    Act::Silu = "silu",
    Act::Softplus = "softplus",
});

impl Act {
    pub const ALL: [Act; 5] = [Act::Relu, Act::Gelu, Act::GeluTanh, Act::Silu, Act::Softplus];

    /// Whether the derivative is computed from the result rather than from the operand, so that the
    /// operand need not be kept.
    pub const fn grad_reads_result(self) -> bool {
        matches!(self, Act::Relu)
    }

    fn class(self) -> NumericClass {
        match self {
            Act::Relu => NumericClass::Movement,
            Act::Softplus => NumericClass::Sensitive,
            Act::Gelu | Act::GeluTanh | Act::Silu => NumericClass::Pointwise,
        }
    }

    /// Instructions of `act(x)`.
    pub fn emit(self, b: &mut ProgramBuilder, x: Reg) -> Reg {
        match self {
            Act::Relu => {
                let zero = b.real(0.0);
                b.bin(BinaryOp::Max, x, zero)
            }
            Act::Gelu => {
                let u = b.scale(x, std::f64::consts::FRAC_1_SQRT_2);
                let e = b.un(UnaryOp::Erf, u);
                let one = b.real(1.0);
                let t = b.add(e, one);
                let h = b.scale(x, 0.5);
                b.mul(h, t)
            }
            Act::GeluTanh => {
                let t = tanh_of_cubic(b, x);
                let one = b.real(1.0);
                let t = b.add(t, one);
                let h = b.scale(x, 0.5);
                b.mul(h, t)
            }
            Act::Silu => {
                let s = b.un(UnaryOp::Sigmoid, x);
                b.mul(x, s)
            }
            Act::Softplus => {
                // max(x, 0) + log1p(exp(−|x|)): nothing overflows, nothing cancels.
                let zero = b.real(0.0);
                let high = b.bin(BinaryOp::Max, x, zero);
                let m = b.un(UnaryOp::Abs, x);
                let m = b.un(UnaryOp::Neg, m);
                let e = b.un(UnaryOp::Exp, m);
                let l = b.un(UnaryOp::Log1p, e);
                b.add(high, l)
            }
        }
    }

    /// Instructions of `act'(x) · dy`; `x` is the result where [`Act::grad_reads_result`].
    pub fn emit_grad(self, b: &mut ProgramBuilder, x: Reg, dy: Reg) -> Reg {
        let one = b.real(1.0);
        match self {
            Act::Relu => {
                let zero = b.real(0.0);
                let positive = b.bin(BinaryOp::Lt, zero, x);
                b.select(positive, dy, zero)
            }
            Act::Gelu => {
                let u = b.scale(x, std::f64::consts::FRAC_1_SQRT_2);
                let e = b.un(UnaryOp::Erf, u);
                let t = b.add(e, one);
                let cdf = b.scale(t, 0.5);
                let uu = b.mul(u, u);
                let m = b.un(UnaryOp::Neg, uu);
                let g = b.un(UnaryOp::Exp, m);
                let xg = b.mul(x, g);
                let pdf = b.scale(xg, 1.0 / (2.0 * std::f64::consts::PI).sqrt());
                let d = b.add(cdf, pdf);
                b.mul(dy, d)
            }
            Act::GeluTanh => {
                let t = tanh_of_cubic(b, x);
                let xx = b.mul(x, x);
                let cubic = b.scale(xx, 3.0 * 0.044715);
                let inner = b.add(cubic, one);
                let du = b.scale(inner, (2.0 / std::f64::consts::PI).sqrt());
                let tt = b.mul(t, t);
                let rest = b.sub(one, tt);
                let p = b.mul(rest, du);
                let px = b.mul(p, x);
                let t1 = b.add(t, one);
                let s = b.add(t1, px);
                let d = b.scale(s, 0.5);
                b.mul(dy, d)
            }
            Act::Silu => {
                let s = b.un(UnaryOp::Sigmoid, x);
                let rest = b.sub(one, s);
                let t = b.mul(x, rest);
                let t = b.add(t, one);
                let d = b.mul(s, t);
                b.mul(dy, d)
            }
            Act::Softplus => {
                let s = b.un(UnaryOp::Sigmoid, x);
                b.mul(dy, s)
            }
        }
    }
}

/// `tanh(√(2/π) (x + 0.044715 x³))`
fn tanh_of_cubic(b: &mut ProgramBuilder, x: Reg) -> Reg {
    let xx = b.mul(x, x);
    let c = b.scale(xx, 0.044715);
    let one = b.real(1.0);
    let c = b.add(c, one);
    let u = b.mul(x, c);
    let u = b.scale(u, (2.0 / std::f64::consts::PI).sqrt());
    b.un(UnaryOp::Tanh, u)
}

op! {
    /// `act(x)`.
    Activate = "activate" { act: Act }
}

op! {
    /// `act'(x) · dy` of operands (x, dy); for relu the first operand is `act(x)`.
    ActivateGrad = "activate_grad" { act: Act }
}

impl OpDef for Activate {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "r")?;
        Ok(vec![TensorType::f32(x[0].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        self.act.class()
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn bounds(&self, k: &Known) -> Bounds {
        match self.act {
            Act::Relu => k.x(0).max(Bounds::at(0.0)),
            // Least values: −0.170, −0.171, −0.279.
            Act::Gelu | Act::GeluTanh | Act::Silu => Bounds::new(-0.28, k.x(0).hi.max(0.0)),
            Act::Softplus => Bounds::new(0.0, k.x(0).hi.max(0.0) + std::f64::consts::LN_2),
        }
    }
    fn reach(&self, k: &Known) -> Reach {
        match self.act {
            Act::Softplus => Reach::Beyond("a logarithm is f32"),
            Act::Relu | Act::Gelu | Act::GeluTanh | Act::Silu => Reach::Times(k.reach(0)),
        }
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        let saved = if self.act.grad_reads_result() { cx.y(0) } else { cx.x(0) };
        let dy = cx.only_dy(0)?;
        Ok(vec![Some(cx.op(ActivateGrad { act: self.act }, &[saved, dy]))])
    }
    fn row_spec(&self, _: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        RowSpec::elementwise(1, y)
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        vec![self.act.emit(b, x[0])]
    }
}

impl OpDef for ActivateGrad {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        signature(x, "rr")?;
        same_shape(x)?;
        Ok(vec![TensorType::f32(x[0].shape.clone())])
    }
    fn class(&self) -> NumericClass {
        self.act.class()
    }
    fn lowering(&self) -> Lowering {
        Lowering::Rows
    }
    fn linear(&self) -> Linear {
        Linear::Each(&[1])
    }
    fn masked_by(&self) -> Option<usize> {
        (self.act == Act::Relu).then_some(0)
    }
    /// Derivatives of activations are about 1 at most.
    fn reach(&self, k: &Known) -> Reach {
        Reach::Times(k.reach(1))
    }
    fn row_spec(&self, _: &[&TensorType], y: &[&TensorType]) -> RowSpec {
        RowSpec::elementwise(2, y)
    }
    fn emit(&self, b: &mut ProgramBuilder, x: &[Reg]) -> Vec<Reg> {
        vec![self.act.emit_grad(b, x[0], x[1])]
    }
}
