//! Imported models, differentiated, against PyTorch's f64 gradients: the meaning of the graph,
//! before any precision or backend.

use indexmap::IndexMap;
use precast_compiler::autodiff::{
    ClassAxis, LossSpec, LrCurve, LrSpec, Normalize, OnNonfinite, OptimizerSpec, ScaleSpec,
    TrainSpec, attach_loss, joint,
};
use precast_compiler::frontend::onnx::{ImportOptions, load};
use precast_compiler::ir::{ConstData, Graph, Shape, VarInit};
use precast_compiler::ops::Op;
use precast_compiler::reference::{Tensor, eval};
use precast_compiler::simplify::simplify;
use precast_plan::DType;
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

/// The torch.export exporter keeps a tied weight under the other of its two names.
fn untied(name: &str) -> String {
    name.replace("lm_head.weight", "wte.weight")
}

fn tensor(file: &SafeTensors, name: &str) -> Tensor {
    let name = &untied(name);
    let v = file.tensor(name).unwrap_or_else(|_| panic!("the file has no `{name}`"));
    let dtype = match v.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::I64 => DType::I64,
        Dtype::F64 => {
            let x: Vec<f64> = v
                .data()
                .chunks_exact(8)
                .map(|b| f64::from_le_bytes(b.try_into().unwrap()))
                .collect();
            return Tensor::real(v.shape().to_vec(), x);
        }
        other => panic!("`{name}` is {other:?}"),
    };
    let shape = Shape::new(v.shape());
    Tensor::from_const(&ConstData { dtype, shape, bytes: v.data().into() })
}

struct Case {
    graph: Graph,
    inputs: IndexMap<String, Tensor>,
    vars: IndexMap<String, Tensor>,
}

fn spec(scale: Option<ScaleSpec>) -> TrainSpec {
    TrainSpec {
        optimizer: OptimizerSpec::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 },
        lr: LrSpec { lr: 0.1, warmup_steps: 0, curve: LrCurve::Constant },
        accumulate: 1,
        normalize: Normalize::Whole,
        on_nonfinite: if scale.is_some() { OnNonfinite::Skip } else { OnNonfinite::Stop },
        clip_norm: None,
        ema: None,
        no_decay_vectors: false,
        frozen: vec![],
        frozen_rows: vec![],
        scale,
    }
}

fn case(folder: &Path, model: &str, scale: Option<ScaleSpec>) -> Case {
    let read = |f: &str| std::fs::read(folder.join(f)).expect("the fixture is complete");
    let (batch, weights) = (read("batch.safetensors"), read("weights.safetensors"));
    let batch = SafeTensors::deserialize(&batch).unwrap();
    let weights = SafeTensors::deserialize(&weights).unwrap();
    let mut opts = ImportOptions { training: true, ..ImportOptions::default() };
    for name in batch.names() {
        let shape = batch.tensor(name).unwrap().shape().to_vec();
        if let Some(input) = name.strip_prefix("in.") {
            opts.input_shapes.insert(input.into(), shape);
        }
    }
    let imported = load(&folder.join(model), &opts).unwrap_or_else(|e| panic!("{model}: {e}"));
    let mut g = imported.graph;
    let loss = LossSpec::CrossEntropy {
        prediction: "logits".into(),
        target: "targets".into(),
        ignore_index: -100,
        label_smoothing: 0.0,
        class_axis: ClassAxis::Last,
    };
    let loss = attach_loss(&mut g, &loss).unwrap_or_else(|e| panic!("{e}"));
    let g = joint(g, loss, &spec(scale), true).unwrap_or_else(|e| panic!("{e}"));
    let graph = simplify(&g).unwrap_or_else(|e| panic!("{e}"));
    precast_compiler::ir::verify::verify(&graph).unwrap_or_else(|e| panic!("{e}"));
    let mut inputs = IndexMap::new();
    for (_, node) in graph.nodes() {
        if let Op::Input(i) = &node.op {
            let key =
                if i.name == "targets" { "tgt.targets".into() } else { format!("in.{}", i.name) };
            let mut t = tensor(&batch, &key);
            t.ty = graph.ty(node.outputs[0]).clone();
            inputs.insert(i.name.clone(), t);
        }
    }
    let mut vars = IndexMap::new();
    for (name, var) in &graph.vars {
        let t = match &var.init {
            VarInit::Zeros => Tensor::zeros(&var.ty),
            VarInit::Value(x) if var.ty.is_real() => {
                Tensor::real(var.ty.shape.clone(), vec![*x; var.ty.shape.elements()])
            }
            VarInit::Data(d) => Tensor::from_const(d),
            _ => tensor(&weights, name),
        };
        vars.insert(name.clone(), t);
    }
    Case { graph, inputs, vars }
}

fn relative_l2(a: &[f64], b: &[f64]) -> f64 {
    let d: f64 = a.iter().zip(b).map(|(x, y)| (x - y).powi(2)).sum();
    let n: f64 = b.iter().map(|y| y * y).sum();
    (d / n.max(f64::MIN_POSITIVE)).sqrt()
}

fn agrees(name: &str, models: &[&str], tolerance: f64, scales: &[Option<ScaleSpec>]) {
    let folder = fixture(name);
    let reference = std::fs::read(folder.join("reference.safetensors")).unwrap();
    let reference = SafeTensors::deserialize(&reference).unwrap();
    for model in models {
        for &scale in scales {
            let c = case(&folder, model, scale);
            let out = eval(&c.graph, &c.inputs, &c.vars).unwrap_or_else(|e| panic!("{e}"));
            let want = tensor(&reference, "loss.f64").reals()[0];
            let have = out.results["loss"].reals()[0];
            assert!(
                (have - want).abs() <= 1e-7 * want.abs(),
                "{model}: loss {have}, PyTorch {want}"
            );
            let mut seen = 0;
            for (key, t) in &out.results {
                if key.starts_with("grad.") {
                    let want = tensor(&reference, key);
                    let e = relative_l2(t.reals(), want.reals());
                    assert!(e < tolerance, "{model}: {key} is off by {e:e}");
                    seen += 1;
                }
            }
            let all = reference.names().iter().filter(|n| n.starts_with("grad.")).count();
            assert_eq!(seen, all, "{model}: gradients");
        }
    }
}

#[test]
fn mlp() {
    let scales = [None, Some(ScaleSpec::default())];
    agrees("mlp_mnist", &["model.onnx", "model_static.onnx"], 1e-6, &scales);
}

#[test]
fn cnn() {
    // The reference holds f64 gradients stored as f32 where it is smaller; hence not 1e-12.
    agrees("cifar_cnn", &["model.onnx"], 1e-5, &[None]);
}

#[test]
fn gpt() {
    let models =
        ["model.onnx", "model_static.onnx", "model_dynamo.onnx", "model_dynamo_static.onnx"];
    agrees("tiny_gpt", &models, 1e-6, &[None]);
}
