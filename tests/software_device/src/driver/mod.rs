//! The functions of the driver, by the names and types of NVIDIA's header.

mod context;
mod memory;
mod module;
mod stream;

use crate::device::{CURRENT, Device, INVALID_CONTEXT, NOT_INITIALIZED, Status, device};

/// Runs a call that needs a context current on this thread.
pub(crate) fn call(f: impl FnOnce(&mut Device) -> Result<(), Status>) -> Status {
    let mut device = device();
    if !device.initialised {
        return NOT_INITIALIZED;
    }
    if CURRENT.get() == 0 {
        return device.refuse(INVALID_CONTEXT, "no context is current on this thread".to_string());
    }
    if let Err(status) = device.state() {
        return status;
    }
    f(&mut device).err().unwrap_or(0)
}

/// Runs a call that needs no context.
pub(crate) fn call_anywhere(f: impl FnOnce(&mut Device) -> Result<(), Status>) -> Status {
    let mut device = device();
    if !device.initialised {
        return NOT_INITIALIZED;
    }
    f(&mut device).err().unwrap_or(0)
}

/// Writes a result where the caller wants it.
///
/// # Safety
///
/// `at` is null or may be written to.
pub(crate) unsafe fn put<T>(at: *mut T, value: T) -> Result<(), Status> {
    if at.is_null() {
        return Err(crate::device::INVALID_VALUE);
    }
    // SAFETY: the caller's promise; packed structures may be unaligned.
    unsafe { at.write_unaligned(value) };
    Ok(())
}

/// Defines functions of C interfaces.
macro_rules! exports {
    ($($(#[$doc:meta])* fn $name:ident($($a:ident: $t:ty),* $(,)?) -> $r:ty $body:block)*) => {$(
        $(#[$doc])*
        #[unsafe(no_mangle)]
        #[allow(unsafe_op_in_unsafe_fn)] // a C interface: every pointer is the caller's promise
        pub unsafe extern "C" fn $name($($a: $t),*) -> $r $body
    )*};
}
pub(crate) use exports;
