//! What commands that compile a recipe have in common.

use crate::failure::Outcome;
use precast_compiler::frontend::recipe::{Columns, DataSource, Policy, Recipe, TrainLength};
use precast_compiler::pipeline::{self, Compiled};
use precast_compiler::{Diagnostic, Place};
use precast_runtime::data;
use precast_runtime::{ModelWeights, Session};
use std::path::{Path, PathBuf};

/// A recipe and what the command line changes of it.
#[derive(clap::Args)]
pub struct RecipeArgs {
    /// A recipe (.toml).
    pub recipe: PathBuf,
    /// Use this precision policy instead of the recipe's: auto, f32, bf16, f16, or another system's
    /// rules (see docs/RECIPE.md).
    #[arg(long)]
    pub policy: Option<Policy>,
    /// Plan for this device instead of the recipe's.
    #[arg(long)]
    pub device: Option<String>,
}

impl RecipeArgs {
    pub fn load(&self) -> Outcome<Recipe> {
        let mut recipe = Recipe::load(&self.recipe)?;
        if let Some(policy) = self.policy {
            recipe.precision.policy = policy;
        }
        if let Some(device) = &self.device {
            recipe.target.device = device.clone();
            // The command line wins over the recipe's table, too.
            recipe.target.table = None;
        }
        Ok(recipe)
    }
}

/// Compiles, with what the data says about extents and the length of the run. Warnings go to
/// standard error.
pub fn compile(recipe: &Recipe, keep_gradients: bool) -> Outcome<Compiled> {
    let total_steps = match recipe.train.length {
        TrainLength::Epochs(_) if recipe.data.source.is_none() => None,
        _ => Some(recipe.total_steps()?),
    };
    let import = recipe.import_options(true)?;
    let mut recipe = recipe.clone();
    recipe.data.dims = import.dims.into_iter().collect();
    let options = pipeline::Options {
        shapes: import.input_shapes,
        total_steps,
        keep_gradients,
        bf16_products: precast_runtime::cpu::simd::isa()
            == precast_runtime::cpu::simd::Isa::Avx512Bf16,
        ..Default::default()
    };
    let compiled = pipeline::compile(&recipe, &options)?;
    for warning in &compiled.warnings {
        eprintln!("{warning}\n");
    }
    Ok(compiled)
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
    // The loss reads one target; others in the recipe feed nothing.
    let targets = d.targets.iter().filter(|(name, _)| **name == recipe.loss.target);
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
    })
}

/// Loads a plan with its weights on the CPU, and opens its data.
pub fn open(
    recipe: &Recipe,
    plan: precast_plan::Plan,
    threads: usize,
) -> Outcome<(Session, data::Dataset)> {
    let model = recipe.model_path();
    let folder = model.parent().unwrap_or(Path::new("."));
    let file = recipe.weights.file.as_ref().map(|f| recipe.resolve(f));
    let weights = ModelWeights::for_plan(&plan, folder, file.as_deref())?;
    let options = precast_runtime::Options { threads, seed: recipe.train.seed };
    let session = Session::new(plan, &weights, &options)?;
    let data = data::Dataset::open(&data_spec(recipe)?, &session.wanted())?;
    Ok((session, data))
}
