//! The functions of cuDNN's graph interface, by the names and types of NVIDIA's header.

use super::desc::{Descriptor, Value, kind};
use super::graph::{Graph, Run};
use super::{BAD_PARAM, EXECUTION_FAILED, LIVE, NOT_SUPPORTED, Status};
use crate::device::{CURRENT, Op, device};
use crate::driver::exports;
use crate::refusals::refuses;
use std::cell::RefCell;
use std::ffi::{CString, c_char, c_uint, c_void};
use std::sync::Arc;
use std::sync::atomic::Ordering;

// Attributes, by the numbers of NVIDIA's header.
const HEURISTIC_MODE: u32 = 200;
const HEURISTIC_GRAPH: u32 = 201;
const HEURISTIC_RESULTS: u32 = 202;
const CONFIG_ENGINE: u32 = 300;
const CONFIG_KNOBS: u32 = 302;
const KNOB_KIND: u32 = 600;
const KNOB_VALUE: u32 = 601;
const GRAPH_HANDLE: u32 = 800;
const PLAN_HANDLE: u32 = 400;
const PLAN_CONFIG: u32 = 401;
const PLAN_WORKSPACE: u32 = 402;
const PACK_UIDS: u32 = 1000;
const PACK_POINTERS: u32 = 1001;
const PACK_WORKSPACE: u32 = 1003;
const ENGINE_GRAPH: u32 = 1300;
const ENGINE_NUMBER: u32 = 1301;
const ENGINE_NUMERICAL_NOTE: u32 = 1303;
const ENGINE_BEHAVIOUR_NOTE: u32 = 1305;

/// `CUDNN_HEUR_MODE_A`
const MODE_A: i32 = 3;
/// Notes on what an engine does to numbers.
const TENSOR_CORE: i32 = 0;
const NONDETERMINISTIC: i32 = 4;

/// `CUDNN_KNOB_TYPE_TILE_SIZE`
const TILE_SIZE: i32 = 2;

/// Number, notes, bytes of workspace, and tile sizes of every engine.
const ENGINES: [(i64, &[i32], i64, &[i64]); 3] =
    [(0, &[TENSOR_CORE], 0, &[0]), (1, &[], 2 << 20, &[1, 0]), (2, &[NONDETERMINISTIC], 0, &[])];

/// `cudnnHandle_t`
pub struct Handle {
    stream: u64,
}

thread_local! {
    static LAST: RefCell<String> = const { RefCell::new(String::new()) };
}

fn refuse(status: Status, text: String) -> Status {
    LAST.replace(text);
    status
}

fn answer(result: Result<(), (Status, String)>) -> Status {
    result.map_or_else(|(status, text)| refuse(status, text), |()| 0)
}

/// A finalised descriptor of the library's own making.
fn made(of: u32, values: Vec<(u32, Value)>) -> Arc<Descriptor> {
    let values = values.into_iter().collect();
    Arc::new(Descriptor { kind: of, finalised: true, values })
}

/// Whether a graph or plan, which is for this device alone, names the handle of it.
fn handle(d: &Descriptor, name: u32) -> Result<(), String> {
    match d.pointers(name) {
        Ok([at]) if *at != 0 => Ok(()),
        _ => Err(format!("descriptor {} names no handle, and there is a device", d.kind)),
    }
}

