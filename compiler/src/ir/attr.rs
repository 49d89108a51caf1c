//! Attributes: the part of an operation that is not a tensor, in a form that prints, parses,
//! compares and hashes.

use super::consts::ConstData;
use indexmap::IndexMap;
use std::cmp::Ordering;
use std::hash::{Hash, Hasher};

/// An f64 attribute with total equality by bits, so that operations can be hashed and compared.
#[derive(Clone, Copy, Debug, Default)]
pub struct Real(pub f64);

impl PartialEq for Real {
    fn eq(&self, o: &Real) -> bool {
        self.0.to_bits() == o.0.to_bits()
    }
}
impl Eq for Real {}
impl Hash for Real {
    fn hash<H: Hasher>(&self, h: &mut H) {
        self.0.to_bits().hash(h);
    }
}
impl PartialOrd for Real {
    fn partial_cmp(&self, o: &Real) -> Option<Ordering> {
        Some(self.cmp(o))
    }
}
impl Ord for Real {
    fn cmp(&self, o: &Real) -> Ordering {
        self.0.total_cmp(&o.0)
    }
}

/// A printable attribute value. Text form: `3`, `[1,2]`, `0.5`, `true`, `word`, `"string"`,
/// `f32[2]<hex bytes>`.
#[derive(Clone, Debug, PartialEq)]
pub enum Attr {
    Int(i64),
    Ints(Vec<i64>),
    Real(f64),
    Bool(bool),
    /// A bare word of a closed set.
    Word(String),
    Str(String),
    Tensor(ConstData),
}

/// Named attributes while an operation is being parsed; what is left over is unknown.
#[derive(Debug, Default)]
pub struct AttrMap(pub IndexMap<String, Attr>);

impl AttrMap {
    /// Takes a required attribute.
    pub fn take<T: AttrValue>(&mut self, name: &str) -> Result<T, String> {
        let attr =
            self.0.shift_remove(name).ok_or_else(|| format!("attribute `{name}` is missing"))?;
        T::from_attr(attr).ok_or_else(|| format!("attribute `{name}` has the wrong type"))
    }

    /// Takes an attribute that may be left out.
    pub fn take_or_default<T: AttrValue + Default>(&mut self, name: &str) -> Result<T, String> {
        if self.0.contains_key(name) { self.take(name) } else { Ok(T::default()) }
    }
}

/// A Rust type that can be an attribute.
pub trait AttrValue: Sized {
    fn to_attr(&self) -> Attr;
    fn from_attr(attr: Attr) -> Option<Self>;
}

impl AttrValue for Real {
    fn to_attr(&self) -> Attr {
        Attr::Real(self.0)
    }
    fn from_attr(attr: Attr) -> Option<Real> {
        match attr {
            Attr::Real(x) => Some(Real(x)),
            Attr::Int(x) => Some(Real(x as f64)),
            _ => None,
        }
    }
}

impl AttrValue for bool {
    fn to_attr(&self) -> Attr {
        Attr::Bool(*self)
    }
    fn from_attr(attr: Attr) -> Option<bool> {
        if let Attr::Bool(b) = attr { Some(b) } else { None }
    }
}

impl AttrValue for String {
    fn to_attr(&self) -> Attr {
        Attr::Str(self.clone())
    }
    fn from_attr(attr: Attr) -> Option<String> {
        if let Attr::Str(s) = attr { Some(s) } else { None }
    }
}

impl AttrValue for ConstData {
    fn to_attr(&self) -> Attr {
        Attr::Tensor(self.clone())
    }
    fn from_attr(attr: Attr) -> Option<ConstData> {
        if let Attr::Tensor(t) = attr { Some(t) } else { None }
    }
}

macro_rules! int_attr {
    ($($t:ty),*) => {$(
        impl AttrValue for $t {
            fn to_attr(&self) -> Attr {
                Attr::Int(*self as i64)
            }
            fn from_attr(attr: Attr) -> Option<$t> {
                if let Attr::Int(x) = attr { x.try_into().ok() } else { None }
            }
        }
        impl AttrValue for Vec<$t> {
            fn to_attr(&self) -> Attr {
                Attr::Ints(self.iter().map(|&x| x as i64).collect())
            }
            fn from_attr(attr: Attr) -> Option<Vec<$t>> {
                let Attr::Ints(v) = attr else { return None };
                v.into_iter().map(|x| x.try_into().ok()).collect()
            }
        }
        impl<const N: usize> AttrValue for [$t; N] {
            fn to_attr(&self) -> Attr {
                Attr::Ints(self.iter().map(|&x| x as i64).collect())
            }
            fn from_attr(attr: Attr) -> Option<[$t; N]> {
                Vec::<$t>::from_attr(attr)?.try_into().ok()
            }
        }
    )*};
}
int_attr!(usize, i64, u32);

/// Implements [`AttrValue`] for a fieldless enum as bare words.
#[macro_export]
macro_rules! word_attr {
    ($ty:ty { $($variant:path = $word:literal),* $(,)? }) => {
        impl $crate::ir::AttrValue for $ty {
            fn to_attr(&self) -> $crate::ir::Attr {
                $crate::ir::Attr::Word(match self { $($variant => $word),* }.to_string())
            }
            fn from_attr(attr: $crate::ir::Attr) -> Option<Self> {
                let $crate::ir::Attr::Word(w) = attr else { return None };
                match w.as_str() { $($word => Some($variant),)* _ => None }
            }
        }
    };
}
