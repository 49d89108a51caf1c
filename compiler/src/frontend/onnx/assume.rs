//! Import of a model alone, without the data that would give its dynamic dimensions extents.

use super::inputs::Dim;
use super::inspect::{ModelInfo, inspect};
use super::{ImportOptions, Imported, InitScheme, load};
use crate::diagnostic::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// Extents to try for dimensions other than the batch: long enough for convolutions and pools,
/// short enough for tables of positions.
const EXTENTS: &[usize] = &[32, 64, 8, 4, 1];

/// Batches to try: the smallest that has a variance, and the one that exporters specialise for.
const BATCHES: &[usize] = &[2, 1];

/// Most extents of the model's own to try.
const OWN: usize = 12;

/// Extents for dimensions other than the batch: usual ones, then those of the model's parameters,
/// since a table of positions says how long a sequence may be.
fn extents(info: &ModelInfo) -> Vec<usize> {
    let shapes = info.params.iter().filter(|p| p.shape.len() > 1);
    let own: BTreeSet<usize> = shapes.flat_map(|p| p.shape.iter().copied()).collect();
    let own = own.into_iter().filter(|n| *n > 1 && !EXTENTS.contains(n)).take(OWN);
    EXTENTS.iter().copied().chain(own).collect()
}

/// A model imported under assumptions.
#[derive(Clone, Debug)]
pub struct Assumed {
    pub info: ModelInfo,
    /// Extents that were assumed, by the names of the dimensions.
    pub dims: Vec<(String, usize)>,
    /// `None` where an input does not even state its rank, so that only data can say more.
    pub imported: Option<Imported>,
}

/// Imports a model in training form with `given` extents of its dynamic dimensions, with assumed ones
/// for the others, and with drawn values where its weight file does not exist.
///
/// # Errors
/// As [`load`]. Where extents were assumed, the help of the first says which: another choice could
/// have another outcome, although several were tried.
pub fn load_assuming(path: &Path, given: &[(String, usize)]) -> Result<Assumed> {
    let info = inspect(path)?;
    if info.inputs.iter().any(|i| i.dims.is_none()) {
        return Ok(Assumed { info, dims: vec![], imported: None });
    }
    let firsts = info.inputs.iter().filter_map(|i| i.dims.as_ref()?.first());
    let batches: Vec<&Dim> = firsts.filter(|d| matches!(d, Dim::Named(_))).collect();
    let given: BTreeMap<String, usize> = given.iter().cloned().collect();
    let open = info.dim_names().into_iter().filter(|n| !given.contains_key(*n));
    let names: Vec<String> = open.map(str::to_string).collect();
    let is_batch = |name: &String| batches.contains(&&Dim::Named(name.clone()));
    let others = if names.iter().all(is_batch) { vec![EXTENTS[0]] } else { extents(&info) };
    let choices = BATCHES.iter().flat_map(|&b| others.iter().map(move |&x| (b, x)));
    let mut best = None;
    for (batch, extent) in choices {
        let dims: Vec<(String, usize)> =
            names.iter().map(|n| (n.clone(), if is_batch(n) { batch } else { extent })).collect();
        let opts = ImportOptions {
            dims: given.clone().into_iter().chain(dims.iter().cloned()).collect(),
            init: Some(InitScheme::Default),
            training: true,
            ..ImportOptions::default()
        };
        match load(path, &opts) {
            Ok(imported) => return Ok(Assumed { info, dims, imported: Some(imported) }),
            Err(e) => {
                // Operands that do not fit each other may fit with other extents; what else is refused
                // is best told of extents with which all fit.
                let misfits = e.0.iter().filter(|d| d.code == "P0214").count();
                if best.as_ref().is_none_or(|(_, _, fewest)| misfits < *fewest) {
                    best = Some((e, dims, misfits));
                }
                if names.is_empty() || misfits == 0 {
                    break;
                }
            }
        }
    }
    let (mut errors, dims, _) = best.expect("there are extents to try");
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
