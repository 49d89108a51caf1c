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
    let [term] = &r.loss.terms[..] else { panic!("one term") };
    assert_eq!((term.target.as_deref(), term.weight), (Some("targets"), 1.0));
    assert_eq!((r.train.normalize, r.train.on_nonfinite, r.train.max_skips), (None, None, 50));
    assert_eq!(
        term.kind,
        LossKind::CrossEntropy { ignore_index: -100, label_smoothing: 0.0, class_axis: None }
    );
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
normalize = "micro"
on_nonfinite = "skip"
max_skips = 9
clip_norm = 1
ema = 0.999
seed = 5
freeze = ["a.*"]
freeze_rows = { "e.weight" = [0, -1] }
parameters = ["freqs"]
stop_gradient = ["/Sub"]
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
fn checkpoints_that_stay_are_a_number_or_all() {
    let keep = |line: &str| {
        let text = with("steps = 20", &format!("steps = 20\n{line}"));
        Recipe::parse("r.toml", &text).map(|r| r.train.keep).map_err(|e| e.to_string())
    };
    assert_eq!(keep(""), Ok(Some(3)));
    assert_eq!(keep("keep = 1"), Ok(Some(1)));
    assert_eq!(keep("keep = 0"), Ok(None));
    assert_eq!(keep("keep = \"all\""), Ok(None));
    assert!(keep("keep = \"al\"").unwrap_err().contains("did you mean `all`?"));
    assert!(keep("keep = -1").unwrap_err().contains("P0105"));
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
        // Programs compare targets with it in 32 bits.
        (
            "kind = \"cross_entropy\"",
            "kind = \"cross_entropy\"\nignore_index = 2147483648",
            "at most 2147483647",
        ),
        ("[train]", "[train]\nlearning_rate = 3", "unknown key `learning_rate` in [train]"),
        ("[train]", "[train]\nmomentum = 3", "`momentum` is a key of [optimizer]"),
    ] {
        let found = errors(&with(old, new));
        assert!(found.contains(want), "{new}: wanted {want}\n{found}");
    }
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

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

#[test]
fn examples_know_their_data() {
    let digits = Recipe::load(root().join("examples/digits/recipe.toml")).unwrap();
    let data = digits.data_extents().unwrap().unwrap();
    assert_eq!((data.rows, data.batch), (1797, 64));
    assert_eq!(data.inputs["image"], [1, 8, 8]);
    // 1797 rows less 359 for testing are 22 whole batches.
    assert_eq!(digits.total_steps().unwrap(), 22 * 12);
    let options = digits.import_options(true).unwrap();
    assert_eq!(options.input_shapes["image"], [64, 1, 8, 8]);

    let gpt = Recipe::load(root().join("examples/bytes_gpt/recipe.toml")).unwrap();
    let files = gpt.data_files().unwrap();
    assert!(files.len() > 50 && files.is_sorted(), "{files:?}");
    assert!(files.iter().all(|f| f.extension().is_some_and(|e| e == "rs")));
    let options = gpt.import_options(true).unwrap();
    assert_eq!(options.input_shapes["input_ids"], [8, 128]);
}

#[test]
fn tables_and_folders_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("a.csv"), "p,\"q\",r\n1,2,3\n\n4,5,6\n").unwrap();
    std::fs::create_dir_all(dir.path().join("text/deep/.hidden")).unwrap();
    for (file, text) in [("text/b.txt", "12345"), ("text/deep/a.txt", "678"), ("text/c.md", "x")] {
        std::fs::write(dir.path().join(file), text).unwrap();
    }
    std::fs::write(dir.path().join("text/deep/.hidden/z.txt"), "no").unwrap();
    let load = |data: &str| {
        let from = MINIMAL.find("[data]").unwrap();
        let to = MINIMAL.find("[loss]").unwrap();
        let text = format!("{}[data]\n{data}\n{}", &MINIMAL[..from], &MINIMAL[to..]);
        Recipe::parse(dir.path().join("recipe.toml"), &text).unwrap_or_else(|e| panic!("{e}"))
    };
    let csv = "format = \"csv\"\nfile = \"a.csv\"\nbatch = 2\ntargets = { t = \"r\" }\n";
    let data = load(&format!("{csv}inputs = {{ x = \"p..q\" }}")).data_extents().unwrap().unwrap();
    assert_eq!((data.rows, &data.inputs["x"][..]), (2, &[2][..]));
    for (columns, want) in [
        ("\"q..p\"", "the range `q..p` for `x` runs backwards"),
        ("\"s\"", "no column `s` for `x`"),
        ("[\"p\", \"s\"]", "its columns are p, q, r"),
    ] {
        let error = load(&format!("{csv}inputs = {{ x = {columns} }}")).data_extents().unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
    // As spreadsheets write them: a byte order mark, quoted names with commas, a cell of two lines.
    std::fs::write(
        dir.path().join("a.csv"),
        "\u{feff}\"p\",\"x, raw\",\"note \"\"a\"\"\", r \r\n1,2,\"two\nlines\",3\r\n4,5,6,7\r\n",
    )
    .unwrap();
    for (columns, width) in [("\"p\"", 1), ("[\"x, raw\", \"p\"]", 2), ("\"p..r\"", 4)] {
        let recipe = load(&format!("{csv}inputs = {{ x = {columns} }}"));
        let data = recipe.data_extents().unwrap_or_else(|e| panic!("{e}")).unwrap();
        assert_eq!((data.rows, &data.inputs["x"][..]), (2, &[width][..]));
        let mut recipe = recipe;
        recipe.loss.terms[0].target = Some("t".into());
        assert_eq!(recipe.target_rows().unwrap()["t"], [1]);
    }
    std::fs::write(dir.path().join("a.csv"), "p,q,r\n1,2,3\n4,5\n").unwrap();
    let error = load(&format!("{csv}inputs = {{ x = \"p\" }}")).data_extents().unwrap_err();
    assert!(error.to_string().contains("line 3 has 2 cells, and the header has 3"), "{error}");
    let bytes = "format = \"bytes\"\nbatch = 1\ncontext = 2\n\
                 inputs = { x = \"bytes\" }\ntargets = { t = \"next\" }\n";
    let text = load(&format!("{bytes}files = [\"text/**/*.txt\"]"));
    assert_eq!(text.data_files().unwrap().len(), 2);
    // Eight bytes: windows at 0, 2 and 4; the one at 6 has no byte after it.
    assert_eq!(text.data_extents().unwrap().unwrap().rows, 3);
    for (files, want) in [("*.rst", "matches no file"), ("text/gone.txt", "does not exist")] {
        let error = load(&format!("{bytes}file = \"{files}\"")).data_extents().unwrap_err();
        assert!(error.to_string().contains(want), "{error}");
    }
}

