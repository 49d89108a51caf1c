//! `precast show`: any stage as text.

use crate::failure::Outcome;
use crate::input::{self, Dims, Kind, idle};
use crate::recipe_args::{self, Settings};
use precast_compiler::frontend::onnx::{self, ImportOptions};
use precast_compiler::text;
use precast_plan::Plan;
use serde_json::json;
use std::path::PathBuf;

/// Print a model, or any stage of compiling a recipe, as text.
#[derive(clap::Args)]
pub struct Args {
    /// A recipe (.toml), a model (.onnx, .pir) or a plan (.plan).
    input: PathBuf,
    /// Of a recipe: the stage to print, import, autodiff, egraph or plan (the default).
    #[arg(long)]
    stage: Option<String>,
    #[command(flatten)]
    dims: Dims,
    #[command(flatten)]
    settings: Settings,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let kind = Kind::of(&args.input)?;
    if args.stage.is_some() && kind != Kind::Recipe {
        return Err(idle(&args.input, "--stage", "only a recipe has stages").into());
    }
    args.dims.check_kind(&args.input, kind)?;
    if kind != Kind::Recipe {
        args.settings.only_recipes(&args.input)?;
    }
    let stage = args.stage.as_deref().unwrap_or("plan");
    let (stage, text) = match kind {
        Kind::Plan => return plan(&input::read_plan(&args.input)?, json),
        Kind::Recipe => {
            let recipe = args.settings.load(&args.input)?;
            if stage == "plan" {
                return plan(&recipe_args::compile(&recipe, &recipe_args::options())?.plan, json);
            }
            (stage, recipe_args::stage(&recipe, &recipe_args::options(), stage)?)
        }
        Kind::Onnx => {
            let info = onnx::inspect(&args.input)?;
            args.dims.check_names(&args.input, &info)?;
            let dims = args.dims.dims.iter().cloned().collect();
            let options =
                ImportOptions { dims, training: true, dims_by_option: true, ..Default::default() };
            ("import", text::print(&onnx::load(&args.input, &options)?.graph))
        }
        Kind::Ir => ("import", text::print(&input::read_ir(&args.input)?)),
    };
    if json {
        say!("{}", json!({ "ok": true, "kind": kind.name(), "stage": stage, "text": text }));
    } else {
        put!("{text}");
    }
    Ok(())
}

fn plan(plan: &Plan, json: bool) -> Outcome {
    put!("{}", if json { plan.to_json() } else { plan.to_string() });
    Ok(())
}
