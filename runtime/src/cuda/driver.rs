//! Devices, memory, streams, events, modules and graphs, each released when its owner goes.

use super::api::{self, Driver, Status};
use super::launch::Facts;
use crate::error::{Error, Result};
use cu::CUdevice_attribute_enum as Attribute;
use cudarc::driver::sys as cu;
use std::ffi::{c_int, c_uint, c_void};
use std::sync::Arc;

const OUT_OF_MEMORY: Status = cu::cudaError_enum::CUDA_ERROR_OUT_OF_MEMORY as Status;
const NOT_READY: Status = cu::cudaError_enum::CUDA_ERROR_NOT_READY as Status;
const NO_DEVICE: Status = cu::cudaError_enum::CUDA_ERROR_NO_DEVICE as Status;
/// Kernels of one stream never wait for the legacy default stream.
const NON_BLOCKING: c_uint = 1;
/// Calls that a strict capture forbids, such as loading a library's kernel, are allowed: nothing
/// else of this process depends on the capturing stream.
const CAPTURE_RELAXED: c_uint = 2;

/// Of an event (`CU_EVENT_DISABLE_TIMING`).
const DISABLE_TIMING: c_uint = 2;

/// What is known of a GPU.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    pub ordinal: usize,
    pub name: String,
    pub facts: Facts,
    /// Bytes.
    pub memory: u64,
}

/// The GPUs the driver sees, in its order.
///
/// # Errors
/// `R0701`, `R0702` where there is no usable driver; `R0704` where it finds no GPU.
pub fn devices() -> Result<Vec<DeviceInfo>> {
    let api = api::driver()?;
    initialise(api)?;
    let mut count = 0;
    // SAFETY: initialised; the pointer is to a local.
    api.check(unsafe { api.cuDeviceGetCount(&raw mut count) }, "counting devices")?;
    if count == 0 {
        return Err(no_device());
    }
    (0..count as usize).map(|ordinal| info(api, ordinal)).collect()
}

/// GPU `ordinal`.
///
/// # Errors
/// As [`devices`]; `R0704` where there are fewer.
pub fn device(ordinal: usize) -> Result<DeviceInfo> {
    let all = devices()?;
    all.get(ordinal).cloned().ok_or_else(|| {
        let text = match all.len() {
            1 => format!("there is no GPU {ordinal}: the driver finds one"),
            n => format!("there is no GPU {ordinal}: the driver finds {n}"),
        };
        Error::new("R0704", text).help("they are numbered from 0: `cuda:0`")
    })
}

fn no_device() -> Error {
    Error::new("R0704", "the CUDA driver finds no GPU").help(
        "`CUDA_VISIBLE_DEVICES` may hide it; `precast doctor` says what is there; `--device cpu` needs none",
    )
}

fn initialise(api: &Driver) -> Result<()> {
    // SAFETY: takes no pointers.
    match unsafe { api.cuInit(0) } {
        NO_DEVICE => Err(no_device()),
        status => api.check(status, "starting the CUDA driver"),
    }
}

fn handle(api: &Driver, ordinal: usize) -> Result<cu::CUdevice> {
    let mut device = 0;
    // SAFETY: the pointer is to a local.
    let status = unsafe { api.cuDeviceGet(&raw mut device, ordinal as c_int) };
    api.check(status, "finding the device")?;
    Ok(device)
}

