//! Gradients of several batches on a GPU: products add them where they stand.

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{Options, compile};
use precast_plan::{BinaryOp, EpilogueKind, Instr, Kernel, Plan, Role, Storage};
use std::path::Path;

fn plan(name: &str, policy: &str, device: &str, accumulate: u32) -> Plan {
    let (input, inputs, targets): (&str, Vec<usize>, Vec<usize>) = match name {
        "mlp_mnist" => ("x", vec![64, 784], vec![64]),
        "cifar_cnn" => ("x", vec![16, 3, 32, 32], vec![16]),
        _ => ("input_ids", vec![4, 32], vec![4, 32]),
    };
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/fixtures").join(name);
    let allow = if policy == "fp8" { "allow = [\"fp8\"]\n" } else { "" };
    let text = format!(
        "model = \"model_static.onnx\"\n\
         [data]\nformat = \"safetensors\"\nfile = \"batch.safetensors\"\n\
         inputs = {{ {input} = \"in.{input}\" }}\ntargets = {{ targets = \"tgt.targets\" }}\n\
         [loss]\nkind = \"cross_entropy\"\nprediction = \"logits\"\ntarget = \"targets\"\n\
         [optimizer]\nkind = \"adamw\"\nlr = 1e-3\n\
         [precision]\npolicy = \"{policy}\"\n{allow}\
         [train]\nsteps = 20\naccumulate = {accumulate}\nclip_norm = 1.0\n\
         [target]\ndevice = \"{device}\"\n"
    );
    let recipe = Recipe::parse(folder.join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
    let mut options = Options::default();
    options.shapes.insert(input.into(), inputs);
    options.shapes.insert("targets".into(), targets);
    let plan = compile(&recipe, &options).unwrap_or_else(|e| panic!("{name} {policy}: {e}")).plan;
    plan.validate().unwrap_or_else(|e| panic!("{name} {policy}: {e:?}"));
    plan
}

fn accumulator(plan: &Plan, tensor: u32) -> bool {
    let storage = &plan.tensors[tensor as usize].storage;
    matches!(storage, Storage::Persistent { role: Role::Accumulator, .. })
}

/// Products that add to an accumulator, and kernels that do nothing but add what a product made to one.
fn counts(plan: &Plan) -> (usize, Vec<&str>) {
    let (mut within, mut apart, mut made) = (0, vec![], vec![]);
    for s in &plan.micro {
        let e = match &s.kernel {
            Kernel::Gemm(g) => &g.epilogue,
            Kernel::Conv(c) => &c.epilogue,
            Kernel::Rows(r) => {
                let code = &plan.programs[r.program as usize].code;
                let adds = code
                    .iter()
                    .all(|i| matches!(i, Instr::Load { .. } | Instr::Binary(BinaryOp::Add, ..)));
                let i = &r.instances[0];
                let of_product = i.inputs.iter().any(|a| made.contains(&a.tensor));
                if adds && of_product && i.outputs.iter().all(|o| accumulator(plan, o.tensor)) {
                    apart.push(s.name.as_str());
                }
                continue;
            }
            _ => continue,
        };
        made.push(e.outputs[0].tensor);
        if accumulator(plan, e.outputs[0].tensor) {
            assert_eq!(e.kind, EpilogueKind::Accumulate, "`{}`", s.name);
            assert_eq!(e.inputs.iter().filter(|a| **a == e.outputs[0]).count(), 1, "`{}`", s.name);
            within += 1;
        }
    }
    (within, apart)
}

#[test]
fn products_add_to_the_accumulators_of_their_weights() {
    // The token table of the GPT has a gradient of two parts: its rows, and the head's product.
    let table: &[&str] = &["wte.weight.cotangent.sum+binary"];
    for (name, within, apart) in [("mlp_mnist", 2, &[][..]), ("tiny_gpt", 8, table)] {
        for policy in ["f32", "bf16", "f16", "fp8"] {
            for device in ["h100", "a100"] {
                if policy == "fp8" && device == "a100" {
                    continue;
                }
                let plan = plan(name, policy, device, 4);
                assert_eq!(counts(&plan), (within, apart.to_vec()), "{name} {policy} {device}");
            }
        }
    }
}

/// The product of a weight gradient stores its bias gradient too; what adds it to its accumulator
/// reads nothing else.
#[test]
fn bias_gradients_are_summed_beside_products() {
    let plan = plan("tiny_gpt", "bf16", "h100", 4);
    let mut vectors = vec![];
    for s in &plan.micro {
        let Kernel::Gemm(g) = &s.kernel else { continue };
        if let Some(sums) = &g.sums {
            assert_eq!(g.epilogue.kind, EpilogueKind::Accumulate, "`{}`", s.name);
            vectors.push(sums.out.tensor);
        }
    }
    assert_eq!(vectors.len(), 8, "of every product of two layers");
    for s in &plan.micro {
        let Kernel::Rows(r) = &s.kernel else { continue };
        let i = &r.instances[0];
        if i.inputs.iter().any(|a| vectors.contains(&a.tensor)) {
            assert_eq!((i.reduced, i.inputs.len(), i.outputs.len()), (0, 2, 1), "`{}`", s.name);
            assert!(accumulator(&plan, i.outputs[0].tensor), "`{}`", s.name);
        }
    }
}

/// Systems that run every operation by itself add the gradients up by themselves.
#[test]
fn an_eager_system_adds_in_kernels_of_its_own() {
    let plan = plan("mlp_mnist", "torch-autocast-bf16", "h100", 4);
    assert_eq!(counts(&plan).0, 0);
    let adds = plan.micro.iter().filter(|s| match &s.kernel {
        Kernel::Rows(r) => accumulator(&plan, r.instances[0].outputs[0].tensor),
        _ => false,
    });
    assert_eq!(adds.count(), 4, "one for every weight and bias");
}

#[test]
fn one_batch_has_no_accumulators() {
    assert_eq!(counts(&plan("mlp_mnist", "bf16", "h100", 1)), (0, vec![]));
}

/// The steps of a batch that add to accumulators, as a person reads them.
#[test]
fn steps_of_four_batches() {
    let mut out = String::new();
    for name in ["mlp_mnist", "tiny_gpt", "cifar_cnn"] {
        let text = plan(name, "bf16", "h100", 4).to_string();
        let micro = text.lines().skip_while(|l| *l != "micro:").take_while(|l| *l != "update:");
        let adds = micro.filter(|l| l.contains(".accumulated:f32)"));
        out.push_str(&format!("{name}\n"));
        out.extend(adds.map(|l| format!("{l}\n")));
    }
    insta::assert_snapshot!(out);
}
