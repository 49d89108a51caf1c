//! The CUDA backend's own host code, from plans to reports, on the software device (a test tool,
//! `tests/software_device`): against PyTorch's references and the CPU backend, captured against
//! uncaptured, overflow, and what is left behind.

mod common;
mod steps;

use common::{Fixture, said};
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline;
use precast_plan::{Plan, Precision, Role, Storage};
use precast_runtime::data::{Batch, batch_of};
use precast_runtime::{
    HostTensor, ModelWeights, Options, Session, StepReport, TensorFile, WeightSource,
};
use precast_software_device::SoftwareDevice;
use std::sync::{Mutex, MutexGuard};

precast_software_device::use_software_device!(
    // Products are not measured unless a test says so.
    "PRECAST_CUDA_TUNE" = "0",
    // A cuDNN of this machine would look for a real driver.
    "PRECAST_CUDNN" = "0",
);

/// One test at a time: each counts what it leaves on the device, which must be nothing.
struct Alone {
    device: SoftwareDevice,
    _lock: MutexGuard<'static, ()>,
}

impl Alone {
    fn new() -> Alone {
        static LOCK: Mutex<()> = Mutex::new(());
        let lock = LOCK.lock().unwrap_or_else(|p| p.into_inner());
        let device = SoftwareDevice::open().expect("the software device is built");
        Alone { device, _lock: lock }
    }

    fn live(&self) -> [u64; 3] {
        let d = &self.device;
        [d.live_allocations(), d.live_pinned(), d.live_objects()]
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.live(), [0; 3], "device memory, page-locked memory, other objects");
            self.device.check().expect("nothing was written beside an allocation");
        }
    }
}

const SGD: &str = "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9";
const ADAMW: &str = "kind = \"adamw\"\nlr = 1e-3\nweight_decay = 0.01";

/// One step's gradients against PyTorch's in f64, within what the CPU backend is allowed.
fn gradients(name: &str, policy: &str, allowed: impl Fn(&str) -> f64) {
    let alone = Alone::new();
    let f = Fixture::open(name);
    let plan = f.compile_gpu("model.onnx", policy, "kind = \"sgd\"\nlr = 0.1", "", true).plan;
    if policy != "f32" {
        let flops = &plan.summary.product_flops;
        let narrow: f64 = flops.iter().filter(|f| f.0.size() == 2).map(|f| f.1).sum();
        assert!(narrow > 0.9, "{name} {policy}: {flops:?}");
    }
    let (mut session, batch) = f.session(plan);
    // Every bias and activation that the plan put inside a product is there in fact.
    let says = session.describe();
    assert!(!says.contains("bias") && !says.contains("without cuBLASLt"), "{says}");
    let report = session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    assert!(!report.skipped);
    let errors = f.gradient_errors(&session);
    assert!(!errors.is_empty());
    let faults: Vec<String> = errors
        .iter()
        .filter(|(name, e)| e.is_nan() || *e > allowed(name))
        .map(|(name, e)| format!("{name}: {e:.2e}, allowed {:.2e}", allowed(name)))
        .collect();
    assert!(faults.is_empty(), "{name} {policy}:\n{}", faults.join("\n"));
    let [launches, products, replays, _] = alone.device.counts();
    assert!(launches > 0 && products > 0 && replays > 0);
    drop(session);
}

#[test]
fn mlp_gradients() {
    gradients("mlp_mnist", "f32", |_| 1e-5);
    let far = Fixture::open("mlp_mnist").yardstick();
    gradients("mlp_mnist", "bf16", |p| 2.0 * far(p));
    gradients("mlp_mnist", "f16", |p| 2.0 * far(p));
}

#[test]
fn gpt_gradients() {
    gradients("tiny_gpt", "f32", |_| 1e-5);
    let far = Fixture::open("tiny_gpt").yardstick();
    gradients("tiny_gpt", "bf16", |p| 2.0 * far(p));
    gradients("tiny_gpt", "f16", |p| 2.0 * far(p));
}

#[test]
fn cnn_gradients() {
    gradients("cifar_cnn", "f32", |_| 5e-5);
    let far = Fixture::open("cifar_cnn").yardstick();
    gradients("cifar_cnn", "bf16", |p| 2.0 * far(p));
}

