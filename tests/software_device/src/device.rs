//! Streams and what runs in them.
//!
//! Work waits in its stream until something needs it: then it runs, in the order of its stream,
//! with work of other streams in between by chance. A copy from page-locked memory therefore
//! reads that memory late, as on a device.

use crate::arena::Arena;
use crate::blas::product::Product;
use crate::dnn::graph::Run;
use crate::graph::{Capture, Graph};
use crate::host::{HostKernel, HostModule};
use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Instant;

/// `CUresult`: 0 is success.
pub type Status = u32;

pub const INVALID_VALUE: Status = 1;
pub const OUT_OF_MEMORY: Status = 2;
pub const NOT_INITIALIZED: Status = 3;
pub const INVALID_DEVICE: Status = 101;
pub const INVALID_IMAGE: Status = 200;
pub const INVALID_CONTEXT: Status = 201;
pub const INVALID_HANDLE: Status = 400;
pub const NOT_FOUND: Status = 500;
pub const NOT_READY: Status = 600;
pub const ILLEGAL_ADDRESS: Status = 700;
pub const LAUNCH_OUT_OF_RESOURCES: Status = 701;
pub const LAUNCH_FAILED: Status = 719;
pub const NOT_SUPPORTED: Status = 801;
pub const CAPTURE_UNSUPPORTED: Status = 900;
pub const CAPTURE_INVALIDATED: Status = 901;
pub const CAPTURE_UNMATCHED: Status = 903;
pub const CAPTURE_UNJOINED: Status = 904;
pub const CAPTURE_ISOLATION: Status = 905;
pub const CAPTURED_EVENT: Status = 907;

/// The stream that every blocking stream waits for.
pub const LEGACY: u64 = 0;

/// A moment in a stream.
#[derive(Debug)]
pub struct Ticket {
    pub stream: u64,
    pub passed: AtomicBool,
    pub when: Mutex<Option<Instant>>,
}

impl Ticket {
    fn passed(&self) -> bool {
        self.passed.load(Ordering::Relaxed)
    }
}

/// A kernel with its arguments.
pub struct Launch {
    pub kernel: HostKernel,
    pub name: Arc<str>,
    pub grid: [u32; 3],
    pub block: [u32; 3],
    pub shared: u32,
    /// Each argument begins at a multiple of 16.
    pub args: Vec<u128>,
    pub starts: Vec<usize>,
}

/// A function of the host that a stream calls.
pub type HostFunction = unsafe extern "C" fn(*mut c_void);

/// One piece of work.
#[derive(Clone)]
pub enum Op {
    Copy {
        to: u64,
        from: u64,
        bytes: usize,
    },
    /// What pageable memory held when the copy was asked for.
    Write {
        to: u64,
        data: Arc<[u8]>,
    },
    Set {
        to: u64,
        width: usize,
        value: u32,
        count: usize,
    },
    Launch(Arc<Launch>),
    Product(Arc<Product>),
    Dnn(Arc<Run>),
    Host {
        function: HostFunction,
        data: u64,
    },
    Free(u64),
    Record(Arc<Ticket>),
    Wait(Arc<Ticket>),
    Graph(Arc<Graph>),
}

#[derive(Default)]
pub struct Stream {
    /// Whether it waits for the legacy stream and that for it.
    pub blocking: bool,
    pub queue: VecDeque<Op>,
    pub capture: Option<Capture>,
}

/// What an event last marked.
#[derive(Clone, Default)]
pub enum Mark {
    #[default]
    Never,
    Moment(Arc<Ticket>),
    /// Nodes of the capture with this number.
    Captured(u64, Vec<usize>),
}

pub struct Module {
    pub library: Arc<HostModule>,
}

pub struct Function {
    pub kernel: HostKernel,
    pub name: Arc<str>,
    pub sizes: Vec<u32>,
    pub max_threads: u32,
    pub dynamic_shared: u32,
}

