//! What a command is pointed at.

use crate::failure::Outcome;
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::ir::{self, Graph};
use precast_compiler::{Diagnostic, Diagnostics, Place, text};
use precast_plan::Plan;
use std::io::Read;
use std::path::Path;

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
