//! Training and test data: rows of named tensors, batched in an order that a seed fixes.

mod order;
mod source;

pub use order::Order;

use crate::error::{Error, Result};
use crate::tensors::{Element, HostTensor};
use precast_plan::DType;
use serde::{Deserialize, Serialize};
use source::Rows;
use std::path::PathBuf;

/// What data there is and how it is cut into batches.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataSpec {
    pub source: DataSource,
    /// Rows of one batch; `None`: the file is one fixed batch.
    pub batch: Option<u64>,
    /// What each input of the plan is fed with.
    pub fields: Vec<Field>,
    /// A new order every epoch.
    pub shuffle: bool,
    pub seed: u64,
    /// Share of the rows held back for testing, in [0, 1).
    pub split: f64,
}

/// Where rows come from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "format", deny_unknown_fields)]
pub enum DataSource {
    /// Named tensors with one row per example; the rows of several files follow one another.
    Safetensors { files: Vec<PathBuf> },
    /// Numbers, one example a line.
    Csv { files: Vec<PathBuf>, header: bool },
    /// Byte-level text. Row `r` is the window of `context` bytes at `r * context`; the column
    /// `next` is the same window one byte further, every other column the window itself.
    Bytes { files: Vec<PathBuf>, context: u64 },
}

/// One input of the plan.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Field {
    /// The plan's name of the input.
    pub input: String,
    pub columns: Columns,
    #[serde(default = "one")]
    pub scale: f64,
    #[serde(default)]
    pub shift: f64,
}

fn one() -> f64 {
    1.0
}

/// Which part of a row a field is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Columns {
    /// A tensor of a safetensors file; a column, or `first..last` inclusive, of a CSV file; `next`
    /// of byte-level text.
    Name(String),
    /// Columns of a CSV file.
    List(Vec<String>),
}

/// An input of a plan that data must feed.
#[derive(Clone, Debug, PartialEq)]
pub struct Wanted {
    pub name: String,
    pub dtype: DType,
    /// Extent 0 is the batch.
    pub shape: Vec<u64>,
}

/// One batch: bytes for each input, in its own format.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Batch {
    pub tensors: Vec<(String, Vec<u8>)>,
    /// Rows that are data; the rest repeat the first and pad the batch.
    pub rows: u64,
}

/// Where in the data a run stands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    pub epoch: u64,
    /// Batches of this epoch that were taken.
    pub batch: u64,
}

/// Open data.
pub struct Dataset {
    fields: Vec<(Field, Wanted, Rows)>,
    batch: u64,
    train: u64,
    test: u64,
    order: Order,
    shuffle: bool,
    position: Position,
    /// Rows of the current epoch, in the order they are drawn.
    current: Option<(u64, Vec<u64>)>,
}

impl Dataset {
    /// Opens the files and checks that every wanted input is fed with rows of its shape.
    ///
    /// # Errors
    /// Missing files, columns or tensors; shapes that do not agree (expected and found are named);
    /// fewer rows than a batch.
    pub fn open(spec: &DataSpec, wanted: &[Wanted]) -> Result<Dataset> {
        let batch = wanted.first().and_then(|w| w.shape.first().copied()).unwrap_or(1);
        if spec.batch.is_some_and(|b| b != batch) {
            let text = format!(
                "the data gives batches of {}, the plan takes {batch}",
                spec.batch.unwrap_or(0)
            );
            return Err(Error::new("R0401", text).help("compile the plan for this batch size"));
        }
        let mut fields = vec![];
        let mut counts: Vec<(String, u64)> = vec![];
        for w in wanted {
            let field = spec.fields.iter().find(|f| f.input == w.name).ok_or_else(|| {
                Error::new("R0402", format!("the data feeds nothing to the input `{}`", w.name))
                    .help(format!("add `{}` to the inputs or targets of `[data]`", w.name))
            })?;
            if w.shape.first() != Some(&batch) {
                let text = format!(
                    "input `{}` has shape {:?}; its first axis is not the batch of {batch}",
                    w.name, w.shape
                );
                return Err(Error::new("R0403", text));
            }
            let rows = source::open(&spec.source, field, w)?;
            counts.push((w.name.clone(), rows.count()));
            fields.push((field.clone(), w.clone(), rows));
        }
        for f in &spec.fields {
            if !wanted.iter().any(|w| w.name == f.input) {
                return Err(Error::new("R0404", format!("the plan has no input `{}`", f.input)));
            }
        }
        let count = counts.first().map_or(0, |c| c.1);
        if let Some((name, n)) = counts.iter().find(|c| c.1 != count) {
            let text = format!("`{}` has {count} rows, `{name}` has {n}", counts[0].0);
            return Err(Error::new("R0405", text));
        }
        if !(0.0..1.0).contains(&spec.split) {
            return Err(Error::new("R0406", format!("split = {} is not in [0, 1)", spec.split)));
        }
        let test = (count as f64 * spec.split).round() as u64;
        let train = count - test;
        if train < batch {
            let text = format!("{train} training rows are fewer than one batch of {batch}");
            return Err(Error::new("R0407", text).help("lower `batch` or `split`"));
        }
        let shuffle = spec.shuffle;
        let order = Order::new(spec.seed, count);
        Ok(Dataset {
            fields,
            batch,
            train,
            test,
            order,
            shuffle,
            position: Position::default(),
            current: None,
        })
    }

