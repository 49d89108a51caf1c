//! Rows of one field.

use super::tensors::{Files, TensorRows, changed};
use super::{Columns, DataSource, DataSpec, F64, Field, NOT_FINITE, Wanted};
use crate::error::{Error, Result};
use crate::files::{InputFile, read_whole};
use crate::tensors::{Element, HostTensor};
use precast_plan::words::{difference, suggestion};
use precast_plan::{DType, table};
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

/// The rows that feed one input.
pub(super) enum Rows {
    /// Rows that are read as they are drawn.
    Tensors(TensorRows),
    /// A table of numbers: `width` of each row. Files with their first rows.
    Table { values: Vec<f64>, width: usize, files: Vec<(PathBuf, u64)> },
    /// Windows of bytes, `shift` further. Files with their first bytes.
    Text { text: Arc<Text>, context: u64, shift: u64 },
}

/// Files as one text.
pub(super) struct Text {
    bytes: Vec<u8>,
    files: Vec<(PathBuf, u64)>,
}

fn row_elements(w: &Wanted) -> u64 {
    w.shape[1..].iter().product()
}

pub(super) fn no_files() -> Error {
    Error::new("R0409", "`[data]` names no files")
}

/// Opens the rows of every field.
pub(super) fn open(spec: &DataSpec) -> Result<Vec<Rows>> {
    let fields = &spec.fields;
    match &spec.source {
        DataSource::Safetensors { files } => {
            let mut open = Files::default();
            let rows = |f| Ok(Rows::Tensors(TensorRows::open(&mut open, files, f)?));
            fields.iter().map(rows).collect()
        }
        DataSource::Csv { files, header } => {
            fields.iter().map(|f| rows_of_table(files, *header, f, spec.allow_nonfinite)).collect()
        }
        DataSource::Bytes { files, context } => text(files, *context, fields),
    }
}

fn rows_of_table(paths: &[PathBuf], header: bool, field: &Field, allow: bool) -> Result<Rows> {
    let (mut values, mut width, mut files) = (vec![], 0, vec![]);
    for path in paths {
        let bad = |text: String| Error::new("R0412", text).at(path.display());
        let file = InputFile::open(path).map_err(|e| bad(format!("cannot read the table: {e}")))?;
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(header)
            .trim(csv::Trim::All)
            .from_reader(file.reader());
        // Without a header this is the first record, which `records` gives again.
        let first = reader.headers().map_err(|e| bad(table::fault(path, &e, None)))?;
        let cells = first.len();
        let names: Option<Vec<String>> = header.then(|| first.iter().map(str::to_string).collect());
        let columns =
            columns(&field.columns, names.as_deref(), cells).map_err(|e| e.at(path.display()))?;
        if columns.is_empty() {
            let text = format!("`{}` names no column", field.input);
            return Err(Error::new("R0413", text).at(path.display()));
        }
        if !files.is_empty() && columns.len() != width {
            let text = format!("`{}` reads {} columns, {width} before", field.input, columns.len());
            return Err(Error::new("R0411", text).at(path.display()));
        }
        width = columns.len();
        files.push((path.clone(), (values.len() / width) as u64));
        for record in reader.records() {
            let record = record.map_err(|e| {
                bad(table::fault(path, &e, names.as_deref())).help(
                    "rows have as many cells as the first; a cell that holds a comma is quoted",
                )
            })?;
            let place = |c| table::cell(path, record.position(), c, names.as_deref());
            for &c in &columns {
                let cell = record.get(c).ok_or_else(|| bad(format!("{} is missing", place(c))))?;
                let x: f64 = cell.parse().map_err(|_| {
                    bad(format!("{}: `{cell}` is not a number", place(c)))
                        .help("cells are numbers: write words as numbers of classes, say")
                })?;
                if !x.is_finite() && !allow {
                    let name =
                        names.as_ref().map_or_else(|| c.to_string(), |n| format!("`{}`", n[c]));
                    return Err(Error::new("R0418", format!("column {name} holds {x}"))
                        .at(format!("{}: {}", path.display(), place(c)))
                        .help(NOT_FINITE));
                }
                values.push(x);
            }
        }
        file.unchanged().map_err(|why| bad(format!("the table {why} while it was read")))?;
    }
    if paths.is_empty() {
        return Err(no_files());
    }
    Ok(Rows::Table { values, width, files })
}

