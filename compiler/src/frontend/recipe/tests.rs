use super::*;

const MINIMAL: &str = r#"
model = "model.onnx"
[data]
format = "safetensors"
file = "batch.safetensors"
inputs = { x = "in.x" }
targets = { targets = "tgt.targets" }
[loss]
kind = "cross_entropy"
[optimizer]
kind = "adamw"
lr = 0.001
[train]
steps = 20
"#;

fn errors(text: &str) -> String {
    Recipe::parse("recipe.toml", text).expect_err("the recipe is wrong").to_string()
}

/// The minimal recipe with one line replaced.
fn with(old: &str, new: &str) -> String {
    assert!(MINIMAL.contains(old), "{old}");
    MINIMAL.replace(old, new)
}

#[test]
fn defaults_are_pytorchs() {
    let r = Recipe::parse("folder/recipe.toml", MINIMAL).unwrap();
    assert_eq!(r.optimizer.kind, OptimizerKind::Adamw { betas: [0.9, 0.999], eps: 1e-8 });
    assert_eq!(r.optimizer.weight_decay, 0.01);
    assert_eq!(
        r.loss_scale,
        LossScale {
            mode: LossScaleMode::Auto,
            init: 65536.0,
            growth: 2.0,
            backoff: 0.5,
            interval: 2000,
            hysteresis: 1,
            min: None,
            max: None,
        }
    );
    assert_eq!(r.loss.target, "targets");
    assert_eq!(r.loss.kind, LossKind::CrossEntropy { ignore_index: -100, label_smoothing: 0.0 });
    assert_eq!(r.precision.policy, Policy::Auto);
    assert_eq!(r.model_path(), Path::new("folder/model.onnx"));
    assert_eq!(r.out_dir(), Path::new("folder/trained"));
}

#[test]
fn every_key_is_read() {
    let text = r#"
model = "m.onnx"
[weights]
file = "w.safetensors"
init = "default"
seed = 7
[data]
format = "csv"
files = ["a.csv", "b.csv"]
header = false
batch = 32
dims = { T = 16 }
inputs = { x = ["c0", "c1"], z = "c2..c9" }
targets = { y = "label" }
scale = { x = 0.0625 }
shift = { x = -1 }
shuffle = false
split = 0.2
[loss]
kind = "mse"
prediction = "out"
target = "y"
[optimizer]
kind = "sgd"
lr = 1
momentum = 0.9
nesterov = true
weight_decay = 1e-4
no_decay = "bias_and_norm"
[schedule]
kind = "cosine"
warmup = 10
steps = 100
final_ratio = 0.1
[precision]
policy = "bf16"
pins = [{ op = "*/LayerNorm*", dtype = "f32" }]
[loss_scale]
mode = "dynamic"
init = 1024
growth = 4
backoff = 0.25
interval = 100
hysteresis = 2
min = 1
max = 16777216
[train]
epochs = 3
accumulate = 2
clip_norm = 1
ema = 0.999
seed = 5
log = "log.jsonl"
checkpoint = 50
out = "result"
[target]
device = "sm_90"
table = "sm_90.toml"
"#;
    let r = Recipe::parse("recipe.toml", text).unwrap();
    insta::assert_json_snapshot!(r);
}

#[test]
fn a_minimal_recipe_may_have_no_data_source() {
    let text = MINIMAL.replace("format = \"safetensors\"\nfile = \"batch.safetensors\"\n", "");
    assert_eq!(Recipe::parse("r.toml", &text).unwrap().data.source, None);
}

#[test]
fn all_errors_are_reported_in_text_order() {
    let text = r#"
model = 3
wieghts = "w"
[data]
format = "safetensor"
batchs = 3
scale = { q = 1 }
lr = 3
[loss]
kind = "mse"
ignore_index = 4
[optimizer]
kind = "adam"
lr = -1
momentum = 0.9
betas = [0.9, 1.0]
[precision]
polcy = "bf16"
pins = [{ op = "[", dtype = "f64" }]
[train]
steps = 3
epochs = 4
seed = -1
"#;
    insta::assert_snapshot!(errors(text));
}

