//! Rows of a tensor that lies in safetensors files.

use super::source::no_files;
use super::{Columns, Field};
use crate::error::{Error, Result};
use crate::files::InputFile;
use crate::tensors::{Element, HostTensor, TensorFile};
use precast_plan::DType;
use precast_plan::words::difference;
use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// Bytes of data that are kept in memory, of the first tensors that fit: there a call of the system
/// for each row would take longer than what it reads.
const KEPT: u64 = 256 << 20;

/// The rows of one tensor, those of several files behind each other. A row is read when it is
/// drawn, but for those of small tensors: the files may be larger than memory.
pub(super) struct TensorRows {
    parts: Vec<Part>,
    pub name: String,
    /// Extents of a row.
    pub row: Vec<u64>,
    pub count: u64,
}

/// What one file has.
struct Part {
    file: Arc<TensorFile>,
    /// Its first row among those of all files.
    first: u64,
    rows: u64,
    element: Element,
    /// Where in the file its first row is.
    at: u64,
    /// All rows, where they are few.
    kept: Option<Vec<u8>>,
}

/// Files that fields share, by their paths.
pub(super) struct Files {
    open: BTreeMap<PathBuf, Arc<TensorFile>>,
    /// Bytes that may still be kept.
    room: u64,
}

impl Default for Files {
    fn default() -> Files {
        Files::with_room(KEPT)
    }
}

impl Files {
    /// Keeps so many bytes in memory.
    pub fn with_room(room: u64) -> Files {
        Files { open: BTreeMap::new(), room }
    }

    fn open(&mut self, path: &PathBuf) -> Result<Arc<TensorFile>> {
        if let Some(file) = self.open.get(path) {
            return Ok(file.clone());
        }
        let file = Arc::new(TensorFile::open(path)?);
        self.open.insert(path.clone(), file.clone());
        Ok(file)
    }
}

impl TensorRows {
    /// Bytes of the rows that are kept in memory.
    pub fn kept_bytes(&self) -> u64 {
        self.parts.iter().filter_map(|p| p.kept.as_ref()).map(|k| k.capacity() as u64).sum()
    }

    pub fn open(files: &mut Files, paths: &[PathBuf], field: &Field) -> Result<TensorRows> {
        let Columns::Name(name) = &field.columns else {
            let text = format!("`{}` of a safetensors file takes one name", field.input);
            let place = paths.first().map_or_else(String::new, |p| p.display().to_string());
            return Err(Error::new("R0410", text)
                .at(place)
                .help("name it alone; lists are for the columns of a CSV table"));
        };
        let (mut parts, mut count, mut row) = (vec![], 0, None);
        for path in paths {
            let file = files.open(path)?;
            let t = file.info(name)?;
            let (rows, each) = match t.shape.split_first() {
                Some((&rows, each)) if rows > 0 => (rows, each.to_vec()),
                _ => {
                    let text = format!("tensor `{name}` has shape {:?}, which is no rows", t.shape);
                    return Err(Error::new("R0411", text)
                        .at(path.display())
                        .help("examples lie along axis 0 of a tensor of the data"));
                }
            };
            let first = row.get_or_insert_with(|| each.clone());
            if *first != each {
                let text = format!(
                    "tensor `{name}` has rows of shape {each:?}, in the file before of {first:?}: of a \
                     row, {}",
                    difference((&each[..], "here"), (&first[..], "there"))
                );
                return Err(Error::new("R0411", text)
                    .at(path.display())
                    .help("rows of all files of the data have one shape"));
            }
            let (element, at, bytes) = (t.element, t.bytes.start, t.bytes.end - t.bytes.start);
            let kept = match files.room.checked_sub(bytes) {
                Some(room) => {
                    files.room = room;
                    Some(file.tensor(name)?.bytes.into_owned())
                }
                None => None,
            };
            parts.push(Part { file, first: count, rows, element, at, kept });
            count += rows;
        }
        if parts.is_empty() {
            return Err(no_files());
        }
        Ok(TensorRows { parts, name: name.clone(), row: row.unwrap_or_default(), count })
    }

    fn part(&self, r: u64) -> &Part {
        let after = self.parts.partition_point(|p| p.first <= r);
        &self.parts[after - 1]
    }

