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
/// All that are unbound (P0208, each with the axes that it is) or in conflict (P0209).
pub fn bind(src: &Source, opts: &ImportOptions) -> Result<Vec<(String, TensorType)>> {
    let mut errors = Vec::new();
    let mut bound = Bound::new(opts);
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
            let help = if opts.dims_by_option {
                "export the model so that it states one; a recipe's data would give it, too"
            } else {
                "name a tensor of the data for it under [data] inputs"
            };
            errors.push(
                Diagnostic::error("P0208", "the model does not state the shape of this input")
                    .at(place())
                    .help(help),
            );
            continue;
        };
        if let Some(given) = given
            && let Err(d) = bound.add(name, &dims, given)
        {
            errors.push(d.at(place()));
        }
        inputs.push((name.clone(), dtype, dims));
    }
    let mut unbound: BTreeMap<&str, Vec<(&str, usize)>> = BTreeMap::new();
    let mut out = Vec::new();
    for (name, dtype, dims) in &inputs {
        let mut extents = Vec::new();
        for (axis, d) in dims.iter().enumerate() {
            match d {
                Dim::Known(n) => extents.push(*n as i64),
                Dim::Named(s) => match bound.extent(s) {
                    Some(n) => extents.push(i64::try_from(n).unwrap_or(i64::MAX)),
                    // Data that does not fit the input is told of above.
                    None if opts.input_shapes.contains_key(name) => {}
                    None => unbound.entry(s).or_default().push((name, axis)),
                },
            }
        }
        match checked_elements(&extents) {
            Ok((shape, _)) if shape.contains(&0) => {
                let axis = shape.iter().position(|n| *n == 0).unwrap_or(0);
                let message =
                    format!("{} has no elements: the shape is {shape:?}", axis_of(dims, axis));
                errors.push(
                    Diagnostic::error("P0209", message)
                        .at(src.tensor_place(name))
                        .help("an axis of an input has an extent of at least 1: export with an example that has"),
                );
            }
            Ok((shape, _)) => out.push((name.clone(), TensorType::new(*dtype, shape))),
            Err(e) => errors.push(Diagnostic::error("P0210", e).at(src.tensor_place(name))),
        }
    }
    for (dim, users) in unbound {
        let axes: Vec<String> =
            users.iter().map(|(input, axis)| format!("axis {axis} of `{input}`")).collect();
        let help = if opts.dims_by_option {
            format!("state it: `--dim \"{dim}={}\"`", example(dim))
        } else {
            format!(
                "give data for the input, or state it in the recipe: [data] dims = {{ \"{dim}\" = {} }}",
                example(dim)
            )
        };
        errors.push(
            Diagnostic::error(
                "P0208",
                format!("dimension `{dim}`, which is {}, has no extent", axes.join(", ")),
            )
            .at(crate::Place::File { path: src.path.clone() })
            .help(format!(
                "{help}; the exporter's `dynamic_axes` (with dynamo=True: `dynamic_shapes`) made it dynamic"
            )),
        );
    }
    if errors.is_empty() { Ok(out) } else { Err(Diagnostics(errors)) }
}

/// An extent that a person may mean by a name.
fn example(dim: &str) -> usize {
    let lower = dim.to_lowercase();
    if ["seq", "len", "time", "token"].iter().any(|w| lower.contains(w)) { 128 } else { 32 }
}

/// ``axis 0 (`batch`)``
fn axis_of(dims: &[Dim], axis: usize) -> String {
    match dims.get(axis) {
        Some(Dim::Named(name)) => format!("axis {axis} (`{name}`)"),
        _ => format!("axis {axis}"),
    }
}

/// Dynamic dimensions with an extent, and what gave it.
struct Bound(BTreeMap<String, (usize, String)>);

impl Bound {
    fn new(opts: &ImportOptions) -> Bound {
        let by = if opts.dims_by_option { "by `--dim`" } else { "in `[data] dims`" };
        Bound(opts.dims.iter().map(|(name, n)| (name.clone(), (*n, by.to_string()))).collect())
    }

    fn extent(&self, name: &str) -> Option<usize> {
        self.0.get(name).map(|(n, _)| *n)
    }

    /// The extents of the data for an input.
    ///
    /// # Errors
    /// P0209 where they are not the model's, with the first axis that differs.
    fn add(&mut self, input: &str, dims: &[Dim], given: &[usize]) -> Result<(), Diagnostic> {
        if dims.len() != given.len() {
            let list = dims.iter().map(Dim::to_string).collect::<Vec<_>>().join(", ");
            let message = format!(
                "the data for `{input}` has {} axes, {given:?}; the model's input has {}, [{list}]",
                given.len(),
                dims.len()
            );
            return Err(Diagnostic::error("P0209", message).help(
                "rows of the data are the input without its first axis, which is the batch: store them \
                 in that shape, or flat",
            ));
        }
        for (axis, (d, &n)) in dims.iter().zip(given).enumerate() {
            match d {
                Dim::Known(m) if *m != n => return Err(fixed(input, axis, (*m, n), given)),
                Dim::Known(_) => {}
                Dim::Named(name) => {
                    let by = format!("by axis {axis} of `{input}`");
                    let (before, by) = self.0.entry(name.clone()).or_insert((n, by));
                    if *before != n {
                        let message = format!(
                            "{} of the data for `{input}` is {n}, and `{name}` is {before} {by}",
                            axis_of(dims, axis)
                        );
                        return Err(Diagnostic::error("P0209", message).help(
                            "axes that the exporter's `dynamic_axes` (with dynamo=True: \
                             `dynamic_shapes`) give one name have one extent: give data that agrees, or \
                             export with a name for each",
                        ));
                    }
                }
            }
        }
        Ok(())
    }
}

/// P0209: an axis whose extent, (the model's, the data's), was fixed when the model was exported.
fn fixed(input: &str, axis: usize, (model, data): (usize, usize), given: &[usize]) -> Diagnostic {
    let message = format!(
        "axis {axis} of `{input}` is {model} in the model, and {data} in the data, whose batch is \
         {given:?}"
    );
    let name = if axis == 0 { "batch" } else { "n" };
    let free = format!(
        "export with `dynamic_axes={{\"{input}\": {{{axis}: \"{name}\"}}}}` (with dynamo=True: \
         `dynamic_shapes`)"
    );
    Diagnostic::error("P0209", message).help(match axis {
        0 => format!(
            "the model was exported for a batch of {model}: set `[data] batch = {model}`, or {free}"
        ),
        _ => format!("give rows with {model} there; for another extent, {free}"),
    })
}
