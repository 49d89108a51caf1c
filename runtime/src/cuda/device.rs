//! A GPU as a [`Backend`].

use super::api;
use super::blas::{Blas, Call};
use super::cache::Cache;
use super::driver::{Context, Graph, Memory, Stream};
use super::graphs::Graphs;
use super::launch::{Arg, Facts, Lowered, Place, Source, Task};
use super::lower::{self, Answer, Graph as Offered, Offers};
use super::module::{Function, Module};
use super::nvrtc::Compiler;
use super::product::Product;
use super::regions::{Allocated, Needs, Places, Region, Regions, Tables};
use super::staging::{self, Inbound, Outbound};
use super::{report, text};
use crate::backend::{Backend, Late, Phase, Queue};
use crate::error::{Error, Result};
use precast_plan::{Kernel, Plan, TensorId};
use std::cell::RefCell;
use std::collections::BTreeMap;
use std::env;
use std::sync::Arc;

/// Set to `0`, steps are launched one by one instead of as a captured graph. Set to `check`, the
/// host waits for every step as well, so that a fault of the device names its step.
pub const GRAPH_VARIABLE: &str = "PRECAST_CUDA_GRAPH";

/// Steps whose results may be on their way at once.
const STEPS_AHEAD: usize = 4;

/// A task on its addresses.
enum Work {
    Kernel { function: Function, shape: ([u32; 3], [u32; 3], u32), args: Vec<u64> },
    Clear { at: u64, bytes: u64 },
    Product(Box<Call>),
    Graph(usize),
}

/// A plan loaded on a GPU.
pub struct CudaBackend {
    context: Arc<Context>,
    /// Names of all steps, those of `micro` first, then `update`, then `eval`.
    names: Vec<String>,
    /// Work of every step of `micro`, `update` and `eval`.
    phases: [Vec<Vec<Work>>; 3],
    /// Captured: micro, update, eval, and micro with update.
    graphs: [Option<Graph>; 4],
    /// Which of these are captured; what cannot be runs one step after another.
    capture: [bool; 4],
    /// Whether every step is waited for.
    checked: bool,
    inbound: Inbound,
    outbound: Outbound,
    // Fields go in this order: cuDNN's handle before the stream that it was given.
    library_graphs: Graphs,
    stream: Stream,
    regions: Regions,
    places: Places,
    fault: u64,
    bytes: u64,
    /// What people should know of how the plan runs.
    notices: Vec<String>,
    _modules: Vec<Module>,
    _blas: Blas,
}

impl CudaBackend {
    /// Validates the plan, compiles its kernels, allocates its memory and binds its steps to GPU
    /// `ordinal`.
    ///
    /// # Errors
    /// If the plan is not valid, libraries or the device are missing, memory is short, or a kernel
    /// does not compile.
    pub fn new(plan: &Plan, ordinal: usize) -> Result<CudaBackend> {
        let value = env::var_os(GRAPH_VARIABLE).unwrap_or_default();
        let mut backend = CudaBackend::with(plan, ordinal, value != "0" && value != "check")?;
        backend.checked = value == "check";
        Ok(backend)
    }

    /// As [`CudaBackend::new`]; without `capture` every step is launched by itself, which gives the
    /// same bits more slowly.
    ///
    /// # Errors
    /// As [`CudaBackend::new`].
    pub fn with(plan: &Plan, ordinal: usize, capture: bool) -> Result<CudaBackend> {
        plan.validate().map_err(|errors| {
            let list: Vec<String> = errors.iter().map(ToString::to_string).collect();
            Error::new("R0103", format!("the plan is not valid:\n  {}", list.join("\n  ")))
        })?;
        if plan.target.device != "cuda" {
            let text = format!("the plan is for `{}`, not for a GPU", plan.target.device);
            return Err(Error::new("R0104", text).help("compile with `device = \"cuda\"`"));
        }
        let api = api::libraries()?;
        let context = Context::new(ordinal)?;
        report::fits(&context.info)?;
        let cache = Cache::here();
        let stream = Stream::new(&context)?;
        // What fails on nothing at all is no library's fault.
        let failed = if capture { stream.record(|| Ok(())).err() } else { None };
        let capture = capture && failed.is_none();
        let blas = Blas::new(&context, &api.blas, &stream, cache.clone(), capture)?;
        let places = Places::new(plan);
        let mut graphs = Graphs::new(&context, &cache, capture);
        let loading = Loading { plan, context: &context, api, stream: &stream, places: &places };
        // What a library refuses to run once it is bound is lowered to something else.
        let bound = loop {
            if let Some(bound) = loading.attempt(&blas, &mut graphs, cache.clone())? {
                break bound;
            }
        };
        let room = STEPS_AHEAD * plan.accumulate.max(1) as usize;
        let mut notices = bound.notices;
        notices.extend(failed.map(|e| uncaptured("a step", &e)));
        for notice in &notices {
            tracing::warn!("{notice}");
        }
        Ok(CudaBackend {
            names: bound.names,
            phases: bound.phases,
            graphs: [const { None }; 4],
            capture: [capture; 4],
            checked: false,
            inbound: bound.inbound,
            outbound: Outbound::new(&context, room)?,
            library_graphs: graphs,
            regions: bound.regions,
            places,
            fault: bound.fault,
            bytes: bound.bytes,
            notices,
            _modules: bound.modules,
            _blas: blas,
            stream,
            context,
        })
    }

