//! Modules, their kernels, and launches.

use super::{call, exports, put};
use crate::device::{
    Device, Function, INVALID_HANDLE, INVALID_IMAGE, INVALID_VALUE, LAUNCH_OUT_OF_RESOURCES,
    Launch, Module, NOT_FOUND, NOT_SUPPORTED, Op, Status,
};
use crate::nvrtc::{MAGIC, unpack};
use std::ffi::{CStr, c_char, c_int, c_uint, c_void};
use std::sync::Arc;

/// Shared memory of a block without opting in, and with.
const SHARED: u32 = 48 << 10;
const SHARED_OPTED_IN: u32 = 227 << 10;

unsafe fn load(d: &mut Device, image: *const c_void) -> Result<u64, Status> {
    if image.is_null() {
        return Err(INVALID_VALUE);
    }
    let image: *const u8 = image.cast();
    // SAFETY: an image is at least as long as what tells its length.
    let head = unsafe { std::slice::from_raw_parts(image, MAGIC.len()) };
    if head != MAGIC {
        let text = "the image was not made by the NVRTC of the software device".to_string();
        return Err(d.refuse(INVALID_IMAGE, text));
    }
    // SAFETY: an image with this head holds its length.
    let library = unsafe { unpack(image) }.map_err(|e| d.refuse(INVALID_IMAGE, e))?;
    let handle = d.handle();
    d.modules.insert(handle, Module { library: Arc::new(library) });
    Ok(handle)
}

unsafe fn find(d: &mut Device, module: u64, name: *const c_char) -> Result<u64, Status> {
    if name.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: the caller's promise.
    let name = unsafe { CStr::from_ptr(name) }.to_str().map_err(|_| NOT_FOUND)?;
    let library = d.modules.get(&module).ok_or(INVALID_HANDLE)?.library.clone();
    let kernel = library.kernel(name).ok_or(NOT_FOUND)?;
    let sizes = kernel.parameter_sizes();
    let max_threads = kernel.max_threads().clamp(1, 1024);
    let handle = d.handle();
    d.functions.insert(
        handle,
        Function { kernel, name: name.into(), sizes, max_threads, dynamic_shared: SHARED },
    );
    Ok(handle)
}

struct Shape {
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
}

unsafe fn launch(
    d: &mut Device,
    function: u64,
    shape: Shape,
    stream: u64,
    params: *mut *mut c_void,
) -> Result<(), Status> {
    let f = d.functions.get(&function).ok_or(INVALID_HANDLE)?;
    let threads = shape.block.iter().map(|&b| u64::from(b)).product::<u64>();
    let name = f.name.clone();
    let wrong = if shape.grid.contains(&0) || threads == 0 {
        Some((INVALID_VALUE, "an empty grid or block".to_string()))
    } else if shape.grid[1] > 65535 || shape.grid[2] > 65535 || shape.grid[0] > 0x7fff_ffff {
        Some((INVALID_VALUE, format!("a grid of {:?}", shape.grid)))
    } else if threads > 1024 || shape.block[2] > 64 {
        Some((INVALID_VALUE, format!("a block of {:?}", shape.block)))
    } else if threads > u64::from(f.max_threads) {
        Some((LAUNCH_OUT_OF_RESOURCES, format!("{threads} threads, bounded to {}", f.max_threads)))
    } else if shape.shared > f.dynamic_shared {
        let text = format!(
            "{} bytes of dynamic shared memory, allowed {}",
            shape.shared, f.dynamic_shared
        );
        Some((INVALID_VALUE, text))
    } else if params.is_null() && !f.sizes.is_empty() {
        Some((INVALID_VALUE, "no arguments".to_string()))
    } else {
        None
    };
    if let Some((code, text)) = wrong {
        return Err(d.refuse(code, format!("launching `{name}`: {text}")));
    }
    let words = f.sizes.iter().map(|s| s.div_ceil(16) as usize).sum();
    let mut args = vec![0u128; words];
    let mut starts = Vec::with_capacity(f.sizes.len());
    let mut at = 0;
    for (i, &size) in f.sizes.iter().enumerate() {
        // SAFETY: `params` holds a pointer for every parameter, to a value of its size.
        unsafe {
            let from: *const u8 = (*params.add(i)).cast();
            std::ptr::copy_nonoverlapping(from, args[at..].as_mut_ptr().cast(), size as usize);
        }
        starts.push(at);
        at += size.div_ceil(16) as usize;
    }
    let Shape { grid, block, shared } = shape;
    let launch = Launch { kernel: f.kernel, name, grid, block, shared, args, starts };
    d.enqueue(stream, Op::Launch(Arc::new(launch)))
}

/// `CUlaunchConfig`
#[repr(C)]
pub struct LaunchConfig {
    grid: [c_uint; 3],
    block: [c_uint; 3],
    shared: c_uint,
    stream: u64,
    attributes: *mut c_void,
    count: c_uint,
}

