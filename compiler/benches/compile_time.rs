//! How long the whole pipeline takes on GPT-shaped training graphs:
//! `cargo bench -p precast-compiler --bench compile_time -- [LAYERS…]`, from the joint graph to the plan.
//!
//! Environment: WIDTH (768), HEADS (12), CONTEXT (1024), BATCH (4), VOCABULARY (50304),
//! TARGET (sm_90), POLICY (auto). Prints, for each number of layers: nodes of the joint graph,
//! kernels, seconds, processor seconds, and the most memory that was resident so far.

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline;
use std::error::Error;
use std::fmt::Write;
use std::time::Instant;

/// Extents of a decoder-only transformer.
struct Shape {
    layers: usize,
    width: usize,
    heads: usize,
    context: usize,
    batch: usize,
    vocabulary: usize,
}

/// Its forward graph as textual IR: pre-normalised blocks, fused attention, tanh GELU, tied head.
fn gpt(s: &Shape) -> Result<String, std::fmt::Error> {
    let Shape { layers, width: w, heads, context: t, batch: b, vocabulary: v } = *s;
    let (rows, d, hidden) = (b * t, w / heads, 4 * w);
    let mut vars = String::new();
    let mut code = String::new();
    let mut next = 0;
    // A parameter, and a read of it.
    let mut param =
        |code: &mut String, name: &str, dims: &str| -> Result<String, std::fmt::Error> {
            // Drawn, so that no file of weights is needed.
            writeln!(vars, "var {name}: f32[{dims}] param normal(0.0,0.02,{next})")?;
            next += 1;
            writeln!(code, "  %p{next} = var {{name=\"{name}\"}} : f32[{dims}] @{name}")?;
            Ok(format!("%p{next}"))
        };
    writeln!(code, "  %ids = input {{name=\"ids\"}} : i64[{b},{t}] @ids")?;
    let wte = param(&mut code, "wte", &format!("{v},{w}"))?;
    let wpe = param(&mut code, "wpe", &format!("{t},{w}"))?;
    writeln!(code, "  %tokens = gather {wte}, %ids @wte.gather")?;
    writeln!(code, "  %where = reshape {wpe} {{shape=[1,{t},{w}]}} @wpe.row")?;
    writeln!(code, "  %wheres = broadcast %where {{shape=[{b},{t},{w}]}} @wpe.rows")?;
    writeln!(code, "  %in = binary %tokens, %wheres {{f=add}} @embedding")?;
    writeln!(code, "  %x0 = reshape %in {{shape=[{rows},{w}]}} @embedding.rows")?;
    let mut x = "%x0".to_string();
    let norm = |code: &mut String, name: &str, x: &str, p: [String; 2]| {
        let [g, o] = p;
        writeln!(
            code,
            "  %{name}.y, %{name}.m, %{name}.r = layer_norm {x}, {g}, {o} \
             {{eps=1e-5, axes=1, center=true}} @{name}"
        )
    };
    let linear = |code: &mut String, name: &str, x: &str, p: [String; 2], out: usize| {
        let [m, o] = p;
        writeln!(code, "  %{name}.p = matmul {x}, {m} {{fused=none}} @{name}")?;
        writeln!(code, "  %{name}.o = reshape {o} {{shape=[1,{out}]}} @{name}.row")?;
        writeln!(code, "  %{name}.b = broadcast %{name}.o {{shape=[{rows},{out}]}} @{name}.rows")?;
        writeln!(code, "  %{name}.y = binary %{name}.p, %{name}.b {{f=add}} @{name}.add")
    };
    for l in 0..layers {
        let mut pair = |code: &mut String, name: &str, m: String, o: usize| {
            let weight = param(code, &format!("h{l}.{name}.weight"), &m)?;
            let bias = param(code, &format!("h{l}.{name}.bias"), &o.to_string())?;
            Ok::<_, std::fmt::Error>([weight, bias])
        };
        let p = pair(&mut code, "ln1", w.to_string(), w)?;
        norm(&mut code, &format!("h{l}.ln1"), &x, p)?;
        let p = pair(&mut code, "qkv", format!("{w},{}", 3 * w), 3 * w)?;
        linear(&mut code, &format!("h{l}.qkv"), &format!("%h{l}.ln1.y"), p, 3 * w)?;
        for (i, part) in ["q", "k", "v"].iter().enumerate() {
            let (n, at) = (format!("h{l}.{part}"), i * w);
            writeln!(
                code,
                "  %{n}.s = slice %h{l}.qkv.y {{starts=[0,{at}], sizes=[{rows},{w}], steps=[1,1]}} @{n}.slice"
            )?;
            writeln!(code, "  %{n}.h = reshape %{n}.s {{shape=[{b},{t},{heads},{d}]}} @{n}.heads")?;
            writeln!(code, "  %{n}.y = transpose %{n}.h {{perm=[0,2,1,3]}} @{n}.turn")?;
        }
        let scale = 1.0 / (d as f64).sqrt();
        writeln!(
            code,
            "  %h{l}.o, %h{l}.lse, %h{l}.low = attention %h{l}.q.y, %h{l}.k.y, %h{l}.v.y \
             {{scale={scale:?}, causal=true, masked=false}} @h{l}.attention"
        )?;
        writeln!(code, "  %h{l}.ot = transpose %h{l}.o {{perm=[0,2,1,3]}} @h{l}.merge")?;
        writeln!(code, "  %h{l}.of = reshape %h{l}.ot {{shape=[{rows},{w}]}} @h{l}.merged")?;
        let p = pair(&mut code, "proj", format!("{w},{w}"), w)?;
        linear(&mut code, &format!("h{l}.proj"), &format!("%h{l}.of"), p, w)?;
        writeln!(code, "  %h{l}.x1 = binary {x}, %h{l}.proj.y {{f=add}} @h{l}.residual1")?;
        let p = pair(&mut code, "ln2", w.to_string(), w)?;
        norm(&mut code, &format!("h{l}.ln2"), &format!("%h{l}.x1"), p)?;
        let p = pair(&mut code, "fc", format!("{w},{hidden}"), hidden)?;
        linear(&mut code, &format!("h{l}.fc"), &format!("%h{l}.ln2.y"), p, hidden)?;
        writeln!(code, "  %h{l}.g = activate %h{l}.fc.y {{act=gelu_tanh}} @h{l}.gelu")?;
        let p = pair(&mut code, "out", format!("{hidden},{w}"), w)?;
        linear(&mut code, &format!("h{l}.out"), &format!("%h{l}.g"), p, w)?;
        writeln!(code, "  %h{l}.x2 = binary %h{l}.x1, %h{l}.out.y {{f=add}} @h{l}.residual2")?;
        x = format!("%h{l}.x2");
    }
    let p = [
        param(&mut code, "lnf.weight", &w.to_string())?,
        param(&mut code, "lnf.bias", &w.to_string())?,
    ];
    norm(&mut code, "lnf", &x, p)?;
    writeln!(code, "  %head.w = transpose {wte} {{perm=[1,0]}} @head.turn")?;
    writeln!(code, "  %logits = matmul %lnf.y, %head.w {{fused=none}} @head")?;
    Ok(format!("graph gpt\n\n{vars}\nforward:\n{code}\nresult out.logits = %logits\n"))
}

