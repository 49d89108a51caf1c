//! What files hold, in few bytes: to tell later whether they are what they were.

use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use xxhash_rust::xxh3::{Xxh3, xxh3_128};

/// A file up to this size is hashed as a whole whatever it is for: less than a second from a disk.
pub const SMALL: u64 = 64 << 20;

/// Blocks that are read of a file which is not hashed as a whole, and their bytes.
pub const BLOCKS: u64 = 256;
pub const BLOCK: u64 = 64 << 10;

/// Size and hash of a file; of a large one, when it was written and a hash of samples.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fingerprint {
    /// Length.
    pub bytes: u64,
    /// XXH3 of 128 bits, in base 16: of the content, or of [`BLOCKS`] blocks of it.
    pub hash: String,
    /// Where only blocks were read: when the file was last written, in nanoseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub written: Option<u64>,
}

/// A hash of bytes in memory, as a fingerprint has it.
pub fn hash(bytes: &[u8]) -> String {
    format!("{:032x}", xxh3_128(bytes))
}

impl Fingerprint {
    /// Of the whole content, where it is at most `whole` bytes; of samples where it is longer. The
    /// samples are spread evenly, the first and the last block among them.
    ///
    /// # Errors
    /// `R0514` where the file cannot be read.
    pub fn of(path: &Path, whole: u64) -> Result<Fingerprint> {
        Fingerprint::read(path, whole).map_err(|e| {
            Error::new("R0514", format!("cannot read the file to hash it: {e}")).at(path.display())
        })
    }

    fn read(path: &Path, whole: u64) -> io::Result<Fingerprint> {
        let mut file = File::open(path)?;
        let meta = file.metadata()?;
        let mut state = Xxh3::new();
        let bytes = meta.len();
        if bytes <= whole.max(BLOCKS * BLOCK) {
            let mut buffer = vec![0; (1 << 20).min(bytes as usize + 1)];
            let mut seen = 0;
            loop {
                let n = file.read(&mut buffer)?;
                if n == 0 {
                    break;
                }
                seen += n as u64;
                state.update(&buffer[..n]);
            }
            let hash = format!("{:032x}", state.digest128());
            return Ok(Fingerprint { bytes: seen, hash, written: None });
        }
        let mut buffer = vec![0; BLOCK as usize];
        for i in 0..BLOCKS {
            // In 128 bits, since the product of a length and a number of blocks may not fit 64.
            let at = u128::from(bytes - BLOCK) * u128::from(i) / u128::from(BLOCKS - 1);
            file.seek(SeekFrom::Start(at as u64))?;
            file.read_exact(&mut buffer)?;
            state.update(&buffer);
        }
        // A clock before 1970 is as good as one at it.
        let since = meta.modified()?.duration_since(UNIX_EPOCH).unwrap_or_default();
        let hash = format!("{:032x}", state.digest128());
        Ok(Fingerprint { bytes, hash, written: Some(since.as_nanos() as u64) })
    }

    /// When the file was last written, where only samples of it were read.
    pub fn written_at(&self) -> Option<SystemTime> {
        self.written.map(|ns| UNIX_EPOCH + Duration::from_nanos(ns))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_of_a_small_file_counts() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let of = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            Fingerprint::of(&path, SMALL).unwrap()
        };
        let before = of(b"0123456789");
        assert_eq!(before, of(b"0123456789"), "the time of writing does not count");
        assert_eq!(before.hash, hash(b"0123456789"));
        assert_eq!((before.bytes, before.written), (10, None));
        for i in 0..10 {
            let mut other = *b"0123456789";
            other[i] ^= 1;
            assert_ne!(of(&other), before, "byte {i}");
        }
        assert_ne!(of(b""), before);
        let missing = Fingerprint::of(&dir.path().join("b"), SMALL).unwrap_err();
        assert_eq!(missing.code, "R0514");
    }

    #[test]
    fn a_large_file_is_told_by_size_time_and_samples() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a");
        let len = BLOCKS * BLOCK + 4096;
        let mut bytes: Vec<u8> = (0..len).map(|i| (i / 7) as u8).collect();
        std::fs::write(&path, &bytes).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        let then = UNIX_EPOCH + Duration::from_secs(1_000_000);
        file.set_modified(then).unwrap();
        let before = Fingerprint::of(&path, 0).unwrap();
        assert_eq!((before.bytes, before.written_at()), (len, Some(then)));
        // A file of this size may also be hashed as a whole.
        assert_eq!(Fingerprint::of(&path, len).unwrap().hash, hash(&bytes));
        // Other content at the ends, at the same time.
        for at in [0, len as usize - 1] {
            bytes[at] ^= 1;
            std::fs::write(&path, &bytes).unwrap();
            file.set_modified(then).unwrap();
            let now = Fingerprint::of(&path, 0).unwrap();
            assert!(now.hash != before.hash && now.written == before.written, "byte {at}");
            bytes[at] ^= 1;
        }
        // The same content, written again.
        std::fs::write(&path, &bytes).unwrap();
        file.set_modified(then + Duration::from_secs(1)).unwrap();
        let now = Fingerprint::of(&path, 0).unwrap();
        assert!(now.hash == before.hash && now != before);
    }
}