/// Counts that tests ask for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Counts {
    pub launches: u64,
    pub products: u64,
    pub replays: u64,
    pub copies: u64,
}

/// The one device.
pub struct Device {
    pub arena: Arena,
    pub streams: BTreeMap<u64, Stream>,
    pub events: BTreeMap<u64, Mark>,
    /// Events that have no time; no handle is used again.
    pub untimed: BTreeSet<u64>,
    pub graphs: BTreeMap<u64, Arc<Graph>>,
    pub execs: BTreeMap<u64, Arc<Graph>>,
    pub modules: BTreeMap<u64, Module>,
    pub functions: BTreeMap<u64, Function>,
    pub captures: BTreeMap<u64, Graph>,
    /// Page-locked memory of the host: address and bytes.
    pub pinned: BTreeMap<u64, usize>,
    /// Once something has failed nothing else works.
    pub error: Status,
    pub message: String,
    pub counts: Counts,
    pub initialised: bool,
    /// Streams whose graph is under way, innermost last: what is behind it waits for all of it.
    replaying: Vec<u64>,
    next: u64,
    random: u64,
    times: u64,
}

thread_local! {
    /// The context current on this thread; 0 is none.
    pub static CURRENT: Cell<u64> = const { Cell::new(0) };
}

/// The device, locked.
pub fn device() -> MutexGuard<'static, Device> {
    static DEVICE: OnceLock<Mutex<Device>> = OnceLock::new();
    let device = DEVICE.get_or_init(|| Mutex::new(Device::new()));
    // A panic of another test's thread leaves the state as it is.
    device.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

/// A number of the environment.
pub fn number(variable: &str, otherwise: u64) -> u64 {
    match std::env::var(variable) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{variable}={text} is not a number")),
        Err(_) => otherwise,
    }
}

/// The next number of a sequence (Knuth's MMIX constants).
fn draw(last: u64) -> u64 {
    last.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407)
}

impl Device {
    fn new() -> Device {
        let memory = number("PRECAST_SOFTWARE_DEVICE_MEMORY", 4 << 30);
        let taken = number("PRECAST_SOFTWARE_DEVICE_TAKEN", 0);
        let legacy = Stream { blocking: true, ..Stream::default() };
        Device {
            arena: Arena::new(memory as usize, taken as usize),
            streams: BTreeMap::from([(LEGACY, legacy)]),
            events: BTreeMap::new(),
            untimed: BTreeSet::new(),
            graphs: BTreeMap::new(),
            execs: BTreeMap::new(),
            modules: BTreeMap::new(),
            functions: BTreeMap::new(),
            captures: BTreeMap::new(),
            pinned: BTreeMap::new(),
            error: 0,
            message: String::new(),
            counts: Counts::default(),
            initialised: false,
            replaying: vec![],
            next: 0x1000,
            random: number("PRECAST_SOFTWARE_DEVICE_SEED", 1),
            times: number("PRECAST_SOFTWARE_DEVICE_SEED", 1),
        }
    }

    /// A number no handle has had.
    pub fn handle(&mut self) -> u64 {
        self.next += 16;
        self.next
    }

    /// Milliseconds between two events: any number up to 8, of the seed alone, so that what is chosen by
    /// time is the same in each run and depends on no load of the machine.
    pub fn milliseconds(&mut self) -> f32 {
        self.times = draw(self.times);
        (1 + (self.times >> 33) % 4096) as f32 / 512.0
    }

    fn random(&mut self) -> u64 {
        self.random = draw(self.random);
        self.random >> 33
    }

    /// Notes a failure, after which every call returns it.
    pub fn fail(&mut self, code: Status, message: String) {
        if self.error == 0 {
            eprintln!("software device: {message}");
            self.error = code;
            self.message = message;
            for stream in self.streams.values_mut() {
                stream.queue.clear();
            }
        }
    }

    /// Says why a call is refused; the device goes on.
    pub fn refuse(&mut self, code: Status, message: String) -> Status {
        eprintln!("software device: {message}");
        self.message = message;
        code
    }

