//! Low-precision weight copies: the update writes them, so no step begins by casting weights.

use super::channels;
use crate::ir::view::View;
use crate::ir::{Graph, Node, Region, Result_, TensorType, ValueId, Var, VarInit, VarRole};
use crate::ops::{Cast, Lowering, Op, Transpose};
use precast_plan::DType;
use rustc_hash::{FxHashMap, FxHashSet};

/// The parameter behind a cast: the variable's name and its read.
fn cast_parameter(g: &Graph, v: ValueId) -> Option<(&str, ValueId)> {
    let Op::Var(var) = &g.def(v).op else { return None };
    (g.vars.get(&var.name)?.role == VarRole::Param).then_some((var.name.as_str(), v))
}

/// Name of the copy of `param` in `format`.
pub fn copy_name(param: &str, format: DType) -> String {
    format!("{param}.{format}")
}

/// A cast of a parameter, or of a view of one, to a narrower format.
struct Narrowed<'g> {
    format: DType,
    param: &'g str,
    read: ValueId,
    /// The views between the parameter and the cast, innermost last.
    chain: Vec<ValueId>,
}

fn narrowed<'g>(g: &'g Graph, node: &Node) -> Option<Narrowed<'g>> {
    if !matches!(node.op, Op::Cast(_)) || node.region == Region::Update {
        return None;
    }
    let format = g.ty(node.outputs[0]).dtype;
    let mut chain = vec![];
    let mut at = node.inputs[0];
    loop {
        let def = g.def(at);
        if def.op.lowering() != Lowering::View
            || def.op.def().view(&View::dense(g.shape(def.inputs[0])), g.ty(at)).is_none()
        {
            break;
        }
        chain.push(at);
        at = def.inputs[0];
    }
    let (param, read) = cast_parameter(g, at)?;
    (format.size() < 4).then_some(Narrowed { format, param, read, chain })
}

/// Copies that only convolutions read that want channels last, as their filters: the update writes
/// them in that order.
fn filters(g: &Graph, widest: usize) -> FxHashSet<String> {
    let uses = g.uses();
    let (mut yes, mut no) = (FxHashSet::default(), FxHashSet::default());
    for (_, node) in g.nodes() {
        let Some(n) = narrowed(g, node) else { continue };
        let filter = |&(reader, operand): &(crate::ir::NodeId, usize)| {
            let reader = g.node(reader);
            let types: Vec<&TensorType> = reader.inputs.iter().map(|&v| g.ty(v)).collect();
            operand == 1
                && channels::wants(&reader.op, &types, widest)
                && !matches!(reader.op, Op::Conv2dFilterGrad(_))
        };
        let fits = n.chain.is_empty()
            && channels::differs(g.shape(n.read))
            && uses[node.outputs[0].0 as usize].iter().all(filter);
        if fits { &mut yes } else { &mut no }.insert(copy_name(n.param, n.format));
    }
    yes.retain(|name| !no.contains(name));
    yes
}

/// Rewrites reads `cast(param)` in a narrower real format, outside the update, into reads of a
/// variable `<param>.<format>` that the update writes as a cast of the new weight. With `existing`,
/// only copies that graph already keeps are used (for evaluation, which updates nothing).
///
/// A cast behind views of the parameter is moved before them first. Filters of convolutions that want
/// channels last (`widest`: [`super::Capabilities::channels_last`]) are copied in that order.
pub fn weight_copies(g: &Graph, existing: Option<&Graph>, widest: usize) -> Graph {
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
    let filters = filters(g, widest);
    let mut copies: Vec<(String, String, DType)> = vec![];
    for (_, node) in g.nodes() {
        let found = narrowed(g, node).filter(|n| {
            existing.is_none_or(|t| t.vars.contains_key(&copy_name(n.param, n.format)))
        });
        if let Some(Narrowed { format, param, read, chain }) = found {
            let name = copy_name(param, format);
            let mut value = *reads.entry(name.clone()).or_insert_with(|| {
                let seen = TensorType::new(format, g.shape(read).clone());
                let mut ty = seen.clone();
                if existing.is_none() {
                    let of = param.to_string();
                    let init = if filters.contains(&name) {
                        ty.shape = channels::stored(&seen.shape).into();
                        VarInit::ChannelsLastOf(of)
                    } else {
                        VarInit::CopyOf(of)
                    };
                    copies.push((name.clone(), param.to_string(), format));
                    let role = VarRole::WeightCopy;
                    out.vars.insert(name.clone(), Var { ty: ty.clone(), role, init });
                } else {
                    ty = out.vars[&name].ty.clone();
                }
                let op = Op::Var(crate::ops::Var::new(name.clone(), &ty));
                let last = matches!(out.vars[&name].init, VarInit::ChannelsLastOf(_));
                let read = out.push(op, &[], vec![ty], name.clone(), Region::Forward)[0];
                if !last {
                    return read;
                }
                let perm = channels::BACK.to_vec();
                let op = Op::Transpose(Transpose { perm });
                out.push(op, &[read], vec![seen], format!("{name}.oihw"), Region::Forward)[0]
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
    let updated: FxHashMap<String, ValueId> =
        out.updated().into_iter().map(|(name, v)| (name.to_string(), v)).collect();
    for (name, param, format) in copies {
        let Some(&(mut new)) = updated.get(&param) else { continue };
        let ty = out.vars[&name].ty.clone();
        debug_assert_eq!(ty.dtype, format);
        if matches!(out.vars[&name].init, VarInit::ChannelsLastOf(_)) {
            let op = Op::Transpose(Transpose { perm: channels::ORDER.to_vec() });
            let seen = TensorType::new(out.ty(new).dtype, ty.shape.clone());
            let label = format!("{name}.ohwi");
            new = out.push(op, &[new], vec![seen], label, Region::Update)[0];
        }
        let label = format!("{name}.update");
        let value = out.push(Op::Cast(Cast {}), &[new], vec![ty], label, Region::Update)[0];
        out.updates.push(Result_ { name, value });
    }
    out
}