/// What finalising a descriptor checks and adds.
fn finalise(d: &mut Descriptor) -> Result<(), (Status, String)> {
    let bad = |text: String| (BAD_PARAM, text);
    match d.kind {
        kind::GRAPH => {
            handle(d, GRAPH_HANDLE).map_err(bad)?;
            Graph::new(d).map_err(|text| (NOT_SUPPORTED, text))?;
        }
        kind::HEURISTIC => {
            let graph = d.of(HEURISTIC_GRAPH).map_err(bad)?.clone();
            let best = d.number(HEURISTIC_MODE).map_err(bad)? == MODE_A;
            let engines = ENGINES.iter().filter(|e| e.1.contains(&NONDETERMINISTIC) != best);
            let config = |number: i64, notes: &[i32], tile: Option<i64>| {
                let values = vec![
                    (ENGINE_GRAPH, Value::Of(vec![graph.clone()])),
                    (ENGINE_NUMBER, Value::Ints(vec![number])),
                    (ENGINE_NUMERICAL_NOTE, Value::Numbers(notes.to_vec())),
                    (ENGINE_BEHAVIOUR_NOTE, Value::Numbers(vec![])),
                ];
                let engine = Value::Of(vec![made(kind::ENGINE, values)]);
                let knob = |tile| {
                    let tile = (KNOB_VALUE, Value::Ints(vec![tile]));
                    made(kind::KNOB, vec![(KNOB_KIND, Value::Numbers(vec![TILE_SIZE])), tile])
                };
                let knobs = Value::Of(tile.map(knob).into_iter().collect());
                made(kind::ENGINE_CONFIG, vec![(CONFIG_ENGINE, engine), (CONFIG_KNOBS, knobs)])
            };
            let mut configs = vec![];
            for &(number, notes, _, tiles) in engines {
                match tiles {
                    [] => configs.push(config(number, notes, None)),
                    _ => configs.extend(tiles.iter().map(|&t| config(number, notes, Some(t)))),
                }
            }
            d.values.insert(HEURISTIC_RESULTS, Value::Of(configs));
        }
        kind::PLAN => {
            handle(d, PLAN_HANDLE).map_err(bad)?;
            let config = d.of(PLAN_CONFIG).map_err(bad)?;
            let number =
                config.of(CONFIG_ENGINE).and_then(|e| e.int(ENGINE_NUMBER)).map_err(bad)?;
            let engine = ENGINES.iter().find(|e| e.0 == number);
            let bytes = engine.ok_or_else(|| bad("there is no such engine".into()))?.2;
            d.values.insert(PLAN_WORKSPACE, Value::Ints(vec![bytes]));
        }
        kind::PACK => {
            let (uids, at) = (d.ints(PACK_UIDS).map_err(bad)?, d.pointers(PACK_POINTERS));
            if uids.len() != at.map_err(bad)?.len() {
                return Err(bad("as many pointers as numbers of tensors".into()));
            }
        }
        _ => {}
    }
    d.finalised = true;
    Ok(())
}

unsafe fn execute(handle: &Handle, plan: &Descriptor, pack: &Descriptor) -> Result<(), String> {
    let engine = plan.of(PLAN_CONFIG)?.of(CONFIG_ENGINE)?;
    let number = engine.int(ENGINE_NUMBER)?;
    let captures = device().captures(handle.stream);
    if refuses("cudnn", number as u64, captures) {
        return Err(format!("engine {number} is told to refuse"));
    }
    let graph = Graph::new(engine.of(ENGINE_GRAPH)?)?;
    let bytes = plan.int(PLAN_WORKSPACE)? as usize;
    let workspace = pack.pointers(PACK_WORKSPACE)?.first().copied().unwrap_or(0);
    let at = pack.ints(PACK_UIDS)?.iter().copied().zip(pack.pointers(PACK_POINTERS)?.to_vec());
    // SAFETY: the caller's promise: numbers by value are on the host, and live.
    let run = unsafe { Run::new(graph, at.collect(), (workspace, bytes))? };
    let mut device = device();
    if device.error != 0 {
        return Err("the device failed before".into());
    }
    run.check_memory(&device.arena)?;
    device
        .enqueue(handle.stream, Op::Dnn(Arc::new(run)))
        .map_err(|status| format!("the stream refuses: {status}"))
}

