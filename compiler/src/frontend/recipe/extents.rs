//! What the data says about extents and the length of a run, read from headers and sizes only.

use super::table;
use super::{Columns, DataSource, Recipe, TrainLength, WeightInit};
use crate::diagnostic::{Diagnostic, Place, Result};
use crate::frontend::onnx::{self, Dim, ImportOptions, InitScheme};
use globset::{GlobBuilder, GlobMatcher};
use indexmap::IndexMap;
use precast_plan::words::difference;
use precast_plan::{FileKind, TensorHeader};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Most optimizer steps of a run: the plan counts them in f32, which is exact so far.
pub const MAX_STEPS: u64 = 1 << 24;

/// Rows of the data and what one of them feeds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DataExtents {
    pub rows: u64,
    pub batch: usize,
    /// Elements one row gives to each graph input, as the data shapes them.
    pub inputs: BTreeMap<String, Vec<usize>>,
}

impl Recipe {
    /// The data's files from the working directory, in a fixed order; globs are expanded.
    ///
    /// # Errors
    /// `P0108` for a file that does not exist and for a glob that matches none.
    pub fn data_files(&self) -> Result<Vec<PathBuf>> {
        let Some(source) = &self.data.source else { return Ok(vec![]) };
        let (DataSource::Safetensors { files }
        | DataSource::Csv { files, .. }
        | DataSource::Bytes { files, .. }) = source;
        let mut found = vec![];
        for file in files {
            let path = self.resolve(file);
            let text = path.to_string_lossy();
            if !matches!(source, DataSource::Bytes { .. }) || !text.contains(['*', '?', '[', '{']) {
                if !path.is_file() {
                    let help = precast_plan::instead_of(&path)
                        .unwrap_or_else(|| "paths in a recipe are relative to its folder".into());
                    return Err(fault(&path, "the data file does not exist").help(help).into());
                }
                self.check_format(source, &path)?;
                found.push(path);
                continue;
            }
            let matches = expand(&path)?;
            if matches.is_empty() {
                return Err(fault(&path, "the glob matches no file")
                    .help(
                        "`*` stays within a folder, `**` does not; hidden folders are not entered",
                    )
                    .into());
            }
            found.extend(matches);
        }
        Ok(found)
    }

    /// Checks that a file of the data is of the recipe's format; a damaged one is left to its reader.
    fn check_format(&self, source: &DataSource, path: &Path) -> Result<()> {
        use FileKind::{
            Checkpoint, Csv, Empty, Numpy, Onnx, Plan, Safetensors, TorchPickle, TorchProgram,
            TorchScript,
        };
        let Ok(found) = FileKind::of(path) else { return Ok(()) };
        let (format, fits) = match source {
            DataSource::Safetensors { .. } => {
                ("safetensors", matches!(found, Safetensors | Checkpoint))
            }
            // Whatever is a text may be a table.
            DataSource::Csv { .. } => {
                let torch = matches!(found, TorchPickle | TorchScript | TorchProgram);
                let other = matches!(found, Safetensors | Checkpoint | Onnx | Plan | Numpy);
                ("csv", !torch && !other)
            }
            DataSource::Bytes { .. } => return Ok(()),
        };
        if fits || found.is_vague() || found == Empty {
            return Ok(());
        }
        let message = format!("`format` is \"{format}\", and {} is {found}", path.display());
        let help = match found {
            Csv => "write `format = \"csv\"`",
            Safetensors | Checkpoint => "write `format = \"safetensors\"`",
            other => other.taken_by().unwrap_or("name another file"),
        };
        let place = self.place(&["data.format"], "not that of the file");
        Err(Diagnostic::error("P0108", message).at(place).help(help).into())
    }