    /// Bytes of device memory the plan holds, workspaces included.
    pub fn device_bytes(&self) -> u64 {
        self.bytes
    }

    /// What people should know of how the plan runs: fallbacks, one line each.
    pub fn notices(&self) -> &[String] {
        &self.notices
    }

    /// Runs step `index` of a phase by itself, uncaptured, and waits for it: for finding the one
    /// step that computes something wrong. The inputs that were written are sent first.
    ///
    /// # Errors
    /// If the device failed. Impossible data is an error of the next [`Backend::read`].
    ///
    /// # Panics
    /// If the phase has no such step.
    pub fn run_step(&mut self, phase: Phase, index: usize) -> Result<()> {
        self.context.bind()?;
        self.inbound.send(self.regions.inputs.address, &self.stream)?;
        let work = &self.phases[phase as usize][index];
        work.iter().try_for_each(|work| self.one(work))?;
        self.stream.synchronise()
    }

    /// Puts the steps of phases into the stream.
    fn steps(&self, phases: &[Phase]) -> Result<()> {
        let offset =
            |phase: Phase| -> usize { self.phases[..phase as usize].iter().map(Vec::len).sum() };
        for &phase in phases {
            for (i, step) in self.phases[phase as usize].iter().enumerate() {
                let all = step.iter().try_for_each(|work| self.one(work));
                let done = all.and_then(|()| match self.checked {
                    true => self.stream.synchronise(),
                    false => Ok(()),
                });
                done.map_err(|e| e.at(format!("step `{}`", self.names[offset(phase) + i])))?;
            }
        }
        Ok(())
    }

    fn one(&self, work: &Work) -> Result<()> {
        match work {
            // SAFETY: the arguments were bound to the kernel's parameters, and its module is kept.
            Work::Kernel { function, shape, args } => unsafe {
                function.launch(&self.stream, *shape, args)
            },
            Work::Clear { at, bytes } => self.stream.clear(*at, *bytes),
            Work::Product(call) => call.run(&self.stream),
            Work::Graph(graph) => self.library_graphs.run(*graph),
        }
    }

    /// Sends the batch and puts one of the four lists of phases into the stream.
    fn launch(&mut self, which: usize) -> Result<()> {
        const LISTS: [&[Phase]; 4] =
            [&[Phase::Micro], &[Phase::Update], &[Phase::Eval], &[Phase::Micro, Phase::Update]];
        self.context.bind()?;
        self.inbound.send(self.regions.inputs.address, &self.stream)?;
        if which != Phase::Eval as usize {
            self.outbound.begin(&self.stream)?;
        }
        if self.capture[which] && self.graphs[which].is_none() {
            match self.stream.capture(|| self.steps(LISTS[which])) {
                Ok(graph) => self.graphs[which] = Some(graph),
                Err(e) => self.give_up_capturing(which, e)?,
            }
        }
        match &self.graphs[which] {
            Some(graph) => self.stream.replay(graph),
            None => self.steps(LISTS[which]),
        }
    }

    /// The steps of a list run one after another from now on, which computes the same. A device that
    /// failed stays failed, and so does what else is wrong with a step: both are errors then.
    fn give_up_capturing(&mut self, which: usize, why: Error) -> Result<()> {
        self.stream.synchronise()?;
        self.capture[which] = false;
        let eval = which == Phase::Eval as usize;
        let notice = uncaptured(if eval { "evaluation" } else { "a step" }, &why);
        if !self.notices.contains(&notice) {
            tracing::warn!("{notice}");
            self.notices.push(notice);
        }
        Ok(())
    }

