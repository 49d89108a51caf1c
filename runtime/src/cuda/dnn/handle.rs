//! cuDNN's handle, which says where its graphs run.

use super::api::Cudnn;
use crate::error::Result;
use cudarc::cudnn::sys as dnn;
use cudarc::driver::sys as cu;
use std::ptr::null_mut;

/// cuDNN on the calling thread's current context.
pub struct Handle {
    api: &'static Cudnn,
    pub(super) raw: dnn::cudnnHandle_t,
}

// SAFETY: a handle may move between threads; it is not shared.
unsafe impl Send for Handle {}

impl Handle {
    /// # Errors
    /// `R0720` with cuDNN's words.
    pub fn new(api: &'static Cudnn) -> Result<Handle> {
        let mut raw = null_mut();
        // SAFETY: the pointer is to a local.
        api.check(unsafe { api.cudnnCreate(&raw mut raw) }, "starting cuDNN")?;
        Ok(Handle { api, raw })
    }

    /// What runs from now on is enqueued on `stream`.
    ///
    /// # Errors
    /// As [`Handle::new`].
    ///
    /// # Safety
    /// The stream is one of the context that was current when the handle was made, and outlives
    /// the handle.
    pub unsafe fn on(&self, stream: cu::CUstream) -> Result<()> {
        // SAFETY: the caller's contract.
        let status = unsafe { self.api.cudnnSetStream(self.raw, stream) };
        self.api.check(status, "choosing cuDNN's stream")
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: created by this library and not used afterwards.
        unsafe { self.api.cudnnDestroy(self.raw) };
    }
}
