//! What commands that compile a recipe have in common.

use crate::failure::Outcome;
use crate::input::{self, idle_for};
use crate::output::coloured;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use precast_compiler::diagnostic::suggestion;
use precast_compiler::frontend::recipe::{
    Columns, DataNonfinite, DataSource, Policy, Recipe, Target, TrainLength,
};
use precast_compiler::pipeline::{self, Compiled, Watched};
use precast_compiler::{Diagnostic, Place};
use precast_plan::{self as described, FileKind};
use precast_runtime::cuda::{self, DeviceInfo};
use precast_runtime::data;
use precast_runtime::files::InputFile;
use precast_runtime::{ModelWeights, Session};
use std::path::{Path, PathBuf};

/// A recipe and what the command line changes of it.
#[derive(clap::Args)]
pub struct RecipeArgs {
    /// A recipe (.toml).
    pub recipe: PathBuf,
    /// Use this precision policy instead of the recipe's (docs/RECIPE.md has what each does).
    #[arg(long, value_parser = policies())]
    pub policy: Option<Policy>,
    /// Plan for this device instead of the recipe's: cpu, cuda (or cuda:1, …) for a GPU of this
    /// machine, a described target such as sm_90 or h200, or a file that describes one, as
    /// `precast calibrate` writes it.
    #[arg(long, value_name = "DEVICE|FILE")]
    pub device: Option<String>,
    #[command(flatten)]
    pub settings: Settings,
    /// Check every graph after the pass that made it; a fault found so is a bug in Precast.
    #[arg(long)]
    pub verify: bool,
}

/// The words of the policies.
pub fn policies() -> impl TypedValueParser<Value = Policy> {
    let words = Policy::WORDS.iter().map(|(word, _)| *word);
    PossibleValuesParser::new(words).try_map(|word| word.parse::<Policy>())
}

/// What a command line says in the place of a recipe.
#[derive(clap::Args)]
pub struct Settings {
    /// Use this value instead of the recipe's: a dotted key and a value of TOML, or a word, such as
    /// `optimizer.lr=1e-4` or `data.file=other.csv`; may be repeated.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Settings {
    /// Reads a recipe.
    pub fn load(&self, path: &Path) -> Outcome<Recipe> {
        Ok(Recipe::load_with(path, &self.set)?)
    }

    /// # Errors
    /// P0011 where there are settings, and the file is no recipe.
    pub fn only_recipes(&self, path: &Path) -> Outcome {
        match self.set.is_empty() {
            true => Ok(()),
            false => Err(crate::input::idle(path, "--set", "only a recipe has keys").into()),
        }
    }
}

/// A number of threads.
pub fn threads(text: &str) -> Result<usize, String> {
    let most = precast_runtime::cpu::pool::MAX_THREADS;
    match text.parse() {
        Ok(n) if n <= most => Ok(n),
        _ => Err(format!("a number from 0, which is every core, to {most}")),
    }
}

impl RecipeArgs {
    /// The options that say what is compiled, as a shell takes them, each behind a space.
    pub fn repeated(&self) -> String {
        let quoted = |text: &str| crate::next::quoted(Path::new(text));
        let mut text = String::new();
        if let Some(policy) = self.policy {
            text += &format!(" --policy {}", policy.name());
        }
        if let Some(device) = &self.device {
            text += &format!(" --device {}", quoted(device));
        }
        for set in &self.settings.set {
            text += &format!(" --set {}", quoted(set));
        }
        text
    }

    pub fn load(&self) -> Outcome<Recipe> {
        input::expect(&self.recipe, &[FileKind::Recipe], None)?;
        let mut recipe = self.settings.load(&self.recipe)?;
        if let Some(policy) = self.policy {
            recipe.precision.policy = policy;
            recipe.overrule("precision.policy", &format!("--policy {}", policy.name()));
        }
        if let Some(device) = &self.device {
            let flag = format!("--device {device}");
            // The command line wins over the recipe's table, too.
            recipe.overrule("target.device", &flag);
            recipe.overrule("target.table", &flag);
            recipe.target = target(device)?;
        }
        Ok(recipe)
    }

