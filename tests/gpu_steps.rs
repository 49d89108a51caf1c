//! Every kernel of the fixtures' plans on a real GPU, step by step beside the CPU backend. Without a
//! GPU the tests say so and pass; `tests/cuda_software.rs` makes the same comparison on the software
//! device.

mod common;
mod steps;

use common::Fixture;
use precast_runtime::cuda;
use std::io::Write;
use std::sync::{Mutex, PoisonError};

/// Past the test harness, which holds back what a test prints unless it fails.
fn say(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn compare(name: &str, policy: &str) {
    // One at a time: each takes every core for the CPU's side.
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let missing = match cuda::devices() {
        Ok(devices) if devices.is_empty() => Some("the driver lists none".to_string()),
        Ok(_) => None,
        Err(e) => Some(e.to_string()),
    };
    if let Some(why) = missing {
        return say(&format!(
            "SKIPPED: no GPU ({name} {policy}): {}",
            why.lines().next().unwrap_or("")
        ));
    }
    let f = Fixture::open(name);
    let train = "clip_norm = 1.0\nema = 0.9";
    let adamw = "kind = \"adamw\"\nlr = 1e-3\nweight_decay = 0.01";
    let plan = f.compile_gpu("model_static.onnx", policy, adamw, train, false).plan;
    let compared = steps::compare(&f, &plan).unwrap_or_else(|e| panic!("{name} {policy}: {e}"));
    assert_eq!(compared.steps, plan.micro.len() + plan.update.len());
    let (part, place) = compared.worst;
    let (steps, tensors) = (compared.steps, compared.tensors);
    say(&format!(
        "{name} {policy}: {steps} steps, {tensors} tensors, at most {part:.2} of what is allowed ({place})"
    ));
}

#[test]
fn gpu_mlp_steps() {
    ["f32", "bf16", "f16"].into_iter().for_each(|policy| compare("mlp_mnist", policy));
}

#[test]
fn gpu_cnn_steps() {
    ["f32", "bf16", "f16"].into_iter().for_each(|policy| compare("cifar_cnn", policy));
}

#[test]
fn gpu_gpt_steps() {
    ["f32", "bf16", "f16"].into_iter().for_each(|policy| compare("tiny_gpt", policy));
}
