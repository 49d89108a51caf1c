//! The runtime's one error type.

use std::fmt;

pub type Result<T> = std::result::Result<T, Error>;

/// What went wrong, where, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    /// Stable: `R` and four digits.
    pub code: &'static str,
    pub message: String,
    /// A file, tensor or step.
    pub place: Option<String>,
    pub help: Option<String>,
}

impl Error {
    pub fn new(code: &'static str, message: impl Into<String>) -> Error {
        Error { code, message: message.into(), place: None, help: None }
    }

    /// Says where; the innermost place wins.
    #[must_use]
    pub fn at(mut self, place: impl fmt::Display) -> Error {
        self.place.get_or_insert_with(|| place.to_string());
        self
    }

    /// Says what to do.
    #[must_use]
    pub fn help(mut self, help: impl Into<String>) -> Error {
        self.help = Some(help.into());
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error[{}]: {}", self.code, self.message)?;
        if let Some(place) = &self.place {
            write!(f, "\n  --> {place}")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n  help: {help}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prints_code_place_and_help() {
        let e = Error::new("R0001", "no").at("a.txt").at("b.txt").help("try");
        assert_eq!(e.to_string(), "error[R0001]: no\n  --> a.txt\n  help: try");
    }
}
