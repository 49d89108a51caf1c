//! Optimizers and learning-rate curves in compiled plans, step by step against PyTorch's.

mod common;

use precast_compiler::autodiff::{
    LrCurve, LrSpec, Normalize, OnNonfinite, OptimizerSpec, TrainSpec, joint,
};
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::precision::Policy;
use precast_compiler::{pipeline, text};
use precast_runtime::data::batch_of;
use precast_runtime::{HostTensor, ModelWeights, Options, Session};
use serde_json::Value;
use std::collections::BTreeMap;

/// The gradient of `p` is the input `g`.
const MODEL: &str = "graph linear
var p0: f32[2,3] param zeros
var p1: f32[3] param zeros
forward:
  %0 = input {name=\"g0\"} : f32[2,3] @g0
  %1 = input {name=\"g1\"} : f32[3] @g1
  %2 = var {name=\"p0\"} : f32[2,3] @p0
  %3 = var {name=\"p1\"} : f32[3] @p1
  %4 = binary %0, %2 {f=mul} : f32[2,3] @y0
  %5 = binary %1, %3 {f=mul} : f32[3] @y1
  %6 = reduce %4 {f=sum, axes=[0,1]} : f32[] @s0
  %7 = reduce %5 {f=sum, axes=[0]} : f32[] @s1
  %8 = binary %6, %7 {f=add} : f32[] @loss
result loss = %8
";

const SHAPES: [&[u64]; 2] = [&[2, 3], &[3]];

fn transcripts() -> Value {
    let text = std::fs::read_to_string(common::folder("optimizers.json")).expect("the fixture");
    serde_json::from_str(&text).expect("the fixture is JSON")
}

fn numbers(v: &Value) -> Vec<f64> {
    match v {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        v => vec![v.as_f64().expect("a number")],
    }
}

fn tensor(shape: &[u64], v: &Value) -> HostTensor<'static> {
    let values: Vec<f32> = numbers(v).into_iter().map(|x| x as f32).collect();
    HostTensor::from_f32(shape, &values)
}

fn spec(case: &Value) -> TrainSpec {
    let o = &case["optimizer"];
    let or = |key: &str, otherwise: f64| o[key].as_f64().unwrap_or(otherwise);
    let weight_decay = or("weight_decay", 0.0);
    let kind = o["kind"].as_str().expect("a name");
    let optimizer = match kind {
        "sgd" => OptimizerSpec::Sgd {
            momentum: or("momentum", 0.0),
            nesterov: o["nesterov"].as_bool().unwrap_or(false),
            weight_decay,
        },
        _ => {
            let betas = numbers(&o["betas"]);
            let decoupled = kind == "adamw";
            let (beta1, beta2, eps) = (betas[0], betas[1], or("eps", 1e-8));
            OptimizerSpec::Adam { beta1, beta2, eps, weight_decay, decoupled }
        }
    };
    TrainSpec {
        optimizer,
        lr: LrSpec { lr: or("lr", f64::NAN), warmup_steps: 0, curve: LrCurve::Constant },
        accumulate: 1,
        normalize: Normalize::Whole,
        on_nonfinite: OnNonfinite::Stop,
        clip_norm: case["clip_norm"].as_f64(),
        ema: Some(0.75),
        no_decay_vectors: false,
        frozen: vec![],
        frozen_rows: vec![],
        scale: None,
    }
}

/// Within eight units in the last place of the largest element: a clipped square rounds often.
#[track_caller]
fn close(what: &str, have: &[f32], want: &[f64]) {
    assert_eq!(have.len(), want.len(), "{what}");
    let size = want.iter().fold(0f64, |m, x| m.max(x.abs()));
    for (a, b) in have.iter().zip(want) {
        let e = (f64::from(*a) - b).abs();
        assert!(e <= 8.0 * 2f64.powi(-24) * size, "{what}: {have:?}\nPyTorch: {want:?}");
    }
}

#[test]
fn every_step_is_pytorchs() {
    let file = transcripts();
    let graph = text::parse("linear", MODEL).unwrap_or_else(|e| panic!("{e}"));
    let loss = graph.result("loss").expect("written above");
    for (name, case) in file["cases"].as_object().expect("cases") {
        let g = joint(graph.clone(), loss, &spec(case), true).unwrap_or_else(|e| panic!("{e}"));
        let plan = common::lower(&g, Policy::F32);
        let none: BTreeMap<String, HostTensor> = BTreeMap::new();
        let mut s =
            Session::new(plan, &none, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        for (i, shape) in SHAPES.iter().enumerate() {
            for p in [format!("p{i}"), format!("ema.p{i}")] {
                s.write(&p, &tensor(shape, &file["start"][i])).unwrap_or_else(|e| panic!("{e}"));
            }
        }
        let mut averages: Vec<Vec<f64>> = (0..2).map(|i| numbers(&file["start"][i])).collect();
        for (k, step) in case["f64"].as_array().expect("steps").iter().enumerate() {
            let fed: Vec<HostTensor> =
                (0..2).map(|i| tensor(SHAPES[i], &file["gradients"][k][i])).collect();
            let tensors = [("g0", fed[0].clone()), ("g1", fed[1].clone())];
            let b = batch_of(&s.wanted(), &tensors).unwrap_or_else(|e| panic!("{e}"));
            let report = s.step(&[b]).unwrap_or_else(|e| panic!("{e}"));
            let norm = report.grad_norm.expect("the plan reports it");
            close(&format!("{name} {k}: norm"), &[norm], &numbers(&step["grad_norm"]));
            for i in 0..2 {
                let read = |n: &str| s.read(n).unwrap_or_else(|e| panic!("{e}")).to_f32();
                let g = s.result(&format!("grad.p{i}")).unwrap_or_else(|e| panic!("{e}"));
                assert_eq!(g.to_f32(), fed[i].to_f32(), "{name} {k}: gradient of p{i}");
                let want = numbers(&step["params"][i]);
                close(&format!("{name} {k}: p{i}"), &read(&format!("p{i}")), &want);
                for (x, w) in averages[i].iter_mut().zip(&want) {
                    *x = 0.75 * *x + 0.25 * w;
                }
                let ema = read(&format!("ema.p{i}"));
                close(&format!("{name} {k}: moving average of p{i}"), &ema, &averages[i]);
                for (key, state) in
                    [("momentum", "momentum"), ("m", "exp_avg"), ("v", "exp_avg_sq")]
                {
                    if let Some(list) = step.get(key) {
                        let what = format!("{name} {k}: {key} of p{i}");
                        close(&what, &read(&format!("p{i}.{state}")), &numbers(&list[i]));
                    }
                }
            }
        }
    }
}

#[test]
fn learning_rates_follow_the_curves() {
    let folder = common::folder("");
    for row in transcripts()["schedules"]["rows"].as_array().expect("rows") {
        let real = |k: &str| row[k].as_f64().expect("a number");
        let kind = row["kind"].as_str().expect("a name");
        let end = match kind {
            "constant" => String::new(),
            _ => format!("final_ratio = {:?}\n", real("min_lr") / real("lr")),
        };
        let text = format!(
            "model = \"grad_scaler.onnx\"\n[data]\nformat = \"safetensors\"\nfile = \"none\"\n\
             inputs = {{ x = \"x\" }}\ntargets = {{ t = \"t\" }}\n\
             [loss]\nkind = \"mse\"\ntarget = \"t\"\n\
             [optimizer]\nkind = \"sgd\"\nlr = {:?}\n\
             [schedule]\nkind = \"{kind}\"\nwarmup = {}\n{end}\
             [precision]\npolicy = \"f32\"\n[train]\nsteps = {}\n",
            real("lr"),
            row["warmup"],
            row["steps"],
        );
        let recipe =
            Recipe::parse(folder.join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
        let mut options = pipeline::Options {
            total_steps: row["steps"].as_u64(),
            ..pipeline::Options::default()
        };
        options.shapes.insert("x".into(), vec![3, 4]);
        options.shapes.insert("t".into(), vec![3, 2]);
        let plan = pipeline::compile(&recipe, &options).unwrap_or_else(|e| panic!("{e}")).plan;
        let weights =
            ModelWeights::for_plan(&plan, &folder, None).unwrap_or_else(|e| panic!("{e}"));
        let mut s =
            Session::new(plan, &weights, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
        let x = HostTensor::from_f32(&[3, 4], &[0.5; 12]);
        let t = HostTensor::from_f32(&[3, 2], &[0.25; 6]);
        let b = batch_of(&s.wanted(), &[("x", x), ("t", t)]).unwrap_or_else(|e| panic!("{e}"));
        for (i, want) in numbers(&row["values"]).into_iter().enumerate() {
            s.step(std::slice::from_ref(&b)).unwrap_or_else(|e| panic!("{e}"));
            let lr = s.result("lr").unwrap_or_else(|e| panic!("{e}")).to_f64()[0];
            // An f32 cosine near −1 loses what is small beside 1.
            assert!((lr - want).abs() <= 1e-7 * real("lr"), "{kind} {i}: {lr} against {want}");
        }
    }
}
