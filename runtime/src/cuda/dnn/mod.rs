//! Convolutions and attention by cuDNN's graph interface.
//!
//! A graph knows extents, strides and formats; the addresses of its tensors come with a run, so that
//! equal layers share one. It is built for the device of a handle, or for described device properties,
//! so that everything up to a finished execution plan can be checked without a GPU. What cuDNN
//! refuses, when a graph is built or when it is first run, is not an error: kernels of ours take over,
//! and [`Offer::No`] says why.

mod api;
mod attention;
mod conv;
mod desc;
mod engines;
mod graph;
mod handle;
mod steps;
#[cfg(test)]
mod tests;
mod wish;

pub use api::{Cudnn, cudnn, spelled};
pub use conv::Stores;
pub use engines::Remembered;
pub use graph::Graph;
pub use handle::Handle;
pub use steps::{CUDNN_VARIABLE, DETERMINISTIC_VARIABLE, Steps};

use crate::error::{Error, Result};
use desc::{Desc, Kind, Name, Refusal, Values};
use engines::Wanted;
use graph::Builder;
use precast_plan::{Attention, AttentionGrad, Conv, Plan};
use std::cell::RefCell;

/// Candidates of a graph that are worth timing; as many as PyTorch times (`benchmark_limit`).
const CANDIDATES: usize = 10;

/// How many ways of running it a graph is built with, and which.
#[derive(Clone, Copy, Debug)]
struct Limits {
    candidates: usize,
    /// Bytes that each may want, what the graph stores for itself included.
    workspace: u64,
}

/// Which device graphs are built for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum For<'a> {
    /// The device of the calling thread's current context.
    Current,
    /// A described one: cuDNN's own JSON.
    Described(&'a str),
}

/// What cuDNN is told of the device.
enum Target {
    /// As programs that run their plans tell it.
    Handle(Handle),
    /// Properties alone: plans for it can be built, and not run.
    Described(Desc),
}

impl Target {
    fn graph(&self, d: Desc) -> std::result::Result<Desc, Refusal> {
        match self {
            Target::Handle(h) => {
                d.set(Name::CUDNN_ATTR_OPERATIONGRAPH_HANDLE, Values::Handle(h.raw))
            }
            Target::Described(_) => Ok(d),
        }
    }

    /// Heuristics know a handle by their graph.
    fn heuristic(&self, d: Desc) -> std::result::Result<Desc, Refusal> {
        match self {
            Target::Handle(_) => Ok(d),
            Target::Described(device) => d.with(Name::CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, device),
        }
    }

    fn plan(&self, d: Desc) -> std::result::Result<Desc, Refusal> {
        match self {
            Target::Handle(h) => {
                d.set(Name::CUDNN_ATTR_EXECUTION_PLAN_HANDLE, Values::Handle(h.raw))
            }
            Target::Described(device) => d.with(Name::CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, device),
        }
    }
}

/// cuDNN for one device.
pub struct Dnn {
    api: &'static Cudnn,
    target: Target,
    /// The candidate that the next graph was found fastest with by an earlier run.
    remembered: RefCell<Option<Remembered>>,
    limits: Limits,
}

/// A graph, or why cuDNN has none.
pub enum Offer {
    Graph(Graph),
    No(String),
}

impl Offer {
    fn of(built: std::result::Result<Graph, Refusal>) -> Offer {
        match built {
            Ok(graph) => Offer::Graph(graph),
            Err(why) => Offer::No(why),
        }
    }

    pub fn graph(self) -> Option<Graph> {
        match self {
            Offer::Graph(g) => Some(g),
            Offer::No(_) => None,
        }
    }
}

impl Dnn {
    /// # Errors
    /// `R0701`, `R0702` where cuDNN is missing or too old; `R0720` where it refuses the device.
    pub fn new(device: For) -> Result<Dnn> {
        let api = api::cudnn()?;
        let described = |json: &str| -> std::result::Result<Desc, Refusal> {
            Desc::new(api, Kind::CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR)?
                .set(
                    Name::CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION,
                    Values::Chars(json.as_bytes()),
                )?
                .finalize()
        };
        let refused = |why| Error::new("R0720", format!("describing the device to cuDNN: {why}"));
        let target = match device {
            For::Current => Target::Handle(Handle::new(api)?),
            For::Described(json) => Target::Described(described(json).map_err(refused)?),
        };
        let limits = Limits { candidates: CANDIDATES, workspace: u64::MAX };
        Ok(Dnn { api, target, remembered: RefCell::default(), limits })
    }

    /// Graphs are built with at most so many candidates.
    pub fn at_most(self, candidates: usize) -> Dnn {
        Dnn { limits: Limits { candidates, ..self.limits }, ..self }
    }

    /// From now on graphs are built with candidates alone that want at most so many bytes of
    /// workspace.
    pub fn within(&mut self, workspace: u64) {
        self.limits.workspace = workspace;
    }

    /// The handle that runs what is built here; `None` for a described device.
    pub fn handle(&self) -> Option<&Handle> {
        match &self.target {
            Target::Handle(h) => Some(h),
            Target::Described(_) => None,
        }
    }

    /// The next graph is built with this candidate alone, where it still is one: plans take long to
    /// build, and the others would not be run.
    pub fn remember(&self, candidate: Option<Remembered>) {
        *self.remembered.borrow_mut() = candidate;
    }

    fn build(&self, b: Builder, wanted: &Wanted) -> std::result::Result<Graph, Refusal> {
        let remembered = self.remembered.borrow();
        b.build(&self.target, wanted, remembered.as_ref(), self.limits)
    }

    /// The functions, for a [`Handle`].
    pub fn api(&self) -> &'static Cudnn {
        self.api
    }

    /// A convolution. With [`Stores::Epilogue`] an epilogue that cuDNN lacks is refused.
    pub fn conv(&self, c: &Conv, plan: &Plan, stores: Stores) -> Offer {
        Offer::of(self.build_conv(c, plan, stores))
    }

    /// Attention forward.
    pub fn attention(&self, a: &Attention, plan: &Plan) -> Offer {
        Offer::of(self.build_attention(a, plan))
    }

    /// Attention backward. A deterministic one repeats bit for bit, and is slower.
    pub fn attention_grad(&self, g: &AttentionGrad, plan: &Plan, deterministic: bool) -> Offer {
        Offer::of(self.build_attention_grad(g, plan, deterministic))
    }
}
