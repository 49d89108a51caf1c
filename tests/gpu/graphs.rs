//! Every graph that the CUDA backend asks cuDNN for in the test plans, built by NVIDIA's own library
//! for described devices, up to finished execution plans: for `tests/gpu/dnn_check`.
//!
//!     cuda_graphs [CANDIDATES [FILE OF A PLAN]…]
//!
//! Fails where cuDNN refuses what a step of training is known to get.

#[path = "../common/mod.rs"]
mod common;

use common::Fixture;
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{self, Options};
use precast_plan::{Kernel, Plan};
use precast_runtime::cuda::dnn::{Steps, cudnn, spelled};
use precast_runtime::cuda::graphs::Library;
use precast_runtime::cuda::launch::{Facts, Lowered};
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

/// cuDNN's own graphs; products are taken to be cuBLASLt's.
struct Described(Steps);

impl Offers for Described {
    fn product(&mut self, _: &Product) -> precast_runtime::Result<Answer> {
        Ok(Answer::Yes)
    }

    fn graph(
        &mut self,
        plan: &Plan,
        kernel: &Kernel,
        out: &mut Lowered,
    ) -> precast_runtime::Result<Graph> {
        self.0.lower(plan, kernel, out)
    }
}

const ADAMW: &str = "kind = \"adamw\"\nlr = 1e-3";
const SGD: &str = "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9";

/// A network of the test models, trained from the start.
fn network(file: &str, policy: &str, target: &str) -> Plan {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/models");
    let text = format!(
        "model = \"{file}\"\n\
         [weights]\ninit = \"default\"\n\
         [data]\nformat = \"safetensors\"\nfile = \"batch.safetensors\"\n\
         inputs = {{ x = \"in.x\" }}\ntargets = {{ targets = \"tgt.targets\" }}\n\
         [loss]\nkind = \"cross_entropy\"\ntarget = \"targets\"\n\
         [optimizer]\n{SGD}\n[train]\nsteps = 20\n\
         [precision]\npolicy = \"{policy}\"\n[target]\ndevice = \"{target}\"\n"
    );
    let recipe = Recipe::parse(folder.join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
    let mut options = Options::default();
    options.shapes.insert("x".into(), vec![32, 3, 224, 224]);
    options.shapes.insert("targets".into(), vec![32]);
    pipeline::compile(&recipe, &options).unwrap_or_else(|e| panic!("{file} {policy}: {e}")).plan
}

/// Plans with convolutions or attention, by name.
fn plans(target: &str) -> Vec<(String, Plan)> {
    let mut plans = vec![];
    for policy in ["f32", "tf32", "bf16", "f16"] {
        for (fixture, optimizer) in [("cifar_cnn", SGD), ("tiny_gpt", ADAMW)] {
            let f = Fixture::open(fixture);
            let train = format!("\n[target]\ndevice = \"{target}\"");
            let plan = f.compile_with("model.onnx", policy, optimizer, &train, false).plan;
            plans.push((format!("{fixture} {policy}"), plan));
        }
        let resnet = network("resnet18.ts.op17.train.onnx", policy, target);
        plans.push((format!("resnet18 {policy}"), resnet));
    }
    plans
}

/// Asks for the graphs of a device's plans; what is wrong.
fn survey(
    device: &Device,
    files: &[(String, Plan)],
    candidates: usize,
) -> Result<(String, Vec<String>), String> {
    use std::fmt::Write as _;
    let begin = Instant::now();
    let target = device.target;
    let plans = if files.is_empty() { plans(target) } else { files.to_vec() };
    let compiled = begin.elapsed().as_secs_f64();
    let steps = Steps::described(device.json, device.facts.clone(), candidates).map_err(|e| e.to_string())?;
    let mut offers = Described(steps);
    let (mut said, mut faults) = (String::new(), vec![]);
    for (name, plan) in &plans {
        offers.0.begin(plan);
        let lowered = lower(plan, &device.facts, &mut offers).map_err(|e| e.to_string())?;
        for notice in lowered.notices {
            writeln!(said, "{target} {name}: {notice}").expect("memory");
        }
    }
    let (mut built, mut refused, mut ways) = (0, 0, 0);
    for (key, answer) in offers.0.asked() {
        match answer {
            Ok(graph) => {
                built += 1;
                ways += graph.candidates();
                let tags: Vec<&str> = (0..graph.candidates()).map(|c| graph.tag(c)).collect();
                writeln!(said, "{target} {key}: {}", tags.join("; ")).expect("memory");
            }
            Err(why) => {
                refused += 1;
                writeln!(said, "{target} {key}: NO: {why}").expect("memory");
            }
        }
    }
    writeln!(
        said,
        "{target}: {built} graphs built with {ways} plans, {refused} refused, of {} training plans; \
         {:.0} s, {compiled:.0} of them compiling plans",
        plans.len(),
        begin.elapsed().as_secs_f64()
    )
    .expect("memory");
    if built == 0 {
        faults.push(format!("{target}: no graph at all"));
    }
    Ok((said, faults))
}

fn main() -> Result<(), Box<dyn Error>> {
    println!("cuDNN {}", spelled(cudnn()?.version()));
    let mut arguments = std::env::args_os().skip(1);
    let candidates: usize = match arguments.next() {
        Some(n) => n.to_string_lossy().parse().map_err(|_| "usage: cuda_graphs [CANDIDATES [PLAN]…]")?,
        None => 1,
    };
    let mut files = vec![];
    for path in arguments {
        let plan = Plan::from_json(&std::fs::read_to_string(&path)?)?;
        files.push((Path::new(&path).display().to_string(), plan));
    }
    let devices = devices();
    let results: Vec<_> = std::thread::scope(|scope| {
        let running: Vec<_> =
            devices.iter().map(|d| scope.spawn(|| survey(d, &files, candidates))).collect();
        running.into_iter().map(|r| r.join().expect("a survey ends")).collect()
    });
    let mut faults = vec![];
    for r in results {
        let (said, found) = r?;
        print!("{said}");
        faults.extend(found);
    }
    for fault in &faults {
        println!("{fault}");
    }
    if faults.is_empty() { Ok(()) } else { Err(format!("{} faults", faults.len()).into()) }
}