    /// Rows and extents of the data; `None` where the recipe names no data.
    ///
    /// # Errors
    /// `P0108` where files are missing, unreadable or disagree, or lack what the recipe names.
    pub fn data_extents(&self) -> Result<Option<DataExtents>> {
        let (files, fed) = (self.data_files()?, self.fed());
        let (rows, inputs) = match &self.data.source {
            None => return Ok(None),
            Some(DataSource::Safetensors { .. }) => safetensors(&files, &fed)?,
            Some(DataSource::Csv { header, .. }) => {
                let widths = table::widths(&files, *header, &fed)?;
                (table::rows(&files, *header)?, widths)
            }
            Some(DataSource::Bytes { context, .. }) => {
                let mut bytes = 0;
                for file in &files {
                    bytes += fs::metadata(file).map_err(|e| fault(file, e))?.len();
                }
                let inputs = fed.keys().map(|name| (name.clone(), vec![*context]));
                (bytes.saturating_sub(1) / *context as u64, inputs.collect())
            }
        };
        let batch = match self.data.batch {
            Some(batch) => batch,
            None => usize::try_from(rows).unwrap_or(usize::MAX),
        };
        Ok(Some(DataExtents { rows, batch, inputs }))
    }

    /// Extents that one row of the data gives to each target of the loss; those are missing of which
    /// the recipe names no data, and windows of text, which are one number a token.
    ///
    /// # Errors
    /// As [`Recipe::data_extents`].
    pub fn target_rows(&self) -> Result<BTreeMap<String, Vec<usize>>> {
        let mut targets = IndexMap::new();
        for name in self.loss.targets() {
            if let Some(columns) = self.data.targets.get(name) {
                targets.insert(name.to_string(), columns.clone());
            }
        }
        if targets.is_empty() {
            return Ok(BTreeMap::new());
        }
        match &self.data.source {
            Some(DataSource::Safetensors { .. }) => {
                Ok(safetensors(&self.data_files()?, &targets)?.1)
            }
            Some(DataSource::Csv { header, .. }) => {
                table::widths(&self.data_files()?, *header, &targets)
            }
            Some(DataSource::Bytes { .. }) | None => Ok(BTreeMap::new()),
        }
    }

    /// What the model's own inputs are fed with: targets too, where it computes its loss.
    fn fed(&self) -> IndexMap<String, Columns> {
        let mut fed = self.data.inputs.clone();
        if self.loss.in_model() {
            let unused =
                self.data.targets.iter().filter(|(n, _)| !self.loss.targets().any(|t| t == *n));
            fed.extend(unused.map(|(name, columns)| (name.clone(), columns.clone())));
        }
        fed
    }

    /// Optimizer steps of the whole run, as the runtime counts them: an epoch is the whole batches
    /// of the training rows, and an update takes `accumulate` of them.
    ///
    /// # Errors
    /// As [`Recipe::data_extents`]; `P0108` where epochs have nothing to count, or no whole batch.
    pub fn total_steps(&self) -> Result<u64> {
        let epochs = match self.train.length {
            TrainLength::Steps(steps) => return Ok(steps),
            TrainLength::Epochs(epochs) => epochs,
        };
        let Some(data) = self.data_extents()? else {
            return Err(Diagnostic::error("P0108", "`epochs` needs data to count")
                .at(Place::File { path: self.path.clone() })
                .help("give [train] steps, or the data's format and files")
                .into());
        };
        let test = (data.rows as f64 * self.data.split).round() as u64;
        let batches = (data.rows - test) / (data.batch as u64).max(1);
        let steps = u128::from(batches) * u128::from(epochs) / u128::from(self.train.accumulate);
        if steps == 0 {
            let message = format!(
                "{} rows for training make {batches} batches of {} an epoch; {epochs} epochs do not \
                 fill one step of {} batches",
                data.rows - test,
                data.batch,
                self.train.accumulate
            );
            let keys = ["data.batch", "data.split", "train.epochs"];
            return Err(Diagnostic::error("P0108", message)
                .at(self.place(&keys, "leaves no whole batch"))
                .help("lower `batch`, `split` or `accumulate`, or give more data or epochs")
                .into());
        }
        u64::try_from(steps).ok().filter(|s| *s <= MAX_STEPS).ok_or_else(|| {
            Diagnostic::error("P0105", format!("the run would take {steps} steps"))
                .at(self.place(&["train.epochs"], &format!("more than {MAX_STEPS} steps")))
                .help("fewer epochs, or a larger batch")
                .into()
        })
    }

