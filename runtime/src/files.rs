//! Files. The one place that writes them: a file is written as a whole or not at all, a log by whole
//! lines, and what the disk says becomes an error with a path and what to do about it. Files that
//! are read for as long as a run lasts are an [`InputFile`].

mod input;

pub use input::{InputFile, open_many, read_whole, too_many_open};

use crate::error::{Error, Result};
use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Makes a write beyond the process's limit of file sizes (`ulimit -f`) an error, as every other
/// refusal of the disk is. Without this the system ends the process with `SIGXFSZ`.
///
/// For programs to call as they begin: what a signal does is the whole process's matter.
pub fn size_limit_is_an_error() {
    #[cfg(unix)]
    // SAFETY: ignoring a signal installs no code that could run at a wrong time.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
    }
}

/// Writes a file as a whole or not at all: what `write` writes goes to `PATH.partial`, which takes
/// the place of `path` once it is on the disk. An interruption leaves what was at `path` before; an
/// error leaves no `PATH.partial` either. Processes and threads that write the same file wait for
/// each other, and one that was killed is in nobody's way.
///
/// # Errors
/// `R0206` if the disk refuses.
pub fn write_whole(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> Result<()> {
    let refused = |e: io::Error| refused(path, "file", &e);
    // A link keeps pointing where it points.
    let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let Some((partial, before)) = place(&target).map_err(refused)? else {
        return File::create(&target).and_then(|mut file| write(&mut file)).map_err(refused);
    };
    // A folder or another user's file in the way is not at `path`.
    let mut file = begin(&partial).map_err(|e| match e.kind() {
        ErrorKind::IsADirectory => self::refused(&partial, "file", &e),
        _ => refused(e),
    })?;
    let written = write(&mut file).and_then(|()| {
        if let Some(permissions) = before {
            file.set_permissions(permissions)?;
        }
        file.sync_all()?;
        fs::rename(&partial, &target)
    });
    written.map_err(|e| {
        // The error that counts is the first.
        let _ = fs::remove_file(&partial);
        refused(e)
    })?;
    sync_folder(&target).map_err(refused)
}

/// Whether [`write_whole`] could begin, found before the time is spent that makes what it writes.
///
/// # Errors
/// `R0206` as the write would give it.
pub fn can_write(path: &Path) -> Result<()> {
    let refused = |e: io::Error| refused(path, "file", &e);
    let target = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let (partial, _) = match place(&target).map_err(refused)? {
        Some(place) => place,
        None => return File::options().write(true).open(&target).map(|_| ()).map_err(refused),
    };
    begin(&partial).and_then(|_| fs::remove_file(&partial)).map_err(refused)
}

/// [`write_whole`] of these bytes.
///
/// # Errors
/// As [`write_whole`].
pub fn write_bytes(path: &Path, bytes: &[u8]) -> Result<()> {
    write_whole(path, |file| file.write_all(bytes))
}

/// Where a file is written before it is renamed, and the permissions of the one it replaces; `None`
/// for a pipe or a device, which is written and not replaced, and for a folder.
fn place(target: &Path) -> io::Result<Option<(PathBuf, Option<fs::Permissions>)>> {
    let before = match target.metadata() {
        Ok(m) if !m.is_file() => return Ok(None),
        // A file that may not be written is not replaced, though its folder would allow it.
        Ok(m) => File::options().write(true).open(target).map(|_| Some(m.permissions()))?,
        Err(_) => None,
    };
    let mut partial = target.as_os_str().to_owned();
    partial.push(".partial");
    Ok(Some((PathBuf::from(partial), before)))
}

/// Opens an unfinished file, empty, for this writer alone.
fn begin(partial: &Path) -> io::Result<File> {
    loop {
        let file = File::options().write(true).create(true).truncate(false).open(partial)?;
        // Not every file system has locks. Where there are none, the last of two writers wins.
        let locked = file.lock().is_ok();
        // Whoever had the lock before has moved the file to its place, or removed it.
        if !locked || is_at(&file, partial)? {
            file.set_len(0)?;
            return Ok(file);
        }
    }
}

/// Whether an open file is the one that has this path now.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt;
        let id = |m: &fs::Metadata| (m.dev(), m.ino());
        match path.metadata() {
            Ok(there) => Ok(id(&file.metadata()?) == id(&there)),
            Err(e) if e.kind() == ErrorKind::NotFound => Ok(false),
            Err(e) => Err(e),
        }
    }
    #[cfg(not(unix))]
    {
        let _ = file;
        Ok(path.exists())
    }
}

/// A file's new name is on the disk when its folder is.
fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    // A folder that may be written and not read, or whose file system has no such thing, is as good
    // as it gets.
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(e) if e.raw_os_error() == Some(libc::EIO) => Err(e),
        _ => Ok(()),
    }
}

/// Makes a folder, where there is none, and checks that files can be made in it: before a run spends
/// hours on what it could not save.
///
/// # Errors
/// `R0206` if it is a file, or the disk refuses.
pub fn make_folder(path: &Path) -> Result<()> {
    let refused = |e: io::Error| refused(path, "folder", &e);
    if path.exists() && !path.is_dir() {
        return Err(refused(ErrorKind::NotADirectory.into()));
    }
    fs::create_dir_all(path).map_err(refused)?;
    let trial = path.join(format!(".{}.partial", std::process::id()));
    File::create(&trial).and_then(|_| fs::remove_file(&trial)).map_err(refused)
}

