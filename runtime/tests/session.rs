//! A plan built by hand, trained: against a plain f64 computation, over threads, through
//! checkpoints.

mod common;

use common::{BATCH, HIDDEN, IN, OUT, mlp};
use precast_plan::{DType, Plan};
use precast_runtime::data::{Batch, DataState, Position};
use precast_runtime::tensors::TensorFile;
use precast_runtime::{HostTensor, Options, Session};
use std::collections::BTreeMap;

type Weights = BTreeMap<String, HostTensor<'static>>;

fn session(plan: Plan, threads: usize) -> Session {
    Session::new(plan, &Weights::new(), &Options { threads, seed: 1, ..Options::default() })
        .unwrap()
}

fn values(n: u64, seed: f64) -> Vec<f32> {
    (0..n).map(|i| ((i as f64 * 0.37 + seed).sin() * 0.9) as f32).collect()
}

fn batch(k: u64) -> Batch {
    let bytes = |v: Vec<f32>| v.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
    Batch {
        tensors: vec![
            ("in.x".into(), bytes(values(BATCH * IN, k as f64))),
            ("targets".into(), bytes(values(BATCH * OUT, k as f64 + 0.5))),
        ],
        rows: BATCH,
    }
}

fn train(s: &mut Session, steps: std::ops::Range<u64>) {
    for k in steps {
        s.step(&[batch(k)]).unwrap();
    }
}

/// The same network in f64: loss and gradient norm of each step.
fn reference(s: &Session, steps: u64) -> Vec<(f64, f64)> {
    let get = |n: &str| s.read(n).unwrap().to_f64();
    let (mut w1, mut b1, mut w2) = (get("w1"), get("b1"), get("w2"));
    let mut moments = [vec![0.0; w1.len()], vec![0.0; b1.len()], vec![0.0; w2.len()]];
    let (n, i, h, o) = (BATCH as usize, IN as usize, HIDDEN as usize, OUT as usize);
    (0..steps)
        .map(|k| {
            let x: Vec<f64> = values(BATCH * IN, k as f64).iter().map(|&x| x.into()).collect();
            let t: Vec<f64> =
                values(BATCH * OUT, k as f64 + 0.5).iter().map(|&x| x.into()).collect();
            let mut grads = [vec![0.0; w1.len()], vec![0.0; b1.len()], vec![0.0; w2.len()]];
            let mut loss = 0.0;
            for r in 0..n {
                let hid: Vec<f64> = (0..h)
                    .map(|j| {
                        ((0..i).map(|q| x[r * i + q] * w1[q * h + j]).sum::<f64>() + b1[j]).max(0.0)
                    })
                    .collect();
                for c in 0..o {
                    let p: f64 = (0..h).map(|j| hid[j] * w2[j * o + c]).sum();
                    let d = p - t[r * o + c];
                    loss += d * d / (n * o) as f64;
                    let dp = 2.0 * d / (n * o) as f64;
                    for j in 0..h {
                        grads[2][j * o + c] += hid[j] * dp;
                        if hid[j] > 0.0 {
                            grads[1][j] += dp * w2[j * o + c];
                            for q in 0..i {
                                grads[0][q * h + j] += x[r * i + q] * dp * w2[j * o + c];
                            }
                        }
                    }
                }
            }
            let norm = grads.iter().flatten().map(|g| g * g).sum::<f64>().sqrt();
            for ((w, m), g) in [&mut w1, &mut b1, &mut w2].into_iter().zip(&mut moments).zip(&grads)
            {
                for ((w, m), g) in w.iter_mut().zip(m).zip(g) {
                    *m = 0.9 * *m + g;
                    *w -= 0.1 * *m;
                }
            }
            (loss, norm)
        })
        .collect()
}

#[test]
fn training_follows_the_f64_computation() {
    let mut s = session(mlp(), 2);
    let want = reference(&s, 20);
    for (k, (loss, norm)) in want.iter().enumerate() {
        let r = s.step(&[batch(k as u64)]).unwrap();
        assert!((f64::from(r.loss) - loss).abs() < 1e-5 * loss, "step {k}: {} {loss}", r.loss);
        assert!((f64::from(r.grad_norm.unwrap()) - norm).abs() < 1e-5 * norm, "step {k}");
        assert_eq!((r.step, r.skipped, r.scale), (k as u64 + 1, false, None));
    }
    assert!(want[19].0 < 0.8 * want[0].0);
    assert_eq!(s.read("count").unwrap().to_f32(), [20.0]);
    s.eval(&batch(0)).unwrap();
    assert_eq!(s.eval_result("out.p").unwrap().shape, [BATCH, OUT]);
}

#[test]
fn bits_do_not_depend_on_threads() {
    let run = |threads| {
        let mut s = session(mlp(), threads);
        train(&mut s, 0..5);
        s.read("w1").unwrap()
    };
    let one = run(1);
    assert!(one.to_f32().iter().any(|&x| x != 0.0));
    assert_eq!(one, run(2));
    assert_eq!(one, run(5));
}

