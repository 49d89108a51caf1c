//! Models from import to plan: the plan validates, is the same twice, and its steps are those of
//! the snapshots.

use precast_compiler::autodiff::{LossSpec, LrCurve, LrSpec, OptimizerSpec, TrainSpec, attach_loss, joint};
use precast_compiler::emit::{Options, lower};
use precast_compiler::frontend::onnx::{ImportOptions, load};
use precast_compiler::ir::Graph;
use precast_compiler::schedule::Capabilities;
use precast_compiler::simplify::simplify;
use precast_plan::{Kernel, Math, Plan, TargetSummary};
use std::path::PathBuf;

fn spec(optimizer: OptimizerSpec) -> TrainSpec {
    TrainSpec {
        optimizer,
        lr: LrSpec { lr: 0.1, warmup_steps: 0, curve: LrCurve::Constant },
        accumulate: 1,
        clip_norm: None,
        ema: None,
        no_decay_vectors: false,
        scale: None,
    }
}

const SGD: OptimizerSpec = OptimizerSpec::Sgd { momentum: 0.9, nesterov: false, weight_decay: 0.0 };
const ADAMW: OptimizerSpec = OptimizerSpec::Adam {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.01,
    decoupled: true,
};

fn root(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

fn training(path: &str, dims: &[(&str, usize)], spec: &TrainSpec) -> Graph {
    let opts = ImportOptions {
        dims: dims.iter().map(|(k, v)| (k.to_string(), *v)).collect(),
        training: true,
        init: Some(Default::default()),
        ..ImportOptions::default()
    };
    let model = load(&root(path), &opts).unwrap_or_else(|e| panic!("{e}"));
    let mut g = simplify(&model.graph).unwrap();
    let loss = LossSpec::CrossEntropy {
        prediction: model.outputs[0].clone(),
        target: "targets".into(),
        ignore_index: -100,
        label_smoothing: 0.0,
    };
    let loss = attach_loss(&mut g, &loss).unwrap_or_else(|e| panic!("{e}"));
    let g = joint(g, loss, spec, false).unwrap_or_else(|e| panic!("{e}"));
    let g = simplify(&g).unwrap();
    precast_compiler::ir::verify::verify(&g).unwrap_or_else(|e| panic!("{e}"));
    g
}

fn plan(g: &Graph) -> Plan {
    let options = Options {
        capabilities: Capabilities::CPU,
        accumulate: 1,
        seed: 1,
        target: TargetSummary { name: "cpu".into(), device: "cpu".into() },
        math: Math::Exact,
        price: None,
    };
    let plan = lower(g, None, &options).unwrap_or_else(|e| panic!("{e}"));
    if let Err(errors) = plan.validate() {
        let text: Vec<String> = errors.iter().take(20).map(|e| e.to_string()).collect();
        panic!("{}\n{}", table(&plan), text.join("\n"));
    }
    assert_eq!(lower(g, None, &options).unwrap(), plan, "the same graph gives the same plan");
    plan
}

/// One line a step: kernel, ports, name.
fn table(plan: &Plan) -> String {
    use std::fmt::Write;
    let mut out = String::new();
    let bytes = |t: u32| -> u64 {
        let t = &plan.tensors[t as usize];
        t.shape.iter().product::<u64>() * t.dtype.size() as u64
    };
    for (phase, steps) in [("micro", &plan.micro), ("update", &plan.update), ("eval", &plan.eval)] {
        for s in steps {
            let what = match &s.kernel {
                Kernel::Rows(r) => {
                    let i = &r.instances[0];
                    let p = &plan.programs[r.program as usize];
                    let read: u64 = i.inputs.iter().map(|a| bytes(a.tensor)).sum();
                    let write: u64 = i.outputs.iter().map(|a| bytes(a.tensor)).sum();
                    format!(
                        "rows {:?}/{} {} in {} out, {} instr, {}+{} KB",
                        i.dims, i.reduced, i.inputs.len(), i.outputs.len(), p.code.len(),
                        read / 1024, write / 1024
                    )
                }
                Kernel::Gemm(g) => format!(
                    "gemm {:?} {}x{}x{} {:?} {} in {} out",
                    g.batch, g.m, g.n, g.k, g.epilogue.kind, g.epilogue.inputs.len(), g.epilogue.outputs.len()
                ),
                Kernel::Conv(c) => format!(
                    "conv {:?} {:?} {} in {} out",
                    c.kind, c.epilogue.kind, c.epilogue.inputs.len(), c.epilogue.outputs.len()
                ),
                Kernel::Attention(_) => "attention".into(),
                Kernel::AttentionGrad(_) => "attention_grad".into(),
                Kernel::MaxPool(_) => "max_pool".into(),
                Kernel::MaxPoolGrad(_) => "max_pool_grad".into(),
                Kernel::Gather(_) => "gather".into(),
                Kernel::ScatterAdd(_) => "scatter_add".into(),
            };
            writeln!(out, "{phase:6} {what}: {}", s.name).unwrap();
        }
    }
    writeln!(
        out,
        "arena {} bound {} persistent {}",
        plan.arena_bytes, plan.arena_bound_bytes, plan.persistent_bytes
    )
    .unwrap();
    out
}

#[test]
fn mlp() {
    let g = training("tests/fixtures/mlp_mnist/model_static.onnx", &[], &spec(SGD));
    insta::assert_snapshot!(table(&plan(&g)));
}

#[test]
fn cnn() {
    let g = training("tests/fixtures/cifar_cnn/model_static.onnx", &[], &spec(SGD));
    insta::assert_snapshot!(table(&plan(&g)));
}

#[test]
fn gpt() {
    let g = training("tests/fixtures/tiny_gpt/model_static.onnx", &[], &spec(ADAMW));
    insta::assert_snapshot!(table(&plan(&g)));
}
