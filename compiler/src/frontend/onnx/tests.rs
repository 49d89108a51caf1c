//! Import of the models that PyTorch's exporters write.

mod long;
mod pools;

use super::tensor::Elem;
use super::*;
use crate::frontend::recognise::recognise;
use crate::ir::verify::verify;
use crate::ir::{Graph, Shape, VarInit};
use crate::ops::Op;
use crate::ops::activation::Act;
use crate::reference;
use crate::simplify::simplify;
use indexmap::IndexMap;

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

/// As the pipeline differentiates it.
fn recognised(g: &Graph) -> Graph {
    let g = simplify(&recognise(&simplify(g).unwrap())).unwrap();
    verify(&g).unwrap();
    g
}

fn count(g: &Graph, f: impl Fn(&Op) -> bool) -> usize {
    g.nodes().filter(|(_, n)| f(&n.op)).count()
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
        let g = recognised(&m.graph);
        let got = reference::eval(&g, &inputs, &first_values(path, &m)).unwrap();
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

/// The graphs that differentiation sees, and that variants of an export are one graph.
#[test]
fn composite_operations_are_recognised() {
    insta::assert_snapshot!(
        "mlp_mnist",
        crate::text::print(&recognised(&import("mlp_mnist/model.onnx").graph))
    );
    insta::assert_snapshot!(
        "cifar_cnn",
        crate::text::print(&recognised(&import("cifar_cnn/model.onnx").graph))
    );
    insta::assert_snapshot!(
        "tiny_gpt",
        crate::text::print(&recognised(&import("tiny_gpt/model.onnx").graph))
    );
    for path in FIXTURES.iter().filter(|p| p.starts_with("tiny_gpt")) {
        let g = recognised(&import(path).graph);
        let attention =
            |op: &Op| matches!(op, Op::Attention(a) if a.causal && !a.masked && a.scale.0 == 0.25);
        let gelu = |op: &Op| matches!(op, Op::Activate(a) if a.act == Act::GeluTanh);
        assert_eq!(count(&g, attention), 2, "{path}");
        assert_eq!(count(&g, gelu), 2, "{path}");
        assert_eq!(count(&g, |op| matches!(op, Op::LayerNorm(_))), 5, "{path}");
        assert_eq!(count(&g, |op| matches!(op, Op::MatMul(_))), 9, "{path}");
        // The only addition that is not a bias on rows or a residual is that of the embeddings.
        assert_eq!(
            g.node_count(),
            recognised(&import("tiny_gpt/model.onnx").graph).node_count(),
            "{path}"
        );
    }
}

fn codes(r: Result<Imported>) -> Vec<&'static str> {
    match r {
        Ok(m) => panic!("imported: {} nodes", m.graph.node_count()),
        Err(e) => e.0.iter().map(|d| d.code).collect(),
    }
}

#[test]
fn dynamic_dimensions_are_bound_or_named() {
    let path = fixture("tiny_gpt/model.onnx");
    let none = ImportOptions { training: true, ..ImportOptions::default() };
    let e = load(&path, &none).unwrap_err();
    assert_eq!(e.0.len(), 2);
    assert!(e.0.iter().all(|d| d.code == "P0208" && d.help.is_some()));
    assert!(e.0[0].message.contains("`batch`, which is axis 0 of `input_ids`"), "{e}");
    let from = |shape: &[usize]| ImportOptions {
        input_shapes: [("input_ids".to_string(), shape.to_vec())].into(),
        training: true,
        ..ImportOptions::default()
    };
    let m = load(&path, &from(&[2, 16])).unwrap();
    assert_eq!(m.inputs[0].1.shape[..], [2, 16]);
    assert_eq!(m.graph.ty(m.graph.result("out.logits").unwrap()).shape[..], [2, 16, 256]);
    assert_eq!(codes(load(&path, &from(&[2, 16, 1]))), ["P0209"]);
    // Longer than the model's table of positions.
    assert_eq!(codes(load(&path, &from(&[2, 64]))), ["P0214"]);
    let mut both = from(&[2, 16]);
    both.dims.insert("seq".into(), 8);
    assert_eq!(codes(load(&path, &both)), ["P0209"]);
    let huge = from(&[1 << 40, 1 << 40]);
    assert_eq!(codes(load(&path, &huge)), ["P0210"]);
}

