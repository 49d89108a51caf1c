//! Whether a scalar initializer is a parameter or a literal of the program.
//!
//! A learnable temperature and the 0.5 of a formula are both rank-0 floats to ONNX; only the name
//! tells them apart. Parameters have their name in the module (`logit_scale`, `gate.0`), literals
//! what an exporter calls its own values.

/// What the name of a scalar says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Named {
    /// An exporter's name for a literal.
    Literal,
    /// A name in the module.
    Parameter,
    /// Neither: kept as a constant, and said so.
    Unclear,
}

/// Names that exporters give to literals, without the number at their end: `val_7`,
/// `lifted_tensor_0` and `full_2` of torch.export, `Constant_4` and `const_fold_opt__12` of others.
const LITERALS: &[&str] = &[
    "",
    "_const",
    "_lifted_tensor_constant",
    "_tensor_constant",
    "_val",
    "const",
    "const_fold_opt",
    "constant",
    "empty",
    "full",
    "full_default",
    "full_like",
    "int",
    "lifted_tensor",
    "ones",
    "ones_like",
    "scalar",
    "scalar_tensor",
    "scalar_tensor_default",
    "tensor_constant",
    "tmp",
    "val",
    "zeros",
    "zeros_like",
];

/// How other literals of exporters begin.
const LITERAL_PREFIXES: &[&str] = &["/", "_inlfunc_", "const_", "constant_", "node_"];

/// Operations of torch.export's graphs: a scalar of such a name is what the exporter's optimizer
/// computed beforehand, of literals or of a parameter.
const OPERATIONS: &[&str] = &[
    "_to_copy",
    "abs",
    "add",
    "alias",
    "cat",
    "clamp",
    "clamp_max",
    "clamp_min",
    "clone",
    "cos",
    "detach",
    "div",
    "erf",
    "exp",
    "expand",
    "expm1",
    "getitem",
    "item",
    "lift_fresh",
    "lift_fresh_copy",
    "log",
    "log1p",
    "log2",
    "maximum",
    "mean",
    "minimum",
    "mul",
    "neg",
    "pow",
    "prod",
    "reciprocal",
    "relu",
    "rsqrt",
    "rsub",
    "select",
    "sigmoid",
    "sin",
    "softplus",
    "sqrt",
    "squeeze",
    "stack",
    "sub",
    "sum",
    "tanh",
    "to",
    "truediv",
    "unsqueeze",
    "view",
    "where",
];

/// What a scalar initializer's name says.
pub fn named(name: &str) -> Named {
    let lower = name.to_ascii_lowercase();
    let stem = lower.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_');
    // TorchScript names a node's result `…_output_0`.
    let result = stem.ends_with("_output") && stem.len() < lower.len();
    // Bounds and factors inside operators of torch.export: `max_val_cast`, `beta_cast_2`.
    if name.contains("::")
        || result
        || stem.ends_with("_cast")
        || LITERALS.contains(&stem)
        || LITERAL_PREFIXES.iter().any(|p| lower.starts_with(p))
    {
        return Named::Literal;
    }
    let word = |w: &str| {
        !w.is_empty() && w.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    };
    if OPERATIONS.contains(&stem) || !name.split('.').all(word) {
        return Named::Unclear;
    }
    Named::Parameter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_modules_and_of_exporters_are_told_apart() {
        // From files of both exporters of PyTorch 2.15, plain and optimised, of a model that has
        // each kind.
        for name in ["temp", "logit_scale", "gate.0", "a.k", "buf", "cls", "h.3.attn.scale"] {
            assert_eq!(named(name), Named::Parameter, "{name}");
        }
        for name in [
            "onnx::Add_53",
            "/layer/Constant_output_0",
            "val_3",
            "_val_3",
            "lifted_tensor_0",
            "full",
            "zeros",
            "scalar_tensor_default_2",
            "_tensor_constant0",
            "const_fold_opt__12",
            "node_Constant_4",
            "max_val_cast",
            "beta_cast_2",
            "17",
        ] {
            assert_eq!(named(name), Named::Literal, "{name}");
        }
        for name in ["exp", "mul_5", "clone_1", "model/scale:0"] {
            assert_eq!(named(name), Named::Unclear, "{name}");
        }
    }
}
