//! What a command is pointed at.

use crate::failure::{Failure, Outcome};
use precast_compiler::diagnostic::{nearest, suggestion};
use precast_compiler::frontend::onnx::ModelInfo;
use precast_compiler::ir::{self, Graph};
use precast_compiler::{Diagnostic, Diagnostics, Place, text};
use precast_plan::{FileKind, Plan, Seal};
use std::io::Read;
use std::path::{Path, PathBuf};

/// Extents of an ONNX model's dynamic dimensions.
#[derive(clap::Args)]
pub struct Dims {
    /// Of an ONNX model: extents of its dynamic dimensions, such as `N=4`.
    #[arg(long = "dim", value_name = "NAME=EXTENT", value_parser = dim)]
    pub dims: Vec<(String, usize)>,
}

fn dim(text: &str) -> Result<(String, usize), String> {
    let (name, extent) = text.split_once('=').ok_or("expected NAME=EXTENT")?;
    match extent.parse() {
        Ok(n) if n > 0 => Ok((name.into(), n)),
        _ => Err(format!("`{extent}` is not an extent, which is a number of at least 1")),
    }
}

/// The error where an option has no meaning for a file.
pub fn idle(path: &Path, option: &str, why: &str) -> Diagnostic {
    Diagnostic::error("P0011", format!("`{option}` means nothing for this input: {why}"))
        .at(Place::File { path: path.into() })
        .help("leave it out")
}

/// The error where an option, given as `flag`, has no meaning for a command.
pub fn idle_for(command: &str, flag: String, why: &str, help: &str) -> Diagnostic {
    Diagnostic::error("P0011", format!("`{flag}` means nothing to `{command}`: {why}"))
        .at(Place::Flag { flag })
        .help(help)
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

/// The kinds of file that can be looked at.
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

    /// # Errors
    /// P0001 for a file of no such kind.
    pub fn of(path: &Path) -> Outcome<Kind> {
        const ALL: &[FileKind] = &[FileKind::Recipe, FileKind::Onnx, FileKind::Ir, FileKind::Plan];
        Ok(match expect(path, ALL, None)? {
            FileKind::Recipe => Kind::Recipe,
            FileKind::Onnx => Kind::Onnx,
            FileKind::Ir => Kind::Ir,
            _ => Kind::Plan,
        })
    }
}

/// A file of a kind that what was given it does not take.
#[derive(Clone, Debug)]
pub struct Unwanted {
    path: PathBuf,
    found: FileKind,
    wanted: &'static [FileKind],
    /// The option, where it is not the command itself.
    by: Option<String>,
}

impl Unwanted {
    /// P0001: what the file is, what `command` takes, and what takes such files.
    pub fn diagnostic(&self, command: &str) -> Diagnostic {
        let by = self.by.clone().unwrap_or_else(|| command.into());
        let wanted: Vec<String> = self.wanted.iter().map(ToString::to_string).collect();
        let wanted = match wanted.as_slice() {
            [rest @ .., last] if !rest.is_empty() => format!("{} or {last}", rest.join(", ")),
            list => list.concat(),
        };
        let help = self.inside().or_else(|| {
            let advice = advice(self.found, self.wanted[0], self.by.is_some());
            advice.filter(|_| self.wanted.len() <= 2).or(self.found.taken_by()).map(str::to_string)
        });
        let message = format!("`{by}` takes {wanted}, and this is {}", self.found);
        let d = Diagnostic::error("P0001", message).at(Place::File { path: self.path.clone() });
        match help {
            Some(help) => d.help(help),
            None => d,
        }
    }

    /// Of a folder: the file in it that was meant.
    fn inside(&self) -> Option<String> {
        if self.found != FileKind::Folder {
            return None;
        }
        let files = std::fs::read_dir(&self.path).ok()?.flatten().map(|e| e.path());
        let fits = |p: &PathBuf| FileKind::promised(p).is_some_and(|k| self.wanted.contains(&k));
        let mut files: Vec<PathBuf> = files.filter(|p| fits(p) && p.is_file()).collect();
        files.sort();
        match files.as_slice() {
            [] => Some("name a file".into()),
            [one] => Some(format!("did you mean `{}`?", one.display())),
            [first, ..] => Some(format!("name a file in it, such as `{}`", first.display())),
        }
    }
}

/// What to do where a file of one kind is given and another is wanted. A command was meant for the file
/// that it got, and another command takes that; an option or a key is meant for what it takes.
pub fn advice(found: FileKind, wanted: FileKind, by_option: bool) -> Option<&'static str> {
    let torch =
        matches!(found, FileKind::TorchPickle | FileKind::TorchScript | FileKind::TorchProgram);
    let compiled = found == FileKind::Recipe && wanted == FileKind::Plan;
    let made_first = compiled || by_option && !(torch && wanted == FileKind::Onnx);
    if made_first {
        wanted.made_by().or(found.taken_by())
    } else {
        found.taken_by().or(wanted.made_by())
    }
}

