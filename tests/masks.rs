//! Attention under each way of hiding keys, some samples without any, against PyTorch's gradients in
//! f64; `tests/peers/make_masks.py` wrote the graph.

mod common;

use common::Fixture;
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline;
use precast_plan::{Kernel, Plan};

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

fn gradients(policy: &str, allowed: f64) -> Plan {
    let f = Fixture::open("masks");
    let plan = f.compile("model.onnx", policy, SGD, true).plan;
    let (mut session, batch) = f.session(plan.clone());
    session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    f.check_gradients(&session, 4 * 10 + 2, |_| allowed);
    plan
}

#[test]
fn gradients_f32() {
    let plan = gradients("f32", 1e-5);
    // All but two masks of which neither is the other's, and what something else reads first.
    let fused = |k: &Kernel| matches!(k, Kernel::AttentionGrad(_));
    assert_eq!(plan.micro.iter().filter(|s| fused(&s.kernel)).count(), 8);
}

#[test]
fn gradients_in_16_bits() {
    for policy in ["bf16", "f16"] {
        gradients(policy, 0.05);
    }
}

/// Positions of sequences too long for a mask of every query and key.
#[test]
fn long_sequences_compile_without_a_mask() {
    let f = Fixture::open("masks");
    let (text, mut options) = f.recipe("long.onnx", "f32", SGD, "");
    let recipe = Recipe::parse(f.folder.join("recipe.toml"), &text).unwrap();
    options.shapes.insert("x".into(), vec![2, 16384, 8]);
    options.shapes.insert("targets".into(), vec![2]);
    let plan = pipeline::compile(&recipe, &options).unwrap_or_else(|e| panic!("{e}")).plan;
    let causal = |k: &Kernel| matches!(k, Kernel::AttentionGrad(g) if g.forward.causal && g.forward.mask.is_none());
    assert_eq!(plan.micro.iter().filter(|s| causal(&s.kernel)).count(), 2);
    assert!(plan.arena_bytes < 64 << 20, "{} bytes", plan.arena_bytes);
    assert!(plan.to_json().len() < 1 << 20);
}

/// Forms of ONNX's own operators.
#[test]
fn attention_and_rotary_embedding_of_onnx() {
    let f = Fixture::open("attention");
    for (policy, allowed) in [("f32", 1e-5), ("bf16", 0.05)] {
        let plan = f.compile("model.onnx", policy, SGD, true).plan;
        let (mut session, batch) = f.session(plan);
        session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
        f.check_gradients(&session, 9 * 3 + 2 + 1 + 1, |_| allowed);
    }
}