    /// For commands to which a policy or another device means nothing.
    ///
    /// # Errors
    /// P0011 where `--policy`, or `--device` of another device than the processor, was given.
    pub fn only_f32_on_cpu(&self, command: &str) -> Outcome {
        if let Some(policy) = self.policy {
            let flag = format!("--policy {}", policy.name());
            let why = "it runs every operation in f32, whatever the policy";
            return Err(idle_for(command, flag, why, "leave it out").into());
        }
        match &self.device {
            Some(device) if device != "cpu" => {
                let flag = format!("--device {device}");
                let why = "it runs on the processor, whatever the recipe trains on";
                Err(idle_for(command, flag, why, "leave it out").into())
            }
            _ => Ok(()),
        }
    }

    pub fn options(&self, keep_gradients: bool) -> pipeline::Options {
        pipeline::Options { keep_gradients, verify: self.verify, ..options() }
    }
}

/// Gives the run the length that the command line says.
pub fn take_steps(recipe: &mut Recipe, steps: Option<u64>) {
    let Some(steps) = steps else { return };
    recipe.train.length = TrainLength::Steps(steps);
    recipe.overrule("train.steps", &format!("--steps {steps}"));
    recipe.overrule("train.epochs", &format!("--steps {steps}"));
}

/// What `--device` names: a device, or a file that describes one.
fn target(device: &str) -> Outcome<Target> {
    let path = Path::new(device);
    let known = device == "cpu" || pipeline::is_gpu(device);
    if known || described::Target::shipped(device).is_some() || !path.exists() {
        return Ok(Target { device: device.into(), table: None });
    }
    input::expect(path, &[FileKind::TargetTable], Some("--device"))?;
    // The recipe's own paths are relative to its folder, this one is not.
    let table = std::path::absolute(path).map_err(|e| input::unreadable(path, &e))?;
    Ok(Target { device: "cpu".into(), table: Some(table) })
}

/// What the command line says about compiling.
pub fn options() -> pipeline::Options {
    let isa = precast_runtime::cpu::simd::isa();
    let bf16_products = isa == precast_runtime::cpu::simd::Isa::Avx512Bf16;
    pipeline::Options { bf16_products, ..Default::default() }
}

/// Checks that the recipe's model exists, and that the files it names are of the right kinds.
pub fn has_model(recipe: &Recipe) -> Outcome {
    let model = recipe.model_path();
    if model.exists() {
        return named_kinds(recipe);
    }
    let message = format!("the model {} does not exist", model.display());
    let place = recipe.place(&["model"], "no such file");
    let help = described::instead_of(&model)
        .unwrap_or_else(|| "paths in a recipe are relative to its folder".into());
    Err(Diagnostic::error("P0004", message).at(place).help(help).into())
}

/// Checks that the files which a recipe names are of the kinds that it takes them for. One that is
/// missing or damaged is left to its reader.
fn named_kinds(recipe: &Recipe) -> Outcome {
    use FileKind::{Checkpoint, Ir, Onnx, Ranges, Safetensors, TargetTable};
    let model: &[FileKind] = if recipe.is_textual() { &[Ir] } else { &[Onnx] };
    let (weights, ranges) = (recipe.weights.file.as_ref(), recipe.precision.ranges.as_ref());
    for (key, file, wanted) in [
        ("model", Some(&recipe.model), model),
        ("weights.file", weights, &[Safetensors, Checkpoint]),
        ("precision.ranges", ranges, &[Ranges]),
        ("target.table", recipe.target.table.as_ref(), &[TargetTable]),
    ] {
        let Some(found) = file.and_then(|f| FileKind::of(&recipe.resolve(f)).ok()) else {
            continue;
        };
        if wanted.contains(&found) || found.is_vague() {
            continue;
        }
        let file = file.map_or_else(String::new, |f| f.display().to_string());
        let message = format!("`{key}` takes {}, and `{file}` is {found}", wanted[0]);
        let help = match (key, found) {
            ("model", Ir) => "a name that ends in .pir says that a model is textual IR",
            ("model", Onnx) => {
                "a name that ends in .pir says that a model is textual IR: give it another"
            }
            _ => input::advice(found, wanted[0], true).unwrap_or("write the file again"),
        };
        let place = recipe.place(&[key], "of another kind");
        return Err(Diagnostic::error("P0001", message).at(place).help(help).into());
    }
    Ok(())
}