#[test]
fn a_checkpoint_continues_to_the_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("checkpoint.safetensors");
    let mut whole = session(mlp(), 1);
    train(&mut whole, 0..6);
    let mut first = session(mlp(), 1);
    train(&mut first, 0..3);
    let at = DataState {
        position: Position { epoch: 2, batch: 7 },
        rows: 100,
        batch: BATCH,
        split: 0.0,
        shuffle: true,
        seed: 0,
    };
    first.save_checkpoint(&path, &at).unwrap();
    let mut second = session(mlp(), 1);
    assert_eq!(second.load_checkpoint(&path).unwrap(), at);
    train(&mut second, 3..6);
    assert_eq!(second.steps(), 6);
    for t in ["w1", "b1", "w2", "w1.momentum", "ema.w2", "count"] {
        assert_eq!(whole.read(t).unwrap(), second.read(t).unwrap(), "{t}");
    }
    // Another seed, another plan, and a file that is no checkpoint, change nothing.
    let options = Options { threads: 1, seed: 2, ..Options::default() };
    let mut seeded = Session::new(mlp(), &Weights::new(), &options).unwrap();
    assert_eq!(seeded.load_checkpoint(&path).unwrap_err().code, "R0510");
    assert_eq!(seeded.steps(), 0);
    let mut other = mlp();
    other.tensors.iter_mut().find(|t| t.name == "count").unwrap().dtype = DType::F32;
    other.programs.iter_mut().find(|p| p.name == "tick").unwrap().inputs[0].dtype = DType::F32;
    let tick = other.programs.iter_mut().find(|p| p.name == "tick").unwrap();
    tick.code[1] = "real 1.0".parse().unwrap();
    tick.outputs[0].dtype = DType::F32;
    let mut other = session(other, 1);
    let before = other.read("w1").unwrap();
    let e = other.load_checkpoint(&path).unwrap_err();
    assert_eq!(e.code, "R0509");
    assert!(e.message.contains("`count`"), "{e}");
    assert_eq!(other.read("w1").unwrap(), before);
    let weights = dir.path().join("weights.safetensors");
    whole.save_weights(&weights).unwrap();
    assert_eq!(second.load_checkpoint(&weights).unwrap_err().code, "R0508");
}

#[test]
fn weights_and_averages_are_saved_under_the_models_names() {
    let dir = tempfile::tempdir().unwrap();
    let mut s = session(mlp(), 1);
    s.step(&[batch(0)]).unwrap();
    let (weights, ema) = (dir.path().join("w.safetensors"), dir.path().join("e.safetensors"));
    s.save_weights(&weights).unwrap();
    assert!(s.save_ema(&ema).unwrap());
    let file = TensorFile::open(&weights).unwrap();
    assert_eq!(file.tensor("w1").unwrap().to_f32(), s.read("w1").unwrap().to_f32());
    assert_eq!(file.tensor("w1.momentum").unwrap_err().code, "R0204");
    let average = TensorFile::open(&ema).unwrap().tensor("w2").unwrap().to_f32();
    assert_eq!(average, s.read("ema.w2").unwrap().to_f32());
    assert_ne!(average, file.tensor("w2").unwrap().to_f32());
}

#[test]
fn faults_of_the_caller_are_errors() {
    let mut s = session(mlp(), 1);
    assert_eq!(s.step(&[]).unwrap_err().code, "R0504");
    let mut short = batch(0);
    short.tensors[0].1.pop();
    assert_eq!(s.step(&[short]).unwrap_err().place.as_deref(), Some("input `in.x`"));
    let mut strange = batch(0);
    strange.tensors[0].0 = "w1".into();
    assert_eq!(s.step(&[strange]).unwrap_err().code, "R0503");
    assert_eq!(s.read("nothing").unwrap_err().code, "R0502");
    assert_eq!(s.result("nothing").unwrap_err().code, "R0506");
    let mut cuda = mlp();
    cuda.target.device = "cuda".into();
    let e = precast_runtime::CpuBackend::new(&cuda, 1).err().unwrap();
    assert_eq!(e.code, "R0104");
    let mut missing = mlp();
    if let precast_plan::Storage::Persistent { init, .. } = &mut missing.tensors[2].storage {
        *init = precast_plan::Init::Weights("layer.w1".into());
    }
    let weights = Weights::from([("net.w1".to_string(), HostTensor::from_f32(&[2], &[0.0, 1.0]))]);
    let e = Session::new(missing.clone(), &weights, &Options::default()).err().unwrap();
    assert_eq!((e.code, e.help.as_deref()), ("R0301", Some("there is net.w1")));
    let weights =
        Weights::from([("layer.w1".to_string(), HostTensor::from_f32(&[2], &[0.0, 1.0]))]);
    let e = Session::new(missing, &weights, &Options::default()).err().unwrap();
    assert_eq!(e.code, "R0302");
    assert!(e.message.contains("[2]") && e.message.contains("[10, 33]"), "{e}");
}

#[test]
fn the_plan_file_reads_back_and_trains_the_same() {
    let plan = mlp();
    let text = plan.to_json();
    let back = Plan::from_json(&text).unwrap();
    assert_eq!(plan, back);
    assert_eq!(text, back.to_json());
    let mut s = session(back, 1);
    s.step(&[batch(0)]).unwrap();
}
