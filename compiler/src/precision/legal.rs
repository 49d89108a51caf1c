//! What may be stored and multiplied in a 16-bit format, and the reason where it may not.

use super::degree::Degree;
use super::{PrecisionOptions, filled, keeps_format, narrow, storages, uniform_operands};
use crate::diagnostic::{Diagnostic, Result};
use crate::ir::{Graph, Node, NodeId, Region, ValueId, VarRole};
use crate::ops::matmul::source_name;
use crate::ops::{Lowering, NumericClass, Op};
use globset::{Glob, GlobMatcher};
use precast_plan::{DType, Target};
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// A reason.
pub type Why = Cow<'static, str>;

/// Legality of one candidate format.
pub struct Legal {
    pub half: DType,
    /// By value (views: as their storage): why it is stored in f32.
    pub store: Vec<Option<Why>>,
    /// By value: why not even a copy may be in the 16-bit format.
    pub copy: Vec<Option<Why>>,
    /// By node, for kernels with [`uniform_operands`]: why its operands are f32.
    pub product: Vec<Option<String>>,
    /// By node: a pin asks for the 16-bit format.
    pub wanted: Vec<bool>,
}

const PINNED: &str = "pinned to f32";

impl Legal {
    /// Names of the products of `g`, which this is the legality of, that a pin keeps in f32.
    pub fn exact(&self, g: &Graph) -> BTreeSet<String> {
        let pinned = |why: &Option<String>| why.as_deref() == Some(PINNED);
        let all = g.nodes().zip(&self.product).filter(|(_, why)| pinned(why));
        all.map(|((_, n), _)| n.name.clone()).collect()
    }

    /// Products that may not leave the format that is chosen for them, by name, with the reason:
    /// what is no 16-bit format's either, and what is pinned to the 16-bit format.
    pub fn fixed(&self, g: &Graph) -> BTreeMap<String, String> {
        let pinned = || format!("pinned to {}", self.half);
        let why = self
            .product
            .iter()
            .zip(&self.wanted)
            .map(|(why, wanted)| why.clone().or_else(|| wanted.then(pinned)));
        g.nodes().zip(why).filter_map(|((_, n), why)| Some((n.name.clone(), why?))).collect()
    }
}

const NO_SCALE: &str = "a cotangent without loss scale underflows in f16";

/// Degrees of every value in the seed and in the loss scale.
pub fn degrees(g: &Graph, o: &PrecisionOptions) -> Vec<(Degree, Degree)> {
    let scaled = g.vars.contains_key(&o.loss_scale);
    let mut out = vec![(Degree::ZERO, Degree::ZERO); g.value_count()];
    for (_, n) in g.nodes() {
        let zero = matches!(&n.op, Op::Const(c) if c.data.splat() == Some(0.0));
        let d = match &n.op {
            _ if n.name == o.seed => (Degree::Is(1), Degree::ZERO),
            Op::Var(v) if v.name == o.loss_scale => (Degree::ZERO, Degree::Is(1)),
            Op::Var(v) if g.vars[&v.name].role == VarRole::Accumulator => {
                (Degree::Is(1), Degree::Is(i8::from(scaled)))
            }
            _ if n.inputs.is_empty() => (Degree::ZERO, Degree::ZERO),
            op => {
                let x: Vec<_> = n.inputs.iter().map(|v| out[v.0 as usize]).collect();
                let of = |f: fn(&(Degree, Degree)) -> Degree| {
                    Degree::of(op, &x.iter().map(f).collect::<Vec<_>>())
                };
                (of(|d| d.0), of(|d| d.1))
            }
        };
        for &v in &n.outputs {
            let real = g.ty(v).is_real();
            out[v.0 as usize] = (d.0.settled(zero, real), d.1.settled(zero, real));
        }
    }
    out
}

/// Legality in `half` of everything in a graph.
///
/// # Errors
/// P0501: a pin that is not a glob, names nothing, or asks for what is illegal.
pub fn legality(g: &Graph, half: DType, o: &PrecisionOptions, target: &Target) -> Result<Legal> {
    legality_within(g, half, o, target, &[])
}

/// What was measured of a value says of a format.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Judged {
    /// Nothing was measured.
    #[default]
    Unknown,
    Held,
    /// Not held, and why.
    Lost(Why),
}

