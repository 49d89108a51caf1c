//! Steps of a plan as cuDNN's graphs on one device.

use super::conv;
use super::graph::Graph;
use super::wish::{Wish, key, misaligned, place};
use super::{Dnn, For, Handle, Offer, Remembered, Stores, spelled};
use crate::cuda::cache::Cache;
use crate::cuda::driver::{Context, Stream};
use crate::cuda::graphs::Library;
use crate::cuda::launch::{Facts, Lowered, Place, Task};
use crate::cuda::lower::Graph as Lowers;
use crate::cuda::measure::Watch;
use crate::cuda::refusals::Refusals;
use crate::cuda::regions::workspace_limit;
use crate::cuda::text;
use crate::error::{Error, Result};
use precast_plan::units;
use precast_plan::{Access, Kernel, Plan};
use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Set to `0`, kernels of ours run convolutions and attention.
pub const CUDNN_VARIABLE: &str = "PRECAST_CUDNN";

/// Set to `0`, engines whose sums change their order from run to run are allowed for attention's
/// gradient: faster, and no run repeats another bit for bit.
pub const DETERMINISTIC_VARIABLE: &str = "PRECAST_CUDA_DETERMINISTIC";

/// Threads that build graphs of one plan, each with a handle of its own.
const BUILDERS: usize = 8;

/// Whether a switch of the environment is not off.
fn on(name: &str) -> bool {
    env::var_os(name).is_none_or(|v| v != "0")
}

/// One step.
#[derive(Clone)]
struct Use {
    graph: Arc<Graph>,
    /// What tells the graph from others, for remembering which of its candidates is fastest.
    key: String,
    places: Vec<Place>,
    addresses: Vec<u64>,
    candidate: usize,
}

/// Whose graphs they are.
enum Device {
    Here(Arc<Context>),
    /// Properties of one, as cuDNN's own JSON: graphs are built and cannot be bound.
    Described {
        json: String,
        memory: u64,
        candidates: usize,
    },
}

impl Device {
    fn dnn(&self) -> Result<Dnn> {
        match self {
            Device::Here(_) => Dnn::new(For::Current),
            Device::Described { json, candidates, .. } => {
                Ok(Dnn::new(For::Described(json))?.at_most(*candidates))
            }
        }
    }

    /// Before a thread builds graphs.
    fn bind(&self) -> Result<()> {
        match self {
            Device::Here(context) => context.bind(),
            Device::Described { .. } => Ok(()),
        }
    }

    /// Bytes of memory in all.
    fn memory(&self) -> u64 {
        match self {
            Device::Here(context) => context.info.memory,
            Device::Described { memory, .. } => *memory,
        }
    }

    fn here(&self) -> &Arc<Context> {
        match self {
            Device::Here(context) => context,
            Device::Described { .. } => unreachable!("no graph of a described device is bound"),
        }
    }
}

/// What of cuDNN's JSON is read here too.
#[derive(serde::Deserialize)]
struct Properties {
    #[serde(rename = "totalGlobalMem")]
    memory: u64,
}

/// cuDNN's graphs of a plan.
pub struct Steps {
    uses: Vec<Use>,
    /// Graphs that were asked for, by what they depend on; equal layers share one. Among them those
    /// that were refused when they were run.
    known: BTreeMap<String, std::result::Result<Arc<Graph>, String>>,
    /// Graphs of the remembered candidate alone.
    sole: BTreeSet<String>,
    /// Graphs whose remembered candidate was refused: the file may stay where it is.
    distrusted: BTreeSet<String>,
    /// Candidates that ran, by the keys of their graphs.
    chosen: BTreeMap<String, usize>,
    device: Device,
    facts: Facts,
    cache: Cache,
    deterministic: bool,
    tune: bool,
    /// Graphs that will be captured are measured so, and what is chosen has been captured once.
    watch: Option<Watch>,
    /// Bytes of workspace that a graph of this plan may want, and, where memory turned out to be
    /// short, fewer.
    room: u64,
    short: u64,
    /// Bytes of workspace, and where it is once the graphs are bound.
    workspace: u64,
    workspace_at: u64,
    // Handles go after the graphs that were built with them.
    dnn: Dnn,
    builders: Vec<Dnn>,
}

