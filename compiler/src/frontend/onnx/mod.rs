//! ONNX models, opset 13 to 28, as graphs.
//!
//! What remains of a model after import is tensor algebra: shape, index and mask arithmetic is
//! evaluated here, broadcasting is made explicit, casts between reals are dropped (precision is
//! chosen later), and every value has known extents.
//!
//! A model file is input from outside: whatever its bytes say, the result is a graph or a list of
//! diagnostics, and nothing is allocated for a size that the file's own bytes do not back.

// A diagnostic ends the import, so the size of its move does not matter.
#![allow(clippy::result_large_err)]

mod assume;
mod buffers;
mod control;
mod convert;
mod faults;
mod fold;
mod import;
mod inputs;
mod inspect;
mod moves;
mod narrow;
mod node;
mod origin;
mod params;
mod proto;
mod quotients;
mod scalar;
mod sizes;
mod source;
mod stops;
mod tensor;
mod variables;
mod warnings;

#[cfg(test)]
mod found_tests;
mod lost;
#[cfg(test)]
mod malformed;
#[cfg(test)]
mod messages_tests;
#[cfg(test)]
mod tests;

pub use assume::{Assumed, load_assuming};
pub use convert::{SUPPORTED, instead_of};
pub use fold::MAX_FOLDED;
pub use inputs::Dim;
pub use inspect::{InputInfo, ModelInfo, ParamInfo, inspect};
pub use node::shortest;
pub use params::InitScheme;
pub use source::OPSETS;

use crate::diagnostic::{Diagnostic, Diagnostics, Result};
use crate::ir::{Graph, TensorType};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// What import needs to know beside the model.
#[derive(Clone, Debug, Default)]
pub struct ImportOptions {
    /// Extents of dynamic dimensions by the model's name for them.
    pub dims: BTreeMap<String, usize>,
    /// Shapes of the data by input; they bind dynamic dimensions too.
    pub input_shapes: BTreeMap<String, Vec<usize>>,
    /// A safetensors file with every parameter and buffer under its initializer's name, in place of
    /// the model's own values.
    pub weights: Option<PathBuf>,
    /// How to draw parameters and buffers that neither `weights` nor the model has values for:
    /// the file that the model names for them does not exist.
    pub init: Option<InitScheme>,
    /// Globs over names of initializers that are trained whatever the file says of them.
    pub parameters: Vec<String>,
    /// Globs over names of initializers of which it is settled what becomes of them, so that no guess
    /// is worth a warning.
    pub settled: Vec<String>,
    /// Globs over names of nodes and values that no gradient passes.
    pub stop_gradient: Vec<String>,
    /// Training form: dropout is active, batch normalisation uses the batch and updates its running
    /// statistics. Otherwise both are in inference form.
    pub training: bool,
    /// Whether a person states extents by `--dim`, and not in a recipe; for what to do about one that
    /// is missing.
    pub dims_by_option: bool,
}

/// A model as a graph.
#[derive(Clone, Debug)]
pub struct Imported {
    /// Forward only. Results are `out.NAME` for each output of the model; updates are those of
    /// running statistics.
    pub graph: Graph,
    pub inputs: Vec<(String, TensorType)>,
    pub outputs: Vec<String>,
    /// Names of the trained variables, in the model's order.
    pub params: Vec<String>,
    /// Names of running statistics and other variables that are not trained.
    pub buffers: Vec<String>,
    /// Names of the variables whose first values are drawn.
    pub drawn: Vec<String>,
    pub warnings: Vec<Diagnostic>,
}

/// Imports a model file.
///
/// # Errors
/// Codes P0201 to P0217; `docs/ERRORS.md` lists them.
pub fn load(path: &Path, opts: &ImportOptions) -> Result<Imported> {
    let src = source::Source::open(path).map_err(advised)?;
    import::import(&src, opts).map_err(advised)
}

/// Imports a model held in memory; `path` names it in messages, and external data is looked for in
/// its folder.
///
/// # Errors
/// As [`load`].
pub fn load_bytes(path: &Path, bytes: Vec<u8>, opts: &ImportOptions) -> Result<Imported> {
    let src = source::Source::from_bytes(path, bytes).map_err(advised)?;
    import::import(&src, opts).map_err(advised)
}

/// What to do about faults of one kind, where nothing better is said of the one at hand.
fn advised(mut e: Diagnostics) -> Diagnostics {
    for d in e.0.iter_mut().filter(|d| d.help.is_none()) {
        d.help = match d.code {
            "P0204" | "P0210" => Some(
                "no exporter writes this: export the model again; `onnx.checker.check_model` says more"
                    .into(),
            ),
            "P0206" => Some(
                "Precast has other forms of this operator: docs/EXPORTING.md lists them; write the \
                 model with one"
                    .into(),
            ),
            _ => None,
        };
    }
    e
}
