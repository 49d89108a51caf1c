//! Prints what the CUDA backend would launch for a plan, in order, one line a task, and writes the
//! texts of its kernels into a folder as `tests/gpu/nvrtc_check` reads them:
//! `cargo run --example cuda_launches -- PLAN H200 FOLDER`. Needs no GPU; libraries are taken to run
//! every product, convolution and attention.

use precast_compiler::cost::step_bytes;
use precast_plan::{Kernel, Plan, Step as PlanStep};
use precast_runtime::cuda::launch::{Facts, Lowered, Task};
use precast_runtime::cuda::lower::{Answer, Graph, Offers, lower};
use precast_runtime::cuda::product::Product;
use precast_runtime::cuda::text::{OPTIONS, PRELUDE};
use std::error::Error;
use std::path::PathBuf;
use std::{env, fs};

/// By name: compute capability, multiprocessors, shared memory that a block may ask for.
const DEVICES: [(&str, (u32, u32), u32, u32); 3] = [
    ("A100", (8, 0), 108, 166_912),
    ("H200", (9, 0), 132, 232_448),
    ("B200", (10, 0), 148, 232_448),
];

/// Libraries that run everything.
struct Libraries;

impl Offers for Libraries {
    fn product(&mut self, _: &Product) -> precast_runtime::Result<Answer> {
        Ok(Answer::Yes)
    }

    fn graph(&mut self, _: &Plan, _: &Kernel, out: &mut Lowered) -> precast_runtime::Result<Graph> {
        out.tasks.push(Task::Graph(0));
        Ok(Graph::Lowered)
    }
}

/// Floating-point operations of products, a multiplication and an addition being two.
fn flops(step: &PlanStep) -> u64 {
    match &step.kernel {
        Kernel::Gemm(g) => 2 * g.batch[0] * g.batch[1] * g.m * g.n * g.k,
        Kernel::Conv(c) => {
            let g = &c.geometry;
            2 * g.n * g.oh * g.ow * g.o * (g.c / g.groups) * g.kh * g.kw
        }
        Kernel::Attention(a) => 4 * a.batch * a.heads * a.tq * a.tk * a.d,
        Kernel::AttentionGrad(g) => {
            let a = &g.forward;
            10 * a.batch * a.heads * a.tq * a.tk * a.d
        }
        _ => 0,
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let usage = "usage: cuda_launches PLAN A100|H200|B200 FOLDER";
    let args: Vec<String> = env::args().skip(1).collect();
    let [plan, device, folder] = args.as_slice() else { return Err(usage.into()) };
    let board = DEVICES.iter().find(|d| d.0 == device).ok_or(usage)?;
    let plan = Plan::from_json(&fs::read_to_string(plan)?)?;
    let facts = Facts {
        capability: board.1,
        multiprocessors: board.2,
        shared_per_block: board.3,
        threads_per_multiprocessor: 2048,
    };
    let lowered = lower(&plan, &facts, &mut Libraries)?;
    println!("phase\tstep\ttask\tgrid\tblock\tshared\tMB of the step\tGFLOP\tpredicted us");
    let phases = [("micro", &plan.micro), ("update", &plan.update)];
    for ((phase, steps), tasks) in phases.into_iter().zip(&lowered.phases) {
        for (step, lowered) in steps.iter().zip(tasks) {
            for (i, task) in lowered.lowered.tasks.iter().enumerate() {
                let (what, shape) = match task {
                    Task::Launch(l) => {
                        let grid = l.grid.map(|n| n.to_string()).join("x");
                        (l.source.entry.clone(), format!("{grid}\t{}\t{}", l.block[0], l.shared))
                    }
                    Task::Clear { bytes, .. } => (format!("clear {bytes}"), "\t\t".into()),
                    Task::Product(_) => ("cublaslt".into(), "\t\t".into()),
                    Task::Graph(_) => ("cudnn".into(), "\t\t".into()),
                };
                print!("{phase}\t{}\t{what}\t{shape}", step.name);
                if i == 0 {
                    let megabytes = step_bytes(step, &plan) as f64 * 1e-6;
                    let gigaflop = flops(step) as f64 * 1e-9;
                    let time = step.predicted_ns * 1e-3;
                    print!("\t{megabytes:.1}\t{gigaflop:.1}\t{time:.1}");
                }
                println!();
            }
        }
    }
    for notice in &lowered.notices {
        println!("notice: {notice}");
    }
    let folder = PathBuf::from(folder);
    let texts = folder.join(facts.arch());
    fs::create_dir_all(&texts)?;
    for (entry, source) in lowered.texts() {
        let text = source.text.strip_prefix(PRELUDE).unwrap_or(&source.text);
        fs::write(texts.join(format!("{entry}.cu")), text)?;
    }
    fs::write(folder.join("prelude.cuh"), PRELUDE)?;
    fs::write(folder.join("options"), OPTIONS.join("\n"))?;
    Ok(())
}