/// [`legality`], where `judged` says by value whether `half` holds it.
///
/// # Errors
/// As [`legality`].
pub fn legality_within(
    g: &Graph,
    half: DType,
    o: &PrecisionOptions,
    target: &Target,
    judged: &[Judged],
) -> Result<Legal> {
    let n = g.value_count();
    let mut l = Legal {
        half,
        store: vec![None; n],
        copy: vec![None; n],
        product: vec![None; g.node_count()],
        wanted: vec![false; g.node_count()],
    };
    let storage = storages(g);
    let mut keep = |v: ValueId, why: &'static str| {
        l.store[storage[v.0 as usize].0 as usize].get_or_insert(why.into());
    };
    for (_, node) in g.nodes() {
        for (i, &v) in node.outputs.iter().enumerate() {
            if let Some(why) = kept_result(g, node, i, v) {
                keep(v, why);
            }
        }
        if node.op.class() == NumericClass::State {
            for &v in &node.inputs {
                keep(v, "the optimizer and the loss-scale machine read f32");
            }
        }
        for &(i, why) in node.op.def().reads_f32() {
            if let Some(&v) = node.inputs.get(i).filter(|&&v| g.ty(v).is_real()) {
                keep(v, why);
            }
        }
    }
    for r in &g.results {
        // An output of the model is seen in the format in which it is computed.
        if !r.name.starts_with("out.") {
            keep(r.value, "a result of the step is f32");
        }
    }
    // What a variable becomes, and what it is chosen from: the old value, or the new one of a step
    // that counts.
    let mut written: Vec<ValueId> = g.updates.iter().map(|u| u.value).collect();
    let mut seen = BTreeSet::new();
    while let Some(v) = written.pop() {
        if !seen.insert(v) {
            continue;
        }
        keep(v, "a variable is stored in f32");
        let def = g.def(v);
        if def.op.class() == NumericClass::Movement && def.op.lowering() == Lowering::Rows {
            written.extend(def.inputs.iter().copied().filter(|&x| g.ty(x).is_real()));
        }
    }
    for v in gradient_paths(g) {
        keep(v, "a weight gradient is f32");
    }
    for (v, judged) in judged.iter().enumerate() {
        if let Judged::Lost(why) = judged {
            l.copy[v].get_or_insert(why.clone());
            l.store[storage[v].0 as usize].get_or_insert(why.clone());
        }
    }
    if half.facts().max < DType::F32.facts().max / 2.0 {
        narrow_range(g, o, judged, &storage, &mut l);
    }
    let filled = filled::needs(g, half);
    for (v, (store, copy)) in filled.store.into_iter().zip(filled.copy).enumerate() {
        if let Some(why) = store {
            l.store[storage[v].0 as usize].get_or_insert(why);
        }
        if let Some(why) = copy {
            l.copy[v].get_or_insert(why);
        }
    }
    if target.convert(half).is_none() {
        for v in 0..n {
            l.copy[v] = Some("the target's kernels do not store this format".into());
            l.store[v] = l.copy[v].clone();
        }
    }
    for (id, node) in g.nodes() {
        let x: Vec<_> = node.inputs.iter().map(|&v| g.ty(v)).collect();
        let y: Vec<_> = node.outputs.iter().map(|&v| g.ty(v)).collect();
        let operands = uniform_operands(&node.op, node.inputs.len());
        let mut why = operands
            .iter()
            .find_map(|&i| {
                let v = node.inputs[i].0 as usize;
                l.copy[v].clone().or_else(|| l.copy[storage[v].0 as usize].clone())
            })
            .map(Cow::into_owned);
        if why.is_none() && node.op.class() == NumericClass::Product {
            let prices = crate::cost::Prices { target };
            if prices.product(&node.op, &x, &y, half).is_none() {
                why = Some(format!("{} has no such kernel in {half}", target.name));
            }
        }
        l.product[id.0 as usize] = why;
    }
    pins(g, o, &mut l)?;
    for (id, node) in g.nodes() {
        if keeps_format(&node.op)
            && l.product[id.0 as usize].is_none()
            && let Some(why) = &l.store[node.outputs[0].0 as usize]
        {
            l.product[id.0 as usize] = Some(why.to_string());
        }
    }
    Ok(l)
}

/// What a format whose range is narrower than f32's does not hold, or may not hold.
fn narrow_range(
    g: &Graph,
    o: &PrecisionOptions,
    judged: &[Judged],
    storage: &[ValueId],
    l: &mut Legal,
) {
    let degrees = degrees(g, o);
    let cotangents: Vec<bool> = degrees
        .iter()
        .map(|(seed, _)| match seed {
            Degree::Is(d) => *d > 0,
            Degree::Any => false,
            Degree::Mixed => true,
        })
        .collect();
    for (v, (_, scale)) in degrees.iter().enumerate().filter(|(v, _)| cotangents[*v]) {
        if !matches!(scale, Degree::Is(e) if *e > 0) {
            l.copy[v].get_or_insert(NO_SCALE.into());
            l.store[storage[v].0 as usize].get_or_insert(NO_SCALE.into());
        }
    }
    let needs = narrow::needs(g, l.half, &cotangents);
    for (v, (store, copy)) in needs.store.into_iter().zip(needs.copy).enumerate() {
        if let Some(why) = store {
            l.store[storage[v].0 as usize].get_or_insert(why);
        }
        // What was measured tells more of a product's operand than what could be.
        if let (Some(why), false) = (copy, judged.get(v) == Some(&Judged::Held)) {
            l.copy[v].get_or_insert(why);
        }
    }
}

