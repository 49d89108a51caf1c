//! Every row program of real plans for a GPU: its generated kernels, run on host memory, against
//! the interpreter.

mod common;

use common::Fixture;
use precast_plan::{Kernel, Kind, Plan, Rows, TensorId, Value};
use precast_runtime::cuda::launch::{self, Facts, Lowered};
use precast_runtime::cuda::text::{PRELUDE, lower_rows};
use std::collections::BTreeSet;
use testing::{Kernels, Memory, Tolerance, difference, expected, written};

#[path = "../runtime/src/cuda/testing.rs"]
#[allow(dead_code, reason = "the runtime's own tests use the rest")]
mod testing;

const ADAMW: &str = "kind = \"adamw\"\nlr = 1e-3";

/// Two devices: one that small spaces fill, so that rows are split, and an H200.
fn devices() -> [Facts; 2] {
    let small = Facts {
        capability: (9, 0),
        multiprocessors: 4,
        shared_per_block: 232_448,
        threads_per_multiprocessor: 512,
    };
    [small.clone(), Facts { multiprocessors: 132, threads_per_multiprocessor: 2048, ..small }]
}

/// Memory in which the tensors that a step reads hold values; others of the arena may lie there too.
fn fill(plan: &Plan, rows: &Rows) -> Memory {
    let mut memory = Memory::new(plan, 0xA5);
    let read: BTreeSet<TensorId> =
        rows.instances.iter().flat_map(|i| &i.inputs).map(|a| a.tensor).collect();
    for t in read {
        for i in 0..memory.elements(t) {
            let hash = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ u64::from(t) << 20) >> 40;
            // Variances, scales and denominators are positive.
            let v = match memory.dtype(t).kind() {
                Kind::Real => Value::Real((hash % 1000) as f32 / 1000.0 + 0.05),
                Kind::Int => Value::Int((hash % 10) as i32),
                Kind::Bool => Value::Bool(hash % 4 > 0),
            };
            memory.set(t, i, v);
        }
    }
    memory
}

fn check(fixture: &str, policy: &str) {
    let train = "clip_norm = 1.0\n[target]\ndevice = \"sm_90\"";
    let f = Fixture::open(fixture);
    let plan = f.compile_with("model.onnx", policy, ADAMW, train, false).plan;
    let mut steps: Vec<(&str, &Rows, Lowered)> = vec![];
    for step in plan.micro.iter().chain(&plan.update).chain(&plan.eval) {
        let Kernel::Rows(rows) = &step.kernel else { continue };
        for facts in devices() {
            let mut lowered = Lowered::default();
            lower_rows(&plan, rows, &step.name, &facts, &mut lowered).expect("a valid step");
            // Layers that differ in addresses alone run the same text once.
            let texts = |l: &Lowered| -> Vec<String> {
                let launch = |t: &launch::Task| match t {
                    launch::Task::Launch(l) => l.source.entry.clone(),
                    other => format!("{other:?}"),
                };
                l.tasks.iter().map(launch).collect()
            };
            if !steps.iter().any(|(_, _, l)| texts(l) == texts(&lowered)) {
                steps.push((&step.name, rows, lowered));
            }
        }
    }
    assert!(steps.len() > 8, "{fixture} {policy} has only {} row programs", steps.len());
    let kernels = Kernels::compile(PRELUDE, steps.iter().map(|s| &s.2));
    for (i, (name, rows, lowered)) in steps.iter().enumerate() {
        let before = fill(&plan, rows);
        let mut got = before.clone();
        kernels.run(&mut got, lowered, i as u64).unwrap_or_else(|e| panic!("{name}: {e}"));
        let want = expected(&plan, rows, &before);
        let tolerance = Tolerance { relative: 3e-5, floor: 1.0 };
        if let Some(text) = difference(&plan, written(rows), &got, &want, tolerance) {
            panic!("{fixture} {policy}, step `{name}`: {text}");
        }
    }
}

#[test]
fn mlp() {
    check("mlp_mnist", "f16");
}

#[test]
fn cnn() {
    check("cifar_cnn", "bf16");
}

#[test]
fn gpt() {
    check("tiny_gpt", "f16");
    check("tiny_gpt", "bf16");
}
