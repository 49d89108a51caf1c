//! `precast check`: is this file in order?

use crate::failure::Outcome;
use crate::input::{self, Dims, Kind};
use crate::output::write_file;
use crate::recipe_args::{Settings, compile, has_model, open, open_data, options, warn};
use precast_compiler::autodiff::vanishing;
use precast_compiler::frontend::onnx;
use precast_compiler::pipeline::reads_nothing_of;
use precast_compiler::{Diagnostic, Place};
use precast_plan::{Plan, Seal};
use serde_json::json;
use std::path::{Path, PathBuf};

/// Validate a recipe, a model or a plan without running anything.
#[derive(clap::Args)]
pub struct Args {
    /// A recipe (.toml), a model (.onnx, .pir) or a plan (.plan).
    #[arg(required = true)]
    files: Vec<PathBuf>,
    #[command(flatten)]
    dims: Dims,
    #[command(flatten)]
    settings: Settings,
    /// Write into a plan that is in order the digest of what it says: for one that a person or another
    /// tool wrote or changed.
    #[arg(long)]
    seal: bool,
}

pub fn run(args: &Args, json: bool) -> Outcome {
    let mut found = vec![];
    for path in &args.files {
        let Checked { kind, summary, names } = check(path, args)?;
        if !json {
            say!("{}: {} is in order: {summary}", path.display(), kind.name());
        }
        let mut entry = json!({ "file": path, "kind": kind.name(), "summary": summary });
        for (key, names) in names {
            entry[key] = json!(names);
        }
        found.push(entry);
    }
    if json {
        say!("{}", json!({ "ok": true, "files": found }));
    }
    Ok(())
}

/// Inputs that no result depends on.
fn unread(imported: &onnx::Imported) -> Option<Diagnostic> {
    let g = &imported.graph;
    let mut read = vec![false; g.value_count()];
    g.results.iter().chain(&g.updates).for_each(|r| read[r.value.0 as usize] = true);
    let mut unread: Vec<&str> = vec![];
    for (_, n) in g.nodes().rev() {
        if !n.outputs.iter().any(|v| read[v.0 as usize]) {
            unread.extend(imported.inputs.iter().map(|i| i.0.as_str()).filter(|i| *i == n.name));
            continue;
        }
        n.inputs.iter().for_each(|v| read[v.0 as usize] = true);
    }
    unread.reverse();
    (!unread.is_empty()).then(|| reads_nothing_of(&unread))
}

/// What there is to say of a file.
struct Checked {
    kind: Kind,
    summary: String,
    /// Names of tensors by what becomes of them: `trained`, `buffers`.
    names: Vec<(&'static str, Vec<String>)>,
}

fn check(path: &Path, args: &Args) -> Outcome<Checked> {
    let kind = Kind::of(path)?;
    let Args { dims, settings, seal, .. } = args;
    dims.check_kind(path, kind)?;
    if *seal && kind != Kind::Plan {
        return Err(input::idle(path, "--seal", "only a plan has a digest").into());
    }
    if kind != Kind::Recipe {
        settings.only_recipes(path)?;
    }
    let mut names = vec![];
    let summary = match kind {
        Kind::Recipe => {
            let recipe = settings.load(path)?;
            has_model(&recipe)?;
            // What a recipe names is right where it compiles and its data and weights fit the plan.
            let data = match recipe.data.source {
                Some(_) => Some(open_data(&recipe)?),
                None => None,
            };
            let compiled = compile(&recipe, &options())?;
            names.push(("trained", compiled.trained));
            let plan = compiled.plan;
            if let Some(data) = data.filter(|_| plan.target.device == "cpu") {
                open(&recipe, plan, data, 1)?;
            }
            format!("model {}, policy {}", recipe.model.display(), recipe.precision.policy.name())
        }
        Kind::Onnx => {
            let info = onnx::inspect(path)?;
            dims.check_names(path, &info)?;
            if !info.unsupported.is_empty() {
                let message =
                    format!("operators that cannot be imported: {}", info.unsupported.join(", "));
                let error =
                    Diagnostic::error("P0009", message).at(Place::File { path: path.into() });
                let instead = info
                    .unsupported
                    .iter()
                    .filter_map(|op| Some(format!("`{op}`: {}", onnx::instead_of(op)?)));
                let instead: Vec<String> = instead.collect();
                return Err(match instead.is_empty() {
                    true => error.into(),
                    false => error.help(instead.join("; ")).into(),
                });
            }
            let assumed = onnx::load_assuming(path, &dims.dims)?;
            let operators: usize = info.ops.values().sum();
            let parameters = info.params.iter().filter(|p| !p.buffer);
            let elements: usize = parameters.map(|p| p.shape.iter().product::<usize>()).sum();
            let mut text =
                format!("opset {}, {operators} operators, {elements} parameters", info.opset);
            if !assumed.dims.is_empty() {
                let list: Vec<String> =
                    assumed.dims.iter().map(|(name, x)| format!("{name} = {x}")).collect();
                text += &format!("; imported with assumed extents: {}", list.join(", "));
            }
            match &assumed.imported {
                Some(imported) => {
                    warn(&imported.warnings);
                    let g = &imported.graph;
                    let outputs: Vec<_> = g.results.iter().map(|r| r.value).collect();
                    warn(&vanishing(g, &outputs, &[]));
                    warn(unread(imported).as_slice());
                    names.push(("trained", imported.params.clone()));
                    names.push(("buffers", imported.buffers.clone()));
                    if !imported.drawn.is_empty() {
                        text += &format!(
                            "; {} of its tensors have no values, which `[weights] file` or `init` \
                             gives",
                            imported.drawn.len()
                        );
                    }
                }
                None => {
                    text +=
                        "; not imported, since an input states no shape: only data can tell more";
                }
            }
            text
        }
        Kind::Ir => {
            let g = input::read_ir(path)?;
            format!("{} operations, {} variables", g.node_count(), g.vars.len())
        }
        Kind::Plan => {
            let (plan, sealed) = plan(path, args.seal)?;
            let steps = plan.micro.len() + plan.update.len();
            format!(
                "{steps} steps, {} tensors, for {}, {sealed}",
                plan.tensors.len(),
                plan.target.name
            )
        }
    };
    Ok(Checked { kind, summary, names })
}

/// A plan, sealed if that is wanted, and what its digest says.
fn plan(path: &Path, seal: bool) -> Outcome<(Plan, &'static str)> {
    let (plan, before) = if seal { input::read_unsealed(path)? } else { input::read_whole(path)? };
    let said = match before {
        Seal::Whole => "as it was written",
        _ if seal => "sealed",
        _ => "without a digest",
    };
    if seal && before != Seal::Whole {
        write_file(path, plan.to_json().as_bytes())?;
    }
    Ok((plan, said))
}
