//! Where a run goes on: finding a checkpoint, and holding what it was against what it is.

use crate::failure::Outcome;
use crate::identity::{Class, Identity};
use crate::input;
use crate::next;
use crate::output::quiet;
use crate::recipe_args::warn;
use crate::saver::Saver;
use crate::signals::Signal;
use precast_compiler::{Diagnostic, Place};
use precast_plan::Plan;
use precast_runtime::data::Dataset;
use precast_runtime::{Checkpoint, Error, Fit, Session};
use std::convert::Infallible;
use std::fs;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// What `--resume` names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Resume {
    /// The newest whole checkpoint in the run's folder.
    Auto,
    File(PathBuf),
}

impl Resume {
    /// The file that is named.
    pub fn file(&self) -> Option<&Path> {
        match self {
            Resume::Auto => None,
            Resume::File(path) => Some(path),
        }
    }
}

impl FromStr for Resume {
    type Err = Infallible;
    fn from_str(text: &str) -> Result<Resume, Infallible> {
        Ok(if text == "auto" { Resume::Auto } else { Resume::File(text.into()) })
    }
}

/// Where in a run a command begins.
#[derive(clap::Args)]
pub struct ResumeArgs {
    /// Begin from this checkpoint of the run; `auto` is the newest whole one in its folder, and the
    /// start where there is none.
    #[arg(long, value_name = "FILE|auto")]
    resume: Option<Resume>,
    /// Go on though recipe, data, model or plan are not those of the checkpoint; what has changed is
    /// listed.
    #[arg(long, requires = "resume")]
    resume_changed: bool,
}

/// What of a run has to be as the checkpoint has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Held {
    /// Whatever its steps depend on.
    Steps,
    /// What they depend on when all is computed in f32 on the processor.
    F32,
}

/// Where a command has begun.
pub struct Begun {
    /// `None`: at the start.
    pub from: Option<Checkpoint>,
    /// What is not as the checkpoint has it, and was allowed, in words.
    pub changed: Vec<String>,
}

impl Begun {
    /// The checkpoint's file.
    pub fn path(&self) -> Option<&Path> {
        self.from.as_ref().map(Checkpoint::path)
    }
}

impl ResumeArgs {
    /// # Errors
    /// Where the file that is named is of another kind.
    pub fn check(&self) -> Outcome {
        input::check_checkpoint(self.resume.as_ref().and_then(Resume::file))
    }

    /// Begins where it is asked to in the run that `identity` tells of, whose checkpoints are in `folder`.
    /// `auto` takes one of before step `below`.
    ///
    /// # Errors
    /// Where no checkpoint can be taken; `P0033` and `P0034` where the run is not the one that was saved;
    /// what the session and the data refuse. Nothing has changed then.
    pub fn begin(
        &self,
        folder: &Path,
        below: u64,
        identity: &dyn Fn(&Plan) -> Outcome<Identity>,
        held: Held,
        session: &mut Session,
        data: &mut Dataset,
    ) -> Outcome<Begun> {
        let from = match &self.resume {
            Some(resume) => find(resume, folder, below)?,
            None => None,
        };
        let changed = match &from {
            Some(c) => {
                let identity = identity(session.plan())?;
                take(c, &identity, held, self.resume_changed, session, data)?
            }
            None => vec![],
        };
        Ok(Begun { from, changed })
    }

    /// Says where a run that was to go on begins, and what has changed.
    ///
    /// # Errors
    /// Where standard output is closed.
    pub fn report(&self, begun: &Begun, folder: &Path) -> Outcome {
        match (&self.resume, &begun.from) {
            _ if quiet() => {}
            (_, Some(c)) => say!("resumes     {}, after step {}", c.path().display(), c.steps()),
            (Some(_), None) => say!("resumes     nothing: {} has no checkpoint", folder.display()),
            (None, None) => {}
        }
        for text in &begun.changed {
            say!("changed     {text}");
        }
        Ok(())
    }
}

/// A run that a signal ended.
#[derive(Debug)]
pub struct Interrupt {
    pub signal: Signal,
    step: u64,
    total: u64,
    /// Where its state is, and what goes on with it, for a shell in this folder.
    saved: Result<(PathBuf, String), Error>,
}

