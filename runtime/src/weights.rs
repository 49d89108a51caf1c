//! Where first values come from: the model's own folder, and a weights file that wins over it.

use crate::error::{Error, Result};
use crate::files::InputFile;
use crate::tensors::{HostTensor, TensorFile, WeightSource};
use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The files a model's weights lie in, opened as they are asked for. They are read once, at the
/// start; what happens to them later is nothing to a run.
pub struct ModelWeights {
    folder: PathBuf,
    file: Option<TensorFile>,
    parts: BTreeMap<String, OnceCell<InputFile>>,
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
    fn get(&self, name: &str) -> Result<Option<HostTensor<'_>>> {
        match &self.file {
            Some(file) => file.get(name),
            None => Ok(None),
        }
    }

    fn part(&self, path: &str, offset: u64, len: u64) -> Result<Cow<'_, [u8]>> {
        let full = self.folder.join(path);
        let bad = |text: String| Error::new("R0303", text).at(full.display());
        let cell = self.parts.get(path).ok_or_else(|| bad("the plan does not name it".into()))?;
        if cell.get().is_none() {
            let file = InputFile::open(&full).map_err(|e| {
                bad(format!("cannot open the model's weights: {e}"))
                    .help("put the file back beside the model, or give `[weights] file` or `init`")
            })?;
            let _ = cell.set(file);
        }
        let file = cell.get().expect("set above");
        if offset.checked_add(len).is_none_or(|end| end > file.len()) {
            let text =
                format!("the file has {} bytes, the model wants {offset}..+{len}", file.len());
            return Err(
                bad(text).help("the file was cut, or belongs to another export of the model")
            );
        }
        let mut bytes = vec![0; len as usize];
        let read = file.read_at(&mut bytes, offset);
        let again = "export the model to another path while a run begins, and begin again";
        file.unchanged()
            .map_err(|why| bad(format!("the file {why} while it was read")).help(again))?;
        read.map_err(|e| bad(format!("cannot read the model's weights: {e}")))?;
        Ok(Cow::Owned(bytes))
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
