//! `precast doctor`: what this machine offers, and what this version can use of it.

use crate::failure::Outcome;
use crate::listing::bytes;
use precast_runtime::cuda::{self, Report};
use serde_json::json;

/// Report devices, instruction sets and memory.
#[derive(clap::Args)]
pub struct Args {}

/// Instruction sets that matter to training kernels, and whether the processor and the operating
/// system both offer them.
#[cfg(target_arch = "x86_64")]
fn instruction_sets() -> Vec<(&'static str, bool)> {
    use std::arch::is_x86_feature_detected as has;
    vec![
        ("avx2", has!("avx2")),
        ("fma", has!("fma")),
        ("f16c", has!("f16c")),
        ("avx512f", has!("avx512f")),
        ("avx512bw", has!("avx512bw")),
        ("avx512vnni", has!("avx512vnni")),
        ("avx512bf16", has!("avx512bf16")),
    ]
}

#[cfg(target_arch = "aarch64")]
fn instruction_sets() -> Vec<(&'static str, bool)> {
    use std::arch::is_aarch64_feature_detected as has;
    vec![
        ("neon", has!("neon")),
        ("fp16", has!("fp16")),
        ("bf16", has!("bf16")),
        ("sve", has!("sve")),
    ]
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn instruction_sets() -> Vec<(&'static str, bool)> {
    vec![]
}

/// The processor's name for itself, and its data caches as (level, bytes).
#[cfg(target_arch = "x86_64")]
fn processor() -> (Option<String>, Vec<(u8, u64)>) {
    let cpuid = raw_cpuid::CpuId::new();
    let name = cpuid.get_processor_brand_string().map(|s| s.as_str().trim().to_string());
    let mut caches: Vec<(u8, u64)> = cpuid
        .get_cache_parameters()
        .into_iter()
        .flatten()
        .filter(|c| c.cache_type() != raw_cpuid::CacheType::Instruction)
        .map(|c| {
            let lines = c.associativity() * c.physical_line_partitions() * c.coherency_line_size();
            (c.level(), lines as u64 * c.sets() as u64)
        })
        .collect();
    if caches.is_empty() {
        // AMD reports its caches under other leaves.
        if let Some(l1) = cpuid.get_l1_cache_and_tlb_info() {
            caches.push((1, u64::from(l1.dcache_size()) << 10));
        }
        if let Some(l) = cpuid.get_l2_l3_cache_and_tlb_info() {
            caches.push((2, u64::from(l.l2cache_size()) << 10));
            caches.push((3, u64::from(l.l3cache_size()) << 19));
        }
    }
    caches.retain(|(_, size)| *size > 0);
    (name, caches)
}

#[cfg(not(target_arch = "x86_64"))]
fn processor() -> (Option<String>, Vec<(u8, u64)>) {
    (None, vec![])
}

/// Total and available memory, where the system says so in `/proc/meminfo`.
fn memory() -> Option<(u64, u64)> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':'))?;
        Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? << 10)
    };
    Some((field("MemTotal")?, field("MemAvailable")?))
}

pub fn run(_: &Args, json: bool) -> Outcome {
    let (name, caches) = processor();
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let sets = instruction_sets();
    let memory = memory();
    let gpus = cuda::report();
    if json {
        let sets: serde_json::Map<_, _> =
            sets.iter().map(|(name, has)| (name.to_string(), json!(has))).collect();
        let report = json!({
            "ok": true,
            "version": env!("CARGO_PKG_VERSION"),
            "cpu": { "name": name, "arch": std::env::consts::ARCH, "threads": threads,
                     "caches": caches.iter().map(|(level, size)| json!({ "level": level,
                     "bytes": size })).collect::<Vec<_>>(), "instruction_sets": sets },
            "memory": memory.map(|(total, available)| json!({ "total_bytes": total,
                       "available_bytes": available })),
            "cuda": gpu_json(&gpus),
            "backends": if gpus.usable() { vec!["cpu", "cuda"] } else { vec!["cpu"] },
        });
        say!("{report}");
        return Ok(());
    }
    say!("precast      {}", env!("CARGO_PKG_VERSION"));
    let name = name.unwrap_or_else(|| "name unknown".into());
    say!("processor    {name} ({}), {threads} threads", std::env::consts::ARCH);
    let caches: Vec<String> =
        caches.iter().map(|(level, size)| format!("L{level} {}", bytes(*size))).collect();
    if !caches.is_empty() {
        say!("caches       {}", caches.join(", "));
    }
    let pick = |want: bool| {
        let names: Vec<&str> = sets.iter().filter(|(_, h)| *h == want).map(|(n, _)| *n).collect();
        if names.is_empty() { "none".to_string() } else { names.join(" ") }
    };
    say!("has          {}", pick(true));
    say!("lacks        {}", pick(false));
    match memory {
        Some((total, free)) => say!("memory       {}, {} available", bytes(total), bytes(free)),
        None => say!("memory       unknown"),
    }
    show_gpus(&gpus)?;
    say!("backends     {}", if gpus.usable() { "cpu, cuda" } else { "cpu" });
    Ok(())
}

fn gpu_json(gpus: &Report) -> serde_json::Value {
    let libraries: serde_json::Map<_, _> = gpus
        .libraries
        .iter()
        .map(|(name, found)| {
            let value = match found {
                Ok(l) => json!({ "version": l.version, "path": l.path }),
                Err(e) => json!({ "error": e.message, "help": e.help }),
            };
            (name.to_string(), value)
        })
        .collect();
    let devices = match &gpus.devices {
        Ok(list) => list
            .iter()
            .zip(&gpus.unfit)
            .map(|(d, unfit)| {
                let (major, minor) = d.facts.capability;
                json!({ "device": format!("cuda:{}", d.ordinal), "name": d.name,
                        "compute_capability": format!("{major}.{minor}"),
                        "multiprocessors": d.facts.multiprocessors, "memory_bytes": d.memory,
                        "usable": unfit.is_none(),
                        "error": unfit.as_ref().map(|e| &e.message) })
            })
            .collect(),
        Err(e) => json!({ "error": e.message, "help": e.help }),
    };
    json!({ "devices": devices, "libraries": libraries })
}

fn show_gpus(gpus: &Report) -> Outcome {
    match &gpus.devices {
        Ok(list) => {
            for (d, unfit) in list.iter().zip(&gpus.unfit) {
                let (major, minor) = d.facts.capability;
                say!(
                    "cuda:{:<7} {}, compute capability {major}.{minor}, {} multiprocessors, {}",
                    d.ordinal,
                    d.name,
                    d.facts.multiprocessors,
                    bytes(d.memory)
                );
                if let Some(e) = unfit {
                    say!("             cannot be used: {}", e.message);
                }
            }
        }
        Err(e) => say!("cuda         {}", e.message),
    }
    for (name, found) in &gpus.libraries {
        match found {
            Ok(l) => say!("{name:<12} {} in {}", l.version, l.path.display()),
            Err(e) => {
                say!("{name:<12} {}", e.message);
                let source = e.help.as_ref().and_then(|h| h.split_once("; "));
                if let Some((_, source)) = source {
                    say!("             {source}");
                }
            }
        }
    }
    // Every missing library was looked for in the same places.
    let first = gpus.libraries.iter().find_map(|(_, found)| found.as_ref().err()?.help.as_ref());
    if let Some(help) = first {
        say!("             {}", help.split("; ").next().unwrap_or(help));
    }
    Ok(())
}
