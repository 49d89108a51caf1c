//! What import finds in a model as a whole: every fault at once, and what it warns of.

use super::malformed::{attr, int, ints, load_in, model, node, refused, tensor, value};
use super::proto::{AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto};
use super::*;
use crate::ir::Shape;
use crate::reference::{self, Tensor};
use indexmap::IndexMap;
use prost::Message;

fn imported(m: &ModelProto) -> Imported {
    load_in(Path::new("."), m).unwrap_or_else(|e| panic!("{e}"))
}

fn text(name: &str, s: &str) -> AttributeProto {
    AttributeProto {
        name: Some(name.into()),
        s: Some(s.as_bytes().to_vec().into()),
        r#type: Some(3),
        ..AttributeProto::default()
    }
}

#[test]
fn every_refused_node_is_told_once() {
    let sum = |x: &str, y: &str| node("Add", &[x, "w"], &[y], vec![]);
    let nodes = vec![
        sum("x", "a"),
        node("Relu", &["a"], &["b"], vec![]),
        // What reads a refused result is not looked at, like kinds are counted.
        node("Reluu", &["x"], &["c"], vec![]),
        node("Reluu", &["x"], &["d"], vec![]),
        node("Gelu", &["x"], &["e"], vec![text("approximate", "erf")]),
        sum("e", "y"),
    ];
    let list = refused(model(nodes, vec![tensor("w", &[2], &[0.0, 1.0])]));
    insta::assert_snapshot!(list);
}

#[test]
fn statistics_that_are_computed_are_no_frozen_ones() {
    let norm = |mean: &str| node("BatchNormalization", &["x", "w", "b", mean, "v"], &["y"], vec![]);
    let three = |name: &str| tensor(name, &[3], &[1.0, 2.0, 3.0]);
    let init = || ["w", "b", "m", "v"].map(three).to_vec();
    let frozen = imported(&model(vec![norm("m")], init()));
    let codes: Vec<_> = frozen.warnings.iter().map(|w| w.code).collect();
    assert_eq!(codes, ["P0221"]);
    let mean = node("ReduceMean", &["x"], &["c"], vec![int("keepdims", 0), axes(&[0])]);
    let computed = imported(&model(vec![mean, norm("c")], init()));
    assert!(computed.warnings.is_empty(), "{:?}", computed.warnings);
}

fn axes(list: &[i64]) -> AttributeProto {
    AttributeProto {
        name: Some("axes".into()),
        ints: list.to_vec(),
        r#type: Some(7),
        ..AttributeProto::default()
    }
}

/// As the TorchScript exporter writes `x.index_add(0, index, rows)`; other files mean what ONNX says.
#[test]
fn an_addition_that_was_written_as_a_replacement_adds_up() {
    let add = |index: &[i64], producer: &str| {
        let nodes = vec![
            node("Expand", &["x", "two"], &["rows"], vec![]),
            node("Expand", &["index", "two"], &["at"], vec![]),
            node("ScatterElements", &["zeros", "at", "rows"], &["s"], vec![int("axis", 0)]),
            node("Add", &["x", "s"], &["y"], vec![]),
        ];
        let mut at = ints("index", index);
        at.dims = vec![2, 1];
        let zeros = tensor("onnx::zeros", &[2, 3], &[0.0; 6]);
        let mut m = model(nodes, vec![zeros, at, ints("two", &[2, 3])]);
        let graph = m.graph.as_mut().unwrap();
        graph.initializer[0].dims = vec![];
        graph.initializer[0].raw_data = Some(vec![0; 4].into());
        graph.node.insert(0, node("Expand", &["onnx::zeros", "two"], &["zeros"], vec![]));
        m.producer_name = Some(producer.into());
        let g = imported(&m).graph;
        let x = Tensor::real(Shape::new(&[2, 3]), vec![1.0, 2.0, 3.0, 10.0, 20.0, 30.0]);
        let out =
            reference::eval(&g, &[("x".to_string(), x)].into_iter().collect(), &IndexMap::new());
        out.unwrap().results["out.y"].reals().to_vec()
    };
    let both = [12.0, 24.0, 36.0, 10.0, 20.0, 30.0];
    let last = [11.0, 22.0, 33.0, 10.0, 20.0, 30.0];
    assert_eq!(add(&[0, 0], "pytorch"), both);
    assert_eq!(add(&[0, 0], "another"), last);
    assert_eq!(add(&[1, 0], "pytorch"), add(&[1, 0], "another"));
}

#[test]
fn sizes_that_no_window_reaches_are_told() {
    let conv = |name: &str, list: &[i64]| {
        let sizes = AttributeProto { name: Some(name.into()), ..axes(list) };
        let stride = AttributeProto { name: Some("strides".into()), ..axes(&[2]) };
        let mut nodes = vec![node("Reshape", &["x", "shape"], &["r"], vec![])];
        nodes.push(node("ConvTranspose", &["r", "w"], &["y"], vec![sizes, stride]));
        let w = tensor("w", &[2, 1, 2], &[1.0; 4]);
        refused(model(nodes, vec![ints("shape", &[1, 2, 3]), w]))
    };
    insta::assert_snapshot!([conv("output_shape", &[9]), conv("output_padding", &[3])].join("\n"));
}

