//! Writes the text of every kernel that the CUDA backend makes for the test plans into a folder,
//! for `tests/gpu/nvrtc_check`: one file for each kernel and device, the prelude apart. Fails where
//! a form that the generator has is in no text.

mod coverage;
mod plans;

use plans::{ADAMW, CNN, CONVOLUTIONS, CROSS_ENTROPY, GPT, MLP, Model, RESNET, SGD, Training};
use precast_plan::{Kernel, Plan};
use precast_runtime::Result;
use precast_runtime::cuda::launch::{Facts, Lowered, Task};
use precast_runtime::cuda::lower::{Answer, Graph, Offers, lower};
use precast_runtime::cuda::product::{Fused, Product};
use precast_runtime::cuda::text::{self, OPTIONS, PRELUDE};
use precast_runtime::cuda::{dnn, kernels};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A100, H200 and B200.
const DEVICES: [((u32, u32), u32, u32); 3] =
    [((8, 0), 108, 166_912), ((9, 0), 132, 232_448), ((10, 0), 148, 232_448)];

/// What libraries take.
#[derive(Clone, Copy, PartialEq)]
enum Take {
    /// Nothing: every step becomes kernels of ours.
    Nothing,
    /// Products and convolutions without what follows their sums, which becomes kernels of ours.
    Sums,
}

struct Libraries<'a> {
    take: Take,
    facts: &'a Facts,
}

impl Offers for Libraries<'_> {
    fn product(&mut self, p: &Product) -> Result<Answer> {
        let sums = p.fused == Fused::None && p.alpha.is_none() && p.c.is_none();
        Ok(match self.take == Take::Sums && sums {
            true => Answer::Yes,
            false => Answer::No("as if it were refused".into()),
        })
    }

    fn graph(&mut self, plan: &Plan, kernel: &Kernel, out: &mut Lowered) -> Result<Graph> {
        match kernel {
            Kernel::Conv(c) if self.take == Take::Sums => {
                let (place, strides, dims) = dnn::sums(c, out);
                out.tasks.push(Task::Graph(0));
                let sums = (place, strides);
                text::lower_epilogue(plan, &c.epilogue, &dims, sums, self.facts, out)?;
                Ok(Graph::Lowered)
            }
            _ => Ok(Graph::No("as if it were refused".into())),
        }
    }
}

const ADAM: &str = "kind = \"adam\"\nlr = 1e-3\nweight_decay = 0.01";
const PLAIN: &str = "kind = \"sgd\"\nlr = 0.1";
const NESTEROV: &str =
    "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9\nnesterov = true\nweight_decay = 1e-4";
const NO_DECAY: &str = "kind = \"adamw\"\nlr = 1e-3\nno_decay = \"bias_and_norm\"";
const SMOOTHED: &str = "kind = \"cross_entropy\"\nlabel_smoothing = 0.1\nignore_index = 3";