    /// The error of a fault word; clears the word, so that later faults are seen.
    fn faulted(&self, word: u64) -> Result<()> {
        let Some((step, error)) = staging::fault(word) else { return Ok(()) };
        self.stream.clear(self.fault, 8)?;
        Err(match self.names.get(step) {
            Some(name) => error.at(format!("step `{name}`")),
            None => error,
        })
    }

    fn check(&self, tensor: TensorId, len: usize) -> Result<(Region, u64)> {
        let (region, offset, bytes) = self.places.0[tensor as usize];
        if len as u64 != bytes {
            let text = format!("tensor {tensor} has {bytes} bytes, not {len}");
            return Err(Error::new("R0105", text));
        }
        Ok((region, offset))
    }
}

impl Backend for CudaBackend {
    fn write(&mut self, tensor: TensorId, bytes: &[u8]) -> Result<()> {
        let (region, offset) = self.check(tensor, bytes.len())?;
        self.context.bind()?;
        if region == Region::Inputs {
            return self.inbound.write(offset, bytes);
        }
        self.stream.upload(self.regions.tensor(&self.places, tensor), bytes)?;
        // The bytes are the caller's: the copy must be done before they go.
        self.stream.synchronise()
    }

    fn read(&self, tensor: TensorId, out: &mut [u8]) -> Result<()> {
        let (region, offset) = self.check(tensor, out.len())?;
        self.context.bind()?;
        if region == Region::Inputs
            && let Some(bytes) = self.inbound.pending(offset, out.len() as u64)
        {
            out.copy_from_slice(bytes);
            return Ok(());
        }
        let mut fault = [0; 8];
        let from = self.regions.tensor(&self.places, tensor);
        // SAFETY: both buffers have the lengths that are copied, and stay until the stream is done.
        unsafe {
            self.stream.download(out.as_mut_ptr(), from, out.len())?;
            self.stream.download(fault.as_mut_ptr(), self.fault, 8)?;
        }
        self.stream.synchronise()?;
        self.faulted(u64::from_le_bytes(fault))
    }

    fn run(&mut self, phase: Phase) -> Result<()> {
        self.launch(phase as usize)
    }

    fn describe(&self) -> String {
        let info = &self.context.info;
        let (major, minor) = info.facts.capability;
        // With accumulation the batches before the last have a graph of their own.
        let whole = self.capture[0] && self.capture[3];
        let how = if whole { "one graph a step" } else { "steps launched one by one" };
        let mut text = format!("cuda:{} {}, sm_{major}{minor}, {how}", info.ordinal, info.name);
        for notice in &self.notices {
            text.push_str("; ");
            text.push_str(notice);
        }
        text
    }

    fn queue(&mut self) -> Option<&mut dyn Queue> {
        Some(self)
    }
}

impl Queue for CudaBackend {
    fn submit(&mut self, update: bool) -> Result<()> {
        self.launch(if update { 3 } else { Phase::Micro as usize })
    }

    fn request(&mut self, tensors: &[TensorId]) -> Result<()> {
        self.context.bind()?;
        let value = |&t: &TensorId| {
            (self.regions.tensor(&self.places, t), self.places.0[t as usize].2 as usize)
        };
        let values: Vec<(u64, usize)> = tensors.iter().map(value).collect();
        self.outbound.request(&values, self.fault, &self.stream)
    }

    fn receive(&mut self, wait: bool) -> Result<Option<Late>> {
        self.context.bind()?;
        let Some((late, fault)) = self.outbound.receive(wait)? else { return Ok(None) };
        self.faulted(fault)?;
        Ok(Some(late))
    }

    fn room(&self) -> usize {
        self.outbound.room()
    }
}

impl Drop for CudaBackend {
    fn drop(&mut self) {
        // Nothing may be released while the device still uses it; an error here was reported by
        // the call that met it.
        let _ = self.context.bind();
        let _ = self.stream.synchronise();
    }
}

/// What is said where something is not captured.
fn uncaptured(what: &str, why: &Error) -> String {
    let at = why.place.as_ref().map_or(String::new(), |p| format!(" at {p}"));
    format!(
        "{what} is launched kernel by kernel, which is slower: it cannot be captured as a graph \
         ({}{at}: {})",
        why.code, why.message
    )
}

/// What a plan is loaded with.
struct Loading<'a> {
    plan: &'a Plan,
    context: &'a Arc<Context>,
    api: &'static api::Libraries,
    stream: &'a Stream,
    places: &'a Places,
}