exports! {
    fn cudnnGetVersion() -> usize {
        91_501
    }
    fn cudnnGetCudartVersion() -> usize {
        13_000
    }
    fn cudnnGetErrorString(status: Status) -> *const c_char {
        match status {
            0 => c"CUDNN_STATUS_SUCCESS",
            BAD_PARAM => c"CUDNN_STATUS_BAD_PARAM",
            NOT_SUPPORTED => c"CUDNN_STATUS_NOT_SUPPORTED",
            _ => c"CUDNN_STATUS_EXECUTION_FAILED",
        }
        .as_ptr()
    }
    fn cudnnGetLastErrorString(text: *mut c_char, bytes: usize) -> () {
        let last = CString::new(LAST.take()).unwrap_or_default();
        let last = last.as_bytes();
        let count = last.len().min(bytes.saturating_sub(1));
        for (i, &b) in last[..count].iter().chain(&[0]).enumerate() {
            text.add(i).write(b as c_char);
        }
    }
    fn cudnnCreate(handle: *mut *mut Handle) -> Status {
        if CURRENT.get() == 0 {
            return refuse(EXECUTION_FAILED, "no context is current".into());
        }
        LIVE.fetch_add(1, Ordering::Relaxed);
        *handle = Box::into_raw(Box::new(Handle { stream: 0 }));
        0
    }
    fn cudnnDestroy(handle: *mut Handle) -> Status {
        if handle.is_null() {
            return BAD_PARAM;
        }
        LIVE.fetch_sub(1, Ordering::Relaxed);
        drop(Box::from_raw(handle));
        0
    }
    fn cudnnSetStream(handle: *mut Handle, stream: u64) -> Status {
        match handle.as_mut() {
            Some(handle) => handle.stream = stream,
            None => return BAD_PARAM,
        }
        0
    }
    fn cudnnBackendCreateDescriptor(of: c_uint, descriptor: *mut *mut Descriptor) -> Status {
        if !kind::ALL.contains(&of) {
            return refuse(NOT_SUPPORTED, format!("descriptors of kind {of}"));
        }
        LIVE.fetch_add(1, Ordering::Relaxed);
        *descriptor = Box::into_raw(Box::new(Descriptor::new(of)));
        0
    }
    fn cudnnBackendDestroyDescriptor(descriptor: *mut Descriptor) -> Status {
        if descriptor.is_null() {
            return BAD_PARAM;
        }
        LIVE.fetch_sub(1, Ordering::Relaxed);
        drop(Box::from_raw(descriptor));
        0
    }
    fn cudnnBackendSetAttribute(
        descriptor: *mut Descriptor, name: c_uint, of: c_uint, count: i64, values: *const c_void,
    ) -> Status {
        match descriptor.as_mut() {
            Some(d) => answer(d.set(name, of, count, values)),
            None => BAD_PARAM,
        }
    }
    fn cudnnBackendGetAttribute(
        descriptor: *const Descriptor, name: c_uint, _of: c_uint, wanted: i64, count: *mut i64,
        values: *mut c_void,
    ) -> Status {
        match descriptor.as_ref() {
            Some(d) if d.finalised => answer(d.get(name, wanted, count, values)),
            _ => refuse(BAD_PARAM, "the descriptor is not finalised".into()),
        }
    }
    fn cudnnBackendFinalize(descriptor: *mut Descriptor) -> Status {
        match descriptor.as_mut() {
            Some(d) => answer(finalise(d)),
            None => BAD_PARAM,
        }
    }
    fn cudnnBackendExecute(handle: *const Handle, plan: *const Descriptor, pack: *const Descriptor) -> Status {
        let (Some(handle), Some(plan), Some(pack)) = (handle.as_ref(), plan.as_ref(), pack.as_ref()) else {
            return BAD_PARAM;
        };
        if plan.kind != kind::PLAN || pack.kind != kind::PACK || !plan.finalised || !pack.finalised {
            return refuse(BAD_PARAM, "a plan and its pack, finalised".into());
        }
        match execute(handle, plan, pack) {
            Ok(()) => 0,
            Err(text) => refuse(EXECUTION_FAILED, text),
        }
    }
}