/// Where cuBLASLt refuses the derivative of GELU, the product leaves its sums and a kernel of ours
/// takes the derivative: the same step, but for ties in the rounding of one tensor.
#[test]
fn a_refused_derivative_is_a_kernel_of_ours() {
    let alone = Alone::new();
    let f = Fixture::open("tiny_gpt");
    let plan = f.compile_gpu("model.onnx", "bf16", SGD, "", true).plan;
    let step = |refused: &str| {
        alone.device.refuse(refused);
        let (mut session, batch) = session_with(&f, &plan, true);
        alone.device.refuse("");
        run(&mut session, &batch, 1);
        let gradients = plan.results.iter().filter(|r| r.name.starts_with("grad."));
        let gradients =
            gradients.map(|r| (&r.name, session.result(&r.name).expect("listed").to_f32()));
        (session.describe(), gradients.collect::<Vec<_>>())
    };
    let (whole, want) = step("");
    assert!(!whole.contains("an epilogue of their own"), "{whole}");
    // CUBLASLT_EPILOGUE_DGELU
    let (apart, have) = step("cublas-epilogue:192");
    assert!(apart.contains("2 products with an epilogue of their own"), "{apart}");
    assert!(!want.is_empty());
    for ((name, have), (_, want)) in have.iter().zip(&want) {
        let d: f64 = have.iter().zip(want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let n: f64 = want.iter().map(|b| f64::from(*b).powi(2)).sum();
        assert!(d.sqrt() <= 1e-3 * n.sqrt(), "`{name}`: {:e}", (d / n).sqrt());
        println!("{name} {:e}", (d / n).sqrt());
    }
}

fn run(session: &mut Session, batch: &Batch, steps: usize) -> Vec<StepReport> {
    let step = |_| session.step(std::slice::from_ref(batch)).unwrap_or_else(|e| panic!("{e}"));
    (0..steps).map(step).collect()
}

/// The first losses of a fixed batch beside the CPU backend's, whose plan chooses for itself.
fn follows_the_cpu(name: &str, policy: &str, optimizer: &str, steps: usize, allowed: f64) {
    let _alone = Alone::new();
    let f = Fixture::open(name);
    let (mut gpu, batch) =
        f.session(f.compile_gpu("model.onnx", policy, optimizer, "", false).plan);
    let have = run(&mut gpu, &batch, steps);
    let (mut cpu, batch) = f.session(f.compile("model.onnx", policy, optimizer, false).plan);
    let want = run(&mut cpu, &batch, steps);
    for (h, w) in have.iter().zip(&want) {
        assert!(
            f64::from((h.loss - w.loss).abs()) <= allowed * f64::from(w.loss),
            "{name} {policy}: {h:?}, the CPU {w:?}"
        );
        assert_eq!((h.step, h.skipped, h.scale), (w.step, w.skipped, w.scale));
    }
}

#[test]
fn losses_follow_the_cpu() {
    follows_the_cpu("mlp_mnist", "f32", SGD, 6, 1e-5);
    follows_the_cpu("mlp_mnist", "f16", ADAMW, 6, 2e-3);
    follows_the_cpu("tiny_gpt", "f32", ADAMW, 3, 1e-5);
    follows_the_cpu("tiny_gpt", "bf16", ADAMW, 3, 2e-3);
    follows_the_cpu("cifar_cnn", "f32", SGD, 2, 1e-4);
}

/// Bytes of every tensor that outlives a step.
fn state(session: &Session) -> Vec<(String, Vec<u8>)> {
    common::kept(session, |_| true)
}

fn session_with(f: &Fixture, plan: &Plan, capture: bool) -> (Session, Batch) {
    let session = f.session_captured(plan.clone(), capture);
    let batch = f.batch(&session);
    (session, batch)
}

#[test]
fn a_captured_step_computes_the_same_bits() {
    let alone = Alone::new();
    for (name, policy, train) in [
        ("mlp_mnist", "f16", "clip_norm = 0.5\nema = 0.9\n[loss_scale]\ninterval = 2"),
        ("tiny_gpt", "bf16", "clip_norm = 1.0"),
    ] {
        let f = Fixture::open(name);
        let plan = f.compile_gpu("model.onnx", policy, ADAMW, train, false).plan;
        let (mut captured, batch) = session_with(&f, &plan, true);
        let before = alone.device.counts();
        let first = run(&mut captured, &batch, 4);
        assert_eq!(alone.device.counts()[2] - before[2], 4, "one replay a step");
        let (mut plain, batch) = session_with(&f, &plan, false);
        let before = alone.device.counts();
        let second = run(&mut plain, &batch, 4);
        assert_eq!(alone.device.counts()[2], before[2], "no replays");
        assert_eq!(said(&first), said(&second), "{name} {policy}");
        for (a, b) in state(&captured).iter().zip(&state(&plain)) {
            assert!(a == b, "{name} {policy}: `{}` differs", a.0);
        }
    }
}

/// Runs on one device at once are each the run that it is alone: graphs of one session run in between of
/// another's, and sessions begin and end meanwhile.
#[test]
fn sessions_at_once_compute_the_same_bits() {
    let _alone = Alone::new();
    let f = Fixture::open("mlp_mnist");
    let train = "clip_norm = 0.5\nema = 0.9\n[loss_scale]\ninterval = 2";
    let plans = [("f16", train), ("f32", "")]
        .map(|(policy, train)| f.compile_gpu("model.onnx", policy, ADAMW, train, false).plan);
    let end = |plan: &Plan| {
        let (mut session, batch) = session_with(&f, plan, true);
        let mut reports = vec![];
        for _ in 0..4 {
            let more = session.submit(|| Ok(batch.clone())).unwrap_or_else(|e| panic!("{e}"));
            reports.extend(more);
        }
        reports.extend(session.finish().unwrap_or_else(|e| panic!("{e}")));
        (said(&reports), state(&session))
    };
    let alone = plans.each_ref().map(&end);
    std::thread::scope(|scope| {
        let (plans, end) = (&plans, &end);
        let running = [0, 1, 0].map(|i| (i, scope.spawn(move || end(&plans[i]))));
        for (i, thread) in running {
            let (reports, state) = thread.join().expect("the run ends");
            let policy = &plans[i].summary.policy;
            assert_eq!(reports, alone[i].0, "{policy}");
            for (have, want) in state.iter().zip(&alone[i].1) {
                assert!(have == want, "{policy}: `{}` differs", have.0);
            }
        }
    });
}

/// What cannot be captured once it is loaded runs kernel by kernel, says so, computes the same and
/// leaves nothing of the attempt behind.
#[test]
fn a_step_that_cannot_be_captured_runs_kernel_by_kernel() {
    let alone = Alone::new();
    let f = Fixture::open("mlp_mnist");
    let plan = f.compile_gpu("model.onnx", "f16", SGD, "", false).plan;
    let (mut captured, batch) = session_with(&f, &plan, true);
    let want = said(&run(&mut captured, &batch, 3));
    let want_state = state(&captured);
    assert!(captured.describe().contains("one graph a step"), "{}", captured.describe());
    drop(captured);
    // Refused on nothing at all, with the library's first call, and when the graph is complete.
    for (words, early, code) in [
        ("capture", true, "R0703"),
        ("captured-cublas", false, "R0707"),
        ("instantiate", false, "R0703"),
    ] {
        alone.device.refuse(if early { words } else { "" });
        let (mut session, batch) = session_with(&f, &plan, true);
        alone.device.refuse(words);
        let (live, before) = (alone.live(), alone.device.counts());
        let have = said(&run(&mut session, &batch, 3));
        alone.device.refuse("");
        assert_eq!(have, want, "{words}");
        assert!(state(&session) == want_state, "{words}: other weights");
        assert_eq!(alone.live(), live, "{words}: a graph of half a step");
        assert_eq!(alone.device.counts()[2], before[2], "{words}: no replays");
        let says = session.describe();
        assert!(says.contains("steps launched one by one"), "{words}: {says}");
        let notice = "a step is launched kernel by kernel, which is slower: it cannot be captured as \
                      a graph (";
        assert_eq!(says.matches(&format!("{notice}{code}")).count(), 1, "{words}: {says}");
        assert!(!says.contains("without cuBLASLt"), "{words}: {says}");
        // It stays so, whatever the device could do later.
        run(&mut session, &batch, 1);
        assert_eq!(alone.device.counts()[2], before[2], "{words}");
    }
}

/// Candidates of a library that cannot be captured give way to others, and where there are none, to
/// kernels of ours; the step is captured all the same.
#[test]
fn what_cannot_be_captured_gives_way_to_what_can() {
    let alone = Alone::new();
    let f = Fixture::open("mlp_mnist");
    let plan = f.compile_gpu("model.onnx", "f16", SGD, "", false).plan;
    for (words, ours) in
        [("captured-cublas:0", false), ("captured-cublas#2", false), ("captured-cublas", true)]
    {
        alone.device.refuse(words);
        let (mut session, batch) = session_with(&f, &plan, true);
        let before = alone.device.counts();
        let reports = run(&mut session, &batch, 2);
        let after = alone.device.counts();
        // Without a capture nothing is refused, and nothing was remembered to be.
        let (plain, _) = session_with(&f, &plan, false);
        alone.device.refuse("");
        assert!(reports.iter().all(|r| r.loss.is_finite()), "{words}: {reports:?}");
        assert_eq!(after[2] - before[2], 2, "{words}: one replay a step");
        assert_eq!(after[1] == before[1], ours, "{words}: products of the library");
        let says = session.describe();
        assert!(says.contains("one graph a step"), "{words}: {says}");
        let reason =
            "products without cuBLASLt (cuBLASLt refuses to run it: while it is captured: ";
        assert_eq!(says.matches(reason).count(), usize::from(ours), "{words}: {says}");
        assert!(!plain.describe().contains("without cuBLASLt"), "{words}: {}", plain.describe());
    }
}

#[test]
fn late_reports_are_those_of_waiting() {
    let _alone = Alone::new();
    let f = Fixture::open("mlp_mnist");
    let plan = f.compile_gpu("model.onnx", "f16", SGD, "clip_norm = 0.5", false).plan;
    let (mut waiting, batch) = session_with(&f, &plan, true);
    let want = run(&mut waiting, &batch, 12);
    let (mut ahead, batch) = session_with(&f, &plan, true);
    let mut have = vec![];
    let mut late = 0;
    for i in 0..12 {
        have.extend(ahead.submit(|| Ok(batch.clone())).unwrap_or_else(|e| panic!("{e}")));
        late = late.max(i + 1 - have.len());
    }
    have.extend(ahead.finish().unwrap_or_else(|e| panic!("{e}")));
    assert!(late > 0, "reports came at once");
    assert_eq!(said(&have), said(&want));
    assert_eq!(state(&ahead), state(&waiting));
}

/// Accumulation, clipping, averages and a schedule beside the CPU backend: every tensor that
/// outlives a step.
#[test]
fn everything_of_an_update_follows_the_cpu() {
    let _alone = Alone::new();
    let f = Fixture::open("mlp_mnist");
    let train = "accumulate = 2\nclip_norm = 0.5\nema = 0.9\n\
                 [schedule]\nkind = \"cosine\"\nwarmup = 2\nsteps = 6";
    let gpu = f.compile_gpu("model.onnx", "f32", ADAMW, train, false).plan;
    let cpu = f.compile_with("model.onnx", "f32", ADAMW, train, false).plan;
    let (mut gpu, batch) = f.session(gpu);
    let (mut cpu, _) = f.session(cpu);
    for _ in 0..4 {
        let two = [batch.clone(), batch.clone()];
        let g = gpu.step(&two).unwrap_or_else(|e| panic!("{e}"));
        let c = cpu.step(&two).unwrap_or_else(|e| panic!("{e}"));
        let near = |a: f32, b: f32| (a - b).abs() <= 1e-5 * b.abs();
        assert!(near(g.loss, c.loss), "{g:?}, the CPU {c:?}");
        assert!(
            near(g.grad_norm.expect("clipped"), c.grad_norm.expect("clipped")),
            "{g:?}, the CPU {c:?}"
        );
    }
    let names = |s: &Session| -> Vec<String> { state(s).into_iter().map(|t| t.0).collect() };
    let mut compared = 0;
    for name in names(&gpu).iter().filter(|n| names(&cpu).contains(n)) {
        let (a, b) = (gpu.read(name).unwrap().to_f32(), cpu.read(name).unwrap().to_f32());
        let d: f64 = a.iter().zip(&b).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let n: f64 = b.iter().map(|b| f64::from(*b).powi(2)).sum();
        assert!(d.sqrt() <= 2e-5 * n.sqrt(), "`{name}`: {:e}", (d / n).sqrt());
        compared += 1;
    }
    assert!(compared >= 8, "{:?} and {:?}", names(&gpu), names(&cpu));
}

/// Every step by itself, as `tests/gpu_steps.rs` compares them on a GPU.
fn steps_of(name: &str, policy: &str) {
    let _alone = Alone::new();
    let f = Fixture::open(name);
    let train = "clip_norm = 1.0\nema = 0.9";
    let plan = f.compile_gpu("model_static.onnx", policy, ADAMW, train, false).plan;
    let compared = steps::compare(&f, &plan).unwrap_or_else(|e| panic!("{name} {policy}: {e}"));
    assert_eq!(compared.steps, plan.micro.len() + plan.update.len());
    println!("{name} {policy}: {compared:?}");
}

#[test]
fn every_step_computes_what_the_cpu_does() {
    steps_of("mlp_mnist", "f16");
    steps_of("tiny_gpt", "bf16");
}

#[test]
fn every_step_of_the_other_plans() {
    ["f32", "bf16"].into_iter().for_each(|policy| steps_of("mlp_mnist", policy));
    ["f32", "f16"].into_iter().for_each(|policy| steps_of("tiny_gpt", policy));
    ["f32", "bf16", "f16"].into_iter().for_each(|policy| steps_of("cifar_cnn", policy));
}

/// Clean (`.`) and overflowing (`x`) steps: what a skipped step leaves alone, and the scale.
#[test]
fn an_overflow_skips_the_update() {
    let _alone = Alone::new();
    let folder = common::folder("");
    let text = "model = \"grad_scaler.onnx\"\n[data]\nformat = \"safetensors\"\nfile = \"none\"\n\
         inputs = { x = \"x\" }\ntargets = { t = \"t\" }\n\
         [loss]\nkind = \"mse\"\ntarget = \"t\"\n[optimizer]\nkind = \"adam\"\nlr = 0.01\n\
         [precision]\npolicy = \"f32\"\n\
         [loss_scale]\nmode = \"dynamic\"\ninterval = 2\ninit = 64\nhysteresis = 2\n\
         [train]\nsteps = 100\nema = 0.5\n[target]\ndevice = \"sm_90\"\n";
    let mut options = precast_compiler::pipeline::Options::default();
    options.shapes.insert("x".into(), vec![3, 4]);
    options.shapes.insert("t".into(), vec![3, 2]);
    let recipe =
        precast_compiler::frontend::recipe::Recipe::parse(folder.join("recipe.toml"), text);
    let recipe = recipe.unwrap_or_else(|e| panic!("{e}"));
    let plan = precast_compiler::pipeline::compile(&recipe, &options)
        .unwrap_or_else(|e| panic!("{e}"))
        .plan;
    let weights = precast_runtime::ModelWeights::for_plan(&plan, &folder, None)
        .unwrap_or_else(|e| panic!("{e}"));
    let mut s = Session::new(plan, &weights, &Options::default()).unwrap_or_else(|e| panic!("{e}"));
    let kept = |s: &Session| {
        let names = s.plan().tensors.iter().filter_map(|t| match t.storage {
            Storage::Persistent { role, .. } if role != Role::Machine => Some(&t.name),
            _ => None,
        });
        names.map(|n| s.read(n).unwrap_or_else(|e| panic!("{e}"))).collect::<Vec<_>>()
    };
    let scales = [64f32, 64.0, 32.0, 32.0, 16.0, 16.0, 32.0, 32.0];
    for (i, (step, want)) in "x.x.x..x".chars().zip(scales).enumerate() {
        let x = HostTensor::from_f32(&[3, 4], &[if step == 'x' { 3e38 } else { 0.5 }; 12]);
        let tensors = [("x", x), ("t", HostTensor::from_f32(&[3, 2], &[1.0; 6]))];
        let batch = batch_of(&s.wanted(), &tensors).unwrap_or_else(|e| panic!("{e}"));
        let before = kept(&s);
        let report = s.step(&[batch]).unwrap_or_else(|e| panic!("{e}"));
        assert_eq!(report.skipped, step == 'x', "step {i}");
        assert_eq!(before == kept(&s), step == 'x', "step {i}: weights and state");
        let scale = s.read("machine.loss_scale").unwrap_or_else(|e| panic!("{e}")).to_f32();
        assert_eq!(scale, [want], "step {i}");
    }
}

/// The command itself, in a process of its own that finds the software device as it would a driver.
#[test]
fn the_command_trains_on_the_device() {
    assert!(std::env::var_os("LD_LIBRARY_PATH").is_some(), "children find the software device");
    let f = Fixture::open("mlp_mnist");
    let lab = tempfile::tempdir().expect("a temporary folder");
    let (text, _) = f.recipe("model_static.onnx", "f32", ADAMW, "");
    let mut text = text;
    for file in ["model_static.onnx", "batch.safetensors"] {
        let whole = f.folder.join(file).display().to_string();
        text = text.replace(&format!("\"{file}\""), &format!("\"{whole}\""));
    }
    std::fs::write(lab.path().join("recipe.toml"), text).expect("written");
    let precast = |args: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_precast"));
        let o = command.args(args).current_dir(lab.path()).output().expect("the binary runs");
        let say = String::from_utf8_lossy(&o.stderr);
        assert!(o.status.success(), "{args:?}: {say}");
        String::from_utf8_lossy(&o.stdout).into_owned() + &say
    };
    let mut losses: Vec<Vec<f64>> = vec![];
    let mut gradients = vec![];
    for device in ["cuda", "cpu"] {
        let (log, file) = (format!("{device}.jsonl"), format!("{device}.safetensors"));
        let train = ["train", "recipe.toml", "--device", device, "--steps", "3"];
        let said = precast(&[&train[..], &["--log", &log, "--out", device]].concat());
        if device == "cuda" {
            assert!(said.contains("cuda:0"), "{said}");
        }
        let log = std::fs::read_to_string(lab.path().join(log)).expect("the log");
        let rows = log.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).expect("JSON"));
        losses.push(rows.filter_map(|r| r["loss"].as_f64()).collect());
        precast(&["grad", "recipe.toml", "--device", device, "-o", &file]);
        gradients.push(TensorFile::open(&lab.path().join(file)).unwrap_or_else(|e| panic!("{e}")));
    }
    assert_eq!((losses[0].len(), losses[1].len()), (3, 3));
    for (have, want) in losses[0].iter().zip(&losses[1]) {
        assert!((have - want).abs() <= 1e-5 * want, "{losses:?}");
    }
    let names: Vec<String> =
        gradients[1].names().into_iter().filter(|n| n.starts_with("grad.")).collect();
    assert!(!names.is_empty());
    for name in names {
        let [have, want] =
            [0, 1].map(|i| gradients[i].tensor(&name).unwrap_or_else(|e| panic!("{e}")).to_f32());
        let d: f64 = have.iter().zip(&want).map(|(a, b)| f64::from(a - b).powi(2)).sum();
        let n: f64 = want.iter().map(|b| f64::from(*b).powi(2)).sum();
        assert!(d.sqrt() <= 1e-5 * n.sqrt(), "`{name}`: {:e}", (d / n).sqrt());
    }
}