    /// Whether a stream captures.
    pub fn captures(&self, handle: u64) -> bool {
        self.streams.get(&stream_id(handle)).is_some_and(|s| s.capture.is_some())
    }

    /// The state of a stream by its handle; 0, 1 and 2 are the default stream.
    pub fn stream(&mut self, handle: u64) -> Result<&mut Stream, Status> {
        self.streams.get_mut(&stream_id(handle)).ok_or(INVALID_HANDLE)
    }

    /// Puts work at the end of a stream, or of what it captures.
    pub fn enqueue(&mut self, handle: u64, op: Op) -> Result<(), Status> {
        let id = stream_id(handle);
        if self.stream(id)?.capture.is_some() {
            return self.capture_op(id, op);
        }
        let waits_for: Vec<u64> = if id == LEGACY {
            self.streams
                .iter()
                .filter(|(o, s)| **o != LEGACY && s.blocking)
                .map(|(o, _)| *o)
                .collect()
        } else if self.streams[&id].blocking {
            vec![LEGACY]
        } else {
            vec![]
        };
        for other in waits_for {
            if !self.streams[&other].queue.is_empty() {
                let ticket = self.mark(other);
                self.stream(id)?.queue.push_back(Op::Wait(ticket));
            }
        }
        self.stream(id)?.queue.push_back(op);
        Ok(())
    }

