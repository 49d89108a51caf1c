//! Gradients of several batches on the software device (a test tool, `tests/software_device`), whose
//! cuBLASLt and cuDNN add them where they stand.

mod common;

use common::{Fixture, kept};
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline;
use precast_plan::{EpilogueKind, Kernel, Plan, Role};
use precast_runtime::data::{Batch, batch_of};
use precast_runtime::{HostTensor, Options, Session, StepReport};

// Nothing is measured.
precast_software_device::use_software_device!("PRECAST_CUDA_TUNE" = "0");

/// Its steps are as long as the gradients: Adam makes one of the roundings of a gradient that is zero.
const SGD: &str = "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9";
const BATCHES: usize = 4;

/// The plan of a fixture whose batches have so many rows.
fn plan(f: &Fixture, policy: &str, device: &str, rows: usize, train: &str) -> Plan {
    let train = format!("{train}\n[target]\ndevice = \"{device}\"");
    let (text, mut options) = f.recipe("model.onnx", policy, SGD, &train);
    options.shapes.values_mut().for_each(|shape| shape[0] = rows);
    let recipe = Recipe::parse(f.folder.join("recipe.toml"), &text);
    let recipe = recipe.unwrap_or_else(|e| panic!("{e}"));
    pipeline::compile(&recipe, &options).unwrap_or_else(|e| panic!("{policy}: {e}")).plan
}

/// The fixture's rows in so many batches.
fn split(f: &Fixture, s: &Session, count: usize) -> Vec<Batch> {
    let wanted = s.wanted();
    let part = |i: usize| {
        let key = |name: &str| match name {
            "targets" => "tgt.targets".to_string(),
            name => format!("in.{name}"),
        };
        let tensors: Vec<_> = wanted
            .iter()
            .map(|w| {
                let all = f.batch.tensor(&key(&w.name)).expect("listed");
                let bytes = all.bytes.len() / count;
                let mut shape = all.shape.clone();
                shape[0] /= count as u64;
                let bytes = all.bytes[i * bytes..][..bytes].to_vec().into();
                (w.name.as_str(), HostTensor { element: all.element, shape, bytes })
            })
            .collect();
        batch_of(&wanted, &tensors).unwrap_or_else(|e| panic!("{e}"))
    };
    (0..count).map(part).collect()
}

fn rows(f: &Fixture) -> usize {
    f.batch.tensor("tgt.targets").expect("listed").shape[0] as usize
}

fn session(f: &Fixture, plan: Plan, capture: bool) -> Session {
    if plan.target.device != "cpu" {
        return f.session_captured(plan, capture);
    }
    let weights = f.weights(&plan);
    Session::new(plan, &weights, &Options::default()).unwrap_or_else(|e| panic!("{e}"))
}

fn step(s: &mut Session, batches: &[Batch]) -> StepReport {
    s.step(batches).unwrap_or_else(|e| panic!("{e}"))
}

/// Weights after some steps beside another session's: relative distances in the L2 norm.
fn apart(a: &Session, b: &Session) -> f64 {
    let mut most = 0f64;
    for (name, _) in kept(b, |r| r == Role::Parameter) {
        let (x, y) = (a.read(&name).unwrap().to_f32(), b.read(&name).unwrap().to_f32());
        let d: f64 = x.iter().zip(&y).map(|(x, y)| f64::from(x - y).powi(2)).sum();
        let n: f64 = y.iter().map(|y| f64::from(*y).powi(2)).sum();
        most = most.max((d / n).sqrt());
    }
    most
}

/// Products of a plan that add to an accumulator.
fn added(plan: &Plan) -> [usize; 2] {
    let adds = |k: &Kernel| match k {
        Kernel::Gemm(g) => [usize::from(g.epilogue.kind == EpilogueKind::Accumulate), 0],
        Kernel::Conv(c) => [0, usize::from(c.epilogue.kind == EpilogueKind::Accumulate)],
        _ => [0, 0],
    };
    plan.micro.iter().map(|s| adds(&s.kernel)).fold([0; 2], |a, b| [a[0] + b[0], a[1] + b[1]])
}

#[test]
fn four_batches_are_those_of_the_cpu() {
    for (name, policy, steps, loss, weights) in [
        ("mlp_mnist", "f32", 3, 1e-5, 2e-5),
        ("mlp_mnist", "f16", 3, 2e-3, 2e-3),
        ("tiny_gpt", "bf16", 3, 2e-3, 5e-3),
        // Convolutions of the software device are slow.
        ("cifar_cnn", "f32", 1, 1e-4, 1e-3),
    ] {
        let f = Fixture::open(name);
        let train = "accumulate = 4\nclip_norm = 1.0";
        let of = |device| plan(&f, policy, device, rows(&f) / BATCHES, train);
        let gpu = of("sm_90");
        assert!(added(&gpu)[0] > 0, "{name} {policy}");
        let (mut gpu, mut cpu) = (session(&f, gpu, true), session(&f, of("cpu-generic"), true));
        let says = gpu.describe();
        for words in ["without cuBLASLt", "an epilogue of their own", "without cuDNN"] {
            assert!(!says.contains(words), "{name} {policy}: {says}");
        }
        let batches = split(&f, &gpu, BATCHES);
        let same = split(&f, &cpu, BATCHES);
        for _ in 0..steps {
            let (g, c) = (step(&mut gpu, &batches), step(&mut cpu, &same));
            let near = f64::from((g.loss - c.loss).abs()) <= loss * f64::from(c.loss);
            assert!(near && g.skipped == c.skipped, "{name} {policy}: {g:?}, the CPU {c:?}");
        }
        let d = apart(&gpu, &cpu);
        assert!(d <= weights, "{name} {policy}: weights {d:.1e} apart");
    }
}

