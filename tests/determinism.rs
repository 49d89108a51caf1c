//! The same input gives the same plan and the same numbers; accumulation, averages, clipping and
//! dropout through the whole of the compiler and the CPU backend.

mod common;
#[path = "cli/small.rs"]
#[allow(dead_code, reason = "every test binary uses a part")]
mod small;

use common::Fixture;
use precast_compiler::autodiff::{
    LrCurve, LrSpec, Normalize, OnNonfinite, OptimizerSpec, TrainSpec, joint,
};
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::precision::Policy;
use precast_compiler::{pipeline, text};
use precast_plan::{Kernel, Plan, Role, Storage};
use precast_runtime::data::{Batch, batch_of};
use precast_runtime::{HostTensor, ModelWeights, Options, Session};
use std::collections::BTreeMap;
use std::process::Command;

const SGD: &str = "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9";
const FIXTURES: [&str; 3] = ["mlp_mnist", "cifar_cnn", "tiny_gpt"];

fn plan(fixture: &str, policy: &str) -> Plan {
    Fixture::open(fixture).compile("model.onnx", policy, SGD, false).plan
}

fn bytes(plan: &Plan) -> Vec<u8> {
    serde_json::to_vec(plan).expect("a plan can be written")
}

/// FNV-1a (Fowler, Noll, Vo).
fn hash(bytes: &[u8]) -> u64 {
    bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |h, &b| (h ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3))
}

const CHILD: &str = "PRECAST_TEST_PRINT_HASHES";

fn hashes() -> String {
    FIXTURES.iter().map(|f| format!("{f}={:016x};", hash(&bytes(&plan(f, "bf16"))))).collect()
}

#[test]
fn plans_are_the_same_bytes_in_every_process_and_thread() {
    if std::env::var_os(CHILD).is_some() {
        println!("<{}>", hashes());
        return;
    }
    let here = hashes();
    let there = std::thread::spawn(hashes).join().expect("the thread compiles");
    assert_eq!(here, there);
    let out = Command::new(std::env::current_exe().expect("a test binary"))
        .args(["--exact", "plans_are_the_same_bytes_in_every_process_and_thread", "--nocapture"])
        .env(CHILD, "1")
        .output()
        .expect("the test binary runs again");
    let out = String::from_utf8_lossy(&out.stdout).into_owned();
    assert!(out.contains(&format!("<{here}>")), "{here}\n{out}");
}

#[test]
fn numbers_do_not_depend_on_the_number_of_threads() {
    for (name, policy) in
        [("mlp_mnist", "f32"), ("cifar_cnn", "f32"), ("tiny_gpt", "f32"), ("tiny_gpt", "bf16")]
    {
        let f = Fixture::open(name);
        let plan = plan(name, policy);
        let run = |threads: usize| {
            let (mut s, batch) = f.session_on(plan.clone(), threads);
            let mut out: Vec<Vec<f32>> = vec![];
            for _ in 0..2 {
                let r = s.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
                out.push(vec![r.loss, r.grad_norm.expect("reported")]);
            }
            for t in plan.tensors.iter().filter(|t| t.name.ends_with("weight")) {
                out.push(s.read(&t.name).unwrap_or_else(|e| panic!("{e}")).to_f32());
            }
            out
        };
        let one = run(1);
        for threads in [2, 3] {
            assert!(one == run(threads), "{name} {policy}: {threads} threads differ from one");
        }
    }
}

#[test]
fn the_average_of_parameters_follows_them() {
    let f = Fixture::open("mlp_mnist");
    let plan = f.compile_with("model.onnx", "f32", SGD, "ema = 0.9", false).plan;
    let (mut s, batch) = f.session(plan);
    let read = |s: &Session, n: &str| s.read(n).unwrap_or_else(|e| panic!("{e}")).to_f64();
    let mut want = read(&s, "fc1.weight");
    assert_eq!(read(&s, "ema.fc1.weight"), want);
    for _ in 0..3 {
        s.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
        for (x, w) in want.iter_mut().zip(read(&s, "fc1.weight")) {
            *x = 0.9 * *x + 0.1 * w;
        }
        for (a, b) in read(&s, "ema.fc1.weight").iter().zip(&want) {
            assert!((a - b).abs() <= 1e-7, "{a} against {b}");
        }
    }
}