    /// Rows used for training, and rows held back.
    pub fn rows(&self) -> (u64, u64) {
        (self.train, self.test)
    }

    /// Whole batches of an epoch; the rows that are left over wait for the next order.
    pub fn batches_per_epoch(&self) -> u64 {
        self.train / self.batch
    }

    pub fn position(&self) -> Position {
        self.position
    }

    /// Continues where a run stood.
    pub fn set_position(&mut self, position: Position) {
        self.position = position;
    }

    /// The next training batch, over the epochs without end.
    ///
    /// # Errors
    /// If a value does not fit its input.
    pub fn next_batch(&mut self) -> Result<Batch> {
        if self.position.batch >= self.batches_per_epoch() {
            self.position = Position { epoch: self.position.epoch + 1, batch: 0 };
        }
        let epoch = self.position.epoch;
        if self.current.as_ref().is_none_or(|c| c.0 != epoch) {
            let rows = self.order.epoch(self.train, self.test > 0, self.shuffle.then_some(epoch));
            self.current = Some((epoch, rows));
        }
        let from = (self.position.batch * self.batch) as usize;
        let rows = &self.current.as_ref().expect("just filled").1[from..from + self.batch as usize];
        let batch = self.gather(rows)?;
        self.position.batch += 1;
        Ok(batch)
    }

    /// The held-back rows in batches, the last one padded.
    ///
    /// # Errors
    /// If a value does not fit its input.
    pub fn test_batches(&self) -> impl Iterator<Item = Result<Batch>> + '_ {
        let rows = self.order.test(self.train, self.test);
        (0..self.test.div_ceil(self.batch)).map(move |b| {
            let from = (b * self.batch) as usize;
            let to = (from + self.batch as usize).min(rows.len());
            let mut list = rows[from..to].to_vec();
            list.resize(self.batch as usize, rows[from]);
            let mut batch = self.gather(&list)?;
            batch.rows = (to - from) as u64;
            Ok(batch)
        })
    }

    fn gather(&self, rows: &[u64]) -> Result<Batch> {
        let mut batch = Batch { tensors: vec![], rows: rows.len() as u64 };
        for (field, wanted, source) in &self.fields {
            let mut bytes = vec![];
            for &r in rows {
                source
                    .row(r, wanted, (field.scale, field.shift), &mut bytes)
                    .map_err(|e| e.at(format!("row {r} for input `{}`", wanted.name)))?;
            }
            batch.tensors.push((wanted.name.clone(), bytes));
        }
        Ok(batch)
    }
}

/// A batch from tensors in memory, for callers with data of their own.
///
/// # Errors
/// If a shape differs or a value does not fit.
pub fn batch_of(wanted: &[Wanted], tensors: &[(&str, HostTensor)]) -> Result<Batch> {
    let mut batch = Batch::default();
    for w in wanted {
        let (_, t) = tensors.iter().find(|(n, _)| *n == w.name).ok_or_else(|| {
            Error::new("R0402", format!("the batch has no tensor for the input `{}`", w.name))
        })?;
        if t.shape != w.shape {
            let text = format!(
                "input `{}` takes shape {:?}, the batch has {:?}",
                w.name, w.shape, t.shape
            );
            return Err(Error::new("R0408", text));
        }
        let mut bytes = vec![];
        t.convert(0..t.elements(), w.dtype, (1.0, 0.0), &mut bytes)?;
        batch.rows = w.shape.first().copied().unwrap_or(1);
        batch.tensors.push((w.name.clone(), bytes));
    }
    Ok(batch)
}

/// The element type of text and tables.
pub(crate) const F64: Element = Element::F64;

#[cfg(test)]
mod tests;