/// What plans are made of: optimizers with everything that an update may do besides, in every format
/// whose copies an update writes, and every policy over every network.
fn trainings() -> Vec<Training<'static>> {
    let mut all = vec![];
    let mut add = |model: Model, policy, optimizer, train| {
        let target = "sm_90";
        all.push(Training { model, loss: CROSS_ENTROPY, optimizer, policy, train, target });
    };
    for model in [MLP, CNN, GPT] {
        for policy in ["f32", "tf32", "bf16", "f16", "fp8"] {
            add(model, policy, ADAMW, "clip_norm = 1.0");
            add(model, policy, SGD, "accumulate = 2");
        }
        for policy in ["f32", "bf16", "f16"] {
            add(model, policy, ADAMW, "ema = 0.9");
        }
    }
    let curve = "[schedule]\nkind = \"cosine\"\nsteps = 20\nwarmup = 3\nfinal_ratio = 0.1";
    let line =
        "accumulate = 3\nclip_norm = 1.0\n[schedule]\nkind = \"linear\"\nsteps = 20\nwarmup = 3";
    for policy in ["f32", "bf16", "f16"] {
        for model in [MLP, CNN] {
            add(model, policy, PLAIN, curve);
            add(model, policy, NESTEROV, "clip_norm = 1.0\nema = 0.99");
            add(model, policy, ADAM, line);
        }
        add(MLP, policy, NO_DECAY, "accumulate = 2\nclip_norm = 1.0\nema = 0.99");
        add(MLP, policy, SGD, "accumulate = 2\nclip_norm = 1.0\nema = 0.99");
        add(GPT, policy, NO_DECAY, "accumulate = 2\nclip_norm = 1.0\nema = 0.99");
    }
    for scale in [
        "[loss_scale]\nmode = \"static\"",
        "[loss_scale]\nmode = \"dynamic\"\nhysteresis = 2\nmin = 1.0\nmax = 65536.0",
        "[loss_scale]\nmode = \"off\"",
    ] {
        add(MLP, "f16", ADAMW, scale);
    }
    add(MLP, "f16", ADAMW, "freeze = [\"*bias*\"]");
    for policy in ["f32", "tf32", "bf16", "f16"] {
        add(CONVOLUTIONS, policy, SGD, "");
    }
    // Large enough that several blocks share what they sum; several batches for an update add
    // gradients where they stand.
    add(RESNET, "f32", SGD, "");
    add(RESNET, "bf16", SGD, "accumulate = 2");
    for policy in ["f32", "bf16", "f16"] {
        let [mut smoothed, mut squares] = [*all.first().expect("added above"); 2];
        (smoothed.policy, smoothed.loss) = (policy, SMOOTHED);
        (squares.policy, squares.loss) = (policy, "kind = \"mse\"");
        squares.model.targets = &[64, 10];
        all.extend([smoothed, squares]);
    }
    all
}

/// Plans of all trainings, made by as many threads as there are cores.
fn plans() -> Vec<Plan> {
    let trainings = trainings();
    let next = AtomicUsize::new(0);
    let work = || {
        let mut made = vec![];
        while let Some(t) = trainings.get(next.fetch_add(1, Ordering::Relaxed)) {
            made.push(t.plan());
        }
        made
    };
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    std::thread::scope(|scope| {
        let running: Vec<_> = (0..cores).map(|_| scope.spawn(work)).collect();
        running.into_iter().flat_map(|r| r.join().expect("plans are made")).collect()
    })
}

fn main() -> std::result::Result<(), Box<dyn Error>> {
    let folder: PathBuf = std::env::args_os().nth(1).ok_or("usage: cuda_texts FOLDER")?.into();
    let plans = plans();
    let mut missing = vec![];
    for (capability, multiprocessors, shared_per_block) in DEVICES {
        let threads_per_multiprocessor = 2048;
        let facts =
            Facts { capability, multiprocessors, shared_per_block, threads_per_multiprocessor };
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        for plan in &plans {
            for take in [Take::Nothing, Take::Sums] {
                let mut libraries = Libraries { take, facts: &facts };
                for launch in lower(plan, &facts, &mut libraries)?.launches() {
                    let source = &launch.source;
                    texts.entry(source.entry.clone()).or_insert_with(|| source.text.clone());
                }
            }
        }
        for source in kernels::samples(&facts).into_iter().chain(text::samples(&facts)) {
            texts.insert(source.entry.clone(), source.text.clone());
        }
        let folder = folder.join(facts.arch());
        fs::create_dir_all(&folder)?;
        for (entry, text) in &texts {
            fs::write(folder.join(format!("{entry}.cu")), text)?;
        }
        println!("{}: {} kernels of {} plans", facts.arch(), texts.len(), plans.len());
        missing.extend(coverage::missing(&texts).into_iter().map(|m| (facts.arch(), m)));
    }
    fs::write(folder.join("prelude.cuh"), PRELUDE)?;
    fs::write(folder.join("options"), OPTIONS.join("\n"))?;
    for (arch, what) in &missing {
        println!("{arch}: no text has {what}");
    }
    if missing.is_empty() { Ok(()) } else { Err("texts lack forms of the generator".into()) }
}