fn info(api: &Driver, ordinal: usize) -> Result<DeviceInfo> {
    let device = handle(api, ordinal)?;
    let attribute = |a: Attribute| -> Result<u32> {
        let mut value = 0;
        // SAFETY: the pointer is to a local.
        let status = unsafe { api.cuDeviceGetAttribute(&raw mut value, a as c_uint, device) };
        api.check(status, "reading an attribute of the device")?;
        Ok(value as u32)
    };
    let mut name = [0 as std::ffi::c_char; 256];
    // SAFETY: the length is that of the buffer, less a terminating zero.
    let status = unsafe { api.cuDeviceGetName(name.as_mut_ptr(), 255, device) };
    api.check(status, "reading the device's name")?;
    let bytes: Vec<u8> = name.iter().map(|&c| c as u8).take_while(|&c| c != 0).collect();
    let mut memory = 0;
    // SAFETY: the pointer is to a local.
    let status = unsafe { api.cuDeviceTotalMem_v2(&raw mut memory, device) };
    api.check(status, "reading the device's memory")?;
    Ok(DeviceInfo {
        ordinal,
        name: String::from_utf8_lossy(&bytes).into_owned(),
        facts: Facts {
            capability: (
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
                attribute(Attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
            ),
            multiprocessors: attribute(Attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
            shared_per_block: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN,
            )?,
            threads_per_multiprocessor: attribute(
                Attribute::CU_DEVICE_ATTRIBUTE_MAX_THREADS_PER_MULTIPROCESSOR,
            )?,
        },
        memory: memory as u64,
    })
}

/// A device's primary context.
pub struct Context {
    pub api: &'static Driver,
    pub info: DeviceInfo,
    device: cu::CUdevice,
    context: cu::CUcontext,
}

// SAFETY: a context may be current on any thread; the driver synchronises itself.
unsafe impl Send for Context {}
// SAFETY: as above.
unsafe impl Sync for Context {}

impl Context {
    /// Opens GPU `ordinal`.
    ///
    /// # Errors
    /// As [`devices`]; `R0704` where there are fewer.
    pub fn new(ordinal: usize) -> Result<Arc<Context>> {
        let api = api::driver()?;
        let info = device(ordinal)?;
        let device = handle(api, ordinal)?;
        let mut context = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let status = unsafe { api.cuDevicePrimaryCtxRetain(&raw mut context, device) };
        api.check(status, "opening the device")?;
        let context = Arc::new(Context { api, info, device, context });
        context.bind()?;
        Ok(context)
    }

    /// Makes the context current on this thread: called before anything else of a public entry.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn bind(&self) -> Result<()> {
        // SAFETY: the context is alive.
        self.check(unsafe { self.api.cuCtxSetCurrent(self.context) }, "using the device")
    }

    /// # Errors
    /// `R0703` unless the status is success.
    pub fn check(&self, status: Status, what: &str) -> Result<()> {
        self.api.check(status, what)
    }

    /// As [`Context::check`], of a call that waits: the fault is that of some earlier work.
    fn check_wait(&self, status: Status) -> Result<()> {
        self.check(status, "the device failed").map_err(|e| {
            e.help("`PRECAST_CUDA_GRAPH=check` waits for every step and names the one that fails")
        })
    }

    /// Free and total bytes of device memory.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn memory(&self) -> Result<(u64, u64)> {
        let (mut free, mut total) = (0, 0);
        // SAFETY: the pointers are to locals.
        let status = unsafe { self.api.cuMemGetInfo_v2(&raw mut free, &raw mut total) };
        self.check(status, "asking for free memory")?;
        Ok((free as u64, total as u64))
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: retained once by `new`; everything made in it holds an `Arc` of it.
        unsafe { self.api.cuDevicePrimaryCtxRelease_v2(self.device) };
    }
}

/// Memory of the device.
pub struct Memory {
    context: Arc<Context>,
    pub address: u64,
    pub bytes: u64,
}

