//! Every graph that the CUDA backend asks cuDNN for in the test plans, built by NVIDIA's own library
//! for described devices, up to finished execution plans; and every product, told to NVIDIA's own
//! cuBLASLt: for `tests/gpu/dnn_check`.
//!
//!     cuda_graphs REPORT [WAYS [FILE OF A PLAN]…]
//!
//! Fails where cuDNN refuses what it is known to have. The report has a line for each graph: device,
//! what tells the graph from others, and the engines of the plans. With more WAYS than one, graphs are
//! finished for as many engines; plans of other models may be given.

mod plans;

use plans::{ADAMW, CNN, CONVOLUTIONS, CROSS_ENTROPY, GPT, Model, RESNET, SGD, Training};
use precast_plan::{Access, ConvKind, DType, EpilogueKind, Kernel, Math, Plan};
use precast_runtime::cuda::blas;
use precast_runtime::cuda::dnn::{Steps, cudnn, spelled};
use precast_runtime::cuda::graphs::Library;
use precast_runtime::cuda::launch::{Facts, Lowered, Task};
use precast_runtime::cuda::lower::{Answer, Graph, Offers, lower};
use precast_runtime::cuda::product::Product;

use std::error::Error;
use std::path::Path;
use std::time::Instant;

/// Name, what lowering knows of it, and cuDNN's description: A100, H200 and B200.
struct Device {
    target: &'static str,
    facts: Facts,
    json: &'static str,
}

fn devices() -> Vec<Device> {
    let device = |target, capability, multiprocessors, shared_per_block, json| {
        let threads_per_multiprocessor = 2048;
        let facts =
            Facts { capability, multiprocessors, shared_per_block, threads_per_multiprocessor };
        Device { target, facts, json }
    };
    macro_rules! described {
        ($name:literal) => {
            include_str!(concat!("../../runtime/src/cuda/dnn/devices/", $name, ".json"))
        };
    }
    vec![
        device("sm_80", (8, 0), 108, 166_912, described!("a100")),
        device("sm_90", (9, 0), 132, 232_448, described!("h200")),
        device("sm_100", (10, 0), 148, 232_448, described!("b200")),
    ]
}

/// What became of a plan's convolutions and attention.
#[derive(Default)]
struct Count {
    whole: usize,
    /// f32 sums by cuDNN, the epilogue by a kernel of ours.
    sums: usize,
    /// Steps that no graph runs.
    ours: usize,
    products: usize,
}

/// cuDNN's own graphs; products are taken to be cuBLASLt's where it can be told of them.
struct Described {
    steps: Steps,
    count: Count,
    faults: Vec<String>,
}

impl Offers for Described {
    fn product(&mut self, p: &Product) -> precast_runtime::Result<Answer> {
        match blas::tell(p)? {
            Ok(()) => self.count.products += 1,
            Err(why) => self.faults.push(format!("{why}: {p:?}")),
        }
        Ok(Answer::Yes)
    }

    fn graph(
        &mut self,
        plan: &Plan,
        kernel: &Kernel,
        out: &mut Lowered,
    ) -> precast_runtime::Result<Graph> {
        let answer = self.steps.lower(plan, kernel, out)?;
        // Attention's second statistic, which cuDNN does not give, is cleared beside its graph.
        let cleared = |t: &&Task| matches!(t, Task::Clear { .. });
        let tasks = out.tasks.len() - out.tasks.iter().filter(cleared).count();
        match &answer {
            Graph::Lowered if tasks == 1 => self.count.whole += 1,
            Graph::Lowered => {
                self.count.sums += 1;
                if fuses(plan, kernel) {
                    self.faults.push(format!("the epilogue is refused: {kernel:?}"));
                }
            }
            Graph::No(why) => {
                self.count.ours += 1;
                if !is_lacking(plan, kernel) {
                    self.faults.push(format!("{why}: {kernel:?}"));
                }
            }
        }
        Ok(answer)
    }
}

fn is_f32(plan: &Plan, a: &Access) -> bool {
    plan.tensors[a.tensor as usize].dtype == DType::F32
}

/// Steps that cuDNN is known to have no graph for: attention over f32, and f32 gradients of filters
/// from 16-bit operands with channels in other numbers than eights or in groups.
fn is_lacking(plan: &Plan, kernel: &Kernel) -> bool {
    match kernel {
        Kernel::Attention(a) => is_f32(plan, &a.q),
        Kernel::AttentionGrad(g) => is_f32(plan, &g.forward.q),
        Kernel::Conv(c) => {
            let g = &c.geometry;
            let odd = g.c % 8 != 0 || g.groups > 1;
            c.kind == ConvKind::FilterGrad && !is_f32(plan, &c.a) && odd
        }
        _ => false,
    }
}