#[test]
fn absent_weights_are_drawn_where_asked() {
    let path =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models/gpt_4x256.ts.op17.train.onnx");
    let mut opts = options("tiny_gpt/");
    let e = load(&path, &opts).unwrap_err();
    assert_eq!(e.0[0].code, "P0211");
    assert!(e.to_string().contains("weights.stripped"), "{e}");
    opts.init = Some(InitScheme::Default);
    let m = load(&path, &opts).unwrap();
    let init = |name: &str| m.graph.vars[name].init.clone();
    assert!(matches!(init("wte.weight"), VarInit::Normal { std: 0.02, .. }));
    assert!(matches!(init("wpe.weight"), VarInit::Normal { std: 0.02, .. }));
    assert!(matches!(init("h.0.c_fc.weight"), VarInit::Uniform { bound: 0.0625, .. }));
    assert!(matches!(init("h.0.m_proj.weight"), VarInit::Uniform { bound: 0.03125, .. }));
    assert_eq!(init("h.0.c_fc.bias"), VarInit::Zeros);
    assert_eq!(init("h.0.ln_1.weight"), VarInit::Value(1.0));
    assert_eq!(init("h.0.ln_1.bias"), VarInit::Zeros);
}

#[test]
fn weights_come_from_a_named_file() {
    let mut opts = options("mlp_mnist/");
    opts.weights = Some(fixture("mlp_mnist/weights.safetensors"));
    let m = load(&fixture("mlp_mnist/model.onnx"), &opts).unwrap();
    assert_eq!(m.graph.vars["fc1.bias"].init, VarInit::Weights("fc1.bias".into()));
    opts.weights = Some(fixture("cifar_cnn/weights.safetensors"));
    assert_eq!(codes(load(&fixture("mlp_mnist/model.onnx"), &opts)), ["P0217"]);
    opts.weights = Some(fixture("mlp_mnist/model.onnx"));
    assert_eq!(codes(load(&fixture("mlp_mnist/model.onnx"), &opts)), ["P0217"]);
    opts.weights = Some(fixture("mlp_mnist/none.safetensors"));
    assert_eq!(codes(load(&fixture("mlp_mnist/model.onnx"), &opts)), ["P0211"]);
}

/// The weights of the perceptron under other names, and only those that `keep` names.
fn renamed(keep: &str, name: impl Fn(&str) -> String) -> (tempfile::TempDir, ImportOptions) {
    let bytes = std::fs::read(fixture("mlp_mnist/weights.safetensors")).unwrap();
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = file.iter().filter(|(n, _)| n.contains(keep)).map(|(n, t)| (name(n), t));
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("w.safetensors");
    safetensors::serialize_to_file(kept, None, &path).unwrap();
    (folder, ImportOptions { weights: Some(path), ..options("mlp_mnist/") })
}

#[test]
fn a_weight_file_that_fits_no_name_is_an_error() {
    let model = fixture("mlp_mnist/model.onnx");
    for (prefix, init) in [("module.", None), ("_orig_mod.model.", Some(InitScheme::Default))] {
        let (_folder, mut opts) = renamed("", |n| format!("{prefix}{n}"));
        opts.init = init;
        let e = load(&model, &opts).unwrap_err();
        let text = e.to_string();
        assert_eq!(e.0[0].code, "P0217", "{text}");
        assert!(text.contains(&format!("`{prefix}fc1.bias`")) && text.contains("`fc1.bias`"));
        let help = format!("without the prefix `{prefix}`, 4 of the model's 4 would be found");
        assert!(text.contains(&help), "{text}");
    }
    let (_folder, opts) = renamed("fc1", |n| n.trim_start_matches("fc1.").into());
    let text = load(&model, &opts).unwrap_err().to_string();
    assert!(text.contains("after the prefix `fc1.`, 2 of the model's 4 would be found"), "{text}");
    let (_folder, opts) = renamed("fc1", |n| format!("{n}_"));
    let text = load(&model, &opts).unwrap_err().to_string();
    assert!(text.contains("names must be those of the model's initializers"), "{text}");
    // One name that ends alike is no prefix of all.
    let (_folder, opts) = renamed("", |n| match n {
        "fc1.bias" => "other.fc1.bias".into(),
        n => format!("{n}_"),
    });
    let text = load(&model, &opts).unwrap_err().to_string();
    assert!(text.contains("names must be those of the model's initializers"), "{text}");
}

