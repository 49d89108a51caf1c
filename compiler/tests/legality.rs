//! Which values f16 does not hold where nothing was measured, and why: `legality/*.pir`, each with
//! the reasons of every operation of forward and backward pass.

use precast_compiler::diagnostic::Result;
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline::{self, Compiled};
use precast_compiler::precision::casts::is_cast;
use precast_plan::DType;
use std::fmt::Write;
use std::path::Path;

fn compile(model: &Path, policy: &str, device: &str) -> Compiled {
    compile_with(model, policy, device, "").unwrap_or_else(|e| panic!("{policy}: {e}"))
}

/// `precision` holds further lines of the section `[precision]`.
fn compile_with(model: &Path, policy: &str, device: &str, precision: &str) -> Result<Compiled> {
    let text = format!(
        "model = {model:?}\n[data]\ntargets = {{ targets = \"targets\" }}\n\
         [loss]\nkind = \"cross_entropy\"\nprediction = \"logits\"\ntarget = \"targets\"\n\
         [optimizer]\nkind = \"sgd\"\nlr = 0.1\n[precision]\npolicy = \"{policy}\"\n{precision}\n\
         [train]\nsteps = 1\n[target]\ndevice = \"{device}\"\n"
    );
    let recipe = Recipe::parse(model.with_file_name("recipe.toml"), &text);
    let recipe = recipe.unwrap_or_else(|e| panic!("{e}"));
    let shapes = [("targets".to_string(), vec![512])].into();
    let options = pipeline::Options { shapes, ..Default::default() };
    pipeline::compile(&recipe, &options)
}

/// Formats of an operation's results and the reason, of all in the journal but the loss's and the update's.
fn reasons(c: &Compiled) -> String {
    let mut out = String::new();
    let update = |op: &str| {
        [
            "machine.",
            "grad_norm",
            "one",
            "zero",
            "lr.",
            "appl",
            "counts",
            "begun",
            "overflow",
            "loss",
            "skipped",
        ]
        .iter()
        .any(|p| op.starts_with(p))
            || op.ends_with(".update")
            || op.contains(".grad_stats")
    };
    for d in c.plan.journal.iter().filter(|d| !is_cast(d) && !update(&d.op)) {
        writeln!(out, "{}: {}, {}", d.op, d.chosen, d.reason).expect("a String");
    }
    out
}

#[test]
fn reasons_in_f16() {
    insta::glob!("legality/*.pir", |path| {
        let c = compile(path, "f16", "sm_80");
        insta::with_settings!({ snapshot_path => "snapshots", prepend_module_to_snapshot => true, omit_expression => true }, {
            insta::assert_snapshot!(reasons(&c));
        });
    });
}

/// Results that the graphs above keep in f32 are f32 in whatever plan is chosen, on every target.
#[test]
fn no_target_tempts_auto_to_store_them() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/legality");
    let kept = [
        ("normalize.pir", &["square", "norm", "clip", "quotient"][..]),
        (
            "rms.pir",
            &["square", "mean", "var", "rstd", "clamp", "clamp.2", "clamp.3", "half", "small"],
        ),
    ];
    let mut narrow = 0;
    for (file, ops) in kept {
        for device in ["v100", "sm_80", "cpu-generic"] {
            let c = compile(&folder.join(file), "auto", device);
            for d in &c.plan.journal {
                let result = d.chosen.rsplit("->").next().unwrap_or_default();
                let f16 = result.contains("f16") && !result.contains("bf16");
                narrow += usize::from(f16);
                assert!(
                    !f16 || !ops.contains(&d.op.as_str()),
                    "{file} {device}: {} {}",
                    d.op,
                    d.chosen
                );
            }
            let stored = c.plan.tensors.iter().filter(|t| t.dtype == DType::F16);
            for t in stored {
                assert!(
                    !ops.contains(&t.name.as_str()),
                    "{file} {device}: `{}` is stored in f16",
                    t.name
                );
            }
        }
    }
    assert!(narrow > 0, "no plan has f16, so nothing was tested");
}

/// A product of cotangents that are divided by a guard which is 0 in f16 is f32, and no pin makes it
/// another; behind a ReLU, whose derivative is 0 where the guard acts, it may be f16.
#[test]
fn products_of_unbounded_cotangents_are_f32() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/legality");
    let operands = |c: &Compiled| -> String {
        let d = c.plan.journal.iter().find(|d| d.op == "fc.grad.3").expect("the product is there");
        d.chosen.split("->").next().unwrap_or_default().to_string()
    };
    assert_eq!(operands(&compile(&folder.join("normalize.pir"), "f16", "v100")), "f16,f16");
    assert_eq!(operands(&compile(&folder.join("l2.pir"), "f16", "v100")), "f32,f32");
    assert_eq!(operands(&compile(&folder.join("l2.pir"), "bf16", "sm_80")), "bf16,bf16");
    let pin = "pins = [{ op = \"fc.grad.3\", dtype = \"f16\" }]";
    let errors = compile_with(&folder.join("l2.pir"), "f16", "v100", pin).expect_err("not legal");
    let text = errors.to_string();
    assert!(text.contains("P0501") && text.contains("`eps` 1e-12 is 0 in f16"), "{text}");
}
