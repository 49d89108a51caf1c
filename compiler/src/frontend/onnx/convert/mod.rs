//! One converter per ONNX operator, in files by family.

mod activation;
mod attention;
mod conv;
mod distance;
mod einsum;
mod elementwise;
mod fourier;
mod grid;
mod index;
mod instead;
mod linear;
mod loss;
mod movement;
mod norm;
mod order;
mod pool;
mod recurrence;
mod reduce;
mod resize;
mod rotary;
mod safe;
mod scatter;
mod window;

pub use index::whole;
pub use instead::instead_of;
pub use movement::stacked;
pub use reduce::most;

use super::fold;
use super::import::{Call, Importer, Res, Val};
use super::node::fail;
use super::tensor::Tensor;

/// Operators that import knows, sorted. Some only where their operands are known when compiling.
pub const SUPPORTED: &[&str] = &[
    "Abs",
    "Acos",
    "Acosh",
    "Add",
    "AffineGrid",
    "And",
    "ArgMax",
    "ArgMin",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "Attention",
    "AveragePool",
    "BatchNormalization",
    "BitwiseAnd",
    "BitwiseNot",
    "BitwiseOr",
    "BitwiseXor",
    "Cast",
    "CastLike",
    "Ceil",
    "Celu",
    "Clip",
    "Col2Im",
    "Compress",
    "Concat",
    "ConcatFromSequence",
    "Constant",
    "ConstantOfShape",
    "Conv",
    "ConvTranspose",
    "Cos",
    "Cosh",
    "CumSum",
    "DFT",
    "DepthToSpace",
    "Div",
    "Dropout",
    "Einsum",
    "Elu",
    "Equal",
    "Erf",
    "Exp",
    "Expand",
    "EyeLike",
    "Flatten",
    "Floor",
    "GRU",
    "Gather",
    "GatherElements",
    "GatherND",
    "Gelu",
    "Gemm",
    "GlobalAveragePool",
    "GlobalLpPool",
    "GlobalMaxPool",
    "Greater",
    "GreaterOrEqual",
    "GridSample",
    "GroupNormalization",
    "HardSigmoid",
    "HardSwish",
    "Hardmax",
    "Identity",
    "If",
    "InstanceNormalization",
    "IsInf",
    "IsNaN",
    "LRN",
    "LSTM",
    "LayerNormalization",
    "LeakyRelu",
    "Less",
    "LessOrEqual",
    "Log",
    "LogSoftmax",
    "Loop",
    "LpNormalization",
    "LpPool",
    "MatMul",
    "Max",
    "MaxPool",
    "Mean",
    "Min",
    "Mish",
    "Mod",
    "Mul",
    "Neg",
    "NegativeLogLikelihoodLoss",
    "NonZero",
    "Not",
    "OneHot",
    "Or",
    "PRelu",
    "Pad",
    "Pow",
    "RMSNormalization",
    "RNN",
    "Range",
    "Reciprocal",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ReduceMax",
    "ReduceMean",
    "ReduceMin",
    "ReduceProd",
    "ReduceSum",
    "ReduceSumSquare",
    "Relu",
    "Reshape",
    "Resize",
    "ReverseSequence",
    "RotaryEmbedding",
    "Round",
    "ScatterElements",
    "ScatterND",
    "Selu",
    "SequenceAt",
    "SequenceConstruct",
    "SequenceEmpty",
    "SequenceInsert",
    "SequenceLength",
    "Shape",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Size",
    "Slice",
    "Softmax",
    "SoftmaxCrossEntropyLoss",
    "Softplus",
    "Softsign",
    "SpaceToDepth",
    "Split",
    "SplitToSequence",
    "Sqrt",
    "Squeeze",
    "Sub",
    "Sum",
    "SwiGLU",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Tile",
    "TopK",
    "Transpose",
    "Trilu",
    "Unsqueeze",
    "Where",
    "Xor",
];

/// Operators that only move elements.
pub const MOVING: &[&str] = &[
    "DepthToSpace",
    "Expand",
    "Flatten",
    "Reshape",
    "Resize",
    "Slice",
    "SpaceToDepth",
    "Split",
    "SplitToSequence",
    "Squeeze",
    "Tile",
    "Transpose",
    "Unsqueeze",
];

