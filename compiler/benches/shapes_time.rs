//! How compile time grows with a graph, for graphs of many shapes:
//! `cargo bench -p precast-compiler --bench shapes_time -- [SHAPE…]`, from the model's text to the plan,
//! and the plan to its file and back.
//!
//! Environment: SIZES (1250,2500,5000,10000) in operations of the model, POLICIES (f32,bf16,f16,auto),
//! DEVICES (cpu,h100), REPEAT (1; the median counts), MOST (seconds, 60): larger sizes of what took longer
//! are left out, and say so. Prints a line for each shape, device and policy: seconds of the processor at every
//! size, and in brackets how often as long as the size before.

mod shapes;

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline;
use precast_plan::Plan;
use shapes::SHAPES;
use std::error::Error;
use std::path::Path;
use std::time::Instant;

fn list(name: &str, default: &str) -> Vec<String> {
    let text = std::env::var(name).unwrap_or_else(|_| default.into());
    text.split(',').map(str::to_string).collect()
}

fn number(name: &str, default: f64) -> Result<f64, Box<dyn Error>> {
    Ok(std::env::var(name).map_or(Ok(default), |n| n.parse())?)
}

/// Seconds to compile a model, and to write and read the plan.
fn seconds(file: &Path, policy: &str, device: &str) -> Result<[f64; 2], Box<dyn Error>> {
    let recipe = shapes::recipe(file, policy, device);
    let recipe = Recipe::parse(Path::new("recipe.toml"), &recipe).map_err(|e| e.to_string())?;
    let options = pipeline::Options { bf16_products: true, ..Default::default() };
    let begin = now();
    let c = pipeline::compile(&recipe, &options).map_err(|e| e.to_string())?;
    let compiled = now();
    let text = c.plan.to_json();
    Plan::from_json(&text).map_err(|e| e.to_string())?;
    Ok([compiled - begin, now() - compiled])
}

/// Seconds that a processor worked for this process, where the system tells it: on a machine that is
/// shared, what to compare.
fn now() -> f64 {
    let worked = || {
        let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
        let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
        let ticks: f64 =
            fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
        Some(ticks / 100.0)
    };
    worked().unwrap_or_else(|| BEGIN.elapsed().as_secs_f64())
}

static BEGIN: std::sync::LazyLock<Instant> = std::sync::LazyLock::new(Instant::now);

fn median(mut list: Vec<f64>) -> f64 {
    list.sort_by(f64::total_cmp);
    list[list.len() / 2]
}

fn main() -> Result<(), Box<dyn Error>> {
    // Cargo hands benches a flag of its own.
    let wanted: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with('-')).collect();
    if let Some(name) = wanted.iter().find(|n| shapes::shape(n).is_none()) {
        return Err(format!("there is no shape `{name}`").into());
    }
    let sizes = list("SIZES", "1250,2500,5000,10000");
    let sizes: Vec<usize> = sizes.iter().map(|n| n.parse()).collect::<Result<_, _>>()?;
    let (repeat, most) = (number("REPEAT", 1.0)? as usize, number("MOST", 60.0)?);
    let file = std::env::temp_dir().join(format!("precast-shape-{}.pir", std::process::id()));
    println!("shape                    device  policy  {sizes:?} operations: seconds");
    for s in SHAPES.iter().filter(|s| wanted.is_empty() || wanted.iter().any(|w| w == s.name)) {
        for device in list("DEVICES", "cpu,h100") {
            for policy in list("POLICIES", "f32,bf16,f16,auto") {
                print!("{:24} {device:7} {policy:6}", s.name);
                let mut before: Option<(usize, f64)> = None;
                for &n in &sizes {
                    if before.is_some_and(|b| b.1 > most) {
                        print!("   left out");
                        continue;
                    }
                    std::fs::write(&file, (s.model)(n))?;
                    let mut times = vec![];
                    for _ in 0..repeat.max(1) {
                        times.push(seconds(&file, &policy, &device)?);
                    }
                    let [compile, files] =
                        [0, 1].map(|i| median(times.iter().map(|t| t[i]).collect()));
                    let all = compile + files;
                    print!("  {all:8.3}");
                    if let Some((m, t)) = before {
                        // For twice the size.
                        let growth = (all / t).powf(1.0 / (n as f64 / m as f64).log2());
                        print!(" ({growth:4.2})");
                    }
                    before = Some((n, all));
                    use std::io::Write;
                    std::io::stdout().flush()?;
                }
                println!();
            }
        }
    }
    std::fs::remove_file(&file)?;
    Ok(())
}