#[test]
fn syntax_errors_have_a_place() {
    insta::assert_snapshot!(errors("model = \"a\n[data\n"));
}

#[test]
fn what_does_not_apply_is_an_error_not_ignored() {
    for (old, new, want) in [
        ("steps = 20", "", "`steps` is missing"),
        ("lr = 0.001", "", "`lr` is missing"),
        ("lr = 0.001", "lr = 0", "0 is not greater than 0"),
        ("lr = 0.001", "lr = nan", "is not finite"),
        ("lr = 0.001", "lr = inf", "is not finite"),
        ("kind = \"adamw\"", "kind = \"adamv\"", "did you mean `adamw`?"),
        ("kind = \"adamw\"", "kind = \"sgd\"\nnesterov = true", "needs a momentum"),
        ("file = \"batch.safetensors\"", "", "`file` is missing"),
        ("format = \"safetensors\"", "format = \"bytes\"", "`context` is missing"),
        ("format = \"safetensors\"", "format = \"csv\"", "`batch` is missing"),
        ("format = \"safetensors\"", "", "`format` is missing"),
        ("format = \"safetensors\"", "format = \"safetensors\"\nheader = true", "does not apply"),
        ("targets = { targets = \"tgt.targets\" }", "", "`target` is missing"),
        ("steps = 20", "steps = 20\n[loss_scale]\nmode = \"off\"\ninit = 3", "does not apply"),
        ("steps = 20", "steps = 20\n[loss_scale]\nmax = 4", "outside `min` and `max`"),
        ("steps = 20", "steps = 20\n[schedule]\nsteps = 4", "a constant rate has no end"),
        ("steps = 20", "steps = 99999999999999999999", "64-bit"),
        ("[train]", "[train]\nlearning_rate = 3", "unknown key `learning_rate` in [train]"),
        ("[train]", "[train]\nmomentum = 3", "`momentum` is a key of [optimizer]"),
    ] {
        let found = errors(&with(old, new));
        assert!(found.contains(want), "{new}: wanted {want}\n{found}");
    }
}

#[test]
fn schedules_rise_and_fall() {
    let s = |kind, warmup, steps, final_ratio| Schedule { kind, warmup, steps, final_ratio };
    let constant = s(ScheduleKind::Constant, 4, None, 1.0);
    let rates: Vec<f64> = (0..6).map(|i| constant.ratio(i, 6)).collect();
    assert_eq!(rates, [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]);
    let cosine = s(ScheduleKind::Cosine, 0, Some(10), 0.1);
    assert_eq!(cosine.ratio(0, 99), 1.0);
    assert!((cosine.ratio(5, 99) - 0.55).abs() < 1e-12);
    assert!((cosine.ratio(10, 99) - 0.1).abs() < 1e-12);
    assert!((cosine.ratio(50, 99) - 0.1).abs() < 1e-12);
    let linear = s(ScheduleKind::Linear, 2, None, 0.0);
    assert_eq!(linear.ratio(7, 12), 0.5);
    // A run shorter than its warm-up never divides by zero.
    assert_eq!(linear.ratio(2, 1), 1.0);
}

#[test]
fn mutated_recipes_never_panic() {
    let mut state = 1u64;
    let mut next = move |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for _ in 0..2000 {
        let mut bytes = MINIMAL.as_bytes().to_vec();
        for _ in 0..=next(6) {
            let at = next(bytes.len());
            match next(3) {
                0 => bytes[at] = b"\"[]{}=.,#\n-e9x_ "[next(16)],
                1 => drop(bytes.remove(at)),
                _ => bytes.insert(at, b"\"[]{}=.,#\n-e9x_ "[next(16)]),
            }
        }
        // Rendering is part of what must not panic.
        if let Err(e) = Recipe::parse("r.toml", &String::from_utf8(bytes).unwrap()) {
            assert!(!e.to_string().is_empty());
        }
    }
}
