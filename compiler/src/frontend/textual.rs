//! Models in textual IR.

use super::onnx::Imported;
use super::weights::WeightFile;
use crate::diagnostic::{Diagnostic, Place, Result};
use crate::ir::{self, Graph, Region, VarInit, VarRole};
use crate::ops::Op;
use crate::text;
use std::collections::BTreeSet;
use std::path::Path;

/// Reads a model: extents are as written, and training and evaluation are the same graph. `weights`
/// is a file whose tensors win over the first values in the text, by the variables' names.
///
/// # Errors
/// P0407 where the file cannot be read, P03xx where its text is wrong, P0401 where its graph is, and
/// P0211 or P0217 where the weights do not fit.
pub fn load(path: &Path, weights: Option<&Path>) -> Result<Imported> {
    let text = std::fs::read_to_string(path).map_err(|e| {
        Diagnostic::error("P0407", format!("cannot read the model: {e}"))
            .at(Place::File { path: path.into() })
    })?;
    let mut graph = text::parse(path, &text)?;
    ir::verify::verify(&graph)?;
    if let Some((_, n)) = graph.nodes().find(|(_, n)| n.region != Region::Forward) {
        let text =
            format!("a model is the forward pass alone, and this is a {} node", n.region.name());
        return Err(Diagnostic::error("P0401", text)
            .at(Place::Node { name: n.name.clone() })
            .help(
                "the compiler makes what is behind it: the loss, the backward pass and the update",
            )
            .into());
    }
    let warnings = match weights {
        Some(file) => take_weights(&mut graph, &WeightFile::open(file)?)?,
        None => vec![],
    };
    let inputs = graph.nodes().filter_map(|(_, n)| match &n.op {
        Op::Input(i) => Some((i.name.clone(), graph.ty(n.outputs[0]).clone())),
        _ => None,
    });
    let params = graph.vars.iter().filter(|(_, v)| v.role == VarRole::Param);
    let buffers = graph.vars.iter().filter(|(_, v)| v.role == VarRole::Buffer);
    let drawn = graph
        .vars
        .iter()
        .filter(|(_, v)| matches!(v.init, VarInit::Uniform { .. } | VarInit::Normal { .. }));
    Ok(Imported {
        inputs: inputs.collect(),
        outputs: graph
            .results
            .iter()
            .filter_map(|r| Some(r.name.strip_prefix("out.")?.to_string()))
            .collect(),
        params: params.map(|(name, _)| name.clone()).collect(),
        buffers: buffers.map(|(name, _)| name.clone()).collect(),
        drawn: drawn.map(|(name, _)| name.clone()).collect(),
        warnings,
        graph,
    })
}

/// Lets every parameter and buffer that the file has a tensor for begin with it.
fn take_weights(graph: &mut Graph, file: &WeightFile) -> Result<Vec<Diagnostic>> {
    let stored = |name: &str, init: &VarInit| match init {
        VarInit::Weights(stored) => stored.clone(),
        _ => name.to_string(),
    };
    let vars = graph
        .vars
        .iter_mut()
        .filter(|(_, v)| matches!(v.role, VarRole::Param | VarRole::Buffer))
        .map(|(name, v)| (stored(name, &v.init), v))
        .collect::<Vec<_>>();
    file.check_names(&vars.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>())?;
    let (mut matched, mut drawn, mut own) = (BTreeSet::new(), vec![], vec![]);
    for (name, var) in &vars {
        if matches!(var.init, VarInit::Weights(_)) || file.holds(name) {
            file.check(name, &var.ty.shape)?;
            matched.insert(name.as_str());
        } else if matches!(var.init, VarInit::Uniform { .. } | VarInit::Normal { .. }) {
            drawn.push(name.as_str());
        } else {
            own.push(name.as_str());
        }
    }
    let warning = file.partial(&matched, &drawn, &own);
    let matched: BTreeSet<String> = matched.into_iter().map(str::to_string).collect();
    for (name, var) in vars {
        if matched.contains(&name) {
            var.init = VarInit::Weights(name);
        }
    }
    Ok(warning.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_is_the_forward_pass_alone() {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let path = folder.path().join("model.pir");
        let text = |region: &str| {
            format!(
                "graph g\nforward:\n  %x = input {{name=\"x\"}} : f32[2]\n{region}  %y = unary %x {{f=neg}} @n\nresult out.y = %y\n"
            )
        };
        std::fs::write(&path, text("")).expect("written");
        load(&path, None).unwrap_or_else(|e| panic!("{e}"));
        std::fs::write(&path, text("backward:\n")).expect("written");
        let said = load(&path, None).unwrap_err().to_string();
        assert!(said.contains("error[P0401]: a model is the forward pass alone"), "{said}");
    }
}