/// Why a result is stored in f32 by the nature of its operation.
fn kept_result(g: &Graph, node: &Node, i: usize, v: ValueId) -> Option<&'static str> {
    if !g.ty(v).is_real() {
        return Some("not a real");
    }
    if node.op.lowering() == Lowering::View {
        return None;
    }
    if node.region == Region::Update || node.op.class() == NumericClass::State {
        return Some("the update is f32");
    }
    if g.shape(v).elements() <= 1 {
        return Some("a scalar");
    }
    if node.region == Region::Forward && (node.name == "loss" || node.name.starts_with("loss.")) {
        return Some("the loss is f32");
    }
    if let Some(why) = node.op.def().stored_f32(i) {
        return Some(why);
    }
    if node.op.class() == NumericClass::Sensitive {
        // The tensor that flows through may be narrow; sums and statistics beside it may not.
        let through = node.inputs.first().is_some_and(|&x| g.shape(x) == g.shape(v));
        let elementary = matches!(node.op, Op::Unary(_) | Op::Binary(_));
        if elementary {
            return Some("an elementary function with a wide range is f32");
        }
        let narrow = node.op.def().narrow().map(|list| list.contains(&i));
        if !narrow.unwrap_or(through && i == 0) {
            return Some("a sum or statistic is f32");
        }
    }
    None
}

/// Values between the product (or sum) that makes a weight gradient and the optimizer: linear
/// elementwise steps and views.
fn gradient_paths(g: &Graph) -> Vec<ValueId> {
    let mut uses = vec![0u32; g.value_count()];
    for (_, n) in g.nodes() {
        for &v in &n.inputs {
            uses[v.0 as usize] += 1;
        }
    }
    let mut on = vec![false; g.value_count()];
    for u in &g.updates {
        on[u.value.0 as usize] = true;
    }
    for (_, n) in g.nodes().rev() {
        if n.op.class() == NumericClass::State {
            n.inputs.iter().for_each(|v| on[v.0 as usize] = true);
            continue;
        }
        let y = n.outputs[0];
        if !on[y.0 as usize] || n.region == Region::Forward {
            continue;
        }
        let through = match &n.op {
            Op::Binary(_) | Op::Scale(_) | Op::ScaleBy(_) | Op::Select(_) | Op::Concat(_) => true,
            Op::Unary(_) | Op::Pad(_) => true,
            op => op.lowering() == Lowering::View,
        };
        for &x in &n.inputs {
            // A sum over a batch of products is part of the gradient's product.
            let partial = matches!(n.op, Op::Reduce(_))
                && g.def(x).op.class() == NumericClass::Product
                && uses[x.0 as usize] == 1;
            on[x.0 as usize] |= through || partial;
        }
    }
    (0..g.value_count() as u32).map(ValueId).filter(|v| on[v.0 as usize]).collect()
}

fn pins(g: &Graph, o: &PrecisionOptions, l: &mut Legal) -> Result<()> {
    let storage = storages(g);
    for pin in &o.pins {
        let fault = |message: String, help: &str| {
            let d = Diagnostic::error("P0501", message).help(help.to_string());
            match &pin.place {
                Some(place) => d.at(place.clone()),
                None => d,
            }
        };
        let glob: GlobMatcher = Glob::new(&pin.op)
            .map_err(|e| {
                fault(
                    format!("the pin `{}` is not a glob: {e}", pin.op),
                    "`*` stands for any characters",
                )
            })?
            .compile_matcher();
        let mut any = false;
        for (id, node) in g.nodes() {
            if !glob.is_match(&node.name) && !glob.is_match(source_name(&node.name)) {
                continue;
            }
            any = true;
            pin_node(id, node, pin.dtype, &storage, l).map_err(|why| {
                fault(
                    format!("`{}` is pinned to {} but cannot be: {why}", node.name, pin.dtype),
                    "pin it to f32, or remove the pin",
                )
            })?;
        }
        if !any {
            let names = g.nodes().map(|(_, n)| n.name.as_str());
            let help = match crate::diagnostic::nearest(&pin.op, names) {
                Some(near) => format!("did you mean `{near}`?"),
                None => {
                    "`precast show --stage egraph` lists the operations; one that was fused into a \
                         product goes by the product's name"
                        .into()
                }
            };
            return Err(fault(format!("the pin `{}` names no operation", pin.op), &help).into());
        }
    }
    Ok(())
}

fn pin_node(
    id: NodeId,
    node: &Node,
    dtype: DType,
    storage: &[ValueId],
    l: &mut Legal,
) -> std::result::Result<(), String> {
    let i = id.0 as usize;
    if dtype == DType::F32 {
        l.wanted[i] = false;
        l.product[i].get_or_insert(PINNED.into());
        for &v in &node.outputs {
            l.store[storage[v.0 as usize].0 as usize].get_or_insert(PINNED.into());
        }
        return Ok(());
    }
    if dtype != l.half {
        // Priced in the candidate of that format; elsewhere the pin keeps the operation in f32.
        return pin_node(id, node, DType::F32, storage, l);
    }
    match (&l.product[i], node.op.class()) {
        (Some(why), NumericClass::Product) => return Err(why.clone()),
        (None, NumericClass::Product) => l.wanted[i] = true,
        _ => return Err("only products, convolutions and attention choose a format".into()),
    }
    Ok(())
}
