//! `precast show`: any stage as text.

use crate::failure::{Failure, Outcome};
use crate::input::{self, Kind};
use crate::recipe_args;
use precast_compiler::diagnostic::suggestion;
use precast_compiler::frontend::onnx::{self, ImportOptions};
use precast_compiler::{Diagnostic, Place, text};
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
    /// Of an ONNX model: extents of its dynamic dimensions, such as `N=4`.
    #[arg(long = "dim", value_name = "NAME=EXTENT", value_parser = dim)]
    dims: Vec<(String, usize)>,
}

fn dim(text: &str) -> Result<(String, usize), String> {
    let (name, extent) = text.split_once('=').ok_or("expected NAME=EXTENT")?;
    Ok((name.into(), extent.parse().map_err(|_| format!("`{extent}` is not an extent"))?))
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let kind = Kind::of(&args.input)?;
    let idle = |option: &str, why: &str| -> Failure {
        Diagnostic::error("P0011", format!("`{option}` means nothing for this input: {why}"))
            .at(Place::File { path: args.input.clone() })
            .help("leave it out")
            .into()
    };
    if args.stage.is_some() && kind != Kind::Recipe {
        return Err(idle("--stage", "only a recipe has stages"));
    }
    if !args.dims.is_empty() && kind != Kind::Onnx {
        let why = match kind {
            Kind::Recipe => "a recipe has `dims` in [data]",
            _ => "only an ONNX model has dynamic dimensions",
        };
        return Err(idle("--dim", why));
    }
    let stage = args.stage.as_deref().unwrap_or("plan");
    let (stage, text) = match kind {
        Kind::Plan => return plan(&input::read_plan(&args.input)?, json),
        Kind::Recipe => {
            let recipe = input::read_recipe(&args.input)?;
            if stage == "plan" {
                return plan(&recipe_args::compile(&recipe, &recipe_args::options())?.plan, json);
            }
            (stage, recipe_args::stage(&recipe, &recipe_args::options(), stage)?)
        }
        Kind::Onnx => {
            let info = onnx::inspect(&args.input)?;
            let known = info.dim_names();
            if let Some((name, _)) = args.dims.iter().find(|(n, _)| !known.contains(&n.as_str())) {
                let message = format!("the model has no dynamic dimension `{name}`");
                return Err(Diagnostic::error("P0109", message)
                    .at(Place::File { path: args.input.clone() })
                    .help(suggestion("dynamic dimensions", name, &known))
                    .into());
            }
            let dims = args.dims.iter().cloned().collect();
            let options = ImportOptions { dims, training: true, ..Default::default() };
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