impl Interrupt {
    /// Saves the state after the last step, where that has not been done, and waits for it.
    pub fn of(
        signal: Signal,
        total: u64,
        session: &Session,
        data: &Dataset,
        saver: &mut Saver,
    ) -> Interrupt {
        let step = session.steps();
        let kept = saver.keep(session, &data.state()).and_then(|()| saver.wait());
        let saved = kept.map(|()| {
            let args = std::env::args_os().map(|a| a.to_string_lossy().into_owned());
            let command = again(args, &saver.path(step));
            (saver.path(step), command)
        });
        Interrupt { signal, step, total, saved }
    }

    /// What goes on with the run.
    pub fn command(&self) -> Option<&str> {
        self.saved.as_ref().ok().map(|(_, command)| command.as_str())
    }

    /// What a person is told.
    pub fn text(&self) -> String {
        let left = match self.total.saturating_sub(self.step) {
            0 => "; all steps are taken, and the test is left".to_string(),
            _ => format!(" of {}", self.total),
        };
        let ended = format!("{} ended the run after step {}{left}", self.signal.name(), self.step);
        match &self.saved {
            Ok((path, command)) => {
                let path = path.display();
                format!("{ended}; its state is in {path}\nto go on:\n  {command}")
            }
            Err(e) => format!("{ended}; its state could not be saved\n{e}"),
        }
    }
}

/// The command line, going on from a checkpoint.
fn again(args: impl Iterator<Item = String>, checkpoint: &Path) -> String {
    let mut words = vec![];
    let mut args = args.peekable();
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--resume" => drop(args.next()),
            // Checkpoints say what the run is now.
            "--resume-changed" => {}
            _ if arg.starts_with("--resume=") => {}
            _ => words.push(quoted(&arg)),
        }
    }
    words.push("--resume".into());
    words.push(next::quoted(checkpoint));
    words.join(" ")
}

/// A word as a shell takes it; options as they are.
fn quoted(word: &str) -> String {
    let rest = word.trim_start_matches('-');
    match rest.is_empty() && !word.is_empty() {
        true => word.into(),
        false => format!("{}{}", &word[..word.len() - rest.len()], next::quoted(Path::new(rest))),
    }
}

/// A checkpoint's path in a run's folder.
pub fn path_of(folder: &Path, step: u64) -> PathBuf {
    folder.join(format!("checkpoint-{step}.safetensors"))
}

/// Checkpoints of a folder by their steps, in order.
///
/// # Errors
/// `R0515` where the folder cannot be read.
pub fn listed(folder: &Path) -> Outcome<Vec<(u64, PathBuf)>> {
    let refused = |e: std::io::Error| {
        Error::new("R0515", format!("cannot read the folder: {e}")).at(folder.display())
    };
    let mut found = vec![];
    for entry in fs::read_dir(folder).map_err(refused)? {
        let name = entry.map_err(refused)?.file_name();
        let step = name.to_str().and_then(|n| {
            let step = n.strip_prefix("checkpoint-")?.strip_suffix(".safetensors")?;
            // As they are written: no sign, no zeros in front.
            step.parse::<u64>().ok().filter(|s| s.to_string() == step)
        });
        found.extend(step.map(|s| (s, path_of(folder, s))));
    }
    found.sort();
    Ok(found)
}

/// The checkpoint that is asked for. `auto` passes over those of step `below` and later, and over those that
/// are damaged, saying so, and gives `None` where the folder has none at all.
///
/// # Errors
/// Where a named checkpoint cannot be taken; `P0032` where all of a folder's are damaged.
fn find(what: &Resume, folder: &Path, below: u64) -> Outcome<Option<Checkpoint>> {
    if let Resume::File(path) = what {
        return Ok(Some(Checkpoint::open(path)?));
    }
    // A run that never began has no folder.
    let mut all = if folder.exists() { listed(folder)? } else { vec![] };
    all.retain(|(step, _)| *step < below);
    for (_, path) in all.iter().rev() {
        match Checkpoint::open(path) {
            Ok(checkpoint) => return Ok(Some(checkpoint)),
            Err(e) => {
                let text = format!("a checkpoint is passed over: {}", e.message);
                let d = Diagnostic::warning("P0036", text);
                warn(&[d.at(Place::File { path: path.clone() })]);
            }
        }
    }
    match all.len() {
        0 => Ok(None),
        n => {
            let text = match n {
                1 => "the only checkpoint is damaged".to_string(),
                n => format!("all {n} checkpoints are damaged"),
            };
            Err(Diagnostic::error("P0032", text)
                .at(Place::File { path: folder.into() })
                .help("without `--resume` the run begins anew")
                .into())
        }
    }
}