    /// Whether the model is textual IR.
    pub fn is_textual(&self) -> bool {
        self.model.extension().is_some_and(|e| e == "pir")
    }

    /// Checks that the training rows fill a batch.
    ///
    /// # Errors
    /// `P0108` where they do not.
    pub fn check_rows(&self, data: &DataExtents) -> Result<()> {
        let test = (data.rows as f64 * self.data.split).round() as u64;
        let train = data.rows - test;
        if train >= data.batch.max(1) as u64 {
            return Ok(());
        }
        let whole = self.data.batch.is_none();
        let message = format!("{train} rows for training do not fill a batch of {}", data.batch);
        let help = if whole {
            "without `batch` the whole file is one batch, and no row can be held back"
        } else {
            "lower `batch` or `split`, or give more data"
        };
        let keys: &[&str] =
            if whole { &["data.split"] } else { &["data.batch", "data.split", "data.file"] };
        let label = format!("{} rows, {test} of them held back", data.rows);
        Err(Diagnostic::error("P0108", message).at(self.place(keys, &label)).help(help).into())
    }

    /// How the recipe's ONNX model is imported: extents from `data.dims` and the data itself.
    ///
    /// # Errors
    /// As [`Recipe::data_extents`] and [`onnx::inspect`].
    pub fn import_options(&self, training: bool) -> Result<ImportOptions> {
        let mut input_shapes = BTreeMap::new();
        // Textual IR states every extent itself.
        let textual = self.is_textual();
        let info = if textual { None } else { Some(onnx::inspect(&self.model_path())?) };
        if let Some(info) = &info {
            self.check_names(info)?;
        }
        let data = self.data_extents()?;
        if let Some(data) = &data {
            self.check_rows(data)?;
        }
        if let (Some(info), Some(data)) = (&info, data) {
            for (input, row) in data.inputs {
                let declared = info.inputs.iter().find(|i| i.name == input);
                let dims = declared.and_then(|i| i.dims.as_deref());
                input_shapes.insert(input, batch_shape(dims, data.batch, row));
            }
        }
        let mut dims: BTreeMap<String, usize> =
            self.data.dims.iter().map(|(name, n)| (name.clone(), *n)).collect();
        if let (None, Some(batch), Some(info)) = (&self.data.source, self.data.batch, &info) {
            // Without data, the batch is the first axis of every input that does not state its own.
            for input in &info.inputs {
                if let Some(Dim::Named(name)) = input.dims.iter().flatten().next() {
                    dims.entry(name.clone()).or_insert(batch);
                }
            }
        }
        Ok(ImportOptions {
            dims,
            input_shapes,
            weights: self.weights.file.as_ref().map(|f| self.resolve(f)),
            init: self.weights.init.map(|WeightInit::Default| InitScheme::Default),
            parameters: self.train.parameters.clone(),
            settled: self.settled(),
            stop_gradient: self.train.stop_gradient.clone(),
            training,
            ..ImportOptions::default()
        })
    }
}

