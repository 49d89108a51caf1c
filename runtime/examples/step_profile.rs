//! Where the time of a training step goes: `cargo run --release -p precast-runtime --example
//! step_profile PLAN WEIGHTS.safetensors BATCH.safetensors [threads]`.
//!
//! The plan is one that `precast compile RECIPE -o PLAN` wrote. Every step of the plan runs several
//! times; a figure is its best run, in milliseconds. Steps are then summed by kernel and program.

use precast_plan::{Kernel, Plan, Step, Storage};
use precast_runtime::tensors::TensorFile;
use precast_runtime::{Backend, CpuBackend, Phase, init};
use std::collections::BTreeMap;
use std::error::Error;
use std::path::Path;

fn kind(plan: &Plan, step: &Step) -> String {
    let program = |p: u32| plan.programs[p as usize].name.clone();
    match &step.kernel {
        Kernel::Rows(r) => {
            let dims = &r.instances[0].dims;
            format!("rows {} {dims:?} x{}", program(r.program), r.instances.len())
        }
        Kernel::Gemm(g) => {
            let side = |a: &precast_plan::Access| if a.strides[3] == 1 { 'n' } else { 't' };
            let (m, n, k) = (g.m, g.n, g.k);
            let name = program(g.epilogue.program);
            format!("gemm {m}x{n}x{k} {}{} {:?} + {name}", side(&g.a), side(&g.b), g.batch)
        }
        Kernel::Conv(c) => format!("conv {:?} + {}", c.kind, program(c.epilogue.program)),
        other => {
            let text = format!("{other:?}");
            text.split([' ', '(', '{']).next().unwrap_or_default().to_lowercase()
        }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [plan, weights, batch, rest @ ..] = args.as_slice() else {
        return Err("usage: step_profile PLAN WEIGHTS BATCH [threads]".into());
    };
    let threads = rest.first().map_or(Ok(1), |t| t.parse())?;
    let plan: Plan = serde_json::from_str(&std::fs::read_to_string(plan)?)?;
    let weights = TensorFile::open(Path::new(weights))?;
    let batch = TensorFile::open(Path::new(batch))?;
    let mut backend = CpuBackend::new(&plan, threads)?;
    init::initialise(&plan, &weights, &mut backend)?;
    for (id, t) in plan.tensors.iter().enumerate() {
        let Storage::Input { .. } = t.storage else { continue };
        let host =
            ["in.", "tgt."].iter().find_map(|p| batch.tensor(&format!("{p}{}", t.name)).ok());
        let Some(host) = host else {
            eprintln!("input `{}` stays zero", t.name);
            continue;
        };
        let mut bytes = vec![];
        host.convert(0..host.elements(), t.dtype, (1.0, 0.0), &mut bytes)?;
        backend.write(id as u32, &bytes)?;
    }
    let phases = [(Phase::Micro, &plan.micro), (Phase::Update, &plan.update)];
    let mut best: Vec<Vec<f64>> = phases.iter().map(|p| vec![f64::INFINITY; p.1.len()]).collect();
    let mut whole = f64::INFINITY;
    for _ in 0..8 {
        let start = std::time::Instant::now();
        for (p, best) in best.iter_mut().enumerate() {
            backend.run_timed(phases[p].0, |i, s| best[i] = best[i].min(s))?;
        }
        whole = whole.min(start.elapsed().as_secs_f64());
    }
    let mut kinds: BTreeMap<String, (usize, f64)> = BTreeMap::new();
    for ((_, steps), best) in phases.iter().zip(&best) {
        for (step, &t) in steps.iter().zip(best) {
            if std::env::var_os("STEPS").is_some() {
                println!("{:9.3}  {}  [{}]", t * 1e3, step.name, kind(&plan, step));
            }
            let k = kinds.entry(kind(&plan, step)).or_default();
            *k = (k.0 + 1, k.1 + t);
        }
    }
    let mut kinds: Vec<_> = kinds.into_iter().collect();
    kinds.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
    let sum: f64 = best.iter().flatten().sum();
    for (name, (n, t)) in &kinds {
        println!("{:9.3} ms {:5.1} %  {n:4} x  {name}", t * 1e3, t / sum * 100.0);
    }
    println!(
        "sum of best {:.1} ms, best step {:.1} ms, {}",
        sum * 1e3,
        whole * 1e3,
        backend.describe()
    );
    Ok(())
}
