//! Allocations, copies and fills.

use super::{call, exports, put};
use crate::device::{
    CAPTURE_UNSUPPORTED, Device, INVALID_VALUE, LEGACY, NOT_FOUND, OUT_OF_MEMORY, Op, Status,
    stream_id,
};
use std::ffi::{c_int, c_uint, c_ushort, c_void};
use std::sync::Arc;

/// The handle of the one memory pool.
const POOL: u64 = 0x20;

fn allocate(d: &mut Device, bytes: usize) -> Result<u64, Status> {
    if bytes == 0 {
        return Err(INVALID_VALUE);
    }
    if d.strict_capture() {
        return Err(CAPTURE_UNSUPPORTED);
    }
    d.arena.allocate(bytes).ok_or(OUT_OF_MEMORY)
}

/// Whether a range of the host is page-locked.
fn is_pinned(d: &Device, at: u64, bytes: usize) -> bool {
    let found = d.pinned.range(..=at).next_back();
    found.is_some_and(|(start, len)| {
        at - start <= *len as u64 && bytes as u64 <= *len as u64 - (at - start)
    })
}

/// The asynchronous copy of all directions. Pageable memory is read at once, and written before
/// the call returns; page-locked memory is read and written when the copy runs.
fn copy(d: &mut Device, to: u64, from: u64, bytes: usize, stream: u64) -> Result<(), Status> {
    d.check_range(to, bytes, "the target of a copy")?;
    d.check_range(from, bytes, "the source of a copy")?;
    if bytes == 0 {
        return Ok(());
    }
    let capturing = d.stream(stream)?.capture.is_some();
    let host = |d: &Device, at: u64| !d.arena.is_device(at) && !is_pinned(d, at, bytes);
    if host(d, from) && d.arena.is_device(to) && !capturing {
        // SAFETY: the caller promises `bytes` readable bytes.
        let data: Arc<[u8]> =
            unsafe { std::slice::from_raw_parts(from as *const u8, bytes) }.into();
        return d.enqueue(stream, Op::Write { to, data });
    }
    d.enqueue(stream, Op::Copy { to, from, bytes })?;
    if host(d, to) && !capturing {
        d.drain(stream_id(stream))?;
    }
    Ok(())
}

/// A copy that the caller waits for, in the default stream.
fn copy_now(d: &mut Device, to: u64, from: u64, bytes: usize) -> Result<(), Status> {
    copy(d, to, from, bytes, LEGACY)?;
    d.drain(LEGACY)
}

fn set(
    d: &mut Device,
    to: u64,
    width: usize,
    value: u32,
    count: usize,
    stream: u64,
) -> Result<(), Status> {
    d.check_range(to, width * count, "a fill")?;
    if !d.arena.is_device(to) || !to.is_multiple_of(width as u64) {
        return Err(INVALID_VALUE);
    }
    if count == 0 {
        return Ok(());
    }
    d.enqueue(stream, Op::Set { to, width, value, count })
}

