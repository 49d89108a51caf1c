//! The e-graph pass on imported models: what it builds means the same, and says why.

mod rules;

use indexmap::IndexMap;
use precast_compiler::autodiff::{
    ClassAxis, LossSpec, LrCurve, LrSpec, Normalize, OnNonfinite, OptimizerSpec, ScaleSpec,
    TrainSpec, attach_loss, joint,
};
use precast_compiler::egraph::{Modes, Outcome, run};
use precast_compiler::frontend::onnx::{ImportOptions, load};
use precast_compiler::frontend::recipe::Pin;
use precast_compiler::ir::{ConstData, Graph, Shape, VarInit};
use precast_compiler::ops::{NumericClass, Op};
use precast_compiler::precision::{Policy, PrecisionOptions};
use precast_compiler::reference::{Tensor, eval};
use precast_compiler::simplify::simplify;
use precast_compiler::text;
use precast_plan::{DType, Precision, Target};
use safetensors::{Dtype, SafeTensors};
use std::path::{Path, PathBuf};

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name)
}

fn tensor(file: &SafeTensors, name: &str) -> Tensor {
    let v = file.tensor(name).unwrap_or_else(|_| panic!("the file has no `{name}`"));
    let dtype = match v.dtype() {
        Dtype::F32 => DType::F32,
        Dtype::I64 => DType::I64,
        other => panic!("`{name}` is {other:?}"),
    };
    Tensor::from_const(&ConstData { dtype, shape: Shape::new(v.shape()), bytes: v.data().into() })
}

struct Case {
    plain: Graph,
    scaled: Graph,
    inputs: IndexMap<String, Tensor>,
    vars: IndexMap<String, Tensor>,
}

fn spec(scale: Option<ScaleSpec>, accumulate: u32) -> TrainSpec {
    TrainSpec {
        // Not Adam: it divides a gradient that is zero but for rounding by its own size.
        optimizer: OptimizerSpec::Sgd { momentum: 0.9, nesterov: true, weight_decay: 0.01 },
        lr: LrSpec { lr: 0.1, warmup_steps: 0, curve: LrCurve::Constant },
        accumulate,
        normalize: Normalize::Whole,
        on_nonfinite: if scale.is_some() { OnNonfinite::Skip } else { OnNonfinite::Stop },
        clip_norm: Some(1.0),
        ema: None,
        no_decay_vectors: false,
        frozen: vec![],
        frozen_rows: vec![],
        scale,
    }
}

