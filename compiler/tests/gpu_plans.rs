//! Plans for GPUs that are not here: what a vendor library can run is asked of it in its own terms,
//! and everything else is few kernels.

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{Options, compile};
use precast_plan::{Access, Conv, ConvKind, DType, EpilogueKind, Kernel, Plan};
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

/// A convolutional network of the test models with random weights.
fn network(file: &str, policy: &str, device: &str, batch: usize, side: usize) -> Plan {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/models");
    let text = format!(
        "model = \"{file}\"\n\
         [weights]\ninit = \"default\"\n\
         [data]\nformat = \"safetensors\"\nfile = \"batch.safetensors\"\n\
         inputs = {{ x = \"in.x\" }}\ntargets = {{ targets = \"tgt.targets\" }}\n\
         [loss]\nkind = \"cross_entropy\"\ntarget = \"targets\"\n\
         [optimizer]\nkind = \"sgd\"\nlr = 0.1\nmomentum = 0.9\n\
         [train]\nsteps = 20\n\
         [precision]\npolicy = \"{policy}\"\n\
         [target]\ndevice = \"{device}\"\n"
    );
    let recipe = Recipe::parse(folder.join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"));
    let mut options = Options::default();
    options.shapes.insert("x".into(), vec![batch, 3, side, side]);
    options.shapes.insert("targets".into(), vec![batch]);
    let plan = compile(&recipe, &options).unwrap_or_else(|e| panic!("{file} {policy}: {e}")).plan;
    plan.validate().unwrap_or_else(|e| panic!("{file} {policy}: {e:?}"));
    plan
}

/// Operands and result of a convolution, with their extents.
fn tensors(c: &Conv) -> [(&Access, [u64; 4]); 3] {
    let g = &c.geometry;
    let (x, w, y) =
        ([g.n, g.c, g.h, g.w], [g.o, g.c / g.groups, g.kh, g.kw], [g.n, g.o, g.oh, g.ow]);
    let (a, b, out) = match c.kind {
        ConvKind::Forward => (x, w, y),
        ConvKind::DataGrad => (y, w, x),
        ConvKind::FilterGrad => (x, y, w),
    };
    [(&c.a, a), (&c.b, b), (&c.epilogue.outputs[0], out)]
}

/// Whether the channels are innermost; `None` where both orders are the same.
fn last(strides: &[i64], [_, c, h, w]: [u64; 4]) -> Option<bool> {
    (c > 1 && h * w > 1).then(|| strides[1] == 1)
}

/// One line for each step of a plan that is a convolution or a pool, or that only moves elements:
/// tensors in the order of memory.
fn layouts(plan: &Plan) -> String {
    let shape = |a: &Access| {
        let t = &plan.tensors[a.tensor as usize];
        format!("{}{:?}", t.dtype, t.shape).replace(' ', "")
    };
    let list = |l: &[Access]| l.iter().map(&shape).collect::<Vec<_>>().join(" ");
    let line = |s: &precast_plan::Step| match &s.kernel {
        Kernel::Conv(c) => {
            let (a, b, y) = (shape(&c.a), shape(&c.b), list(&c.epilogue.outputs));
            Some(format!("{:?} {a} {b} -> {y}: {}", c.kind, s.name))
        }
        Kernel::MaxPool(p) => {
            Some(format!("MaxPool {} -> {}: {}", shape(&p.x), shape(&p.y), s.name))
        }
        Kernel::MaxPoolGrad(p) => {
            Some(format!("MaxPoolGrad {} -> {}: {}", shape(&p.y), shape(&p.x), s.name))
        }
        Kernel::Rows(r) => {
            let i = &r.instances[0];
            let moves = plan.programs[r.program as usize].code.len() == 1;
            moves.then(|| format!("Move {} -> {}: {}", list(&i.inputs), list(&i.outputs), s.name))
        }
        _ => None,
    };
    let mut out = String::new();
    for s in plan.micro.iter().chain(&plan.update) {
        out.extend(line(s).map(|l| l + "\n"));
    }
    out
}

#[test]
fn convolutions_on_tensor_cores_have_their_channels_last() {
    type Net = dyn Fn(&str, &str) -> Plan;
    let nets: [&Net; 2] =
        [&|policy, device| plan("cifar_cnn", policy, device), &|policy, device| {
            network("resnet18.ts.op17.train.onnx", policy, device, 32, 224)
        }];
    for (i, net) in nets.iter().enumerate() {
        for (policy, device, wanted) in [
            ("bf16", "sm_90", true),
            ("f16", "sm_70", true),
            ("torch-autocast-bf16", "sm_90", true),
            ("f32", "sm_90", false),
            ("bf16", "cpu", false),
        ] {
            let plan = net(policy, device);
            let mut checked = 0;
            for s in &plan.micro {
                let Kernel::Conv(c) = &s.kernel else { continue };
                for (a, dims) in tensors(c) {
                    if let Some(last) = last(&a.strides, dims) {
                        assert_eq!(last, wanted, "net {i} {policy} {device}: `{}`", s.name);
                        checked += 1;
                    }
                }
            }
            assert!(checked > 8, "net {i} {policy} {device}: {checked}");
        }
    }
}

#[test]
fn layouts_of_a_small_network() {
    insta::assert_snapshot!(layouts(&plan("cifar_cnn", "bf16", "sm_90")));
}

#[test]
fn layouts_of_a_residual_network() {
    let plan = network("resnet18.ts.op17.train.onnx", "bf16", "sm_90", 32, 224);
    insta::assert_snapshot!(layouts(&plan));
    // Nothing is transposed beside the batch, which is cast, and the filters, which the update reads
    // and writes.
    let moves = layouts(&plan).lines().filter(|l| l.starts_with("Move")).count();
    assert_eq!(moves, 1, "{}", layouts(&plan));
}

/// A library transposes what does not lie as it wants, and the price says so.
#[test]
fn convolutions_that_lie_otherwise_cost_transpositions() {
    let plan = plan("cifar_cnn", "bf16", "sm_90");
    let target = precast_plan::Target::shipped("sm_90").unwrap();
    for s in &plan.micro {
        let Kernel::Conv(c) = &s.kernel else { continue };
        let mut other = s.clone();
        let Kernel::Conv(o) = &mut other.kernel else { unreachable!("a clone") };
        let dims = tensors(c).map(|(_, d)| d);
        let dense = |[_, c, h, w]: [u64; 4]| [c * h * w, h * w, w, 1].map(|s| s as i64).to_vec();
        o.a.strides = dense(dims[0]);
        o.b.strides = dense(dims[1]);
        o.epilogue.outputs[0].strides = dense(dims[2]);
        let price = |s| precast_compiler::cost::step_ns(&target, s, &plan);
        assert!(price(&other) > price(s) + target.launch_ns, "`{}`", s.name);
    }
}

/// A bias gradient is stored by the product that makes its matrix's, unless a program that writes the
/// cotangent sums it on its way.
#[test]
fn bias_gradients_need_no_kernel() {
    let reduce = precast_plan::Instr::Reduce(precast_plan::ReduceOp::Sum, 0);
    for (name, policy) in [("mlp_mnist", "bf16"), ("tiny_gpt", "bf16"), ("tiny_gpt", "f32")] {
        let plan = plan(name, policy, "sm_90");
        let operands: Vec<u32> = plan
            .micro
            .iter()
            .filter_map(|s| match &s.kernel {
                Kernel::Gemm(g) if g.batch == [1, 1] => Some([g.a.tensor, g.b.tensor]),
                _ => None,
            })
            .flatten()
            .collect();
        let mut beside = 0;
        for s in &plan.micro {
            match &s.kernel {
                Kernel::Gemm(g) => beside += usize::from(g.sums.is_some()),
                Kernel::Rows(r) => {
                    let p = &plan.programs[r.program as usize];
                    let alone = p.code.len() == 2 && p.code[1] == reduce;
                    let of = r.instances[0].inputs[0].tensor;
                    assert!(!(alone && operands.contains(&of)), "{name} {policy}: `{}`", s.name);
                }
                _ => {}
            }
        }
        assert!(beside > 0, "{name} {policy}");
    }
    assert!(plan("tiny_gpt", "bf16", "cpu").micro.iter().all(|s| match &s.kernel {
        Kernel::Gemm(g) => g.sums.is_none(),
        _ => true,
    }));
}

/// Steps of a small network, forward and backward: a bias and a GELU by tanh, and what their gradients
/// became.
#[test]
fn steps_of_a_small_network_with_a_gelu() {
    let text = "graph mlp\n\nvar w1: f32[32,128] param uniform(0.2, 1)\n\
                var b1: f32[128] param zeros\nvar w2: f32[128,16] param uniform(0.2, 2)\n\nforward:\n  \
                %x = input {name=\"x\"} : f32[64,32] @x\n  \
                %w1 = var {name=\"w1\"} : f32[32,128] @w1\n  \
                %p = matmul %x, %w1 {fused=none} @fc\n  \
                %b1 = var {name=\"b1\"} : f32[128] @b1\n  \
                %r = reshape %b1 {shape=[1,128]} @fc.row\n  \
                %a = broadcast %r {shape=[64,128]} @fc.rows\n  \
                %s = binary %p, %a {f=add} @fc.bias\n  \
                %h = activate %s {act=gelu_tanh} @act\n  \
                %w2 = var {name=\"w2\"} : f32[128,16] @w2\n  \
                %logits = matmul %h, %w2 {fused=none} @head\n\nresult out.logits = %logits\n";
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("mlp.pir"), text).unwrap();
    let recipe = "model = \"mlp.pir\"\n[data]\ntargets = { targets = \"targets\" }\n\
                  [loss]\nkind = \"cross_entropy\"\nprediction = \"logits\"\ntarget = \"targets\"\n\
                  [optimizer]\nkind = \"sgd\"\nlr = 0.1\n[precision]\npolicy = \"bf16\"\n\
                  [train]\nsteps = 1\n[target]\ndevice = \"sm_90\"\n";
    let recipe = Recipe::parse(folder.path().join("recipe.toml"), recipe);
    let recipe = recipe.unwrap_or_else(|e| panic!("{e}"));
    let mut options = Options::default();
    options.shapes.insert("targets".into(), vec![64]);
    let plan = compile(&recipe, &options).unwrap_or_else(|e| panic!("{e}")).plan;
    let mut table = String::new();
    for s in &plan.micro {
        let list = |l: &[Access]| -> String {
            let one = |a: &Access| {
                let t = &plan.tensors[a.tensor as usize];
                format!(" {}:{}{:?}", t.name, t.dtype, t.shape).replace(", ", ",")
            };
            l.iter().map(one).collect()
        };
        table += &match &s.kernel {
            Kernel::Gemm(g) => {
                let operands = list(&[g.a.clone(), g.b.clone()]);
                let (e, sums) = (&g.epilogue, g.sums.iter().map(|s| s.out.clone()));
                let sums = list(&sums.collect::<Vec<_>>());
                let (inputs, outputs) = (list(&e.inputs), list(&e.outputs));
                format!("product{operands}, {:?}{inputs} ->{outputs}{sums}\n", e.kind)
            }
            Kernel::Rows(r) => {
                let i = &r.instances[0];
                format!("rows{} ->{}\n", list(&i.inputs), list(&i.outputs))
            }
            other => format!("{other:?}\n"),
        };
    }
    insta::assert_snapshot!(table);
}

