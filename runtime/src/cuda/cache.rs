//! Files that spare work of an earlier run: compiled kernels and measured choices.
//!
//! A cache is never needed and never trusted: a file that is missing, cut or altered is made anew,
//! and a folder that cannot be written is no error.

use crate::error::Result;
use crate::files::{make_folder, write_whole};
use std::env;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};

/// The folder of caches; empty turns them off.
pub const FOLDER_VARIABLE: &str = "PRECAST_CACHE";

const MAGIC: &[u8; 8] = b"precast1";

/// FNV-1a in 128 bits (Fowler, Noll, Vo; RFC 9923): names of files, and their check sums.
pub fn hash(parts: &[&[u8]]) -> u128 {
    let mut h: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    for part in parts {
        for &b in (part.len() as u64).to_le_bytes().iter().chain(*part) {
            h = (h ^ u128::from(b)).wrapping_mul(0x0000_0000_0100_0000_0000_0000_0000_013b);
        }
    }
    h
}

/// A folder of files, each named by a hash of its key.
#[derive(Clone, Debug)]
pub struct Cache {
    folder: Option<PathBuf>,
}

impl Cache {
    /// `PRECAST_CACHE`, else `precast` in the user's cache folder, else none.
    pub fn here() -> Cache {
        if let Some(folder) = env::var_os(FOLDER_VARIABLE) {
            return Cache { folder: (!folder.is_empty()).then(|| folder.into()) };
        }
        let absolute =
            |name: &str| env::var_os(name).map(PathBuf::from).filter(|p| p.is_absolute());
        let base = absolute("XDG_CACHE_HOME").or_else(|| Some(absolute("HOME")?.join(".cache")));
        Cache { folder: base.map(|b| b.join("precast")) }
    }

    /// One that keeps nothing.
    pub const fn none() -> Cache {
        Cache { folder: None }
    }

    /// One in `folder`.
    pub fn at(folder: &Path) -> Cache {
        Cache { folder: Some(folder.into()) }
    }

    fn path(&self, kind: &str, key: &[u8]) -> Option<PathBuf> {
        Some(self.folder.as_ref()?.join(format!("{kind}-{:032x}", hash(&[key]))))
    }

    /// The value that was stored for exactly this key, if its file is whole.
    pub fn get(&self, kind: &str, key: &[u8]) -> Option<Vec<u8>> {
        let bytes = fs::read(self.path(kind, key)?).ok()?;
        let rest = bytes.strip_prefix(MAGIC)?;
        let (length, rest) = rest.split_first_chunk::<8>()?;
        let length = usize::try_from(u64::from_le_bytes(*length)).ok()?;
        // The whole key is compared: two keys of one hash are not mixed up.
        let rest = rest.get(..length).filter(|k| *k == key).map(|_| &rest[length..])?;
        let (sum, value) = rest.split_first_chunk::<16>()?;
        (u128::from_le_bytes(*sum) == hash(&[value])).then(|| value.to_vec())
    }

    /// Removes what was stored for a key, or for another of its hash.
    pub fn forget(&self, kind: &str, key: &[u8]) {
        if let Some(path) = self.path(kind, key) {
            let _ = fs::remove_file(path);
        }
    }

    /// Stores a value. Others see all of it or nothing.
    pub fn put(&self, kind: &str, key: &[u8], value: &[u8]) {
        let Some(path) = self.path(kind, key) else { return };
        if let Err(e) = store(&path, key, value) {
            tracing::debug!("the cache cannot keep what was measured: {e}");
        }
    }
}

fn store(path: &Path, key: &[u8], value: &[u8]) -> Result<()> {
    let folder = path.parent().expect("a file in a folder");
    make_folder(folder)?;
    write_whole(path, |file| {
        file.write_all(MAGIC)?;
        file.write_all(&(key.len() as u64).to_le_bytes())?;
        file.write_all(key)?;
        file.write_all(&hash(&[value]).to_le_bytes())?;
        file.write_all(value)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_come_back_for_their_own_key_alone() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(&dir.path().join("deep/er"));
        assert_eq!(cache.get("cubin", b"k"), None);
        cache.put("cubin", b"k", b"value");
        assert_eq!(cache.get("cubin", b"k").unwrap(), b"value");
        assert_eq!(cache.get("cubin", b"l"), None);
        assert_eq!(cache.get("other", b"k"), None);
        cache.forget("cubin", b"l");
        assert_eq!(cache.get("cubin", b"k").unwrap(), b"value");
        cache.forget("cubin", b"k");
        assert_eq!(cache.get("cubin", b"k"), None);
        cache.put("cubin", b"k", b"");
        assert_eq!(cache.get("cubin", b"k").unwrap(), b"");
    }

    #[test]
    fn damaged_files_are_ignored_and_written_anew() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::at(dir.path());
        cache.put("cubin", b"key", b"some value");
        let path = cache.path("cubin", b"key").unwrap();
        let whole = fs::read(&path).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            assert_eq!(cache.get("cubin", b"key"), None, "cut at {cut}");
        }
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            fs::write(&path, &bytes).unwrap();
            assert_eq!(cache.get("cubin", b"key"), None, "altered at {at}");
        }
        cache.put("cubin", b"key", b"some value");
        assert_eq!(cache.get("cubin", b"key").unwrap(), b"some value");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no unfinished files stay");
    }

    #[test]
    fn a_folder_that_cannot_be_written_is_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "").unwrap();
        let cache = Cache::at(&file);
        cache.put("cubin", b"key", b"value");
        assert_eq!(cache.get("cubin", b"key"), None);
    }

    #[test]
    fn the_hash_is_the_published_one_over_lengths_and_parts() {
        // Parts are told apart by their lengths.
        assert_ne!(hash(&[b"ab", b"c"]), hash(&[b"a", b"bc"]));
        // No part: the offset basis.
        assert_eq!(hash(&[]), 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d);
    }
}