/// The recipe with what the data says about its extents, and the options with what it says about
/// shapes and the length of the run.
fn with_data(recipe: &Recipe, options: &pipeline::Options) -> Outcome<(Recipe, pipeline::Options)> {
    has_model(recipe)?;
    let total_steps = match recipe.train.length {
        TrainLength::Epochs(_) if recipe.data.source.is_none() => None,
        _ => Some(recipe.total_steps()?),
    };
    let import = recipe.import_options(true)?;
    let mut recipe = recipe.clone();
    recipe.data.dims = import.dims.into_iter().collect();
    let capability = gpu(&recipe)?.map(|gpu| gpu.facts.capability);
    let options = pipeline::Options {
        shapes: import.input_shapes,
        target_rows: recipe.target_rows()?,
        total_steps,
        capability,
        ..options.clone()
    };
    Ok((recipe, options))
}

/// Warnings go to standard error.
pub fn warn(warnings: &[Diagnostic]) {
    for warning in warnings {
        tell!("{}\n", coloured(&warning.to_string()));
    }
}

/// Compiles, with what the data says about extents and the length of the run. Warnings go to
/// standard error.
pub fn compile(recipe: &Recipe, options: &pipeline::Options) -> Outcome<Compiled> {
    let compiled = compile_quietly(recipe, options)?;
    warn(&compiled.warnings);
    Ok(compiled)
}

/// [`compile`], warnings left to the caller.
pub fn compile_quietly(recipe: &Recipe, options: &pipeline::Options) -> Outcome<Compiled> {
    let (recipe, options) = with_data(recipe, options)?;
    let model = InputFile::open(&recipe.model_path()).ok();
    let compiled = pipeline::compile(&recipe, &options)?;
    same(model.as_ref())?;
    Ok(compiled)
}

/// Checks that a model is the file it was: it is read more than once, as trained, as evaluated and for
/// its weights, and what comes of two versions of it would be neither.
///
/// # Errors
/// `R0303` if it was written to, removed or replaced since it was opened.
fn same(model: Option<&InputFile>) -> Outcome {
    let Some(model) = model else { return Ok(()) };
    Ok(model.still_there().map_err(|why| {
        let text = format!("the model {why} while it was compiled or loaded");
        precast_runtime::Error::new("R0303", text)
            .at(model.path().display())
            .help("begin again once whatever writes it has ended")
    })?)
}

/// A plan to be watched on the processor, made by `make`, with what the data says about extents and
/// the length of the run.
pub fn watched(
    recipe: &Recipe,
    options: &pipeline::Options,
    make: fn(&Recipe, &pipeline::Options) -> precast_compiler::diagnostic::Result<Watched>,
) -> Outcome<Watched> {
    let (recipe, options) = with_data(recipe, options)?;
    let model = InputFile::open(&recipe.model_path()).ok();
    let made = make(&recipe, &options)?;
    same(model.as_ref())?;
    Ok(made)
}

/// The text of a stage before the plan, as [`compile`] would pass through it.
pub fn stage(recipe: &Recipe, options: &pipeline::Options, name: &str) -> Outcome<String> {
    if !pipeline::STAGES.contains(&name) {
        let message = format!("there is no stage `{name}`");
        let help = suggestion("stages", name, pipeline::STAGES);
        return Err(Diagnostic::error("P0008", message)
            .at(Place::File { path: recipe.path.clone() })
            .help(help)
            .into());
    }
    let (recipe, options) = with_data(recipe, options)?;
    let (text, warnings) = pipeline::stage(&recipe, &options, name)?;
    warn(&warnings);
    Ok(text)
}

/// Number of the GPU that a recipe's device names; `None` where it names none.
fn gpu_number(recipe: &Recipe) -> Option<usize> {
    let device = &recipe.target.device;
    pipeline::is_gpu(device).then(|| {
        let number = device.strip_prefix("cuda:").unwrap_or("0");
        // A number too large for the type is that of no device.
        number.parse().unwrap_or(usize::MAX)
    })
}

/// The GPU that a recipe is planned for: this machine's own, where its device is `cuda` and no
/// table describes another.
fn gpu(recipe: &Recipe) -> Outcome<Option<DeviceInfo>> {
    let number = gpu_number(recipe).filter(|_| recipe.target.table.is_none());
    Ok(number.map(cuda::device).transpose()?)
}

