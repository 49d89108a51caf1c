//! Steps of a plan as wishes for graphs: what a graph depends on, and where its tensors are.

use super::attention::{gradient_slots, slots};
use super::{Dnn, Offer, Stores};
use crate::cuda::launch::Place;
use precast_plan::{Access, ConvGeometry, ConvKind, Kernel, Plan};

/// What cuDNN is promised of every address.
const ALIGNMENT: u64 = 16;

/// A graph that a step may become.
#[derive(Clone, Copy)]
pub(super) struct Wish<'a> {
    pub(super) kernel: &'a Kernel,
    pub(super) stores: Stores,
}

impl<'a> Wish<'a> {
    /// The tensors that a run is given, in the order of the graph's slots; `None` for steps that no
    /// graph runs.
    pub(super) fn slots(self) -> Option<Vec<&'a Access>> {
        Some(match self.kernel {
            Kernel::Conv(c) => {
                let mut list = vec![&c.a, &c.b];
                list.extend(c.epilogue.outputs.first());
                list.extend(&c.epilogue.inputs);
                list
            }
            Kernel::Attention(a) => slots(a).to_vec(),
            Kernel::AttentionGrad(g) => gradient_slots(g).to_vec(),
            _ => return None,
        })
    }

    pub(super) fn build(self, dnn: &Dnn, plan: &Plan, deterministic: bool) -> Offer {
        match self.kernel {
            Kernel::Conv(c) => dnn.conv(c, plan, self.stores),
            Kernel::Attention(a) => dnn.attention(a, plan),
            Kernel::AttentionGrad(g) => dnn.attention_grad(g, plan, deterministic),
            other => unreachable!("not a graph's step: {other:?}"),
        }
    }
}

/// Extents of a convolution's result.
pub(super) fn result(g: &ConvGeometry, kind: ConvKind) -> [u64; 4] {
    match kind {
        ConvKind::Forward => [g.n, g.o, g.oh, g.ow],
        ConvKind::DataGrad => [g.n, g.c, g.h, g.w],
        ConvKind::FilterGrad => [g.o, g.c / g.groups, g.kh, g.kw],
    }
}

fn bytes(plan: &Plan, a: &Access) -> u64 {
    a.offset * plan.tensors[a.tensor as usize].dtype.size() as u64
}

pub(super) fn place(plan: &Plan, a: &Access) -> Place {
    Place::Tensor { tensor: a.tensor, offset: bytes(plan, a) }
}

/// Why cuDNN cannot take tensors where they lie.
pub(super) fn misaligned(plan: &Plan, list: &[&Access]) -> Option<String> {
    list.iter().find(|a| !bytes(plan, a).is_multiple_of(ALIGNMENT)).map(|a| {
        let name = &plan.tensors[a.tensor as usize].name;
        format!("a part of `{name}` does not begin at a multiple of {ALIGNMENT} bytes")
    })
}

/// What a graph depends on: everything in the step but which tensors they are, and the workspace that
/// it may have.
pub(super) fn key(
    plan: &Plan,
    wish: Wish,
    list: &[&Access],
    steady: bool,
    workspace: u64,
) -> String {
    let Wish { kernel, stores } = wish;
    let formats: Vec<String> = list
        .iter()
        .map(|a| format!("{}{:?}", plan.tensors[a.tensor as usize].dtype, a.strides))
        .collect();
    let shape = match kernel {
        Kernel::Conv(c) => {
            format!("{:?} {:?} {:?} {:?}", c.kind, c.geometry, c.math, c.epilogue.kind)
        }
        Kernel::Attention(a) => attention_key("attention", a),
        Kernel::AttentionGrad(g) => attention_key("attention_grad", &g.forward),
        other => unreachable!("not a graph's step: {other:?}"),
    };
    let formats = formats.join(" ");
    format!("{shape} {stores:?} steady {steady} {formats} within {workspace}")
}

fn attention_key(what: &str, a: &precast_plan::Attention) -> String {
    let mask = a.mask.is_some();
    format!(
        "{what} {} {} {} {} {} {:08x} {} {mask}",
        a.batch,
        a.heads,
        a.tq,
        a.tk,
        a.d,
        a.scale.to_bits(),
        a.causal
    )
}
