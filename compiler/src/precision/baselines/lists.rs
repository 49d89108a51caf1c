//! The lists of PyTorch 2.15 (`autocast_mode.h`) and TensorFlow 2.21
//! (`auto_mixed_precision_lists.h`), on our operations. This is data about other systems, so it is
//! the one table outside `ops/` that has a row an operation.

use super::System;
use crate::ops::{Op, activation::Act};
use precast_plan::{BinaryOp, DType, ReduceOp, UnaryOp};

/// What PyTorch's autocast does with an operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Torch {
    /// Operands are cast to 16 bits.
    Lower,
    /// Operands are cast to f32.
    Full,
    /// Operands are read as they are, the result is f32, in one kernel.
    WideResult,
    /// Runs in the widest format of its operands.
    Pass,
}

/// `mean`: a sum that is scaled to a mean. `loss`: a part of the loss.
pub fn torch(system: System, op: &Op, mean: bool, loss: bool) -> Torch {
    use Torch::{Full, Lower, Pass, WideResult};
    if system == System::All {
        return if loss { Full } else { Lower };
    }
    if loss {
        // nll_loss and mse_loss are on both f32 lists. log_softmax inside cross_entropy stays
        // narrow and its result is cast: as many elements as its operand here.
        return Full;
    }
    if let Op::MatMul(_) | Op::Conv2d(_) | Op::Attention(_) = op {
        return Lower;
    }
    if system == System::TorchCpu {
        return match op {
            Op::CrossEntropy(_) => Full,
            _ => Pass,
        };
    }
    match op {
        Op::Softmax(_) => WideResult,
        Op::LayerNorm(_) | Op::CrossEntropy(_) | Op::CumSum(_) | Op::LogSumExp(_) => Full,
        Op::Activate(a) if a.act == Act::Softplus => Full,
        Op::Reduce(r) if r.f == ReduceOp::Sum && !mean => Full,
        Op::Unary(u) => match u.f {
            UnaryOp::Exp
            | UnaryOp::Expm1
            | UnaryOp::Log
            | UnaryOp::Log1p
            | UnaryOp::Recip
            | UnaryOp::Rsqrt
            | UnaryOp::Acos
            | UnaryOp::Asin
            | UnaryOp::Cosh
            | UnaryOp::Sinh
            | UnaryOp::Tan => Full,
            _ => Pass,
        },
        Op::Binary(b) if b.f == BinaryOp::Pow => Full,
        _ => Pass,
    }
}

/// TensorFlow's four lists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grappler {
    Allow,
    Deny,
    Infer,
    Clear,
    Unlisted,
}

/// `bias_grad`: a sum that is the gradient of a bias (`BiasAddGrad`). `mean`: a sum that is scaled
/// to a mean, or that scale. Composite operations stand for what TensorFlow makes of them: layer
/// normalisation in f16 for its `Mean` (deny), in bf16 for operations that are all infer.
pub fn grappler(op: &Op, half: DType, mean: bool, bias_grad: bool) -> Grappler {
    use Grappler::{Allow, Clear, Deny, Infer, Unlisted};
    let bf16 = half == DType::Bf16;
    let sums = if bf16 { Infer } else { Deny };
    match op {
        Op::MatMul(_)
        | Op::Conv2d(_)
        | Op::Conv2dDataGrad(_)
        | Op::Conv2dFilterGrad(_)
        | Op::Attention(_)
        | Op::AttentionGrad(_) => Allow,
        Op::CrossEntropy(_) | Op::CrossEntropyGrad(_) => Deny,
        Op::LogSumExp(_) | Op::LogSumExpGrad(_) => Deny,
        Op::Extremum(_) | Op::ExtremumGrad(_) => Clear,
        Op::Reduce(_) if bias_grad => Infer,
        Op::Reduce(r) => match r.f {
            ReduceOp::Sum => sums,
            _ => Clear,
        },
        Op::Scale(_) if mean => sums,
        Op::LayerNorm(_) | Op::LayerNormGrad(_) | Op::LayerNormParamGrad(_) => sums,
        Op::Unary(u) => match u.f {
            UnaryOp::Exp | UnaryOp::Expm1 => Deny,
            UnaryOp::Rsqrt if !bf16 => Unlisted,
            UnaryOp::Sin
            | UnaryOp::Cos
            | UnaryOp::Tan
            | UnaryOp::Asin
            | UnaryOp::Acos
            | UnaryOp::Atan
            | UnaryOp::Sinh
            | UnaryOp::Cosh
            | UnaryOp::Asinh
            | UnaryOp::Acosh
            | UnaryOp::Atanh => Unlisted,
            UnaryOp::Neg | UnaryOp::Abs | UnaryOp::Floor | UnaryOp::Ceil | UnaryOp::RoundEven => {
                Clear
            }
            UnaryOp::IsFinite => Clear,
            UnaryOp::Not | UnaryOp::ToReal | UnaryOp::ToInt | UnaryOp::ToBool => Unlisted,
            _ => Infer,
        },
        Op::Binary(b) => match b.f {
            BinaryOp::Pow => Deny,
            BinaryOp::Add | BinaryOp::Sub | BinaryOp::Mul | BinaryOp::Div => Infer,
            BinaryOp::Rem => Unlisted,
            _ => Clear,
        },
        Op::Activate(a) => activation(a.act),
        Op::ActivateGrad(a) => activation(a.act),
        Op::Scale(_) | Op::ScaleBy(_) | Op::Dropout(_) => Infer,
        Op::Softmax(_) | Op::SoftmaxGrad(_) | Op::BatchNorm(_) | Op::BatchNormGrad(_) => Infer,
        Op::Select(_)
        | Op::Reshape(_)
        | Op::Transpose(_)
        | Op::Broadcast(_)
        | Op::Slice(_)
        | Op::Concat(_)
        | Op::Pad(_)
        | Op::MaxPool2d(_)
        | Op::MaxPool2dGrad(_)
        | Op::Gather(_)
        | Op::StopGradient(_) => Clear,
        Op::Input(_)
        | Op::Var(_)
        | Op::Const(_)
        | Op::Iota(_)
        | Op::Cast(_)
        | Op::ScatterAdd(_)
        | Op::Recurrence(_)
        | Op::RecurrenceGrad(_)
        | Op::LastIndex(_)
        | Op::ReduceInt(_)
        | Op::CumSum(_)
        | Op::TopK(_)
        | Op::GradStats(_)
        | Op::SgdUpdate(_)
        | Op::AdamUpdate(_)
        | Op::EmaUpdate(_) => Unlisted,
    }
}

/// `Relu` is clear; the others are products and sums of `Erf`, `Tanh` and `Sigmoid`, all infer.
fn activation(act: Act) -> Grappler {
    if act == Act::Relu { Grappler::Clear } else { Grappler::Infer }
}
