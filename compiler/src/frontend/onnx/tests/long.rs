//! Masks of long sequences: never a literal for every query and key, and the same numbers as those of
//! short ones.

use super::super::malformed::{attr, int, load_in, model, node, tensor, value};
use super::super::proto::*;
use super::*;
use crate::frontend::recognise::recognise;
use crate::ir::Graph;
use crate::ir::verify::verify;
use crate::ops::{Attention, Op};
use crate::reference::{self, Tensor};
use crate::simplify::simplify;
use indexmap::IndexMap;

const HEADS: usize = 2;
const WIDTH: usize = 4;

fn scalar(name: &str, x: f32) -> TensorProto {
    tensor(name, &[], &[x])
}

fn ints(name: &str, dims: &[i64], data: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(elem::INT64),
        int64_data: data.to_vec(),
        ..TensorProto::default()
    }
}

/// The ways in which models hide the future.
const WAYS: [&str; 8] =
    ["is_causal", "window", "torchscript", "transformers", "chosen", "biased", "padded", "added"];

/// `y` of queries, keys and values `x`, [1, heads, t, width], under a mask that is made in one of
/// [`WAYS`].
fn attention(way: &str, t: usize) -> ModelProto {
    let n = |op: &str, x: &[&str], y: &str| node(op, x, &[y], vec![]);
    let tt = t as i64;
    let scores = [
        node(
            "Transpose",
            &["x"],
            &["xt"],
            vec![AttributeProto { ints: vec![0, 1, 3, 2], r#type: Some(7), ..attr("perm") }],
        ),
        n("MatMul", &["x", "xt"], "product"),
        n("Mul", &["product", "half"], "scores"),
    ];
    let probabilities = [
        node("Softmax", &["masked"], &["p"], vec![int("axis", -1)]),
        n("MatMul", &["p", "x"], "y"),
    ];
    let range = || n("Range", &["zero", "t", "one"], "at");
    let tall = || n("Reshape", &["at", "tall"], "queries");
    let masks = match way {
        "is_causal" => {
            vec![node("Attention", &["x", "x", "x"], &["y"], vec![int("is_causal", 1)])]
        }
        "window" => {
            let attributes = vec![int("is_causal", 1), int("left_window_size", 3)];
            vec![node("Attention", &["x", "x", "x"], &["y"], attributes)]
        }
        "torchscript" => vec![
            n("Expand", &["f1", "square"], "ones"),
            node("Trilu", &["ones"], &["lower"], vec![int("upper", 0)]),
            n("Equal", &["lower", "f0"], "future"),
            n("Where", &["future", "never", "f0"], "mask"),
            n("Add", &["scores", "mask"], "masked"),
        ],
        "transformers" => vec![
            node(
                "ConstantOfShape",
                &["square"],
                &["full"],
                vec![AttributeProto {
                    t: Some(Box::new(tensor("min", &[1], &[f32::MIN]))),
                    r#type: Some(4),
                    ..attr("value")
                }],
            ),
            node("Trilu", &["full", "one"], &["upper"], vec![int("upper", 1)]),
            range(),
            tall(),
            n("Greater", &["at", "queries"], "after"),
            node("Cast", &["after"], &["afterf"], vec![int("to", 1)]),
            n("Mul", &["upper", "afterf"], "mask2"),
            n("Unsqueeze", &["mask2", "front"], "mask"),
            n("Add", &["scores", "mask"], "masked"),
        ],
        "chosen" => vec![
            range(),
            tall(),
            n("LessOrEqual", &["at", "queries"], "seen"),
            n("Where", &["seen", "scores", "least"], "masked"),
        ],
        // A bias that falls with the distance, as ALiBi's.
        "biased" => vec![
            range(),
            tall(),
            n("LessOrEqual", &["at", "queries"], "seen"),
            node("Cast", &["at"], &["atf"], vec![int("to", 1)]),
            n("Mul", &["atf", "slopes"], "bias"),
            n("Add", &["scores", "bias"], "more"),
            n("Where", &["seen", "more", "least"], "masked"),
        ],
        // Samples of other lengths, and causality: chosen, or added as bool masks of PyTorch's attention
        // are exported.
        "padded" | "added" => [
            n("Slice", &["x", "zeros", "ends", "axes"], "first"),
            n("Reshape", &["first", "flat"], "flatx"),
            // The first key always counts, so that every query sees one.
            n("Less", &["flatx", "half"], "keep"),
            range(),
            tall(),
            n("LessOrEqual", &["at", "queries"], "seen"),
            n("And", &["seen", "keep"], "both"),
        ]
        .into_iter()
        .chain(match way {
            "padded" => vec![n("Where", &["both", "scores", "never"], "masked")],
            _ => vec![
                n("Where", &["both", "f0", "never"], "mask"),
                n("Add", &["scores", "mask"], "masked"),
            ],
        })
        .collect(),
        _ => unreachable!("{way}"),
    };
    let whole = way == "is_causal" || way == "window";
    let nodes = if whole { masks } else { [&scores[..], &masks, &probabilities].concat() };
    let init = vec![
        scalar("half", 0.5),
        scalar("f0", 0.0),
        scalar("f1", 1.0),
        scalar("never", f32::NEG_INFINITY),
        scalar("least", f32::MIN),
        tensor("slopes", &[HEADS as i64, 1, 1], &[-0.5, -0.25]),
        ints("square", &[2], &[tt, tt]),
        ints("tall", &[2], &[tt, 1]),
        ints("front", &[2], &[0, 1]),
        ints("zero", &[], &[0]),
        ints("one", &[], &[1]),
        ints("t", &[], &[tt]),
        ints("zeros", &[2], &[0, 0]),
        ints("ends", &[2], &[1, 1]),
        ints("axes", &[2], &[1, 3]),
        ints("flat", &[4], &[1, 1, 1, tt]),
    ];
    let read = |t: &TensorProto| nodes.iter().any(|n| n.input.contains(t.name.as_ref().unwrap()));
    // Initializers would be parameters.
    let constant = |t: TensorProto| {
        let value = AttributeProto { r#type: Some(4), ..attr("value") };
        let name = t.name.clone().unwrap();
        node("Constant", &[], &[&name], vec![AttributeProto { t: Some(Box::new(t)), ..value }])
    };
    let constants = init.into_iter().filter(read).map(constant);
    let mut m = model(constants.chain(nodes.iter().cloned()).collect(), vec![]);
    m.opset_import[0].version = Some(24);
    let g = m.graph.as_mut().unwrap();
    g.input = vec![value("x", &[1, HEADS as i64, tt, WIDTH as i64])];
    m
}

fn imported(way: &str, t: usize) -> Graph {
    let m = load_in(Path::new("."), &attention(way, t)).unwrap_or_else(|e| panic!("{way}: {e}"));
    let g = simplify(&m.graph).unwrap();
    verify(&g).unwrap();
    g
}

fn recognised(g: &Graph) -> Graph {
    let g = simplify(&recognise(g)).unwrap();
    verify(&g).unwrap();
    g
}

fn attentions(g: &Graph) -> Vec<&Attention> {
    let found = g.nodes().filter_map(|(_, n)| match &n.op {
        Op::Attention(a) => Some(a),
        _ => None,
    });
    found.collect()
}

#[test]
fn no_mask_of_a_long_sequence_is_a_literal() {
    for way in WAYS {
        let g = recognised(&imported(way, 16384));
        let [a] = attentions(&g)[..] else { panic!("{way} is not one attention") };
        assert!(a.causal, "{way}");
        assert_eq!(a.masked, ["window", "biased", "padded", "added"].contains(&way), "{way}");
        for (_, n) in g.nodes() {
            if let Op::Const(c) = &n.op {
                assert!(c.data.shape.elements() <= 1 << 16, "{way}: {}", n.name);
            }
            // Only what a mask is left of is of every query and key.
            let large = n.outputs.iter().any(|v| g.shape(*v).elements() >= 1 << 28);
            assert!(!large || a.masked, "{way}: {}", n.name);
        }
    }
}

/// The graph before attention is recognised says what it computes.
#[test]
fn masks_of_positions_are_those_of_literals() {
    for way in WAYS {
        // With literals, and beyond them where there is a limit.
        for t in [5, 70] {
            let before = imported(way, t);
            let after = recognised(&before);
            assert!(attentions(&before).is_empty() && attentions(&after).len() == 1, "{way}");
            assert!(attentions(&after)[0].causal, "{way} {t}");
            let x: Vec<f64> =
                (0..HEADS * t * WIDTH).map(|i| ((i * 37 % 101) as f64).sin()).collect();
            let inputs: IndexMap<String, Tensor> =
                [("x".to_string(), Tensor::real([1, HEADS, t, WIDTH], x))].into();
            let value = |g: &Graph| {
                reference::eval(g, &inputs, &IndexMap::new()).unwrap().results["out.y"].clone()
            };
            let (a, b) = (value(&before), value(&after));
            for (i, (a, b)) in a.reals().iter().zip(b.reals()).enumerate() {
                assert!((a - b).abs() < 1e-6, "{way} {t}: {a} became {b} at {i}");
            }
        }
    }
}
