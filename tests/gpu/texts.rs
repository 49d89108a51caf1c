//! Writes the text of every kernel that the CUDA backend makes for the test plans into a folder,
//! for `tests/gpu/nvrtc_check`: one file for each kernel and device, the prelude apart.

#[path = "../common/mod.rs"]
mod common;

use common::Fixture;
use precast_runtime::cuda::kernels::samples;
use precast_runtime::cuda::launch::Facts;
use precast_runtime::cuda::lower::{Assumed, lower};
use precast_runtime::cuda::text::{OPTIONS, PRELUDE};
use std::collections::BTreeMap;
use std::error::Error;
use std::fs;
use std::path::PathBuf;

/// A100, H200 and B200.
const DEVICES: [((u32, u32), u32, u32); 3] =
    [((8, 0), 108, 166_912), ((9, 0), 132, 232_448), ((10, 0), 148, 232_448)];

const ADAMW: &str = "kind = \"adamw\"\nlr = 1e-3";
const SGD: &str = "kind = \"sgd\"\nlr = 0.1\nmomentum = 0.9";

fn main() -> Result<(), Box<dyn Error>> {
    let folder: PathBuf = std::env::args_os().nth(1).ok_or("usage: cuda_texts FOLDER")?.into();
    let mut plans = vec![];
    for fixture in ["mlp_mnist", "cifar_cnn", "tiny_gpt"] {
        let f = Fixture::open(fixture);
        for policy in ["f32", "bf16", "f16"] {
            let options =
                [(ADAMW, "clip_norm = 1.0"), (ADAMW, "ema = 0.9"), (SGD, "accumulate = 2")];
            for (optimizer, more) in options {
                let train = format!("{more}\n[target]\ndevice = \"sm_90\"");
                plans.push(f.compile_with("model.onnx", policy, optimizer, &train, false).plan);
            }
        }
    }
    for (capability, multiprocessors, shared_per_block) in DEVICES {
        let threads_per_multiprocessor = 2048;
        let facts =
            Facts { capability, multiprocessors, shared_per_block, threads_per_multiprocessor };
        let mut texts: BTreeMap<String, String> = BTreeMap::new();
        for plan in &plans {
            for (entry, source) in lower(plan, &facts, &mut Assumed)?.texts() {
                texts.insert(entry, source.text.clone());
            }
        }
        for source in samples(&facts) {
            texts.insert(source.entry.clone(), source.text.clone());
        }
        let folder = folder.join(facts.arch());
        fs::create_dir_all(&folder)?;
        for (entry, text) in &texts {
            let text = text.strip_prefix(PRELUDE).unwrap_or(text);
            fs::write(folder.join(format!("{entry}.cu")), text)?;
        }
        println!("{}: {} kernels", facts.arch(), texts.len());
    }
    fs::write(folder.join("prelude.cuh"), PRELUDE)?;
    fs::write(folder.join("options"), OPTIONS.join("\n"))?;
    Ok(())
}
