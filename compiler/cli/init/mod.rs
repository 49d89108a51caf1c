//! `precast init`: a first recipe for a model.

mod draft;
mod found;
mod matching;

use crate::failure::Outcome;
use crate::input::{self, idle};
use crate::next::quoted;
use crate::output::{quiet, write_file};
use draft::{Draft, Model};
use precast_compiler::frontend::onnx;
use precast_compiler::frontend::recipe::Recipe;
use precast_compiler::{Diagnostic, Place};
use precast_plan::FileKind;
use serde_json::json;
use std::path::{Path, PathBuf};

/// Write a commented recipe for a model: its inputs and outputs, and a guess of its loss.
#[derive(clap::Args)]
pub struct Args {
    /// A model (.onnx).
    model: PathBuf,
    /// A data file (.safetensors, .csv, or any other as text): its tensors or columns are matched with
    /// the model's inputs.
    #[arg(long)]
    data: Option<PathBuf>,
    /// Where the recipe goes; by default `recipe.toml` beside the model.
    #[arg(short, long)]
    out: Option<PathBuf>,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    input::expect(&args.model, &[FileKind::Onnx], None)?;
    args.data.as_deref().map_or(Ok(()), found::is_data)?;
    let info = onnx::inspect(&args.model)?;
    let folder = args.model.parent().unwrap_or(Path::new(""));
    let out = args.out.clone().unwrap_or_else(|| folder.join("recipe.toml"));
    if out.extension().is_none_or(|e| e != "toml") {
        return Err(idle(&out, "--out", "a recipe ends in .toml").into());
    }
    if out.exists() {
        return Err(Diagnostic::error("P0016", "the recipe exists, and is not written over")
            .at(Place::File { path: out })
            .help("`-o` gives another name")
            .into());
    }
    let data = args.data.as_deref().map(found::look).transpose()?;
    let (unread, inputs) = info.inputs.into_iter().partition(|i| info.unread.contains(&i.name));
    let model = Model {
        path: beside(&out, &args.model),
        inputs,
        unread,
        outputs: info.outputs,
        // Weights that are to be drawn lie in a file that is not there.
        drawn: info
            .params
            .iter()
            .any(|p| p.file.as_ref().is_some_and(|f| !folder.join(f).exists())),
    };
    let data = data.map(|found| (beside(&out, args.data.as_deref().expect("looked into")), found));
    let Draft { text, notes } = draft::draft(&model, data.as_ref().map(|(p, f)| (p.as_str(), f)));
    write_file(&out, text.as_bytes())?;
    if json {
        say!("{}", json!({ "ok": true, "recipe": out, "notes": notes }));
        return Ok(());
    }
    // Whatever a model and data are called, a draft reads back.
    Recipe::parse(&out, &text).map_err(|e| {
        Diagnostic::error(
            "P0014",
            format!("the draft needs a hand before it is a recipe: {}", e.0[0].message),
        )
        .at(Place::File { path: out.clone() })
        .help("its comments say what the model takes and gives")
    })?;
    if quiet() {
        return Ok(());
    }
    say!("saved       {}", out.display());
    for note in &notes {
        say!("{note}");
    }
    let recipe = quoted(&out);
    say!("next        precast check {recipe}  # says what does not fit");
    say!("            precast train {recipe}  # trains");
    Ok(())
}

/// A path as a recipe at `recipe` says it: relative to its folder where it lies there, else whole.
fn beside(recipe: &Path, file: &Path) -> String {
    let whole = |p: &Path| std::path::absolute(p).unwrap_or_else(|_| p.into());
    let (recipe, file) = (whole(recipe), whole(file));
    let inside = recipe.parent().and_then(|folder| file.strip_prefix(folder).ok());
    inside.unwrap_or(&file).display().to_string()
}
