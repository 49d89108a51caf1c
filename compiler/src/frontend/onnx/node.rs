//! A node's attributes, and messages without a place.

use super::proto::{AttributeProto, NodeProto, TensorProto};
use crate::diagnostic::Diagnostic;
use std::cell::Cell;

/// A message whose place the caller adds.
pub fn fail(code: &'static str, message: impl Into<String>) -> Diagnostic {
    Diagnostic::error(code, message)
}

/// Which of up to 64 things have been read, by position.
#[derive(Debug, Default)]
pub struct Seen(Cell<u64>);

impl Seen {
    pub fn mark(&self, i: usize) {
        self.0.set(self.0.get() | 1u64.checked_shl(i as u32).unwrap_or(0));
    }

    pub fn mark_all(&self) {
        self.0.set(u64::MAX);
    }

    /// No operator has more than 64 attributes or operands that are not alike: those beyond count as
    /// unread attributes, and as read operands.
    fn has(&self, i: usize, beyond: bool) -> bool {
        if i < 64 { self.0.get() >> i & 1 == 1 } else { beyond }
    }

    /// Whether operand `i` was read.
    pub fn operand(&self, i: usize) -> bool {
        self.has(i, true)
    }
}

/// Attributes by name. Reading one notes that it was read: what a converter never asked for changes
/// nothing that it does, and is an error ([`Attrs::unread`]).
#[derive(Clone, Copy, Debug)]
pub struct Attrs<'a> {
    node: &'a NodeProto,
    seen: &'a Seen,
}

type Res<T> = Result<T, Diagnostic>;

impl<'a> Attrs<'a> {
    pub fn new(node: &'a NodeProto, seen: &'a Seen) -> Attrs<'a> {
        Attrs { node, seen }
    }

    fn get(&self, name: &str) -> Option<&'a AttributeProto> {
        let i = self.node.attribute.iter().position(|a| a.name.as_deref() == Some(name))?;
        self.seen.mark(i);
        Some(&self.node.attribute[i])
    }

    /// Notes attributes that have no effect where the caller is, and are rightly not looked at.
    pub fn without_effect(&self, names: &[&str]) {
        for name in names {
            self.get(name);
        }
    }

    /// The first attribute that nothing asked for.
    pub fn unread(&self) -> Option<&'a str> {
        let mut all = self.node.attribute.iter().enumerate();
        all.find(|(i, _)| !self.seen.has(*i, false)).map(|(_, a)| a.name.as_deref().unwrap_or(""))
    }

    fn wrong(name: &str, what: &str) -> Diagnostic {
        fail("P0206", format!("attribute `{name}` is not {what}"))
    }

    /// The node itself, for what an exporter notes on it.
    pub fn node(&self) -> &'a NodeProto {
        self.node
    }

    pub fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// # Errors
    /// P0206 where the attribute has another type; so the others.
    pub fn int(&self, name: &str, default: i64) -> Res<i64> {
        match self.get(name) {
            None => Ok(default),
            // A zero may be left out of the message: the type says that it is there.
            Some(a) => match (a.i, a.r#type) {
                (Some(i), _) => Ok(i),
                (None, Some(2)) => Ok(0),
                _ => Err(Attrs::wrong(name, "an integer")),
            },
        }
    }

    pub fn real(&self, name: &str, default: f64) -> Res<f64> {
        match self.get(name) {
            None => Ok(default),
            Some(a) => match (a.f, a.r#type) {
                // Printed and parsed as decimal, 0.1f32 would otherwise become 0.10000000149….
                (Some(f), _) => Ok(shortest(f)),
                (None, Some(1)) => Ok(0.0),
                _ => Err(Attrs::wrong(name, "a number")),
            },
        }
    }

    pub fn ints(&self, name: &str) -> Res<Option<Vec<i64>>> {
        match self.get(name) {
            None => Ok(None),
            Some(a) if a.ints.is_empty() && !matches!(a.r#type, Some(7) | None) => {
                Err(Attrs::wrong(name, "a list of integers"))
            }
            Some(a) => Ok(Some(a.ints.clone())),
        }
    }

    pub fn reals(&self, name: &str) -> Option<&'a [f32]> {
        self.get(name).map(|a| &a.floats[..])
    }

    pub fn tensor(&self, name: &str) -> Option<&'a TensorProto> {
        self.get(name)?.t.as_deref()
    }

    pub fn string(&self, name: &str, default: &str) -> Res<String> {
        match self.get(name) {
            None => Ok(default.into()),
            Some(a) => match &a.s {
                Some(s) => Ok(String::from_utf8_lossy(s).into_owned()),
                None => Err(Attrs::wrong(name, "a string")),
            },
        }
    }

    /// A list of strings; empty where the attribute is absent.
    ///
    /// # Errors
    /// P0206 where the attribute has another type.
    pub fn strings(&self, name: &str) -> Res<Vec<String>> {
        match self.get(name) {
            None => Ok(vec![]),
            Some(a) if a.strings.is_empty() && !matches!(a.r#type, Some(8) | None) => {
                Err(Attrs::wrong(name, "a list of strings"))
            }
            Some(a) => {
                Ok(a.strings.iter().map(|s| String::from_utf8_lossy(s).into_owned()).collect())
            }
        }
    }

    /// `N` non-negative integers of a sane size, such as strides.
    pub fn sizes(&self, name: &str, rank: usize, default: usize) -> Res<Vec<usize>> {
        let Some(list) = self.ints(name)? else { return Ok(vec![default; rank]) };
        if list.len() != rank {
            return Err(fail("P0206", format!("`{name}` has {} entries, not {rank}", list.len())));
        }
        list.iter()
            .map(|&v| {
                usize::try_from(v)
                    .ok()
                    .filter(|v| *v <= 1 << 20)
                    .ok_or_else(|| fail("P0206", format!("`{name}` has the entry {v}")))
            })
            .collect()
    }
}

/// The real number that the shortest decimal form of an f32 names: attributes are stored as f32
/// but were written as decimals (1e-5, not 9.999999747e-6). Both round to the same f32.
pub fn shortest(f: f32) -> f64 {
    if f.is_finite() {
        f.to_string().parse().expect("a printed float parses")
    } else {
        f64::from(f)
    }
}
