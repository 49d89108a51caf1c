//! Where first values come from: the model's own folder, and a weights file that wins over it.

use crate::error::{Error, Result};
use crate::tensors::{HostTensor, TensorFile, WeightSource};
use memmap2::Mmap;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The files a model's weights lie in, mapped as they are asked for.
pub struct ModelWeights {
    folder: PathBuf,
    file: Option<TensorFile>,
    parts: BTreeMap<String, OnceCell<Mmap>>,
}

impl ModelWeights {
    /// `folder` is the model's; `file` the recipe's weights file; `parts` the paths that the plan
    /// names (`Init::File`).
    ///
    /// # Errors
    /// If the weights file cannot be read.
    pub fn open<'a>(
        folder: &Path,
        file: Option<&Path>,
        parts: impl IntoIterator<Item = &'a str>,
    ) -> Result<ModelWeights> {
        Ok(ModelWeights {
            folder: folder.to_path_buf(),
            file: file.map(TensorFile::open).transpose()?,
            parts: parts.into_iter().map(|p| (p.to_string(), OnceCell::new())).collect(),
        })
    }

    /// For a plan: opens what it needs.
    ///
    /// # Errors
    /// As [`ModelWeights::open`].
    pub fn for_plan(
        plan: &precast_plan::Plan,
        folder: &Path,
        file: Option<&Path>,
    ) -> Result<ModelWeights> {
        let parts = plan.tensors.iter().filter_map(|t| match &t.storage {
            precast_plan::Storage::Persistent {
                init: precast_plan::Init::File { path, .. },
                ..
            } => Some(path.as_str()),
            _ => None,
        });
        ModelWeights::open(folder, file, parts)
    }
}

impl WeightSource for ModelWeights {
    fn get(&self, name: &str) -> Option<HostTensor<'_>> {
        self.file.as_ref()?.get(name)
    }

    fn part(&self, path: &str, offset: u64, len: u64) -> Result<Cow<'_, [u8]>> {
        let full = self.folder.join(path);
        let bad = |text: String| Error::new("R0303", text).at(full.display());
        let cell = self.parts.get(path).ok_or_else(|| bad("the plan does not name it".into()))?;
        if cell.get().is_none() {
            let file = File::open(&full).map_err(|e| {
                bad(format!("cannot open the model's weights: {e}"))
                    .help("put the file back beside the model, or give `[weights] file` or `init`")
            })?;
            // SAFETY: as with every mapped file, another process may change it; every access below
            // is bounds-checked against the mapped length, and contents are plain numbers.
            let map = unsafe { Mmap::map(&file) }
                .map_err(|e| bad(format!("cannot map the model's weights: {e}")))?;
            let _ = cell.set(map);
        }
        let map = cell.get().expect("set above");
        let range = usize::try_from(offset)
            .ok()
            .zip(offset.checked_add(len).and_then(|e| usize::try_from(e).ok()));
        let bytes = range.and_then(|(from, to)| map.get(from..to)).ok_or_else(|| {
            bad(format!("the file has {} bytes, the model wants {offset}..+{len}", map.len()))
                .help("the file was cut, or belongs to another export of the model")
        })?;
        Ok(Cow::Borrowed(bytes))
    }

    fn describe(&self) -> String {
        match &self.file {
            Some(f) => f.describe(),
            None => self.folder.display().to_string(),
        }
    }

    fn names(&self) -> Vec<String> {
        self.file.as_ref().map(WeightSource::names).unwrap_or_default()
    }
}
