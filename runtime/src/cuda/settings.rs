//! What the environment says about the CUDA backend. A value that is not understood is an error: one
//! that was passed over would be thought to have been obeyed.

use super::blas::TUNE_VARIABLE;
use super::device::GRAPH_VARIABLE;
use super::dnn::{CUDNN_VARIABLE, DETERMINISTIC_VARIABLE};
use super::library::FOLDERS_VARIABLE;
use crate::error::{Error, Result};
use std::env;
use std::ffi::OsString;

/// Switches, what each may be, and what that means.
const SWITCHES: [(&str, &[&str], &str); 4] = [
    (TUNE_VARIABLE, &["0", "1"], "`0` takes the libraries' first proposals without measuring"),
    (CUDNN_VARIABLE, &["0", "1"], "`0` runs convolutions and attention without cuDNN"),
    (
        DETERMINISTIC_VARIABLE,
        &["0", "1"],
        "`0` allows gradients of attention whose sums change order from run to run",
    ),
    (
        GRAPH_VARIABLE,
        &["0", "1", "check"],
        "`0` launches kernels one by one, and `check` waits for each as well",
    ),
];

/// Checks everything that the environment says.
///
/// # Errors
/// `R0710` for the first value that is not understood.
pub fn check() -> Result<()> {
    check_in(&|name| env::var_os(name))
}

fn check_in(get: &dyn Fn(&str) -> Option<OsString>) -> Result<()> {
    // An empty variable is one that is not set.
    let value = |name| get(name).filter(|v| !v.is_empty());
    for (name, words, meaning) in SWITCHES {
        let Some(value) = value(name) else { continue };
        if !words.iter().any(|w| value == *w) {
            let quoted: Vec<String> = words.iter().map(|w| format!("`{w}`")).collect();
            let text = format!(
                "{name} is `{}`, and may be {}",
                value.to_string_lossy(),
                quoted.join(" or ")
            );
            return Err(Error::new("R0710", text)
                .at(format!("environment variable {name}"))
                .help(meaning));
        }
    }
    let folders = value(FOLDERS_VARIABLE).unwrap_or_default();
    for folder in env::split_paths(&folders).filter(|f| !f.as_os_str().is_empty()) {
        if !folder.is_dir() {
            let what = if folder.exists() { "is no folder" } else { "does not exist" };
            let text = format!("{FOLDERS_VARIABLE} names {}, which {what}", folder.display());
            return Err(Error::new("R0710", text)
                .at(format!("environment variable {FOLDERS_VARIABLE}"))
                .help("it is a list of folders with NVIDIA's libraries, as `PATH` is one"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(name: &'static str, value: &'static str) -> Result<()> {
        check_in(&|n| (n == name).then(|| value.into()))
    }

    #[test]
    fn values_that_mean_something_are_taken() {
        check_in(&|_| None).unwrap();
        for (name, words, _) in SWITCHES {
            with(name, "").unwrap();
            for word in words {
                with(name, word).unwrap();
            }
        }
        with(FOLDERS_VARIABLE, "/:/tmp:").unwrap();
    }

    #[test]
    fn values_that_mean_nothing_are_errors_that_name_those_that_do() {
        let messages: Vec<String> = SWITCHES
            .iter()
            .map(|(name, _, _)| with(name, "off").unwrap_err().to_string())
            .chain([with(FOLDERS_VARIABLE, "/:/no/such/folder").unwrap_err().to_string()])
            .collect();
        insta::assert_snapshot!(messages.join("\n\n"));
    }
}