/// Indices of the named columns: names of the header, numbers without one, `first..last` inclusive.
fn columns(columns: &Columns, header: Option<&[String]>, cells: usize) -> Result<Vec<usize>> {
    let find = |name: &str| -> Result<usize> {
        let at = match header {
            Some(h) => h.iter().position(|x| x == name),
            None => name.parse().ok().filter(|&i| i < cells),
        };
        at.ok_or_else(|| {
            let help = match header {
                None => format!("without a header, columns are numbers from 0; there are {cells}"),
                Some(names) => {
                    let names: Vec<&str> = names.iter().map(String::as_str).collect();
                    suggestion("columns", name, &names)
                }
            };
            Error::new("R0413", format!("the table has no column `{name}`")).help(help)
        })
    };
    match columns {
        Columns::List(list) => list.iter().map(|n| find(n)).collect(),
        Columns::Name(name) => match name.split_once("..") {
            Some((a, b)) => {
                let (a, b) = (find(a)?, find(b)?);
                if a > b {
                    let text = format!("the range `{name}` runs backwards");
                    let help =
                        format!("write the column that comes first first: `{}`", backwards(name));
                    return Err(Error::new("R0413", text).help(help));
                }
                Ok((a..=b).collect())
            }
            None => Ok(vec![find(name)?]),
        },
    }
}

/// A range with its ends exchanged.
fn backwards(range: &str) -> String {
    range.split_once("..").map_or_else(String::new, |(a, b)| format!("{b}..{a}"))
}

fn text(paths: &[PathBuf], context: u64, fields: &[Field]) -> Result<Vec<Rows>> {
    let (mut bytes, mut files) = (vec![], vec![]);
    for path in paths {
        let more = read_whole(path, "R0414", "file")?;
        files.push((path.clone(), bytes.len() as u64));
        bytes.extend(more);
    }
    if paths.is_empty() {
        return Err(no_files());
    }
    if (bytes.len() as u64) <= context {
        let text =
            format!("{} bytes hold no window of {context} and the byte after it", bytes.len());
        return Err(Error::new("R0415", text)
            .at(paths[0].display())
            .help("lower `[data] context`, or give more text"));
    }
    let text = Arc::new(Text { bytes, files });
    let rows = fields.iter().map(|f| {
        let shift = u64::from(f.columns == Columns::Name("next".into()));
        Rows::Text { text: text.clone(), context, shift }
    });
    Ok(rows.collect())
}

impl Rows {
    pub fn count(&self) -> u64 {
        match self {
            Rows::Tensors(t) => t.count,
            Rows::Table { values, width, .. } => (values.len() / width) as u64,
            Rows::Text { text, context, .. } => (text.bytes.len() as u64 - 1) / context,
        }
    }

    /// Bytes in memory.
    pub fn bytes(&self) -> u64 {
        match self {
            Rows::Tensors(rows) => rows.kept_bytes(),
            Rows::Table { values, .. } => values.capacity() as u64 * 8,
            Rows::Text { text, .. } => text.bytes.capacity() as u64,
        }
    }

    /// Checks that rows have the input's extents. Rows of another rank need only have as many
    /// elements: a file may store images as flat rows, and columns of a table are always flat.
    pub fn check(&self, field: &Field, w: &Wanted) -> Result<()> {
        let takes = &w.shape[1..];
        let (have, what) = match self {
            Rows::Tensors(TensorRows { row, name, .. }) => {
                let what = match row.as_slice() {
                    [] => format!("rows of tensor `{name}` are one number"),
                    row => format!("rows of tensor `{name}` have shape {row:?}"),
                };
                (row.iter().product(), what)
            }
            Rows::Table { width, .. } => {
                (*width as u64, format!("`{}` reads {width} columns", field.input))
            }
            Rows::Text { context, .. } => (*context, format!("windows have {context} bytes")),
        };
        let other = match self {
            Rows::Tensors(t) => t.row.len() == takes.len() && t.row != takes,
            Rows::Table { .. } | Rows::Text { .. } => false,
        };
        if have == row_elements(w) && !other {
            return Ok(());
        }
        let takes_words = match takes {
            [] => "one number for each row".to_string(),
            takes => format!("rows of shape {takes:?}"),
        };
        let mut text = format!("{what}; input `{}` takes {takes_words}", w.name);
        if let (Rows::Tensors(t), true) = (self, other) {
            let differ = difference((&t.row[..], "in the data"), (takes, "in the model"));
            text += &format!(": of a row, {differ}");
        }
        let help = match self {
            Rows::Table { .. } => "a row of the input has one number for each column: name as many",
            Rows::Tensors(_) => {
                "store rows in that shape, or flat; an extent that may vary is exported as a dynamic one \
                 (`dynamic_axes`, or `dynamic_shapes` with dynamo=True)"
            }
            Rows::Text { .. } => "`[data] context` is the number of bytes of a window",
        };
        Err(Error::new("R0411", text).at(self.file(0).0).help(help))
    }

