//! Plans for GPUs that are not here: what a vendor library can run is asked of it in its own terms,
//! and everything else is few kernels.

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{Options, compile};
use precast_plan::{DType, EpilogueKind, Kernel, Plan};
use std::path::Path;

fn recipe(name: &str, policy: &str, device: &str) -> (Recipe, Options) {
    let (input, inputs, targets): (&str, Vec<usize>, Vec<usize>) = match name {
        "mlp_mnist" => ("x", vec![64, 784], vec![64]),
        "cifar_cnn" => ("x", vec![16, 3, 32, 32], vec![16]),
        _ => ("input_ids", vec![4, 32], vec![4, 32]),
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    let text = format!(
        "model = \"model_static.onnx\"\n\
         [data]\nformat = \"safetensors\"\nfile = \"batch.safetensors\"\n\
         inputs = {{ {input} = \"in.{input}\" }}\ntargets = {{ targets = \"tgt.targets\" }}\n\
         [loss]\nkind = \"cross_entropy\"\nprediction = \"logits\"\ntarget = \"targets\"\n\
         [optimizer]\nkind = \"adamw\"\nlr = 1e-3\n\
         [precision]\npolicy = \"{policy}\"\n\
         [train]\nsteps = 20\nclip_norm = 1.0\n\
         [target]\ndevice = \"{device}\"\n"
    );
    let recipe = Recipe::parse(folder.join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
    let mut options = Options::default();
    options.shapes.insert(input.into(), inputs);
    options.shapes.insert("targets".into(), targets);
    (recipe, options)
}

fn plan(name: &str, policy: &str, device: &str) -> Plan {
    let (recipe, options) = recipe(name, policy, device);
    let plan = compile(&recipe, &options).unwrap_or_else(|e| panic!("{name} {policy}: {e}")).plan;
    plan.validate().unwrap_or_else(|e| panic!("{name} {policy}: {e:?}"));
    plan
}

const NETWORKS: [&str; 3] = ["mlp_mnist", "cifar_cnn", "tiny_gpt"];

#[test]
fn updates_are_few_kernels_and_write_the_16_bit_weights() {
    for name in NETWORKS {
        for policy in ["f32", "bf16", "f16", "auto"] {
            let plan = plan(name, policy, "sm_90");
            let steps = &plan.update;
            assert!(steps.len() <= 8, "{name} {policy}: {} kernels", steps.len());
            let stored = |step: &precast_plan::Step, d: DType| match &step.kernel {
                Kernel::Rows(r) => r
                    .instances
                    .iter()
                    .any(|i| i.outputs.iter().any(|o| plan.tensors[o.tensor as usize].dtype == d)),
                _ => false,
            };
            for (format, policies) in [(DType::Bf16, "bf16"), (DType::F16, "f16")] {
                if policy == policies {
                    assert!(steps.iter().any(|s| stored(s, format)), "{name} {policy}");
                }
            }
            // Nothing in the forward and backward pass converts a weight.
            for s in &plan.micro {
                let Kernel::Rows(r) = &s.kernel else { continue };
                let copies = plan.programs[r.program as usize].code.len() == 1;
                let reads = &plan.tensors[r.instances[0].inputs[0].tensor as usize];
                let weight = matches!(
                    reads.storage,
                    precast_plan::Storage::Persistent { role: precast_plan::Role::Parameter, .. }
                );
                assert!(!(copies && weight), "{name} {policy}: `{}`", s.name);
            }
        }
    }
}

#[test]
fn products_end_in_what_the_library_knows() {
    for name in NETWORKS {
        for policy in ["f32", "bf16", "f16"] {
            let plan = plan(name, policy, "sm_90");
            for s in &plan.micro {
                let e = match &s.kernel {
                    Kernel::Gemm(g) => &g.epilogue,
                    Kernel::Conv(c) => &c.epilogue,
                    _ => continue,
                };
                let known = e.kind != EpilogueKind::Program;
                assert!(known, "{name} {policy}: `{}` ends in a program", s.name);
            }
        }
    }
}

/// cuBLASLt adds a bias in the format of the result alone; with another, its epilogue is refused.
#[test]
fn biases_are_read_in_the_format_of_the_result() {
    let mut narrow = 0;
    for name in NETWORKS {
        for policy in ["f32", "bf16", "f16", "auto", "torch-autocast-bf16"] {
            let plan = plan(name, policy, "sm_90");
            for s in plan.micro.iter().chain(&plan.eval) {
                let Kernel::Gemm(g) = &s.kernel else { continue };
                let format = |a: &precast_plan::Access| plan.tensors[a.tensor as usize].dtype;
                let e = &g.epilogue;
                let (EpilogueKind::Bias | EpilogueKind::BiasRelu | EpilogueKind::BiasGeluTanhAux) =
                    e.kind
                else {
                    continue;
                };
                let d = format(&e.outputs[0]);
                assert_eq!(format(&e.inputs[0]), d, "{name} {policy}: `{}`", s.name);
                narrow += usize::from(d != DType::F32);
            }
        }
    }
    assert!(narrow > 20, "{narrow} biases of 16 bits");
}

#[test]
fn the_gpt_keeps_its_activations_in_16_bits() {
    let plan = plan("tiny_gpt", "bf16", "sm_90");
    let mut gelus = 0;
    for s in &plan.micro {
        match &s.kernel {
            Kernel::Gemm(g) if g.epilogue.kind == EpilogueKind::BiasGeluTanhAux => {
                let formats: Vec<DType> = g
                    .epilogue
                    .outputs
                    .iter()
                    .map(|o| plan.tensors[o.tensor as usize].dtype)
                    .collect();
                assert_eq!(formats, [DType::Bf16, DType::Bf16], "`{}`", s.name);
                gelus += 1;
            }
            // Heads are split and brought together by strides.
            Kernel::Rows(r) => {
                let p = &plan.programs[r.program as usize];
                let copy = p.code.len() == 1 && p.inputs[0].dtype == p.outputs[0].dtype;
                // A result keeps the shape of the model's output.
                assert!(!copy || s.name.ends_with(".result"), "`{}` only moves", s.name);
            }
            _ => {}
        }
    }
    assert_eq!(gelus, 2);
}

#[test]
fn volta_multiplies_f16_alone() {
    let f16 = plan("mlp_mnist", "f16", "sm_70");
    assert!(f16.summary.scaled);
    let (recipe, options) = recipe("mlp_mnist", "bf16", "sm_70");
    let error = compile(&recipe, &options).unwrap_err().to_string();
    assert!(error.contains("P0503"), "{error}");
}

#[test]
fn cuda_is_this_machines_gpu() {
    let (recipe, mut options) = recipe("mlp_mnist", "bf16", "cuda:1");
    let error = compile(&recipe, &options).unwrap_err().to_string();
    assert!(error.contains("P0603") && error.contains("sm_90"), "{error}");
    options.capability = Some((8, 6));
    let plan = compile(&recipe, &options).unwrap_or_else(|e| panic!("{e}")).plan;
    assert_eq!((plan.target.name.as_str(), plan.target.device.as_str()), ("sm_80", "cuda"));
    options.capability = Some((6, 1));
    let error = compile(&recipe, &options).unwrap_err().to_string();
    assert!(error.contains("P0603") && error.contains("6.1"), "{error}");
}
