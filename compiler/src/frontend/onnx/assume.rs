//! Import of a model alone, without the data that would give its dynamic dimensions extents.

use super::inputs::Dim;
use super::inspect::{ModelInfo, inspect};
use super::{ImportOptions, Imported, InitScheme, load};
use crate::diagnostic::Result;
use std::collections::BTreeMap;
use std::path::Path;

/// Extents to try for dimensions other than the batch: long enough for convolutions and pools,
/// short enough for tables of positions.
const EXTENTS: &[usize] = &[32, 64, 8, 4, 1];

/// The batch: the smallest that has a variance.
const BATCH: usize = 2;

/// A model imported under assumptions.
#[derive(Clone, Debug)]
pub struct Assumed {
    pub info: ModelInfo,
    /// Extents that were assumed, by the names of the dimensions.
    pub dims: Vec<(String, usize)>,
    /// `None` where an input does not even state its rank, so that only data can say more.
    pub imported: Option<Imported>,
}

/// Imports a model in training form with assumed extents where its own are dynamic, and with drawn
/// values where its weight file does not exist.
///
/// # Errors
/// As [`load`]. Where extents were assumed, the help of the first says which: another choice could
/// have another outcome, although several were tried.
pub fn load_assuming(path: &Path) -> Result<Assumed> {
    let info = inspect(path)?;
    if info.inputs.iter().any(|i| i.dims.is_none()) {
        return Ok(Assumed { info, dims: vec![], imported: None });
    }
    let firsts = info.inputs.iter().filter_map(|i| i.dims.as_ref()?.first());
    let batches: Vec<&Dim> = firsts.filter(|d| matches!(d, Dim::Named(_))).collect();
    let names: Vec<String> = info.dim_names().iter().map(|n| n.to_string()).collect();
    let is_batch = |name: &String| batches.contains(&&Dim::Named(name.clone()));
    let mut first = None;
    for &extent in EXTENTS {
        let dims: Vec<(String, usize)> =
            names.iter().map(|n| (n.clone(), if is_batch(n) { BATCH } else { extent })).collect();
        let opts = ImportOptions {
            dims: dims.iter().cloned().collect::<BTreeMap<_, _>>(),
            init: Some(InitScheme::Default),
            training: true,
            ..ImportOptions::default()
        };
        match load(path, &opts) {
            Ok(imported) => return Ok(Assumed { info, dims, imported: Some(imported) }),
            Err(e) => {
                first.get_or_insert((e, dims));
            }
        }
        if names.iter().all(is_batch) {
            break;
        }
    }
    let (mut errors, dims) = first.expect("there are extents to try");
    if let (Some(d), false) = (errors.0.first_mut(), dims.is_empty()) {
        let list: Vec<String> = dims.iter().map(|(n, x)| format!("{n} = {x}")).collect();
        let said = format!("found with assumed extents: {}", list.join(", "));
        d.help = Some(match d.help.take() {
            Some(help) => format!("{help} ({said})"),
            None => said,
        });
    }
    Err(errors)
}
