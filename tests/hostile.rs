//! Files that were cut or damaged: whatever their bytes, an error with a place or a run, never a
//! panic. The damage is drawn from fixed seeds.

use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::pipeline;
use precast_plan::Plan;
use precast_runtime::data::{Batch, Columns, DataSource, DataSpec, Dataset, Field, Wanted};
use precast_runtime::{ModelWeights, Options, Session};
use std::path::Path;

#[path = "xtask/src/fuzz/mutate/bytes.rs"]
mod bytes;
#[path = "xtask/src/fuzz/mutate/rng.rs"]
#[allow(dead_code, reason = "the fuzzer draws more")]
mod rng;
#[path = "cli/small.rs"]
mod small;

use rng::Rng;

/// Cuts, overwrites, repeats or removes some bytes, as the fuzzer does, or puts a number that readers break
/// at in the place of a digit.
fn damage(whole: &[u8], seed: u64) -> Vec<u8> {
    const NUMBERS: &[&[u8]] =
        &[b"-1", b"0", b"9223372036854775807", b"4294967296", b"1e400", b"NaN", b"3.5"];
    let mut rng = Rng::new(seed);
    let mut out = whole.to_vec();
    for _ in 0..=rng.below(3) {
        let digits: Vec<usize> = (0..out.len()).filter(|i| out[*i].is_ascii_digit()).collect();
        let at = rng.of(&digits).copied();
        match at.filter(|_| rng.one_in(8)) {
            Some(at) => {
                let number = NUMBERS[rng.below(NUMBERS.len())];
                drop(out.splice(at..=at, number.iter().copied()));
            }
            None => out = bytes::mutate(&out, whole, &mut rng),
        }
    }
    out
}

/// Loads and compiles the recipe of a folder, and takes a step of it.
fn attempt(folder: &Path) -> Result<(), String> {
    let text = |e: precast_compiler::Diagnostics| {
        assert!(e.0.iter().all(|d| !d.code.is_empty()));
        e.to_string()
    };
    let recipe = Recipe::load(folder.join("recipe.toml")).map_err(text)?;
    let import = recipe.import_options(true).map_err(text)?;
    let mut bound = recipe.clone();
    bound.data.dims = import.dims.into_iter().collect();
    let options = pipeline::Options {
        shapes: import.input_shapes,
        total_steps: Some(10),
        ..Default::default()
    };
    let plan = pipeline::compile(&bound, &options).map_err(text)?.plan;
    run(plan, &recipe, folder).map_err(|e| e.to_string())
}

/// One step of a plan on the recipe's data, where it is of a size that a test may have.
fn run(plan: Plan, recipe: &Recipe, folder: &Path) -> precast_runtime::Result<()> {
    if plan.arena_bytes.max(plan.persistent_bytes) > 1 << 26 || plan.accumulate > 4 {
        return Ok(());
    }
    let files = recipe.data_files().unwrap_or_default();
    let source = match recipe.data.source {
        Some(precast_compiler::frontend::recipe::DataSource::Csv { header, .. }) => {
            DataSource::Csv { files, header }
        }
        _ => DataSource::Safetensors { files },
    };
    let fields = recipe.data.inputs.iter().chain(&recipe.data.targets).map(|(input, columns)| {
        use precast_compiler::frontend::recipe::Columns as C;
        let columns = match columns {
            C::Name(n) => Columns::Name(n.clone()),
            C::List(n) => Columns::List(n.clone()),
        };
        Field { input: input.clone(), columns, scale: 1.0, shift: 0.0 }
    });
    let spec = DataSpec {
        source,
        batch: recipe.data.batch.map(|b| b as u64),
        fields: fields.collect(),
        shuffle: recipe.data.shuffle,
        seed: recipe.train.seed,
        split: recipe.data.split,
        allow_nonfinite: false,
    };
    let weights = ModelWeights::for_plan(&plan, folder, None)?;
    let options = Options { threads: 1, seed: recipe.train.seed, ..Options::default() };
    let mut session = Session::new(plan, &weights, &options)?;
    let mut data = Dataset::open(&spec, &session.wanted())?;
    session.step_from(|| data.next_batch())?;
    Ok(())
}

/// Damages `file` of the folder with each seed and tries; gives how many of them ran all the same.
fn storm(folder: &Path, file: &str, seeds: std::ops::Range<u64>) -> usize {
    let path = folder.join(file);
    let whole = std::fs::read(&path).expect("the folder is complete");
    let mut ran = 0;
    for seed in seeds {
        std::fs::write(&path, damage(&whole, seed)).expect("written");
        // Printed where a panic follows.
        println!("{file}, seed {seed}");
        ran += usize::from(attempt(folder).is_ok());
    }
    std::fs::write(&path, whole).expect("written");
    ran
}

fn small_folder() -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).unwrap();
    write("model.pir", small::MODEL);
    write("recipe.toml", small::RECIPE);
    write("data.csv", &small::table(24));
    attempt(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    dir
}

#[test]
fn damaged_texts_are_errors() {
    let dir = small_folder();
    for file in ["recipe.toml", "model.pir", "data.csv"] {
        let ran = storm(dir.path(), file, 0..300);
        // Some damage is harmless, or only changes a number; most is not.
        assert!((1..290).contains(&ran), "{file}: {ran}");
    }
    attempt(dir.path()).unwrap_or_else(|e| panic!("{e}"));
}

