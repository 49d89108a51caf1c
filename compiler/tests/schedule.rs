//! Models from import to plan: the plan validates, is the same twice, and its steps are those of
//! the snapshots.

use precast_compiler::autodiff::{
    ClassAxis, LossSpec, LrCurve, LrSpec, OptimizerSpec, TrainSpec, attach_loss, joint,
};
use precast_compiler::emit::{Options, lower};
use precast_compiler::frontend::onnx::{ImportOptions, load};
use precast_compiler::ir::Graph;
use precast_compiler::schedule::Capabilities;
use precast_compiler::simplify::simplify;
use precast_plan::{Kernel, Plan, TargetSummary};
use std::path::PathBuf;

mod interpreter;

fn spec(optimizer: OptimizerSpec) -> TrainSpec {
    TrainSpec {
        optimizer,
        lr: LrSpec { lr: 0.1, warmup_steps: 0, curve: LrCurve::Constant },
        accumulate: 1,
        clip_norm: None,
        ema: None,
        no_decay_vectors: false,
        frozen: vec![],
        frozen_rows: vec![],
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
        class_axis: ClassAxis::Last,
    };
    let loss = attach_loss(&mut g, &loss).unwrap_or_else(|e| panic!("{e}"));
    let g = joint(g, loss, spec, false).unwrap_or_else(|e| panic!("{e}"));
    let g = simplify(&g).unwrap();
    precast_compiler::ir::verify::verify(&g).unwrap_or_else(|e| panic!("{e}"));
    g
}

fn plan(g: &Graph) -> Plan {
    plan_with(g, Capabilities::CPU)
}

fn plan_with(g: &Graph, capabilities: Capabilities) -> Plan {
    let options = Options {
        capabilities,
        accumulate: 1,
        seed: 1,
        target: TargetSummary { name: "cpu".into(), device: "cpu".into() },
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
                        i.dims,
                        i.reduced,
                        i.inputs.len(),
                        i.outputs.len(),
                        p.code.len(),
                        read / 1024,
                        write / 1024
                    )
                }
                Kernel::Gemm(g) => format!(
                    "gemm {:?} {}x{}x{} {:?} {} in {} out",
                    g.batch,
                    g.m,
                    g.n,
                    g.k,
                    g.epilogue.kind,
                    g.epilogue.inputs.len(),
                    g.epilogue.outputs.len()
                ),
                Kernel::Conv(c) => format!(
                    "conv {:?} {:?} {} in {} out",
                    c.kind,
                    c.epilogue.kind,
                    c.epilogue.inputs.len(),
                    c.epilogue.outputs.len()
                ),
                Kernel::Attention(_) => "attention".into(),
                Kernel::AttentionGrad(_) => "attention_grad".into(),
                Kernel::MaxPool(_) => "max_pool".into(),
                Kernel::MaxPoolGrad(_) => "max_pool_grad".into(),
                Kernel::Gather(_) => "gather".into(),
                Kernel::ScatterAdd(_) => "scatter_add".into(),
                Kernel::LastIndex(_) => "last_index".into(),
                Kernel::CumSum(_) => "cumsum".into(),
                Kernel::TopK(_) => "top_k".into(),
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

/// A plan's results and new variables against the graph's meaning in f64.
fn computes_the_graph(g: &Graph) {
    computes_the_graph_with(g, Capabilities::CPU);
}