fn setting(name: &str, default: usize) -> Result<usize, Box<dyn Error>> {
    Ok(std::env::var(name).map_or(Ok(default), |n| n.parse())?)
}

/// Resident memory in MiB, where the system tells it.
fn resident() -> Option<f64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|l| l.starts_with("VmHWM:"))?;
    Some(line.split_whitespace().nth(1)?.parse::<f64>().ok()? / 1024.0)
}

/// Seconds that a processor worked for this process, where the system tells it: on a machine that is
/// shared, what to compare.
fn worked() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks: f64 = fields.get(11)?.parse::<f64>().ok()? + fields.get(12)?.parse::<f64>().ok()?;
    Some(ticks / 100.0)
}

fn main() -> Result<(), Box<dyn Error>> {
    let given: Vec<usize> =
        // Cargo hands benches a flag of its own.
        std::env::args()
            .skip(1)
            .filter(|a| !a.starts_with('-'))
            .map(|a| a.parse())
            .collect::<Result<_, _>>()?;
    let layers = if given.is_empty() { vec![1, 12, 48, 96] } else { given };
    let target = std::env::var("TARGET").unwrap_or_else(|_| "sm_90".into());
    let policy = std::env::var("POLICY").unwrap_or_else(|_| "auto".into());
    let file = std::env::temp_dir().join(format!("precast-gpt-{}.pir", std::process::id()));
    println!("layers   nodes  kernels  seconds  worked  peak MiB  over bound");
    for layers in layers {
        let s = Shape {
            layers,
            width: setting("WIDTH", 768)?,
            heads: setting("HEADS", 12)?,
            context: setting("CONTEXT", 1024)?,
            batch: setting("BATCH", 4)?,
            vocabulary: setting("VOCABULARY", 50304)?,
        };
        std::fs::write(&file, gpt(&s)?)?;
        let recipe = format!(
            "model = {file:?}\n[data]\ntargets = {{ targets = \"targets\" }}\n\
             [loss]\nkind = \"cross_entropy\"\n\
             prediction = \"logits\"\ntarget = \"targets\"\n[optimizer]\nkind = \"adamw\"\n\
             lr = 1e-3\n[precision]\npolicy = \"{policy}\"\n[train]\nsteps = 1\n\
             [target]\ndevice = \"{target}\"\n"
        );
        let recipe = Recipe::parse(std::path::Path::new("recipe.toml"), &recipe)
            .map_err(|e| e.to_string())?;
        let options = pipeline::Options {
            shapes: [("targets".to_string(), vec![s.batch * s.context])].into(),
            ..Default::default()
        };
        let (begin, before) = (Instant::now(), worked());
        let c = pipeline::compile(&recipe, &options).map_err(|e| e.to_string())?;
        let seconds = begin.elapsed().as_secs_f64();
        let nodes = c.stages.iter().find(|(name, _)| *name == "autodiff").map_or(0, |(_, text)| {
            text.lines().filter(|l| l.trim_start().starts_with('%')).count()
        });
        let kernels = c.plan.micro.len() + c.plan.update.len();
        let busy = worked().zip(before).map_or("–".into(), |(a, b)| format!("{:.2}", a - b));
        let summary = &c.plan.summary;
        let gap = summary.bound.as_ref().map_or(0.0, |b| b.gap(summary.predicted_ns) * 100.0);
        let memory = resident().map_or("–".into(), |m| format!("{m:.0}"));
        println!(
            "{layers:6}  {nodes:6}  {kernels:7}  {seconds:7.3}  {busy:>6}  {memory:>8}  {gap:8.2} %"
        );
        println!("        {}", c.plan.summary.choice);
    }
    std::fs::remove_file(&file)?;
    Ok(())
}
