//! Errors, devices and contexts.

use super::{call, call_anywhere, exports, put};
use crate::device::{
    CURRENT, INVALID_DEVICE, INVALID_VALUE, NOT_SUPPORTED, Status, device, number,
};
use std::ffi::{c_char, c_int, c_uint, c_void};

/// What the device is called.
const NAME: &str = "Precast software device (not a GPU)";
/// The handle of its primary context.
const PRIMARY: u64 = 0x10;

const ERRORS: &[(Status, &str, &str)] = &[
    (0, "CUDA_SUCCESS\0", "no error\0"),
    (1, "CUDA_ERROR_INVALID_VALUE\0", "invalid argument\0"),
    (2, "CUDA_ERROR_OUT_OF_MEMORY\0", "out of memory\0"),
    (3, "CUDA_ERROR_NOT_INITIALIZED\0", "initialization error\0"),
    (101, "CUDA_ERROR_INVALID_DEVICE\0", "invalid device ordinal\0"),
    (200, "CUDA_ERROR_INVALID_IMAGE\0", "device kernel image is invalid\0"),
    (201, "CUDA_ERROR_INVALID_CONTEXT\0", "invalid device context\0"),
    (400, "CUDA_ERROR_INVALID_HANDLE\0", "invalid resource handle\0"),
    (500, "CUDA_ERROR_NOT_FOUND\0", "named symbol not found\0"),
    (600, "CUDA_ERROR_NOT_READY\0", "device not ready\0"),
    (700, "CUDA_ERROR_ILLEGAL_ADDRESS\0", "an illegal memory access was encountered\0"),
    (701, "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES\0", "too many resources requested for launch\0"),
    (719, "CUDA_ERROR_LAUNCH_FAILED\0", "unspecified launch failure\0"),
    (801, "CUDA_ERROR_NOT_SUPPORTED\0", "operation not supported\0"),
    (
        900,
        "CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED\0",
        "operation not permitted when stream is capturing\0",
    ),
    (
        901,
        "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED\0",
        "operation failed due to a previous error during capture\0",
    ),
    (903, "CUDA_ERROR_STREAM_CAPTURE_UNMATCHED\0", "capture was not initiated in this stream\0"),
    (904, "CUDA_ERROR_STREAM_CAPTURE_UNJOINED\0", "capturing stream has unjoined work\0"),
    (
        905,
        "CUDA_ERROR_STREAM_CAPTURE_ISOLATION\0",
        "dependency created on uncaptured work in another stream\0",
    ),
    (
        907,
        "CUDA_ERROR_CAPTURED_EVENT\0",
        "operation not permitted on an event last recorded in a capturing stream\0",
    ),
];

unsafe fn error_text(error: Status, to: *mut *const c_char, name: bool) -> Status {
    let found = ERRORS.iter().find(|e| e.0 == error);
    let text = found.map(|e| if name { e.1 } else { e.2 }.as_ptr().cast());
    // SAFETY: the caller's promise.
    match unsafe { put(to, text.unwrap_or(std::ptr::null())) } {
        Err(status) => status,
        Ok(()) if text.is_none() => INVALID_VALUE,
        Ok(()) => 0,
    }
}

fn attribute(which: c_uint) -> Option<c_int> {
    Some(match which {
        1 => 1024,        // threads of a block
        2 | 3 => 1024,    // a block in x and y
        4 => 64,          // a block in z
        5 => 0x7fff_ffff, // a grid in x
        6 | 7 => 65535,   // a grid in y and z
        8 => 48 << 10,    // shared memory of a block without opting in
        9 => 64 << 10,    // constant memory
        10 => 32,         // lanes of a warp
        12 => 65536,      // registers of a block
        13 => 1_000_000,  // clock, kHz
        16 => 4,          // multiprocessors: few, so that grids are small
        17 => 0,          // no time limit
        18 => 0,          // not integrated
        19 => 1,          // maps host memory
        31 => 1,          // concurrent kernels
        32 => 0,          // ECC
        33..=35 => 0,     // PCI
        36 => 1_000_000,  // memory clock, kHz
        37 => 256,        // bus width
        38 => 1 << 20,    // second-level cache
        39 => 2048,       // threads of a multiprocessor
        40 => 2,          // copy engines
        41 => 1,          // unified addresses
        75 => 9,          // compute capability
        76 => 0,
        78 => 1,         // stream priorities
        81 => 228 << 10, // shared memory of a multiprocessor
        82 => 65536,     // registers of a multiprocessor
        83 => 0,         // managed memory
        90 => 0,         // no concurrent managed access
        95 => 0,         // no cooperative launch
        97 => 227 << 10, // shared memory of a block, opted in
        106 => 32,       // blocks of a multiprocessor
        115 => 1,        // memory pools
        _ => return None,
    })
}