impl Steps {
    /// Opens cuDNN for a device, whose context is current. `captured`: whether steps will run in a
    /// graph that was captured.
    ///
    /// # Errors
    /// `R0701`, `R0702` where cuDNN is missing or too old, `R0720` where it refuses.
    pub fn new(context: &Arc<Context>, cache: Cache, captured: bool) -> Result<Steps> {
        let device = Device::Here(context.clone());
        let watch = Watch::new(context, captured);
        let steps = Steps::of(device, context.info.facts.clone(), cache)?;
        Ok(Steps { tune: on(crate::cuda::blas::TUNE_VARIABLE), watch: Some(watch), ..steps })
    }

    /// Graphs for a device that need not be there, described by cuDNN's own JSON: to find out what
    /// cuDNN offers. They are built as for a real one, each with at most so many candidates;
    /// [`Library::bind`] is not to be called.
    ///
    /// # Errors
    /// As [`Steps::new`].
    pub fn described(json: &str, facts: Facts, candidates: usize) -> Result<Steps> {
        let described: Properties = serde_json::from_str(json)
            .map_err(|e| Error::new("R0720", format!("describing the device to cuDNN: {e}")))?;
        let memory = described.memory;
        let device = Device::Described { json: json.into(), memory, candidates };
        // What is remembered was measured on a real device.
        Steps::of(device, facts, Cache::none())
    }

    fn of(device: Device, facts: Facts, cache: Cache) -> Result<Steps> {
        Ok(Steps {
            uses: vec![],
            known: BTreeMap::new(),
            sole: BTreeSet::new(),
            distrusted: BTreeSet::new(),
            chosen: BTreeMap::new(),
            facts,
            cache,
            deterministic: on(DETERMINISTIC_VARIABLE),
            tune: false,
            watch: None,
            room: 0,
            short: u64::MAX,
            workspace: 0,
            workspace_at: 0,
            dnn: device.dnn()?,
            device,
            builders: vec![],
        })
    }

    /// Every graph that was asked for, by what tells it from others, or why cuDNN has none.
    pub fn asked(&self) -> impl Iterator<Item = (&str, std::result::Result<&Graph, &str>)> {
        self.known
            .iter()
            .map(|(k, a)| (k.as_str(), a.as_ref().map(|g| &**g).map_err(|w| w.as_str())))
    }

    fn handle(&self) -> &Handle {
        self.dnn.handle().expect("made for a device of this machine")
    }

    /// Builds graphs that are not known yet on a few threads, for building takes cuDNN long: it
    /// compiles kernels. NVIDIA's guide allows calls from several threads which share no handle; a
    /// plan is run by another handle of the same device than it was built with, and these are kept.
    fn build(&mut self, plan: &Plan, wishes: BTreeMap<String, Wish>) {
        let wishes: Vec<(String, Wish, Option<Remembered>)> = wishes
            .into_iter()
            .filter(|(key, _)| !self.known.contains_key(key))
            .map(|(key, wish)| {
                let known = self.remembered(&key);
                (key, wish, known)
            })
            .collect();
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let threads = cores.min(BUILDERS).min(wishes.len());
        while self.builders.len() + 1 < threads {
            match self.device.dnn() {
                Ok(dnn) => self.builders.push(dnn),
                // Fewer threads build the same.
                Err(e) => {
                    tracing::debug!("one handle of cuDNN less: {e}");
                    break;
                }
            }
        }
        let (next, made) = (AtomicUsize::new(0), Mutex::new(vec![]));
        let (device, deterministic, room) = (&self.device, self.deterministic, self.room);
        let work = |dnn: &mut Dnn| -> Result<()> {
            device.bind()?;
            dnn.within(room);
            while let Some((key, wish, known)) = wishes.get(next.fetch_add(1, Ordering::Relaxed)) {
                dnn.remember(known.clone());
                let graph = match wish.build(dnn, plan, deterministic) {
                    Offer::Graph(g) => Ok(g),
                    Offer::No(why) => Err(why),
                };
                let alone = graph.as_ref().is_ok_and(|g| {
                    g.candidates() == 1 && known.as_ref().is_some_and(|r| r.tag == g.tag(0))
                });
                let entry = (key.clone(), graph.map(Arc::new), alone);
                made.lock().unwrap_or_else(PoisonError::into_inner).push(entry);
            }
            Ok(())
        };
        let helpers = threads.saturating_sub(1);
        std::thread::scope(|scope| {
            for dnn in self.builders.iter_mut().take(helpers) {
                // A thread without the context leaves its part to the others.
                scope.spawn(|| work(dnn).unwrap_or_else(|e| tracing::debug!("{e}")));
            }
            work(&mut self.dnn).unwrap_or_else(|e| tracing::debug!("{e}"));
        });
        for (key, graph, alone) in made.into_inner().unwrap_or_else(PoisonError::into_inner) {
            if alone {
                self.sole.insert(key.clone());
            }
            self.known.insert(key, graph);
        }
    }

