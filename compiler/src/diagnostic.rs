//! What a person is told: code, message, place, help.

pub use precast_plan::words::{difference, nearest, suggestion};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Whether compilation can go on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Severity {
    Error,
    Warning,
    Note,
}

/// Where the fault is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// Bytes of a text (a recipe, textual IR).
    Span { path: PathBuf, text: String, span: Range<usize>, label: String },
    /// A node of an ONNX model: its name, or `#index (OpType)` where it has none.
    OnnxNode { path: PathBuf, node: String, op: String },
    /// A tensor of a file.
    Tensor { path: PathBuf, tensor: String },
    /// A node of the graph, by its stable name.
    Node { name: String },
    /// A whole file.
    File { path: PathBuf },
    /// An option of the command line, as it was given: `--device a100`.
    Flag { flag: String },
}

/// One message. Codes are stable: `P01xx` recipe, `P02xx` ONNX, `P03xx` textual IR, `P04xx` graph,
/// `P05xx` precision, `P06xx` target; `docs/ERRORS.md` lists them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostic {
    pub severity: Severity,
    pub code: &'static str,
    pub message: String,
    pub place: Option<Place>,
    /// What the person can do about it.
    pub help: Option<String>,
}

/// All that is wrong, at least one of severity error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diagnostics(pub Vec<Diagnostic>);

/// The compiler's result.
pub type Result<T, E = Diagnostics> = std::result::Result<T, E>;

impl Diagnostic {
    pub fn error(code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic {
            severity: Severity::Error,
            code,
            message: message.into(),
            place: None,
            help: None,
        }
    }
    pub fn warning(code: &'static str, message: impl Into<String>) -> Diagnostic {
        Diagnostic { severity: Severity::Warning, ..Diagnostic::error(code, message) }
    }
    pub fn at(mut self, place: Place) -> Diagnostic {
        self.place = Some(place);
        self
    }
    pub fn help(mut self, help: impl Into<String>) -> Diagnostic {
        self.help = Some(help.into());
        self
    }
}

impl Diagnostics {
    /// Gives `place` to every message that has none.
    #[must_use]
    pub fn at(mut self, place: impl Fn() -> Place) -> Diagnostics {
        for d in &mut self.0 {
            d.place.get_or_insert_with(&place);
        }
        self
    }
}

impl From<Diagnostic> for Diagnostics {
    fn from(d: Diagnostic) -> Diagnostics {
        Diagnostics(vec![d])
    }
}

impl fmt::Display for Diagnostic {
    /// Plain text, rustc's layout; spans show the line with a marker.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        use annotate_snippets::{AnnotationKind, Level, Renderer, Snippet};
        let level = match self.severity {
            Severity::Error => Level::ERROR,
            Severity::Warning => Level::WARNING,
            Severity::Note => Level::NOTE,
        };
        let title = level.primary_title(self.message.as_str()).id(self.code);
        if let Some(Place::Span { path, text, span, label }) = &self.place {
            let path = path.display().to_string();
            let mut group = title.element(
                Snippet::source(text.as_str())
                    .path(path)
                    .annotation(AnnotationKind::Primary.span(span.clone()).label(label.as_str())),
            );
            if let Some(help) = &self.help {
                group = group.element(Level::HELP.message(help.as_str()));
            }
            return write!(f, "{}", Renderer::plain().render(&[group]));
        }
        let word = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
            Severity::Note => "note",
        };
        write!(f, "{word}[{}]: {}", self.code, self.message)?;
        match &self.place {
            Some(Place::OnnxNode { path, node, op }) => {
                write!(f, "\n  --> {}: node `{node}` ({op})", path.display())?;
            }
            Some(Place::Tensor { path, tensor }) => {
                write!(f, "\n  --> {}: tensor `{tensor}`", path.display())?;
            }
            Some(Place::Node { name }) => write!(f, "\n  --> operation `{name}`")?,
            Some(Place::File { path }) => write!(f, "\n  --> {}", path.display())?,
            Some(Place::Flag { flag }) => write!(f, "\n  --> `{flag}` of the command line")?,
            Some(Place::Span { .. }) | None => {}
        }
        if let Some(help) = &self.help {
            write!(f, "\n  = help: {help}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Diagnostics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, d) in self.0.iter().enumerate() {
            if i > 0 {
                writeln!(f, "\n")?;
            }
            write!(f, "{d}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Diagnostics {}
