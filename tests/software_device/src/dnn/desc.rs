//! Descriptors: kinds, and attributes by their numbers.

use super::{BAD_PARAM, NOT_SUPPORTED, Status};
use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;

/// `cudnnBackendDescriptorType_t`
pub mod kind {
    pub const POINTWISE: u32 = 0;
    pub const CONVOLUTION: u32 = 1;
    pub const ENGINE: u32 = 2;
    pub const ENGINE_CONFIG: u32 = 3;
    pub const HEURISTIC: u32 = 4;
    pub const PLAN: u32 = 5;
    pub const KNOB: u32 = 7;
    pub const CONV_FORWARD: u32 = 10;
    pub const CONV_FILTER: u32 = 11;
    pub const CONV_DATA: u32 = 12;
    pub const OPERATION_POINTWISE: u32 = 13;
    pub const GRAPH: u32 = 15;
    pub const PACK: u32 = 16;
    pub const TENSOR: u32 = 17;
    pub const MATMUL: u32 = 18;
    pub const OPERATION_MATMUL: u32 = 19;
    pub const REDUCTION: u32 = 21;
    pub const OPERATION_REDUCTION: u32 = 22;
    pub const OPERATION_RESHAPE: u32 = 31;
    pub const DEVICE: u32 = 38;
    pub const ALL: [u32; 20] = [
        POINTWISE,
        CONVOLUTION,
        ENGINE,
        ENGINE_CONFIG,
        HEURISTIC,
        PLAN,
        KNOB,
        CONV_FORWARD,
        CONV_FILTER,
        CONV_DATA,
        OPERATION_POINTWISE,
        GRAPH,
        PACK,
        TENSOR,
        MATMUL,
        OPERATION_MATMUL,
        REDUCTION,
        OPERATION_REDUCTION,
        OPERATION_RESHAPE,
        DEVICE,
    ];
}

/// `cudnnBackendAttributeType_t`, those whose elements are not four bytes.
mod attribute_type {
    pub const HANDLE: u32 = 0;
    pub const BOOLEAN: u32 = 2;
    pub const INT64: u32 = 3;
    pub const FLOAT: u32 = 4;
    pub const POINTER: u32 = 6;
    pub const DESCRIPTOR: u32 = 15;
    pub const CHAR: u32 = 24;
}

/// What an attribute was set to.
#[derive(Clone)]
pub enum Value {
    Ints(Vec<i64>),
    /// Numbers of enumerations, and other integers of four bytes.
    Numbers(Vec<i32>),
    Floats(Vec<f32>),
    Pointers(Vec<u64>),
    Of(Vec<Arc<Descriptor>>),
}

/// `cudnnBackendDescriptor_t`
#[derive(Clone)]
pub struct Descriptor {
    pub kind: u32,
    pub finalised: bool,
    pub values: BTreeMap<u32, Value>,
}

impl Descriptor {
    pub fn new(kind: u32) -> Descriptor {
        Descriptor { kind, finalised: false, values: BTreeMap::new() }
    }

    /// # Safety
    /// `at` points to `count` elements of the type; descriptors among them are live.
    pub unsafe fn set(
        &mut self,
        name: u32,
        of: u32,
        count: i64,
        at: *const c_void,
    ) -> Result<(), (Status, String)> {
        if self.finalised {
            return Err((BAD_PARAM, "the descriptor is finalised".into()));
        }
        let count = usize::try_from(count).map_err(|_| (BAD_PARAM, "a negative count".into()))?;
        // SAFETY: the caller's promise.
        let value = unsafe {
            match of {
                attribute_type::INT64 => Value::Ints(list(at, count)),
                attribute_type::POINTER | attribute_type::HANDLE => {
                    Value::Pointers(list(at, count))
                }
                attribute_type::FLOAT => Value::Floats(list(at, count)),
                attribute_type::BOOLEAN | attribute_type::CHAR => {
                    Value::Numbers(list::<u8>(at, count).into_iter().map(i32::from).collect())
                }
                attribute_type::DESCRIPTOR => {
                    let mut all = vec![];
                    for d in list::<*const Descriptor>(at, count) {
                        let d = d.as_ref().ok_or((BAD_PARAM, "a null descriptor".to_string()))?;
                        if !d.finalised {
                            let text = format!("attribute {name} is not finalised");
                            return Err((BAD_PARAM, text));
                        }
                        all.push(Arc::new(d.clone()));
                    }
                    Value::Of(all)
                }
                _ => Value::Numbers(list(at, count)),
            }
        };
        self.values.insert(name, value);
        Ok(())
    }

