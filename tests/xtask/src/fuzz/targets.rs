//! What is fuzzed: one target for every reader. What passes a reader goes on into compilation,
//! validation and a step, as far as it comes, so that what is behind the reader is reached too.

use super::mutate::Format;
use super::work::total_work;
use crate::small;
use precast_compiler::frontend::onnx;
use precast_compiler::frontend::recipe::{self, Recipe};
use precast_compiler::pipeline::{self, Options};
use precast_compiler::{Diagnostics, ir, text};
use precast_plan::{DType, Plan, Ranges, Target as Description};
use precast_runtime::data::{
    Batch, Columns, DataSource, DataSpec, DataState, Dataset, Field, Wanted,
};
use precast_runtime::{ModelWeights, Session, TensorFile};
use std::cell::OnceCell;
use std::path::{Path, PathBuf};

mod seeds;

/// How far an input came.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Stage {
    Refused,
    Read,
    Compiled,
    Ran,
}

/// What became of an input: how far it came, and what was said of it.
#[derive(Debug)]
pub struct Outcome {
    pub stage: Stage,
    pub message: String,
}

impl Outcome {
    fn ran() -> Outcome {
        Outcome { stage: Stage::Ran, message: String::new() }
    }
}

/// One reader.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    Onnx,
    Recipe,
    Weights,
    Data,
    Csv,
    Plan,
    Checkpoint,
    Ranges,
    Table,
    Ir,
}

use Target as T;

impl Target {
    pub const ALL: [Target; 10] = [
        T::Onnx,
        T::Recipe,
        T::Weights,
        T::Data,
        T::Csv,
        T::Plan,
        T::Checkpoint,
        T::Ranges,
        T::Table,
        T::Ir,
    ];

    pub fn name(self) -> &'static str {
        match self {
            T::Onnx => "onnx",
            T::Recipe => "recipe",
            T::Weights => "weights",
            T::Data => "data",
            T::Csv => "csv",
            T::Plan => "plan",
            T::Checkpoint => "checkpoint",
            T::Ranges => "ranges",
            T::Table => "table",
            T::Ir => "ir",
        }
    }

    pub fn from_name(name: &str) -> Result<Target, String> {
        let names: Vec<&str> = T::ALL.iter().map(|t| t.name()).collect();
        T::ALL
            .into_iter()
            .find(|t| t.name() == name)
            .ok_or_else(|| format!("the targets are {}", names.join(", ")))
    }

    pub fn format(self) -> Format {
        match self {
            T::Onnx => Format::Onnx,
            T::Recipe | T::Table => Format::Toml,
            T::Weights | T::Data | T::Checkpoint => Format::Safetensors,
            T::Csv | T::Ir => Format::Text,
            T::Plan | T::Ranges => Format::Json,
        }
    }

    /// Name of the file that the target reads, in its folder.
    pub fn file(self) -> &'static str {
        match self {
            T::Onnx => "model.onnx",
            T::Recipe => "recipe.toml",
            T::Weights => "weights.safetensors",
            T::Data => "data.safetensors",
            T::Csv => "data.csv",
            T::Plan => "a.plan",
            T::Checkpoint => "checkpoint.safetensors",
            T::Ranges => "ranges.json",
            T::Table => "table.toml",
            T::Ir => "model.pir",
        }
    }
}

/// A folder that is complete but for the file that is fuzzed.
pub struct Lab {
    folder: PathBuf,
    /// The plan that checkpoints are read into.
    plan: OnceCell<Plan>,
}

/// A recipe for the small model.
fn recipe_text(target: Target) -> String {
    let text = small::RECIPE.to_string();
    match target {
        T::Weights => text.replace("[data]", "[weights]\nfile = \"weights.safetensors\"\n[data]"),
        T::Data => text
            .replace("\"csv\"", "\"safetensors\"")
            .replace("data.csv", "data.safetensors")
            .replace("\"a..c\"", "\"x\""),
        T::Ranges => text
            .replace("[train]", "[precision]\npolicy = \"f16\"\nranges = \"ranges.json\"\n[train]"),
        T::Table => text.replace(
            "[train]",
            "[precision]\npolicy = \"auto\"\n[target]\ntable = \"table.toml\"\n[train]",
        ),
        _ => text,
    }
}

/// What a compiler's errors come to; every one has a code.
fn said(e: &Diagnostics) -> String {
    assert!(!e.0.is_empty(), "refused without a reason");
    assert!(e.0.iter().all(|d| !d.code.is_empty()), "an error without a code: {e}");
    e.to_string()
}