/// A plan on its addresses, all of whose library calls have run once.
struct Bound {
    names: Vec<String>,
    phases: [Vec<Vec<Work>>; 3],
    inbound: Inbound,
    regions: Regions,
    modules: Vec<Module>,
    fault: u64,
    bytes: u64,
    notices: Vec<String>,
}

impl Loading<'_> {
    /// Lowers the plan, compiles its kernels, allocates its memory and binds its steps. `None` where
    /// a library refused to run what it had offered: it does not offer that again.
    fn attempt(&self, blas: &Blas, graphs: &mut Graphs, cache: Cache) -> Result<Option<Bound>> {
        let (plan, places, stream) = (self.plan, self.places, self.stream);
        let facts = self.context.info.facts.clone();
        graphs.begin(plan);
        let lowered = {
            let mut offers = Asked { blas, places, graphs };
            lower::lower(plan, &facts, &mut offers)?
        };
        let mut needs = Needs::of(plan, places, &lowered, graphs);
        let (mut regions, inbound) = match needs.allocate(self.context, &lowered)? {
            Allocated::All(all) => *all,
            // A little is left for what the driver loads.
            Allocated::ButWorkspace(free) if graphs.restrict(free - free / 8) => return Ok(None),
            Allocated::ButWorkspace(free) => {
                return Err(needs.too_much(self.context, free + needs.total() - needs.workspace));
            }
        };
        let modules = Modules::new(self.context, self.api, &facts, &lowered, cache)?;
        let base = regions.tables.address;
        let tables = Tables::new(&lowered);
        tables.upload(stream, base, &|t| regions.tensor(places, t))?;
        let fault = base + tables.bytes;
        let all = [
            &regions.arena,
            &regions.persistent,
            &regions.inputs,
            &regions.scratch,
            &regions.workspace,
        ];
        // Products are measured on this memory before anything stands in it. Bits that are a small
        // number in every format, since arithmetic on zeros draws less power and runs faster.
        for m in all {
            stream.fill(m.address, 0x3b, m.bytes)?;
        }
        let binder = Binder {
            address: &|p| regions.place(places, p),
            tables: &tables,
            base,
            fault,
            modules: &modules,
            products: &lowered.products,
            blas,
            stream,
            refused: RefCell::default(),
        };
        let mut names = vec![];
        // Evaluation is a small part of a run, and its products in f32 take long to measure.
        let mut bind = |steps: &[lower::Step], measured: bool| -> Result<Vec<Vec<Work>>> {
            let bound = |step: &lower::Step| {
                names.push(step.name.clone());
                let tasks = step.lowered.tasks.iter();
                let tasks = tasks.filter_map(|t| binder.bind(t, measured).transpose());
                tasks.collect::<Result<_>>().map_err(|e| e.at(format!("step `{}`", step.name)))
            };
            steps.iter().map(bound).collect()
        };
        let [micro, update, eval] = &lowered.phases;
        let phases = [bind(micro, true)?, bind(update, true)?, bind(eval, false)?];
        let refused = binder.refused.into_inner();
        tracing::info!("{}", blas.effort(lowered.products.len()));
        let workspace = regions.workspace.address;
        let runs = graphs.bind(workspace, &|p| regions.place(places, p), stream)?;
        for m in all {
            stream.clear(m.address, m.bytes)?;
        }
        stream.clear(fault, 8)?;
        // A fault of the device shows here; it is no refusal.
        stream.synchronise()?;
        // Equal products are one refusal; without a new one the next attempt would be this one.
        let news = |(product, why): (&usize, &String)| {
            blas.refuse(&lowered.products[*product], &|place| places.offset(place), why)
        };
        let news = refused.iter().map(news).filter(|&new| new).count();
        if let Some(why) = refused.values().next().filter(|_| news == 0) {
            return Err(Error::new("R0707", format!("offered and refused again: {why}")));
        }
        if !refused.is_empty() || !runs {
            return Ok(None);
        }
        // What was measured and not chosen may have wanted more workspace.
        let wanted = graphs.workspace();
        if wanted < needs.workspace
            && let Some(smaller) = Memory::new(self.context, wanted)?
        {
            graphs.place(smaller.address);
            regions.workspace = smaller;
            needs.workspace = wanted;
        }
        let mut notices = lowered.notices;
        notices.extend(graphs.notice().cloned());
        Ok(Some(Bound {
            names,
            phases,
            inbound,
            regions,
            modules: modules.list,
            fault,
            bytes: needs.total(),
            notices,
        }))
    }
}

