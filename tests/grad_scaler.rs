//! The loss-scale machine, step by step against PyTorch's `torch.amp.GradScaler`: growth,
//! overflow, skipped steps, clipping, accumulation, with SGD and AdamW.

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline;
use precast_plan::{Precision, Role, Storage};
use precast_runtime::data::{Batch, batch_of};
use precast_runtime::{HostTensor, ModelWeights, Options, Session};
use serde_json::Value;
use std::path::{Path, PathBuf};

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

/// A number of the transcripts: those that are not finite are strings.
fn number(v: &Value) -> f32 {
    match v {
        Value::String(s) => s.parse().expect("inf, -inf or nan"),
        v => v.as_f64().expect("a number") as f32,
    }
}

fn numbers(v: &Value) -> Vec<f32> {
    match v {
        Value::Array(list) => list.iter().flat_map(numbers).collect(),
        v => vec![number(v)],
    }
}

fn session(case: &Value) -> Session {
    let o = &case["optimizer"];
    let mut optimizer = format!(
        "kind = \"{}\"\nlr = {:?}\n",
        o["kind"].as_str().unwrap(),
        o["lr"].as_f64().unwrap()
    );
    for key in ["momentum", "eps", "weight_decay"] {
        if let Some(x) = o[key].as_f64() {
            optimizer += &format!("{key} = {x:?}\n");
        }
    }
    if o["betas"].is_array() {
        optimizer += &format!("betas = {}\n", o["betas"]);
    }
    let s = &case["loss_scale"];
    let real = |k: &str| s[k].as_f64().unwrap();
    let clip = case["clip_norm"].as_f64().map_or(String::new(), |c| format!("clip_norm = {c:?}\n"));
    let text = format!(
        "model = \"grad_scaler.onnx\"\n[data]\nformat = \"safetensors\"\nfile = \"none\"\n\
         inputs = {{ x = \"x\" }}\ntargets = {{ t = \"t\" }}\n\
         [loss]\nkind = \"mse\"\ntarget = \"t\"\n[optimizer]\n{optimizer}\
         [precision]\npolicy = \"{}\"\n\
         [loss_scale]\nmode = \"dynamic\"\ninit = {:?}\ngrowth = {:?}\nbackoff = {:?}\ninterval = {}\n\
         [train]\nsteps = 100\naccumulate = {}\n{clip}",
        case["precision"].as_str().unwrap(),
        real("init"),
        real("growth"),
        real("backoff"),
        s["interval"],
        case["accumulate"],
    );
    open(&text)
}

