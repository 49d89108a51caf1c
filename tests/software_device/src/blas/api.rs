//! The functions of cuBLASLt, by the names and types of NVIDIA's header.

use super::product::{Desc, F32, Layout, Product, Scalar, check};
use super::{EXECUTION_FAILED, INVALID_VALUE, NOT_INITIALIZED, NOT_SUPPORTED, Status};
use crate::device::{CURRENT, Op, device};
use crate::driver::exports;
use crate::refusals::refuses;
use std::ffi::{c_char, c_int, c_uint, c_void};
use std::sync::Arc;

/// How many candidates there are for every product.
const CANDIDATES: usize = 3;
/// In the first word of an algorithm, before its number.
const ALGORITHM: u64 = 0x5afe_b1a5_0000_0000;
/// What the candidates but the first want as workspace.
const WORKSPACE: usize = 4096;

/// `cublasLtMatmulAlgo_t`
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Algorithm([u64; 8]);

/// `cublasLtMatmulHeuristicResult_t`
#[repr(C)]
pub struct Candidate {
    algorithm: Algorithm,
    workspace: usize,
    status: Status,
    waves: f32,
    reserved: [c_int; 4],
}

/// `cublasLtMatmulPreference_t`
pub struct Preference {
    workspace: usize,
}

unsafe fn number(value: *const c_void, bytes: usize) -> Option<i64> {
    if value.is_null() {
        return None;
    }
    // SAFETY: the caller gives that many bytes.
    unsafe {
        match bytes {
            4 => Some(i64::from(value.cast::<i32>().read_unaligned())),
            8 => Some(value.cast::<i64>().read_unaligned()),
            _ => None,
        }
    }
}

fn set_desc(desc: &mut Desc, attribute: c_uint, v: i64) -> Result<(), Status> {
    match attribute {
        0 => desc.compute = v as u32,
        1 => desc.scale = v as u32,
        2 => desc.pointer_mode = v as u32,
        // 0 as it is, 1 transposed, 2 transposed (real numbers).
        3 => desc.transpose_a = v != 0,
        4 => desc.transpose_b = v != 0,
        5 if v == 0 => {}
        7 => desc.epilogue = v as u32,
        8 => desc.bias = v as u64,
        10 => desc.bias_stride = v,
        11 => desc.aux = v as u64,
        12 => desc.aux_ld = v,
        13 => desc.aux_stride = v,
        15 | 25 => {}
        22 => desc.aux_dtype = Some(v as u32),
        26 => desc.bias_dtype = Some(v as u32),
        17 => desc.scales[0] = v as u64,
        18 => desc.scales[1] = v as u64,
        19..=21 | 23 | 24 if v == 0 => {}
        _ => return Err(NOT_SUPPORTED),
    }
    Ok(())
}

fn set_layout(layout: &mut Layout, attribute: c_uint, v: i64) -> Result<(), Status> {
    match attribute {
        0 => layout.dtype = v as u32,
        1 => layout.order = v as u32,
        2 => layout.rows = v as u64,
        3 => layout.columns = v as u64,
        4 => layout.ld = v,
        5 => layout.batch = v as i32,
        6 => layout.stride = v,
        _ => return Err(NOT_SUPPORTED),
    }
    Ok(())
}

fn sizes_of_desc(attribute: c_uint) -> usize {
    if matches!(attribute, 8 | 10..=14 | 17..=21 | 23 | 24) { 8 } else { 4 }
}

fn algorithm(number: u64) -> Algorithm {
    let mut words = [0; 8];
    words[0] = ALGORITHM | number;
    Algorithm(words)
}

fn wanted_workspace(number: u64) -> usize {
    if number == 0 { 0 } else { WORKSPACE }
}

unsafe fn chosen(algorithm: *const Algorithm) -> Result<u64, Status> {
    if algorithm.is_null() {
        return Ok(0);
    }
    // SAFETY: not null; the caller's promise.
    let word = unsafe { algorithm.read_unaligned() }.0[0];
    let number = word ^ ALGORITHM;
    if number < CANDIDATES as u64 { Ok(number) } else { Err(INVALID_VALUE) }
}

