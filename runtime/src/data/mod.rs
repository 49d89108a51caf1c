//! Training and test data: rows of named tensors, batched in an order that a seed fixes.

mod finite;
mod order;
mod source;
mod tensors;

pub use order::Order;

use crate::error::{Error, Result};
use crate::tensors::{Element, HostTensor};
use precast_plan::words::difference;
use precast_plan::{Classes, DType};
use serde::{Deserialize, Serialize};
use source::Rows;
use std::path::{Path, PathBuf};
use std::sync::Arc;

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
    /// NaN and infinities are data, too.
    #[serde(default)]
    pub allow_nonfinite: bool,
}

impl DataSpec {
    /// For messages: its files.
    fn describe(&self) -> String {
        let (DataSource::Safetensors { files }
        | DataSource::Csv { files, .. }
        | DataSource::Bytes { files, .. }) = &self.source;
        match files.as_slice() {
            [] => "the data".into(),
            [one] => one.display().to_string(),
            [first, rest @ ..] => format!("{} and {} more", first.display(), rest.len()),
        }
    }
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
    /// Where the elements are numbers of classes.
    pub classes: Option<Classes>,
}

impl Wanted {
    /// Checks that every element, in the input's format, is a class or what the loss ignores.
    ///
    /// # Errors
    /// `R0416` for the first that is neither.
    pub fn check(&self, bytes: &[u8]) -> Result<()> {
        let Some(classes) = self.classes else { return Ok(()) };
        let fits = |x: i64| x == classes.ignore || (x >= 0 && (x as u64) < classes.count);
        let tensor = HostTensor {
            element: Element::Plan(self.dtype),
            shape: self.shape.clone(),
            bytes: bytes.into(),
        };
        match (0..tensor.elements()).map(|i| tensor.int(i)).find(|x| !fits(*x)) {
            None => Ok(()),
            Some(x) => {
                let text = format!("target {x} is not one of {} classes", classes.count);
                let (last, ignore) = (classes.count - 1, classes.ignore);
                Err(Error::new("R0416", text)
                    .at(format!("target `{}`", self.name))
                    .help(format!("targets are 0 to {last}, or `ignore_index`, which is {ignore}")))
            }
        }
    }
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

/// Where in which data a run stands: what a checkpoint keeps, so that another cut of the data is not
/// mistaken for its continuation.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataState {
    pub position: Position,
    pub rows: u64,
    pub batch: u64,
    pub split: f64,
    pub shuffle: bool,
    pub seed: u64,
}

/// Files that have been opened and agree with each other, whatever plan they will feed.
pub struct Opened {
    spec: DataSpec,
    rows: Vec<Rows>,
    count: u64,
    test: u64,
}

impl Opened {
    /// Opens the files, finds every field, and counts rows.
    ///
    /// # Errors
    /// Missing files, columns or tensors; fields with different numbers of rows; fewer rows than a
    /// batch, where the batch is given.
    pub fn open(spec: &DataSpec) -> Result<Opened> {
        if !(0.0..1.0).contains(&spec.split) {
            let text = format!("split = {} is not in [0, 1)", spec.split);
            return Err(Error::new("R0406", text)
                .at(spec.describe())
                .help("it is the share of the rows that are held back for testing"));
        }
        let rows = source::open(spec)?;
        let count = rows.first().map_or(0, Rows::count);
        for (field, r) in spec.fields.iter().zip(&rows) {
            if r.count() != count {
                let first = &spec.fields[0].input;
                let text = format!(
                    "the data for `{first}` has {count} rows, that for `{}` has {}",
                    field.input,
                    r.count()
                );
                let error = Error::new("R0405", text).at(spec.describe());
                return Err(match r.count() {
                    1 => error.help(
                        "data has a row for each example; a model whose output is the loss itself is \
                         trained with `[loss] kind = \"output\"`, without a target",
                    ),
                    _ => error.help("every input and target has a row for each example"),
                });
            }
        }
        let test = (count as f64 * spec.split).round() as u64;
        let opened = Opened { spec: spec.clone(), rows, count, test };
        opened.fills(spec.batch.unwrap_or(1))?;
        Ok(opened)
    }

