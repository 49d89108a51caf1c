//! A plan that can be watched while it runs.

use super::{Bind, Emit, Options, check_accumulation};
use crate::diagnostic::Result;
use crate::ir::{Attr, Graph, Phase, Region, ValueId, VarRole};
use crate::ops::Op;
use crate::schedule::affine::Access as Strided;
use crate::schedule::items::Source;
use crate::schedule::{Schedule, schedule_watched};
use precast_plan::{Plan, Side, Watch};
use std::collections::{BTreeMap, BTreeSet};

/// Lowers a training graph as [`super::lower`] does, without evaluation; every value of forward and
/// backward pass that is computed is stored, so that it can be looked at. Kernels, roundings and
/// results are those of the plan that [`super::lower`] gives.
///
/// # Errors
/// As [`super::lower`].
pub fn lower_watched(train: &Graph, options: &Options) -> Result<(Plan, Vec<Watch>)> {
    let s = schedule_watched(train, &options.capabilities)?;
    if options.accumulate > 1 {
        check_accumulation(&s)?;
    }
    let mut e = Emit::new(train.name.clone(), options);
    e.persistent(&s.graph);
    let (results, bind) = e.schedule(&s, "")?;
    e.plan.results = results;
    let watches = watches(&s, &bind);
    Ok((e.finish(), watches))
}

fn watches(s: &Schedule, bind: &Bind) -> Vec<Watch> {
    let g = &s.graph;
    let whole = completed(s);
    // By value of the graph: the scheduled value that holds it.
    let mut holder: BTreeMap<ValueId, usize> = BTreeMap::new();
    let clones: BTreeSet<usize> = {
        let again = s.items.items.iter().filter(|i| i.clone_of.is_some());
        again.flat_map(|i| i.writes.iter().map(|w| w.value)).collect()
    };
    for (i, value) in s.items.values.iter().enumerate() {
        if let Some(v) = value.of.filter(|_| !clones.contains(&i)) {
            holder.entry(v).or_insert(i);
        }
    }
    let mut out: Vec<Watch> = vec![];
    // By value of the graph: its watch, or what it was computed from where it has none.
    let mut seen: Vec<Sources> = vec![Sources::default(); g.value_count()];
    let mut order: Vec<_> = g.nodes().collect();
    order.sort_by_key(|(id, n)| (n.region, *id));
    for (_, node) in order {
        if node.region.phase() == Phase::Update {
            continue;
        }
        let mut from = Sources::default();
        node.inputs.iter().for_each(|v| from.add(&seen[v.0 as usize]));
        // What attention puts in the place of hidden scores is a literal too.
        let large = |a: &Attr| matches!(a, Attr::Real(x) if x.abs() >= f64::from(INFINITE));
        from.infinite |= node.op.def().attrs().iter().any(|(_, a)| large(a));
        for &v in &node.outputs {
            if let Op::Const(c) = &node.op {
                let infinite = |x: &f32| x.is_nan() || x.abs() >= INFINITE;
                from.infinite |= c.data.f32s().is_some_and(|l| l.iter().any(infinite));
            }
            seen[v.0 as usize] = from.clone();
            let Some(&at) = holder.get(&v).filter(|_| g.ty(v).is_real()) else { continue };
            let Some(mut watch) = watch(s, bind, &whole, at) else { continue };
            watch.op.clone_from(&node.name);
            watch.kind = node.op.name().into();
            watch.name = g.value_name(v);
            watch.side = side(g, v, &watch);
            watch.operands = from.watches.iter().copied().collect();
            watch.infinite_literal = from.infinite;
            let here = BTreeSet::from([out.len() as u32]);
            seen[v.0 as usize] = Sources { watches: here, infinite: false };
            out.push(watch);
        }
    }
    out
}

/// Literals of this magnitude stand for infinity: exporters write masks with the largest numbers of
/// f32 or bf16, which f16 does not hold.
const INFINITE: f32 = 1e30;

/// What a value was computed from: watches, and whether a literal with an infinity.
#[derive(Clone, Debug, Default)]
struct Sources {
    watches: BTreeSet<u32>,
    infinite: bool,
}

impl Sources {
    fn add(&mut self, other: &Sources) {
        self.watches.extend(&other.watches);
        self.infinite |= other.infinite;
    }
}

fn side(g: &Graph, v: ValueId, watch: &Watch) -> Side {
    match (&g.def(v).op, g.def(v).region) {
        (Op::Input(_), _) => Side::Input,
        (Op::Var(_), _) if watch.after.is_none() => Side::State,
        (_, Region::Forward) => Side::Forward,
        _ => Side::Cotangent,
    }
}

/// For every value that steps write: the last of them, counted in the micro phase.
fn completed(s: &Schedule) -> BTreeMap<usize, u32> {
    let mut out = BTreeMap::new();
    let steps = s.steps.iter().filter(|b| b.phase == Phase::Micro);
    for (at, bundle) in steps.enumerate() {
        for &g in &bundle.groups {
            let (group, built) = &s.groups[g];
            let sums = group.sums.iter().map(|s| s.out.value);
            let written: Vec<usize> = match built {
                Some(built) => built.outputs.iter().map(|a| a.value).collect(),
                None => s.items.items[group.items[0]].writes.iter().map(|w| w.value).collect(),
            };
            for mut v in written.into_iter().chain(sums) {
                out.insert(v, at as u32);
                while let Some((outer, _)) = &s.items.values[v].placed {
                    v = *outer;
                    out.insert(v, at as u32);
                }
            }
        }
    }
    out
}

/// A scheduled value's watch, without what only the graph knows; `None` where it is in no tensor,
/// or strides cannot say where.
fn watch(s: &Schedule, bind: &Bind, completed: &BTreeMap<usize, u32>, at: usize) -> Option<Watch> {
    let value = &s.items.values[at];
    let after = match &value.source {
        Source::Computed => Some(*completed.get(&at)?),
        // What is never written says nothing, and counters are the update's business.
        Source::Const(_) => return None,
        Source::Var(name) if s.graph.vars[name].role == VarRole::Machine => return None,
        Source::Var(_) | Source::Input(_) => None,
    };
    if !bind.tensor.contains_key(&s.items.storage(at)) {
        return None;
    }
    let whole = Strided { value: at, offset: 0, strides: value.view().strides };
    s.items.physical(&whole, &value.shape)?;
    Some(Watch {
        name: String::new(),
        op: String::new(),
        kind: String::new(),
        side: Side::Forward,
        stored: (!s.tapped.contains(&at)).then_some(value.dtype),
        shape: value.shape.iter().map(|&n| n as u64).collect(),
        access: bind.access(&whole, &value.shape),
        after,
        operands: vec![],
        infinite_literal: false,
    })
}