fn known(e: &precast_runtime::Error) -> String {
    assert!(!e.code.is_empty(), "an error without a code: {e}");
    e.to_string()
}

/// Most of what one input may take: operations of a step, and bytes of a plan's memory.
const WORK: u128 = 20_000_000;
const BYTES: u64 = 1 << 26;
/// Most nodes and elements of a graph that is compiled: compilation of larger ones has tests of its
/// own.
const NODES: usize = 400;

impl Lab {
    /// # Panics
    /// If the folder cannot be written.
    pub fn new(folder: &Path, target: Target) -> Lab {
        let write = |name: &str, text: &str| {
            std::fs::write(folder.join(name), text).expect("the folder can be written");
        };
        write("model.pir", small::MODEL);
        write("data.csv", &small::table(24));
        write("recipe.toml", &recipe_text(target));
        write("table.toml", &table());
        Lab { folder: folder.to_path_buf(), plan: OnceCell::new() }
    }

    pub fn path(&self, target: Target) -> PathBuf {
        self.folder.join(target.file())
    }

    /// Reads what lies in the target's file, which holds `bytes`, and goes on with it.
    pub fn run(&self, target: Target, bytes: &[u8]) -> Outcome {
        let mut stage = Stage::Refused;
        let result = match target {
            T::Onnx => self.onnx(bytes, &mut stage),
            T::Recipe | T::Weights | T::Data | T::Csv | T::Ranges | T::Table => {
                self.recipe(target, bytes, &mut stage)
            }
            T::Plan => self.plan(bytes, &mut stage),
            T::Checkpoint => self.checkpoint(&mut stage),
            T::Ir => self.ir(bytes, &mut stage),
        };
        match result {
            Ok(()) => Outcome::ran(),
            Err(message) => Outcome { stage, message },
        }
    }

    fn onnx(&self, bytes: &[u8], stage: &mut Stage) -> Result<(), String> {
        let path = self.path(T::Onnx);
        let assumed = onnx::load_assuming(&path, &[]).map_err(|e| said(&e))?;
        *stage = Stage::Read;
        let Some(imported) = assumed.imported else { return Err("an input without a rank".into()) };
        ir::verify::verify(&imported.graph)
            .unwrap_or_else(|e| panic!("an inconsistent graph: {e}"));
        let graph = &imported.graph;
        let elements = |v: &ir::Var| v.ty.shape.iter().product::<usize>();
        if graph.node_count() > NODES || graph.vars.values().map(elements).sum::<usize>() > 1 << 20
        {
            return Err("large".into());
        }
        let Some(output) = imported.outputs.first() else { return Err("no output".into()) };
        let policies = ["f32", "bf16", "f16", "auto"];
        let dims: toml::Table =
            assumed.dims.iter().map(|(n, x)| (n.clone(), (*x as i64).into())).collect();
        let table = toml::toml! {
            model = "model.onnx"
            [weights]
            init = "default"
            [loss]
            kind = "output"
            [optimizer]
            kind = "sgd"
            lr = 0.01
            momentum = 0.9
            [train]
            steps = 2
        };
        let mut table = table;
        let section = |t: &mut toml::Table, name: &str, key: &str, value: toml::Value| {
            t.entry(name.to_string())
                .or_insert_with(|| toml::Value::Table(toml::Table::new()))
                .as_table_mut()
                .expect("a section")
                .insert(key.into(), value);
        };
        section(&mut table, "loss", "output", output.clone().into());
        section(&mut table, "data", "dims", dims.into());
        section(&mut table, "precision", "policy", policies[bytes.len() % 4].into());
        let text = toml::to_string(&table).expect("a table");
        let recipe = Recipe::parse(self.folder.join("recipe.toml"), &text).map_err(|e| said(&e))?;
        let plan = compile(&recipe, &Options { total_steps: Some(2), ..Options::default() })?;
        *stage = Stage::Compiled;
        self.step(plan)
    }

    /// Loads and compiles the recipe in the folder, and takes a step of it.
    fn recipe(&self, target: Target, bytes: &[u8], stage: &mut Stage) -> Result<(), String> {
        let recipe = Recipe::load(self.folder.join("recipe.toml")).map_err(|e| said(&e))?;
        match target {
            T::Recipe => *stage = Stage::Read,
            T::Table => {
                let text = String::from_utf8_lossy(bytes);
                if toml::from_str::<Description>(&text).is_ok_and(|t| t.check().is_ok()) {
                    *stage = Stage::Read;
                }
            }
            T::Ranges if Ranges::from_json(&String::from_utf8_lossy(bytes)).is_ok() => {
                *stage = Stage::Read;
            }
            T::Weights | T::Data if TensorFile::open(&self.path(target)).is_ok() => {
                *stage = Stage::Read;
            }
            _ => {}
        }
        let (bound, options) = bound(&recipe)?;
        let plan = compile(&bound, &options)?;
        *stage = Stage::Compiled;
        if !fits(&plan) {
            return Err("large".into());
        }
        self.step_on_data(plan, &recipe).map_err(|e| known(&e))
    }