    /// Forgets the fields of inputs that `read` says nothing of.
    pub fn keep(&mut self, read: impl Fn(&str) -> bool) {
        let keep: Vec<bool> = self.spec.fields.iter().map(|f| read(&f.input)).collect();
        let mut of = keep.iter();
        self.spec.fields.retain(|_| *of.next().expect("one a field"));
        let mut of = keep.iter();
        self.rows.retain(|_| *of.next().expect("one a field"));
    }

    fn fills(&self, batch: u64) -> Result<()> {
        let train = self.count - self.test;
        // Without fields there is nothing to count; binding says which input is not fed.
        if self.rows.is_empty() || train >= batch.max(1) {
            return Ok(());
        }
        let text = format!("{train} training rows are fewer than one batch of {batch}");
        Err(Error::new("R0407", text)
            .at(self.spec.describe())
            .help("lower `batch` or `split`, or give more data"))
    }
}

/// Memory that data takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataBytes {
    pub held: u64,
    pub drawn: u64,
}

fn bytes_of(w: &Wanted) -> u64 {
    w.shape.iter().product::<u64>() * w.dtype.size() as u64
}

/// Open data.
pub struct Dataset {
    fields: Vec<(Field, Wanted, Rows)>,
    source: String,
    allow_nonfinite: bool,
    batch: u64,
    train: u64,
    test: u64,
    order: Order,
    state: DataState,
    /// Rows of the current epoch, in the order they are drawn.
    current: Option<(u64, Vec<u64>)>,
    /// The last batch of [`Dataset::next_shared`].
    shared: Arc<Batch>,
}

impl Dataset {
    /// Opens the files and checks that every wanted input is fed with rows of its shape.
    ///
    /// # Errors
    /// As [`Opened::open`] and [`Dataset::bind`].
    pub fn open(spec: &DataSpec, wanted: &[Wanted]) -> Result<Dataset> {
        Dataset::bind(Opened::open(spec)?, wanted)
    }

    /// Feeds open files to the inputs of a plan.
    ///
    /// # Errors
    /// Inputs that nothing feeds, and fields that feed nothing; shapes that do not agree (expected
    /// and found are named); fewer rows than a batch.
    pub fn bind(opened: Opened, wanted: &[Wanted]) -> Result<Dataset> {
        let source = opened.spec.describe();
        let batch = wanted.first().and_then(|w| w.shape.first().copied()).unwrap_or(1);
        let fault = |code, text: String| Error::new(code, text).at(&source);
        if let Some(b) = opened.spec.batch.filter(|b| *b != batch) {
            let text =
                format!("`[data] batch` is {b}, and axis 0 of the model's inputs is {batch}");
            return Err(fault("R0401", text).help(format!(
                "write `batch = {batch}`, or give the model's inputs batches of {b}: textual IR states its \
                 shapes, and an exported model is free in axes that `dynamic_axes` or `dynamic_shapes` names"
            )));
        }
        opened.fills(batch)?;
        let Opened { spec, rows, count, test } = opened;
        let mut given: Vec<(Field, Rows)> = spec.fields.into_iter().zip(rows).collect();
        let mut fields = vec![];
        for w in wanted {
            let at = given.iter().position(|(f, _)| f.input == w.name).ok_or_else(|| {
                fault("R0402", format!("the data feeds nothing to the input `{}`", w.name))
                    .help(format!("add `{}` to the inputs or targets of `[data]`", w.name))
            })?;
            let (field, rows) = given.swap_remove(at);
            if w.shape.first() != Some(&batch) {
                let text = format!(
                    "axis 0 of input `{}`, of shape {:?}, is not the batch, which is {batch}",
                    w.name, w.shape
                );
                return Err(fault("R0403", text).help(
                    "every input has the examples of a batch along axis 0: export the model so \
                     (`dynamic_axes`, or `dynamic_shapes` with dynamo=True, may name the axis)",
                ));
            }
            rows.check(&field, w)?;
            fields.push((field, w.clone(), rows));
        }
        if let Some((f, _)) = given.first() {
            return Err(fault("R0404", format!("the plan has no input `{}`", f.input)));
        }
        let (shuffle, seed, split) = (spec.shuffle, spec.seed, spec.split);
        let allow_nonfinite = spec.allow_nonfinite;
        let position = Position::default();
        Ok(Dataset {
            fields,
            source,
            allow_nonfinite,
            batch,
            train: count - test,
            test,
            order: Order::new(seed, count),
            state: DataState { position, rows: count, batch, split, shuffle, seed },
            current: None,
            shared: Arc::default(),
        })
    }

