//! The changes of format in a step.

use crate::ir::{Graph, Region, ValueId};
use crate::ops::{Lowering, Op};
use precast_plan::{DType, Decision, Rejected};
use rustc_hash::FxHashMap;
use serde::Serialize;

/// One tensor that is written once more in another format.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CastRecord {
    /// Name of the cast.
    pub name: String,
    /// The operation or variable whose result is cast.
    pub of: String,
    pub from: DType,
    pub to: DType,
    pub elements: u64,
    /// In the forward pass, rather than the backward pass or the update.
    pub forward: bool,
    /// Operations that read the copy.
    pub readers: Vec<String>,
}

impl CastRecord {
    /// Bytes read and written where the cast is a kernel of its own.
    pub fn bytes(&self) -> u64 {
        self.elements * (self.from.size() + self.to.size()) as u64
    }
}

/// In [`precast_plan::Decision::rejected`]: the alternative that marks a decision about a cast.
pub const WITHOUT: &str = "without the cast";

/// Whether a decision of a journal is about a cast.
pub fn is_cast(d: &Decision) -> bool {
    d.rejected.first().is_some_and(|r| r.what == WITHOUT)
}

impl CastRecord {
    /// `asked for by fc1, fc1.grad`
    pub fn asked_by(&self) -> String {
        match self.readers.as_slice() {
            [] => "kept between steps".into(),
            readers => format!("asked for by {}", readers.join(", ")),
        }
    }

    /// The journal's entry. `cost_ns`: what making the copy costs; `extra_ns`: what the step would
    /// cost more without it, its readers in the format that is stored, `None` where that is not
    /// legal or not known.
    pub fn decision(&self, cost_ns: f64, extra_ns: Option<f64>, why: &str) -> Decision {
        Decision {
            op: self.name.clone(),
            chosen: format!("{}->{}", self.from, self.to),
            reason: format!("{}; {} elements of {}", self.asked_by(), self.elements, self.of),
            cost_ns,
            rejected: vec![Rejected { what: WITHOUT.into(), extra_ns, why: why.into() }],
        }
    }
}

/// Casts of a graph with formats, in order.
pub fn records(g: &Graph) -> Vec<CastRecord> {
    let uses = g.uses();
    let mut named: FxHashMap<ValueId, Vec<&str>> = FxHashMap::default();
    g.results.iter().for_each(|r| named.entry(r.value).or_default().push(&r.name));
    let mut out = Vec::new();
    for (_, n) in g.nodes().filter(|(_, n)| matches!(n.op, Op::Cast(_))) {
        let (x, y) = (n.inputs[0], n.outputs[0]);
        let mut readers = Vec::new();
        let mut stack = vec![y];
        while let Some(v) = stack.pop() {
            for &(reader, _) in &uses[v.0 as usize] {
                let reader = g.node(reader);
                if reader.op.lowering() == Lowering::View {
                    stack.extend(&reader.outputs);
                } else {
                    readers.push(reader.name.clone());
                }
            }
        }
        readers.extend(named.get(&y).into_iter().flatten().map(|name| name.to_string()));
        readers.sort();
        readers.dedup();
        out.push(CastRecord {
            name: n.name.clone(),
            of: g.def(x).name.clone(),
            from: g.ty(x).dtype,
            to: g.ty(y).dtype,
            elements: g.shape(y).elements() as u64,
            forward: n.region == Region::Forward,
            readers,
        });
    }
    out
}