    /// The graph of a wish, and its key.
    fn graph(
        &mut self,
        plan: &Plan,
        wish: Wish,
        list: &[&Access],
    ) -> std::result::Result<(Arc<Graph>, String), String> {
        let key = key(plan, wish, list, self.deterministic, self.room);
        self.build(plan, BTreeMap::from([(key.clone(), wish)]));
        let none = || Err("cuDNN's context is lost".to_string());
        let graph = self.known.get(&key).cloned().unwrap_or_else(none)?;
        let least = (0..graph.candidates()).map(|c| graph.workspace(c)).min();
        let least = least.expect("a graph has a candidate");
        if least <= self.short {
            return Ok((graph, key));
        }
        if self.sole.remove(&key) {
            // The others were not built; now they are.
            self.known.remove(&key);
            self.distrusted.insert(key);
            return self.graph(plan, wish, list);
        }
        let (need, most) = (units::bytes(least), units::bytes(self.short));
        Err(format!("it needs {need} of workspace, and {most} are free"))
    }

    /// Candidates of a graph for which there is memory.
    fn candidates(&self, graph: &Graph) -> impl Iterator<Item = usize> {
        (0..graph.candidates()).filter(|&c| graph.workspace(c) <= self.short)
    }

    fn add(&mut self, graph: Arc<Graph>, key: String, places: Vec<Place>, out: &mut Lowered) {
        let most = self.candidates(&graph).map(|c| graph.workspace(c)).max().unwrap_or(0);
        self.workspace = self.workspace.max(most);
        out.tasks.push(Task::Graph(self.uses.len()));
        self.uses.push(Use { graph, key, places, addresses: vec![], candidate: 0 });
    }

    /// Under what a graph's fastest candidate is remembered.
    fn cached(&self, key: &str) -> String {
        let release = spelled(self.dnn.api().version());
        let short = if self.short < u64::MAX { " short of memory" } else { "" };
        let name = &self.device.here().info.name;
        format!("{name} {} cuDNN {release} {key}{short}", self.facts.arch())
    }

    /// The candidate that an earlier process found fastest.
    fn remembered(&self, key: &str) -> Option<Remembered> {
        if !self.tune || self.distrusted.contains(key) {
            return None;
        }
        let key = self.cached(key);
        let tag = String::from_utf8(self.cache.get("graph", key.as_bytes())?).ok()?;
        let plan = self.cache.get("graph-plan", format!("{tag} {key}").as_bytes());
        Some(Remembered { tag, plan })
    }

    fn watch(&self) -> &Watch {
        self.watch.as_ref().expect("made for a device of this machine")
    }

    /// Runs a candidate on the memory of its step.
    fn trial(&self, u: &Use, candidate: usize) -> Result<()> {
        // SAFETY: the addresses are those of the step's tensors and of the shared workspace, which
        // the backend keeps; a plan's steps run one after another in one stream.
        unsafe { u.graph.run(candidate, self.handle(), &u.addresses, self.workspace_at) }
    }

