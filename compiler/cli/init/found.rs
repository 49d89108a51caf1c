//! What a data file holds.

use crate::failure::Outcome;
use crate::input;
use precast_plan::FileKind;
use precast_runtime::tensors::Element;
use precast_runtime::{Error, TensorFile, WeightSource};
use std::fs::File;
use std::path::Path;

/// A tensor or a column.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    pub name: String,
    /// `f32`, `i64`, …; of a column what its first rows look like.
    pub elem: String,
    /// Extents of one row.
    pub row: Vec<usize>,
}

impl Column {
    pub fn is_whole(&self) -> bool {
        self.elem.starts_with(['i', 'u', 'b']) && self.elem != "bf16"
    }

    pub fn elements(&self) -> usize {
        self.row.iter().product()
    }
}

/// The kinds of data.
#[derive(Clone, Debug, PartialEq)]
pub enum Found {
    Safetensors { rows: usize, columns: Vec<Column> },
    Csv { rows: usize, header: bool, columns: Vec<Column> },
    Text { bytes: u64 },
}

impl Found {
    pub const fn format(&self) -> &'static str {
        match self {
            Found::Safetensors { .. } => "safetensors",
            Found::Csv { .. } => "csv",
            Found::Text { .. } => "bytes",
        }
    }
}

/// Checks that a file may be data: text is whatever nobody knows better.
///
/// # Errors
/// P0001 for a file of a kind that is none, P0002 for one that cannot be read.
pub fn is_data(path: &Path) -> Outcome {
    use FileKind::{Csv, Safetensors, Text};
    match FileKind::of(path) {
        Ok(kind) if kind.is_vague() => Ok(()),
        _ => input::expect(path, &[Csv, Safetensors, Text], Some("--data")).map(|_| ()),
    }
}

/// Looks into a data file.
///
/// # Errors
/// R0203 and R0412 where it cannot be read.
pub fn look(path: &Path) -> Outcome<Found> {
    match path.extension().and_then(|e| e.to_str()) {
        Some("safetensors") => tensors(path),
        Some("csv") => table(path),
        _ => {
            let fail =
                |e| Error::new("R0414", format!("cannot read the file: {e}")).at(path.display());
            Ok(Found::Text { bytes: std::fs::metadata(path).map_err(fail)?.len() })
        }
    }
}

fn tensors(path: &Path) -> Outcome<Found> {
    let file = TensorFile::open(path)?;
    let mut columns = vec![];
    let mut counts: Vec<usize> = vec![];
    for name in file.names() {
        // What training could not read feeds nothing.
        let Ok(t) = file.info(&name) else { continue };
        if let Some((rows, row)) = t.shape.split_first() {
            counts.push(*rows as usize);
            let row = row.iter().map(|n| *n as usize).collect();
            let elem = match t.element {
                Element::Plan(dtype) => dtype.to_string(),
                Element::F64 => "f64".into(),
                Element::I16 => "i16".into(),
                Element::I8 => "i8".into(),
            };
            columns.push((*rows as usize, Column { name, elem, row }));
        }
    }
    // Tensors of a data set have a row for each example; what has another number is something else.
    let times = |rows: usize| counts.iter().filter(|c| **c == rows).count();
    let rows = counts.iter().copied().max_by_key(|&c| (times(c), c)).unwrap_or(0);
    let columns = columns.into_iter().filter(|c| c.0 == rows).map(|c| c.1).collect();
    Ok(Found::Safetensors { rows, columns })
}

/// Rows that are looked at to tell whole numbers from others.
const LOOKED_AT: usize = 1000;

fn table(path: &Path) -> Outcome<Found> {
    let bad = |e: &dyn std::fmt::Display| {
        Error::new("R0412", format!("cannot read the table: {e}")).at(path.display())
    };
    let file = File::open(path).map_err(|e| bad(&e))?;
    let mut reader =
        csv::ReaderBuilder::new().has_headers(false).trim(csv::Trim::All).from_reader(file);
    let mut lines = 0;
    let mut first: Vec<String> = vec![];
    let mut whole: Vec<bool> = vec![];
    for record in reader.records() {
        let record = record.map_err(|e| bad(&e))?;
        if lines == 0 {
            first = record.iter().map(str::to_string).collect();
            whole = vec![true; first.len()];
        } else if lines <= LOOKED_AT {
            for (cell, whole) in record.iter().zip(&mut whole) {
                *whole &= cell.parse::<i64>().is_ok();
            }
        }
        lines += 1;
    }
    // Names are no numbers.
    let header = first.iter().any(|cell| cell.parse::<f64>().is_err());
    if !header {
        for (cell, whole) in first.iter().zip(&mut whole) {
            *whole &= cell.parse::<i64>().is_ok();
        }
    }
    let column = |(i, cell): (usize, &String)| Column {
        name: if header { cell.clone() } else { i.to_string() },
        elem: if whole[i] { "i64" } else { "f32" }.into(),
        row: vec![],
    };
    let columns = first.iter().enumerate().map(column).collect();
    Ok(Found::Csv { rows: lines - usize::from(header && lines > 0), header, columns })
}
