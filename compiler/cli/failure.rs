//! How a command fails: what is printed and which code it exits with.

use crate::input::Unwanted;
use crate::output::coloured;
use crate::signals::Signal;
use precast_compiler::{Diagnostic, Diagnostics, Place, Severity};
use serde_json::{Value, json};
use std::process::ExitCode;

/// Why a command did not succeed.
#[derive(Debug)]
pub enum Failure {
    /// The input is at fault: recipe, model, plan.
    Input(Diagnostics),
    /// A file of another kind than was asked for.
    Unwanted(Box<Unwanted>),
    /// The runtime refused: data, weights, device.
    Run(precast_runtime::Error),
    /// Standard output could not be written.
    Io(std::io::Error),
    /// Training ended, and what came of it is not good. The run has printed its result.
    Training(precast_runtime::Error),
    /// Training ended before its time, or without all of what it was to write, and what came of it
    /// is good as far as it went. The run has printed its result.
    Cut(precast_runtime::Error),
    /// A signal ended training; what a person should know. The run has printed its result.
    Signal(Signal, String),
}

pub type Outcome<T = ()> = Result<T, Failure>;

impl From<Diagnostics> for Failure {
    fn from(d: Diagnostics) -> Failure {
        Failure::Input(d)
    }
}

impl From<Diagnostic> for Failure {
    fn from(d: Diagnostic) -> Failure {
        Failure::Input(d.into())
    }
}

impl From<precast_runtime::Error> for Failure {
    fn from(e: precast_runtime::Error) -> Failure {
        Failure::Run(e)
    }
}

impl From<std::io::Error> for Failure {
    fn from(e: std::io::Error) -> Failure {
        Failure::Io(e)
    }
}

impl Failure {
    /// The same of a command: what it takes is a part of the message.
    #[must_use]
    pub fn of(self, command: &str) -> Failure {
        match self {
            Failure::Unwanted(file) => Failure::Input(file.diagnostic(command).into()),
            other => other,
        }
    }

    /// `docs/CLI.md` lists the codes.
    pub fn exit_code(&self) -> ExitCode {
        match self {
            // The recipe may be in order; this machine lacks a device or a library of its.
            Failure::Run(e) | Failure::Cut(e)
                if matches!(e.code, "R0701" | "R0702" | "R0704" | "R0709") =>
            {
                ExitCode::from(4)
            }
            Failure::Input(_)
            | Failure::Unwanted(_)
            | Failure::Run(_)
            | Failure::Io(_)
            | Failure::Cut(_) => ExitCode::from(1),
            Failure::Training(_) => ExitCode::from(3),
            Failure::Signal(signal, _) => ExitCode::from(signal.exit_code()),
        }
    }

    /// What happened, without code and place.
    pub fn message(&self) -> String {
        match self {
            Failure::Input(d) => {
                d.0.iter().map(|d| d.message.as_str()).collect::<Vec<_>>().join("; ")
            }
            Failure::Unwanted(file) => file.diagnostic("precast").message,
            Failure::Run(e) | Failure::Training(e) | Failure::Cut(e) => e.message.clone(),
            Failure::Io(e) => e.to_string(),
            Failure::Signal(_, text) => text.clone(),
        }
    }

    /// Text to standard error; with `json` also one object to standard output.
    pub fn report(&self, json: bool) {
        tell!("{}", coloured(&self.text()));
        if let Failure::Input(d) = self {
            let errors = d.0.iter().filter(|d| d.severity == Severity::Error).count();
            if errors > 1 {
                tell!("\n{errors} errors");
            }
        }
        if json && !matches!(self, Failure::Training(_) | Failure::Cut(_) | Failure::Signal(..)) {
            put_object(&json!({ "ok": false, "errors": self.errors() }));
        }
    }

    /// Every error as an object.
    pub fn errors(&self) -> Vec<Value> {
        match self {
            Failure::Input(d) => d.0.iter().map(diagnostic).collect(),
            Failure::Unwanted(file) => vec![diagnostic(&file.diagnostic("precast"))],
            Failure::Run(e) | Failure::Training(e) | Failure::Cut(e) => vec![error(e)],
            Failure::Io(e) => vec![json!({ "code": "P0010", "severity": "error",
                "message": e.to_string() })],
            Failure::Signal(..) => vec![],
        }
    }

    /// What is printed.
    pub fn text(&self) -> String {
        match self {
            Failure::Input(d) => d.to_string(),
            Failure::Unwanted(file) => file.diagnostic("precast").to_string(),
            Failure::Run(e) | Failure::Training(e) | Failure::Cut(e) => e.to_string(),
            Failure::Io(e) => format!("error[P0010]: cannot write to standard output: {e}"),
            Failure::Signal(_, text) => text.clone(),
        }
    }
}

/// An error of the runtime as an object.
pub fn error(e: &precast_runtime::Error) -> Value {
    json!({ "code": e.code, "severity": "error", "message": e.message, "place": e.place,
            "help": e.help })
}

/// Ends a command whose arguments were not understood, or that only asked for help.
pub fn usage(e: &clap::Error, json: bool) -> ExitCode {
    let _ = e.print();
    if json && e.use_stderr() {
        let text = e.render().to_string();
        let message = text.lines().next().unwrap_or_default().trim_start_matches("error: ");
        let error = json!({ "code": null, "severity": "error", "message": message });
        put_object(&json!({ "ok": false, "errors": [error] }));
    }
    ExitCode::from(e.exit_code() as u8)
}

/// An object to standard output, where nobody may be listening.
fn put_object(object: &Value) {
    use std::io::Write as _;
    let _ = writeln!(std::io::stdout(), "{object}");
}

/// A diagnostic as an object: code, severity, message, place, help.
pub fn diagnostic(d: &Diagnostic) -> Value {
    let severity = match d.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Note => "note",
    };
    let place = d.place.as_ref().map(|place| match place {
        Place::Span { path, text, span, label } => {
            let before = &text[..span.start.min(text.len())];
            let line = before.matches('\n').count() + 1;
            let column = before.chars().rev().take_while(|c| *c != '\n').count() + 1;
            json!({ "file": path, "line": line, "column": column, "bytes": [span.start, span.end],
                    "label": label })
        }
        Place::OnnxNode { path, node, op } => json!({ "file": path, "node": node, "op": op }),
        Place::Tensor { path, tensor } => json!({ "file": path, "tensor": tensor }),
        Place::Node { name } => json!({ "node": name }),
        Place::File { path } => json!({ "file": path }),
        Place::Flag { flag } => json!({ "flag": flag }),
    });
    json!({ "code": d.code, "severity": severity, "message": d.message, "place": place,
            "help": d.help })
}
