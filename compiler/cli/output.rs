//! Files that commands write.

use crate::failure::Outcome;
use precast_runtime::files;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

static QUIET: AtomicBool = AtomicBool::new(false);

/// Sets what [`quiet`] says; once, from the command line.
pub fn set_quiet(quiet: bool) {
    QUIET.store(quiet, Ordering::Relaxed);
}

/// Whether only errors, warnings and what was asked for are to be seen.
pub fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Writes a file as a whole or not at all.
pub fn write_file(path: &Path, bytes: &[u8]) -> Outcome {
    Ok(files::write_bytes(path, bytes)?)
}

/// Whether a file could be written, before the time is spent that makes it.
pub fn can_write(path: &Path) -> Outcome {
    Ok(files::can_write(path)?)
}

/// Makes a folder that files can be written in.
pub fn make_folder(path: &Path) -> Outcome {
    Ok(files::make_folder(path)?)
}

/// A message as standard error is to show it: in colours, where a terminal or `CLICOLOR_FORCE` asks for
/// them and `NO_COLOR`, `CLICOLOR=0` or `TERM=dumb` do not forbid them.
pub fn coloured(message: &str) -> String {
    match anstream::AutoStream::choice(&std::io::stderr()) {
        anstream::ColorChoice::Never => message.into(),
        _ => paint(message),
    }
}

/// rustc's colours: the severity in its own, the message in bold.
fn paint(message: &str) -> String {
    let paint = |line: &str| {
        for (word, colour) in [("error", "1;31"), ("warning", "1;33"), ("note", "1;32")] {
            let rest = line.strip_prefix(word).filter(|r| r.starts_with(['[', ':']));
            if let Some((code, text)) = rest.and_then(|r| r.split_once(": ")) {
                return format!("\x1b[{colour}m{word}{code}\x1b[0m\x1b[1m: {text}\x1b[0m");
            }
        }
        match line.split_once("= help: ") {
            Some((margin, text)) if margin.trim().is_empty() => {
                format!("{margin}\x1b[1;36m=\x1b[0m \x1b[1mhelp\x1b[0m: {text}")
            }
            _ => line.to_string(),
        }
    };
    message.split('\n').map(paint).collect::<Vec<_>>().join("\n")
}