/// The kind of a file, which must be one of `wanted`; `by` is the option that takes it, where that is
/// not the command itself. A file that cannot be read, and a damaged one whose name says that it is of
/// the right kind, is left to its reader, who says what is wrong with it.
///
/// # Errors
/// P0001 for a file of another kind, P0002 for one that cannot be read and might be any.
pub fn expect(path: &Path, wanted: &'static [FileKind], by: Option<&str>) -> Outcome<FileKind> {
    let promised = FileKind::promised(path).filter(|k| wanted.contains(k));
    let found = match FileKind::of(path) {
        Ok(kind) if wanted.contains(&kind) => return Ok(kind),
        Ok(kind) => kind,
        Err(e) => {
            let only = wanted.first().filter(|_| wanted.len() == 1).copied();
            return promised.or(only).ok_or_else(|| unreadable(path, &e).into());
        }
    };
    match promised.filter(|_| found.is_vague()) {
        Some(kind) => Ok(kind),
        None => {
            let by = by.map(str::to_string);
            Err(Failure::Unwanted(Box::new(Unwanted { path: path.into(), found, wanted, by })))
        }
    }
}

/// Checks what `--resume` names.
///
/// # Errors
/// P0001 where it is of another kind than a checkpoint.
pub fn check_checkpoint(path: Option<&Path>) -> Outcome {
    let Some(path) = path.filter(|p| p.exists()) else { return Ok(()) };
    let Ok(found) = FileKind::of(path) else { return Ok(()) };
    // A safetensors file may be what was kept of a checkpoint; its reader says what it lacks, and what
    // is wrong with a damaged one.
    let tensors = |k| k == FileKind::Safetensors;
    if tensors(found) || found.is_vague() && FileKind::promised(path).is_some_and(tensors) {
        return Ok(());
    }
    expect(path, &[FileKind::Checkpoint], Some("--resume")).map(|_| ())
}

pub fn unreadable(path: &Path, e: &std::io::Error) -> Diagnostic {
    let d = Diagnostic::error("P0002", format!("cannot read the file: {e}"))
        .at(Place::File { path: path.into() });
    match precast_plan::instead_of(path).filter(|_| !path.exists()) {
        Some(help) => d.help(help),
        None => d,
    }
}

/// What to do where `name` names none of `known`: the one that it is a slip of, else those that it is a
/// part of, else `otherwise`.
pub fn instead_of_name<'n>(
    name: &str,
    known: impl Iterator<Item = &'n str> + Clone,
    otherwise: &str,
) -> String {
    if let Some(near) = nearest(name, known.clone()) {
        return format!("did you mean `{near}`?");
    }
    let mut within: Vec<&str> = known.filter(|k| k.contains(name)).collect();
    within.dedup();
    match within.as_slice() {
        [] => otherwise.into(),
        [one] => format!("did you mean `{one}`?"),
        [first, ..] => format!("`*{name}*` names {}, such as `{first}`", within.len()),
    }
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

/// A verified graph from its text.
pub fn read_ir(path: &Path) -> Outcome<Graph> {
    let graph = text::parse(path, &read_text(path)?)?;
    ir::verify::verify(&graph)?;
    Ok(graph)
}

/// A plan, validated, and not changed since it was written.
pub fn read_plan(path: &Path) -> Outcome<Plan> {
    Ok(read_whole(path)?.0)
}

/// [`read_plan`], and whether the plan has a digest at all.
pub fn read_whole(path: &Path) -> Outcome<(Plan, Seal)> {
    let (plan, seal) = read_unsealed(path)?;
    if seal == Seal::Changed {
        let text =
            "the plan was changed since it was written: its digest is not that of what it says";
        return Err(Diagnostic::error("P0021", text)
            .at(Place::File { path: path.into() })
            .help(
                "`precast compile RECIPE -o FILE.plan` writes it again; where the change was meant, \
                 `precast check --seal FILE.plan` writes the digest of what it says now",
            )
            .into());
    }
    Ok((plan, seal))
}

/// A plan, validated, whether it was changed or not.
pub fn read_unsealed(path: &Path) -> Outcome<(Plan, Seal)> {
    expect(path, &[FileKind::Plan], None)?;
    let place = || Place::File { path: path.into() };
    let (plan, seal) = Plan::unsealed(&read_text(path)?).map_err(|e| {
        Diagnostic::error("P0003", e)
            .at(place())
            .help("`precast compile RECIPE -o FILE.plan` writes one")
    })?;
    plan.validate().map_err(|faults| {
        let errors = faults
            .iter()
            .map(|f| Diagnostic::error("P0007", format!("the plan is not valid: {f}")).at(place()));
        let mut errors: Vec<Diagnostic> = errors.collect();
        if let Some(last) = errors.last_mut() {
            last.help = Some("compile it again: `precast compile RECIPE -o FILE.plan`".into());
        }
        Diagnostics(errors)
    })?;
    Ok((plan, seal))
}
