//! What a model holds, without importing it: for `precast check`.

use super::control::captured;
use super::inputs::{Dim, declared, true_inputs};
use super::params::{Role, roles};
use super::source::{Source, Storage};
use super::tensor::Elem;
use crate::diagnostic::Result;
use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// An input or output as declared.
#[derive(Clone, Debug)]
pub struct InputInfo {
    pub name: String,
    /// Name of the element type, `f32` or `i64` and so on.
    pub elem: String,
    /// `None` where the model does not state the rank.
    pub dims: Option<Vec<Dim>>,
}

/// A trained tensor or buffer.
#[derive(Clone, Debug)]
pub struct ParamInfo {
    pub name: String,
    pub elem: String,
    pub shape: Vec<usize>,
    pub bytes: usize,
    /// A buffer (running statistics, a table of the module) rather than a parameter.
    pub buffer: bool,
    /// The file that holds its values, where it is not the model itself.
    pub file: Option<String>,
}

/// A summary of a model.
#[derive(Clone, Debug)]
pub struct ModelInfo {
    pub opset: i64,
    pub producer: String,
    pub inputs: Vec<InputInfo>,
    /// Names of the inputs that no output depends on.
    pub unread: Vec<String>,
    pub outputs: Vec<InputInfo>,
    pub params: Vec<ParamInfo>,
    /// How often each operator occurs.
    pub ops: BTreeMap<String, usize>,
    /// Operators that import does not know.
    pub unsupported: Vec<String>,
}

impl ModelInfo {
    /// Names of the dynamic dimensions of its inputs, in order.
    pub fn dim_names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = vec![];
        for dim in self.inputs.iter().flat_map(|i| i.dims.iter().flatten()) {
            if let Dim::Named(name) = dim
                && !names.contains(&name.as_str())
            {
                names.push(name);
            }
        }
        names
    }
}

/// The names that outputs depend on.
fn needed(src: &Source) -> Result<BTreeSet<String>> {
    let outputs = src.graph.output.iter().filter_map(|o| o.name.clone());
    let mut needed: BTreeSet<String> = outputs.collect();
    for (i, node) in src.graph.node.iter().enumerate().rev() {
        if node.output.iter().any(|y| needed.contains(y)) {
            needed.extend(node.input.iter().cloned());
            needed.extend(captured(node).map_err(|e| e.at(src.node_place(i)))?);
        }
    }
    Ok(needed)
}

/// Reads a model's summary.
///
/// # Errors
/// As [`super::load`] for files whose structure is unsound.
pub fn inspect(path: &Path) -> Result<ModelInfo> {
    let src = Source::open(path)?;
    let info = |name: &str, v| -> Result<InputInfo> {
        let (code, dims) = declared(&src, v)?;
        Ok(InputInfo { name: name.into(), elem: Elem::code_name(code), dims })
    };
    let inputs = true_inputs(&src).map(|(n, v)| info(n, v)).collect::<Result<_>>()?;
    let needed = needed(&src)?;
    let unread = true_inputs(&src).map(|(n, _)| n.to_string());
    let unread = unread.filter(|n| !needed.contains(n)).collect();
    let outputs = src
        .graph
        .output
        .iter()
        .map(|v| info(v.name.as_deref().unwrap_or_default(), v))
        .collect::<Result<_>>()?;
    let params = roles(&src, &|_| false)
        .iter()
        .filter(|(_, k)| !k.role.is_constant())
        .map(|(name, k)| {
            let init = &src.initializers[name];
            ParamInfo {
                name: name.clone(),
                elem: format!("{:?}", init.elem).to_lowercase(),
                shape: init.shape.clone(),
                bytes: init.bytes(),
                buffer: matches!(k.role, Role::RunningMean | Role::RunningVar | Role::Buffer),
                file: match &init.storage {
                    Storage::External { location, .. } => Some(location.clone()),
                    Storage::Raw { .. } | Storage::Fields(_) => None,
                },
            }
        })
        .collect();
    let mut ops: BTreeMap<String, usize> = BTreeMap::new();
    for node in src.every_node() {
        *ops.entry(node.op_type.clone().unwrap_or_default()).or_default() += 1;
    }
    let unsupported =
        ops.keys().filter(|o| !super::SUPPORTED.contains(&o.as_str())).cloned().collect();
    Ok(ModelInfo {
        opset: src.opset,
        producer: src.producer.clone(),
        inputs,
        unread,
        outputs,
        params,
        ops,
        unsupported,
    })
}