#[test]
fn a_weight_file_of_a_part_says_what_it_lacks() {
    let model = fixture("mlp_mnist/model.onnx");
    let (_folder, mut opts) = renamed("fc", |n| n.replace("fc2", "other"));
    assert_eq!(codes(load(&model, &opts)), ["P0217"]);
    opts.init = Some(InitScheme::Default);
    let m = load(&model, &opts).unwrap();
    assert_eq!(m.graph.vars["fc1.bias"].init, VarInit::Weights("fc1.bias".into()));
    let [warning] = &m.warnings[..] else { panic!("{:?}", m.warnings) };
    insta::assert_snapshot!("partial_weights", format!("{}\n{:?}", warning.message, warning.help));
    // The whole: nothing to say.
    let (_folder, mut opts) = renamed("", str::to_string);
    opts.init = Some(InitScheme::Default);
    assert!(load(&model, &opts).unwrap().warnings.is_empty());
}

#[test]
fn evaluation_uses_running_statistics() {
    let mut opts = options("cifar_cnn/");
    opts.training = false;
    let m = load(&fixture("cifar_cnn/model.onnx"), &opts).unwrap();
    verify(&m.graph).unwrap();
    assert!(m.graph.updates.is_empty() && m.warnings.is_empty());
    assert_eq!(count(&m.graph, |op| matches!(op, Op::BatchNorm(_))), 0);
    assert!(m.graph.vars.contains_key("f.0.1.running_var"));
}

#[test]
fn a_summary_needs_no_shapes() {
    let info = inspect(&fixture("tiny_gpt/model_dynamo.onnx")).unwrap();
    assert_eq!(info.opset, 18);
    assert!(info.producer.starts_with("pytorch"));
    let dims: Vec<String> = info.inputs[0].dims.iter().flatten().map(Dim::to_string).collect();
    assert_eq!((info.inputs[0].elem.as_str(), dims.join(",")), ("i64", "s95,s75".into()));
    assert_eq!(info.ops["MatMul"], 13);
    assert!(info.unsupported.is_empty());
    assert_eq!(info.params.len(), 28);
    assert_eq!(info.params.iter().map(|p| p.bytes).sum::<usize>(), 4 * 118528);
}

/// Whatever the bytes are, import ends with a graph that verifies or with diagnostics.
#[test]
fn corrupted_models_never_panic() {
    let mut outcomes = std::collections::BTreeMap::<&str, usize>::new();
    let mut run = |path: &str, bytes: Vec<u8>| {
        let code = match load_bytes(&fixture(path), bytes, &options(path)) {
            Ok(m) => {
                verify(&m.graph).unwrap();
                "imported"
            }
            Err(e) => {
                assert!(!e.to_string().is_empty());
                e.0[0].code
            }
        };
        *outcomes.entry(code).or_default() += 1;
    };
    let small = "mlp_mnist/model.onnx";
    let bytes = std::fs::read(fixture(small)).unwrap();
    for n in 0..bytes.len() {
        run(small, bytes[..n].to_vec());
    }
    for i in 0..bytes.len() {
        for b in [0, 1, 3, 7] {
            let mut bytes = bytes.clone();
            bytes[i] ^= 1 << b;
            run(small, bytes);
        }
        let mut bytes = bytes.clone();
        bytes[i] = 0xff;
        run(small, bytes);
    }
    let mut state = 1u64;
    let mut draw = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for path in ["tiny_gpt/model_dynamo.onnx", "tiny_gpt/model.onnx", "cifar_cnn/model.onnx"] {
        let bytes = std::fs::read(fixture(path)).unwrap();
        for _ in 0..400 {
            let mut bytes = bytes.clone();
            for _ in 0..1 + draw(3) {
                let i = draw(bytes.len());
                bytes[i] = draw(256) as u8;
            }
            run(path, bytes);
        }
    }
    // Most kinds of damage are told apart.
    assert!(outcomes.len() > 8, "{outcomes:?}");
}