    /// The file that holds row `r`, and the number of the row in it.
    pub fn file(&self, r: u64) -> (&InputFile, u64) {
        let part = self.part(r);
        (part.file.input(), r - part.first)
    }

    /// Appends rows from `r` on in the format `dtype`, at most `most` and one at least: as many as
    /// lie behind each other in one file. Returns how many those are. `raw` is memory to use.
    ///
    /// # Errors
    /// A value that does not fit; `R0417` with the row where the file ends before it or cannot be
    /// read.
    pub fn read(
        &self,
        (r, most): (u64, u64),
        dtype: DType,
        affine: (f64, f64),
        raw: &mut Vec<u8>,
        out: &mut Vec<u8>,
    ) -> Result<u64> {
        let part = self.part(r);
        let plain = part.element == Element::Plan(dtype) && affine == (1.0, 0.0);
        // What may not fit its format is read row by row, so that the row is known.
        let most = if plain || dtype.is_real() { most } else { 1 };
        let rows = most.min(part.first + part.rows - r);
        let each = self.row.iter().product::<u64>();
        let bytes = each * part.element.size() as u64;
        let offset = (r - part.first) * bytes;
        let fill = |to: &mut [u8]| {
            let read = part.file.input().read_at(to, part.at + offset);
            read.map_err(|e| self.unreadable(part, r, bytes, &e))
        };
        let size = (rows * bytes) as usize;
        if let Some(kept) = &part.kept {
            let kept = &kept[offset as usize..][..size];
            let t = HostTensor { element: part.element, shape: vec![], bytes: kept.into() };
            t.convert(0..(rows * each) as usize, dtype, affine, out)?;
            return Ok(rows);
        }
        if plain {
            let from = out.len();
            out.resize(from + size, 0);
            fill(&mut out[from..])?;
        } else {
            raw.resize(size, 0);
            fill(raw)?;
            let t = HostTensor { element: part.element, shape: vec![], bytes: raw[..].into() };
            t.convert(0..(rows * each) as usize, dtype, affine, out)?;
        }
        Ok(rows)
    }

    /// Where element `i` of a row is, by its axes.
    pub fn index(&self, i: usize) -> String {
        let mut rest = i as u64;
        let mut index: Vec<u64> = vec![];
        for extent in self.row.iter().rev() {
            index.push(rest % extent);
            rest /= extent;
        }
        index.reverse();
        format!("{index:?}")
    }

    /// The files, each once.
    pub fn inputs(&self) -> impl Iterator<Item = &InputFile> {
        self.parts.iter().map(|p| p.file.input())
    }

    /// Element `i` of row `r` as the file has it.
    pub fn value(&self, r: u64, i: usize) -> Result<f64> {
        let part = self.part(r);
        let size = part.element.size();
        let bytes = self.row.iter().product::<u64>() * size as u64;
        let offset = (r - part.first) * bytes + (i * size) as u64;
        let mut one = vec![0; size];
        match &part.kept {
            Some(kept) => one.copy_from_slice(&kept[offset as usize..][..size]),
            None => {
                let read = part.file.input().read_at(&mut one, part.at + offset);
                read.map_err(|e| self.unreadable(part, r, bytes, &e))?;
            }
        }
        Ok(HostTensor { element: part.element, shape: vec![], bytes: one.into() }.real(0))
    }

    /// Rows from `r` on could not be read: the first of them that the file does not have.
    fn unreadable(&self, part: &Part, r: u64, bytes: u64, e: &io::Error) -> Error {
        let file = part.file.input();
        let mut row = r - part.first;
        let why = match file.unchanged() {
            Err(why) => {
                let len = file.reader().metadata().map_or(0, |m| m.len());
                row = row.max(len.saturating_sub(part.at) / bytes.max(1)).min(part.rows - 1);
                format!("the file {why} during the run")
            }
            Ok(()) => format!("the file cannot be read: {e}"),
        };
        changed(file, row, &why)
    }
}

/// `R0417`: a file that is no longer what the run began with.
pub(super) fn changed(file: &InputFile, row: u64, why: &str) -> Error {
    Error::new("R0417", why)
        .at(format!("{}: row {row}", file.path().display()))
        .help("put the data back as it was and resume, or begin a run with the data as it is")
}
