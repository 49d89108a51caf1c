//! What a command is pointed at.

use crate::failure::Outcome;
use precast_compiler::diagnostic::suggestion;
use precast_compiler::frontend::onnx::ModelInfo;
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::ir::{self, Graph};
use precast_compiler::{Diagnostic, Diagnostics, Place, text};
use precast_plan::Plan;
use std::io::Read;
use std::path::Path;

/// Extents of an ONNX model's dynamic dimensions.
#[derive(clap::Args)]
pub struct Dims {
    /// Of an ONNX model: extents of its dynamic dimensions, such as `N=4`.
    #[arg(long = "dim", value_name = "NAME=EXTENT", value_parser = dim)]
    pub dims: Vec<(String, usize)>,
}

fn dim(text: &str) -> Result<(String, usize), String> {
    let (name, extent) = text.split_once('=').ok_or("expected NAME=EXTENT")?;
    Ok((name.into(), extent.parse().map_err(|_| format!("`{extent}` is not an extent"))?))
}

/// The error where an option has no meaning for a file.
pub fn idle(path: &Path, option: &str, why: &str) -> Diagnostic {
    Diagnostic::error("P0011", format!("`{option}` means nothing for this input: {why}"))
        .at(Place::File { path: path.into() })
        .help("leave it out")
}

impl Dims {
    /// # Errors
    /// P0011 where extents are given and the file is no ONNX model.
    pub fn check_kind(&self, path: &Path, kind: Kind) -> Outcome {
        let why = match kind {
            Kind::Onnx => return Ok(()),
            Kind::Recipe => "a recipe has `dims` in [data]",
            Kind::Ir | Kind::Plan => "only an ONNX model has dynamic dimensions",
        };
        if self.dims.is_empty() { Ok(()) } else { Err(idle(path, "--dim", why).into()) }
    }

    /// # Errors
    /// P0109 where the model lacks a dimension.
    pub fn check_names(&self, path: &Path, info: &ModelInfo) -> Outcome {
        let known = info.dim_names();
        match self.dims.iter().find(|(n, _)| !known.contains(&n.as_str())) {
            None => Ok(()),
            Some((name, _)) => {
                let message = format!("the model has no dynamic dimension `{name}`");
                Err(Diagnostic::error("P0109", message)
                    .at(Place::File { path: path.into() })
                    .help(suggestion("dynamic dimensions", name, &known))
                    .into())
            }
        }
    }
}

/// The kinds of file, by their names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Recipe,
    Onnx,
    Ir,
    Plan,
}

impl Kind {
    pub const fn name(self) -> &'static str {
        match self {
            Kind::Recipe => "recipe",
            Kind::Onnx => "onnx model",
            Kind::Ir => "textual ir",
            Kind::Plan => "plan",
        }
    }

    pub fn of(path: &Path) -> Outcome<Kind> {
        match path.extension().and_then(|e| e.to_str()) {
            Some("toml") => Ok(Kind::Recipe),
            Some("onnx") => Ok(Kind::Onnx),
            Some("pir") => Ok(Kind::Ir),
            Some("plan") => Ok(Kind::Plan),
            _ => Err(Diagnostic::error("P0001", "cannot tell what this file is from its name")
                .at(Place::File { path: path.into() })
                .help("a recipe ends in .toml, a model in .onnx or .pir, a plan in .plan")
                .into()),
        }
    }
}

fn unreadable(path: &Path, e: &std::io::Error) -> Diagnostic {
    Diagnostic::error("P0002", format!("cannot read the file: {e}"))
        .at(Place::File { path: path.into() })
}

/// A text file, not larger than any sensible one.
pub fn read_text(path: &Path) -> Outcome<String> {
    const LIMIT: u64 = 1 << 30;
    let file = std::fs::File::open(path).map_err(|e| unreadable(path, &e))?;
    let mut text = String::new();
    let read = file.take(LIMIT + 1).read_to_string(&mut text).map_err(|e| unreadable(path, &e))?;
    if read as u64 > LIMIT {
        let place = Place::File { path: path.into() };
        return Err(Diagnostic::error("P0002", "the file is larger than 1 GiB").at(place).into());
    }
    Ok(text)
}

pub fn read_recipe(path: &Path) -> Outcome<Recipe> {
    Ok(Recipe::load(path)?)
}

/// A verified graph from its text.
pub fn read_ir(path: &Path) -> Outcome<Graph> {
    let graph = text::parse(path, &read_text(path)?)?;
    ir::verify::verify(&graph)?;
    Ok(graph)
}

/// A plan, validated.
pub fn read_plan(path: &Path) -> Outcome<Plan> {
    let place = || Place::File { path: path.into() };
    let plan = Plan::from_json(&read_text(path)?).map_err(|e| {
        Diagnostic::error("P0003", e)
            .at(place())
            .help("`precast compile RECIPE -o FILE.plan` writes one")
    })?;
    plan.validate().map_err(|faults| {
        let errors = faults
            .iter()
            .map(|f| Diagnostic::error("P0007", format!("the plan is not valid: {f}")).at(place()));
        Diagnostics(errors.collect())
    })?;
    Ok(plan)
}