/// Rows, and the extents that one of them has in each of the named tensors.
fn safetensors(
    files: &[PathBuf],
    fields: &IndexMap<String, Columns>,
) -> Result<(u64, BTreeMap<String, Vec<usize>>)> {
    let mut rows = 0;
    let mut inputs = BTreeMap::new();
    for path in files {
        let mut file = fs::File::open(path).map_err(|e| fault(path, e))?;
        let len = file.metadata().map_err(|e| fault(path, e))?.len();
        let header = TensorHeader::read(&mut file, len).map_err(|e| fault(path, e))?;
        let mut here = None;
        for (input, columns) in fields {
            let Columns::Name(name) = columns else {
                let message = format!("`{input}` of a safetensors file takes one tensor");
                let help = "name it alone; lists are for the columns of a CSV table";
                return Err(fault(path, message).help(help).into());
            };
            let shape = match header.tensors.iter().find(|t| t.name == *name) {
                Some(tensor) => tensor.shape.clone(),
                None => {
                    let mut names: Vec<&str> =
                        header.tensors.iter().map(|t| t.name.as_str()).collect();
                    names.sort_unstable();
                    let place = Place::Tensor { path: path.clone(), tensor: name.clone() };
                    return Err(Diagnostic::error("P0108", "the data has no such tensor")
                        .at(place)
                        .help(format!("it has {}", names.join(", ")))
                        .into());
                }
            };
            let Some((&n, row)) = shape.split_first() else {
                let message = format!("`{name}` is one number, not rows");
                let help = "examples lie along axis 0 of a tensor of the data";
                return Err(fault(path, message).help(help).into());
            };
            if *here.get_or_insert(n) != n {
                let first = here.unwrap_or(0);
                let message =
                    format!("axis 0 of `{name}` is {n}, and of the tensor before it is {first}");
                let help = "every input and target has a row for each example";
                return Err(fault(path, message).help(help).into());
            }
            if let Some(before) = inputs.insert(input.clone(), row.to_vec())
                && before != row
            {
                let differ = difference((row, "here"), (before.as_slice(), "in the file before"));
                let message =
                    format!("rows of `{name}` differ in their extents: of a row, {differ}");
                let help = "rows of all files of the data have one shape";
                return Err(fault(path, message).help(help).into());
            }
        }
        rows += here.unwrap_or(0) as u64;
    }
    Ok((rows, inputs))
}

/// Extents of an input: those of the data where the ranks agree, else the declared ones over the
/// data's elements (a table has one axis where the model may want several).
fn batch_shape(declared: Option<&[Dim]>, batch: usize, row: Vec<usize>) -> Vec<usize> {
    let whole = || std::iter::once(batch).chain(row.iter().copied()).collect();
    let Some(dims) = declared else { return whole() };
    if dims.len() == row.len() + 1 {
        return whole();
    }
    let fixed: Option<Vec<usize>> =
        dims.iter().skip(1).map(|d| if let Dim::Known(n) = d { Some(*n) } else { None }).collect();
    match fixed {
        Some(fixed) if fixed.iter().product::<usize>() == row.iter().product::<usize>() => {
            std::iter::once(batch).chain(fixed).collect()
        }
        // Importing will say how the two disagree.
        _ => whole(),
    }
}

pub(super) fn fault(path: &Path, message: impl std::fmt::Display) -> Diagnostic {
    Diagnostic::error("P0108", message.to_string()).at(Place::File { path: path.into() })
}

/// The files a glob matches, ordered by their paths' components. `*` stays within a folder, `**`
/// does not. Hidden folders and links are not entered.
fn expand(pattern: &Path) -> Result<Vec<PathBuf>> {
    let is_glob = |c: &Component| c.as_os_str().to_string_lossy().contains(['*', '?', '[', '{']);
    let parts: Vec<Component> = pattern.components().collect();
    let split = parts.iter().position(is_glob).unwrap_or(parts.len());
    let base: PathBuf = parts[..split].iter().collect();
    let rest: PathBuf = parts[split..].iter().collect();
    let base = if base.as_os_str().is_empty() { PathBuf::from(".") } else { base };
    let glob = GlobBuilder::new(&rest.to_string_lossy())
        .literal_separator(true)
        .build()
        .map_err(|e| fault(pattern, format!("not a glob: {}", e.kind())))?
        .compile_matcher();
    let mut found = vec![];
    walk(&base, &base, &glob, &mut found);
    found.sort();
    Ok(found)
}

fn walk(base: &Path, folder: &Path, glob: &GlobMatcher, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries.flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && !name.to_string_lossy().starts_with('.') {
            walk(base, &path, glob, found);
        } else if kind.is_file() && path.strip_prefix(base).is_ok_and(|p| glob.is_match(p)) {
            found.push(path);
        }
    }
}
