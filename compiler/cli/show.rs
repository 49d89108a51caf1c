//! `precast show`: any stage as text.

use crate::failure::Outcome;
use crate::input::{self, Kind};
use crate::recipe_args;
use precast_compiler::frontend::onnx::{self, ImportOptions};
use precast_compiler::{Diagnostic, pipeline, text};
use std::io::Write;
use std::path::PathBuf;

/// Print a model, or any stage of compiling a recipe, as text.
#[derive(clap::Args)]
pub struct Args {
    /// A recipe (.toml), a model (.onnx, .pir) or a plan (.plan).
    input: PathBuf,
    /// Of a recipe: the stage to print.
    #[arg(long, default_value = "plan")]
    stage: String,
    /// Of an ONNX model: extents of its dynamic dimensions, such as `N=4`.
    #[arg(long = "dim", value_name = "NAME=EXTENT", value_parser = dim)]
    dims: Vec<(String, usize)>,
}

fn dim(text: &str) -> Result<(String, usize), String> {
    let (name, extent) = text.split_once('=').ok_or("expected NAME=EXTENT")?;
    Ok((name.into(), extent.parse().map_err(|_| format!("`{extent}` is not an extent"))?))
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let out = match Kind::of(&args.input)? {
        Kind::Plan => {
            let plan = input::read_plan(&args.input)?;
            if json { plan.to_json() } else { plan.to_string() }
        }
        Kind::Recipe => stage(args, json)?,
        Kind::Onnx => {
            let dims = args.dims.iter().cloned().collect();
            let options = ImportOptions { dims, training: true, ..Default::default() };
            text::print(&onnx::load(&args.input, &options)?.graph)
        }
        Kind::Ir => text::print(&input::read_ir(&args.input)?),
    };
    std::io::stdout().write_all(out.as_bytes())?;
    Ok(())
}

fn stage(args: &Args, json: bool) -> Outcome<String> {
    if !pipeline::STAGES.contains(&args.stage.as_str()) {
        let message = format!("there is no stage `{}`", args.stage);
        let help = format!("the stages are {}", pipeline::STAGES.join(", "));
        return Err(Diagnostic::error("P0008", message).help(help).into());
    }
    let compiled = recipe_args::compile(&input::read_recipe(&args.input)?, false)?;
    if args.stage == "plan" {
        return Ok(if json { compiled.plan.to_json() } else { compiled.plan.to_string() });
    }
    match compiled.stages.into_iter().find(|(name, _)| *name == args.stage) {
        Some((_, text)) => Ok(text),
        None => {
            Err(Diagnostic::error("P0008", format!("this recipe skips `{}`", args.stage)).into())
        }
    }
}