    /// Rows used for training, and rows held back.
    pub fn rows(&self) -> (u64, u64) {
        (self.train, self.test)
    }

    /// Bytes that the data takes at most: held in memory by now, and those of orders and batches that
    /// drawing rows makes.
    pub fn bytes(&self) -> DataBytes {
        // Fields of one text share it.
        let is_text = |r: &Rows| matches!(r, Rows::Text { .. });
        let text = self.fields.iter().find(|f| is_text(&f.2)).map_or(0, |f| f.2.bytes());
        let others = self.fields.iter().filter(|f| !is_text(&f.2)).map(|f| f.2.bytes());
        // A batch of training and one of testing, one of them growing into fresh memory.
        let batch = self.fields.iter().map(|f| bytes_of(&f.1));
        // Numbers of rows: the split, two orders and the epoch before.
        let rows = 5 * 8 * (self.train + self.test);
        DataBytes { held: text + others.sum::<u64>(), drawn: 3 * batch.sum::<u64>() + rows }
    }

    /// Whole batches of an epoch; the rows that are left over wait for the next order.
    pub fn batches_per_epoch(&self) -> u64 {
        self.train / self.batch
    }

    pub fn position(&self) -> Position {
        self.state.position
    }

    /// For a checkpoint.
    pub fn state(&self) -> DataState {
        self.state
    }

    /// Continues where a run stood.
    ///
    /// # Errors
    /// `R0510` where it stood in other data, or in data cut another way.
    pub fn resume(&mut self, state: &DataState) -> Result<()> {
        let (here, there) = (&self.state, state);
        let differs = [
            ("seed", here.seed.to_string(), there.seed.to_string()),
            ("rows", here.rows.to_string(), there.rows.to_string()),
            ("batch", here.batch.to_string(), there.batch.to_string()),
            ("split", here.split.to_string(), there.split.to_string()),
            ("shuffle", here.shuffle.to_string(), there.shuffle.to_string()),
        ];
        if let Some((what, here, there)) = differs.iter().find(|(_, a, b)| a != b) {
            let text = format!(
                "the checkpoint was made with {what} = {there} of the data, this run has {here}"
            );
            return Err(Error::new("R0510", text)
                .at(&self.source)
                .help("resume with the recipe and the data the checkpoint was made with"));
        }
        self.state.position = state.position;
        Ok(())
    }

    /// The next training batch, over the epochs without end.
    ///
    /// # Errors
    /// If a value does not fit its input.
    pub fn next_batch(&mut self) -> Result<Batch> {
        let mut batch = Batch::default();
        self.next_into(&mut batch)?;
        Ok(batch)
    }

    /// As [`Dataset::next_batch`], in the memory of the batch before where nobody holds that any
    /// longer: fresh memory for a large batch costs as much as copying it.
    ///
    /// # Errors
    /// As [`Dataset::next_batch`].
    pub fn next_shared(&mut self) -> Result<Arc<Batch>> {
        let mut shared = std::mem::take(&mut self.shared);
        if Arc::get_mut(&mut shared).is_none() {
            shared = Arc::default();
        }
        self.next_into(Arc::get_mut(&mut shared).expect("nobody else holds it"))?;
        self.shared = shared.clone();
        Ok(shared)
    }

    fn next_into(&mut self, batch: &mut Batch) -> Result<()> {
        if self.state.position.batch >= self.batches_per_epoch() {
            self.state.position = Position { epoch: self.state.position.epoch + 1, batch: 0 };
        }
        let epoch = self.state.position.epoch;
        if self.current.as_ref().is_none_or(|c| c.0 != epoch) {
            let rows =
                self.order.epoch(self.train, self.test > 0, self.state.shuffle.then_some(epoch));
            self.current = Some((epoch, rows));
        }
        let from = (self.state.position.batch * self.batch) as usize;
        let rows = &self.current.as_ref().expect("just filled").1[from..from + self.batch as usize];
        self.gather(rows, batch)?;
        self.state.position.batch += 1;
        Ok(())
    }

