//! Which fixture of `tests/fixtures/edges` holds each differentiable operation at its edges. An
//! operation that lands without a row here fails: either its derivative has points that are a matter
//! of convention, and `tests/peers/make_edges.py` gets them, or the row says why it has none.

use crate::cases::{Gradient, cases};
use precast_compiler::frontend::recognise::PASSES;
use precast_compiler::ir::{Attr, AttrValue};
use precast_compiler::ops::Op;
use std::collections::BTreeSet;

enum Edge {
    /// Functions of the fixture.
    At(&'static [&'static str]),
    /// Differentiable wherever it is finite, or linear, or constant: nothing to decide.
    Smooth(&'static str),
    /// Held against PyTorch elsewhere.
    Elsewhere(&'static str),
}
use Edge::{At, Elsewhere, Smooth};

const LINEAR: Edge = Smooth("linear");
const STEPS: Edge = Smooth("piecewise constant, and no cotangent flows through it");
const EVERYWHERE: Edge = Smooth("the derivative exists everywhere");

/// By operation, and by function where one operation has many.
const TABLE: &[(&str, Edge)] = &[
    ("activate.gelu", At(&["gelu"])),
    ("activate.gelu_tanh", At(&["gelu_tanh"])),
    ("activate.relu", At(&["relu", "relu6", "hardswish_written"])),
    ("activate.silu", At(&["silu"])),
    ("activate.softplus", At(&["softplus", "softplus_threshold", "mish"])),
    ("attention", Elsewhere("tests/masks.rs: rows without keys, by every way of masking")),
    ("batch_norm", Smooth("eps keeps the root from 0")),
    ("binary.add", LINEAR),
    ("binary.div", At(&["div", "x_over_x"])),
    ("binary.max", At(&["maximum"])),
    ("binary.min", At(&["minimum"])),
    ("binary.mul", EVERYWHERE),
    ("binary.pow", At(&["pow", "pow_0_0", "pow_1_5", "two_to_the"])),
    ("binary.rem", At(&["fmod", "remainder"])),
    ("binary.sub", LINEAR),
    ("broadcast", LINEAR),
    ("cast", LINEAR),
    ("concat", LINEAR),
    ("conv2d", EVERYWHERE),
    ("conv2d_data_grad", EVERYWHERE),
    ("conv2d_filter_grad", EVERYWHERE),
    ("cross_entropy", At(&["cross_entropy"])),
    ("cumsum", LINEAR),
    ("dropout", LINEAR),
    ("extremum.max", At(&["max_dim"])),
    ("extremum.min", At(&["min_dim"])),
    ("gather", LINEAR),
    ("layer_norm", Smooth("eps keeps the root from 0")),
    ("log_sum_exp", At(&["logsumexp", "log_sum_exp_written"])),
    ("matmul", EVERYWHERE),
    ("max_pool2d", Elsewhere("compiler/tests/semantics/numerics.rs: the first of equals")),
    ("pad", LINEAR),
    ("recurrence", Smooth("a relu takes its derivative from its result, which is 0 at 0")),
    ("reduce.max", At(&["amax", "amax_two", "max_whole", "norm_inf"])),
    ("reduce.min", At(&["amin_two"])),
    ("reduce.sum", LINEAR),
    ("reshape", LINEAR),
    ("scale", LINEAR),
    ("scale_by", LINEAR),
    ("scatter_add", LINEAR),
    ("select", At(&["where_sqrt", "is_inf", "clamp", "hardtanh", "softshrink"])),
    ("slice", LINEAR),
    ("softmax.false", At(&["softmax"])),
    ("softmax.true", At(&["log_softmax"])),
    ("stop_gradient", Smooth("no cotangent flows through it")),
    ("transpose", LINEAR),
    ("unary.abs", At(&["abs", "norm_1", "softsign"])),
    ("unary.acos", At(&["acos"])),
    ("unary.acosh", At(&["acosh"])),
    ("unary.asin", At(&["asin"])),
    ("unary.asinh", At(&["asinh"])),
    ("unary.atan", At(&["atan"])),
    ("unary.atanh", At(&["atanh"])),
    ("unary.ceil", At(&["ceil"])),
    ("unary.cos", EVERYWHERE),
    ("unary.cosh", EVERYWHERE),
    ("unary.erf", EVERYWHERE),
    ("unary.exp", EVERYWHERE),
    ("unary.expm1", At(&["expm1", "exp_minus_one", "elu", "celu", "selu"])),
    ("unary.floor", At(&["floor"])),
    ("unary.log", At(&["log"])),
    ("unary.log1p", At(&["log1p", "log_one_plus"])),
    ("unary.neg", LINEAR),
    ("unary.recip", At(&["reciprocal", "pow_m1_0", "pow_m2_0", "pow_m3_0"])),
    ("unary.round_even", At(&["round"])),
    ("unary.rsqrt", At(&["pow_m0_5"])),
    ("unary.sigmoid", At(&["sigmoid"])),
    ("unary.sin", EVERYWHERE),
    ("unary.sinh", At(&["sinh"])),
    ("unary.sqrt", At(&["sqrt", "pow_0_5", "norm", "normalize"])),
    ("unary.tan", EVERYWHERE),
    ("unary.tanh", At(&["tanh"])),
    ("unary.to_real", STEPS),
];

/// Patterns of recognition, by name.
const COMPOSITES: &[(&str, Edge)] = &[
    ("attention", Elsewhere("as the operation")),
    ("centring", At(&["softmax_written"])),
    ("expm1", At(&["exp_minus_one", "expm1"])),
    ("gelu", At(&["gelu", "gelu_tanh"])),
    ("layer_norm", Smooth("eps keeps the root from 0")),
    ("layer_norm_scale", LINEAR),
    ("layer_norm_shift", LINEAR),
    (
        "logarithm",
        At(&[
            "log_of_sigmoid",
            "log_of_rest",
            "log_of_softmax",
            "log_one_plus_exp",
            "log_one_plus",
            "log_add_exp",
            "log_sum_exp_written",
            "bce_with_logits",
        ]),
    ),
    ("norm", At(&["norm", "norm_whole", "norm_3", "cdist", "std"])),
    ("rows", Smooth("moves elements")),
    ("sigmoid", At(&["sigmoid_written"])),
    ("silu", At(&["silu"])),
];

/// The operation's name, with its function.
fn key(op: &Op) -> String {
    match op {
        Op::Unary(o) => format!("unary.{}", o.f.name()),
        Op::Binary(o) => format!("binary.{}", o.f.name()),
        Op::Reduce(o) => format!("reduce.{}", o.f.name()),
        Op::Extremum(o) => format!("extremum.{}", o.f.name()),
        Op::Softmax(o) => format!("softmax.{}", o.log),
        Op::Activate(o) => match o.act.to_attr() {
            Attr::Word(act) => format!("activate.{act}"),
            other => unreachable!("{other:?} names no activation"),
        },
        _ => op.name().into(),
    }
}

fn fixture() -> BTreeSet<String> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../tests/fixtures/edges/reference.safetensors");
    let bytes = std::fs::read(path).expect("the fixture is complete");
    let file = safetensors::SafeTensors::deserialize(&bytes).expect("a safetensors file");
    let name = |n: &str| Some(n.strip_prefix("in.")?.split('.').next()?.to_string());
    file.names().into_iter().filter_map(name).collect()
}