fn computes_the_graph_with(g: &Graph, capabilities: Capabilities) {
    use indexmap::IndexMap;
    use precast_compiler::ops::Op;
    use precast_compiler::reference::{Data, Tensor, eval};
    use precast_plan::{Init, Kind, Storage};

    let plan = plan_with(g, capabilities);
    let mut m = interpreter::Machine::new(&plan);
    let mut state = 1u64;
    let mut random = move || {
        state =
            state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f64 / f64::from(1 << 24)
    };
    let mut inputs = IndexMap::new();
    let mut vars = IndexMap::new();
    let take = |m: &interpreter::Machine, t: usize, ty: &precast_compiler::ir::TensorType| {
        let v = m.reals(t as u32);
        let data = match ty.kind() {
            Kind::Real => Data::Real(v),
            Kind::Int => Data::Int(v.into_iter().map(|x| x as i64).collect()),
            Kind::Bool => Data::Bool(v.into_iter().map(|x| x != 0.0).collect()),
        };
        Tensor::new(ty.clone(), data)
    };
    for (t, tensor) in plan.tensors.iter().enumerate() {
        match &tensor.storage {
            Storage::Input { .. } => {
                let int = tensor.dtype.kind() == Kind::Int;
                m.fill(t as u32, || {
                    if int { (random() * 10.0).floor() } else { random() * 2.0 - 1.0 }
                });
                let node =
                    g.nodes().find(|(_, n)| matches!(&n.op, Op::Input(i) if i.name == tensor.name));
                let ty = g.ty(node.expect("inputs keep their names").1.outputs[0]);
                inputs.insert(tensor.name.clone(), take(&m, t, ty));
            }
            Storage::Persistent { init, .. } => {
                match init {
                    Init::Zeros => m.fill(t as u32, || 0.0),
                    Init::Value(x) => m.fill(t as u32, || *x),
                    Init::Bytes(hex) => m.write_hex(t as u32, hex),
                    Init::CopyOf(from) => {
                        let mut values = m.reals(*from).into_iter();
                        m.fill(t as u32, || values.next().expect("of one shape"));
                    }
                    _ => m.fill(t as u32, || random() * 0.4 - 0.2),
                }
                if let Some(var) = g.vars.get(&tensor.name) {
                    vars.insert(tensor.name.clone(), take(&m, t, &var.ty));
                }
            }
            Storage::Arena { .. } => {}
        }
    }
    m.run();
    let want = eval(g, &inputs, &vars).unwrap_or_else(|e| panic!("{e}"));
    let compare = |name: &str, tensor: u32, want: &Tensor| {
        let want: Vec<f64> = match &want.data {
            Data::Real(v) => v.clone(),
            Data::Int(v) => v.iter().map(|&x| x as f64).collect(),
            Data::Bool(v) => v.iter().map(|&x| f64::from(u8::from(x))).collect(),
        };
        let have = m.reals(tensor);
        let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
        let off = norm(&mut have.iter().zip(&want).map(|(a, b)| a - b));
        let size = norm(&mut want.iter().copied());
        assert!(off <= 2e-4 * size + 1e-6, "`{name}` is {off} off, its norm is {size}");
    };
    for r in &plan.results {
        compare(&r.name, r.tensor, &want.results[&r.name]);
    }
    assert!(!want.updates.is_empty());
    for (name, value) in &want.updates {
        let t = plan.tensors.iter().position(|t| t.name == *name).expect("variables have tensors");
        compare(name, t as u32, value);
    }
}

#[test]
fn mlp_computes_the_graph() {
    let s = TrainSpec { ema: Some(0.9), clip_norm: Some(0.5), ..spec(SGD) };
    computes_the_graph(&training("tests/fixtures/mlp_mnist/model_static.onnx", &[], &s));
}

#[test]
fn cnn_computes_the_graph() {
    computes_the_graph(&training("tests/fixtures/cifar_cnn/model_static.onnx", &[], &spec(SGD)));
}

/// The order in memory does not change what is computed, epilogues and concatenations included.
#[test]
fn cnn_with_channels_last_computes_the_graph() {
    let g = training("tests/fixtures/cifar_cnn/model_static.onnx", &[], &spec(SGD));
    for any_epilogue in [false, true] {
        let caps = Capabilities { any_epilogue, channels_last: 4, ..Capabilities::CPU };
        computes_the_graph_with(&g, caps);
    }
}

/// Bias gradients leave the products of their matrices.
#[test]
fn products_that_sum_an_operand_compute_the_graph() {
    let caps = Capabilities { any_epilogue: false, operand_sums: true, ..Capabilities::CPU };
    for (path, spec) in [
        ("tests/fixtures/mlp_mnist/model_static.onnx", spec(SGD)),
        ("tests/fixtures/tiny_gpt/model_static.onnx", spec(ADAMW)),
    ] {
        let g = training(path, &[], &spec);
        let sums = |p: &Plan| {
            let with =
                |s: &&precast_plan::Step| matches!(&s.kernel, Kernel::Gemm(g) if g.sums.is_some());
            p.micro.iter().filter(with).count()
        };
        assert!(sums(&plan_with(&g, caps)) > 0, "{path}");
        assert_eq!(sums(&plan(&g)), 0, "{path}");
        computes_the_graph_with(&g, caps);
    }
}

#[test]
fn gpt_computes_the_graph() {
    computes_the_graph(&training("tests/fixtures/tiny_gpt/model_static.onnx", &[], &spec(SGD)));
}

/// Arena bytes of the two models that are measured, against what they may take.
#[test]
fn measured_models_fit() {
    for (path, dims, most) in [
        ("tests/models/cifar_cnn_w32.ts.op17.train.onnx", vec![("batch", 64)], 100 << 20),
        ("tests/models/gpt_4x256.ts.op17.train.onnx", vec![("batch", 8), ("seq", 128)], 200 << 20),
    ] {
        let g = training(path, &dims, &spec(ADAMW));
        let start = std::time::Instant::now();
        let p = plan(&g);
        println!("{path}: lowered twice in {:?}", start.elapsed());
        println!("{}", table(&p));
        assert!(p.arena_bytes < most, "{path}: {}", p.arena_bytes);
        assert!(
            p.arena_bytes * 10 <= p.arena_bound_bytes * 11,
            "{path}: {} over {}",
            p.arena_bytes,
            p.arena_bound_bytes
        );
    }
}