impl Memory {
    /// `None` where the device has not enough. At least one byte is had, so that addresses differ.
    ///
    /// # Errors
    /// If the driver fails otherwise.
    pub fn new(context: &Arc<Context>, bytes: u64) -> Result<Option<Memory>> {
        let mut address = 0;
        // SAFETY: the pointer is to a local.
        let status =
            unsafe { context.api.cuMemAlloc_v2(&raw mut address, bytes.max(256) as usize) };
        if status == OUT_OF_MEMORY {
            return Ok(None);
        }
        context.check(status, "allocating device memory")?;
        Ok(Some(Memory { context: context.clone(), address, bytes }))
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`; the owner has finished its streams.
        unsafe { self.context.api.cuMemFree_v2(self.address) };
    }
}

/// Page-locked memory of the host, which the device copies from and to by itself.
pub struct Pinned {
    context: Arc<Context>,
    pub pointer: *mut u8,
    pub bytes: usize,
}

// SAFETY: memory with one owner.
unsafe impl Send for Pinned {}
// SAFETY: it is written through `&mut` alone.
unsafe impl Sync for Pinned {}

impl Pinned {
    /// # Errors
    /// `R0101` where the host has not enough.
    pub fn new(context: &Arc<Context>, bytes: usize) -> Result<Pinned> {
        let mut pointer = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let status = unsafe { context.api.cuMemHostAlloc(&raw mut pointer, bytes.max(64), 0) };
        if status == OUT_OF_MEMORY {
            let text = format!(
                "{} of page-locked memory cannot be had",
                precast_plan::units::bytes(bytes as u64)
            );
            return Err(Error::new("R0101", text));
        }
        context.check(status, "allocating page-locked memory")?;
        Ok(Pinned { context: context.clone(), pointer: pointer.cast(), bytes })
    }

    pub fn slice(&self) -> &[u8] {
        // SAFETY: `bytes` bytes are allocated, and the device has finished writing where the owner
        // reads.
        unsafe { std::slice::from_raw_parts(self.pointer, self.bytes) }
    }

    pub fn slice_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, borrowed exclusively.
        unsafe { std::slice::from_raw_parts_mut(self.pointer, self.bytes) }
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // SAFETY: allocated by `new`.
        unsafe { self.context.api.cuMemFreeHost(self.pointer.cast()) };
    }
}

/// A queue of work.
pub struct Stream {
    pub(super) context: Arc<Context>,
    pub raw: cu::CUstream,
}

// SAFETY: streams may be used from any thread.
unsafe impl Send for Stream {}
// SAFETY: the driver synchronises itself.
unsafe impl Sync for Stream {}

impl Stream {
    /// # Errors
    /// If the driver refuses.
    pub fn new(context: &Arc<Context>) -> Result<Stream> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let status = unsafe { context.api.cuStreamCreate(&raw mut raw, NON_BLOCKING) };
        context.check(status, "making a stream")?;
        Ok(Stream { context: context.clone(), raw })
    }

    /// Waits for everything in the queue.
    ///
    /// # Errors
    /// `R0703` where anything in it failed.
    pub fn synchronise(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        let status = unsafe { self.context.api.cuStreamSynchronize(self.raw) };
        self.context.check_wait(status)
    }

    /// What follows in this stream waits for `event`.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: both are alive.
        let status = unsafe { self.context.api.cuStreamWaitEvent(self.raw, event.raw, 0) };
        self.context.check(status, "ordering two streams")
    }

    /// Copies within the device.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn copy(&self, to: u64, from: u64, bytes: u64) -> Result<()> {
        // SAFETY: the caller passes addresses of its own allocations.
        let status =
            unsafe { self.context.api.cuMemcpyDtoDAsync_v2(to, from, bytes as usize, self.raw) };
        self.context.check(status, "copying on the device")
    }

    /// Copies to the device. `from` is page-locked and stays as it is until the copy is done, or
    /// the caller waits for the stream at once.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn upload(&self, to: u64, from: &[u8]) -> Result<()> {
        if from.is_empty() {
            return Ok(());
        }
        // SAFETY: the caller's contract.
        let status = unsafe {
            let from_ptr = from.as_ptr().cast::<c_void>();
            self.context.api.cuMemcpyHtoDAsync_v2(to, from_ptr, from.len(), self.raw)
        };
        self.context.check(status, "copying to the device")
    }

    /// Copies to the host.
    ///
    /// # Safety
    /// `to` has room for `bytes` and stays until the copy is done.
    ///
    /// # Errors
    /// If the driver refuses.
    pub unsafe fn download(&self, to: *mut u8, from: u64, bytes: usize) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller's contract.
        let status =
            unsafe { self.context.api.cuMemcpyDtoHAsync_v2(to.cast(), from, bytes, self.raw) };
        self.context.check(status, "copying from the device")
    }

    /// Sets bytes to zero.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn clear(&self, at: u64, bytes: u64) -> Result<()> {
        self.fill(at, 0, bytes)
    }

    /// Sets bytes to one value.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn fill(&self, at: u64, value: u8, bytes: u64) -> Result<()> {
        if bytes == 0 {
            return Ok(());
        }
        // SAFETY: the caller passes a range of its own allocations.
        let status =
            unsafe { self.context.api.cuMemsetD8Async(at, value, bytes as usize, self.raw) };
        self.context.check(status, "setting memory")
    }

    /// As [`Stream::record`], ready to be replayed.
    ///
    /// # Errors
    /// What `work` fails with, or the driver.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Graph> {
        self.record(work)?.instantiate()
    }

    /// Records what `work` puts into the stream instead of running it.
    ///
    /// # Errors
    /// As [`Stream::capture`].
    pub fn record(&self, work: impl FnOnce() -> Result<()>) -> Result<Recorded> {
        self.begin()?;
        let raw = self.end(work())?;
        Ok(Recorded { context: self.context.clone(), raw })
    }

    fn begin(&self) -> Result<()> {
        // SAFETY: the stream is alive and captures nothing yet.
        let status = unsafe { self.context.api.cuStreamBeginCapture_v2(self.raw, CAPTURE_RELAXED) };
        self.context.check(status, "beginning to capture")
    }

    /// The graph of the capture that [`Stream::begin`] began, where it `worked`.
    fn end(&self, worked: Result<()>) -> Result<cu::CUgraph> {
        let api = self.context.api;
        let mut graph = std::ptr::null_mut();
        // SAFETY: ends the capture whatever became of the work.
        let status = unsafe { api.cuStreamEndCapture(self.raw, &raw mut graph) };
        if worked.is_err() && status == 0 {
            // What was recorded until then is of no use.
            // SAFETY: the graph was just made.
            unsafe { api.cuGraphDestroy(graph) };
        }
        worked?;
        self.context.check(status, "capturing")?;
        Ok(graph)
    }

    /// Replays a graph.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn replay(&self, graph: &Graph) -> Result<()> {
        // SAFETY: both are alive.
        let status = unsafe { self.context.api.cuGraphLaunch(graph.exec, self.raw) };
        self.context.check(status, "launching the graph")
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        unsafe {
            self.context.api.cuStreamSynchronize(self.raw);
            self.context.api.cuStreamDestroy_v2(self.raw);
        }
    }
}

/// A captured list of work, to be made ready.
pub struct Recorded {
    context: Arc<Context>,
    raw: cu::CUgraph,
}

impl Recorded {
    /// # Errors
    /// If the driver refuses, as where memory is short.
    pub fn instantiate(self) -> Result<Graph> {
        let api = self.context.api;
        let mut exec = std::ptr::null_mut();
        // SAFETY: the graph is alive; an instance does not need it afterwards.
        let status = unsafe { api.cuGraphInstantiateWithFlags(&raw mut exec, self.raw, 0) };
        self.context.check(status, "instantiating the graph")?;
        Ok(Graph { context: self.context.clone(), exec })
    }
}

impl Drop for Recorded {
    fn drop(&mut self) {
        // SAFETY: made by `Stream::record`.
        unsafe { self.context.api.cuGraphDestroy(self.raw) };
    }
}

/// A captured list of work that can be replayed.
pub struct Graph {
    context: Arc<Context>,
    exec: cu::CUgraphExec,
}

// SAFETY: a graph is launched from one thread at a time, through its owner.
unsafe impl Send for Graph {}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: made by `capture`.
        unsafe { self.context.api.cuGraphExecDestroy(self.exec) };
    }
}

/// A point in a stream.
pub struct Event {
    context: Arc<Context>,
    raw: cu::CUevent,
}

// SAFETY: events may be used from any thread.
unsafe impl Send for Event {}
// SAFETY: the driver synchronises itself.
unsafe impl Sync for Event {}

impl Event {
    /// One whose time is asked for.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn new(context: &Arc<Context>) -> Result<Event> {
        Event::of(context, 0)
    }

    /// One that puts work in order and has no time, which costs streams the least.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn untimed(context: &Arc<Context>) -> Result<Event> {
        Event::of(context, DISABLE_TIMING)
    }

    fn of(context: &Arc<Context>, flags: c_uint) -> Result<Event> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: the pointer is to a local.
        let status = unsafe { context.api.cuEventCreate(&raw mut raw, flags) };
        context.check(status, "making an event")?;
        Ok(Event { context: context.clone(), raw })
    }

    /// Marks the present end of the stream.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: both are alive.
        let status = unsafe { self.context.api.cuEventRecord(self.raw, stream.raw) };
        self.context.check(status, "recording an event")
    }

    /// Whether the point has been passed; true where it was never recorded.
    ///
    /// # Errors
    /// `R0703` where anything before it failed.
    pub fn passed(&self) -> Result<bool> {
        // SAFETY: the event is alive.
        match unsafe { self.context.api.cuEventQuery(self.raw) } {
            NOT_READY => Ok(false),
            status => self.context.check_wait(status).map(|()| true),
        }
    }

    /// Waits until the point is passed.
    ///
    /// # Errors
    /// `R0703` where anything before it failed.
    pub fn wait(&self) -> Result<()> {
        // SAFETY: the event is alive.
        let status = unsafe { self.context.api.cuEventSynchronize(self.raw) };
        self.context.check_wait(status)
    }

    /// Seconds from `earlier` to this; both have been passed.
    ///
    /// # Errors
    /// If the driver refuses.
    pub fn since(&self, earlier: &Event) -> Result<f64> {
        let mut milliseconds = 0.0;
        // SAFETY: both are alive; the pointer is to a local.
        let status = unsafe {
            self.context.api.cuEventElapsedTime(&raw mut milliseconds, earlier.raw, self.raw)
        };
        self.context.check(status, "measuring time")?;
        Ok(f64::from(milliseconds) * 1e-3)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by `new`.
        unsafe { self.context.api.cuEventDestroy_v2(self.raw) };
    }
}