/// As torch.export writes a grouped `nn.Conv3d` without a bias.
#[test]
fn a_bias_of_zeros_adds_nothing() {
    let conv = |bias: &[f32]| {
        let nodes = vec![
            node("Reshape", &["x", "shape"], &["r"], vec![]),
            node("Conv", &["r", "w", "b"], &["y"], vec![]),
        ];
        let w = tensor("w", &[2, 2, 2], &[1.0; 8]);
        let b = tensor("b", &[bias.len() as i64], bias);
        model(nodes, vec![ints("shape", &[1, 2, 3]), w, b])
    };
    // A literal, not a parameter: what an `Expand` of a constant gives.
    let mut m = conv(&[0.0]);
    m.graph.as_mut().unwrap().node.insert(0, node("Expand", &["b", "three"], &["wide"], vec![]));
    m.graph.as_mut().unwrap().initializer.push(ints("three", &[3]));
    m.graph.as_mut().unwrap().node[2].input[2] = "wide".into();
    m.graph.as_mut().unwrap().initializer[2].dims = vec![];
    m.graph.as_mut().unwrap().initializer[2].name = Some("onnx::b".into());
    m.graph.as_mut().unwrap().node[0].input[0] = "onnx::b".into();
    let g = imported(&m).graph;
    assert_eq!(g.shape(g.result("out.y").unwrap())[..], [1, 2, 2]);
    assert!(refused(conv(&[1.0, 2.0, 3.0])).contains("the bias is [3], not [2]"));
}

/// Tables of positions that are filled part by part, and repeats that are written as one-hot codes.
#[test]
fn what_literals_compute_is_a_literal() {
    let rows = |name: &str, dims: &[i64], list: &[i64]| {
        let mut t = ints(name, list);
        t.dims = dims.to_vec();
        t
    };
    let nodes = vec![
        node("ScatterND", &["table", "at", "one"], &["filled"], vec![]),
        node("OneHot", &["axis", "rank", "values"], &["repeats"], vec![]),
        node("Reshape", &["repeats", "rank"], &["list"], vec![]),
        node("Gather", &["x", "filled"], &["picked"], vec![]),
        node("Tile", &["picked", "list"], &["y"], vec![]),
    ];
    let init = vec![
        rows("table", &[2], &[0, 0]),
        rows("at", &[1, 1], &[0]),
        rows("one", &[1], &[1]),
        rows("axis", &[1], &[-1]),
        rows("rank", &[1], &[2]),
        rows("values", &[2], &[1, 3]),
    ];
    let g = imported(&model(nodes, init)).graph;
    let x = Tensor::real(Shape::new(&[2, 3]), vec![1.0, 2.0, 3.0, 10.0, 20.0, 30.0]);
    let out = reference::eval(&g, &[("x".to_string(), x)].into_iter().collect(), &IndexMap::new());
    let y = &out.unwrap().results["out.y"];
    assert_eq!(y.shape()[..], [2, 9]);
    assert_eq!(y.reals()[..4], [10.0, 20.0, 30.0, 10.0]);
    assert_eq!(y.reals()[9..12], [1.0, 2.0, 3.0]);
}

#[test]
fn a_loop_is_its_steps_where_their_number_is_known() {
    let with = |before: Vec<NodeProto>, steps: Vec<TensorProto>| {
        let body = GraphProto {
            node: vec![
                node("Identity", &["go"], &["on"], vec![]),
                node("Cast", &["i"], &["real"], vec![int("to", 1)]),
                node("Mul", &["x", "real"], &["r"], vec![]),
            ],
            input: vec![value("i", &[]), value("go", &[])],
            output: vec![value("on", &[]), value("r", &[])],
            ..GraphProto::default()
        };
        let body = AttributeProto { g: Some(body.encode_to_vec().into()), ..attr("body") };
        let all = [before, vec![node("Loop", &["n", ""], &["y"], vec![body])]].concat();
        model(all, steps)
    };
    let steps = TensorProto { dims: vec![], ..ints("n", &[3]) };
    let g = imported(&with(vec![], vec![steps])).graph;
    let x = Tensor::real(Shape::new(&[2, 3]), vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let out = reference::eval(&g, &[("x".to_string(), x)].into_iter().collect(), &IndexMap::new());
    let y = &out.unwrap().results["out.y"];
    assert_eq!(y.shape()[..], [3, 2, 3]);
    assert_eq!(y.reals()[..7], [0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0]);
    assert_eq!(y.reals()[17], 12.0);
    let count = vec![
        node("Cast", &["x"], &["whole"], vec![int("to", 7)]),
        node("ReduceMax", &["whole"], &["n"], vec![int("keepdims", 0)]),
    ];
    let said = refused(with(count, vec![]));
    assert!(said.contains("error[P0215]: the number of steps of `Loop` depends on data"), "{said}");
    let endless = TensorProto { dims: vec![], ..ints("n", &[i64::MAX]) };
    let said = refused(with(vec![], vec![endless]));
    assert!(said.contains("subgraphs become more than 16384 nodes"), "{said}");
}