/// A step in a format of the tensor cores, by cuBLASLt: beside the CPU backend, which rounds the same
/// operands, and no farther from f64 than the format is on a CPU.
fn rounded(name: &str, policy: &str, precision: Precision, apart: f64) {
    let alone = Alone::new();
    let f = Fixture::open(name);
    let plan = f.compile_gpu("model.onnx", policy, SGD, "", true).plan;
    let flops = &plan.summary.product_flops;
    let share: f64 = flops.iter().filter(|f| f.0 == precision).map(|f| f.1).sum();
    assert!(share > 0.3, "{name} {policy}: {flops:?}");
    let (mut gpu, batch) = f.session(plan);
    let says = gpu.describe();
    assert!(!says.contains("without cuBLASLt"), "{name} {policy}: {says}");
    let before = alone.device.counts()[1];
    let have = run(&mut gpu, &batch, 1);
    assert!(alone.device.counts()[1] > before, "{name} {policy}: products");
    let (mut cpu, batch) = f.session(f.compile("model.onnx", policy, SGD, true).plan);
    let want = run(&mut cpu, &batch, 1);
    let (h, w) = (have[0].loss, want[0].loss);
    assert!((h - w).abs() <= 2e-3 * w, "{name} {policy}: {h}, the CPU {w}");
    let (errors, cpus) = (f.gradient_errors(&gpu), f.gradient_errors(&cpu));
    assert_eq!(errors.len(), cpus.len());
    for ((gradient, e), (_, c)) in errors.iter().zip(&cpus) {
        // Sums of an operand beside a product are sums of what was rounded.
        assert!(*e <= 3.0 * c + 1e-4, "{policy} {gradient}: {e:.1e} from f64, the CPU {c:.1e}");
        let [g, c] = [&gpu, &cpu].map(|s| s.result(gradient).expect("listed").to_f32());
        let d: f64 = g.iter().zip(&c).map(|(g, c)| f64::from(g - c).powi(2)).sum();
        let away = (d / c.iter().map(|c| f64::from(*c).powi(2)).sum::<f64>()).sqrt();
        assert!(away <= apart, "{policy} {gradient}: {away:.1e} from the CPU, allowed {apart:.1e}");
    }
}

