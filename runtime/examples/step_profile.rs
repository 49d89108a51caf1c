//! Where the time of a training step goes: `cargo run --release -p precast-runtime --example
//! step_profile PLAN WEIGHTS.safetensors BATCH.safetensors [threads]`.
//!
//! The plan is one that `precast compile RECIPE -o PLAN` wrote. Every step of the plan runs several
//! times (`RUNS`, 8 by default); a figure is its best run, in milliseconds, beside what the cost
//! model predicts. Steps are then summed by kernel and program, and by family. `STEPS=1` lists every
//! step. `-` for weights and batch: first values are drawn, inputs stay zero.

use precast_plan::{Kernel, Plan, Step, Storage};
use precast_runtime::tensors::TensorFile;
use precast_runtime::{Backend, CpuBackend, ModelWeights, Phase, init};
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
    let open = |path: &String| -> Result<Option<TensorFile>, Box<dyn Error>> {
        Ok(if path == "-" { None } else { Some(TensorFile::open(Path::new(path))?) })
    };
    let (weights, batch) = (open(weights)?, open(batch)?);
    let mut backend = CpuBackend::new(&plan, threads)?;
    match &weights {
        Some(w) => init::initialise(&plan, w, &mut backend)?,
        None => {
            let none = ModelWeights::for_plan(&plan, Path::new("."), None)?;
            init::initialise(&plan, &none, &mut backend)?;
        }
    }
    for (id, t) in plan.tensors.iter().enumerate() {
        let Storage::Input { .. } = t.storage else { continue };
        let host = ["in.", "tgt."]
            .iter()
            .find_map(|p| batch.as_ref()?.tensor(&format!("{p}{}", t.name)).ok());
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
    let runs = std::env::var("RUNS").map_or(Ok(8), |n| n.parse())?;
    for _ in 0..runs {
        let start = std::time::Instant::now();
        for (p, best) in best.iter_mut().enumerate() {
            backend.run_timed(phases[p].0, |i, s| best[i] = best[i].min(s))?;
        }
        whole = whole.min(start.elapsed().as_secs_f64());
    }
    let mut kinds: BTreeMap<String, (usize, f64, f64)> = BTreeMap::new();
    let mut families = kinds.clone();
    for ((_, steps), best) in phases.iter().zip(&best) {
        for (step, &t) in steps.iter().zip(best) {
            let (t, kind) = (t * 1e3, kind(&plan, step));
            let predicted = step.predicted_ns * 1e-6;
            if std::env::var_os("STEPS").is_some() {
                println!("{t:9.4} predicted {predicted:9.4}  {}  [{kind}]", step.name);
            }
            let family = kind.split([' ', '(']).next().unwrap_or_default().to_string();
            for k in [kinds.entry(kind).or_default(), families.entry(family).or_default()] {
                *k = (k.0 + 1, k.1 + t, k.2 + predicted);
            }
        }
    }
    let sum: f64 = best.iter().flatten().sum();
    println!("measured ms  predicted ms  ratio      %  steps");
    for table in [kinds, families] {
        let mut rows: Vec<_> = table.into_iter().collect();
        rows.sort_by(|a, b| b.1.1.total_cmp(&a.1.1));
        for (name, (n, t, p)) in &rows {
            let (ratio, share) = (p / t, t / sum * 0.1);
            println!("{t:11.3}  {p:12.3}  {ratio:5.2}  {share:5.1}  {n:5}  {name}");
        }
        println!();
    }
    println!("predicted {:.3} ms", plan.summary.predicted_ns * 1e-6);
    println!(
        "sum of best {:.1} ms, best step {:.1} ms, {}",
        sum * 1e3,
        whole * 1e3,
        backend.describe()
    );
    Ok(())
}
