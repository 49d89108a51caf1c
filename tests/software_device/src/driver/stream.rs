//! Streams, events, capture and graphs.

use super::{call, exports, put};
use crate::device::{
    CAPTURE_INVALIDATED, CAPTURE_UNSUPPORTED, CAPTURED_EVENT, HostFunction, INVALID_HANDLE,
    INVALID_VALUE, LEGACY, Mark, NOT_READY, OUT_OF_MEMORY, Op, Status, Stream, stream_id,
};
use crate::refusals::told;
use std::ffi::{c_char, c_int, c_uint, c_ulonglong, c_void};
use std::sync::Arc;

/// `CU_EVENT_DISABLE_TIMING`
const DISABLE_TIMING: c_uint = 2;

exports! {
    fn cuStreamCreate(stream: *mut u64, flags: c_uint) -> Status {
        call(|d| {
            if flags > 1 {
                return Err(INVALID_VALUE);
            }
            let handle = d.handle();
            d.streams.insert(handle, Stream { blocking: flags == 0, ..Stream::default() });
            put(stream, handle)
        })
    }
    fn cuStreamCreateWithPriority(stream: *mut u64, flags: c_uint, _priority: c_int) -> Status {
        cuStreamCreate(stream, flags)
    }
    fn cuStreamGetPriority(_stream: u64, priority: *mut c_int) -> Status {
        call(|_| put(priority, 0))
    }
    fn cuStreamGetFlags(stream: u64, flags: *mut c_uint) -> Status {
        call(|d| {
            let blocking = d.stream(stream)?.blocking;
            put(flags, c_uint::from(!blocking))
        })
    }
    fn cuStreamDestroy_v2(stream: u64) -> Status {
        call(|d| {
            if stream_id(stream) == LEGACY {
                return Err(INVALID_HANDLE);
            }
            if d.stream(stream)?.capture.is_some() {
                return Err(CAPTURE_UNSUPPORTED);
            }
            d.drain(stream)?;
            d.streams.remove(&stream);
            Ok(())
        })
    }
    fn cuStreamSynchronize(stream: u64) -> Status {
        call(|d| {
            if d.stream(stream)?.capture.is_some() {
                return Err(CAPTURE_UNSUPPORTED);
            }
            d.drain(stream_id(stream))
        })
    }
    fn cuStreamQuery(stream: u64) -> Status {
        call(|d| {
            if d.stream(stream)?.capture.is_some() {
                return Err(CAPTURE_UNSUPPORTED);
            }
            d.poll_stream(stream_id(stream))
        })
    }
    fn cuStreamWaitEvent(stream: u64, event: u64, _flags: c_uint) -> Status {
        call(|d| d.wait_event(stream_id(stream), event))
    }
    fn cuLaunchHostFunc(stream: u64, function: Option<HostFunction>, data: *mut c_void) -> Status {
        call(|d| {
            let function = function.ok_or(INVALID_VALUE)?;
            d.enqueue(stream, Op::Host { function, data: data as u64 })
        })
    }
    fn cuStreamBeginCapture_v2(stream: u64, mode: c_uint) -> Status {
        call(|d| if mode > 2 { Err(INVALID_VALUE) } else { d.begin_capture(stream_id(stream), mode) })
    }
    fn cuStreamEndCapture(stream: u64, graph: *mut u64) -> Status {
        call(|d| {
            let captured = d.end_capture(stream_id(stream))?;
            if told(|w| w == "capture") {
                return Err(CAPTURE_INVALIDATED);
            }
            let handle = d.handle();
            d.graphs.insert(handle, Arc::new(captured));
            put(graph, handle)
        })
    }
    fn cuStreamIsCapturing(stream: u64, status: *mut c_uint) -> Status {
        call(|d| {
            let capturing = d.stream(stream)?.capture.is_some();
            put(status, c_uint::from(capturing))
        })
    }
    fn cuThreadExchangeStreamCaptureMode(mode: *mut c_uint) -> Status {
        call(|_| put(mode, 0))
    }
    fn cuStreamGetCaptureInfo_v3(
        stream: u64, status: *mut c_uint, id: *mut u64, graph: *mut u64, dependencies: *mut *const u64,
        edges: *mut *const c_void, count: *mut usize,
    ) -> Status {
        call(|d| {
            let capture = d.stream(stream)?.capture.clone();
            put(status, c_uint::from(capture.is_some()))?;
            if !id.is_null() {
                put(id, capture.map_or(0, |c| c.number))?;
            }
            // The nodes themselves are not given out.
            if graph.is_null() && dependencies.is_null() && edges.is_null() && count.is_null() {
                Ok(())
            } else {
                Err(crate::device::NOT_SUPPORTED)
            }
        })
    }
    fn cuGraphCreate(graph: *mut u64, _flags: c_uint) -> Status {
        call(|d| {
            let handle = d.handle();
            d.graphs.insert(handle, Arc::default());
            put(graph, handle)
        })
    }
    fn cuGraphGetNodes(graph: u64, nodes: *mut u64, count: *mut usize) -> Status {
        call(|d| {
            let all = d.graphs.get(&graph).ok_or(INVALID_HANDLE)?.nodes.len();
            if nodes.is_null() { put(count, all) } else { Err(crate::device::NOT_SUPPORTED) }
        })
    }
    fn cuGraphInstantiateWithFlags(exec: *mut u64, graph: u64, _flags: c_ulonglong) -> Status {
        call(|d| {
            let graph = d.graphs.get(&graph).ok_or(INVALID_HANDLE)?.clone();
            if told(|w| w == "instantiate") {
                return Err(OUT_OF_MEMORY);
            }
            let handle = d.handle();
            d.execs.insert(handle, graph);
            put(exec, handle)
        })
    }
    fn cuGraphUpload(exec: u64, stream: u64) -> Status {
        call(|d| {
            d.stream(stream)?;
            d.execs.get(&exec).map(|_| ()).ok_or(INVALID_HANDLE)
        })
    }
    fn cuGraphLaunch(exec: u64, stream: u64) -> Status {
        call(|d| {
            let graph = d.execs.get(&exec).ok_or(INVALID_HANDLE)?.clone();
            if d.stream(stream)?.capture.is_some() {
                return Err(crate::device::NOT_SUPPORTED);
            }
            d.enqueue(stream, Op::Graph(graph))
        })
    }
    fn cuGraphExecDestroy(exec: u64) -> Status {
        call(|d| d.execs.remove(&exec).map(|_| ()).ok_or(INVALID_HANDLE))
    }
    fn cuGraphDestroy(graph: u64) -> Status {
        call(|d| d.graphs.remove(&graph).map(|_| ()).ok_or(INVALID_HANDLE))
    }
    fn cuGraphDebugDotPrint(_graph: u64, _path: *const c_char, _flags: c_uint) -> Status {
        call(|_| Err(crate::device::NOT_SUPPORTED))
    }
    fn cuEventCreate(event: *mut u64, flags: c_uint) -> Status {
        call(|d| {
            let handle = d.handle();
            if flags & DISABLE_TIMING != 0 {
                d.untimed.insert(handle);
            }
            d.events.insert(handle, Mark::Never);
            put(event, handle)
        })
    }
    fn cuEventDestroy_v2(event: u64) -> Status {
        call(|d| d.events.remove(&event).map(|_| ()).ok_or(INVALID_HANDLE))
    }
    fn cuEventRecord(event: u64, stream: u64) -> Status {
        call(|d| d.record(event, stream_id(stream)))
    }
    fn cuEventRecordWithFlags(event: u64, stream: u64, flags: c_uint) -> Status {
        call(|d| if flags == 0 { d.record(event, stream_id(stream)) } else { Err(crate::device::NOT_SUPPORTED) })
    }
    fn cuEventQuery(event: u64) -> Status {
        call(|d| match d.events.get(&event).ok_or(INVALID_HANDLE)?.clone() {
            Mark::Never => Ok(()),
            Mark::Moment(ticket) => d.poll(&ticket),
            Mark::Captured(..) => Err(CAPTURED_EVENT),
        })
    }
    fn cuEventSynchronize(event: u64) -> Status {
        call(|d| match d.events.get(&event).ok_or(INVALID_HANDLE)?.clone() {
            Mark::Never => Ok(()),
            Mark::Moment(ticket) => d.wait(&ticket),
            Mark::Captured(..) => Err(CAPTURED_EVENT),
        })
    }
    fn cuEventElapsedTime(milliseconds: *mut f32, from: u64, to: u64) -> Status {
        call(|d| {
            let mut times = [None; 2];
            for (time, event) in times.iter_mut().zip([from, to]) {
                if d.untimed.contains(&event) {
                    return Err(INVALID_HANDLE);
                }
                *time = match d.events.get(&event).ok_or(INVALID_HANDLE)? {
                    Mark::Moment(t) => *t.when.lock().expect("nothing panics holding it"),
                    _ => return Err(INVALID_HANDLE),
                };
            }
            let [Some(from), Some(to)] = times else { return Err(NOT_READY) };
            let apart = d.milliseconds();
            put(milliseconds, if to < from { -apart } else { apart })
        })
    }
    fn cuEventElapsedTime_v2(milliseconds: *mut f32, from: u64, to: u64) -> Status {
        cuEventElapsedTime(milliseconds, from, to)
    }
}
