//! Import of the models that PyTorch's exporters write.

use super::*;
use crate::ir::verify::verify;
use crate::ir::VarInit;
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