/// A session of a model in textual IR, trained on `y` with the mean of squares against `t`.
fn textual(model: &str, policy: &str, optimizer: &str, train: &str) -> Session {
    let dir = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(dir.path().join("model.pir"), model).expect("written");
    let text = format!(
        "model = \"model.pir\"\n[data]\ntargets = {{ t = \"t\" }}\n[loss]\nkind = \"mse\"\n\
         [optimizer]\n{optimizer}\n[precision]\npolicy = \"{policy}\"\n\
         [train]\nsteps = 9\n{train}\n"
    );
    let recipe =
        Recipe::parse(dir.path().join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
    let plan = pipeline::compile(&recipe, &pipeline::Options::default())
        .unwrap_or_else(|e| panic!("{e}"))
        .plan;
    let weights = ModelWeights::for_plan(&plan, dir.path(), None).unwrap_or_else(|e| panic!("{e}"));
    let options = Options { threads: 1, seed: 0, ..Options::default() };
    Session::new(plan, &weights, &options).unwrap_or_else(|e| panic!("{e}"))
}

/// A batch for [`textual`], of any number of rows.
fn rows(s: &Session, x: &[f32], t: &[f32]) -> Batch {
    let wanted = s.wanted();
    let values = |name: &str, v: &[f32]| {
        let shape = &wanted.iter().find(|w| w.name == name).expect("an input").shape;
        HostTensor::from_f32(shape, v)
    };
    batch_of(&wanted, &[("x", values("x", x)), ("t", values("t", t))])
        .unwrap_or_else(|e| panic!("{e}"))
}

#[test]
fn batches_accumulate_to_one_of_all_their_rows() {
    const ADAM: &str = "kind = \"adamw\"\nlr = 0.01";
    let eight = small::MODEL
        .replace("f32[4,3]\n  %w1", "f32[8,3]\n  %w1")
        .replace("{shape=[4,4]}", "{shape=[8,4]}");
    assert_ne!(eight, small::MODEL);
    for (optimizer, train) in [(SGD, ""), (ADAM, "clip_norm = 0.1\nema = 0.5")] {
        let mut once = textual(&eight, "f32", optimizer, train);
        let mut twice =
            textual(small::MODEL, "f32", optimizer, &format!("accumulate = 2\n{train}"));
        let number = |i: usize| ((i * 37 + 11) % 29) as f32 / 14.0 - 1.0;
        for step in 0..4 {
            // Rows that nothing in them repeats: the two halves have other gradients.
            let x: Vec<f32> = (0..24).map(|i| number(i + 40 * step)).collect();
            let t: Vec<f32> = (0..16).map(|i| 3.0 * number(5 * i + 3 + step)).collect();
            let whole = rows(&once, &x, &t);
            let halves = [rows(&twice, &x[..12], &t[..8]), rows(&twice, &x[12..], &t[8..])];
            let a = once.step(&[whole]).unwrap_or_else(|e| panic!("{e}"));
            let b = twice.step(&halves).unwrap_or_else(|e| panic!("{e}"));
            assert!((a.loss - b.loss).abs() <= 1e-6 * a.loss, "step {step}: {a:?} {b:?}");
            let (m, n) = (a.grad_norm.expect("reported"), b.grad_norm.expect("reported"));
            assert!((m - n).abs() <= 2e-6 * m, "step {step}: {m} against {n}");
            assert!(m > 0.1, "clipping and the comparison need a gradient: {m}");
            for name in ["w1", "b1", "w2"] {
                let read = |s: &Session| s.read(name).unwrap_or_else(|e| panic!("{e}")).to_f32();
                for (a, b) in read(&once).iter().zip(read(&twice)) {
                    assert!((a - b).abs() <= 1e-5 * a.abs().max(0.1), "{name}: {a} against {b}");
                }
            }
        }
    }
}

/// y = (x ⊙ table) w with the mean of squares; by hand, with x ⊙ table = [[2, 2], [3, 2]] and
/// y = [-1, -0.5]: the loss is (4 + 0.25) / 2, its gradient for w is [-5.5, -5].
#[test]
fn frozen_parameters_keep_their_values() {
    const MODEL: &str = "graph frozen
var table: f32[2,2] param data(f32[2,2](2, 1, 1, 0.5))
var w: f32[2,1] param data(f32[2,1](0.5, -1))
forward:
  %x = input {name=\"x\"} : f32[2,2]
  %c = var {name=\"table\"} : f32[2,2] @table
  %w = var {name=\"w\"} : f32[2,1] @w
  %p = binary %x, %c {f=mul}
  %y = matmul %p, %w {fused=none}
result out.y = %y
";
    let adam = "kind = \"adamw\"\nlr = 0.1\nweight_decay = 0.5";
    let sgd = "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9\nweight_decay = 0";
    for (policy, optimizer) in [("f32", sgd), ("f32", adam), ("bf16", sgd)] {
        let train = "freeze = [\"tab*\"]\nema = 0.9";
        let mut s = textual(MODEL, policy, optimizer, train);
        let batch = rows(&s, &[1.0, 2.0, 3.0, 4.0], &[1.0, 0.0]);
        let r = s.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
        // Every number here is exact in bf16, too.
        assert_eq!(r.loss, 2.125, "{policy}");
        let norm = r.grad_norm.expect("reported");
        assert!((norm - 55.25f32.sqrt()).abs() < 1e-6, "{policy}: {norm}");
        let read = |n: &str| s.read(n).unwrap_or_else(|e| panic!("{e}")).to_f32();
        if optimizer == sgd {
            let w = read("w");
            assert!((w[0] - 1.05).abs() < 1e-6 && (w[1] + 0.5).abs() < 1e-6, "{policy}: {w:?}");
        }
        s.step(&[batch]).unwrap_or_else(|e| panic!("{e}"));
        let read = |n: &str| s.read(n).unwrap_or_else(|e| panic!("{e}")).to_f32();
        assert_eq!(read("table"), [2.0, 1.0, 1.0, 0.5], "{policy}");
        assert_ne!(read("w"), [0.5, -1.0]);
        let owned = |name: &str| name != "table" && name.contains("table.");
        let extra: Vec<&str> = s
            .plan()
            .tensors
            .iter()
            .filter(|t| match t.storage {
                Storage::Persistent { role, .. } => {
                    role != Role::WeightCopy && (owned(&t.name) || t.name.contains("ema.table"))
                }
                _ => false,
            })
            .map(|t| t.name.as_str())
            .collect();
        assert!(extra.is_empty(), "{policy}: {extra:?}");
    }
    // Without `freeze` the same table is trained.
    let mut s = textual(MODEL, "f32", sgd, "");
    let batch = rows(&s, &[1.0, 2.0, 3.0, 4.0], &[1.0, 0.0]);
    s.step(&[batch]).unwrap_or_else(|e| panic!("{e}"));
    assert_ne!(s.read("table").unwrap_or_else(|e| panic!("{e}")).to_f32(), [2.0, 1.0, 1.0, 0.5]);
}

#[test]
fn freezing_leaves_other_gradients_as_they_are() {
    let f = Fixture::open("tiny_gpt");
    let run = |train: &str| {
        let plan = f.compile_with("model.onnx", "f32", SGD, train, true).plan;
        let names: Vec<String> = plan
            .results
            .iter()
            .filter_map(|r| Some(r.name.strip_prefix("grad.")?.to_string()))
            .collect();
        let (mut s, batch) = f.session(plan);
        s.step(&[batch]).unwrap_or_else(|e| panic!("{e}"));
        let read = |n: &String| {
            let g = s.result(&format!("grad.{n}")).unwrap_or_else(|e| panic!("{e}")).to_f64();
            (n.clone(), g)
        };
        names.iter().map(read).collect::<BTreeMap<_, _>>()
    };
    let (all, some) = (run(""), run("freeze = [\"*ln*\", \"*.bias\"]"));
    assert!(!some.is_empty() && some.len() < all.len(), "{:?}", all.keys());
    for (name, g) in &some {
        let size = g.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let off = g.iter().zip(&all[name]).fold(0.0, |m: f64, (a, b)| m.max((a - b).abs()));
        assert!(off <= 1e-6 * size, "{name}: {off:e} of {size}");
    }
    let kept = all.keys().filter(|n| !n.contains("ln") && !n.ends_with(".bias")).count();
    assert_eq!(some.len(), kept);
}

#[test]
fn clipping_shortens_the_step() {
    let f = Fixture::open("mlp_mnist");
    let sgd = "kind = \"sgd\"\nlr = 0.5";
    let moved = |train: &str| {
        let (mut s, batch) = f.session(f.compile_with("model.onnx", "f32", sgd, train, false).plan);
        let names = ["fc1.weight", "fc1.bias", "fc2.weight", "fc2.bias"];
        let read = |s: &Session| -> Vec<f64> {
            names
                .iter()
                .flat_map(|n| s.read(n).unwrap_or_else(|e| panic!("{e}")).to_f64())
                .collect()
        };
        let before = read(&s);
        let norm = s.step(&[batch]).unwrap_or_else(|e| panic!("{e}")).grad_norm.expect("reported");
        let far: f64 = before.iter().zip(read(&s)).map(|(a, b)| (a - b).powi(2)).sum();
        (f64::from(norm), far.sqrt())
    };
    let (norm, far) = moved("");
    assert!((far - 0.5 * norm).abs() <= 1e-4 * far, "{far} against {norm}");
    let (same, clipped) = moved(&format!("clip_norm = {:?}", norm / 4.0));
    assert_eq!(same, norm);
    assert!((clipped - far / 4.0).abs() <= 1e-4 * far, "{clipped} against {far}");
    let (_, loose) = moved(&format!("clip_norm = {:?}", norm * 2.0));
    assert!((loose - far).abs() <= 1e-6 * far, "{loose} against {far}");
}

/// With the loss Σ (dropout(w))², the gradient is 2 mask² w: the mask of the backward pass is that
/// of the forward pass exactly where the gradient agrees with the loss.
#[test]
fn dropout_masks_agree_forward_and_backward_and_change_from_step_to_step() {
    const MODEL: &str = "graph dropout
var w: f32[64,64] param value(1.0)
forward:
  %0 = input {name=\"seed\"} : i32[] @seed
  %1 = input {name=\"step\"} : i32[] @step
  %2 = var {name=\"w\"} : f32[64,64] @w
  %3 = dropout %2, %0, %1 {p=0.25, stream=1} : f32[64,64] @d
  %4 = binary %3, %3 {f=mul} : f32[64,64] @sq
  %5 = reduce %4 {f=sum, axes=[0,1]} : f32[] @loss
result loss = %5
result out.d = %3
";
    let g = text::parse("dropout", MODEL).unwrap_or_else(|e| panic!("{e}"));
    let spec = TrainSpec {
        optimizer: OptimizerSpec::Sgd { momentum: 0.0, nesterov: false, weight_decay: 0.0 },
        lr: LrSpec { lr: 0.0, warmup_steps: 0, curve: LrCurve::Constant },
        accumulate: 1,
        normalize: Normalize::Whole,
        on_nonfinite: OnNonfinite::Stop,
        clip_norm: None,
        ema: None,
        no_decay_vectors: false,
        frozen: vec![],
        frozen_rows: vec![],
        scale: None,
    };
    let loss = g.result("loss").expect("written above");
    let plan =
        common::lower(&joint(g, loss, &spec, true).unwrap_or_else(|e| panic!("{e}")), Policy::F32);
    let run = |threads: usize, seed: u64| {
        let none: BTreeMap<String, HostTensor> = BTreeMap::new();
        let options = Options { threads, seed, ..Options::default() };
        let mut s = Session::new(plan.clone(), &none, &options).unwrap_or_else(|e| panic!("{e}"));
        let batch = batch_of(&s.wanted(), &[]).unwrap_or_else(|e| panic!("{e}"));
        let mut masks = vec![];
        for _ in 0..3 {
            s.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
            let read = |n: &str| s.result(n).unwrap_or_else(|e| panic!("{e}")).to_f32();
            let (d, grad) = (read("out.d"), read("grad.w"));
            for (d, g) in d.iter().zip(grad) {
                let want = 2.0 * d * d;
                assert!((g - want).abs() <= 1e-6, "{g} where the forward pass has {d}");
                assert!(*d == 0.0 || (d - 4.0 / 3.0).abs() <= 1e-6, "{d}");
            }
            let kept = d.iter().filter(|&&x| x != 0.0).count() as f64 / d.len() as f64;
            // Four standard deviations of 4096 draws.
            assert!((kept - 0.75).abs() <= 4.0 * (0.75f64 * 0.25 / 4096.0).sqrt(), "{kept}");
            masks.push(d);
        }
        assert!(masks[0] != masks[1] && masks[1] != masks[2]);
        masks
    };
    let first = run(1, 7);
    assert!(first == run(3, 7), "a mask depends on the threads");
    assert!(first != run(1, 8), "a mask does not depend on the seed");
}

#[test]
fn attention_never_stores_its_scores() {
    let f = Fixture::open("tiny_gpt");
    let tokens = f.batch.tensor("in.input_ids").expect("listed").shape;
    let (batch, length) = (tokens[0], tokens[1]);
    for model in
        ["model.onnx", "model_static.onnx", "model_dynamo.onnx", "model_dynamo_static.onnx"]
    {
        for policy in ["f32", "bf16"] {
            let plan = f.compile(model, policy, SGD, false).plan;
            let count = |k: fn(&Kernel) -> bool| plan.micro.iter().filter(|s| k(&s.kernel)).count();
            let forward = count(|k| matches!(k, Kernel::Attention(_)));
            let backward = count(|k| matches!(k, Kernel::AttentionGrad(_)));
            assert_eq!((forward, backward), (2, 2), "{model} {policy}: one a layer");
            let scores = plan.tensors.iter().find(|t| {
                t.shape.ends_with(&[length, length])
                    && t.shape.iter().product::<u64>() >= batch * length * length
            });
            assert!(scores.is_none(), "{model} {policy} stores {scores:?}");
        }
    }
}

#[test]
fn evaluation_uses_running_statistics() {
    use precast_compiler::reference::{Tensor, eval};
    let f = Fixture::open("cifar_cnn");
    let plan = f.compile("model.onnx", "f32", SGD, true).plan;
    let (mut s, batch) = f.session(plan);
    // A plan that keeps everything, outputs too. Two steps move weights and statistics away from where
    // they began.
    for _ in 0..2 {
        s.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    }
    s.eval(&batch).unwrap_or_else(|e| panic!("{e}"));
    let name = "out.logits";
    let have = s.eval_result(name).unwrap_or_else(|e| panic!("{e}")).to_f64();
    let (text, options) = f.recipe("model.onnx", "f32", SGD, "");
    let recipe =
        Recipe::parse(f.folder.join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
    let graph = pipeline::import(&recipe, &options, false).unwrap_or_else(|e| panic!("{e}")).graph;
    let tensor = |t: HostTensor| {
        let shape: Vec<usize> = t.shape.iter().map(|&n| n as usize).collect();
        Tensor::real(shape, t.to_f64())
    };
    let x = f.batch.tensor("in.x").expect("listed");
    let inputs = [("x".to_string(), tensor(x))].into_iter().collect();
    let vars = graph
        .vars
        .keys()
        .map(|n| (n.clone(), tensor(s.read(n).unwrap_or_else(|e| panic!("{n}: {e}")))))
        .collect();
    let out = eval(&graph, &inputs, &vars).unwrap_or_else(|e| panic!("{e}"));
    let want = out.results[name].reals();
    let size = want.iter().fold(0f64, |m, x| m.max(x.abs()));
    assert_eq!(have.len(), want.len());
    for (a, b) in have.iter().zip(want) {
        assert!((a - b).abs() <= 1e-4 * size, "{a} against {b}");
    }
    // Batch statistics give something else.
    let trained = s.result(name).unwrap_or_else(|e| panic!("{e}")).to_f64();
    assert!(trained.iter().zip(want).any(|(a, b)| (a - b).abs() > 1e-2 * size));
}