#[test]
fn tf32_follows_the_cpu() {
    rounded("mlp_mnist", "tf32", Precision::Tf32, 1e-2);
    rounded("tiny_gpt", "tf32", Precision::Tf32, 1e-2);
}

#[test]
fn fp8_follows_the_cpu() {
    rounded("mlp_mnist", "fp8", Precision::Fp8, 0.1);
    rounded("tiny_gpt", "fp8", Precision::Fp8, 0.1);
}

/// Logits of 131 classes are stored with a gap behind every row; losses and weights are those of the
/// CPU backend, which stores them without.
#[test]
fn rows_with_gaps_mean_the_same() {
    let _alone = Alone::new();
    let dir = tempfile::tempdir().expect("a temporary folder");
    let model = "graph odd
var w1: f32[40,48] param uniform(0.3, 1)
var w2: f32[48,131] param uniform(0.3, 2)
forward:
  %x = input {name=\"x\"} : f32[96,40]
  %w1 = var {name=\"w1\"} : f32[40,48] @w1
  %w2 = var {name=\"w2\"} : f32[48,131] @w2
  %h = matmul %x, %w1 {fused=none} @fc1
  %a = activate %h {act=relu} @act
  %y = matmul %a, %w2 {fused=none} @fc2
result out.y = %y
";
    std::fs::write(dir.path().join("model.pir"), model).expect("written");
    let session = |device: &str| -> Session {
        let text = format!(
            "model = \"model.pir\"\n[data]\ntargets = {{ t = \"t\" }}\n[loss]\nkind = \"cross_entropy\"\n\
             [optimizer]\n{SGD}\n[precision]\npolicy = \"bf16\"\n[train]\nsteps = 4\n\
             [target]\ndevice = \"{device}\"\n"
        );
        let recipe = Recipe::parse(dir.path().join("recipe.toml"), &text);
        let mut options = pipeline::Options::default();
        options.shapes.insert("t".into(), vec![96]);
        let compiled = pipeline::compile(&recipe.unwrap_or_else(|e| panic!("{e}")), &options);
        let plan = compiled.unwrap_or_else(|e| panic!("{e}")).plan;
        let gaps = plan.tensors.iter().filter(|t| t.shape == [96, 136]).count();
        assert_eq!(gaps, if device == "sm_90" { 2 } else { 0 }, "{device}");
        let weights = ModelWeights::for_plan(&plan, dir.path(), None).expect("drawn");
        Session::new(plan, &weights, &Options::default()).unwrap_or_else(|e| panic!("{e}"))
    };
    let [mut gpu, mut cpu] = ["sm_90", "cpu-generic"].map(session);
    let number = |i: usize| ((i * 37 + 11) % 29) as f32 / 14.0 - 1.0;
    let x: Vec<f32> = (0..96 * 40).map(number).collect();
    let t: Vec<f32> = (0..96).map(|i| (i * 17 % 131) as f32).collect();
    let batch = |s: &Session| {
        let t = HostTensor::from_f32(&[96], &t);
        batch_of(&s.wanted(), &[("x", HostTensor::from_f32(&[96, 40], &x)), ("t", t)])
            .expect("a batch")
    };
    let (to_gpu, to_cpu) = (batch(&gpu), batch(&cpu));
    for (h, w) in run(&mut gpu, &to_gpu, 4).iter().zip(run(&mut cpu, &to_cpu, 4)) {
        assert!((h.loss - w.loss).abs() <= 1e-3 * w.loss, "{h:?}, the CPU {w:?}");
    }
    for name in ["w1", "w2"] {
        let [g, c] = [&gpu, &cpu].map(|s| s.read(name).expect("a weight").to_f64());
        let d: f64 = g.iter().zip(&c).map(|(g, c)| (g - c).powi(2)).sum();
        let n: f64 = c.iter().map(|c| c * c).sum();
        assert!(d.sqrt() <= 2e-3 * n.sqrt(), "`{name}`: {:e}", (d / n).sqrt());
    }
}
