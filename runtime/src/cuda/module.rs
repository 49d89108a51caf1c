//! Compiled kernels on a device.

use super::driver::{Context, Stream};
use crate::error::{Error, Result};
use cudarc::driver::sys as cu;
use std::ffi::{CString, c_int, c_uint, c_void};
use std::sync::Arc;

/// Compiled kernels.
pub struct Module {
    context: Arc<Context>,
    raw: cu::CUmodule,
}

// SAFETY: modules may be used from any thread.
unsafe impl Send for Module {}
// SAFETY: nothing changes after loading.
unsafe impl Sync for Module {}

impl Module {
    /// Loads a cubin.
    ///
    /// # Errors
    /// If the driver refuses it.
    pub fn new(context: &Arc<Context>, cubin: &[u8]) -> Result<Module> {
        let mut raw = std::ptr::null_mut();
        // SAFETY: a cubin holds its own length.
        let status = unsafe { context.api.cuModuleLoadData(&raw mut raw, cubin.as_ptr().cast()) };
        context.check(status, "loading a kernel")?;
        Ok(Module { context: context.clone(), raw })
    }

    /// A kernel, loaded, that may ask for `shared` bytes of dynamic shared memory and is launched
    /// with up to `threads` threads a block.
    ///
    /// # Errors
    /// If there is none of this name, or the device cannot run it so.
    pub fn function(&self, name: &str, shared: u32, threads: u32) -> Result<Function> {
        let api = self.context.api;
        let entry = CString::new(name).expect("names of kernels hold no zero");
        let mut raw = std::ptr::null_mut();
        // SAFETY: the module is alive and the name ends with a zero.
        let status = unsafe { api.cuModuleGetFunction(&raw mut raw, self.raw, entry.as_ptr()) };
        self.context.check(status, &format!("finding the kernel `{name}`"))?;
        // Asking also loads a kernel that the driver left for later, which a capture must not do.
        let mut most = 0;
        let attribute =
            cu::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK as c_uint;
        // SAFETY: the function was just found.
        let status = unsafe { api.cuFuncGetAttribute(&raw mut most, attribute, raw) };
        self.context.check(status, &format!("loading the kernel `{name}`"))?;
        if (most as u32) < threads {
            let text = format!(
                "the kernel `{name}` runs with at most {most} threads a block, not {threads}"
            );
            return Err(Error::new("R0706", text));
        }
        // Beyond 48 KiB, the kernel's static memory included, a launch needs permission.
        if shared > 0 {
            let attribute =
                cu::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            // SAFETY: as above.
            let status =
                unsafe { api.cuFuncSetAttribute(raw, attribute as c_uint, shared as c_int) };
            self.context.check(status, &format!("shared memory of the kernel `{name}`"))?;
        }
        Ok(Function { raw })
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        // SAFETY: loaded by `new`; the owner has finished its streams.
        unsafe { self.context.api.cuModuleUnload(self.raw) };
    }
}

/// A kernel of a module that its owner keeps.
#[derive(Clone, Copy)]
pub struct Function {
    raw: cu::CUfunction,
}

// SAFETY: a handle; the module it belongs to may be used from any thread.
unsafe impl Send for Function {}
// SAFETY: as above.
unsafe impl Sync for Function {}

impl Function {
    /// Launches the kernel. `args` holds every argument in a word of its own.
    ///
    /// # Safety
    /// The arguments are those of the kernel's parameters, in order, and its module is loaded.
    ///
    /// # Errors
    /// If the driver refuses.
    pub unsafe fn launch(
        &self,
        stream: &Stream,
        (grid, block, shared): ([u32; 3], [u32; 3], u32),
        args: &[u64],
    ) -> Result<()> {
        let mut pointers: smallvec::SmallVec<[*mut c_void; 32]> =
            args.iter().map(|a| std::ptr::from_ref(a).cast_mut().cast()).collect();
        // SAFETY: the caller's contract; the driver copies the arguments before it returns. Words
        // are little-endian, so that a narrower parameter reads its low bytes.
        let status = unsafe {
            stream.context.api.cuLaunchKernel(
                self.raw,
                grid[0],
                grid[1],
                grid[2],
                block[0],
                block[1],
                block[2],
                shared,
                stream.raw,
                pointers.as_mut_ptr(),
                std::ptr::null_mut(),
            )
        };
        stream.context.check(status, "launching a kernel")
    }
}
