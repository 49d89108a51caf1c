//! `precast eval`: how good saved weights are.

use crate::failure::{self, Failure, Outcome};
use crate::input;
use crate::metrics;
use crate::recipe_args::{self, RecipeArgs, compile, open, open_data};
use precast_compiler::{Diagnostic, Place};
use precast_plan::{FileKind, Plan, Role, Storage};
use precast_runtime::{Error, TensorFile, WeightSource};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Test saved weights on the rows that the recipe holds back, or on all of its data.
#[derive(clap::Args)]
pub struct Args {
    #[command(flatten)]
    recipe: RecipeArgs,
    /// The weights or the checkpoint to test; by default those that training saved last.
    #[arg(long)]
    weights: Option<PathBuf>,
    /// Test on every row, those that were trained on, too; without `data.split` that is done anyway.
    #[arg(long)]
    all: bool,
    /// Threads to use; 0 for every core.
    #[arg(long, default_value_t = 0, value_parser = recipe_args::threads)]
    threads: usize,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let mut recipe = args.recipe.load()?;
    recipe_args::has_model(&recipe)?;
    let file = match &args.weights {
        Some(file) => file.clone(),
        None => recipe.out_dir().join("weights.safetensors"),
    };
    input::expect(&file, &[FileKind::Safetensors, FileKind::Checkpoint], Some("--weights"))?;
    // The recipe's own paths are relative to it; this one is not.
    recipe.weights.file = Some(std::path::absolute(&file).unwrap_or_else(|_| file.clone()));
    recipe.overrule("weights.file", &format!("--weights {}", file.display()));
    let data = open_data(&recipe)?;
    let plan = compile(&recipe, &args.recipe.options(false))?.plan;
    holds_all(&plan, &file)?;
    let (mut session, data) = open(&recipe, plan, data, args.threads)?;
    let all = args.all || data.rows().1 == 0;
    let (rows, what) = match all {
        true => (data.rows().0 + data.rows().1, "all"),
        false => (data.rows().1, "held back"),
    };
    let found = match all {
        true => metrics::over(&recipe, &mut session, data.all_batches())?,
        false => metrics::over(&recipe, &mut session, data.test_batches())?,
    };
    let Some(found) = found else {
        return Err(Diagnostic::error("P0015", "there is nothing to test: no target counts")
            .at(Place::File { path: recipe.path.clone() })
            .help("look at the targets, and at `[loss] ignore_index`")
            .into());
    };
    let fault = metrics::judge(Some(&found), "");
    if json {
        let errors: Vec<_> = fault.iter().map(failure::error).collect();
        say!(
            "{}",
            json!({ "ok": fault.is_none(), "weights": file, "rows": rows, "held_back": !all,
                    "loss": found.loss, "accuracy": found.accuracy, "errors": errors })
        );
        return fault.map_or(Ok(()), |e| Err(Failure::Training(e)));
    }
    say!("weights     {}", file.display());
    say!("rows        {rows}, {what}");
    say!("test loss: {:.4}", found.loss);
    if let Some(accuracy) = found.accuracy {
        say!("test accuracy: {accuracy:.4}");
    }
    fault.map_or(Ok(()), |e| Err(Failure::Training(e)))
}

/// What the file lacked would be tested as the model came, which is not what was asked for.
fn holds_all(plan: &Plan, path: &Path) -> Outcome {
    let file = TensorFile::open(path)?;
    let names = file.names();
    let kept = |t: &&precast_plan::Tensor| {
        matches!(t.storage, Storage::Persistent { role: Role::Parameter | Role::Buffer, .. })
    };
    let missing: Vec<String> = plan
        .tensors
        .iter()
        .filter(kept)
        .filter(|t| !names.contains(&t.name))
        .map(|t| format!("`{}`", t.name))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let more = if missing.len() > 8 { ", …" } else { "" };
    let listed = missing[..missing.len().min(8)].join(", ");
    Err(Error::new("R0301", format!("the weights lack {listed}{more}"))
        .at(path.display())
        .help("test a file that holds every parameter and buffer, such as `weights.safetensors`")
        .into())
}
