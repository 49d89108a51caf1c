//! TF32 and FP8: gradients against PyTorch's in f64 with the rounding a GPU's tensor cores do, and
//! plans for GPUs that have them.

mod common;

use common::Fixture;
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline;
use precast_plan::{DType, Kernel, Math, Plan, Precision};

const SGD: &str = "kind = \"sgd\"\nlr = 0.1";

/// Share of a plan's floating-point operations of products in a precision.
fn share(plan: &Plan, p: Precision) -> f64 {
    plan.summary.product_flops.iter().filter(|f| f.0 == p).map(|f| f.1).sum()
}

/// One step's gradients: the largest relative L2 distance from f64, and its name.
fn worst(name: &str, policy: &str) -> (Plan, f64, String) {
    let f = Fixture::open(name);
    let plan = f.compile("model.onnx", policy, SGD, true).plan;
    let (mut session, batch) = f.session(plan.clone());
    let report = session.step(std::slice::from_ref(&batch)).unwrap_or_else(|e| panic!("{e}"));
    assert!(!report.skipped && report.loss.is_finite());
    let errors = f.gradient_errors(&session);
    let (name, e) = errors.into_iter().max_by(|a, b| a.1.total_cmp(&b.1)).expect("gradients");
    (plan, e, name)
}

/// TF32 keeps 11 significand bits where bf16 keeps 8: an eighth of its error where functions are
/// smooth. Where a ReLU is on the other side of zero, a whole cotangent differs; how many there are
/// goes with the rounding error and their norm with its root, so the distance is nearly a third.
#[test]
fn gradients_in_tf32_lie_between_f32_and_bf16() {
    for (name, share_of_bf16) in [("mlp_mnist", 1.0), ("cifar_cnn", 0.6), ("tiny_gpt", 0.2)] {
        let (plan, e, at) = worst(name, "tf32");
        assert!(share(&plan, Precision::Tf32) > 0.5, "{name}: {:?}", plan.summary.product_flops);
        let (_, half, _) = worst(name, "bf16");
        assert!(e < share_of_bf16 * half, "{name} {at}: {e:.2e}, {half:.2e} in bf16");
        // f16 has as many bits.
        let (_, same, _) = worst(name, "f16");
        assert!(e < 1.2 * same, "{name} {at}: {e:.2e}, {same:.2e} in f16");
        // It did round.
        let (_, exact, _) = worst(name, "f32");
        assert!(e > 3.0 * exact, "{name}: {e:.2e} in tf32, {exact:.2e} in f32");
    }
}

/// E4M3 keeps 4 significand bits and E5M2 3, bf16 keeps 8: errors up to 16 and 32 times as large
/// where functions are smooth, and the root of that through ReLUs.
#[test]
fn gradients_in_fp8_are_as_far_as_their_bits_say() {
    for (name, times, limit) in [("mlp_mnist", 6.0, 0.25), ("tiny_gpt", 32.0, 0.125)] {
        let (plan, e, at) = worst(name, "fp8");
        assert!(share(&plan, Precision::Fp8) > 0.3, "{name}: {:?}", plan.summary.product_flops);
        let (_, half, _) = worst(name, "bf16");
        assert!(e < times * half && e < limit, "{name} {at}: {e:.2e}, {half:.2e} in bf16");
        assert!(e > half, "{name}: {e:.2e} in fp8, {half:.2e} in bf16");
        let formats = |d: DType| plan.tensors.iter().filter(|t| t.dtype == d).count();
        assert!(formats(DType::F8e4m3) > 0 && formats(DType::F8e5m2) > 0, "{name}");
    }
}

#[test]
fn twenty_steps_in_fp8_end_where_those_in_f64_do() {
    for name in ["mlp_mnist", "tiny_gpt"] {
        let f = Fixture::open(name);
        let optimizer = "kind = \"adamw\"\nlr = 1e-3\nweight_decay = 0.01";
        let plan = f.compile("model.onnx", "fp8", optimizer, false).plan;
        let (mut session, batch) = f.session(plan);
        let mut loss = 0.0;
        for _ in 0..20 {
            loss = f64::from(session.step(std::slice::from_ref(&batch)).expect("a step").loss);
        }
        let want = *f.f64s("losses20.adamw.f64").last().expect("twenty");
        assert!((loss - want).abs() < 0.05 * want, "{name}: {loss} against {want}");
    }
}