/// A file that one process at a time has.
#[derive(Debug)]
pub enum Lock {
    /// It is this process's as long as it is open, however that ends.
    Taken(File),
    /// It is another process's, which wrote these words into it.
    Held(String),
    /// It is open, and its file system has no locks.
    Never(File),
}

/// Locks a file, which is made where there is none, and writes into it whose it is, for messages.
///
/// # Errors
/// `R0206` if the disk refuses.
pub fn lock(path: &Path, owner: &str) -> Result<Lock> {
    let refused = |e: io::Error| refused(path, "file", &e);
    loop {
        let options = File::options().read(true).write(true).create(true).truncate(false).clone();
        let mut file = options.open(path).map_err(refused)?;
        let locked = match file.try_lock() {
            Ok(()) => true,
            Err(fs::TryLockError::WouldBlock) => {
                return Ok(Lock::Held(fs::read_to_string(path).unwrap_or_default()));
            }
            Err(fs::TryLockError::Error(e))
                if e.kind() == ErrorKind::Unsupported || e.raw_os_error() == Some(libc::ENOLCK) =>
            {
                false
            }
            Err(fs::TryLockError::Error(e)) => return Err(refused(e)),
        };
        // Whoever had it before may have removed it; then this is a lock on nothing.
        if !is_at(&file, path).map_err(refused)? {
            continue;
        }
        // A disk that has no room for words has locked the file all the same.
        let _ = file.set_len(0).and_then(|()| file.write_all(owner.as_bytes()));
        return Ok(if locked { Lock::Taken(file) } else { Lock::Never(file) });
    }
}

/// Moves a file to another name in its folder. One that is not there has been moved.
///
/// # Errors
/// `R0206` if the disk refuses.
pub fn rename(from: &Path, to: &Path) -> Result<()> {
    gone(fs::rename(from, to)).map_err(|e| refused(from, "file", &e))
}

/// Removes a file. One that is not there has been removed.
///
/// # Errors
/// `R0206` if the disk refuses.
pub fn remove(path: &Path) -> Result<()> {
    gone(fs::remove_file(path)).map_err(|e| refused(path, "file", &e))
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

/// A file that grows by whole lines.
#[derive(Debug)]
pub struct Lines {
    path: PathBuf,
    file: File,
    /// Bytes of the whole lines; `None` for what has no length, as a pipe.
    len: Option<u64>,
}

impl Lines {
    /// Opens a file to be continued, or, with `fresh`, begun again.
    ///
    /// # Errors
    /// `R0206` if the disk refuses.
    pub fn open(path: &Path, fresh: bool) -> Result<Lines> {
        let open = || {
            let file = File::options()
                .create(true)
                .append(!fresh)
                .write(true)
                .truncate(fresh)
                .open(path)?;
            let meta = file.metadata()?;
            Ok((file, meta.is_file().then_some(meta.len())))
        };
        let (file, len) = open().map_err(|e| refused(path, "log", &e))?;
        Ok(Lines { path: path.into(), file, len })
    }

    /// Appends a line, unbuffered: who is killed keeps the lines before. A line that the disk does
    /// not take as a whole is taken back.
    ///
    /// # Errors
    /// `R0206` if the disk refuses.
    pub fn push(&mut self, line: &str) -> Result<()> {
        let line = format!("{line}\n");
        if let Err(e) = self.file.write_all(line.as_bytes()) {
            if let Some(len) = self.len {
                // The error that counts is the first.
                let _ = self.file.set_len(len);
            }
            return Err(refused(&self.path, "log", &e));
        }
        self.len = self.len.map(|len| len + line.len() as u64);
        Ok(())
    }
}

/// The error of a write that the disk refused: what, where, why, and what to do.
pub fn refused(path: &Path, what: &str, e: &io::Error) -> Error {
    let verb = if what == "folder" { "make or write" } else { "write" };
    let error = Error::new("R0206", format!("cannot {verb} the {what}: {e}")).at(path.display());
    match advice(path, e) {
        Some(help) => error.help(help),
        None => error,
    }
}

fn advice(path: &Path, e: &io::Error) -> Option<String> {
    Some(match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => {
            "make room on that disk, or name a path on another; older files are as they were".into()
        }
        ErrorKind::FileTooLarge => "`ulimit -f` limits how large a file may become here; raise it, or \
                                    write to a file system that allows more; older files are as they were"
            .into(),
        ErrorKind::ReadOnlyFilesystem => {
            "that file system is read-only; name a path on another".into()
        }
        ErrorKind::PermissionDenied => {
            "this user may not write there; change the permissions, or name another path".into()
        }
        ErrorKind::IsADirectory => "that is a folder; name a file in it".into(),
        ErrorKind::NotFound => format!("the folder `{}` does not exist; make it", missing(path)),
        ErrorKind::NotADirectory | ErrorKind::AlreadyExists => {
            let file = path.ancestors().find(|p| p.is_file())?;
            format!("`{}` is a file, not a folder; name another path, or move it", file.display())
        }
        _ => return None,
    })
}

/// The first folder on the way to a path that is not there.
fn missing(path: &Path) -> String {
    let above: Vec<&Path> =
        path.ancestors().skip(1).take_while(|p| !p.as_os_str().is_empty() && !p.exists()).collect();
    above.last().copied().unwrap_or(path).display().to_string()
}

#[cfg(test)]
mod tests;