#[test]
fn damaged_models_weights_and_tensors_are_errors() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let from = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/mlp_mnist");
    for file in ["model.onnx", "weights.safetensors", "batch.safetensors"] {
        std::fs::copy(from.join(file), dir.path().join(file)).expect("the fixture is complete");
    }
    let recipe = small::RECIPE
        .replace("model.pir", "model.onnx")
        .replace("\"csv\"", "\"safetensors\"")
        .replace("data.csv", "batch.safetensors")
        .replace("a..c", "in.x")
        .replace("{ t = \"label\" }", "{ targets = \"tgt.targets\" }")
        .replace("batch = 4\n", "batch = 16\n");
    std::fs::write(dir.path().join("recipe.toml"), recipe).expect("written");
    attempt(dir.path()).unwrap_or_else(|e| panic!("{e}"));
    let ran = storm(dir.path(), "model.onnx", 0..150);
    assert!((1..140).contains(&ran), "{ran}");
    for file in ["weights.safetensors", "batch.safetensors"] {
        // Most of the bytes are numbers; the header is where damage shows.
        storm(dir.path(), file, 0..25);
        let path = dir.path().join(file);
        let whole = std::fs::read(&path).expect("read");
        let head = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
        for seed in 0..60 {
            let bytes = [&damage(&whole[..head], seed), &whole[head..]].concat();
            std::fs::write(&path, bytes).expect("written");
            println!("head of {file}, seed {seed}");
            let _ = attempt(dir.path());
        }
        std::fs::write(&path, whole).expect("written");
    }
}

#[test]
fn damaged_plans_are_errors_or_run() {
    let dir = small_folder();
    let recipe = Recipe::load(dir.path().join("recipe.toml")).unwrap_or_else(|e| panic!("{e}"));
    let options = pipeline::Options::default();
    let plan = pipeline::compile(&recipe, &options).unwrap_or_else(|e| panic!("{e}")).plan;
    let text = plan.to_json();
    let (mut read, mut valid) = (0, 0);
    for seed in 0..3000 {
        let bytes = damage(text.as_bytes(), seed);
        println!("plan, seed {seed}");
        // As if a person had written it: no digest stands in the way of validation.
        let Ok((plan, _)) = Plan::unsealed(&String::from_utf8_lossy(&bytes)) else { continue };
        read += 1;
        if plan.validate().is_err() {
            continue;
        }
        valid += 1;
        let _ = run(plan, &recipe, dir.path());
    }
    assert!(read > 100 && valid > 20 && valid < read, "{read} read, {valid} valid");
}

#[test]
fn batches_made_by_hand_are_checked() {
    let dir = small_folder();
    let recipe = Recipe::load(dir.path().join("recipe.toml")).unwrap_or_else(|e| panic!("{e}"));
    let plan = pipeline::compile(&recipe, &pipeline::Options::default())
        .unwrap_or_else(|e| panic!("{e}"))
        .plan;
    let weights = ModelWeights::for_plan(&plan, dir.path(), None).unwrap();
    let mut session = Session::new(plan, &weights, &Options::default()).unwrap();
    let wanted = session.wanted();
    let target = wanted.iter().find(|w| w.name == "t").expect("the target");
    assert_eq!(target.classes.map(|c| (c.count, c.ignore)), Some((2, -100)));
    let batch = |class: i64| {
        let bytes = |w: &Wanted| match w.name.as_str() {
            "t" => [0, 1, class, 0].iter().flat_map(|x: &i64| x.to_le_bytes()).collect(),
            _ => vec![0; w.shape.iter().product::<u64>() as usize * w.dtype.size()],
        };
        let tensors = wanted.iter().map(|w| (w.name.clone(), bytes(w))).collect();
        Batch { tensors, rows: 4 }
    };
    for class in [1, -100] {
        session.step(&[batch(class)]).unwrap();
    }
    for class in [2, -1, i64::MAX, i64::MIN] {
        let e = session.step(&[batch(class)]).unwrap_err();
        assert_eq!(e.code, "R0416", "{e}");
        assert!(e.place.is_some_and(|p| p.contains("`t`")));
    }
    assert_eq!(session.steps(), 2, "a refused batch is no step");
}

/// Extents that a person can write and no machine can hold, and those between.
#[test]
fn extents_of_any_size_are_an_error_or_a_plan() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    for (fixture, other) in [("mlp_mnist", ""), ("cifar_cnn", ""), ("tiny_gpt", ", seq = 32")] {
        let (mut plans, mut errors) = (0, 0);
        for shift in (0..=62).step_by(3) {
            let batch = (1u64 << shift) + u64::from(shift % 2 == 0);
            let text = small::RECIPE
                .replace("model.pir", "model.onnx")
                .replace("format = \"csv\"\nfile = \"data.csv\"\nbatch = 4", "")
                .replace(
                    "inputs = { x = \"a..c\" }",
                    &format!("dims = {{ batch = {batch}{other} }}"),
                )
                .replace("[train]", "[precision]\npolicy = \"bf16\"\n[train]");
            println!("{fixture}, batch {batch}");
            let recipe = Recipe::parse(fixtures.join(fixture).join("recipe.toml"), &text)
                .unwrap_or_else(|e| panic!("{e}"));
            match pipeline::compile(&recipe, &pipeline::Options::default()) {
                Ok(_) => plans += 1,
                Err(e) => {
                    errors += 1;
                    let known = ["P0210", "P0214", "P0408", "P0403"];
                    assert!(e.0.iter().all(|d| known.contains(&d.code)), "{e}");
                }
            }
        }
        assert!(plans > 5 && errors > 3, "{fixture}: {plans} plans, {errors} errors");
    }
}