    fn step_on_data(&self, plan: Plan, recipe: &Recipe) -> precast_runtime::Result<()> {
        let files = recipe.data_files().unwrap_or_default();
        let source = match recipe.data.source {
            Some(recipe::DataSource::Csv { header, .. }) => DataSource::Csv { files, header },
            Some(recipe::DataSource::Bytes { context, .. }) => {
                DataSource::Bytes { files, context: context as u64 }
            }
            _ => DataSource::Safetensors { files },
        };
        let d = &recipe.data;
        let fields = d.inputs.iter().chain(&d.targets).map(|(input, columns)| Field {
            input: input.clone(),
            columns: match columns {
                recipe::Columns::Name(n) => Columns::Name(n.clone()),
                recipe::Columns::List(n) => Columns::List(n.clone()),
            },
            scale: d.scale.get(input).copied().unwrap_or(1.0),
            shift: d.shift.get(input).copied().unwrap_or(0.0),
        });
        let spec = DataSpec {
            source,
            batch: d.batch.map(|b| b as u64),
            fields: fields.collect(),
            shuffle: d.shuffle,
            seed: recipe.train.seed,
            split: d.split,
            allow_nonfinite: d.on_nonfinite == recipe::DataNonfinite::Allow,
        };
        let file = recipe.weights.file.as_ref().map(|f| recipe.resolve(f));
        let weights = ModelWeights::for_plan(&plan, &self.folder, file.as_deref())?;
        let options = precast_runtime::Options {
            threads: 1,
            seed: recipe.train.seed,
            ..precast_runtime::Options::default()
        };
        let mut session = Session::new(plan, &weights, &options)?;
        let mut data = Dataset::open(&spec, &session.wanted())?;
        session.step_from(|| data.next_batch())?;
        Ok(())
    }

    fn plan(&self, bytes: &[u8], stage: &mut Stage) -> Result<(), String> {
        // As if a person had written it: no digest stands in the way of what is behind it.
        let (plan, _) = Plan::unsealed(&String::from_utf8_lossy(bytes))?;
        *stage = Stage::Read;
        // What people are shown of it, whatever it is.
        let _ = plan.to_string();
        if let Err(faults) = plan.validate() {
            assert!(!faults.is_empty());
            return Err(faults.iter().map(|f| format!("{f}\n")).collect());
        }
        *stage = Stage::Compiled;
        self.step(plan)
    }

    /// A step of a plan on made-up data.
    fn step(&self, mut plan: Plan) -> Result<(), String> {
        if !fits(&plan) {
            return Err("large".into());
        }
        // There is one processor and no GPU here.
        plan.target.device = "cpu".into();
        let weights = ModelWeights::for_plan(&plan, &self.folder, None).map_err(|e| known(&e))?;
        let accumulate = plan.accumulate as usize;
        let eval = !plan.eval.is_empty();
        let options =
            precast_runtime::Options { threads: 1, ..precast_runtime::Options::default() };
        let mut session = Session::new(plan, &weights, &options).map_err(|e| known(&e))?;
        let batch = batch(&session.wanted());
        let batches = vec![batch; accumulate];
        session.step(&batches).map_err(|e| known(&e))?;
        if eval {
            session.eval(&batches[0]).map_err(|e| known(&e))?;
        }
        Ok(())
    }

    fn checkpoint(&self, stage: &mut Stage) -> Result<(), String> {
        let plan = self.plan.get_or_init(|| self.small_plan());
        let weights = ModelWeights::for_plan(plan, &self.folder, None).map_err(|e| known(&e))?;
        let options =
            precast_runtime::Options { threads: 1, seed: 3, ..precast_runtime::Options::default() };
        let mut session = Session::new(plan.clone(), &weights, &options).map_err(|e| known(&e))?;
        let mut data = small_data(&self.folder, &session.wanted());
        let state: DataState =
            session.load_checkpoint(&self.path(T::Checkpoint)).map_err(|e| known(&e))?;
        *stage = Stage::Read;
        data.resume(&state).map_err(|e| known(&e))?;
        *stage = Stage::Compiled;
        session.step_from(|| data.next_batch()).map_err(|e| known(&e))?;
        Ok(())
    }