/// A warning where a plan was priced for another board than the one that it runs on: it runs there all
/// the same, with formats and predictions of the other.
fn other_board(recipe: &Recipe, plan: &precast_plan::Plan, gpu: usize) -> Option<Diagnostic> {
    let name = &plan.target.name;
    if plan.target.device != "cuda" || recipe.target.table.is_some() {
        return None;
    }
    let here = cuda::device(gpu).ok()?;
    if described::Target::describes(name, &here.name, here.facts.capability)? {
        return None;
    }
    let message = format!(
        "the plan is made for `{name}`, and runs on {}: its formats and predicted times are those of \
         `{name}`",
        here.name
    );
    Some(
        Diagnostic::warning("P0621", message)
            .at(recipe.place(&["target.device"], "another board"))
            .help("`--device cuda` plans for the board that is there"),
    )
}

/// The runtime's view of the recipe's data.
fn data_spec(recipe: &Recipe) -> Outcome<data::DataSpec> {
    let Some(source) = &recipe.data.source else {
        return Err(Diagnostic::error("P0006", "the recipe names no data to run on")
            .at(Place::File { path: recipe.path.clone() })
            .help("give `format` and `file` in [data]")
            .into());
    };
    let files = recipe.data_files()?;
    let source = match source {
        DataSource::Safetensors { .. } => data::DataSource::Safetensors { files },
        DataSource::Csv { header, .. } => data::DataSource::Csv { files, header: *header },
        DataSource::Bytes { context, .. } => {
            data::DataSource::Bytes { files, context: *context as u64 }
        }
    };
    let d = &recipe.data;
    // Targets that no loss reads feed nothing, unless the model itself computes its loss.
    let read = |name: &str| recipe.loss.in_model() || recipe.loss.targets().any(|t| t == name);
    let targets = d.targets.iter().filter(|(name, _)| read(name));
    let fields = d.inputs.iter().chain(targets).map(|(input, columns)| data::Field {
        input: input.clone(),
        columns: match columns {
            Columns::Name(name) => data::Columns::Name(name.clone()),
            Columns::List(names) => data::Columns::List(names.clone()),
        },
        scale: d.scale.get(input).copied().unwrap_or(1.0),
        shift: d.shift.get(input).copied().unwrap_or(0.0),
    });
    Ok(data::DataSpec {
        source,
        batch: d.batch.map(|b| b as u64),
        fields: fields.collect(),
        // A file that is one batch is taken as it stands, row by row.
        shuffle: d.shuffle && d.batch.is_some(),
        seed: recipe.train.seed,
        split: d.split,
        allow_nonfinite: d.on_nonfinite == DataNonfinite::Allow,
    })
}

/// What a run reads, opened before the time of compiling is spent.
pub struct Inputs {
    data: data::Opened,
    /// The model, whose file says where its weights are: what is compiled and what is loaded have to
    /// be the same.
    model: Option<InputFile>,
}

/// Opens the recipe's data and checks what can be checked without a plan.
pub fn open_data(recipe: &Recipe) -> Outcome<Inputs> {
    let data = data::Opened::open(&data_spec(recipe)?)?;
    // One that cannot be opened is what importing will tell of.
    Ok(Inputs { data, model: InputFile::open(&recipe.model_path()).ok() })
}

/// Loads a plan with its weights on the device it is for, and feeds it the data.
pub fn open(
    recipe: &Recipe,
    plan: precast_plan::Plan,
    mut inputs: Inputs,
    threads: usize,
) -> Outcome<(Session, data::Dataset)> {
    let model = recipe.model_path();
    let folder = model.parent().unwrap_or(Path::new("."));
    let file = recipe.weights.file.as_ref().map(|f| recipe.resolve(f));
    let weights = ModelWeights::for_plan(&plan, folder, file.as_deref())?;
    let gpu = gpu_number(recipe).unwrap_or(0);
    warn(other_board(recipe, &plan, gpu).as_slice());
    let options = precast_runtime::Options { threads, gpu, seed: recipe.train.seed };
    // What has no file of its own to name is the recipe's.
    let place = |e: precast_runtime::Error| e.at(recipe.path.display());
    let session = Session::new(plan, &weights, &options).map_err(place)?;
    same(inputs.model.as_ref())?;
    // What nothing reads was warned of when the plan was made.
    let wanted = session.wanted();
    inputs.data.keep(|input| wanted.iter().any(|w| w.name == input));
    let data = data::Dataset::bind(inputs.data, &wanted).map_err(place)?;
    Ok((session, data))
}