/// Continues from a checkpoint. Gives what has changed, in words, where `changed` allows it.
fn take(
    checkpoint: &Checkpoint,
    identity: &Identity,
    held: Held,
    changed: bool,
    session: &mut Session,
    data: &mut Dataset,
) -> Outcome<Vec<String>> {
    let path = checkpoint.path();
    let changes = changes(checkpoint, identity, held, changed)?;
    let fit = match held {
        Held::F32 => Fit::Weights,
        Held::Steps if changes.is_empty() => Fit::Exact,
        Held::Steps => Fit::Machine,
    };
    // What the data refuses is found before the session's state is replaced.
    data.resume(checkpoint.data()).map_err(|e| Error {
        place: Some(format!("{}, on {}", path.display(), e.place.unwrap_or_default())),
        ..e
    })?;
    session.restore(checkpoint, fit)?;
    Ok(changes)
}

fn changes(
    checkpoint: &Checkpoint,
    identity: &Identity,
    held: Held,
    allowed: bool,
) -> Outcome<Vec<String>> {
    let place = || Place::File { path: checkpoint.path().into() };
    let Some(before) = Identity::saved(checkpoint)? else {
        let text = "the checkpoint says nothing of its recipe, data and plan: nobody can tell whether they \
                    are the same";
        warn(&[Diagnostic::warning("P0035", text)
            .at(place())
            .help("an earlier version wrote it; the ones of this run will say")]);
        return Ok(vec![]);
    };
    let changes = match held {
        Held::Steps => identity.changes(&before),
        Held::F32 => identity.in_f32().changes(&before.in_f32()),
    };
    let any = |class: Class| changes.iter().any(|c| c.class == class);
    let never = any(Class::Never);
    if !never && (allowed || !any(Class::May)) {
        return Ok(changes.into_iter().map(|c| c.text).collect());
    }
    let which = |class: Class| changes.iter().filter(move |c| c.class == class);
    let text = match changes.as_slice() {
        [one] => format!("the run is not the one that was saved: {}", one.text),
        _ => {
            let lines = changes.iter().map(|c| format!("\n  - {}", c.text)).collect::<String>();
            format!("the run is not the one that was saved:{lines}")
        }
    };
    if never {
        let names: Vec<&str> =
            which(Class::Never).map(|c| c.text.split(" ").next().unwrap_or_default()).collect();
        let help = format!(
            "with another {} the checkpoint's state would mean something else; `[weights] file = \"{}\"` begins \
             a new run from its weights",
            names.join(" or "),
            checkpoint.path().display()
        );
        return Err(Diagnostic::error("P0034", text).at(place()).help(help).into());
    }
    let help = "`--resume-changed` goes on with what is now; without it, put back what was";
    Err(Diagnostic::error("P0033", text).at(place()).help(help).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_to_go_on_is_the_command() {
        let of = |args: &[&str]| again(args.iter().map(ToString::to_string), Path::new("o/c-4"));
        assert_eq!(of(&["precast", "train", "r.toml"]), "precast train r.toml --resume o/c-4");
        assert_eq!(
            of(&["p", "train", "my r.toml", "--resume", "auto", "--resume-changed", "--steps=4"]),
            "p train 'my r.toml' --steps=4 --resume o/c-4"
        );
        assert_eq!(of(&["p", "train", "it's", "--resume=x"]), r"p train 'it'\''s' --resume o/c-4");
    }

    #[test]
    fn checkpoints_are_listed_by_their_steps() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "checkpoint-10.safetensors",
            "checkpoint-9.safetensors",
            "checkpoint-9.safetensors.partial",
            "checkpoint-09.safetensors",
            "checkpoint-x.safetensors",
            "checkpoint-8.safetensors.old",
            "weights.safetensors",
        ] {
            fs::write(dir.path().join(name), "").unwrap();
        }
        let steps: Vec<u64> = listed(dir.path()).unwrap().into_iter().map(|(s, _)| s).collect();
        assert_eq!(steps, [9, 10]);
    }
}
