//! Descriptors of cuDNN's graph interface: made, filled attribute by attribute, finalised.

use super::api::Cudnn;
use crate::cuda::api::Status;
use cudarc::cudnn::sys as dnn;
use std::ffi::{c_int, c_uint, c_void};
use std::ptr::null_mut;

pub use dnn::cudnnBackendAttributeName_t as Name;
use dnn::cudnnBackendAttributeType_t as Type;
pub use dnn::cudnnBackendDescriptorType_t as Kind;

/// Why a descriptor was refused: cuDNN's words. Not an error by itself, since another engine or
/// another kernel may do.
pub type Refusal = String;

/// Values an attribute takes.
#[derive(Clone, Copy)]
pub enum Values<'a> {
    Ints(&'a [i64]),
    Float(f32),
    Bool(bool),
    Chars(&'a [u8]),
    Pointers(&'a [*mut c_void]),
    /// A number of one of cuDNN's enumerations, by the type of the attribute.
    Number(Type, c_int),
    /// cuDNN's handle.
    Handle(dnn::cudnnHandle_t),
    /// Descriptors.
    Of(&'a [&'a Desc]),
}

/// A descriptor, destroyed when its owner goes.
pub struct Desc {
    api: &'static Cudnn,
    raw: dnn::cudnnBackendDescriptor_t,
}

// SAFETY: a descriptor belongs to no thread; a finalised one is only read.
unsafe impl Send for Desc {}
// SAFETY: as above.
unsafe impl Sync for Desc {}

impl Drop for Desc {
    fn drop(&mut self) {
        // SAFETY: the descriptor was created by this library and is not used afterwards.
        unsafe { self.api.cudnnBackendDestroyDescriptor(self.raw) };
    }
}

impl Desc {
    pub fn new(api: &'static Cudnn, kind: Kind) -> Result<Desc, Refusal> {
        let mut raw = null_mut();
        // SAFETY: the pointer is to a local.
        let status = unsafe { api.cudnnBackendCreateDescriptor(kind as c_uint, &raw mut raw) };
        // The release may lack a kind of descriptor that the declarations have.
        if status != 0 {
            return Err(format!("{kind:?}: {}", api.refusal(status)));
        }
        Ok(Desc { api, raw })
    }

    pub fn raw(&self) -> dnn::cudnnBackendDescriptor_t {
        self.raw
    }

    /// Sets an attribute; returns the descriptor so that calls chain.
    pub fn set(self, name: Name, values: Values) -> Result<Desc, Refusal> {
        let put = |kind: Type, count: usize, at: *const c_void| {
            // SAFETY: `at` points to `count` values of the type that `kind` names, alive during
            // the call.
            let status = unsafe {
                self.api.cudnnBackendSetAttribute(
                    self.raw,
                    name as c_uint,
                    kind as c_uint,
                    count as i64,
                    at,
                )
            };
            self.said(status, &format!("{name:?}"))
        };
        match values {
            Values::Ints(v) => put(Type::CUDNN_TYPE_INT64, v.len(), v.as_ptr().cast()),
            Values::Float(v) => put(Type::CUDNN_TYPE_FLOAT, 1, (&raw const v).cast()),
            Values::Bool(v) => put(Type::CUDNN_TYPE_BOOLEAN, 1, (&raw const v).cast()),
            Values::Chars(v) => put(Type::CUDNN_TYPE_CHAR, v.len(), v.as_ptr().cast()),
            Values::Pointers(v) => put(Type::CUDNN_TYPE_VOID_PTR, v.len(), v.as_ptr().cast()),
            Values::Handle(v) => put(Type::CUDNN_TYPE_HANDLE, 1, (&raw const v).cast()),
            Values::Number(kind, v) => put(kind, 1, (&raw const v).cast()),
            Values::Of(list) => {
                let raw: Vec<_> = list.iter().map(|d| d.raw).collect();
                put(Type::CUDNN_TYPE_BACKEND_DESCRIPTOR, raw.len(), raw.as_ptr().cast())
            }
        }?;
        Ok(self)
    }

    /// `set` with one descriptor.
    pub fn with(self, name: Name, other: &Desc) -> Result<Desc, Refusal> {
        self.set(name, Values::Of(&[other]))
    }

    pub fn finalize(self) -> Result<Desc, Refusal> {
        // SAFETY: the descriptor is live.
        let status = unsafe { self.api.cudnnBackendFinalize(self.raw) };
        self.said(status, "finalising")?;
        Ok(self)
    }

    /// An integer attribute.
    pub fn int(&self, name: Name) -> Result<i64, Refusal> {
        let (mut value, mut count) = (0i64, 0i64);
        // SAFETY: the pointers are to locals.
        let status = unsafe {
            self.api.cudnnBackendGetAttribute(
                self.raw,
                name as c_uint,
                Type::CUDNN_TYPE_INT64 as c_uint,
                1,
                &raw mut count,
                (&raw mut value).cast(),
            )
        };
        self.said(status, &format!("{name:?}"))?;
        Ok(value)
    }

    /// An attribute that is text.
    pub fn text(&self, name: Name) -> Result<Vec<u8>, Refusal> {
        let mut count = 0i64;
        let mut read = |most: usize, at: *mut c_void| -> Result<usize, Refusal> {
            // SAFETY: `at` has room for `most` bytes; for none the length alone is asked for.
            let status = unsafe {
                self.api.cudnnBackendGetAttribute(
                    self.raw,
                    name as c_uint,
                    Type::CUDNN_TYPE_CHAR as c_uint,
                    most as i64,
                    &raw mut count,
                    at,
                )
            };
            self.said(status, &format!("{name:?}"))?;
            Ok(count.max(0) as usize)
        };
        let mut text = vec![0u8; read(0, null_mut())?];
        let length = read(text.len(), text.as_mut_ptr().cast())?;
        text.truncate(length);
        Ok(text)
    }

    /// An attribute that is a list of numbers of an enumeration.
    pub fn numbers(&self, name: Name, kind: Type) -> Result<Vec<c_int>, Refusal> {
        let mut list = [0; 32];
        let count = self.enumerated(name, kind, &mut list)?;
        Ok(list[..count].to_vec())
    }

    /// An attribute that is one number of an enumeration, and not asked for as a list.
    pub fn number(&self, name: Name, kind: Type) -> Result<c_int, Refusal> {
        let mut one = [0];
        match self.enumerated(name, kind, &mut one)? {
            0 => Err(format!("{name:?}: there is none")),
            _ => Ok(one[0]),
        }
    }

    /// How many there are, at most as many as the list has room for.
    fn enumerated(&self, name: Name, kind: Type, list: &mut [c_int]) -> Result<usize, Refusal> {
        let mut count = 0i64;
        // SAFETY: the pointers are to locals of the length given.
        let status = unsafe {
            self.api.cudnnBackendGetAttribute(
                self.raw,
                name as c_uint,
                kind as c_uint,
                list.len() as i64,
                &raw mut count,
                list.as_mut_ptr().cast(),
            )
        };
        self.said(status, &format!("{name:?}"))?;
        Ok((count.max(0) as usize).min(list.len()))
    }

    /// An attribute that is a list of descriptors of `kind`, at most `most`.
    pub fn list(&self, name: Name, kind: Kind, most: usize) -> Result<Vec<Desc>, Refusal> {
        let made: Vec<Desc> =
            (0..most).map(|_| Desc::new(self.api, kind)).collect::<Result<_, _>>()?;
        let mut raw: Vec<_> = made.iter().map(|d| d.raw).collect();
        let mut count = 0i64;
        // SAFETY: as many live descriptors as are asked for; cuDNN fills them in place.
        let status = unsafe {
            self.api.cudnnBackendGetAttribute(
                self.raw,
                name as c_uint,
                Type::CUDNN_TYPE_BACKEND_DESCRIPTOR as c_uint,
                most as i64,
                &raw mut count,
                raw.as_mut_ptr().cast(),
            )
        };
        self.said(status, &format!("{name:?}"))?;
        let count = (count.max(0) as usize).min(most);
        Ok(made.into_iter().take(count).collect())
    }

    fn said(&self, status: Status, what: &str) -> Result<(), Refusal> {
        if status == 0 { Ok(()) } else { Err(format!("{what}: {}", self.api.refusal(status))) }
    }
}
