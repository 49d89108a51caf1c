//! Files that commands write.

use crate::failure::Outcome;
use precast_runtime::files;
use std::path::Path;

/// Writes a file as a whole or not at all.
pub fn write_file(path: &Path, bytes: &[u8]) -> Outcome {
    Ok(files::write_bytes(path, bytes)?)
}

/// Makes a folder that files can be written in.
pub fn make_folder(path: &Path) -> Outcome {
    Ok(files::make_folder(path)?)
}
