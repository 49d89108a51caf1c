//! cuDNN's functions, and its errors in its own words.

use crate::cuda::api::{Status, driver_version, functions};
use crate::cuda::library::{DriverVersion, Kind, Library, places, too_new};
use crate::error::{Error, Result};
use cudarc::cudnn::sys as dnn;
use cudarc::driver::sys as cu;
use std::ffi::{CStr, c_char, c_uint, c_void};
use std::path::PathBuf;
use std::sync::OnceLock;

functions! {
    /// cuDNN, of which the graph functions are used.
    Cudnn:
    fn cudnnGetVersion() -> usize;
    fn cudnnGetCudartVersion() -> usize;
    fn cudnnGetErrorString(status: Status) -> *const c_char;
    fn cudnnGetLastErrorString(text: *mut c_char, bytes: usize) -> ();
    fn cudnnCreate(handle: *mut dnn::cudnnHandle_t) -> Status;
    fn cudnnDestroy(handle: dnn::cudnnHandle_t) -> Status;
    fn cudnnSetStream(handle: dnn::cudnnHandle_t, stream: cu::CUstream) -> Status;
    fn cudnnBackendCreateDescriptor(kind: c_uint, descriptor: *mut dnn::cudnnBackendDescriptor_t) -> Status;
    fn cudnnBackendDestroyDescriptor(descriptor: dnn::cudnnBackendDescriptor_t) -> Status;
    fn cudnnBackendSetAttribute(
        descriptor: dnn::cudnnBackendDescriptor_t, name: c_uint, kind: c_uint, count: i64,
        values: *const c_void,
    ) -> Status;
    fn cudnnBackendGetAttribute(
        descriptor: dnn::cudnnBackendDescriptor_t, name: c_uint, kind: c_uint, wanted: i64,
        count: *mut i64, values: *mut c_void,
    ) -> Status;
    fn cudnnBackendFinalize(descriptor: dnn::cudnnBackendDescriptor_t) -> Status;
    fn cudnnBackendExecute(
        handle: dnn::cudnnHandle_t, plan: dnn::cudnnBackendDescriptor_t,
        pack: dnn::cudnnBackendDescriptor_t,
    ) -> Status;
}

/// The oldest release with plans for described devices, which is how all are made here.
const OLDEST: usize = 90_800;

impl Cudnn {
    /// What a call that was refused says.
    pub fn refusal(&self, status: Status) -> String {
        let mut text = [0 as c_char; 2048];
        // SAFETY: the length is that of the buffer, less a terminating zero.
        unsafe { self.cudnnGetLastErrorString(text.as_mut_ptr(), text.len() - 1) };
        // SAFETY: the last element is zero whatever was written.
        let said = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy().trim().to_string();
        // SAFETY: takes any number and returns a static string.
        let name = unsafe { self.cudnnGetErrorString(status) };
        let name = if name.is_null() {
            format!("cuDNN error {status}")
        } else {
            // SAFETY: as above.
            unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()
        };
        if said.is_empty() { name } else { format!("{said} ({name})") }
    }

    /// An error of a call.
    ///
    /// # Errors
    /// `R0720` unless the status is success.
    pub fn check(&self, status: Status, what: &str) -> Result<()> {
        if status == 0 {
            return Ok(());
        }
        Err(Error::new("R0720", format!("{what}: {}", self.refusal(status))))
    }

    /// `91900` for release 9.19.0.
    pub fn version(&self) -> usize {
        // SAFETY: takes nothing.
        unsafe { self.cudnnGetVersion() }
    }

    /// The CUDA that it was built with: builds for CUDA 12 and for CUDA 13 have one name.
    pub fn release(&self) -> DriverVersion {
        // SAFETY: takes nothing.
        DriverVersion(unsafe { self.cudnnGetCudartVersion() } as i32)
    }
}

/// cuDNN, opened once.
///
/// # Errors
/// `R0701` where it is missing, `R0702` where it is too old or the driver does not run it.
pub fn cudnn() -> Result<&'static Cudnn> {
    static CUDNN: OnceLock<Result<Cudnn>> = OnceLock::new();
    let load = || {
        let driver = driver_version().ok();
        let api = Cudnn::load(&Library::open(Kind::Cudnn, places(), driver)?)?;
        let version = api.version();
        if version < OLDEST {
            let text = format!("cuDNN is release {}, older than 9.8", spelled(version));
            return Err(Error::new("R0702", text).at(api.path.display()));
        }
        let of = api.release();
        if let Some(driver) = driver.filter(|d| !d.runs(of.major())) {
            let looked = "the first that was found is taken";
            return Err(too_new(Kind::Cudnn, &of.to_string(), &api.path, driver, looked));
        }
        Ok(api)
    };
    CUDNN.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// `9.19.1` for 91901.
pub fn spelled(version: usize) -> String {
    format!("{}.{}.{}", version / 10_000, version / 100 % 100, version % 100)
}