    /// A ticket that is passed when everything now in the stream has run.
    pub fn mark(&mut self, id: u64) -> Arc<Ticket> {
        let ticket =
            Arc::new(Ticket { stream: id, passed: AtomicBool::new(false), when: Mutex::new(None) });
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.queue.push_back(Op::Record(ticket.clone()));
        }
        ticket
    }

    /// Runs the work at the head of a stream, and before it what that waits for; false where the
    /// stream is empty.
    fn step(&mut self, id: u64) -> bool {
        if self.error != 0 {
            return false;
        }
        let Some(op) = self.streams.get(&id).and_then(|s| s.queue.front().cloned()) else {
            return false;
        };
        if let Op::Wait(ticket) = &op {
            // It stays at the head meanwhile, so that nothing of this stream gets past it.
            self.until(ticket);
            let head = self.streams.get_mut(&id).map(|s| &mut s.queue);
            if let Some(queue) = head
                && matches!(queue.front(), Some(Op::Wait(t)) if Arc::ptr_eq(t, ticket))
            {
                queue.pop_front();
            }
            return true;
        }
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.queue.pop_front();
        }
        self.execute(&op, id);
        true
    }

    /// Runs work until a ticket is passed, with other work in between by chance.
    fn until(&mut self, ticket: &Ticket) {
        while !ticket.passed() && self.error == 0 {
            self.meanwhile();
            if !ticket.passed() && !self.step(ticket.stream) && self.error == 0 {
                panic!("an event of stream {} that nothing will record", ticket.stream);
            }
        }
    }

    /// By chance, one piece of work of a stream that waits for nothing. A stream whose graph is under way
    /// stands still, also where this graph is one that ran in between of another's.
    fn meanwhile(&mut self) {
        if !self.random().is_multiple_of(4) {
            return;
        }
        let able = |s: &Stream| match s.queue.front() {
            None => false,
            Some(Op::Wait(ticket)) => ticket.passed(),
            Some(_) => true,
        };
        let list: Vec<u64> = self
            .streams
            .iter()
            .filter(|(id, s)| !self.replaying.contains(id) && able(s))
            .map(|(id, _)| *id)
            .collect();
        if !list.is_empty() {
            let at = self.random() as usize % list.len();
            self.step(list[at]);
        }
    }

    /// Lets the device work: memory is accessible during `work`, and checked after it.
    fn at_work<R>(&mut self, work: impl FnOnce(&mut Device) -> R) -> R {
        self.arena.set_open(true);
        let result = work(self);
        if let Err(message) = self.arena.check() {
            self.fail(ILLEGAL_ADDRESS, message);
        }
        self.arena.set_open(false);
        result
    }

    /// Runs everything a stream holds.
    pub fn drain(&mut self, id: u64) -> Result<(), Status> {
        self.at_work(|d| {
            let ticket = d.mark(id);
            d.until(&ticket);
        });
        self.state()
    }

    /// Runs everything.
    pub fn drain_all(&mut self) -> Result<(), Status> {
        self.at_work(|d| {
            let ids: Vec<u64> = d.streams.keys().copied().collect();
            let tickets: Vec<_> = ids.into_iter().map(|id| d.mark(id)).collect();
            for ticket in tickets {
                d.until(&ticket);
            }
        });
        self.state()
    }

    /// Runs work until a ticket is passed.
    pub fn wait(&mut self, ticket: &Ticket) -> Result<(), Status> {
        if !ticket.passed() {
            self.at_work(|d| d.until(ticket));
        }
        self.state()
    }

    /// Whether a ticket is passed; if not, a little work is done, so that asking again ends.
    pub fn poll(&mut self, ticket: &Ticket) -> Result<(), Status> {
        if ticket.passed() {
            return self.state();
        }
        self.at_work(|d| d.step(ticket.stream));
        self.state()?;
        Err(NOT_READY)
    }

    /// Whether a stream is empty; if not, a little work is done.
    pub fn poll_stream(&mut self, id: u64) -> Result<(), Status> {
        if self.stream(id)?.queue.is_empty() {
            return self.state();
        }
        self.at_work(|d| d.step(id));
        self.state()?;
        Err(NOT_READY)
    }

    /// Frees memory at once.
    pub fn free(&mut self, at: u64) -> Result<(), Status> {
        match self.at_work(|d| d.arena.free(at)) {
            None => {
                let text = format!("{at:#x} is freed, which is no allocation");
                Err(self.refuse(INVALID_VALUE, text))
            }
            Some(Err(message)) => {
                self.fail(ILLEGAL_ADDRESS, message);
                self.state()
            }
            Some(Ok(())) => self.state(),
        }
    }

    /// The failure everything returns, if there was one.
    pub fn state(&self) -> Result<(), Status> {
        if self.error == 0 { Ok(()) } else { Err(self.error) }
    }

    /// Whether the bytes around every allocation are as they were.
    pub fn check_guards(&mut self) -> Result<(), Status> {
        self.at_work(|_| {});
        self.state()
    }

    /// Whether memory may be copied: device addresses lie in one allocation.
    pub fn check_range(&mut self, at: u64, bytes: usize, what: &str) -> Result<(), Status> {
        if self.arena.is_device(at) && !self.arena.holds(at, bytes) {
            let text = format!("{what}: {bytes} bytes at {at:#x} are not one allocation's");
            return Err(self.refuse(INVALID_VALUE, text));
        }
        Ok(())
    }

    fn execute(&mut self, op: &Op, stream: u64) {
        match op {
            Op::Copy { to, from, bytes } => {
                self.counts.copies += 1;
                for (at, what) in [(*to, "the target of a copy"), (*from, "the source of a copy")] {
                    if self.arena.is_device(at) && !self.arena.holds(at, *bytes) {
                        self.fail(ILLEGAL_ADDRESS, format!("{what} was freed before the copy ran"));
                        return;
                    }
                }
                // SAFETY: device ranges were just checked; host ranges are the caller's promise.
                unsafe { std::ptr::copy(*from as *const u8, *to as *mut u8, *bytes) };
            }
            Op::Write { to, data } => {
                self.counts.copies += 1;
                if !self.arena.holds(*to, data.len()) {
                    self.fail(
                        ILLEGAL_ADDRESS,
                        "the target of a copy was freed before the copy ran".to_string(),
                    );
                    return;
                }
                // SAFETY: the range was just checked.
                unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), *to as *mut u8, data.len()) };
            }
            Op::Set { to, width, value, count } => {
                if !self.arena.holds(*to, width * count) {
                    self.fail(ILLEGAL_ADDRESS, "memory was freed before it was set".to_string());
                    return;
                }
                let bytes = value.to_le_bytes();
                for i in 0..*count {
                    // SAFETY: the range was just checked.
                    unsafe {
                        std::ptr::copy_nonoverlapping(
                            bytes.as_ptr(),
                            (*to as *mut u8).add(i * width),
                            *width,
                        );
                    }
                }
            }
            Op::Launch(launch) => {
                self.counts.launches += 1;
                let base: *const u128 = launch.args.as_ptr();
                let mut pointers: Vec<*mut c_void> = launch
                    .starts
                    .iter()
                    .map(|&at| base.wrapping_add(at).cast_mut().cast())
                    .collect();
                let seed = self.random() + 1;
                // SAFETY: the arguments were copied by the sizes of the kernel's own parameters.
                let result = unsafe {
                    launch.kernel.launch(
                        launch.grid,
                        launch.block,
                        launch.shared,
                        seed,
                        &mut pointers,
                    )
                };
                if let Err(e) = result {
                    let code =
                        if e.code == 2 || e.code == 1 { LAUNCH_FAILED } else { e.code as Status };
                    self.fail(code, format!("kernel `{}`: {}", launch.name, e.message));
                } else if let Err(message) = self.arena.check() {
                    self.fail(ILLEGAL_ADDRESS, format!("kernel `{}`: {message}", launch.name));
                }
            }
            Op::Product(product) => {
                self.counts.products += 1;
                if let Err(message) = product.run(&self.arena) {
                    self.fail(ILLEGAL_ADDRESS, message);
                }
            }
            Op::Dnn(run) => {
                self.counts.products += 1;
                if let Err(message) = run.run(&self.arena) {
                    self.fail(ILLEGAL_ADDRESS, format!("a graph of cuDNN: {message}"));
                }
            }
            Op::Host { function, data } => {
                // SAFETY: the caller of cuLaunchHostFunc promised that it may be called.
                unsafe { function(*data as *mut c_void) };
            }
            Op::Free(at) => match self.arena.free(*at) {
                Some(Ok(())) => {}
                Some(Err(message)) => self.fail(ILLEGAL_ADDRESS, message),
                None => {
                    self.fail(INVALID_VALUE, format!("{at:#x} is freed, which is no allocation"))
                }
            },
            Op::Record(ticket) => {
                *ticket.when.lock().expect("nothing panics holding it") = Some(Instant::now());
                ticket.passed.store(true, Ordering::Relaxed);
            }
            Op::Wait(_) => {}
            Op::Graph(graph) => {
                self.counts.replays += 1;
                self.replay(graph, stream);
            }
        }
    }

    /// Runs the nodes of a graph in an order that its dependencies allow.
    fn replay(&mut self, graph: &Graph, stream: u64) {
        let mut missing: Vec<usize> = graph.nodes.iter().map(|n| n.after.len()).collect();
        let mut ready: Vec<usize> = (0..missing.len()).filter(|&i| missing[i] == 0).collect();
        // The graph is no longer in the queue.
        self.replaying.push(stream);
        while !ready.is_empty() && self.error == 0 {
            let at = self.random() as usize % ready.len();
            let node = ready.swap_remove(at);
            self.meanwhile();
            self.execute(&graph.nodes[node].op, stream);
            for (i, n) in graph.nodes.iter().enumerate().skip(node + 1) {
                if n.after.contains(&node) {
                    missing[i] -= 1;
                    if missing[i] == 0 {
                        ready.push(i);
                    }
                }
            }
        }
        self.replaying.pop();
    }
}

/// The number of a stream by its handle.
pub fn stream_id(handle: u64) -> u64 {
    if handle <= 2 { LEGACY } else { handle }
}