exports! {
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status {
        call(|d| put(total, d.arena.info().0).and_then(|()| put(free, d.arena.info().1)))
    }
    fn cuMemAlloc_v2(pointer: *mut u64, bytes: usize) -> Status {
        call(|d| allocate(d, bytes).and_then(|at| put(pointer, at)))
    }
    /// Waits for everything, as the driver does.
    fn cuMemFree_v2(pointer: u64) -> Status {
        call(|d| {
            if pointer == 0 {
                return Ok(());
            }
            if d.strict_capture() {
                return Err(CAPTURE_UNSUPPORTED);
            }
            d.drain_all()?;
            d.free(pointer)
        })
    }
    fn cuMemAllocAsync(pointer: *mut u64, bytes: usize, stream: u64) -> Status {
        call(|d| {
            d.stream(stream)?;
            allocate(d, bytes).and_then(|at| put(pointer, at))
        })
    }
    fn cuMemAllocFromPoolAsync(pointer: *mut u64, bytes: usize, _pool: u64, stream: u64) -> Status {
        call(|d| {
            d.stream(stream)?;
            allocate(d, bytes).and_then(|at| put(pointer, at))
        })
    }
    fn cuMemFreeAsync(pointer: u64, stream: u64) -> Status {
        call(|d| {
            if pointer == 0 {
                return Ok(());
            }
            if d.stream(stream)?.capture.is_some() {
                return Err(CAPTURE_UNSUPPORTED);
            }
            d.enqueue(stream, Op::Free(pointer))
        })
    }
    fn cuDeviceGetDefaultMemPool(pool: *mut u64, _device: c_int) -> Status {
        call(|_| put(pool, POOL))
    }
    fn cuDeviceGetMemPool(pool: *mut u64, _device: c_int) -> Status {
        call(|_| put(pool, POOL))
    }
    fn cuDeviceSetMemPool(_device: c_int, _pool: u64) -> Status {
        call(|_| Ok(()))
    }
    fn cuMemPoolSetAttribute(_pool: u64, _attribute: c_uint, _value: *mut c_void) -> Status {
        call(|_| Ok(()))
    }
    fn cuMemPoolGetAttribute(_pool: u64, _attribute: c_uint, value: *mut u64) -> Status {
        call(|_| put(value, 0))
    }
    fn cuMemPoolTrimTo(_pool: u64, _keep: usize) -> Status {
        call(|_| Ok(()))
    }
    fn cuMemHostAlloc(pointer: *mut *mut c_void, bytes: usize, _flags: c_uint) -> Status {
        call(|d| {
            let mut at = std::ptr::null_mut();
            if bytes == 0 || libc::posix_memalign(&raw mut at, 4096, bytes) != 0 {
                return Err(if bytes == 0 { INVALID_VALUE } else { OUT_OF_MEMORY });
            }
            std::ptr::write_bytes(at.cast::<u8>(), 0xff, bytes);
            d.pinned.insert(at as u64, bytes);
            put(pointer, at)
        })
    }
    fn cuMemAllocHost_v2(pointer: *mut *mut c_void, bytes: usize) -> Status {
        cuMemHostAlloc(pointer, bytes, 0)
    }
    /// Waits for everything, since a copy may still read the memory.
    fn cuMemFreeHost(pointer: *mut c_void) -> Status {
        call(|d| {
            d.drain_all()?;
            d.pinned.remove(&(pointer as u64)).ok_or(INVALID_VALUE)?;
            libc::free(pointer);
            Ok(())
        })
    }
    fn cuMemHostGetDevicePointer_v2(_device: *mut u64, _host: *mut c_void, _flags: c_uint) -> Status {
        call(|_| Err(crate::device::NOT_SUPPORTED))
    }
    fn cuMemcpyHtoD_v2(to: u64, from: *const c_void, bytes: usize) -> Status {
        call(|d| copy_now(d, to, from as u64, bytes))
    }
    fn cuMemcpyDtoH_v2(to: *mut c_void, from: u64, bytes: usize) -> Status {
        call(|d| copy_now(d, to as u64, from, bytes))
    }
    fn cuMemcpyDtoD_v2(to: u64, from: u64, bytes: usize) -> Status {
        call(|d| copy(d, to, from, bytes, LEGACY))
    }
    fn cuMemcpy(to: u64, from: u64, bytes: usize) -> Status {
        call(|d| copy_now(d, to, from, bytes))
    }
    fn cuMemcpyHtoDAsync_v2(to: u64, from: *const c_void, bytes: usize, stream: u64) -> Status {
        call(|d| copy(d, to, from as u64, bytes, stream))
    }
    fn cuMemcpyDtoHAsync_v2(to: *mut c_void, from: u64, bytes: usize, stream: u64) -> Status {
        call(|d| copy(d, to as u64, from, bytes, stream))
    }
    fn cuMemcpyDtoDAsync_v2(to: u64, from: u64, bytes: usize, stream: u64) -> Status {
        call(|d| copy(d, to, from, bytes, stream))
    }
    fn cuMemcpyAsync(to: u64, from: u64, bytes: usize, stream: u64) -> Status {
        call(|d| copy(d, to, from, bytes, stream))
    }
    fn cuMemsetD8_v2(to: u64, value: u8, count: usize) -> Status {
        call(|d| set(d, to, 1, value.into(), count, LEGACY))
    }
    fn cuMemsetD16_v2(to: u64, value: c_ushort, count: usize) -> Status {
        call(|d| set(d, to, 2, value.into(), count, LEGACY))
    }
    fn cuMemsetD32_v2(to: u64, value: c_uint, count: usize) -> Status {
        call(|d| set(d, to, 4, value, count, LEGACY))
    }
    fn cuMemsetD8Async(to: u64, value: u8, count: usize, stream: u64) -> Status {
        call(|d| set(d, to, 1, value.into(), count, stream))
    }
    fn cuMemsetD16Async(to: u64, value: c_ushort, count: usize, stream: u64) -> Status {
        call(|d| set(d, to, 2, value.into(), count, stream))
    }
    fn cuMemsetD32Async(to: u64, value: c_uint, count: usize, stream: u64) -> Status {
        call(|d| set(d, to, 4, value, count, stream))
    }
    fn cuMemGetAddressRange_v2(base: *mut u64, bytes: *mut usize, pointer: u64) -> Status {
        call(|d| {
            let (start, len) = d.arena.around(pointer).ok_or(NOT_FOUND)?;
            if !base.is_null() {
                put(base, start)?;
            }
            if !bytes.is_null() {
                put(bytes, len)?;
            }
            Ok(())
        })
    }
    /// Of the attributes only the kind of memory (2) is known: 1 host, 2 device.
    fn cuPointerGetAttribute(data: *mut c_void, attribute: c_uint, pointer: u64) -> Status {
        call(|d| {
            let kind = if d.arena.around(pointer).is_some() {
                2u32
            } else if is_pinned(d, pointer, 1) {
                1
            } else {
                return Err(INVALID_VALUE);
            };
            if attribute == 2 { put(data.cast(), kind) } else { Err(INVALID_VALUE) }
        })
    }
}
