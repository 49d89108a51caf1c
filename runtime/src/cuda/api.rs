//! The functions of NVIDIA's libraries that are called, all looked up before the first call.
//!
//! Statuses are plain numbers here: a library newer than the declarations may return one that an
//! enumeration lacks. Handles and descriptors have cudarc's types.

use super::library::{DriverVersion, Kind, Library, places};
use super::settings;
use crate::error::{Error, Result};
use cudarc::cublaslt::sys as lt;
use cudarc::driver::sys as cu;
use std::ffi::{CStr, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

macro_rules! functions {
    ($(#[$doc:meta])* $table:ident: $(fn $f:ident($($a:ident: $t:ty),* $(,)?) -> $r:ty;)*) => {
        $(#[$doc])*
        #[allow(non_snake_case)]
        pub struct $table {
            /// The file the functions come from.
            pub path: PathBuf,
            $($f: unsafe extern "C" fn($($t),*) -> $r,)*
        }

        #[allow(non_snake_case, clippy::missing_safety_doc, clippy::too_many_arguments)]
        impl $table {
            fn load(library: &Library) -> Result<$table> {
                Ok($table {
                    path: library.path.clone(),
                    // SAFETY: the types are those of NVIDIA's headers.
                    $($f: unsafe { library.function(stringify!($f))? },)*
                })
            }

            $(
                /// As NVIDIA documents it.
                pub unsafe fn $f(&self $(, $a: $t)*) -> $r {
                    // SAFETY: the caller's contract.
                    unsafe { (self.$f)($($a),*) }
                }
            )*
        }
    };
}
pub(super) use functions;

/// `CUresult`, `nvrtcResult` and `cublasStatus_t`: zero is success.
pub type Status = c_uint;
type Ptr = *mut c_void;

functions! {
    /// The driver.
    Driver:
    fn cuInit(flags: c_uint) -> Status;
    fn cuDriverGetVersion(version: *mut c_int) -> Status;
    fn cuGetErrorName(error: Status, text: *mut *const c_char) -> Status;
    fn cuGetErrorString(error: Status, text: *mut *const c_char) -> Status;
    fn cuDeviceGetCount(count: *mut c_int) -> Status;
    fn cuDeviceGet(device: *mut cu::CUdevice, ordinal: c_int) -> Status;
    fn cuDeviceGetName(name: *mut c_char, len: c_int, device: cu::CUdevice) -> Status;
    fn cuDeviceTotalMem_v2(bytes: *mut usize, device: cu::CUdevice) -> Status;
    fn cuDeviceGetAttribute(value: *mut c_int, attribute: c_uint, device: cu::CUdevice) -> Status;
    fn cuDevicePrimaryCtxRetain(context: *mut cu::CUcontext, device: cu::CUdevice) -> Status;
    fn cuDevicePrimaryCtxRelease_v2(device: cu::CUdevice) -> Status;
    fn cuCtxSetCurrent(context: cu::CUcontext) -> Status;
    fn cuMemGetInfo_v2(free: *mut usize, total: *mut usize) -> Status;
    fn cuMemAlloc_v2(pointer: *mut cu::CUdeviceptr, bytes: usize) -> Status;
    fn cuMemFree_v2(pointer: cu::CUdeviceptr) -> Status;
    fn cuMemHostAlloc(pointer: *mut Ptr, bytes: usize, flags: c_uint) -> Status;
    fn cuMemFreeHost(pointer: Ptr) -> Status;
    fn cuMemcpyHtoDAsync_v2(to: cu::CUdeviceptr, from: *const c_void, bytes: usize, stream: cu::CUstream) -> Status;
    fn cuMemcpyDtoHAsync_v2(to: Ptr, from: cu::CUdeviceptr, bytes: usize, stream: cu::CUstream) -> Status;
    fn cuMemcpyDtoDAsync_v2(to: cu::CUdeviceptr, from: cu::CUdeviceptr, bytes: usize, stream: cu::CUstream) -> Status;
    fn cuMemsetD8Async(to: cu::CUdeviceptr, value: u8, bytes: usize, stream: cu::CUstream) -> Status;
    fn cuStreamCreate(stream: *mut cu::CUstream, flags: c_uint) -> Status;
    fn cuStreamDestroy_v2(stream: cu::CUstream) -> Status;
    fn cuStreamSynchronize(stream: cu::CUstream) -> Status;
    fn cuStreamWaitEvent(stream: cu::CUstream, event: cu::CUevent, flags: c_uint) -> Status;
    fn cuStreamBeginCapture_v2(stream: cu::CUstream, mode: c_uint) -> Status;
    fn cuStreamEndCapture(stream: cu::CUstream, graph: *mut cu::CUgraph) -> Status;
    fn cuGraphInstantiateWithFlags(exec: *mut cu::CUgraphExec, graph: cu::CUgraph, flags: c_ulonglong) -> Status;
    fn cuGraphLaunch(exec: cu::CUgraphExec, stream: cu::CUstream) -> Status;
    fn cuGraphExecDestroy(exec: cu::CUgraphExec) -> Status;
    fn cuGraphDestroy(graph: cu::CUgraph) -> Status;
    fn cuEventCreate(event: *mut cu::CUevent, flags: c_uint) -> Status;
    fn cuEventDestroy_v2(event: cu::CUevent) -> Status;
    fn cuEventRecord(event: cu::CUevent, stream: cu::CUstream) -> Status;
    fn cuEventSynchronize(event: cu::CUevent) -> Status;
    fn cuEventQuery(event: cu::CUevent) -> Status;
    fn cuEventElapsedTime(milliseconds: *mut f32, from: cu::CUevent, to: cu::CUevent) -> Status;
    fn cuModuleLoadData(module: *mut cu::CUmodule, image: *const c_void) -> Status;
    fn cuModuleUnload(module: cu::CUmodule) -> Status;
    fn cuModuleGetFunction(function: *mut cu::CUfunction, module: cu::CUmodule, name: *const c_char) -> Status;
    fn cuFuncGetAttribute(value: *mut c_int, attribute: c_uint, function: cu::CUfunction) -> Status;
    fn cuFuncSetAttribute(function: cu::CUfunction, attribute: c_uint, value: c_int) -> Status;
    fn cuLaunchKernel(
        function: cu::CUfunction, grid_x: c_uint, grid_y: c_uint, grid_z: c_uint, block_x: c_uint,
        block_y: c_uint, block_z: c_uint, shared: c_uint, stream: cu::CUstream,
        params: *mut Ptr, extra: *mut Ptr,
    ) -> Status;
}

functions! {
    /// The run-time compiler.
    Nvrtc:
    fn nvrtcVersion(major: *mut c_int, minor: *mut c_int) -> Status;
    fn nvrtcGetErrorString(status: Status) -> *const c_char;
    fn nvrtcCreateProgram(
        program: *mut Ptr, text: *const c_char, name: *const c_char, headers: c_int,
        sources: *const *const c_char, names: *const *const c_char,
    ) -> Status;
    fn nvrtcDestroyProgram(program: *mut Ptr) -> Status;
    fn nvrtcCompileProgram(program: Ptr, count: c_int, options: *const *const c_char) -> Status;
    fn nvrtcGetProgramLogSize(program: Ptr, bytes: *mut usize) -> Status;
    fn nvrtcGetProgramLog(program: Ptr, text: *mut c_char) -> Status;
    fn nvrtcGetCUBINSize(program: Ptr, bytes: *mut usize) -> Status;
    fn nvrtcGetCUBIN(program: Ptr, bytes: *mut c_char) -> Status;
}

functions! {
    /// Matrix products.
    CublasLt:
    fn cublasLtGetVersion() -> usize;
    fn cublasLtCreate(handle: *mut lt::cublasLtHandle_t) -> Status;
    fn cublasLtDestroy(handle: lt::cublasLtHandle_t) -> Status;
    fn cublasLtMatmulDescCreate(desc: *mut lt::cublasLtMatmulDesc_t, compute: c_uint, scale: c_uint) -> Status;
    fn cublasLtMatmulDescDestroy(desc: lt::cublasLtMatmulDesc_t) -> Status;
    fn cublasLtMatmulDescSetAttribute(desc: lt::cublasLtMatmulDesc_t, attribute: c_uint, value: *const c_void, bytes: usize) -> Status;
    fn cublasLtMatrixLayoutCreate(layout: *mut lt::cublasLtMatrixLayout_t, dtype: c_uint, rows: u64, columns: u64, ld: i64) -> Status;
    fn cublasLtMatrixLayoutDestroy(layout: lt::cublasLtMatrixLayout_t) -> Status;
    fn cublasLtMatrixLayoutSetAttribute(layout: lt::cublasLtMatrixLayout_t, attribute: c_uint, value: *const c_void, bytes: usize) -> Status;
    fn cublasLtMatmulPreferenceCreate(preference: *mut lt::cublasLtMatmulPreference_t) -> Status;
    fn cublasLtMatmulPreferenceDestroy(preference: lt::cublasLtMatmulPreference_t) -> Status;
    fn cublasLtMatmulPreferenceSetAttribute(preference: lt::cublasLtMatmulPreference_t, attribute: c_uint, value: *const c_void, bytes: usize) -> Status;
    fn cublasLtMatmulAlgoGetHeuristic(
        handle: lt::cublasLtHandle_t, desc: lt::cublasLtMatmulDesc_t,
        a: lt::cublasLtMatrixLayout_t, b: lt::cublasLtMatrixLayout_t,
        c: lt::cublasLtMatrixLayout_t, d: lt::cublasLtMatrixLayout_t,
        preference: lt::cublasLtMatmulPreference_t, wanted: c_int, results: *mut Candidate,
        found: *mut c_int,
    ) -> Status;
    fn cublasLtMatmulAlgoCheck(
        handle: lt::cublasLtHandle_t, desc: lt::cublasLtMatmulDesc_t,
        a: lt::cublasLtMatrixLayout_t, b: lt::cublasLtMatrixLayout_t,
        c: lt::cublasLtMatrixLayout_t, d: lt::cublasLtMatrixLayout_t,
        algorithm: *const lt::cublasLtMatmulAlgo_t, result: *mut Candidate,
    ) -> Status;
    fn cublasLtMatmul(
        handle: lt::cublasLtHandle_t, desc: lt::cublasLtMatmulDesc_t, alpha: *const c_void,
        a: *const c_void, a_layout: lt::cublasLtMatrixLayout_t,
        b: *const c_void, b_layout: lt::cublasLtMatrixLayout_t, beta: *const c_void,
        c: *const c_void, c_layout: lt::cublasLtMatrixLayout_t,
        d: *mut c_void, d_layout: lt::cublasLtMatrixLayout_t,
        algorithm: *const lt::cublasLtMatmulAlgo_t, workspace: *mut c_void, bytes: usize,
        stream: cu::CUstream,
    ) -> Status;
}

/// `cublasLtMatmulHeuristicResult_t`, with a number for its status.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct Candidate {
    pub algorithm: lt::cublasLtMatmulAlgo_t,
    pub workspace: usize,
    pub status: Status,
    pub waves: f32,
    pub reserved: [c_int; 4],
}

impl Candidate {
    pub const NONE: Candidate = Candidate {
        algorithm: lt::cublasLtMatmulAlgo_t { data: [0; 8] },
        workspace: 0,
        status: 0,
        waves: 0.0,
        reserved: [0; 4],
    };
}

impl Driver {
    /// An error of a call, with the driver's own words.
    ///
    /// # Errors
    /// `R0703` unless the status is success.
    pub fn check(&self, status: Status, what: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        let word = |f: &dyn Fn(*mut *const c_char) -> Status| -> Option<String> {
            let mut text = std::ptr::null();
            // SAFETY: the driver returns static strings.
            (f(&raw mut text) == 0 && !text.is_null())
                .then(|| unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned())
        };
        // SAFETY: both take any number.
        let name = word(&|t| unsafe { self.cuGetErrorName(status, t) })
            .unwrap_or_else(|| format!("CUDA error {status}"));
        // SAFETY: as above.
        let text = word(&|t| unsafe { self.cuGetErrorString(status, t) }).unwrap_or_default();
        Err(Error::new("R0703", format!("{what}: {text} ({name})")))
    }
}

/// The libraries a plan cannot do without, opened and looked up once.
pub struct Libraries {
    pub driver: &'static Driver,
    pub nvrtc: Nvrtc,
    pub blas: CublasLt,
}

/// The driver alone, for asking what devices there are.
///
/// # Errors
/// `R0701` where it is missing, `R0702` where it is too old, `R0710` where the environment says what is
/// not understood.
pub fn driver() -> Result<&'static Driver> {
    static DRIVER: OnceLock<Result<Driver>> = OnceLock::new();
    DRIVER
        .get_or_init(|| {
            settings::check()?;
            Driver::load(&Library::open(Kind::Driver, places(), None)?)
        })
        .as_ref()
        .map_err(Clone::clone)
}

/// What the driver runs. It need not have found a device.
///
/// # Errors
/// As [`driver`]; `R0703` where it does not say.
pub fn driver_version() -> Result<DriverVersion> {
    let driver = driver()?;
    let mut version = 0;
    // SAFETY: the pointer is to a local; the call needs no initialisation.
    let status = unsafe { driver.cuDriverGetVersion(&raw mut version) };
    driver.check(status, "reading the driver's version")?;
    Ok(DriverVersion(version))
}

/// NVRTC alone: the newest that the driver can run, and without a driver the newest, for compiling
/// without a device.
///
/// # Errors
/// As [`driver`]; `R0702` where the driver runs none of those that are there.
pub fn nvrtc() -> Result<Nvrtc> {
    Nvrtc::load(&Library::open(Kind::Nvrtc, places(), driver_version().ok())?)
}

/// cuBLASLt alone, as [`nvrtc`].
///
/// # Errors
/// As there.
pub fn blas() -> Result<CublasLt> {
    CublasLt::load(&Library::open(Kind::CublasLt, places(), driver_version().ok())?)
}

/// Everything a plan needs.
///
/// # Errors
/// `R0701` or `R0702`, naming everything that is missing or of no use at once.
pub fn libraries() -> Result<&'static Libraries> {
    static LIBRARIES: OnceLock<Result<Libraries>> = OnceLock::new();
    let load = || match (driver(), nvrtc(), blas()) {
        (Ok(driver), Ok(nvrtc), Ok(blas)) => Ok(Libraries { driver, nvrtc, blas }),
        (a, b, c) => {
            let mut errors = [a.err(), b.err(), c.err()].into_iter().flatten();
            let first = errors.next().expect("one of the three failed");
            Err(errors.fold(first, |all, e| {
                // They were looked for in the same places, and each comes from its own.
                let source = |help: &str| help.split_once("; ").map(|h| h.1.to_string());
                let more = e.help.as_deref().and_then(source);
                let help = match (all.help, more) {
                    (Some(help), Some(more)) => Some(format!("{help}; {more}")),
                    (help, more) => help.or(more),
                };
                Error { message: format!("{}; {}", all.message, e.message), help, ..all }
            }))
        }
    };
    LIBRARIES.get_or_init(load).as_ref().map_err(Clone::clone)
}
