//! Rows of one field.

use super::{Columns, DataSource, F64, Field, Wanted};
use crate::error::{Error, Result};
use crate::tensors::{Element, HostTensor, TensorFile};
use precast_plan::DType;
use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;

/// The rows that feed one input.
pub(super) enum Rows {
    /// Files with the tensor's name and first row.
    Tensors { files: Vec<(TensorFile, u64)>, name: String, count: u64 },
    /// A table of numbers: `width` of each row.
    Table { values: Vec<f64>, width: usize },
    /// Windows of bytes, `shift` further.
    Text { bytes: Arc<Vec<u8>>, context: u64, shift: u64 },
}

fn row_elements(w: &Wanted) -> u64 {
    w.shape[1..].iter().product()
}

fn no_files() -> Error {
    Error::new("R0409", "`[data]` names no files")
}

/// Opens the rows of `field`.
pub(super) fn open(source: &DataSource, field: &Field, wanted: &Wanted) -> Result<Rows> {
    match source {
        DataSource::Safetensors { files } => tensors(files, field, wanted),
        DataSource::Csv { files, header } => table(files, *header, field, wanted),
        DataSource::Bytes { files, context } => text(files, *context, field, wanted),
    }
}

fn tensors(paths: &[PathBuf], field: &Field, wanted: &Wanted) -> Result<Rows> {
    let Columns::Name(name) = &field.columns else {
        return Err(Error::new(
            "R0410",
            format!("`{}` of a safetensors file takes one name", field.input),
        ));
    };
    let (mut files, mut count) = (vec![], 0);
    for path in paths {
        let file = TensorFile::open(path)?;
        let t = file.tensor(name)?;
        let rows = t.shape.first().copied().unwrap_or(0);
        let each: u64 = t.shape.iter().skip(1).product();
        if rows == 0 || each != row_elements(wanted) {
            let text = format!(
                "tensor `{name}` has shape {:?}; input `{}` takes rows of shape {:?}",
                t.shape,
                wanted.name,
                &wanted.shape[1..]
            );
            return Err(Error::new("R0411", text).at(path.display()));
        }
        files.push((file, count));
        count += rows;
    }
    if files.is_empty() {
        return Err(no_files());
    }
    Ok(Rows::Tensors { files, name: name.clone(), count })
}

fn table(paths: &[PathBuf], header: bool, field: &Field, wanted: &Wanted) -> Result<Rows> {
    let (mut values, mut width) = (vec![], 0);
    for path in paths {
        let bad = |text: String| Error::new("R0412", text).at(path.display());
        let mut reader = csv::ReaderBuilder::new()
            .has_headers(header)
            .trim(csv::Trim::All)
            .from_path(path)
            .map_err(|e| bad(format!("cannot read the table: {e}")))?;
        // Without a header this is the first record, which `records` gives again.
        let first = reader.headers().map_err(|e| bad(format!("cannot read line 1: {e}")))?;
        let cells = first.len();
        let names: Option<Vec<String>> = header.then(|| first.iter().map(str::to_string).collect());
        let columns =
            columns(&field.columns, names.as_deref(), cells).map_err(|e| e.at(path.display()))?;
        width = columns.len();
        for (line, record) in reader.records().enumerate() {
            let line = line + 1 + usize::from(header);
            let record = record.map_err(|e| bad(format!("line {line}: {e}")))?;
            for &c in &columns {
                let cell =
                    record.get(c).ok_or_else(|| bad(format!("line {line} has no column {c}")))?;
                let x: f64 = cell.parse().map_err(|_| {
                    bad(format!("line {line}, column {c}: `{cell}` is not a number"))
                })?;
                values.push(x);
            }
        }
    }
    if paths.is_empty() {
        return Err(no_files());
    }
    if width as u64 != row_elements(wanted) {
        let text = format!(
            "`{}` reads {width} columns; input `{}` takes rows of shape {:?}",
            field.input,
            wanted.name,
            &wanted.shape[1..]
        );
        return Err(Error::new("R0411", text).at(paths[0].display()));
    }
    Ok(Rows::Table { values, width })
}

/// Indices of the named columns: names of the header, numbers without one, `first..last` inclusive.
fn columns(columns: &Columns, header: Option<&[String]>, cells: usize) -> Result<Vec<usize>> {
    let find = |name: &str| -> Result<usize> {
        let at = match header {
            Some(h) => h.iter().position(|x| x == name),
            None => name.parse().ok().filter(|&i| i < cells),
        };
        at.ok_or_else(|| {
            let help = header.map_or_else(
                || format!("without a header, columns are numbers from 0; there are {cells}"),
                |h| format!("the columns are {}", h.join(", ")),
            );
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
                    return Err(Error::new("R0413", text));
                }
                Ok((a..=b).collect())
            }
            None => Ok(vec![find(name)?]),
        },
    }
}

fn text(paths: &[PathBuf], context: u64, field: &Field, wanted: &Wanted) -> Result<Rows> {
    let mut bytes = vec![];
    for path in paths {
        let more = std::fs::read(path).map_err(|e| {
            Error::new("R0414", format!("cannot read the file: {e}")).at(path.display())
        })?;
        bytes.extend(more);
    }
    if paths.is_empty() {
        return Err(no_files());
    }
    if row_elements(wanted) != context {
        let text = format!(
            "windows have {context} bytes; input `{}` takes rows of shape {:?}",
            wanted.name,
            &wanted.shape[1..]
        );
        return Err(Error::new("R0411", text));
    }
    if (bytes.len() as u64) <= context {
        let text =
            format!("{} bytes hold no window of {context} and the byte after it", bytes.len());
        return Err(Error::new("R0415", text).at(paths[0].display()));
    }
    let shift = u64::from(field.columns == Columns::Name("next".into()));
    Ok(Rows::Text { bytes: Arc::new(bytes), context, shift })
}

impl Rows {
    pub fn count(&self) -> u64 {
        match self {
            Rows::Tensors { count, .. } => *count,
            Rows::Table { values, width } => (values.len() / width) as u64,
            Rows::Text { bytes, context, .. } => (bytes.len() as u64 - 1) / context,
        }
    }

    /// Appends row `r` in the input's format.
    pub fn row(&self, r: u64, w: &Wanted, affine: (f64, f64), out: &mut Vec<u8>) -> Result<()> {
        let each = row_elements(w) as usize;
        match self {
            Rows::Tensors { files, name, .. } => {
                let (file, first) =
                    files.iter().rev().find(|f| f.1 <= r).expect("a row of the data");
                let from = (r - first) as usize * each;
                file.tensor(name)?.convert(from..from + each, w.dtype, affine, out)
            }
            Rows::Table { values, width } => {
                let row = &values[r as usize * width..][..*width];
                let bytes: Vec<u8> = row.iter().flat_map(|x| x.to_le_bytes()).collect();
                let t =
                    HostTensor { element: F64, shape: vec![each as u64], bytes: Cow::Owned(bytes) };
                t.convert(0..each, w.dtype, affine, out)
            }
            Rows::Text { bytes, context, shift } => {
                let from = (r * context + shift) as usize;
                let t = HostTensor {
                    element: Element::Plan(DType::U8),
                    shape: vec![each as u64],
                    bytes: Cow::Borrowed(&bytes[from..from + each]),
                };
                t.convert(0..each, w.dtype, affine, out)
            }
        }
    }
}