fn case(name: &str, accumulate: u32) -> Case {
    let folder = fixture(name);
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
    let imported = load(&folder.join("model.onnx"), &opts).unwrap_or_else(|e| panic!("{e}"));
    let mut g = imported.graph;
    let loss = LossSpec::CrossEntropy {
        prediction: "logits".into(),
        target: "targets".into(),
        ignore_index: -100,
        label_smoothing: 0.0,
        class_axis: ClassAxis::Last,
    };
    let loss = attach_loss(&mut g, &loss).unwrap_or_else(|e| panic!("{e}"));
    let build = |scale| {
        let g = joint(g.clone(), loss, &spec(scale, accumulate), accumulate == 1)
            .unwrap_or_else(|e| panic!("{e}"));
        simplify(&g).unwrap_or_else(|e| panic!("{e}"))
    };
    let (plain, scaled) = (build(None), build(Some(ScaleSpec::default())));
    let mut inputs = IndexMap::new();
    for (_, node) in plain.nodes() {
        if let Op::Input(i) = &node.op {
            let key =
                if i.name == "targets" { "tgt.targets".into() } else { format!("in.{}", i.name) };
            let mut t = tensor(&batch, &key);
            t.ty = plain.ty(node.outputs[0]).clone();
            inputs.insert(i.name.clone(), t);
        }
    }
    let mut vars = IndexMap::new();
    for (name, var) in scaled.vars.iter().chain(&plain.vars) {
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
    Case { plain, scaled, inputs, vars }
}

impl Case {
    fn run(&self, policy: Policy, target: &str, pins: Vec<Pin>) -> Outcome {
        let target = Target::shipped(target).expect("shipped");
        let options = PrecisionOptions { pins, ..PrecisionOptions::new(policy) };
        let modes = Modes { plain: Some(&self.plain), scaled: Some(&self.scaled) };
        run(modes, &options, &target).unwrap_or_else(|e| panic!("{e}"))
    }

    /// Results and updates are those of the graph before, as real numbers.
    fn same(&self, o: &Outcome) {
        let before = if o.scaled { &self.scaled } else { &self.plain };
        same_values(before, &o.graph, &self.inputs, &self.vars, 1e-7);
    }
}

/// Uniform reals in [-1, 1) from a state (SplitMix64, Steele et al., 2014).
fn reals(state: &mut u64, count: usize) -> Vec<f64> {
    let mut next = || {
        *state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = *state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        ((z ^ (z >> 31)) >> 11) as f64 * 2f64.powi(-52) - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// Results and updates of two graphs are the same real numbers, up to literals rounded to f32.
fn same_values(
    before: &Graph,
    after: &Graph,
    inputs: &IndexMap<String, Tensor>,
    vars: &IndexMap<String, Tensor>,
    tolerance: f64,
) {
    let a = eval(before, inputs, vars).unwrap_or_else(|e| panic!("{e}"));
    let b = eval(after, inputs, vars).unwrap_or_else(|e| panic!("{e}"));
    for (kind, a, b) in [("result", a.results, b.results), ("update", a.updates, b.updates)] {
        assert_eq!(a.keys().collect::<Vec<_>>(), b.keys().collect::<Vec<_>>());
        for (name, x) in &a {
            let y = &b[name];
            if !x.ty.is_real() {
                continue;
            }
            let norm: f64 = x.reals().iter().map(|v| v * v).sum();
            let off: f64 = x.reals().iter().zip(y.reals()).map(|(a, b)| (a - b).powi(2)).sum();
            assert!(
                off.sqrt() <= tolerance * norm.sqrt().max(1e-30),
                "{kind} {name} is off by {:e} of {:e}",
                off.sqrt(),
                norm.sqrt()
            );
        }
    }
}

/// What a person sees of an outcome.
fn shown(o: &Outcome) -> String {
    let firings: String = o.rule_firings.iter().map(|(k, v)| format!("{k} {v}\n")).collect();
    let candidates: String = o
        .candidates
        .iter()
        .map(|c| format!("{} {:.0} ns: {}\n", c.name, c.predicted_ns, c.note))
        .collect();
    let journal: String = o
        .journal
        .iter()
        .filter(|d| !d.rejected.is_empty())
        .map(|d| {
            let r = &d.rejected[0];
            let extra = r.extra_ns.map_or("illegal".into(), |ns| format!("{ns:+.0} ns"));
            format!(
                "{} {} {:.0} ns: {}; {}: {extra}\n",
                d.op, d.chosen, d.cost_ns, d.reason, r.what
            )
        })
        .collect();
    format!(
        "{}\n\n-- candidates\n{candidates}\n-- rules\n{firings}\n-- products\n{journal}\n-- casts {} of {} elements\n{}",
        o.choice,
        o.casts,
        o.cast_elements,
        text::print(&o.graph)
    )
}

fn every_policy(name: &str) {
    let c = case(name, 1);
    let on = [
        (Policy::F32, "cpu-generic"),
        (Policy::Bf16, "cpu-avx512bf16"),
        (Policy::F16, "sm_80"),
        (Policy::Auto, "sm_90"),
    ];
    for (policy, target) in on {
        c.same(&c.run(policy, target, vec![]));
    }
}

#[test]
fn mlp_means_the_same_under_every_policy() {
    every_policy("mlp_mnist");
}

#[test]
fn cnn_means_the_same_in_bf16() {
    let c = case("cifar_cnn", 1);
    c.same(&c.run(Policy::Bf16, "cpu-avx512bf16", vec![]));
}

#[test]
fn gpt_means_the_same_under_every_policy() {
    every_policy("tiny_gpt");
}

#[test]
fn accumulation_keeps_its_phases() {
    let c = case("mlp_mnist", 4);
    for policy in [Policy::F32, Policy::F16] {
        let o = c.run(policy, "cpu-avx512bf16", vec![]);
        c.same(&o);
        let before = if o.scaled { &c.scaled } else { &c.plain };
        for (a, b) in before.updates.iter().zip(&o.graph.updates) {
            let phase = |g: &Graph, v| g.def(v).region.phase();
            assert_eq!(phase(before, a.value), phase(&o.graph, b.value), "{}", a.name);
        }
    }
}

#[test]
fn mlp_in_bf16() {
    let o = case("mlp_mnist", 1).run(Policy::Bf16, "cpu-avx512bf16", vec![]);
    insta::assert_snapshot!(shown(&o));
}

#[test]
fn mlp_in_f16() {
    let o = case("mlp_mnist", 1).run(Policy::F16, "sm_80", vec![]);
    insta::assert_snapshot!(shown(&o));
}

#[test]
fn gpt_in_bf16() {
    let o = case("tiny_gpt", 1).run(Policy::Bf16, "cpu-avx512bf16", vec![]);
    insta::assert_snapshot!(shown(&o));
}

#[test]
fn auto_stays_in_f32_without_fast_products_and_says_so() {
    for name in ["mlp_mnist", "tiny_gpt", "cifar_cnn"] {
        let o = case(name, 1).run(Policy::Auto, "cpu-generic", vec![]);
        assert_eq!(o.product_flops, [(Precision::F32, 1.0)]);
        assert_eq!(o.casts, 0);
        assert!(o.choice.contains("FP32"), "{}", o.choice);
    }
}

/// Every product of a scaled cotangent; the scale itself is applied once, to a scalar.
#[test]
fn the_scale_ends_at_the_seed() {
    for name in ["mlp_mnist", "tiny_gpt", "cifar_cnn"] {
        let o = case(name, 1).run(Policy::F16, "sm_80", vec![]);
        let large: Vec<&str> = o
            .graph
            .nodes()
            .filter(|(_, n)| {
                matches!(n.op, Op::ScaleBy(_))
                    && n.region != precast_compiler::ir::Region::Update
                    && o.graph.shape(n.outputs[0]).elements() > 1
            })
            .map(|(_, n)| n.name.as_str())
            .collect();
        assert!(large.is_empty(), "{name}: {large:?}");
        let f16 = o.product_flops.iter().find(|(d, _)| *d == Precision::F16);
        assert!(f16.is_some_and(|(_, share)| *share == 1.0), "{name}: {:?}", o.product_flops);
    }
}

/// No storage is converted twice, and no weight more than once.
#[test]
fn casts_are_made_once() {
    for name in ["mlp_mnist", "tiny_gpt", "cifar_cnn"] {
        let o = case(name, 1).run(Policy::Bf16, "cpu-avx512bf16", vec![]);
        let mut seen = std::collections::BTreeSet::new();
        for (_, n) in o.graph.nodes().filter(|(_, n)| matches!(n.op, Op::Cast(_))) {
            let key = (n.inputs[0], o.graph.ty(n.outputs[0]).dtype.name());
            assert!(seen.insert(key), "{name}: `{}` repeats a cast", n.name);
        }
        for (_, n) in o.graph.nodes().filter(|(_, n)| n.op.class() == NumericClass::Product) {
            assert_eq!(o.graph.ty(n.inputs[0]).dtype, DType::Bf16, "{name}: {}", n.name);
        }
    }
}

#[test]
fn the_same_input_gives_the_same_bytes() {
    let texts: Vec<String> =
        (0..3).map(|_| shown(&case("tiny_gpt", 1).run(Policy::F16, "sm_90", vec![]))).collect();
    assert!(texts.iter().all(|t| *t == texts[0]));
}

#[test]
fn pins_hold_and_wrong_ones_are_refused() {
    let c = case("mlp_mnist", 1);
    let pin = |op: &str, dtype| vec![Pin { op: op.into(), dtype, place: None }];
    let o = c.run(Policy::Bf16, "cpu-avx512bf16", pin("*fc1*", DType::F32));
    c.same(&o);
    let mut pinned = 0;
    for (_, n) in o.graph.nodes().filter(|(_, n)| n.op.class() == NumericClass::Product) {
        let want = if n.name.contains("fc1") { DType::F32 } else { DType::Bf16 };
        assert_eq!(o.graph.ty(n.inputs[0]).dtype, want, "{}", n.name);
        pinned += usize::from(want == DType::F32);
    }
    assert!(pinned >= 2);
    let target = Target::shipped("cpu-avx512bf16").unwrap();
    let refused = |pins| {
        let options = PrecisionOptions { pins, ..PrecisionOptions::new(Policy::Bf16) };
        let modes = Modes { plain: Some(&c.plain), scaled: None };
        run(modes, &options, &target).expect_err("a wrong pin").to_string()
    };
    assert!(refused(pin("nothing*", DType::F32)).contains("names no operation"));
    assert!(refused(pin("[", DType::F32)).contains("not a glob"));
    assert!(refused(pin("loss*", DType::Bf16)).contains("cannot be"));
}