exports! {
    fn cuModuleLoadData(module: *mut u64, image: *const c_void) -> Status {
        call(|d| load(d, image).and_then(|m| put(module, m)))
    }
    fn cuModuleLoadDataEx(
        module: *mut u64, image: *const c_void, _count: c_uint, _options: *mut c_uint, _values: *mut *mut c_void,
    ) -> Status {
        call(|d| load(d, image).and_then(|m| put(module, m)))
    }
    fn cuLibraryLoadData(
        library: *mut u64, image: *const c_void, _jit: *mut c_uint, _jit_values: *mut *mut c_void, _jit_count: c_uint,
        _options: *mut c_uint, _values: *mut *mut c_void, _count: c_uint,
    ) -> Status {
        call(|d| load(d, image).and_then(|m| put(library, m)))
    }
    fn cuModuleUnload(module: u64) -> Status {
        call(|d| d.modules.remove(&module).map(|_| ()).ok_or(INVALID_HANDLE))
    }
    fn cuLibraryUnload(library: u64) -> Status {
        cuModuleUnload(library)
    }
    fn cuModuleGetLoadingMode(mode: *mut c_uint) -> Status {
        call(|_| put(mode, 1))
    }
    fn cuModuleGetFunction(function: *mut u64, module: u64, name: *const c_char) -> Status {
        call(|d| find(d, module, name).and_then(|f| put(function, f)))
    }
    fn cuLibraryGetKernel(kernel: *mut u64, library: u64, name: *const c_char) -> Status {
        call(|d| find(d, library, name).and_then(|f| put(kernel, f)))
    }
    fn cuKernelGetFunction(function: *mut u64, kernel: u64) -> Status {
        call(|_| put(function, kernel))
    }
    fn cuFuncLoad(function: u64) -> Status {
        call(|d| d.functions.get(&function).map(|_| ()).ok_or(INVALID_HANDLE))
    }
    fn cuModuleGetGlobal_v2(_pointer: *mut u64, _bytes: *mut usize, _module: u64, _name: *const c_char) -> Status {
        call(|_| Err(NOT_SUPPORTED))
    }
    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: u64) -> Status {
        call(|d| {
            let f = d.functions.get(&function).ok_or(INVALID_HANDLE)?;
            let v = match attribute {
                0 => f.max_threads as c_int,
                1 => f.kernel.static_shared() as c_int,
                2 | 3 | 7 => 0, // constant and local memory
                4 => 32,        // registers
                5 | 6 => 90,    // architecture
                8 => f.dynamic_shared as c_int,
                9 => -1,        // preferred share of shared memory
                _ => return Err(INVALID_VALUE),
            };
            put(value, v)
        })
    }
    fn cuFuncSetAttribute(function: u64, attribute: c_uint, value: c_int) -> Status {
        call(|d| {
            let f = d.functions.get_mut(&function).ok_or(INVALID_HANDLE)?;
            match attribute {
                8 if value >= 0 && value as u32 <= SHARED_OPTED_IN => f.dynamic_shared = value as u32,
                9 => {}
                _ => return Err(INVALID_VALUE),
            }
            Ok(())
        })
    }
    fn cuFuncSetCacheConfig(function: u64, _config: c_uint) -> Status {
        call(|d| d.functions.get(&function).map(|_| ()).ok_or(INVALID_HANDLE))
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessor(
        blocks: *mut c_int, _function: u64, threads: c_int, shared: usize,
    ) -> Status {
        call(|_| {
            let by_shared = if shared == 0 { 32 } else { (228 << 10) / shared.max(1024) };
            put(blocks, (2048 / threads.max(1)).min(32).min(by_shared as c_int))
        })
    }
    fn cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags(
        blocks: *mut c_int, function: u64, threads: c_int, shared: usize, _flags: c_uint,
    ) -> Status {
        cuOccupancyMaxActiveBlocksPerMultiprocessor(blocks, function, threads, shared)
    }
    fn cuLaunchKernel(
        function: u64, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint, block_y: c_uint,
        block_z: c_uint, shared: c_uint, stream: u64, params: *mut *mut c_void, extra: *mut *mut c_void,
    ) -> Status {
        call(|d| {
            if !extra.is_null() {
                return Err(NOT_SUPPORTED);
            }
            let shape = Shape { grid: [grid_x, grid_y, grid_z], block: [block_x, block_y, block_z], shared };
            launch(d, function, shape, stream, params)
        })
    }
    /// Attributes of a launch (clusters, programmatic dependencies) are not supported.
    fn cuLaunchKernelEx(
        config: *const LaunchConfig, function: u64, params: *mut *mut c_void, extra: *mut *mut c_void,
    ) -> Status {
        call(|d| {
            if config.is_null() {
                return Err(INVALID_VALUE);
            }
            let c = &*config;
            if c.count != 0 || !extra.is_null() {
                return Err(NOT_SUPPORTED);
            }
            launch(d, function, Shape { grid: c.grid, block: c.block, shared: c.shared }, c.stream, params)
        })
    }
}