/// The gradient of a GELU by tanh leaves the product that makes its cotangent, which is not stored;
/// the bias gradient leaves the product of the weight gradient, in f32.
#[test]
fn the_derivative_of_a_gelu_ends_its_product() {
    let ends = |plan: &Plan| -> Vec<Vec<DType>> {
        let format = |a: &Access| plan.tensors[a.tensor as usize].dtype;
        let of = |s: &precast_plan::Step| match &s.kernel {
            Kernel::Gemm(g) if g.epilogue.kind == EpilogueKind::GeluTanhGrad => {
                let (e, place) =
                    (&g.epilogue, |a: &Access| &plan.tensors[a.tensor as usize].storage);
                // The library is not known to write over what it reads.
                assert_ne!(place(&e.inputs[0]), place(&e.outputs[0]), "`{}`", s.name);
                let all = [&g.a, &g.b].into_iter().chain(&e.inputs).chain(&e.outputs);
                Some(all.map(format).collect())
            }
            _ => None,
        };
        plan.micro.iter().filter_map(of).collect()
    };
    for (policy, d) in [("bf16", DType::Bf16), ("f16", DType::F16)] {
        let plan = plan("tiny_gpt", policy, "sm_90");
        assert_eq!(ends(&plan), [[d; 4]; 2], "{policy}");
        let tanh = |i: &precast_plan::Instr| {
            matches!(i, precast_plan::Instr::Unary(precast_plan::UnaryOp::Tanh, _))
        };
        for s in &plan.micro {
            let Kernel::Rows(r) = &s.kernel else { continue };
            let code = &plan.programs[r.program as usize].code;
            assert!(!code.iter().any(tanh), "{policy}: `{}`", s.name);
        }
        assert_eq!(plan.micro, self::plan("tiny_gpt", policy, "sm_90").micro, "{policy}");
    }
    // The library's derivative is for 16 bits; other systems' plans have theirs on their own.
    for policy in ["f32", "torch-autocast-bf16"] {
        assert_eq!(ends(&plan("tiny_gpt", policy, "sm_90")), [[DType::F32; 0]; 0], "{policy}");
    }
}

