//! Import of the models that PyTorch's exporters write.

use super::tensor::Elem;
use super::*;
use crate::ir::verify::verify;
use crate::ir::{Shape, VarInit};
use crate::reference;
use indexmap::IndexMap;
use std::fmt::Write;

fn fixture(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(path)
}

fn options(path: &str) -> ImportOptions {
    let dims: &[(&str, usize)] = match path.split('/').next().unwrap() {
        "mlp_mnist" => &[("batch", 64)],
        "cifar_cnn" => &[("batch", 16)],
        _ => &[("batch", 4), ("seq", 32), ("s95", 4), ("s75", 32)],
    };
    let dims = dims.iter().map(|&(n, d)| (n.to_string(), d)).collect();
    ImportOptions { dims, training: true, ..ImportOptions::default() }
}

fn import(path: &str) -> Imported {
    let m = load(&fixture(path), &options(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    if let Err(e) = verify(&m.graph) {
        panic!("{path}: {e}");
    }
    m
}

/// One line a node.
fn listing(m: &Imported) -> String {
    let mut s = String::new();
    for (name, v) in &m.graph.vars {
        writeln!(s, "{name}: {} {:?} {:?}", v.ty, v.role, v.init).unwrap();
    }
    for (_, n) in m.graph.nodes() {
        let types: Vec<String> = n.outputs.iter().map(|&v| m.graph.ty(v).to_string()).collect();
        writeln!(
            s,
            "{:?} = {:?} {:?} : {}  # {}",
            n.outputs,
            n.op,
            n.inputs,
            types.join(", "),
            n.name
        )
        .unwrap();
    }
    for r in &m.graph.results {
        writeln!(s, "result {} = {}", r.name, r.value).unwrap();
    }
    for r in &m.graph.updates {
        writeln!(s, "update {} = {}", r.name, r.value).unwrap();
    }
    s
}

const FIXTURES: [&str; 8] = [
    "mlp_mnist/model.onnx",
    "mlp_mnist/model_static.onnx",
    "cifar_cnn/model.onnx",
    "cifar_cnn/model_static.onnx",
    "tiny_gpt/model.onnx",
    "tiny_gpt/model_static.onnx",
    "tiny_gpt/model_dynamo.onnx",
    "tiny_gpt/model_dynamo_static.onnx",
];

#[test]
fn every_exported_variant_imports() {
    for path in FIXTURES {
        let m = import(path);
        println!("== {path}\n{}", listing(&m));
        assert!(m.warnings.is_empty(), "{path}: {:?}", m.warnings);
        let meta = std::fs::read_to_string(fixture(path).with_file_name("meta.json")).unwrap();
        let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
        let tied = meta["tied"].as_object().unwrap();
        let mut want: Vec<String> = meta["param_order"]
            .as_array()
            .unwrap()
            .iter()
            .map(|v| v.as_str().unwrap().to_string())
            .collect();
        let mut have: Vec<String> = m
            .params
            .iter()
            .map(|p| tied.get(p).map_or(p.clone(), |t| t.as_str().unwrap().to_string()))
            .collect();
        want.sort();
        have.sort();
        assert_eq!(have, want, "{path}");
        for (name, v) in &m.graph.vars {
            assert!(
                matches!(v.init, VarInit::File { .. }),
                "{path}: {name} begins as {:?}",
                v.init
            );
        }
    }
}

/// Tensors of a safetensors file as the interpreter's.
fn tensors(path: &str) -> IndexMap<String, reference::Tensor> {
    let bytes = std::fs::read(fixture(path)).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut out = IndexMap::new();
    for (name, t) in file.iter() {
        let elem = match t.dtype() {
            safetensors::Dtype::F64 => Elem::F64,
            safetensors::Dtype::F32 => Elem::F32,
            safetensors::Dtype::I64 => Elem::I64,
            other => panic!("{name} is {other:?}"),
        };
        let t = tensor::Tensor::from_le_bytes(elem, t.shape().to_vec(), t.data()).unwrap();
        let shape = Shape::new(&t.shape);
        let t = match t.data {
            tensor::Data::Real(v) => reference::Tensor::real(shape, v),
            tensor::Data::Int(v) => reference::Tensor::int(precast_plan::DType::I64, shape, v),
            tensor::Data::Bool(v) => reference::Tensor::bool(shape, v),
        };
        out.insert(name.to_string(), t);
    }
    out
}

/// First values of file-backed variables.
fn first_values(path: &str, m: &Imported) -> IndexMap<String, reference::Tensor> {
    let mut out = IndexMap::new();
    for (name, v) in &m.graph.vars {
        let VarInit::File { path: file, offset, .. } = &v.init else { panic!("{name}") };
        let bytes = std::fs::read(fixture(path).with_file_name(file)).unwrap();
        let at = *offset as usize;
        let values: Vec<f64> = bytes[at..at + v.ty.bytes()]
            .chunks_exact(4)
            .map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap())))
            .collect();
        out.insert(name.clone(), reference::Tensor::real(v.ty.shape.clone(), values));
    }
    out
}

/// Largest difference relative to the largest element.
fn distance(a: &reference::Tensor, b: &reference::Tensor) -> f64 {
    assert_eq!(a.shape(), b.shape());
    let size = b.reals().iter().fold(0.0f64, |m, x| m.max(x.abs()));
    let diff = a.reals().iter().zip(b.reals()).fold(0.0f64, |m, (x, y)| m.max((x - y).abs()));
    diff / size
}

/// Outputs and running statistics against PyTorch's in f64.
#[test]
fn outputs_are_pytorchs() {
    for path in FIXTURES {
        let folder = path.split('/').next().unwrap();
        let m = import(path);
        let batch = tensors(&format!("{folder}/batch.safetensors"));
        let want = tensors(&format!("{folder}/reference.safetensors"));
        let inputs =
            m.inputs.iter().map(|(n, _)| (n.clone(), batch[&format!("in.{n}")].clone())).collect();
        let got = reference::eval(&m.graph, &inputs, &first_values(path, &m)).unwrap();
        for o in &m.outputs {
            let name = format!("out.{o}");
            let d = distance(&got.results[&name], &want[&name]);
            // Constants such as eps are f32 in the model.
            assert!(d < 1e-6, "{path}: {name} differs by {d:e}");
        }
        for (name, t) in &want {
            if let Some(name) = name.strip_prefix("bn_after_1fwd.") {
                let d = distance(&got.updates[name], t);
                assert!(d < 1e-6, "{path}: {name} differs by {d:e}");
            }
        }
        assert_eq!(got.updates.len(), if folder == "cifar_cnn" { 10 } else { 0 });
    }
}
