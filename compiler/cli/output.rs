//! Files that commands write.

use crate::failure::Outcome;
use precast_runtime::Error;
use precast_runtime::tensors::write_whole;
use std::fs;
use std::io::Write;
use std::path::Path;

/// Writes a file as a whole or not at all.
pub fn write_file(path: &Path, bytes: &[u8]) -> Outcome {
    Ok(write_whole(path, |file| file.write_all(bytes))?)
}

pub fn make_folder(path: &Path) -> Outcome {
    fs::create_dir_all(path).map_err(|e| {
        Error::new("R0206", format!("cannot make the folder: {e}")).at(path.display())
    })?;
    Ok(())
}