/// Every number of the recipe that [`every_key_is_read`] reads, and those of its other forms.
const NUMBERS: &str = r#"
model = "m.onnx"
[data]
format = "csv"
file = "a.csv"
batch = 32
inputs = { x = "a" }
targets = { y = "b" }
scale.x = 0.5
shift.x = 0.5
split = 0.2
[[loss.terms]]
kind = "cross_entropy"
target = "y"
label_smoothing = 0.1
weight = 0.5
[[loss.terms]]
kind = "output"
outputs = ["a", "b"]
weights = [0.5, 0.5]
[optimizer]
kind = "OPTIMIZER"
lr = 1.0
weight_decay = 1e-4
[schedule]
kind = "cosine"
final_ratio = 0.1
[loss_scale]
mode = "dynamic"
init = 1024.0
growth = 4.0
backoff = 0.25
min = 1.0
max = 16777216.0
[train]
steps = 3
clip_norm = 1.0
ema = 0.9
"#;

#[test]
fn every_number_is_one_of_f32() {
    let sgd = NUMBERS.replace("OPTIMIZER", "sgd").replace("lr = 1.0", "lr = 1.0\nmomentum = 0.9");
    let adam = NUMBERS
        .replace("OPTIMIZER", "adam")
        .replace("lr = 1.0", "lr = 1.0\neps = 1e-8\nbetas = [0.9, 0.999]");
    let mut seen = std::collections::BTreeSet::new();
    for text in [sgd, adam] {
        Recipe::parse("recipe.toml", &text).unwrap_or_else(|e| panic!("{e}"));
        for (i, line) in text.lines().enumerate() {
            let Some((key, value)) = line.split_once(" = ") else { continue };
            if !value.contains(['.', 'e']) || value.contains('"') {
                continue;
            }
            seen.insert(key.to_string());
            // The last of these rounds to 1, which is what an open range ends in.
            for number in ["1e-300", "1e39", "0.99999999999", "nan", "-inf"] {
                let numbers = match value.contains('[') {
                    true => vec![format!("[{number}, 0.5]"), format!("[0.5, {number}]")],
                    false => vec![number.to_string()],
                };
                for value in numbers {
                    let lines: Vec<String> = text
                        .lines()
                        .enumerate()
                        .map(|(k, l)| if k == i { format!("{key} = {value}") } else { l.into() })
                        .collect();
                    let read = Recipe::parse("recipe.toml", &lines.join("\n"));
                    let open = ["betas", "backoff", "split", "label_smoothing", "momentum", "ema"];
                    if number == "0.99999999999" && !open.contains(&key) {
                        continue;
                    }
                    let e = read.expect_err(&format!("{key} = {value}")).to_string();
                    assert!(e.contains("P0105"), "{key} = {value}: {e}");
                    assert!(e.contains(&format!("recipe.toml:{}:", i + 1)), "{key}: {e}");
                }
            }
        }
    }
    // Every key that reads a real number is among them.
    let sources = [include_str!("sections.rs"), include_str!("loss.rs")].concat();
    let reals = sources.matches(".real(").count();
    // Both numbers of `betas` are read on one line.
    assert_eq!(reals, seen.len() + 1, "give the new key a line in NUMBERS: {seen:?}");
    let e = errors(&with("lr = 0.001", "lr = 1e-300"));
    assert!(e.contains("1e-300 is not a number of f32, in which steps are computed"), "{e}");
    let e = errors(&with("lr = 0.001", "lr = 0.1\nbetas = [0.9, 0.99999999]"));
    assert!(e.contains("0.99999999, which is 1 in f32, in which steps are computed,"), "{e}");
}

#[test]
fn rates_that_a_schedule_makes_are_numbers_too() {
    for (old, new, line) in [
        ("[train]", "[schedule]\nwarmup = 1000\n[train]", 14),
        ("[train]", "[schedule]\nkind = \"linear\"\nfinal_ratio = 1e-9\n[train]", 15),
    ] {
        let text = with(old, new).replace("lr = 0.001", "lr = 1e-36");
        let e = errors(&text);
        assert!(e.contains("P0105") && e.contains(&format!("recipe.toml:{line}:")), "{e}");
        assert!(e.contains("the learning rate is no number of f32"), "{e}");
    }
    let loss = "kind = \"mse\"\n[[loss.terms]]\nkind = \"output\"\noutputs = [\"a\"]\n\
                weights = [1e-30]\nweight = 1e-30";
    let e = errors(&with("kind = \"cross_entropy\"", loss).replace("[loss]\nkind = \"mse\"\n", ""));
    assert!(e.contains("the weight of an output is no number of f32"), "{e}");
}
