//! The folder of a run is one process's at a time.

use crate::failure::{Failure, Outcome};
use crate::output::make_folder;
use crate::recipe_args::warn;
use precast_compiler::{Diagnostic, Place};
use precast_runtime::files;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Name of the file that is locked. The system drops the lock with the process that has it, however
/// that ends; what the file says is only for messages.
const NAME: &str = ".lock";

/// A folder that no other run writes into meanwhile.
#[derive(Debug)]
pub struct Lock {
    path: PathBuf,
    /// Open as long as the folder is locked.
    _file: File,
    /// The folder was made for this run.
    made: bool,
    /// Something has been, or is about to be, written into it.
    begun: bool,
}

impl Lock {
    /// Makes the folder, where there is none, and locks it.
    ///
    /// # Errors
    /// `P0031` where another process has it; `R0206` where it cannot be written.
    pub fn take(folder: &Path) -> Outcome<Lock> {
        let made = !folder.exists();
        make_folder(folder)?;
        let path = folder.join(NAME);
        let host = gethostname::gethostname();
        let since = humantime::format_rfc3339_seconds(SystemTime::now());
        let owner =
            format!("process {} on {}, since {since}\n", std::process::id(), host.display());
        let file = match files::lock(&path, &owner)? {
            files::Lock::Taken(file) => file,
            files::Lock::Held(owner) => return Err(held(folder, &path, owner.trim())),
            files::Lock::Never(file) => {
                let text =
                    "the file system has no locks: nothing keeps another run out of the folder";
                let place = Place::File { path: folder.into() };
                warn(&[Diagnostic::warning("P0037", text).at(place)]);
                file
            }
        };
        Ok(Lock { path, _file: file, made, begun: false })
    }

    /// From here on the folder stays, whatever becomes of the run.
    pub fn begin(&mut self) {
        self.begun = true;
    }
}

impl Drop for Lock {
    /// A run that ends before it begins leaves a folder that it made as it found it.
    fn drop(&mut self) {
        if self.made && !self.begun {
            // The file is still locked; nobody can be using what is removed.
            let _ = files::remove(&self.path);
            let _ = self.path.parent().map(fs::remove_dir);
        }
    }
}

fn held(folder: &Path, path: &Path, owner: &str) -> Failure {
    let owner = if owner.is_empty() { "another process" } else { owner };
    let text = format!("another run writes into {}: {owner}", folder.display());
    Diagnostic::error("P0031", text)
        .at(Place::File { path: path.into() })
        .help("wait for it or end it; `--out` names another folder")
        .into()
}