/// Whether cuDNN is to run the epilogue of a convolution too. Exact f32 is left out: a ReLU there
/// has no engine that keeps NaN and does not round operands.
fn fuses(plan: &Plan, kernel: &Kernel) -> bool {
    let Kernel::Conv(c) = kernel else { return true };
    let known = matches!(
        c.epilogue.kind,
        EpilogueKind::Store
            | EpilogueKind::Accumulate
            | EpilogueKind::Bias
            | EpilogueKind::BiasRelu
    );
    let exact = is_f32(plan, &c.a) && c.math == Math::Exact;
    known && c.epilogue.outputs.len() == 1 && !exact
}

/// Plans with convolutions or attention, by name.
fn plans(target: &str) -> Vec<(String, Plan)> {
    let mut plans = vec![];
    let mut add = |name: &str, model: Model, policy: &str, optimizer: &str, train: &str| {
        let loss = CROSS_ENTROPY;
        let training = Training { model, loss, optimizer, policy, train, target };
        plans.push((format!("{name} {policy}"), training.plan()));
    };
    for policy in ["f32", "tf32", "bf16", "f16"] {
        add("cifar_cnn", CNN, policy, SGD, "");
        add("tiny_gpt", GPT, policy, ADAMW, "");
        add("convolutions", CONVOLUTIONS, policy, SGD, "");
    }
    if target != "sm_80" {
        add("tiny_gpt", GPT, "fp8", ADAMW, "");
    }
    // With several batches, gradients of filters of 1 × 1 are added where they stand.
    add("resnet18", RESNET, "f32", SGD, "");
    add("resnet18", RESNET, "bf16", SGD, "accumulate = 2");
    plans
}

/// What cuDNN said for one device.
struct Survey {
    /// A line for each plan, and one for all.
    lines: Vec<String>,
    /// A line for each graph.
    graphs: Vec<String>,
    faults: Vec<String>,
}

/// Asks for the graphs of a device's plans, each with at most so many ways of running it.
fn survey(device: &Device, files: &[(String, Plan)], ways: usize) -> Result<Survey, String> {
    let begin = Instant::now();
    let target = device.target;
    let plans = if files.is_empty() { plans(target) } else { files.to_vec() };
    let compiled = begin.elapsed().as_secs();
    let steps = Steps::described(device.json, device.facts.clone(), ways);
    let steps = steps.map_err(|e| e.to_string())?;
    let mut offers = Described { steps, count: Count::default(), faults: vec![] };
    let (mut lines, mut faults) = (vec![], vec![]);
    for (name, plan) in &plans {
        offers.steps.begin(plan);
        lower(plan, &device.facts, &mut offers).map_err(|e| e.to_string())?;
        let Count { whole, sums, ours, products } = std::mem::take(&mut offers.count);
        lines.push(format!(
            "{target:6} {name:20} {whole:3} steps by cuDNN, {sums:2} in part, {ours:2} not; \
             {products:3} products"
        ));
        faults.extend(offers.faults.drain(..).map(|f| format!("{target} {name}: {f}")));
    }
    let (mut built, mut refused, mut finished) = (0, 0, 0);
    let mut graphs = vec![];
    for (key, answer) in offers.steps.asked() {
        let answer = match answer {
            Ok(graph) => {
                built += 1;
                finished += graph.candidates();
                (0..graph.candidates()).map(|c| graph.tag(c)).collect::<Vec<_>>().join("; ")
            }
            Err(why) => {
                refused += 1;
                format!("NO: {why}")
            }
        };
        graphs.push(format!("{target}\t{key}\t{answer}"));
    }
    if built == 0 {
        faults.push(format!("{target}: no graph at all"));
    }
    lines.push(format!(
        "{target:6} {built} graphs with {finished} execution plans, {refused} refused, in {} s; \
         {compiled} s before for {} training plans",
        begin.elapsed().as_secs() - compiled,
        plans.len()
    ));
    Ok(Survey { lines, graphs, faults })
}

fn main() -> Result<(), Box<dyn Error>> {
    const USAGE: &str = "usage: cuda_graphs REPORT [WAYS [PLAN]…]";
    let mut arguments = std::env::args_os().skip(1);
    let report = arguments.next().ok_or(USAGE)?;
    let ways: usize = match arguments.next() {
        Some(n) => n.to_string_lossy().parse().map_err(|_| USAGE)?,
        None => 1,
    };
    let mut files = vec![];
    for path in arguments {
        let plan = Plan::from_json(&std::fs::read_to_string(&path)?)?;
        files.push((Path::new(&path).display().to_string(), plan));
    }
    println!("cuDNN {}", spelled(cudnn()?.version()));
    let devices = devices();
    let surveys: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> =
            devices.iter().map(|d| scope.spawn(|| survey(d, &files, ways))).collect();
        running.into_iter().map(|r| r.join().expect("a survey ends")).collect()
    });
    let (mut graphs, mut faults) = (vec![], vec![]);
    for s in surveys {
        let s = s?;
        println!("{}", s.lines.join("\n"));
        graphs.extend(s.graphs);
        faults.extend(s.faults);
    }
    std::fs::write(report, graphs.join("\n") + "\n")?;
    for fault in &faults {
        println!("{fault}");
    }
    if faults.is_empty() { Ok(()) } else { Err(format!("{} faults", faults.len()).into()) }
}
