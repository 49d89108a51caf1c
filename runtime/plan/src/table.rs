//! Places in a CSV table, for messages: lines and columns count from 1, as editors count them.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::Path;

/// Where a cell is: ``line 3, column 2 (`b`)``. `position` is where its row begins, `column` counts
/// from 0, `names` is the header.
pub fn cell(
    path: &Path,
    position: Option<&csv::Position>,
    column: usize,
    names: Option<&[String]>,
) -> String {
    let name = match names.map(|n| n.get(column)) {
        Some(Some(name)) => format!(" (`{name}`)"),
        // Without a header a recipe names columns by numbers from 0.
        None => format!(" (`{column}` in the recipe)"),
        Some(None) => String::new(),
    };
    match line(path, position) {
        Some(line) => format!("line {line}, column {}{name}", column + 1),
        None => format!("column {}{name}", column + 1),
    }
}

/// What is wrong with a table that cannot be read, with one line number.
pub fn fault(path: &Path, e: &csv::Error, names: Option<&[String]>) -> String {
    match e.kind() {
        csv::ErrorKind::UnequalLengths { pos, expected_len, len } => {
            let line = line(path, pos.as_ref()).map_or("a row".into(), |n| format!("line {n}"));
            let first = if names.is_some() { "the header" } else { "the first row" };
            let cells = if *len == 1 { "cell" } else { "cells" };
            format!("{line} has {len} {cells}, and {first} has {expected_len}")
        }
        csv::ErrorKind::Utf8 { pos, err } => {
            format!("{}: not UTF-8", cell(path, pos.as_ref(), err.field(), names))
        }
        csv::ErrorKind::Io(e) => e.to_string(),
        _ => e.to_string(),
    }
}

/// The line of a row.
fn line(path: &Path, position: Option<&csv::Position>) -> Option<u64> {
    line_at(path, position?.byte()).ok()
}

/// The line, counted from 1, on which the text at byte `at` of a file begins; of an empty line, that
/// of the first text behind it. The reader's own count does not pass over empty lines.
fn line_at(path: &Path, at: u64) -> io::Result<u64> {
    let mut line = 1;
    for (i, byte) in (0..).zip(BufReader::new(File::open(path)?).bytes()) {
        let byte = byte?;
        if i >= at && byte != b'\n' && byte != b'\r' {
            break;
        }
        line += u64::from(byte == b'\n');
    }
    Ok(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is said of the first fault of a table, or of its last row's second cell.
    fn said(text: &str, header: bool) -> String {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("table.csv");
        std::fs::write(&path, text).unwrap();
        let mut reader = csv::ReaderBuilder::new().has_headers(header).from_path(&path).unwrap();
        let names: Option<Vec<String>> =
            header.then(|| reader.headers().unwrap().iter().map(str::to_string).collect());
        let mut last = String::new();
        for record in reader.records() {
            match record {
                Ok(r) => last = cell(&path, r.position(), 1, names.as_deref()),
                Err(e) => return fault(&path, &e, names.as_deref()),
            }
        }
        last
    }

    #[test]
    fn a_place_is_one_line_and_one_column_counted_from_1() {
        assert_eq!(said("a,b\n1,2\n3,4\n", true), "line 3, column 2 (`b`)");
        assert_eq!(said("1,2\n3,4\n", false), "line 2, column 2 (`1` in the recipe)");
        // Quoted newlines, empty lines and the ends of lines of Windows.
        assert_eq!(said("\"a\nx\",b\r\n\"1\n\",2\r\n\r\n3,4\r\n", true), "line 6, column 2 (`b`)");
        assert_eq!(said("\n\na,b\n\n1,2", true), "line 5, column 2 (`b`)");
    }

    #[test]
    fn a_ragged_row_is_one_line() {
        assert_eq!(said("a,b\n1,2\n3\n", true), "line 3 has 1 cell, and the header has 2");
        assert_eq!(said("1,2\n\n3,4,5\n", false), "line 3 has 3 cells, and the first row has 2");
        let quoted = "a,b\n\"1\n2\n\",2\n3,4,5\n";
        assert_eq!(said(quoted, true), "line 5 has 3 cells, and the header has 2");
    }
}