/// A GPT-shaped recipe's plan for a GPU.
fn gpu(device: &str, precision: &str) -> Result<Plan, String> {
    let f = Fixture::open("tiny_gpt");
    let (text, options) = f.recipe("model.onnx", "auto", SGD, "");
    let text = text.replace("policy = \"auto\"", precision);
    let text = format!("{text}\n[target]\ndevice = \"{device}\"\n");
    let recipe = Recipe::parse(f.folder.join("recipe.toml"), &text).map_err(|e| e.to_string())?;
    pipeline::compile(&recipe, &options).map(|c| c.plan).map_err(|e| e.to_string())
}

fn products(plan: &Plan) -> impl Iterator<Item = &precast_plan::Gemm> {
    plan.micro.iter().filter_map(|s| match &s.kernel {
        Kernel::Gemm(g) => Some(g),
        _ => None,
    })
}

#[test]
fn tf32_is_chosen_where_it_is_allowed_and_the_target_has_it() {
    let plain = gpu("h100", "policy = \"f32\"").unwrap();
    assert!(products(&plain).all(|g| g.math == Math::Exact));
    let allowed = "policy = \"f32\"\nallow = [\"tf32\"]";
    let plan = gpu("h100", allowed).unwrap();
    assert!(products(&plan).all(|g| g.math == Math::Tf32));
    assert!(plan.summary.predicted_ns < plain.summary.predicted_ns);
    let d = plan.journal.iter().find(|d| d.chosen.starts_with("tf32,tf32->")).expect("a reason");
    assert!(d.reason.contains("tf32"), "{}", d.reason);
    assert!(d.rejected[0].what == "operands in f32" && d.rejected[0].extra_ns > Some(0.0));
    // A V100 has none, and a CPU none that is faster.
    for device in ["v100", "cpu-generic"] {
        let plan = gpu(device, allowed).unwrap();
        assert!(products(&plan).all(|g| g.math == Math::Exact), "{device}");
    }
    let pinned = "policy = \"tf32\"\npins = [{ op = \"*\", dtype = \"f32\" }]";
    assert!(products(&gpu("h100", pinned).unwrap()).all(|g| g.math == Math::Exact));
    let refused = gpu("v100", "policy = \"tf32\"").unwrap_err();
    assert!(refused.contains("P0503") && refused.contains("tf32"), "{refused}");
}

#[test]
fn fp8_is_for_targets_that_have_it() {
    for device in ["v100", "a100"] {
        let refused = gpu(device, "policy = \"fp8\"").unwrap_err();
        assert!(refused.contains("P0503"), "{device}: {refused}");
    }
    let plan = gpu("h100", "policy = \"fp8\"").unwrap();
    let eight: Vec<_> =
        products(&plan).filter(|g| plan.tensors[g.a.tensor as usize].dtype.size() == 1).collect();
    assert!(!eight.is_empty());
    for g in &eight {
        // Both operands run along the summed axis, and the sums are scaled back.
        assert_eq!((g.a.strides[3], g.b.strides[2]), (1, 1));
        assert!(g.epilogue.scale.is_some());
        assert!([g.m, g.n, g.k].iter().all(|n| n % 16 == 0));
    }
    // Nothing this small pays for its scales.
    let auto = gpu("h100", "policy = \"auto\"\nallow = [\"fp8\"]").unwrap();
    assert_eq!(share(&auto, Precision::Fp8), 0.0);
}

/// A product goes by the model's own name, whatever was fused behind it.
#[test]
fn pins_name_products_as_the_model_does() {
    let chosen = |precision: &str| {
        let plan = gpu("h100", precision).unwrap();
        let of = |op: &str| plan.journal.iter().find(|d| d.op.starts_with(op)).unwrap().clone();
        (of("/h.0/c_fc/MatMul+gelu").chosen, of("/h.1/c_fc/MatMul+gelu").chosen)
    };
    let (first, second) = chosen("policy = \"bf16\"");
    assert!(first.starts_with("bf16,bf16") && second.starts_with("bf16,bf16"), "{first} {second}");
    let pin = "policy = \"bf16\"\npins = [{ op = \"/h.0/c_fc/MatMul\", dtype = \"f32\" }]";
    let (first, second) = chosen(pin);
    assert!(first.starts_with("f32,f32") && second.starts_with("bf16,bf16"), "{first} {second}");
    let slip = "policy = \"bf16\"\npins = [{ op = \"/h.0/c_fc/MatMull\", dtype = \"f32\" }]";
    let refused = gpu("h100", slip).unwrap_err();
    assert!(
        refused.contains("P0501") && refused.contains("did you mean `/h.0/c_fc/MatMul"),
        "{refused}"
    );
}
