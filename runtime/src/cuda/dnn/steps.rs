//! Steps of a plan as cuDNN's graphs on one device.

use super::attention::{gradient_slots, slots};
use super::conv::sums_strides;
use super::graph::Graph;
use super::{Dnn, For, Handle, Offer, Stores, spelled};
use crate::cuda::cache::Cache;
use crate::cuda::driver::{Context, Event, Stream};
use crate::cuda::graphs::Library;
use crate::cuda::launch::{Facts, Lowered, Place, Task};
use crate::cuda::lower::Graph as Lowers;
use crate::cuda::text;
use crate::error::Result;
use precast_plan::{Access, Conv, ConvGeometry, ConvKind, Kernel, Plan};
use std::collections::BTreeMap;
use std::env;
use std::sync::Arc;

/// Set to `0`, kernels of ours run convolutions and attention.
pub const CUDNN_VARIABLE: &str = "PRECAST_CUDNN";

/// Set to `0`, engines whose sums change their order from run to run are allowed for attention's
/// gradient: faster, and no run repeats another bit for bit.
pub const DETERMINISTIC_VARIABLE: &str = "PRECAST_CUDA_DETERMINISTIC";

/// Timed runs of a candidate.
const RUNS: usize = 5;

/// What cuDNN is promised of every address.
const ALIGNMENT: u64 = 16;

/// One step.
struct Use {
    graph: Arc<Graph>,
    /// What tells the graph from others, for remembering which of its candidates is fastest.
    key: String,
    places: Vec<Place>,
    addresses: Vec<u64>,
    candidate: usize,
}

/// cuDNN's graphs of a plan.
pub struct Steps {
    dnn: Dnn,
    handle: Handle,
    context: Arc<Context>,
    facts: Facts,
    cache: Cache,
    deterministic: bool,
    tune: bool,
    /// Graphs that were asked for, by what they depend on; equal layers share one.
    known: BTreeMap<String, std::result::Result<Arc<Graph>, String>>,
    uses: Vec<Use>,
    /// Bytes of workspace, and where it is once the graphs are bound.
    workspace: u64,
    workspace_at: u64,
}

impl Steps {
    /// Opens cuDNN for a device, whose context is current.
    ///
    /// # Errors
    /// `R0701`, `R0702` where cuDNN is missing or too old, `R0720` where it refuses.
    pub fn new(context: &Arc<Context>, cache: Cache) -> Result<Steps> {
        let on = |name: &str| env::var_os(name).is_none_or(|v| v != "0");
        let dnn = Dnn::new(For::Ordinal(context.info.ordinal))?;
        Ok(Steps {
            handle: Handle::new(dnn.api())?,
            dnn,
            context: context.clone(),
            facts: context.info.facts.clone(),
            cache,
            deterministic: on(DETERMINISTIC_VARIABLE),
            tune: on(crate::cuda::blas::TUNE_VARIABLE),
            known: BTreeMap::new(),
            uses: vec![],
            workspace: 0,
            workspace_at: 0,
        })
    }

    fn graph(
        &mut self,
        key: String,
        build: impl FnOnce(&Dnn) -> Offer,
    ) -> std::result::Result<(Arc<Graph>, String), String> {
        if !self.known.contains_key(&key) {
            let tag = if self.tune {
                self.cache.get("graph", self.cached(&key).as_bytes())
            } else {
                None
            };
            self.dnn.remember(tag.and_then(|t| String::from_utf8(t).ok()));
            let made = match build(&self.dnn) {
                Offer::Graph(g) => Ok(Arc::new(g)),
                Offer::No(why) => Err(why),
            };
            self.known.insert(key.clone(), made);
        }
        self.known[&key].clone().map(|g| (g, key))
    }

    fn add(&mut self, graph: Arc<Graph>, key: String, places: Vec<Place>, out: &mut Lowered) {
        let most = (0..graph.candidates()).map(|c| graph.workspace(c)).max().unwrap_or(0);
        self.workspace = self.workspace.max(most);
        out.tasks.push(Task::Graph(self.uses.len()));
        self.uses.push(Use { graph, key, places, addresses: vec![], candidate: 0 });
    }

    fn convolution(&mut self, plan: &Plan, c: &Conv, out: &mut Lowered) -> Result<Lowers> {
        let e = &c.epilogue;
        let mut list = vec![&c.a, &c.b];
        list.extend(e.outputs.first());
        list.extend(&e.inputs);
        if let Some(why) = misaligned(plan, &list) {
            return Ok(Lowers::No(why));
        }
        let places: Vec<Place> = list.iter().map(|a| place(plan, a)).collect();
        let shape = Kernel::Conv(c.clone());
        let whole = key(plan, &shape, &list, Stores::Epilogue, self.deterministic);
        let refused = match self.graph(whole, |dnn| dnn.conv(c, plan, Stores::Epilogue)) {
            Ok((graph, key)) => {
                self.add(graph, key, places, out);
                return Ok(Lowers::Lowered);
            }
            Err(why) => why,
        };
        // The sums, and the epilogue as a kernel of its own.
        let apart = key(plan, &shape, &list, Stores::Sums, self.deterministic);
        let Ok((graph, key)) = self.graph(apart, |dnn| dnn.conv(c, plan, Stores::Sums)) else {
            return Ok(Lowers::No(refused));
        };
        let dims = result(&c.geometry, c.kind);
        let offset = out.reserve(dims.iter().product::<u64>() * 4);
        let sums = Place::Scratch { offset };
        self.add(graph, key, vec![places[0], places[1], sums], out);
        let strides = sums_strides(&dims.map(|n| n as i64), e);
        text::lower_epilogue(plan, e, &dims, (sums, strides), &self.facts, out)?;
        Ok(Lowers::Lowered)
    }

