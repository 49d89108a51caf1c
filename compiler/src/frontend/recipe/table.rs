//! Headers and rows of CSV files, read as training reads them.

use super::Columns;
use super::extents::fault;
use crate::diagnostic::{Result, suggestion};
use csv::{Reader, ReaderBuilder, Trim};
use indexmap::IndexMap;
use precast_plan::table;
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

fn open(path: &Path, header: bool) -> Result<Reader<File>> {
    ReaderBuilder::new()
        .has_headers(header)
        .trim(Trim::All)
        .from_path(path)
        .map_err(|e| fault(path, format!("cannot read the table: {e}")).into())
}

/// How many columns each field takes, which is the only extent of its rows.
///
/// # Errors
/// `P0108` for a file that cannot be read, a column that it lacks, and files that disagree.
pub fn widths(
    files: &[PathBuf],
    header: bool,
    fields: &IndexMap<String, Columns>,
) -> Result<BTreeMap<String, Vec<usize>>> {
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    for path in files {
        let mut reader = open(path, header)?;
        // Without a header this is the first record.
        let first = reader.headers().map_err(|e| fault(path, table::fault(path, &e, None)))?;
        let table = Table { path, header, cells: first.iter().collect() };
        for (field, columns) in fields {
            let width = vec![table.width(field, columns)?];
            let before = found.insert(field.clone(), width.clone());
            if before.is_some_and(|b| b != width) {
                let message = format!("`{field}` has {} columns, another file has not", width[0]);
                return Err(fault(path, message).into());
            }
        }
    }
    Ok(found)
}

/// Rows of all files together.
///
/// # Errors
/// `P0108` for a file that cannot be read, and rows of different lengths.
pub fn rows(files: &[PathBuf], header: bool) -> Result<u64> {
    let mut rows = 0;
    for path in files {
        let mut reader = open(path, header)?;
        let mut record = csv::ByteRecord::new();
        let names = match header {
            true => reader.headers().ok().map(|h| h.iter().map(str::to_string).collect()),
            false => None,
        };
        let names: Option<Vec<String>> = names;
        while reader
            .read_byte_record(&mut record)
            .map_err(|e| fault(path, table::fault(path, &e, names.as_deref())))?
        {
            rows += 1;
        }
    }
    Ok(rows)
}

/// The first line of a file.
struct Table<'a> {
    path: &'a Path,
    header: bool,
    cells: Vec<&'a str>,
}

impl Table<'_> {
    fn find(&self, field: &str, name: &str) -> Result<usize> {
        let at = if self.header {
            self.cells.iter().position(|c| *c == name)
        } else {
            name.parse().ok().filter(|&i| i < self.cells.len())
        };
        at.ok_or_else(|| {
            let message = format!("the table has no column `{name}` for `{field}`");
            let help = if self.header {
                suggestion("columns", name, &self.cells)
            } else {
                let count = self.cells.len();
                format!("without a header, columns are numbers from 0; there are {count}")
            };
            fault(self.path, message).help(help).into()
        })
    }

    fn width(&self, field: &str, columns: &Columns) -> Result<usize> {
        match columns {
            Columns::List(names) => {
                for name in names {
                    self.find(field, name)?;
                }
                Ok(names.len())
            }
            Columns::Name(name) => match name.split_once("..") {
                None => self.find(field, name).map(|_| 1),
                Some((first, last)) => {
                    let (a, b) = (self.find(field, first)?, self.find(field, last)?);
                    (b + 1).checked_sub(a).filter(|n| *n > 0).ok_or_else(|| {
                        fault(self.path, format!("the range `{name}` for `{field}` runs backwards"))
                            .into()
                    })
                }
            },
        }
    }
}