    /// Whether a candidate that ran can be captured, which a library may refuse alone.
    fn rehearsed(&self, u: &Use, candidate: usize, stream: &Stream) -> Result<()> {
        if self.chosen.get(&u.key) == Some(&candidate) {
            return Ok(());
        }
        self.watch().rehearse(stream, &|| self.trial(u, candidate))
    }

    /// The fastest candidate that runs, remembered or measured, or without tuning the first one;
    /// else why none does. It has run once, so that a capture finds loaded what it needs, and has been
    /// captured once.
    fn choose(&self, u: &Use, stream: &Stream) -> std::result::Result<usize, String> {
        let ways: Vec<usize> = self.candidates(&u.graph).collect();
        let key = self.cached(&u.key);
        let cached = || {
            let known = self.remembered(&u.key)?;
            ways.iter().copied().find(|&c| u.graph.tag(c) == known.tag)
        };
        let known = self.chosen.get(&u.key).copied().or_else(cached);
        let mut refused = Refusals::default();
        let mut tried = |c: usize, what: &str, done: Result<()>| -> bool {
            let Err(e) = done else { return true };
            tracing::debug!("{what} {} of cuDNN is refused: {e}", u.graph.tag(c));
            refused.add(c, e.message);
            false
        };
        if let Some(c) = known
            && tried(c, "the remembered", self.trial(u, c))
            && tried(c, "the remembered", self.rehearsed(u, c, stream))
        {
            return Ok(c);
        }
        let timed = self.tune && ways.len() > 1;
        let mut ran: Vec<(f64, usize)> = vec![];
        for &c in ways.iter().filter(|&&c| Some(c) != known) {
            let run = || self.trial(u, c);
            // The first run loads what it needs.
            let seconds = match (run(), timed) {
                (Ok(()), true) => self.watch().time(stream, &run),
                (Ok(()), false) => self.rehearsed(u, c, stream).map(|()| 0.0),
                (Err(e), _) => Err(e),
            };
            match seconds {
                Ok(seconds) => ran.push((seconds, c)),
                Err(e) => {
                    tried(c, "the", Err(e));
                    continue;
                }
            }
            if !timed {
                break;
            }
        }
        // Of equals the first.
        ran.sort_by(|a, b| a.0.total_cmp(&b.0));
        let Some(&(_, c)) = ran.first() else {
            self.cache.forget("graph", key.as_bytes());
            return Err(refused.words().expect("a graph has a candidate"));
        };
        if self.tune {
            let tag = u.graph.tag(c);
            self.cache.put("graph", key.as_bytes(), tag.as_bytes());
            if let Some(plan) = u.graph.saved(c) {
                self.cache.put("graph-plan", format!("{tag} {key}").as_bytes(), &plan);
            }
        }
        Ok(c)
    }
}

impl Library for Steps {
    fn begin(&mut self, plan: &Plan) {
        self.uses.clear();
        self.workspace = 0;
        self.room = workspace_limit(plan, self.device.memory());
        let steps: Vec<&Kernel> = [&plan.micro, &plan.update, &plan.eval]
            .into_iter()
            .flatten()
            .map(|s| &s.kernel)
            .collect();
        // A convolution whose epilogue is refused asks for its sums.
        for stores in [Stores::Epilogue, Stores::Sums] {
            let mut wishes = BTreeMap::new();
            for &kernel in &steps {
                let wish = Wish { kernel, stores };
                let Some(list) = wish.slots().filter(|l| misaligned(plan, l).is_none()) else {
                    continue;
                };
                let of = |stores| {
                    let wish = Wish { kernel, stores };
                    key(plan, wish, &list, self.deterministic, self.room)
                };
                let sums = stores == Stores::Sums;
                let refused = || self.known.get(&of(Stores::Epilogue)).is_some_and(|g| g.is_err());
                if !sums || (matches!(kernel, Kernel::Conv(_)) && refused()) {
                    wishes.insert(of(stores), wish);
                }
            }
            self.build(plan, wishes);
        }
    }