/// Without statistics over a batch, four batches are one of all their rows.
#[test]
fn four_batches_are_one_of_all_their_rows() {
    for (name, policy, allowed) in
        [("mlp_mnist", "f32", 2e-5), ("tiny_gpt", "f32", 2e-5), ("mlp_mnist", "bf16", 2e-3)]
    {
        let f = Fixture::open(name);
        let four = plan(&f, policy, "sm_90", rows(&f) / BATCHES, "accumulate = 4");
        let one = plan(&f, policy, "sm_90", rows(&f), "");
        let (mut four, mut one) = (session(&f, four, true), session(&f, one, true));
        let (parts, whole) = (split(&f, &four, BATCHES), split(&f, &one, 1));
        for _ in 0..3 {
            let (a, b) = (step(&mut four, &parts), step(&mut one, &whole));
            assert!((a.loss - b.loss).abs() <= 1e-3 * b.loss, "{name} {policy}: {a:?} {b:?}");
        }
        let d = apart(&four, &one);
        assert!(d <= allowed, "{name} {policy}: weights {d:.1e} apart");
    }
}

/// One batch of four overflows: nothing is updated, the scale falls, and the accumulators are zero
/// for the next step, which is as if nothing had been.
#[test]
fn an_overflow_in_one_batch_skips_the_step() {
    let f = Fixture::open("mlp_mnist");
    let train = "accumulate = 4\n[loss_scale]\ninit = 256";
    let plan = plan(&f, "f16", "sm_90", rows(&f) / BATCHES, train);
    assert!(added(&plan)[0] > 0 && plan.summary.scaled);
    let lasting = |r: Role| !matches!(r, Role::Machine);
    for at in 0..BATCHES {
        let mut s = session(&f, plan.clone(), true);
        let clean = split(&f, &s, BATCHES);
        let mut bad = clean.clone();
        bad[at] = {
            let all = f.batch.tensor("in.x").expect("listed");
            let mut x = all.to_f32();
            x.truncate(all.elements() / BATCHES);
            // Finite in f16; the sums of the first product are not, nor is what they become.
            x.iter_mut().for_each(|x| *x = 6e4);
            let shape = [(rows(&f) / BATCHES) as u64, all.shape[1]];
            let x = HostTensor::from_f32(&shape, &x);
            let t = f.batch.tensor("tgt.targets").expect("listed");
            let bytes = t.bytes[..t.bytes.len() / BATCHES].to_vec().into();
            let t = HostTensor { element: t.element, shape: vec![shape[0]], bytes };
            batch_of(&s.wanted(), &[("x", x), ("targets", t)]).unwrap_or_else(|e| panic!("{e}"))
        };
        let before = kept(&s, lasting);
        let report = step(&mut s, &bad);
        assert!(report.skipped, "batch {at}: {report:?}");
        assert!(before == kept(&s, lasting), "batch {at}: a skipped step changed something");
        let zero = kept(&s, |r| r == Role::Accumulator);
        assert!(!zero.is_empty() && zero.iter().all(|t| t.1.iter().all(|&b| b == 0)), "batch {at}");
        let scale = s.read("machine.loss_scale").unwrap_or_else(|e| panic!("{e}")).to_f32();
        assert_eq!(scale, [128.0], "batch {at}");
        let next = step(&mut s, &clean);
        assert!(!next.skipped && next.loss.is_finite(), "batch {at}: {next:?}");
    }
}

#[test]
fn captured_or_not_and_every_time_the_bits_are_the_same() {
    for (name, policy) in [("mlp_mnist", "f16"), ("tiny_gpt", "bf16")] {
        let f = Fixture::open(name);
        let plan = plan(&f, policy, "sm_90", rows(&f) / BATCHES, "accumulate = 4\nema = 0.9");
        let run = |capture: bool| {
            let mut s = session(&f, plan.clone(), capture);
            assert_eq!(s.describe().contains("one graph a step"), capture);
            let batches = split(&f, &s, BATCHES);
            let losses: Vec<u32> = (0..3).map(|_| step(&mut s, &batches).loss.to_bits()).collect();
            (losses, kept(&s, |_| true))
        };
        let captured = run(true);
        assert!(captured == run(true), "{name} {policy}: another run has other bits");
        assert!(captured == run(false), "{name} {policy}: uncaptured has other bits");
    }
}