    fn other(
        &mut self,
        plan: &Plan,
        kernel: &Kernel,
        list: &[&Access],
        out: &mut Lowered,
        build: impl FnOnce(&Dnn) -> Offer,
    ) -> Lowers {
        if let Some(why) = misaligned(plan, list) {
            return Lowers::No(why);
        }
        let key = key(plan, kernel, list, Stores::Epilogue, self.deterministic);
        match self.graph(key, build) {
            Ok((graph, key)) => {
                self.add(graph, key, list.iter().map(|a| place(plan, a)).collect(), out);
                Lowers::Lowered
            }
            Err(why) => Lowers::No(why),
        }
    }

    /// Under what a graph's fastest candidate is remembered.
    fn cached(&self, key: &str) -> String {
        let release = spelled(self.dnn.api().version());
        format!("{} {} cuDNN {release} {key}", self.context.info.name, self.facts.arch())
    }

    /// The fastest candidate, remembered or measured.
    fn choose(&self, u: &Use, workspace: u64, stream: &Stream) -> Result<usize> {
        let ways = u.graph.candidates();
        if ways == 1 || !self.tune {
            return Ok(0);
        }
        let key = self.cached(&u.key);
        if let Some(tag) = self.cache.get("graph", key.as_bytes())
            && let Some(c) = (0..ways).find(|&c| u.graph.tag(c).as_bytes() == tag)
        {
            return Ok(c);
        }
        let (begin, end) = (Event::new(&self.context)?, Event::new(&self.context)?);
        let mut best: Option<(f64, usize)> = None;
        for c in 0..ways {
            // SAFETY: as in `run`, on the memory of the step itself.
            let run = || unsafe { u.graph.run(c, &self.handle, &u.addresses, workspace) };
            // A candidate may still be refused when it is run.
            if run().is_err() {
                continue;
            }
            let mut least = f64::INFINITY;
            for _ in 0..RUNS {
                begin.record(stream)?;
                run()?;
                end.record(stream)?;
                end.wait()?;
                least = least.min(end.since(&begin)?);
            }
            if best.is_none_or(|b| least < b.0) {
                best = Some((least, c));
            }
        }
        let chosen = best.map_or(0, |b| b.1);
        self.cache.put("graph", key.as_bytes(), u.graph.tag(chosen).as_bytes());
        Ok(chosen)
    }
}

/// Extents of a convolution's result.
fn result(g: &ConvGeometry, kind: ConvKind) -> [u64; 4] {
    match kind {
        ConvKind::Forward => [g.n, g.o, g.oh, g.ow],
        ConvKind::DataGrad => [g.n, g.c, g.h, g.w],
        ConvKind::FilterGrad => [g.o, g.c / g.groups, g.kh, g.kw],
    }
}

fn bytes(plan: &Plan, a: &Access) -> u64 {
    a.offset * plan.tensors[a.tensor as usize].dtype.size() as u64
}

fn place(plan: &Plan, a: &Access) -> Place {
    Place::Tensor { tensor: a.tensor, offset: bytes(plan, a) }
}

fn misaligned(plan: &Plan, list: &[&Access]) -> Option<String> {
    list.iter().find(|a| !bytes(plan, a).is_multiple_of(ALIGNMENT)).map(|a| {
        let name = &plan.tensors[a.tensor as usize].name;
        format!("a part of `{name}` does not begin at a multiple of {ALIGNMENT} bytes")
    })
}

/// What a graph depends on: everything in the step but which tensors they are.
fn key(plan: &Plan, kernel: &Kernel, list: &[&Access], stores: Stores, steady: bool) -> String {
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
    format!("{shape} {stores:?} steady {steady} {}", formats.join(" "))
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

impl Library for Steps {
    fn lower(&mut self, plan: &Plan, kernel: &Kernel, out: &mut Lowered) -> Result<Lowers> {
        let steady = self.deterministic;
        match kernel {
            Kernel::Conv(c) => self.convolution(plan, c, out),
            Kernel::Attention(a) => {
                Ok(self.other(plan, kernel, &slots(a), out, |dnn| dnn.attention(a, plan)))
            }
            Kernel::AttentionGrad(g) => {
                Ok(self.other(plan, kernel, &gradient_slots(g), out, |dnn| {
                    dnn.attention_grad(g, plan, steady)
                }))
            }
            other => unreachable!("no step for a graph: {other:?}"),
        }
    }

    fn workspace(&self) -> u64 {
        self.workspace
    }

    fn bind(
        &mut self,
        workspace: u64,
        address: &dyn Fn(Place) -> u64,
        stream: &Stream,
    ) -> Result<()> {
        // SAFETY: the backend makes both for one context and drops the handle with its graphs,
        // after its stream has finished.
        unsafe { self.handle.on(stream.raw)? };
        self.workspace_at = workspace;
        let plans: Vec<usize> = self.known.values().flatten().map(|g| g.candidates()).collect();
        let all: usize = plans.iter().sum();
        tracing::info!("{} graphs of cuDNN with {all} plans", plans.len());
        for i in 0..self.uses.len() {
            self.uses[i].addresses = self.uses[i].places.iter().map(|&p| address(p)).collect();
            let chosen = self.choose(&self.uses[i], workspace, stream)?;
            self.uses[i].candidate = chosen;
            // Loads what the candidate needs, so that a capture finds it loaded.
            self.run(i)?;
        }
        stream.synchronise()
    }

    fn run(&self, graph: usize) -> Result<()> {
        let u = &self.uses[graph];
        // SAFETY: the addresses are those of the step's tensors and of the shared workspace, which
        // the backend keeps; a plan's steps run one after another in one stream.
        unsafe { u.graph.run(u.candidate, &self.handle, &u.addresses, self.workspace_at) }
    }
}
