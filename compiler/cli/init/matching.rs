//! Which tensors or columns feed which inputs.

use super::found::Column;
use precast_compiler::frontend::onnx::{Dim, InputInfo};

/// Names that targets go by.
const TARGETS: &[&str] =
    &["label", "labels", "target", "targets", "tgt", "y", "class", "classes", "next"];

/// Extents behind the first, those that are known.
pub fn row(port: &InputInfo) -> Option<Vec<Option<usize>>> {
    let dims = port.dims.as_ref()?;
    let known = |d: &Dim| match d {
        Dim::Known(n) => Some(*n),
        Dim::Named(_) => None,
    };
    Some(dims.iter().skip(1).map(known).collect())
}

/// Whether rows of these extents can be rows of a port.
fn fits(row: Option<&[Option<usize>]>, column: &Column) -> bool {
    let Some(row) = row else { return true };
    let agrees = |(have, want): (&usize, &Option<usize>)| want.is_none_or(|w| w == *have);
    if row.len() == column.row.len() {
        return column.row.iter().zip(row).all(agrees);
    }
    // Rows may lie flat.
    row.iter().copied().product::<Option<usize>>() == Some(column.elements())
}

/// The last word of a name, in small letters: `x` of `in.X`.
fn word(name: &str) -> String {
    name.rsplit(['.', '/']).next().unwrap_or(name).to_lowercase()
}

/// How alike a port and a column are called; less is more alike.
fn unlike(port: &str, column: &str) -> usize {
    let (a, b) = (word(port), word(column));
    match () {
        () if port == column => 0,
        () if a == b => 1,
        () if a.trim_end_matches('s') == b.trim_end_matches('s') => 2,
        () if a.contains(&b) || b.contains(&a) => 3,
        () => 4,
    }
}

fn is_target(name: &str) -> bool {
    let name = name.to_lowercase();
    name.split(|c: char| !c.is_alphanumeric()).any(|w| TARGETS.contains(&w))
}

/// Whether a port takes whole numbers.
pub fn takes_whole(port: &InputInfo) -> bool {
    !matches!(port.elem.as_str(), "f64" | "f32" | "f16" | "bf16")
}

/// The column for each input; `None` where none fits.
pub fn inputs(ports: &[InputInfo], columns: &[Column]) -> Vec<Option<Column>> {
    let mut left: Vec<&Column> = columns.iter().collect();
    let mut found: Vec<Option<Column>> = vec![None; ports.len()];
    // Who is called alike goes first; what is called like a target is taken last.
    for alike in 0..=4 {
        for (port, found) in ports.iter().zip(&mut found) {
            let extents = row(port);
            let best = left
                .iter()
                .enumerate()
                .filter(|(_, c)| found.is_none() && unlike(&port.name, &c.name) == alike)
                .filter(|(_, c)| {
                    fits(extents.as_deref(), c) && (!takes_whole(port) || c.is_whole())
                })
                .min_by_key(|(i, c)| (is_target(&c.name), takes_whole(port) != c.is_whole(), *i))
                .map(|(i, _)| i);
            if let Some(i) = best {
                *found = Some(left.remove(i).clone());
            }
        }
    }
    found
}

/// The column that is most likely the target of an output, among those that feed no input: called so,
/// or the last that fits.
pub fn target(
    output: Option<&InputInfo>,
    columns: &[Column],
    used: &[Option<Column>],
) -> Option<Column> {
    let left = columns.iter().filter(|c| !used.iter().flatten().any(|u| u == *c));
    let extents = output.and_then(row);
    let suits = |c: &Column| match &extents {
        None => true,
        Some(row) if c.is_whole() => {
            // One choice a position: the extents of the output without that of the classes.
            let n = c.row.len();
            n + 1 == row.len() || (n == row.len() && fits(Some(row), c)) || c.elements() == 1
        }
        Some(row) => fits(Some(row), c),
    };
    left.enumerate()
        .filter(|(_, c)| suits(c))
        .max_by_key(|(i, c)| (is_target(&c.name), *i))
        .map(|(_, c)| c.clone())
}

/// Columns of a table for each input and for the target: what is called alike, else all but the target
/// in the order of the table, as many as an input takes.
pub struct Split {
    pub inputs: Vec<Vec<String>>,
    pub target: Vec<Column>,
}

/// `None` where the numbers of columns do not agree.
pub fn table(ports: &[InputInfo], output: Option<&InputInfo>, columns: &[Column]) -> Option<Split> {
    let width = |port: &InputInfo| -> Option<usize> {
        row(port)?.iter().copied().product::<Option<usize>>()
    };
    let fixed: usize = ports.iter().filter_map(width).sum();
    let open = ports.iter().filter(|p| width(p).is_none()).count();
    let targets = match open {
        0 => columns.len().checked_sub(fixed)?,
        _ => 1,
    };
    // What is left over beside a class or the numbers of an output is nobody's.
    let wide = output.and_then(|o| *row(o)?.last()?);
    if targets > 1 && Some(targets) != wide {
        return None;
    }
    // One target may stand anywhere; several are the last, unless their names tell.
    let named: Vec<usize> = (0..columns.len()).filter(|i| is_target(&columns[*i].name)).collect();
    let at: Vec<usize> = match (named.len() == targets, output) {
        (true, Some(_)) => named,
        (_, Some(_)) => (columns.len().checked_sub(targets)?..columns.len()).collect(),
        (_, None) => vec![],
    };
    let spare = (columns.len() - at.len()).checked_sub(fixed)?;
    // A column that is called like an input of one number is its; the others are dealt in order.
    let mut left: Vec<usize> = (0..columns.len()).filter(|i| !at.contains(i)).collect();
    let mut own: Vec<Option<usize>> = vec![];
    for port in ports {
        let alike =
            |i: &usize| width(port) == Some(1) && unlike(&port.name, &columns[*i].name) <= 2;
        let found = left.iter().position(alike);
        own.push(found.map(|k| left.remove(k)));
    }
    let mut left = left.into_iter();
    let inputs: Vec<Vec<String>> = ports
        .iter()
        .zip(own)
        .map(|(p, own)| {
            let n = width(p).unwrap_or(if open == 1 { spare } else { 0 });
            let dealt = left.by_ref().take(if own.is_some() { 0 } else { n });
            own.into_iter().chain(dealt).map(|i| columns[i].name.clone()).collect()
        })
        .collect();
    let target = at.iter().map(|i| columns[*i].clone()).collect();
    (left.next().is_none() && inputs.iter().all(|i| !i.is_empty()))
        .then_some(Split { inputs, target })
}