/// cuBLASLt and cuDNN, asked what they can do on the tensors of this plan.
struct Asked<'a> {
    blas: &'a Blas,
    places: &'a Places,
    graphs: &'a mut Graphs,
}

impl Offers for Asked<'_> {
    fn product(&mut self, p: &Product) -> Result<Answer> {
        Ok(self.blas.can(p, &|place| self.places.offset(place)))
    }

    fn graph(&mut self, plan: &Plan, kernel: &Kernel, out: &mut Lowered) -> Result<Offered> {
        self.graphs.lower(plan, kernel, out)
    }
}

/// Compiled and loaded kernels.
struct Modules {
    list: Vec<Module>,
    functions: BTreeMap<String, Function>,
}

impl Modules {
    fn new(
        context: &Arc<Context>,
        api: &'static api::Libraries,
        facts: &Facts,
        lowered: &lower::LoweredPlan,
        cache: Cache,
    ) -> Result<Modules> {
        let mut sources: BTreeMap<&str, &Source> = BTreeMap::new();
        // Most dynamic shared memory and most threads of any launch.
        let mut most: BTreeMap<&str, (u32, u32)> = BTreeMap::new();
        for l in lowered.launches() {
            let known = sources.entry(&l.source.entry).or_insert(&l.source);
            assert!(**known == *l.source, "two texts are named `{}`", l.source.entry);
            let entry = most.entry(&l.source.entry).or_default();
            *entry = (entry.0.max(l.shared), entry.1.max(l.block.iter().product()));
        }
        let begin = std::time::Instant::now();
        let arch = facts.arch();
        let compiler = Compiler::new(&api.nvrtc, &arch, text::OPTIONS, cache)?;
        let compiled = compiler.compile_all(&lowered.texts())?;
        tracing::info!("{} kernels for {arch} in {:.2?}", compiled.len(), begin.elapsed());
        let mut modules = Modules { list: vec![], functions: BTreeMap::new() };
        for (entry, compiled) in compiled {
            let module = Module::new(context, &compiled.cubin)?;
            let (shared, threads) = most[entry.as_str()];
            let function = module.function(&entry, shared, threads)?;
            modules.functions.insert(entry, function);
            modules.list.push(module);
        }
        Ok(modules)
    }
}

/// Puts tasks on their addresses.
struct Binder<'a> {
    address: &'a dyn Fn(Place) -> u64,
    tables: &'a Tables,
    base: u64,
    fault: u64,
    modules: &'a Modules,
    products: &'a [Product],
    blas: &'a Blas,
    stream: &'a Stream,
    /// Products that the library does not run, by their numbers, and why.
    refused: RefCell<BTreeMap<usize, String>>,
}

impl Binder<'_> {
    /// `None` for a refused product. `measured`: whether proposals for products are.
    fn bind(&self, task: &Task, measured: bool) -> Result<Option<Work>> {
        Ok(Some(match task {
            Task::Launch(l) => Work::Kernel {
                function: self.modules.functions[&l.source.entry],
                shape: (l.grid, l.block, l.shared),
                args: l.args.iter().map(|a| self.word(a)).collect(),
            },
            Task::Clear { place, bytes } => {
                Work::Clear { at: (self.address)(*place), bytes: *bytes }
            }
            Task::Product(i) => {
                let p = &self.products[*i];
                match self.blas.prepare(p, self.address, self.stream, measured)? {
                    Ok(call) => Work::Product(Box::new(call)),
                    Err(why) => {
                        self.refused.borrow_mut().insert(*i, why);
                        return Ok(None);
                    }
                }
            }
            Task::Graph(i) => Work::Graph(*i),
        }))
    }

    /// The word that holds an argument; narrower ones in its low bytes.
    fn word(&self, arg: &Arg) -> u64 {
        match arg {
            Arg::Tensor { tensor, offset } => {
                (self.address)(Place::Tensor { tensor: *tensor, offset: *offset })
            }
            Arg::Scratch { offset } => (self.address)(Place::Scratch { offset: *offset }),
            Arg::Table(table) => self.base + self.tables.offsets[table],
            Arg::Fault => self.fault,
            Arg::I32(x) => u64::from(*x as u32),
            Arg::U32(x) => u64::from(*x),
            Arg::I64(x) => *x as u64,
            Arg::F32(x) => u64::from(x.to_bits()),
        }
    }
}