/// Attributes that change nothing that is computed here, by operator.
const WITHOUT_EFFECT: &[(&str, &[&str])] = &[
    // Four axes say the heads; softmax is computed in f32 whatever is asked.
    ("Attention", &["q_num_heads", "kv_num_heads", "softmax_precision"]),
    // Of the running statistics, which inference does not update.
    ("BatchNormalization", &["momentum", "training_mode"]),
    // Of casts to 8-bit floats, which are refused.
    ("Cast", &["saturate", "round_mode"]),
    ("CastLike", &["saturate", "round_mode"]),
    // The filter's own extents say it.
    ("Conv", &["kernel_shape"]),
    ("ConvTranspose", &["kernel_shape"]),
    // Masks are drawn from the recipe's seed.
    ("Dropout", &["seed"]),
    // Statistics are f32 whatever the format of the operand.
    ("GroupNormalization", &["stash_type"]),
    ("LayerNormalization", &["stash_type"]),
    ("RMSNormalization", &["stash_type"]),
    ("Range", &["stash_type"]),
    // Four axes say the heads.
    ("RotaryEmbedding", &["num_heads"]),
];

/// Converts a node: its results, in order.
///
/// # Errors
/// P0205 for an unknown operator, P0206 for a form of a known one that is not supported, and what
/// the operands get wrong.
pub fn node(cx: &mut Importer, call: &Call) -> Res<Vec<Val>> {
    for (_, names) in WITHOUT_EFFECT.iter().filter(|(op, _)| *op == call.op) {
        call.attrs.without_effect(names);
    }
    let too_large = match folded(call) {
        Ok(Some(t)) => return Ok(vec![Val::constant(t)]),
        Ok(None) => None,
        // A large value of literals, such as a mask of every query and key: operators that also take
        // values of the model compute it in the step.
        Err(d) if d.code == "P0213" => Some(d),
        Err(d) => return Err(d),
    };
    for family in [
        movement::convert,
        index::convert,
        scatter::convert,
        order::convert,
        einsum::convert,
        grid::convert,
        fourier::convert,
        distance::convert,
        elementwise::convert,
        activation::convert,
        linear::convert,
        conv::convert,
        norm::convert,
        reduce::convert,
        pool::convert,
        resize::convert,
        attention::convert,
        rotary::convert,
        loss::convert,
        recurrence::convert,
    ] {
        match (family(cx, call), &too_large) {
            (Ok(Some(v)), Some(_)) if v.iter().any(|v| beyond(cx, v)) => break,
            (Ok(Some(v)), _) => return Ok(v),
            (Ok(None), _) => {}
            (Err(e), None) => return Err(e),
            (Err(_), Some(_)) => break,
        }
    }
    if let Some(d) = too_large {
        return Err(d);
    }
    if SUPPORTED.contains(&call.op) {
        return Err(fail(
            "P0216",
            format!("`{}` is evaluated when compiling, but here it depends on data", call.op),
        )
        .help(
            "Precast has this operator for shapes, positions and masks that follow from constants, \
             not for values of the model; docs/EXPORTING.md lists the operators",
        ));
    }
    let near = crate::diagnostic::nearest(call.op, SUPPORTED.iter().copied());
    let d = fail("P0205", format!("operator `{}` is not supported", call.op));
    Err(match near {
        _ if instead_of(call.op).is_some() => {
            d.help(instead_of(call.op).expect("there is something"))
        }
        Some(s) => d.help(format!(
            "did you mean `{s}`? Else express the model with supported operators (`precast check MODEL` \
             lists what is missing)"
        )),
        None => d.help(
            "express the model with supported operators (`precast check MODEL` lists what is missing)",
        ),
    })
}

/// Whether a step should not compute a value of literals, for its size.
fn beyond(cx: &Importer, v: &Val) -> bool {
    cx.shape(v).is_ok_and(|s| fold::is_beyond(&s))
}

/// The result where all operands are literals and the operator is evaluated when compiling.
fn folded(call: &Call) -> Res<Option<Tensor>> {
    let mut literals = Vec::with_capacity(call.inputs.len());
    for x in &call.inputs {
        match x {
            None => literals.push(None),
            Some(Val::Const(t)) => literals.push(Some((**t).clone())),
            Some(_) => return Ok(None),
        }
    }
    // What the exporter wrote is not what the module has.
    let hides =
        call.op == "Where" && call.input(2).is_some_and(|b| safe::hidden(call, b).is_some());
    if literals.is_empty() || hides {
        return Ok(None);
    }
    let folded = fold::eval(call.op, &literals, &call.attrs)?;
    if folded.is_some() {
        call.read.mark_all();
    }
    Ok(folded)
}

/// Turns words about operands into a message.
fn words(e: String) -> super::Diagnostic {
    fail("P0214", e)
}
