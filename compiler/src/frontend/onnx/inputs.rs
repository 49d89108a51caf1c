//! The model's inputs: what they declare, and their dynamic dimensions bound to numbers.

use super::ImportOptions;
use super::import::input_dtype;
use super::proto::ValueInfoProto;
use super::source::Source;
use super::tensor::checked_elements;
use crate::diagnostic::{Diagnostic, Diagnostics, Result};
use crate::ir::TensorType;
use std::collections::BTreeMap;

/// One extent as the model declares it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Dim {
    Known(usize),
    /// A name, or `input[axis]` where the model has none.
    Named(String),
}

impl std::fmt::Display for Dim {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Dim::Known(n) => write!(f, "{n}"),
            Dim::Named(s) => f.write_str(s),
        }
    }
}

/// Declared extents; `None` where the model does not even state the rank.
///
/// # Errors
/// P0207 where the value is not a tensor, P0210 for extents that overflow.
pub fn declared(src: &Source, v: &ValueInfoProto) -> Result<(i32, Option<Vec<Dim>>), Diagnostic> {
    let name = v.name.clone().unwrap_or_default();
    let tensor = v.r#type.as_ref().and_then(|t| t.tensor_type.as_ref()).ok_or_else(|| {
        Diagnostic::error("P0207", "this input or output is not a tensor")
            .at(src.tensor_place(&name))
    })?;
    let code = tensor.elem_type.unwrap_or(0);
    let Some(shape) = &tensor.shape else { return Ok((code, None)) };
    let mut known = Vec::new();
    let dims = shape
        .dim
        .iter()
        .enumerate()
        .map(|(axis, d)| match (d.dim_value, &d.dim_param) {
            (Some(n), _) => {
                known.push(n);
                Dim::Known(usize::try_from(n).unwrap_or(0))
            }
            (None, Some(p)) if !p.is_empty() => Dim::Named(p.clone()),
            _ => Dim::Named(format!("{name}[{axis}]")),
        })
        .collect();
    checked_elements(&known)
        .map_err(|e| Diagnostic::error("P0210", e).at(src.tensor_place(&name)))?;
    Ok((code, Some(dims)))
}

/// Inputs that are not initializers, in the model's order.
pub fn true_inputs(src: &Source) -> impl Iterator<Item = (&String, &ValueInfoProto)> {
    src.graph.input.iter().filter_map(|v| {
        let name = v.name.as_ref()?;
        (!src.initializers.contains_key(name)).then_some((name, v))
    })
}

/// Types of the inputs with every dynamic dimension bound by `opts.dims` or by the data's shapes.
///
/// # Errors
/// All that are unbound (P0208, each with the inputs that use it) or in conflict (P0209).
pub fn bind(src: &Source, opts: &ImportOptions) -> Result<Vec<(String, TensorType)>> {
    let mut errors = Vec::new();
    let mut bound: BTreeMap<String, usize> = opts.dims.clone();
    let mut inputs = Vec::new();
    for (name, v) in true_inputs(src) {
        let place = || src.tensor_place(name);
        let (code, dims) = match declared(src, v) {
            Ok(d) => d,
            Err(d) => {
                errors.push(d);
                continue;
            }
        };
        let dtype = match input_dtype(code) {
            Ok(d) => d,
            Err(d) => {
                errors.push(d.at(place()));
                continue;
            }
        };
        let given = opts.input_shapes.get(name);
        let Some(dims) = dims.or_else(|| given.map(|s| s.iter().map(|&n| Dim::Known(n)).collect()))
        else {
            errors.push(
                Diagnostic::error("P0208", "the model does not state the shape of this input")
                    .at(place())
                    .help("name a tensor of the data for it under [data] inputs"),
            );
            continue;
        };
        if let Some(given) = given {
            let list = dims.iter().map(Dim::to_string).collect::<Vec<_>>().join(", ");
            let mut conflict = dims.len() != given.len();
            for (d, &n) in dims.iter().zip(given) {
                match d {
                    Dim::Known(m) => conflict |= *m != n,
                    Dim::Named(s) => conflict |= *bound.entry(s.clone()).or_insert(n) != n,
                }
            }
            if conflict {
                let said: Vec<String> = dims
                    .iter()
                    .filter_map(|d| match d {
                        Dim::Named(s) => Some(format!("{s} = {}", bound.get(s)?)),
                        Dim::Known(_) => None,
                    })
                    .collect();
                let mut d = Diagnostic::error(
                    "P0209",
                    format!("the data has shape {given:?}, the model wants [{list}]"),
                )
                .at(place());
                if !said.is_empty() {
                    d = d.help(format!("dimensions so far: {}", said.join(", ")));
                }
                errors.push(d);
            }
        }
        inputs.push((name.clone(), dtype, dims));
    }
    let mut unbound: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    let mut out = Vec::new();
    for (name, dtype, dims) in &inputs {
        let mut extents = Vec::new();
        for d in dims {
            match d {
                Dim::Known(n) => extents.push(*n as i64),
                Dim::Named(s) => match bound.get(s) {
                    Some(&n) => extents.push(i64::try_from(n).unwrap_or(i64::MAX)),
                    None => unbound.entry(s).or_default().push(name),
                },
            }
        }
        match checked_elements(&extents) {
            Ok((shape, _)) if shape.contains(&0) => errors.push(
                Diagnostic::error("P0209", format!("this input of shape {shape:?} has no elements"))
                    .at(src.tensor_place(name))
                    .help("an axis of an input has an extent of at least 1: export with an example that has"),
            ),
            Ok((shape, _)) => out.push((name.clone(), TensorType::new(*dtype, shape))),
            Err(e) => errors.push(Diagnostic::error("P0210", e).at(src.tensor_place(name))),
        }
    }
    for (dim, users) in unbound {
        let users: Vec<String> = users.iter().map(|u| format!("`{u}`")).collect();
        errors.push(
            Diagnostic::error(
                "P0208",
                format!("dimension `{dim}` of {} has no extent", users.join(", ")),
            )
            .at(crate::Place::File { path: src.path.clone() })
            .help(format!(
                "state it in the recipe: [data] dims = {{ \"{dim}\" = … }}, or give data for the input"
            )),
        );
    }
    if errors.is_empty() { Ok(out) } else { Err(Diagnostics(errors)) }
}