fn complete(what: &str, table: &[(&str, Edge)], wanted: &BTreeSet<String>) {
    let have: BTreeSet<String> = table.iter().map(|(k, _)| k.to_string()).collect();
    let missing: Vec<_> = wanted.difference(&have).collect();
    assert!(
        missing.is_empty(),
        "{what} without a row in the table of edges (this file, tests/peers/make_edges.py): {missing:?}"
    );
    let stale: Vec<_> = have.difference(wanted).collect();
    assert!(stale.is_empty(), "{what} that do not exist: {stale:?}");
    let fixture = fixture();
    for (name, edge) in table {
        match edge {
            At(functions) => {
                for f in *functions {
                    assert!(fixture.contains(*f), "{name}: the fixture has no function `{f}`");
                }
            }
            Smooth(why) | Elsewhere(why) => assert!(!why.is_empty(), "{name}"),
        }
    }
}

#[test]
fn every_differentiable_operation_has_its_edges() {
    let differentiable = |c: &crate::cases::Case| {
        let y = c.op.def().infer(&c.types()).expect("cases are well typed");
        c.gradient != Gradient::Refused && !c.x.is_empty() && y[0].is_real()
    };
    let wanted = cases().iter().filter(|c| differentiable(c)).map(|c| key(&c.op)).collect();
    complete("operations", TABLE, &wanted);
}

#[test]
fn every_recognised_composite_has_its_edges() {
    let wanted = PASSES.iter().map(|(name, _)| name.to_string()).collect();
    complete("composites", COMPOSITES, &wanted);
}
