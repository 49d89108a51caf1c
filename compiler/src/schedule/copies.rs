//! Low-precision weight copies: the update writes them, so no step begins by casting weights.

use crate::ir::view::View;
use crate::ir::{Graph, Region, Result_, TensorType, ValueId, Var, VarInit, VarRole};
use crate::ops::{Cast, Lowering, Op};
use precast_plan::DType;
use rustc_hash::FxHashMap;

/// The parameter behind a cast: the variable's name and its read.
fn cast_parameter(g: &Graph, v: ValueId) -> Option<(&str, ValueId)> {
    let Op::Var(var) = &g.def(v).op else { return None };
    (g.vars.get(&var.name)?.role == VarRole::Param).then_some((var.name.as_str(), v))
}

/// Name of the copy of `param` in `format`.
pub fn copy_name(param: &str, format: DType) -> String {
    format!("{param}.{format}")
}

/// Rewrites reads `cast(param)` in a narrower real format, outside the update, into reads of a
/// variable `<param>.<format>` that the update writes as a cast of the new weight. With `existing`,
/// only copies that graph already keeps are used (for evaluation, which updates nothing).
///
/// A cast behind views of the parameter is moved before them first.
pub fn weight_copies(g: &Graph, existing: Option<&Graph>) -> Graph {
    let mut out = Graph::new(g.name.clone());
    out.vars = g.vars.clone();
    if let Some(train) = existing {
        for (name, var) in &train.vars {
            if var.role == VarRole::WeightCopy {
                out.vars.insert(name.clone(), var.clone());
            }
        }
    }
    let mut map: Vec<ValueId> = vec![ValueId(u32::MAX); g.value_count()];
    // Copy variables already read, by name; and views of them, by (viewed value, format).
    let mut reads: FxHashMap<String, ValueId> = FxHashMap::default();
    let mut viewed: FxHashMap<(ValueId, DType), ValueId> = FxHashMap::default();
    let mut copies: Vec<(String, String, DType)> = vec![];
    for (_, node) in g.nodes() {
        let target = (matches!(node.op, Op::Cast(_)) && node.region != Region::Update)
            .then(|| g.ty(node.outputs[0]).dtype)
            .filter(|d| d.size() < 4);
        // The chain of views between the cast and the parameter, innermost last.
        let mut chain = vec![];
        let mut at = node.inputs.first().copied();
        while let (Some(_), Some(v)) = (target, at) {
            let def = g.def(v);
            if def.op.lowering() != Lowering::View
                || def.op.def().view(&View::dense(g.shape(def.inputs[0])), g.ty(v)).is_none()
            {
                break;
            }
            chain.push(v);
            at = Some(def.inputs[0]);
        }
        let found = target.zip(at).and_then(|(d, v)| cast_parameter(g, v).map(|(p, v)| (d, p, v)));
        let found = found
            .filter(|(d, p, _)| existing.is_none_or(|t| t.vars.contains_key(&copy_name(p, *d))));
        if let Some((format, param, read)) = found {
            let name = copy_name(param, format);
            let mut value = *reads.entry(name.clone()).or_insert_with(|| {
                let ty = TensorType::new(format, g.shape(read).clone());
                if existing.is_none() {
                    copies.push((name.clone(), param.to_string(), format));
                    let var = Var {
                        ty: ty.clone(),
                        role: VarRole::WeightCopy,
                        init: VarInit::CopyOf(param.to_string()),
                    };
                    out.vars.insert(name.clone(), var);
                }
                let op = Op::Var(crate::ops::Var::new(name.clone(), &ty));
                out.push(op, &[], vec![ty], name.clone(), Region::Forward)[0]
            });
            for &v in chain.iter().rev() {
                value = *viewed.entry((v, format)).or_insert_with(|| {
                    let def = g.def(v);
                    let ty = TensorType::new(format, g.shape(v).clone());
                    let label = format!("{}.{format}", def.name);
                    out.push(def.op.clone(), &[value], vec![ty], label, def.region)[0]
                });
            }
            map[node.outputs[0].0 as usize] = value;
            continue;
        }
        let inputs: Vec<ValueId> = node.inputs.iter().map(|v| map[v.0 as usize]).collect();
        let types = node.outputs.iter().map(|&v| g.ty(v).clone()).collect();
        let new = out.push(node.op.clone(), &inputs, types, node.name.clone(), node.region);
        for (old, new) in node.outputs.iter().zip(new) {
            map[old.0 as usize] = new;
        }
    }
    let rename = |rs: &[Result_]| -> Vec<Result_> {
        rs.iter()
            .map(|r| Result_ { name: r.name.clone(), value: map[r.value.0 as usize] })
            .collect()
    };
    out.results = rename(&g.results);
    out.updates = rename(&g.updates);
    for (name, param, format) in copies {
        let Some(new) = out.update_of(&param) else { continue };
        let ty = TensorType::new(format, out.shape(new).clone());
        let label = format!("{name}.update");
        let value = out.push(Op::Cast(Cast {}), &[new], vec![ty], label, Region::Update)[0];
        out.updates.push(Result_ { name, value });
    }
    out
}