/// A network with 131 classes, whose rows of 16 bits do not begin on boundaries of 16 bytes.
fn of_131_classes(device: &str) -> Plan {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = "graph odd
var w: f32[40,131] param uniform(0.2, 1)
forward:
  %x = input {name=\"x\"} : f32[96,40]
  %w = var {name=\"w\"} : f32[40,131] @w
  %y = matmul %x, %w {fused=none} @fc
result out.logits = %y
";
    std::fs::write(folder.path().join("model.pir"), text).expect("written");
    let recipe = format!(
        "model = \"model.pir\"\n[data]\ntargets = {{ targets = \"targets\" }}\n\
         [loss]\nkind = \"cross_entropy\"\nprediction = \"logits\"\ntarget = \"targets\"\n\
         [optimizer]\nkind = \"sgd\"\nlr = 0.1\n[precision]\npolicy = \"bf16\"\n\
         [train]\nsteps = 1\n[target]\ndevice = \"{device}\"\n"
    );
    let recipe = Recipe::parse(folder.path().join("recipe.toml"), &recipe);
    let mut options = Options::default();
    options.shapes.insert("targets".into(), vec![96]);
    let plan = compile(&recipe.unwrap_or_else(|e| panic!("{e}")), &options);
    let plan = plan.unwrap_or_else(|e| panic!("{e}")).plan;
    plan.validate().unwrap_or_else(|e| panic!("{e:?}"));
    plan
}

#[test]
fn rows_of_odd_length_begin_on_boundaries() {
    // Logits and their cotangent, which three products write and read.
    let wide = |plan: &Plan| {
        plan.tensors.iter().filter(|t| t.shape == [96, 136] && t.dtype == DType::Bf16).count()
    };
    let plan = of_131_classes("sm_90");
    assert_eq!(wide(&plan), 2, "{plan:?}");
    // The cotangent takes the place of the logits, gaps included.
    let gaps = plan.tensors.iter().filter(|t| t.shape == [96, 136]);
    let places: Vec<_> = gaps.map(|t| format!("{:?}", t.storage)).collect();
    assert_eq!(places[0], places[1]);
    let mut seen = 0;
    for s in &plan.micro {
        let Kernel::Gemm(g) = &s.kernel else { continue };
        for a in [&g.a, &g.b].into_iter().chain(&g.epilogue.outputs) {
            let t = &plan.tensors[a.tensor as usize];
            let odd = a.strides.iter().any(|x| *x > 1 && x % (16 / t.dtype.size() as i64) != 0);
            // The weight and its gradient are the model's own, and dense.
            assert!(!odd || t.shape == [40, 131], "`{}` `{}` {:?}", s.name, t.name, a.strides);
            seen += usize::from(t.shape == [96, 136]);
        }
    }
    assert!(seen >= 2, "{seen}");
    assert!(plan.tensors.iter().any(|t| t.shape == [40, 131]));
    assert_eq!(wide(&of_131_classes("cpu-generic")), 0);
}