/// References to a description and four layouts, where none is null.
macro_rules! borrow {
    ($desc:expr, $($l:expr),*) => {
        match ($desc.as_ref(), $($l.as_ref()),*) {
            (Some(desc), Some(a), Some(b), Some(c), Some(d)) => (desc, [a, b, c, d]),
            _ => return INVALID_VALUE,
        }
    };
}

exports! {
    fn cublasLtGetVersion() -> usize {
        130_000
    }
    fn cublasLtGetCudartVersion() -> usize {
        13_000
    }
    fn cublasLtGetStatusName(_status: Status) -> *const c_char {
        c"CUBLAS_STATUS of the software device".as_ptr()
    }
    fn cublasLtGetStatusString(_status: Status) -> *const c_char {
        c"a status of the software device".as_ptr()
    }
    fn cublasLtCreate(handle: *mut u64) -> Status {
        if handle.is_null() {
            return INVALID_VALUE;
        }
        if CURRENT.get() == 0 {
            return NOT_INITIALIZED;
        }
        *handle = device().handle();
        0
    }
    fn cublasLtDestroy(handle: u64) -> Status {
        if handle == 0 { INVALID_VALUE } else { 0 }
    }
    fn cublasLtMatmulDescCreate(desc: *mut *mut Desc, compute: c_uint, scale: c_uint) -> Status {
        *desc = Box::into_raw(Box::new(Desc {
            compute, scale, pointer_mode: 0, transpose_a: false, transpose_b: false, epilogue: 1, bias: 0,
            bias_dtype: None, bias_stride: 0, aux: 0, aux_ld: 0, aux_dtype: None, aux_stride: 0,
            scales: [0; 2],
        }));
        0
    }
    fn cublasLtMatmulDescDestroy(desc: *mut Desc) -> Status {
        if desc.is_null() {
            return INVALID_VALUE;
        }
        drop(Box::from_raw(desc));
        0
    }
    fn cublasLtMatmulDescSetAttribute(desc: *mut Desc, attribute: c_uint, value: *const c_void, bytes: usize) -> Status {
        let (Some(desc), Some(v)) = (desc.as_mut(), number(value, bytes)) else { return INVALID_VALUE };
        if bytes != sizes_of_desc(attribute) {
            return INVALID_VALUE;
        }
        set_desc(desc, attribute, v).err().unwrap_or(0)
    }
    fn cublasLtMatrixLayoutCreate(layout: *mut *mut Layout, dtype: c_uint, rows: u64, columns: u64, ld: i64) -> Status {
        *layout = Box::into_raw(Box::new(Layout { dtype, rows, columns, ld, order: 0, batch: 1, stride: 0 }));
        0
    }
    fn cublasLtMatrixLayoutDestroy(layout: *mut Layout) -> Status {
        if layout.is_null() {
            return INVALID_VALUE;
        }
        drop(Box::from_raw(layout));
        0
    }
    fn cublasLtMatrixLayoutSetAttribute(layout: *mut Layout, attribute: c_uint, value: *const c_void, bytes: usize) -> Status {
        let (Some(layout), Some(v)) = (layout.as_mut(), number(value, bytes)) else { return INVALID_VALUE };
        if bytes != if matches!(attribute, 2 | 3 | 4 | 6 | 7) { 8 } else { 4 } {
            return INVALID_VALUE;
        }
        set_layout(layout, attribute, v).err().unwrap_or(0)
    }
    fn cublasLtMatmulPreferenceCreate(preference: *mut *mut Preference) -> Status {
        *preference = Box::into_raw(Box::new(Preference { workspace: 0 }));
        0
    }
    fn cublasLtMatmulPreferenceDestroy(preference: *mut Preference) -> Status {
        if preference.is_null() {
            return INVALID_VALUE;
        }
        drop(Box::from_raw(preference));
        0
    }
    fn cublasLtMatmulPreferenceSetAttribute(
        preference: *mut Preference, attribute: c_uint, value: *const c_void, bytes: usize,
    ) -> Status {
        let (Some(preference), Some(v)) = (preference.as_mut(), number(value, bytes)) else { return INVALID_VALUE };
        match attribute {
            1 if bytes == 8 => preference.workspace = v as usize,
            1 => return INVALID_VALUE,
            _ => {}
        }
        0
    }
    fn cublasLtMatmulAlgoGetHeuristic(
        _handle: u64, desc: *const Desc, a: *const Layout, b: *const Layout, c: *const Layout, d: *const Layout,
        preference: *const Preference, wanted: c_int, results: *mut Candidate, found: *mut c_int,
    ) -> Status {
        let (desc, layouts) = borrow!(desc, a, b, c, d);
        if wanted < 1 || results.is_null() || found.is_null() {
            return INVALID_VALUE;
        }
        *found = 0;
        if let Err(status) = check(desc, layouts) {
            return status;
        }
        let most = preference.as_ref().map_or(0, |p| p.workspace);
        let fitting = (0..CANDIDATES as u64).filter(|&n| wanted_workspace(n) <= most).take(wanted as usize);
        for (i, n) in fitting.enumerate() {
            let candidate = Candidate {
                algorithm: algorithm(n), workspace: wanted_workspace(n), status: 0, waves: 1.0, reserved: [0; 4],
            };
            results.add(i).write_unaligned(candidate);
            *found = i as c_int + 1;
        }
        0
    }
    fn cublasLtMatmulAlgoCheck(
        _handle: u64, desc: *const Desc, a: *const Layout, b: *const Layout, c: *const Layout, d: *const Layout,
        wanted: *const Algorithm, result: *mut Candidate,
    ) -> Status {
        let (desc, layouts) = borrow!(desc, a, b, c, d);
        if let Err(status) = check(desc, layouts) {
            return status;
        }
        let n = match chosen(wanted) {
            Ok(n) => n,
            Err(status) => return status,
        };
        let candidate = Candidate {
            algorithm: algorithm(n), workspace: wanted_workspace(n), status: 0, waves: 1.0, reserved: [0; 4],
        };
        result.write_unaligned(candidate);
        0
    }
    fn cublasLtMatmul(
        handle: u64, desc: *const Desc, alpha: *const c_void, a: u64, la: *const Layout, b: u64, lb: *const Layout,
        beta: *const c_void, c: u64, lc: *const Layout, d: u64, ld: *const Layout, wanted: *const Algorithm,
        workspace: u64, bytes: usize, stream: u64,
    ) -> Status {
        let (desc, layouts) = borrow!(desc, la, lb, lc, ld);
        if handle == 0 || alpha.is_null() || beta.is_null() || desc.scale != F32 {
            return INVALID_VALUE;
        }
        if CURRENT.get() == 0 {
            return EXECUTION_FAILED;
        }
        let scalar = |at: *const c_void| {
            if desc.pointer_mode == 0 { Scalar::Value(at.cast::<f32>().read_unaligned()) } else { Scalar::Device(at as u64) }
        };
        let candidate = match check(desc, layouts).and_then(|()| chosen(wanted)) {
            Ok(n) => n,
            Err(status) => return status,
        };
        let captures = device().captures(stream);
        if refuses("cublas", candidate, captures)
            || refuses("cublas-epilogue", u64::from(desc.epilogue), captures)
        {
            return NOT_SUPPORTED;
        }
        let workspace_bytes = wanted_workspace(candidate);
        if workspace_bytes > bytes {
            return INVALID_VALUE;
        }
        let product = Product {
            desc: *desc, at: [a, b, c, d], layout: layouts.map(|l| *l), alpha: scalar(alpha), beta: scalar(beta),
            workspace, workspace_bytes, candidate,
        };
        let mut device = device();
        if device.error != 0 {
            return EXECUTION_FAILED;
        }
        if let Err(message) = product.check_memory(&device.arena) {
            return device.refuse(INVALID_VALUE, message);
        }
        match device.enqueue(stream, Op::Product(Arc::new(product))) {
            Ok(()) => 0,
            Err(_) => EXECUTION_FAILED,
        }
    }
}
