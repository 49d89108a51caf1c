//! Where inputs begin: the committed corpus, which holds every input that once was a finding; the
//! repository's own models; and what earlier runs here kept.

use super::targets::{Lab, Target};
use std::path::{Path, PathBuf};

/// Longest file that is a first input.
const LARGEST: u64 = 1 << 16;

/// The repository.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The committed inputs of a target.
pub fn committed(target: Target) -> PathBuf {
    root().join("tests/fuzz/corpus").join(target.name())
}

/// Files under a folder, in order of their names.
pub fn files(folder: &Path, extensions: &[&str]) -> Vec<PathBuf> {
    let (mut found, mut folders) = (vec![], vec![folder.to_path_buf()]);
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() {
                folders.push(path);
            } else {
                let name = path.to_string_lossy();
                if extensions.is_empty() || extensions.iter().any(|e| name.ends_with(e)) {
                    found.push(path);
                }
            }
        }
    }
    found.sort();
    found
}

/// First inputs: of the committed corpus, of the repository, of the target itself and of `kept`.
pub fn inputs(lab: &Lab, target: Target, kept: Option<&Path>) -> Vec<Vec<u8>> {
    let mut paths = files(&committed(target), &[]);
    let fixtures = root().join("tests/fixtures");
    match target {
        Target::Onnx => paths.extend(files(&fixtures, &[".onnx"])),
        Target::Ir => paths.extend(files(&root().join("compiler"), &[".pir"])),
        _ => {}
    }
    paths.extend(kept.map(|k| files(k, &[])).unwrap_or_default());
    let short = |p: &&PathBuf| p.metadata().is_ok_and(|m| m.len() <= LARGEST);
    let read = paths.iter().filter(short).filter_map(|p| std::fs::read(p).ok());
    read.chain(lab.seeds(target)).collect()
}

/// A name that follows from the bytes: FNV-1a.
pub fn name(bytes: &[u8]) -> String {
    let hash = bytes
        .iter()
        .fold(0xcbf2_9ce4_8422_2325u64, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}