    /// The held-back rows in batches, the last one padded.
    ///
    /// # Errors
    /// If a value does not fit its input.
    pub fn test_batches(&self) -> impl Iterator<Item = Result<Batch>> + '_ {
        self.batches_of(self.order.test(self.train, self.test))
    }

    /// Every row in the order of the data, the last batch padded.
    ///
    /// # Errors
    /// If a value does not fit its input.
    pub fn all_batches(&self) -> impl Iterator<Item = Result<Batch>> + '_ {
        self.batches_of((0..self.train + self.test).collect())
    }

    fn batches_of(&self, rows: Vec<u64>) -> impl Iterator<Item = Result<Batch>> + '_ {
        (0..(rows.len() as u64).div_ceil(self.batch)).map(move |b| {
            let from = (b * self.batch) as usize;
            let to = (from + self.batch as usize).min(rows.len());
            let mut list = rows[from..to].to_vec();
            list.resize(self.batch as usize, rows[from]);
            let mut batch = Batch::default();
            self.gather(&list, &mut batch)?;
            batch.rows = (to - from) as u64;
            Ok(batch)
        })
    }

    /// Fills `batch`, which is empty or one of this data, with these rows.
    fn gather(&self, rows: &[u64], batch: &mut Batch) -> Result<()> {
        let mut raw = vec![];
        batch.rows = rows.len() as u64;
        batch.tensors.resize_with(self.fields.len(), Default::default);
        for ((field, wanted, source), (name, bytes)) in self.fields.iter().zip(&mut batch.tensors) {
            name.clone_from(&wanted.name);
            bytes.clear();
            bytes.reserve(wanted.shape.iter().product::<u64>() as usize * wanted.dtype.size());
            let place = |r| format!("{}, for input `{}`", source.place(r), wanted.name);
            let mut rest = rows;
            while let Some(&r) = rest.first() {
                let from = bytes.len();
                // Rows behind each other may be read at once.
                let most = rest.iter().zip(r..).take_while(|(a, b)| **a == *b).count() as u64;
                let affine = (field.scale, field.shift);
                let n = source
                    .read((r, most), wanted, affine, &mut raw, bytes)
                    .map_err(|e| e.at(place(r)))?;
                let (read, each) = (&bytes[from..], (bytes.len() - from) / n as usize);
                for (r, row) in (r..).zip(read.chunks(each.max(1))) {
                    wanted.check(row).map_err(|e| Error { place: Some(place(r)), ..e })?;
                }
                if let Some(i) = finite::first_other(read, wanted.dtype)
                    && !self.allow_nonfinite
                {
                    let each = each / wanted.dtype.size();
                    let r = r + (i / each) as u64;
                    return Err(finite::error(source, (r, i % each), wanted, affine)?.at(place(r)));
                }
                rest = &rest[n as usize..];
            }
        }
        // Behind the reading, so that what was written before it is seen.
        let mut looked = vec![];
        self.fields.iter().try_for_each(|(_, _, source)| source.unchanged(rows, &mut looked))
    }

    /// Files whose paths lead to other files by now, each told once. The data is still that of the
    /// files which were opened.
    pub fn replaced(&self) -> Vec<&Path> {
        let inputs = self.fields.iter().filter_map(|(_, _, rows)| match rows {
            Rows::Tensors(t) => Some(t.inputs()),
            Rows::Table { .. } | Rows::Text { .. } => None,
        });
        inputs.flatten().filter(|f| f.replaced()).map(|f| f.path()).collect()
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
                "input `{}` takes shape {:?}, the batch has {:?}: {}",
                w.name,
                w.shape,
                t.shape,
                difference((&t.shape[..], "in the batch"), (&w.shape[..], "in the plan"))
            );
            return Err(Error::new("R0408", text)
                .at(format!("input `{}`", w.name))
                .help("compile the plan for batches of this shape"));
        }
        let mut bytes = vec![];
        t.convert(0..t.elements(), w.dtype, (1.0, 0.0), &mut bytes)
            .map_err(|e| e.at(format!("input `{}`", w.name)))?;
        w.check(&bytes)?;
        batch.rows = w.shape.first().copied().unwrap_or(1);
        batch.tensors.push((w.name.clone(), bytes));
    }
    Ok(batch)
}

pub(crate) use finite::NOT_FINITE;

/// The element type of text and tables.
pub(crate) const F64: Element = Element::F64;

#[cfg(test)]
mod tests;