    /// The file that holds row `r`, and the number of the row in it.
    fn file(&self, r: u64) -> (String, u64) {
        let find = |files: &[(PathBuf, u64)], at: u64| {
            let (path, first) =
                files.iter().rev().find(|f| f.1 <= at).expect("files begin at their first row");
            (path.display().to_string(), at - first)
        };
        match self {
            Rows::Tensors(t) => {
                let (file, at) = t.file(r);
                (file.path().display().to_string(), at)
            }
            Rows::Table { files, .. } => find(files, r),
            Rows::Text { text, context, .. } => find(&text.files, r * context),
        }
    }

    /// For messages: where row `r` is.
    pub fn place(&self, r: u64) -> String {
        let (file, at) = self.file(r);
        match self {
            Rows::Text { .. } => format!("{file}: byte {at}"),
            _ => format!("{file}: row {at}"),
        }
    }

    /// Appends rows from `r` on in the input's format, at most `most` and one at least; returns how
    /// many. `raw` is memory to use.
    pub fn read(
        &self,
        (r, most): (u64, u64),
        w: &Wanted,
        affine: (f64, f64),
        raw: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<u64> {
        let each = row_elements(w) as usize;
        let shape = vec![each as u64];
        match self {
            Rows::Tensors(t) => return t.read((r, most), w.dtype, affine, raw, out),
            Rows::Table { values, width, .. } => {
                let row = &values[r as usize * width..][..*width];
                raw.clear();
                raw.extend(row.iter().flat_map(|x| x.to_le_bytes()));
                let t = HostTensor { element: F64, shape, bytes: Cow::Borrowed(raw) };
                t.convert(0..each, w.dtype, affine, out)?;
            }
            Rows::Text { text, context, shift } => {
                let from = (r * context + shift) as usize;
                let t = HostTensor {
                    element: Element::Plan(DType::U8),
                    shape,
                    bytes: Cow::Borrowed(&text.bytes[from..from + each]),
                };
                t.convert(0..each, w.dtype, affine, out)?;
            }
        }
        Ok(1)
    }

    /// Element `i` of row `r` as the data has it, and what it is called there.
    pub fn value(&self, r: u64, i: usize) -> Result<(f64, String)> {
        Ok(match self {
            Rows::Tensors(t) => (t.value(r, i)?, format!("element {} of `{}`", t.index(i), t.name)),
            Rows::Table { values, width, .. } => {
                (values[r as usize * width + i], format!("number {} of the row", i + 1))
            }
            Rows::Text { .. } => (f64::NAN, "a byte".into()),
        })
    }

    /// Checks that the files which these rows were read from are those that were opened, after they
    /// were read: what a batch holds is then what the run began with.
    ///
    /// # Errors
    /// `R0417` for the first row of a file that was cut, written to or removed.
    pub fn unchanged(&self, rows: &[u64], looked: &mut Vec<*const InputFile>) -> Result<()> {
        // Tables and texts are in memory.
        let Rows::Tensors(t) = self else { return Ok(()) };
        for &r in rows {
            let (file, row) = t.file(r);
            // Rows of a batch lie in few files, mostly in one.
            if looked.contains(&std::ptr::from_ref(file)) {
                continue;
            }
            looked.push(file);
            let fault = |why| changed(file, row, &format!("the file {why} during the run"));
            file.unchanged().map_err(fault)?;
        }
        Ok(())
    }
}
