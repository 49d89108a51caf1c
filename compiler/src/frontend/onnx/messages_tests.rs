//! What is said of shapes that do not fit, and of dropout that does not drop.

use super::malformed::{load_in, model, node, tensor};
use super::proto::*;
use super::*;
use prost::Message;

/// A value whose axes have extents or names.
fn value(name: &str, dims: &[Dim]) -> ValueInfoProto {
    let dim = |d: &Dim| match d {
        Dim::Known(n) => DimensionProto { dim_value: Some(*n as i64), dim_param: None },
        Dim::Named(s) => DimensionProto { dim_value: None, dim_param: Some(s.clone()) },
    };
    let shape = TensorShapeProto { dim: dims.iter().map(dim).collect() };
    let tensor = TensorTypeProto { elem_type: Some(elem::FLOAT), shape: Some(shape) };
    ValueInfoProto {
        name: Some(name.into()),
        r#type: Some(TypeProto { tensor_type: Some(tensor) }),
    }
}

fn known(n: usize) -> Dim {
    Dim::Known(n)
}

fn named(s: &str) -> Dim {
    Dim::Named(s.into())
}

/// What importing `x + m` says where they have these axes and the data these shapes.
fn said(x: &[Dim], m: &[Dim], data: &[(&str, &[usize])], by_option: bool) -> String {
    let mut sum = model(vec![node("Add", &["x", "m"], &["y"], vec![])], vec![]);
    sum.graph.as_mut().unwrap().input = vec![value("x", x), value("m", m)];
    let opts = ImportOptions {
        input_shapes: data.iter().map(|(n, s)| (n.to_string(), s.to_vec())).collect(),
        training: true,
        dims_by_option: by_option,
        ..ImportOptions::default()
    };
    let path = Path::new("./model.onnx");
    match load_bytes(path, sum.encode_to_vec(), &opts) {
        Ok(_) => "imported".into(),
        Err(e) => e.to_string(),
    }
}

#[test]
fn faults_of_extents_name_the_axis_and_the_option_of_the_exporter() {
    let fixed = [known(1), known(28)];
    let free = [named("batch"), known(28)];
    let apart = [named("batch"), named("seq")];
    let list = [
        said(&free, &free, &[], false),
        said(&free, &apart, &[], true),
        said(&fixed, &fixed, &[("x", &[32, 28])], false),
        said(&fixed, &fixed, &[("x", &[1, 32])], false),
        said(&fixed, &fixed, &[("x", &[1, 2, 14])], false),
        said(&free, &free, &[("x", &[8, 28]), ("m", &[4, 28])], false),
        said(&[named("n"), named("n")], &fixed, &[("x", &[8, 4])], false),
        said(&[named("n"), known(0)], &fixed, &[("x", &[8, 0])], false),
    ];
    insta::assert_snapshot!(list.join("\n\n"));
}

/// Dropout of attention's weights, which exporters write without a training mode, and dropout in
/// inference form, which the call of the exporter is to blame for.
#[test]
fn dropout_of_attention_is_told_from_dropout_of_the_wrong_mode() {
    let warned = |nodes: Vec<NodeProto>| {
        let ratio = tensor("p", &[], &[0.25]);
        let off = TensorProto {
            data_type: Some(elem::BOOL),
            raw_data: Some(vec![0u8].into()),
            ..tensor("off", &[], &[])
        };
        let imported = load_in(Path::new("."), &model(nodes, vec![ratio, off])).unwrap();
        let texts: Vec<String> = imported.warnings.iter().map(ToString::to_string).collect();
        texts.join("\n\n")
    };
    let drop = |x: &str, y: &str| node("Dropout", &[x, "p"], &[y], vec![]);
    let list = [
        warned(vec![node("Softmax", &["x"], &["w"], vec![]), drop("w", "y")]),
        warned(vec![node("Relu", &["x"], &["w"], vec![]), drop("w", "y")]),
        // What guards rows without a key lies between.
        warned(vec![
            node("Softmax", &["x"], &["s"], vec![]),
            node("Mul", &["s", "x"], &["w"], vec![]),
            drop("w", "y"),
        ]),
        // Both, each said once.
        warned(vec![
            node("Dropout", &["x", "p", "off"], &["a"], vec![]),
            drop("a", "b"),
            node("Softmax", &["b"], &["w"], vec![]),
            drop("w", "c"),
            node("Softmax", &["c"], &["v"], vec![]),
            drop("v", "y"),
        ]),
    ];
    insta::assert_snapshot!(list.join("\n----\n"));
}