    /// The plan of the small model with the small recipe.
    fn small_plan(&self) -> Plan {
        let recipe = Recipe::parse(self.folder.join("recipe.toml"), small::RECIPE)
            .unwrap_or_else(|e| panic!("{e}"));
        compile(&recipe, &Options::default()).unwrap_or_else(|e| panic!("{e}"))
    }

    fn ir(&self, bytes: &[u8], stage: &mut Stage) -> Result<(), String> {
        let path = self.path(T::Ir);
        let source = String::from_utf8_lossy(bytes);
        let graph = text::parse(&path, &source).map_err(|e| said(&e))?;
        let printed = text::print(&graph);
        let again = text::parse(&path, &printed)
            .unwrap_or_else(|e| panic!("what was printed cannot be read: {e}"));
        assert_eq!(printed, text::print(&again), "print then parse is not the identity");
        ir::verify::verify(&graph).map_err(|e| said(&e))?;
        *stage = Stage::Read;
        if graph.node_count() > NODES {
            return Err("large".into());
        }
        self.recipe(T::Ir, bytes, stage)
    }
}

/// A recipe with what its data says about extents.
fn bound(recipe: &Recipe) -> Result<(Recipe, Options), String> {
    let import = recipe.import_options(true).map_err(|e| said(&e))?;
    let mut bound = recipe.clone();
    bound.data.dims = import.dims.into_iter().collect();
    let options = Options {
        shapes: import.input_shapes,
        target_rows: recipe.target_rows().map_err(|e| said(&e))?,
        total_steps: recipe.total_steps().ok(),
        ..Options::default()
    };
    Ok((bound, options))
}

/// A shipped description.
fn table() -> String {
    let t = Description::shipped("cpu-generic").expect("it is shipped");
    toml::to_string(&t).expect("plain data")
}

fn small_data(folder: &Path, wanted: &[Wanted]) -> Dataset {
    let field = |input: &str, columns: &[&str]| Field {
        input: input.into(),
        columns: match columns {
            [one] => Columns::Name(one.to_string()),
            list => Columns::List(list.iter().map(ToString::to_string).collect()),
        },
        scale: 1.0,
        shift: 0.0,
    };
    let spec = DataSpec {
        source: DataSource::Csv { files: vec![folder.join("data.csv")], header: true },
        batch: Some(4),
        fields: vec![field("x", &["a", "b", "c"]), field("t", &["label"])],
        shuffle: true,
        seed: 3,
        split: 0.0,
        allow_nonfinite: false,
    };
    Dataset::open(&spec, wanted).expect("the small data fits the small model")
}

/// Compiles, and holds the plan against what plans promise.
fn compile(recipe: &Recipe, options: &Options) -> Result<Plan, String> {
    let options = Options { verify: true, ..options.clone() };
    let plan = pipeline::compile(recipe, &options).map_err(|e| said(&e))?.plan;
    if let Err(faults) = plan.validate() {
        let list: String = faults.iter().map(|f| format!("{f}\n")).collect();
        panic!("the compiler made a plan that is not valid:\n{list}");
    }
    let text = plan.to_json();
    let again =
        Plan::from_json(&text).unwrap_or_else(|e| panic!("a plan that cannot be read: {e}"));
    assert_eq!(text, again.to_json(), "a plan that reads back as another");
    Ok(plan)
}

fn fits(plan: &Plan) -> bool {
    plan.arena_bytes.max(plan.persistent_bytes) <= BYTES
        && plan.accumulate <= 4
        && plan.tensors.iter().all(|t| t.shape.iter().product::<u64>() <= BYTES)
        && total_work(plan) <= WORK
}

/// Small numbers for every input.
fn batch(wanted: &[Wanted]) -> Batch {
    let bytes = |w: &Wanted| -> Vec<u8> {
        let n = w.shape.iter().product::<u64>();
        (0..n)
            .flat_map(|i| {
                let word = match w.dtype {
                    d if d.is_real() => d.encode((i % 7) as f32 / 7.0 - 0.4).to_le_bytes().to_vec(),
                    DType::I64 => ((i % 2) as i64).to_le_bytes().to_vec(),
                    _ => ((i % 2) as u32).to_le_bytes().to_vec(),
                };
                word.into_iter().take(w.dtype.size())
            })
            .collect()
    };
    let tensors: Vec<_> = wanted.iter().map(|w| (w.name.clone(), bytes(w))).collect();
    let rows = wanted.iter().filter_map(|w| w.shape.first().copied()).max().unwrap_or(1);
    Batch { tensors, rows }
}
