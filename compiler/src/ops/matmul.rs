//! Matrix products.

use super::activation::Act;
use super::{GradCx, Grads, Linear, Lowering, NumericClass, OpDef, ProgramBuilder};
use crate::ir::TensorType;
use precast_plan::{Math, Reg};

/// What is fused behind the product; chosen by the e-graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Fused {
    None,
    /// `+ bias[n]`
    Bias,
    /// `relu(… + bias[n])`
    BiasRelu,
    /// `gelu(… + bias[n])`, with the pre-activation as second result.
    BiasGelu,
    BiasGeluTanh,
}
crate::word_attr!(Fused {
    Fused::None = "none", Fused::Bias = "bias", Fused::BiasRelu = "bias_relu",
    Fused::BiasGelu = "bias_gelu", Fused::BiasGeluTanh = "bias_gelu_tanh",
});

impl Fused {
    pub const ALL: [Fused; 5] =
        [Fused::None, Fused::Bias, Fused::BiasRelu, Fused::BiasGelu, Fused::BiasGeluTanh];

    pub const fn act(self) -> Option<Act> {
        match self {
            Fused::None | Fused::Bias => None,
            Fused::BiasRelu => Some(Act::Relu),
            Fused::BiasGelu => Some(Act::Gelu),
            Fused::BiasGeluTanh => Some(Act::GeluTanh),
        }
    }

    /// What the name of a product ends in that has this behind it, after a `+`.
    pub const fn suffix(self) -> Option<&'static str> {
        match self {
            Fused::None => None,
            Fused::Bias => Some("bias"),
            Fused::BiasRelu => Some("relu"),
            Fused::BiasGelu | Fused::BiasGeluTanh => Some("gelu"),
        }
    }

    pub const fn has_bias(self) -> bool {
        !matches!(self, Fused::None)
    }

    /// Whether the pre-activation is a second result.
    pub const fn has_aux(self) -> bool {
        matches!(self, Fused::BiasGelu | Fused::BiasGeluTanh)
    }

    /// Instructions from the accumulator (and the bias) to the results.
    pub fn emit(self, b: &mut ProgramBuilder, acc: Reg, bias: Option<Reg>) -> Vec<Reg> {
        let pre = bias.map_or(acc, |bias| b.add(acc, bias));
        let Some(act) = self.act() else { return vec![pre] };
        let y = act.emit(b, pre);
        if self.has_aux() { vec![y, pre] } else { vec![y] }
    }
}

/// The model's own name of an operation: that of the product, where more was fused behind it.
pub fn source_name(name: &str) -> &str {
    let mut suffixes = Fused::ALL.iter().filter_map(|f| f.suffix());
    suffixes
        .find_map(|s| name.strip_suffix(s).and_then(|name| name.strip_suffix('+')))
        .unwrap_or(name)
}

op! {
    /// `y[…,m,n] = Σ_k a[…,m,k] b[…,k,n]`, f32 accumulation; leading extents equal. Transposed
    /// operands are views. With `fused`, the third operand is the bias [n]. With `scaled`, the last
    /// operand is a scalar that the sums are multiplied with before anything else: what undoes the
    /// scales of FP8 operands.
    MatMul = "matmul" { fused: Fused } or { math: Math, scaled: bool }
}

impl MatMul {
    pub fn plain() -> MatMul {
        MatMul::with(Fused::None)
    }

    /// Exact and unscaled, with something behind it.
    pub fn with(fused: Fused) -> MatMul {
        MatMul { fused, math: Math::Exact, scaled: false }
    }

    /// Instructions from the accumulator and the operands after the first two to the results.
    pub fn emit(&self, b: &mut ProgramBuilder, acc: Reg, rest: &[Reg]) -> Vec<Reg> {
        let (bias, factor) = match (rest, self.scaled) {
            (&[bias, factor], true) => (Some(bias), Some(factor)),
            (&[factor], true) => (None, Some(factor)),
            (rest, _) => (rest.first().copied(), None),
        };
        let sum = factor.map_or(acc, |f| b.mul(acc, f));
        self.fused.emit(b, sum, bias)
    }
}

impl OpDef for MatMul {
    fn infer(&self, x: &[&TensorType]) -> Result<Vec<TensorType>, String> {
        let kinds = match (self.fused.has_bias(), self.scaled) {
            (false, false) => "rr",
            (true, true) => "rrrr",
            _ => "rrr",
        };
        super::signature(x, kinds)?;
        let (a, b) = (&x[0].shape, &x[1].shape);
        let r = a.rank();
        if r < 2 || b.rank() != r || a[..r - 2] != b[..r - 2] || a[r - 1] != b[r - 2] {
            return Err(format!("{} and {} cannot be multiplied", x[0], x[1]));
        }
        let mut y = a.clone();
        y[r - 1] = b[r - 1];
        if self.fused.has_bias() && x[2].shape[..] != [y[r - 1]] {
            return Err(format!("the bias is {}, not [{}]", x[2], y[r - 1]));
        }
        if let Some(factor) = x.last().filter(|t| self.scaled && t.shape.rank() != 0) {
            return Err(format!("the factor is {factor}, not a scalar"));
        }
        let count = if self.fused.has_aux() { 2 } else { 1 };
        Ok(vec![TensorType::f32(y); count])
    }
    fn class(&self) -> NumericClass {
        NumericClass::Product
    }
    fn lowering(&self) -> Lowering {
        Lowering::Kernel
    }
    fn linear(&self) -> Linear {
        match (self.fused, self.scaled) {
            (Fused::None, false) => Linear::Each(&[0, 1]),
            (Fused::None, true) => Linear::Each(&[0, 1, 2]),
            _ => Linear::No,
        }
    }
    fn gradient(&self, cx: &mut GradCx) -> Result<Grads, String> {
        if self.fused != Fused::None || self.scaled {
            return Err("fused products come after differentiation".into());
        }
        let (a, b, dy) = (cx.x(0), cx.x(1), cx.only_dy(0)?);
        let r = cx.shape(a).rank();
        let mut swap: Vec<usize> = (0..r).collect();
        swap.swap(r - 2, r - 1);
        let bt = cx.transpose(b, &swap);
        let da = cx.op(MatMul::plain(), &[dy, bt]);
        let at = cx.transpose(a, &swap);
        let db = cx.op(MatMul::plain(), &[at, dy]);
        Ok(vec![Some(da), Some(db)])
    }
    fn flops(&self, x: &[&TensorType], y: &[&TensorType]) -> f64 {
        2.0 * y[0].shape.elements() as f64 * x[0].shape[x[0].shape.rank() - 1] as f64
    }
}
