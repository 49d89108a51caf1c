//! Files that are read while a run lasts.
//!
//! They are read, never mapped: a page of a mapped file that another process cuts off is a signal
//! that ends the process, while a read is an error with a file and a row.

use crate::error::{Error, Result};
use std::fs::{File, Metadata};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::SystemTime;

/// An open file that nobody should write to.
#[derive(Debug)]
pub struct InputFile {
    path: PathBuf,
    file: File,
    len: u64,
    modified: Option<SystemTime>,
    /// Whether it was told that another file has its path.
    told: AtomicBool,
}

impl InputFile {
    /// # Errors
    /// If it cannot be opened, or is a folder.
    pub fn open(path: &Path) -> io::Result<InputFile> {
        let file = File::open(path)?;
        let meta = file.metadata()?;
        if meta.is_dir() {
            return Err(io::ErrorKind::IsADirectory.into());
        }
        Ok(InputFile {
            path: path.into(),
            len: meta.len(),
            modified: meta.modified().ok(),
            file,
            told: AtomicBool::new(false),
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Bytes it had when it was opened.
    pub fn len(&self) -> u64 {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The open file, at its beginning.
    pub fn reader(&self) -> &File {
        &self.file
    }

    /// Fills `out` with the bytes from `offset` on.
    ///
    /// # Errors
    /// `UnexpectedEof` where the file has become shorter, or what the system says.
    pub fn read_at(&self, out: &mut [u8], offset: u64) -> io::Result<()> {
        #[cfg(unix)]
        return std::os::unix::fs::FileExt::read_exact_at(&self.file, out, offset);
        #[cfg(not(unix))]
        {
            use std::io::{Read, Seek, SeekFrom};
            let mut file = &self.file;
            file.seek(SeekFrom::Start(offset))?;
            file.read_exact(out)
        }
    }

    /// What has happened to the file since it was opened; one call of the system.
    ///
    /// # Errors
    /// In words, where it is no longer what was opened: it was cut, written to, or removed. One
    /// that stands under its path no longer because another was moved there is as it was.
    pub fn unchanged(&self) -> std::result::Result<(), String> {
        let meta = self.file.metadata().map_err(|e| format!("cannot be looked at: {e}"))?;
        // A pipe has neither a length nor a time of its own.
        if !meta.is_file() {
            return Ok(());
        }
        if meta.len() != self.len {
            let verb = if meta.len() < self.len { "cut" } else { "extended" };
            return Err(format!("was {verb} from {} to {} bytes", self.len, meta.len()));
        }
        if meta.modified().ok() != self.modified {
            return Err("was written to".into());
        }
        if is_unlinked(&meta) && !self.path.exists() {
            return Err("was removed".into());
        }
        Ok(())
    }

    /// As [`InputFile::unchanged`]; another file under its path is a change, too.
    ///
    /// # Errors
    /// In words.
    pub fn still_there(&self) -> std::result::Result<(), String> {
        self.unchanged()?;
        match self.file.metadata() {
            Ok(m) if is_unlinked(&m) => Err("was replaced".into()),
            _ => Ok(()),
        }
    }

    /// Whether another file has been moved to its path, the first time this is seen.
    pub fn replaced(&self) -> bool {
        let gone = self.file.metadata().is_ok_and(|m| is_unlinked(&m));
        gone && self.path.exists() && !self.told.swap(true, Ordering::Relaxed)
    }
}

/// Whether a file has no name any more.
fn is_unlinked(meta: &Metadata) -> bool {
    #[cfg(unix)]
    return std::os::unix::fs::MetadataExt::nlink(meta) == 0;
    #[cfg(not(unix))]
    {
        let _ = meta;
        false
    }
}

/// The whole of a file that nobody writes to meanwhile.
///
/// # Errors
/// If it cannot be read, or was changed while it was; `code` and what the file is go with it.
pub fn read_whole(path: &Path, code: &'static str, what: &str) -> Result<Vec<u8>> {
    use std::io::Read;
    let bad = |text: String| Error::new(code, text).at(path.display());
    let unreadable = |e: io::Error| bad(format!("cannot read the {what}: {e}"));
    let file = InputFile::open(path).map_err(unreadable)?;
    let mut bytes = Vec::new();
    let len = usize::try_from(file.len()).unwrap_or(usize::MAX);
    bytes
        .try_reserve_exact(len)
        .map_err(|_| bad(format!("the {what} of {len} bytes does not fit into memory")))?;
    file.reader().read_to_end(&mut bytes).map_err(unreadable)?;
    file.unchanged().map_err(|why| bad(format!("the {what} {why} while it was read")))?;
    Ok(bytes)
}

/// What to do where a file cannot be opened since too many are.
pub fn too_many_open(e: &io::Error) -> Option<&'static str> {
    let many = matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE));
    many.then_some(
        "every file of the data stays open: raise `ulimit -n`, or put rows into fewer files",
    )
}

/// Lets the process open as many files as the system allows it: data may lie in thousands of them,
/// each of which stays open.
pub fn open_many() {
    #[cfg(unix)]
    // SAFETY: both calls are given one whole structure.
    unsafe {
        let mut limit = std::mem::zeroed::<libc::rlimit>();
        if libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) == 0 && limit.rlim_cur < limit.rlim_max
        {
            limit.rlim_cur = limit.rlim_max;
            libc::setrlimit(libc::RLIMIT_NOFILE, &limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn changes_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let fresh = || {
            fs::write(&path, "0123456789").unwrap();
            InputFile::open(&path).unwrap()
        };
        let mut two = [0; 2];
        let file = fresh();
        file.read_at(&mut two, 8).unwrap();
        assert_eq!(&two, b"89");
        assert_eq!(file.unchanged(), Ok(()));
        File::options().write(true).open(&path).unwrap().set_len(4).unwrap();
        assert_eq!(file.unchanged().unwrap_err(), "was cut from 10 to 4 bytes");
        assert_eq!(file.read_at(&mut two, 8).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);

        let file = fresh();
        fs::write(&path, "0123456789a").unwrap();
        assert_eq!(file.unchanged().unwrap_err(), "was extended from 10 to 11 bytes");

        let file = fresh();
        let later = SystemTime::now() + std::time::Duration::from_secs(5);
        File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(file.unchanged().unwrap_err(), "was written to");
    }

    #[cfg(unix)]
    #[test]
    fn a_file_that_is_replaced_is_read_on() {
        let dir = tempfile::tempdir().unwrap();
        let (path, other) = (dir.path().join("a"), dir.path().join("b"));
        fs::write(&path, "0123456789").unwrap();
        fs::write(&other, "abcdefghij").unwrap();
        let file = InputFile::open(&path).unwrap();
        assert!(!file.replaced());
        fs::rename(&other, &path).unwrap();
        assert_eq!(file.unchanged(), Ok(()));
        assert_eq!(file.still_there().unwrap_err(), "was replaced");
        assert!(file.replaced() && !file.replaced());
        let mut two = [0; 2];
        file.read_at(&mut two, 0).unwrap();
        assert_eq!(&two, b"01");
        fs::remove_file(&path).unwrap();
        assert_eq!(file.unchanged().unwrap_err(), "was removed");
        file.read_at(&mut two, 0).unwrap();
    }
}
