//! Checks a graph and collects everything that is wrong with it.
//!
//! Checked: operands are defined before their use; result types are those the op infers (reals in
//! any real format); views and [`crate::ops::Concat`] of non-reals keep formats; variables read
//! and written exist with the types stated and begin with values of them; node names, result names and update targets are
//! unique; nothing of an earlier region reads a value of a later one.

use super::{Graph, TensorType, Var, VarInit};
use crate::diagnostic::{Diagnostic, Diagnostics, Place};
use crate::ops::{Lowering, Op, fits};
use std::collections::BTreeSet;

/// Verifies a graph.
///
/// # Errors
/// Every fault found, each naming the node (code P0401).
pub fn verify(g: &Graph) -> Result<(), Diagnostics> {
    let mut errors = Vec::new();
    let mut fault = |name: &str, message: String| {
        errors.push(Diagnostic::error("P0401", message).at(Place::Node { name: name.to_string() }));
    };
    let mut names = BTreeSet::new();
    for (id, node) in g.nodes() {
        if !names.insert(node.name.as_str()) {
            fault(&node.name, "the name is used twice".into());
        }
        if let Some(v) =
            node.inputs.iter().find(|v| v.0 as usize >= g.value_count() || g.value(**v).node >= id)
        {
            fault(&node.name, format!("operand {v} is not defined before its use"));
            continue;
        }
        for &v in &node.inputs {
            let from = g.def(v);
            if from.region > node.region {
                fault(
                    &node.name,
                    format!(
                        "a {} node reads {v} of region {}",
                        node.region.name(),
                        from.region.name()
                    ),
                );
            }
        }
        let types: Vec<&TensorType> = node.inputs.iter().map(|&v| g.ty(v)).collect();
        let inferred = node.op.def().infer(&types);
        let inferred = match inferred.and_then(|t| t.iter().try_for_each(fits).map(|()| t)) {
            Ok(t) => t,
            Err(e) => {
                fault(&node.name, format!("`{}`: {e}", node.op.name()));
                continue;
            }
        };
        if inferred.len() != node.outputs.len() {
            fault(&node.name, format!("{} results, not {}", node.outputs.len(), inferred.len()));
            continue;
        }
        for (i, (want, &v)) in inferred.iter().zip(&node.outputs).enumerate() {
            let have = g.ty(v);
            let format_fixed = !want.is_real() || node.op.lowering() == Lowering::View;
            let good = want.shape == have.shape
                && if format_fixed { want.dtype == have.dtype } else { have.is_real() };
            if !good {
                fault(
                    &node.name,
                    format!("result {i} is {have}, `{}` gives {want}", node.op.name()),
                );
            }
        }
        if let Op::Var(var) = &node.op {
            match g.vars.get(&var.name) {
                None => fault(&node.name, format!("there is no variable `{}`", var.name)),
                Some(v) if v.ty != *g.ty(node.outputs[0]) => {
                    fault(&node.name, format!("variable `{}` is {}", var.name, v.ty));
                }
                Some(_) => {}
            }
        }
    }
    for (name, v) in &g.vars {
        if let Some(e) = no_beginning(v) {
            fault(name, e);
        }
    }
    let mut results = BTreeSet::new();
    for r in &g.results {
        if !results.insert(&r.name) {
            fault(&r.name, "two results have this name".into());
        }
        if r.value.0 as usize >= g.value_count() {
            fault(&r.name, format!("result {} does not exist", r.value));
        }
    }
    let mut targets = BTreeSet::new();
    for u in &g.updates {
        if (u.value.0 as usize) < g.value_count() {
            // Once in each phase: an accumulator grows in one and is reset in the other.
            let phase = g.def(u.value).region.phase();
            if !targets.insert((&u.name, phase)) {
                fault(&u.name, "the variable is updated twice in one phase".into());
            }
        }
        match g.vars.get(&u.name) {
            None => fault(&u.name, "there is no such variable to update".into()),
            Some(_) if u.value.0 as usize >= g.value_count() => {
                fault(&u.name, format!("update {} does not exist", u.value));
            }
            Some(v) if v.ty.shape != *g.shape(u.value) || v.ty.kind() != g.ty(u.value).kind() => {
                fault(&u.name, format!("the variable is {}, its update {}", v.ty, g.ty(u.value)));
            }
            Some(_) => {}
        }
    }
    if errors.is_empty() { Ok(()) } else { Err(Diagnostics(errors)) }
}

/// Why a variable cannot begin as it is said to.
fn no_beginning(v: &Var) -> Option<String> {
    let drawn = |numbers: &[f64], spread: f64| {
        let good = v.ty.is_real() && numbers.iter().all(|x| x.is_finite()) && spread >= 0.0;
        (!good).then(|| format!("no {} variable begins with such draws", v.ty.dtype))
    };
    match v.init {
        VarInit::Value(x) if !v.ty.dtype.holds(x) => {
            Some(format!("{x:?}, with which the variable begins, is none of {}", v.ty.dtype))
        }
        VarInit::Uniform { bound, .. } => drawn(&[bound], bound),
        VarInit::Normal { mean, std, .. } => drawn(&[mean, std], std),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    #[test]
    fn variables_begin_with_values_of_their_formats() {
        for (var, want) in [
            ("f32[2] param uniform(-1.5, 1)", "no f32 variable begins with such draws"),
            ("f32[2] param normal(0.0, -1.0, 1)", "no f32 variable begins with such draws"),
            ("i32[2] buffer uniform(1.5, 1)", "no i32 variable begins with such draws"),
            ("i32[2] buffer value(0.5)", "0.5, with which the variable begins, is none of i32"),
            ("f32[2] param value(1e39)", "1e39, with which the variable begins, is none of f32"),
            ("f32[2] param value(0.5)", ""),
        ] {
            let text = format!(
                "graph g\nvar w: {var}\nforward:\n  %x = input {{name=\"x\"}} : f32[2]\nresult out.x = %x\n"
            );
            let g = crate::text::parse(Path::new("g.pir"), &text).unwrap_or_else(|e| panic!("{e}"));
            let said = verify(&g).err().map(|e| e.to_string()).unwrap_or_default();
            assert!(said.contains(want) && said.is_empty() == want.is_empty(), "{var}: {said}");
        }
    }
}