    fn lower(&mut self, plan: &Plan, kernel: &Kernel, out: &mut Lowered) -> Result<Lowers> {
        let whole = Wish { kernel, stores: Stores::Epilogue };
        let list = whole.slots().expect("a step for a graph");
        if let Some(why) = misaligned(plan, &list) {
            return Ok(Lowers::No(why));
        }
        let places: Vec<Place> = list.iter().map(|a| place(plan, a)).collect();
        let refused = match self.graph(plan, whole, &list) {
            Ok((graph, key)) => {
                self.add(graph, key, places, out);
                if let Kernel::Attention(a) = kernel {
                    // Dense, as every plan's statistics are.
                    let bytes = a.batch * a.heads * a.tq * 4;
                    out.tasks.push(Task::Clear { place: place(plan, &a.low), bytes });
                }
                return Ok(Lowers::Lowered);
            }
            Err(why) => why,
        };
        let Kernel::Conv(c) = kernel else { return Ok(Lowers::No(refused)) };
        // The sums, and the epilogue as a kernel of its own.
        let apart = Wish { kernel, stores: Stores::Sums };
        let Ok((graph, key)) = self.graph(plan, apart, &list) else {
            return Ok(Lowers::No(refused));
        };
        let (sums, strides, dims) = conv::sums(c, out);
        self.add(graph, key, vec![places[0], places[1], sums], out);
        text::lower_epilogue(plan, &c.epilogue, &dims, (sums, strides), &self.facts, out)?;
        Ok(Lowers::Lowered)
    }

    fn workspace(&self) -> u64 {
        self.workspace
    }

    fn restrict(&mut self, free: u64) -> bool {
        let less = free < self.workspace;
        if less {
            self.short = free;
        }
        less
    }

    fn place(&mut self, workspace: u64) {
        self.workspace_at = workspace;
    }

    fn bind(
        &mut self,
        workspace: u64,
        address: &dyn Fn(Place) -> u64,
        stream: &Stream,
    ) -> Result<bool> {
        // SAFETY: the backend makes both for one context and drops the handle with its graphs,
        // after its stream has finished.
        if let Err(e) = unsafe { self.handle().on(stream.raw) } {
            for u in &self.uses {
                let why = format!("cuDNN refuses the stream: {}", e.message);
                self.known.insert(u.key.clone(), Err(why));
            }
            return Ok(self.uses.is_empty());
        }
        self.workspace_at = workspace;
        let plans: Vec<usize> = self.known.values().flatten().map(|g| g.candidates()).collect();
        let all: usize = plans.iter().sum();
        tracing::info!("{} graphs of cuDNN with {all} plans", plans.len());
        let mut refused = BTreeMap::new();
        for i in 0..self.uses.len() {
            if refused.contains_key(&self.uses[i].key) {
                continue;
            }
            let mut u = self.uses[i].clone();
            u.addresses = u.places.iter().map(|&p| address(p)).collect();
            match self.choose(&u, stream) {
                Ok(c) => {
                    u.candidate = c;
                    self.chosen.insert(u.key.clone(), c);
                    self.uses[i] = u;
                }
                Err(why) => {
                    refused.insert(u.key, why);
                }
            }
        }
        // A fault of the device shows here; it is no refusal.
        stream.synchronise()?;
        let all = refused.is_empty();
        for (key, why) in refused {
            self.chosen.remove(&key);
            if self.sole.remove(&key) {
                // The others were not built; now they are.
                self.known.remove(&key);
                self.distrusted.insert(key);
            } else {
                self.known.insert(key, Err(format!("cuDNN refuses to run it: {why}")));
            }
        }
        // What was measured and not chosen may have wanted more.
        let chosen = self.uses.iter().map(|u| u.graph.workspace(u.candidate));
        self.workspace = chosen.max().unwrap_or(0);
        Ok(all)
    }

    fn run(&self, graph: usize) -> Result<()> {
        let u = &self.uses[graph];
        self.trial(u, u.candidate)
    }
}