/// A cast of a parameter is a variable that the update writes next to the weight.
#[test]
fn low_precision_copies_are_written_by_the_update() {
    use precast_compiler::ir::{Real, Region, Result_, TensorType, Var, VarInit, VarRole};
    use precast_compiler::ops;
    use precast_plan::{DType, Init, Role, Storage};

    let mut g = Graph::new("copy");
    let f32s = |s: &[usize]| TensorType::f32(s.to_vec());
    let init = VarInit::Weights("w".into());
    g.vars.insert("w".into(), Var { ty: f32s(&[16, 4]), role: VarRole::Param, init });
    let mut add = |op: ops::Op, x: &[_], ty: TensorType, name: &str, region| {
        g.push(op, x, vec![ty], name.into(), region)[0]
    };
    let (xt, wt) = (f32s(&[8, 16]), f32s(&[16, 4]));
    let bf16 = |s: &[usize]| TensorType::new(DType::Bf16, s.to_vec());
    let x = add(ops::Input::new("x", &xt).into(), &[], xt, "x", Region::Forward);
    let w = add(ops::Var::new("w", &wt).into(), &[], wt.clone(), "w", Region::Forward);
    let xh = add(ops::Cast {}.into(), &[x], bf16(&[8, 16]), "x.bf16", Region::Forward);
    let wh = add(ops::Cast {}.into(), &[w], bf16(&[16, 4]), "w.cast", Region::Forward);
    let y = add(ops::MatMul::plain().into(), &[xh, wh], f32s(&[8, 4]), "y", Region::Forward);
    let now = add(ops::Var::new("w", &wt).into(), &[], wt.clone(), "w.now", Region::Update);
    let new = add(ops::Scale { by: Real(0.5) }.into(), &[now], wt, "w.update", Region::Update);
    g.results.push(Result_ { name: "out.y".into(), value: y });
    g.updates.push(Result_ { name: "w".into(), value: new });
    precast_compiler::ir::verify::verify(&g).unwrap_or_else(|e| panic!("{e}"));
    let p = plan(&g);
    let at =
        p.tensors.iter().position(|t| t.name == "w.bf16").expect("the copy has its own tensor");
    let Storage::Persistent { role: Role::WeightCopy, init: Init::CopyOf(of), .. } =
        p.tensors[at].storage
    else {
        panic!("{:?}", p.tensors[at])
    };
    assert_eq!(p.tensors[of as usize].name, "w");
    assert_eq!((p.micro.len(), p.update.len()), (2, 1), "{}", table(&p));
    let Kernel::Rows(r) = &p.update[0].kernel else { panic!("{:?}", p.update[0]) };
    let written: Vec<u32> = r.instances[0].outputs.iter().map(|a| a.tensor).collect();
    assert_eq!(written, [of, at as u32]);
}

/// A residual addition and the layer normalisation behind it are one kernel without a rule that
/// says so: both are row programs over the same rows.
#[test]
fn addition_and_layer_norm_are_one_kernel() {
    let text = "graph residual\n\nforward:\n\
        \x20 %x = input {name=\"x\"} : f32[8,16] @x\n\
        \x20 %r = input {name=\"r\"} : f32[8,16] @r\n\
        \x20 %w = input {name=\"w\"} : f32[16] @w\n\
        \x20 %b = input {name=\"b\"} : f32[16] @b\n\
        \x20 %s = binary %x, %r {f=add} @sum\n\
        \x20 %y, %mean, %rstd = layer_norm %s, %w, %b {eps=1e-5, axes=1, center=true} @ln\n\n\
        result out.y = %y\nresult out.sum = %s\n";
    let g = precast_compiler::text::parse(std::path::Path::new("residual.pir"), text)
        .unwrap_or_else(|e| panic!("{e}"));
    for any_epilogue in [true, false] {
        let options = Options {
            capabilities: Capabilities { any_epilogue, ..Capabilities::CPU },
            accumulate: 1,
            seed: 0,
            target: TargetSummary { name: "test".into(), device: "cpu".into() },
            price: None,
        };
        let plan = lower(&g, None, &options).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(plan.micro.len(), 1, "{:?}", plan.micro);
        assert_eq!(plan.micro[0].ops, ["sum", "ln"]);
        let Kernel::Rows(rows) = &plan.micro[0].kernel else { panic!("not a row program") };
        // x, r, w and b are read once each; the sum is stored because it is asked for.
        assert_eq!(rows.instances[0].inputs.len(), 4);
    }
}