exports! {
    fn cuInit(flags: c_uint) -> Status {
        if flags != 0 {
            return INVALID_VALUE;
        }
        device().initialised = true;
        0
    }
    fn cuDriverGetVersion(version: *mut c_int) -> Status {
        let told = number("PRECAST_SOFTWARE_DEVICE_DRIVER", 13_000);
        put(version, told as c_int).err().unwrap_or(0)
    }
    fn cuGetErrorName(error: Status, text: *mut *const c_char) -> Status {
        error_text(error, text, true)
    }
    fn cuGetErrorString(error: Status, text: *mut *const c_char) -> Status {
        error_text(error, text, false)
    }
    fn cuDeviceGetCount(count: *mut c_int) -> Status {
        call_anywhere(|_| put(count, 1))
    }
    fn cuDeviceGet(device: *mut c_int, ordinal: c_int) -> Status {
        call_anywhere(|_| if ordinal == 0 { put(device, 0) } else { Err(INVALID_DEVICE) })
    }
    fn cuDeviceGetName(name: *mut c_char, len: c_int, device: c_int) -> Status {
        call_anywhere(|_| {
            if device != 0 || len < 1 || name.is_null() {
                return Err(INVALID_VALUE);
            }
            let bytes = &NAME.as_bytes()[..NAME.len().min(len as usize - 1)];
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), name.cast(), bytes.len());
            *name.add(bytes.len()) = 0;
            Ok(())
        })
    }
    fn cuDeviceGetUuid(uuid: *mut [u8; 16], _device: c_int) -> Status {
        call_anywhere(|_| put(uuid, *b"software device."))
    }
    fn cuDeviceGetUuid_v2(uuid: *mut [u8; 16], _device: c_int) -> Status {
        call_anywhere(|_| put(uuid, *b"software device."))
    }
    fn cuDeviceTotalMem_v2(bytes: *mut usize, _device: c_int) -> Status {
        call_anywhere(|d| put(bytes, d.arena.info().0))
    }
    fn cuDeviceGetAttribute(value: *mut c_int, which: c_uint, _device: c_int) -> Status {
        call_anywhere(|d| match attribute(which) {
            Some(v) => put(value, v),
            None => {
                let text = format!("device attribute {which} is not known to the software device");
                Err(d.refuse(INVALID_VALUE, text))
            }
        })
    }
    fn cuDevicePrimaryCtxRetain(context: *mut u64, _device: c_int) -> Status {
        call_anywhere(|_| put(context, PRIMARY))
    }
    fn cuDevicePrimaryCtxRelease_v2(_device: c_int) -> Status {
        call_anywhere(|_| Ok(()))
    }
    fn cuDevicePrimaryCtxGetState(_device: c_int, flags: *mut c_uint, active: *mut c_int) -> Status {
        call_anywhere(|_| put(flags, 0).and_then(|()| put(active, 1)))
    }
    fn cuDevicePrimaryCtxSetFlags_v2(_device: c_int, _flags: c_uint) -> Status {
        call_anywhere(|_| Ok(()))
    }
    fn cuCtxCreate_v4(context: *mut u64, _params: *mut c_void, _flags: c_uint, _device: c_int) -> Status {
        call_anywhere(|_| {
            CURRENT.set(PRIMARY);
            put(context, PRIMARY)
        })
    }
    fn cuCtxDestroy_v2(_context: u64) -> Status {
        call_anywhere(|_| Ok(()))
    }
    fn cuCtxSetCurrent(context: u64) -> Status {
        call_anywhere(|_| {
            CURRENT.set(context);
            Ok(())
        })
    }
    fn cuCtxPushCurrent_v2(context: u64) -> Status {
        call_anywhere(|_| {
            CURRENT.set(context);
            Ok(())
        })
    }
    fn cuCtxPopCurrent_v2(context: *mut u64) -> Status {
        call_anywhere(|_| put(context, CURRENT.get()))
    }
    fn cuCtxGetCurrent(context: *mut u64) -> Status {
        call_anywhere(|_| put(context, CURRENT.get()))
    }
    fn cuCtxGetDevice(device: *mut c_int) -> Status {
        call(|_| put(device, 0))
    }
    fn cuCtxGetApiVersion(_context: u64, version: *mut c_uint) -> Status {
        call(|_| put(version, 13000))
    }
    fn cuCtxSynchronize() -> Status {
        call(|d| {
            if d.streams.values().any(|s| s.capture.is_some()) {
                return Err(crate::device::CAPTURE_UNSUPPORTED);
            }
            d.drain_all()
        })
    }
    fn cuCtxSetFlags(_flags: c_uint) -> Status {
        call(|_| Ok(()))
    }
    fn cuCtxGetFlags(flags: *mut c_uint) -> Status {
        call(|_| put(flags, 0))
    }
    fn cuCtxSetLimit(_limit: c_uint, _value: usize) -> Status {
        call(|_| Err(NOT_SUPPORTED))
    }
    fn cuCtxGetLimit(value: *mut usize, _limit: c_uint) -> Status {
        call(|_| put(value, 0))
    }
    fn cuCtxSetCacheConfig(_config: c_uint) -> Status {
        call(|_| Ok(()))
    }
    fn cuCtxGetCacheConfig(config: *mut c_uint) -> Status {
        call(|_| put(config, 0))
    }
    fn cuCtxGetStreamPriorityRange(least: *mut c_int, greatest: *mut c_int) -> Status {
        call(|_| put(least, 0).and_then(|()| put(greatest, -5)))
    }
    fn cuProfilerStart() -> Status {
        call(|_| Ok(()))
    }
    fn cuProfilerStop() -> Status {
        call(|_| Ok(()))
    }
}