fn open(recipe: &str) -> Session {
    let recipe =
        Recipe::parse(folder().join("recipe.toml"), recipe).unwrap_or_else(|e| panic!("{e}"));
    let mut options = pipeline::Options { keep_gradients: true, ..Default::default() };
    options.shapes.insert("x".into(), vec![3, 4]);
    options.shapes.insert("t".into(), vec![3, 2]);
    let plan = pipeline::compile(&recipe, &options).unwrap_or_else(|e| panic!("{e}")).plan;
    let weights = ModelWeights::for_plan(&plan, &folder(), None).unwrap_or_else(|e| panic!("{e}"));
    Session::new(plan, &weights, &Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn batch(session: &Session, v: &Value) -> Batch {
    let x = HostTensor::from_f32(&[3, 4], &numbers(&v["x"]));
    let t = HostTensor::from_f32(&[3, 2], &numbers(&v["t"]));
    batch_of(&session.wanted(), &[("x", x), ("t", t)]).unwrap_or_else(|e| panic!("{e}"))
}

#[track_caller]
fn close(what: &str, have: &[f32], want: &[f32], relative: f32) {
    assert_eq!(have.len(), want.len(), "{what}");
    let size = want.iter().fold(0f32, |m, x| m.max(x.abs()));
    for (a, b) in have.iter().zip(want) {
        let same = a == b || (a.is_nan() && b.is_nan()) || (a - b).abs() <= relative * size;
        assert!(same, "{what}: {have:?}\nPyTorch: {want:?}");
    }
}

fn replay(name: &str, case: &Value) {
    let mut s = session(case);
    let tolerance = 2e-6;
    // PyTorch multiplies the scale by f64 factors, plans by f32 ones: the same for powers of two.
    let exact = ["growth", "backoff"]
        .iter()
        .all(|k| case["loss_scale"][k].as_f64().unwrap().log2().fract() == 0.0);
    for (i, step) in case["steps"].as_array().unwrap().iter().enumerate() {
        let at = |what: &str| format!("{name}, step {i}: {what}");
        let batches: Vec<Batch> =
            step["batches"].as_array().unwrap().iter().map(|b| batch(&s, b)).collect();
        let report = s.step(&batches).unwrap_or_else(|e| panic!("{e}"));
        let scale = report.scale.expect("the plan has a scale");
        close(&at("scale"), &[scale], &[number(&step["scale"])], if exact { 0.0 } else { 1e-6 });
        assert_eq!(report.skipped, step["skipped"].as_bool().unwrap(), "{}", at("skipped"));
        let read =
            |s: &Session, name: &str| s.read(name).unwrap_or_else(|e| panic!("{e}")).to_f32();
        let after = [number(&step["scale_after"])];
        let rounding = if exact { 0.0 } else { 1e-6 };
        close(&at("scale after"), &read(&s, "machine.loss_scale"), &after, rounding);
        let tracker = number(&step["growth_tracker_after"]);
        assert_eq!(read(&s, "machine.growth_tracker"), [tracker], "{}", at("growth tracker"));
        if let Some(n) = step["optimizer_steps_after"].as_f64() {
            assert_eq!(read(&s, "machine.applied"), [n as f32], "{}", at("optimizer steps"));
        }
        if !report.skipped {
            let norm = report.grad_norm.expect("the plan reports it");
            close(&at("norm"), &[norm], &[number(&step["grad_norm"])], tolerance);
        }
        for p in ["weight", "bias"] {
            if !report.skipped {
                let g = s.result(&format!("grad.{p}")).unwrap_or_else(|e| panic!("{e}")).to_f32();
                close(&at(&format!("gradient of {p}")), &g, &numbers(&step["grad"][p]), tolerance);
            }
            let want = numbers(&step[format!("{p}_after")]);
            close(&at(p), &read(&s, p), &want, tolerance);
            for (key, var) in [("momentum", "momentum"), ("m", "exp_avg"), ("v", "exp_avg_sq")] {
                if let Some(v) = step[format!("{p}_state_after")].get(key) {
                    close(&at(key), &read(&s, &format!("{p}.{var}")), &numbers(v), tolerance);
                }
            }
        }
    }
}

#[test]
fn f32_transcripts() {
    let text = std::fs::read_to_string(folder().join("grad_scaler.json")).expect("the fixture");
    let file: Value = serde_json::from_str(&text).expect("the fixture is JSON");
    let cases = file["cases"].as_object().unwrap();
    let mut count = 0;
    for (name, case) in cases.iter().filter(|(_, c)| c["precision"] == "f32") {
        replay(name, case);
        count += 1;
    }
    assert!(count > 0);
}

/// Every step from the state PyTorch had before it. One difference is meant: PyTorch's autocast
/// leaves parameters' gradients in f16, where the bias overflows by itself in two steps; plans keep
/// them in f32.
#[test]
fn f16_transcript() {
    let text = std::fs::read_to_string(folder().join("grad_scaler.json")).expect("the fixture");
    let file: Value = serde_json::from_str(&text).expect("the fixture is JSON");
    let case = &file["cases"]["f16_overflow_from_the_scale"];
    let steps = case["steps"].as_array().unwrap();
    let mut s = session(case);
    assert!(s.plan().summary.scaled);
    let narrow = s.plan().summary.product_flops.iter().all(|f| f.0 == Precision::F16);
    assert!(narrow, "{:?}", s.plan().summary.product_flops);
    let (mut skipped, mut only_there) = (0, 0);
    for (i, step) in steps.iter().enumerate() {
        let at = |what: &str| format!("step {i}: {what}");
        let read =
            |s: &Session, name: &str| s.read(name).unwrap_or_else(|e| panic!("{e}")).to_f32();
        let b = batch(&s, &step["batches"][0]);
        let report = s.step(&[b]).unwrap_or_else(|e| panic!("{e}"));
        let g = |p: &str| numbers(&step["grad"][p]);
        let finite = |p: &str| g(p).iter().all(|x| x.is_finite());
        assert_eq!(report.scale, Some(number(&step["scale"])), "{}", at("scale"));
        assert_eq!(report.skipped, !finite("weight"), "{}", at("skipped"));
        let there = step["skipped"].as_bool().unwrap();
        if !report.skipped {
            for p in ["weight", "bias"] {
                let have = s.result(&format!("grad.{p}")).unwrap_or_else(|e| panic!("{e}"));
                let (have, want): (Vec<f32>, Vec<f32>) =
                    have.to_f32().into_iter().zip(g(p)).filter(|x| x.1.is_finite()).unzip();
                close(&at(&format!("gradient of {p}")), &have, &want, 2e-3);
            }
        }
        if report.skipped == there {
            for p in ["weight", "bias"] {
                close(&at(p), &read(&s, p), &numbers(&step[format!("{p}_after")]), 2e-3);
            }
            let after = [number(&step["scale_after"])];
            assert_eq!(read(&s, "machine.loss_scale"), after, "{}", at("scale after"));
            let tracker = [number(&step["growth_tracker_after"])];
            assert_eq!(read(&s, "machine.growth_tracker"), tracker, "{}", at("growth tracker"));
        }
        skipped += u32::from(report.skipped);
        only_there += u32::from(there && !report.skipped);
        let put = |s: &mut Session, name: &str, v: &Value| {
            let shape: &[u64] = match v {
                Value::Array(rows) if rows[0].is_array() => &[2, 4],
                Value::Array(_) => &[2],
                _ => &[],
            };
            let value = HostTensor::from_f32(shape, &numbers(v));
            s.write(name, &value).unwrap_or_else(|e| panic!("{e}"));
        };
        for p in ["weight", "bias"] {
            put(&mut s, p, &step[format!("{p}_after")]);
            let shape: &[u64] = if p == "weight" { &[2, 4] } else { &[2] };
            let zeros =
                HostTensor::from_f32(shape, &vec![0.0; shape.iter().product::<u64>() as usize]);
            let momentum = format!("{p}.momentum");
            match step[format!("{p}_state_after")].get("momentum") {
                Some(v) => put(&mut s, &momentum, v),
                None => s.write(&momentum, &zeros).unwrap_or_else(|e| panic!("{e}")),
            }
        }
        put(&mut s, "machine.loss_scale", &step["scale_after"]);
        put(&mut s, "machine.growth_tracker", &step["growth_tracker_after"]);
    }
    assert_eq!((skipped, only_there), (2, 2));
}

/// Runs clean (`.`) and overflowing (`x`) steps and compares the scale after each.
fn machine(options: &str, steps: &str, want: &[f32]) {
    let text = format!(
        "model = \"grad_scaler.onnx\"\n[data]\nformat = \"safetensors\"\nfile = \"none\"\n\
         inputs = {{ x = \"x\" }}\ntargets = {{ t = \"t\" }}\n\
         [loss]\nkind = \"mse\"\ntarget = \"t\"\n[optimizer]\nkind = \"adam\"\nlr = 0.01\n\
         [precision]\npolicy = \"f32\"\n\
         [loss_scale]\nmode = \"dynamic\"\ninterval = 2\n{options}\n\
         [train]\nsteps = 100\nema = 0.5\n",
    );
    let mut s = open(&text);
    let clean = HostTensor::from_f32(&[3, 4], &[0.5; 12]);
    let huge = HostTensor::from_f32(&[3, 4], &[3e38; 12]);
    let t = HostTensor::from_f32(&[3, 2], &[1.0; 6]);
    let state = |s: &Session| {
        let names = s.plan().tensors.iter().filter_map(|t| match t.storage {
            Storage::Persistent { role, .. } if role != Role::Machine => Some(&t.name),
            _ => None,
        });
        names.map(|n| s.read(n).unwrap_or_else(|e| panic!("{e}"))).collect::<Vec<_>>()
    };
    assert_eq!(steps.len(), want.len());
    for (i, (step, &want)) in steps.chars().zip(want).enumerate() {
        let x = if step == 'x' { &huge } else { &clean };
        let tensors = [("x", x.clone()), ("t", t.clone())];
        let b = batch_of(&s.wanted(), &tensors).unwrap_or_else(|e| panic!("{e}"));
        let before = state(&s);
        let report = s.step(&[b]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(report.skipped, step == 'x', "{options}, step {i}");
        assert_eq!(before == state(&s), step == 'x', "{options}, step {i}: weights and state");
        let scale = s.read("machine.loss_scale").unwrap_or_else(|e| panic!("{e}")).to_f32();
        assert_eq!(scale, [want], "{options}, step {i}");
    }
}

#[test]
fn hysteresis_tolerates_overflows() {
    // One overflow is tolerated, the second of a row or not halves; growth restores the tolerance.
    let o = "init = 64\nhysteresis = 2";
    machine(o, "x.x.x..x", &[64.0, 64.0, 32.0, 32.0, 16.0, 16.0, 32.0, 32.0]);
    machine(o, "xxx", &[64.0, 32.0, 16.0]);
    machine("init = 64\nhysteresis = 3", "xxx", &[64.0, 64.0, 32.0]);
    machine("init = 64", "xxx", &[32.0, 16.0, 8.0]);
}

#[test]
fn the_scale_stays_between_floor_and_cap() {
    machine("init = 4\nmin = 1.5", "xxx..", &[2.0, 1.5, 1.5, 1.5, 3.0]);
    machine("init = 4\nmax = 12", "......", &[4.0, 8.0, 8.0, 12.0, 12.0, 12.0]);
}

#[test]
fn a_static_scale_never_moves() {
    let text = |mode: &str| {
        format!(
            "model = \"grad_scaler.onnx\"\n[data]\nformat = \"safetensors\"\nfile = \"none\"\n\
             inputs = {{ x = \"x\" }}\ntargets = {{ t = \"t\" }}\n\
             [loss]\nkind = \"mse\"\ntarget = \"t\"\n[optimizer]\nkind = \"sgd\"\nlr = 0.01\n\
             [precision]\npolicy = \"f32\"\n[loss_scale]\n{mode}\n[train]\nsteps = 100\n",
        )
    };
    let mut scaled = open(&text("mode = \"static\"\ninit = 8"));
    let mut plain = open(&text("mode = \"off\""));
    for i in 0..3 {
        let x = HostTensor::from_f32(&[3, 4], &[[0.5, -1.5, 3e38][i]; 12]);
        let t = HostTensor::from_f32(&[3, 2], &[1.0; 6]);
        let tensors = [("x", x), ("t", t)];
        let b = batch_of(&scaled.wanted(), &tensors).unwrap_or_else(|e| panic!("{e}"));
        let report = scaled.step(std::slice::from_ref(&b)).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(report.scale, Some(8.0));
        assert_eq!(report.skipped, i == 2);
        if i < 2 {
            let other = plain.step(&[b]).unwrap_or_else(|e| panic!("{e}"));
            assert_eq!((other.loss, other.skipped), (report.loss, false));
            // A power of two is exact.
            assert_eq!(other.grad_norm, report.grad_norm);
        }
        for p in ["weight", "bias"] {
            assert_eq!(plain.read(p).unwrap(), scaled.read(p).unwrap(), "{p}, step {i}");
        }
    }
}