    pub fn ints(&self, name: u32) -> Result<&[i64], String> {
        match self.values.get(&name) {
            Some(Value::Ints(v)) => Ok(v),
            _ => Err(format!("descriptor {} lacks the integers {name}", self.kind)),
        }
    }

    pub fn int(&self, name: u32) -> Result<i64, String> {
        self.ints(name)?.first().copied().ok_or_else(|| format!("attribute {name} is empty"))
    }

    pub fn number(&self, name: u32) -> Result<i32, String> {
        match self.values.get(&name) {
            Some(Value::Numbers(v)) if v.len() == 1 => Ok(v[0]),
            _ => Err(format!("descriptor {} lacks the number {name}", self.kind)),
        }
    }

    pub fn float(&self, name: u32) -> Result<f32, String> {
        match self.values.get(&name) {
            Some(Value::Floats(v)) if v.len() == 1 => Ok(v[0]),
            _ => Err(format!("descriptor {} lacks the factor {name}", self.kind)),
        }
    }

    pub fn flag(&self, name: u32) -> bool {
        self.number(name).is_ok_and(|v| v != 0)
    }

    pub fn pointers(&self, name: u32) -> Result<&[u64], String> {
        match self.values.get(&name) {
            Some(Value::Pointers(v)) => Ok(v),
            _ => Err(format!("descriptor {} lacks the pointers {name}", self.kind)),
        }
    }

    pub fn all(&self, name: u32) -> Result<&[Arc<Descriptor>], String> {
        match self.values.get(&name) {
            Some(Value::Of(v)) => Ok(v),
            _ => Err(format!("descriptor {} lacks the descriptors {name}", self.kind)),
        }
    }

    pub fn of(&self, name: u32) -> Result<&Arc<Descriptor>, String> {
        self.all(name)?.first().ok_or_else(|| format!("attribute {name} is empty"))
    }

    /// # Safety
    /// `to` has room for `wanted` elements of the attribute, or holds so many live descriptors.
    pub unsafe fn get(
        &self,
        name: u32,
        wanted: i64,
        count: *mut i64,
        to: *mut c_void,
    ) -> Result<(), (Status, String)> {
        let value = self
            .values
            .get(&name)
            .ok_or_else(|| (NOT_SUPPORTED, format!("there is no attribute {name} to read")))?;
        let wanted = usize::try_from(wanted).unwrap_or(0);
        // SAFETY: the caller's promise.
        unsafe {
            let found = match value {
                Value::Ints(v) => put(v, wanted, to),
                Value::Numbers(v) => put(v, wanted, to),
                Value::Floats(v) => put(v, wanted, to),
                Value::Pointers(v) => put(v, wanted, to),
                Value::Of(v) => {
                    for (d, to) in v.iter().zip(list::<*mut Descriptor>(to, wanted.min(v.len()))) {
                        *to = (**d).clone();
                    }
                    v.len()
                }
            };
            if !count.is_null() {
                *count = found as i64;
            }
        }
        Ok(())
    }
}

unsafe fn list<T: Copy>(at: *const c_void, count: usize) -> Vec<T> {
    // SAFETY: the caller gives that many elements.
    (0..count).map(|i| unsafe { at.cast::<T>().add(i).read_unaligned() }).collect()
}

unsafe fn put<T: Copy>(values: &[T], wanted: usize, to: *mut c_void) -> usize {
    for (i, v) in values.iter().take(wanted).enumerate() {
        // SAFETY: the caller has room for that many.
        unsafe { to.cast::<T>().add(i).write_unaligned(*v) };
    }
    values.len()
}
