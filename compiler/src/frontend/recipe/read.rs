//! A strict reader over a TOML tree with spans: every access says what it expects, every mismatch
//! is a diagnostic at its place, and reading goes on.

use super::set::Text;
use crate::diagnostic::{Diagnostic, Place, Severity, nearest};
use std::cell::RefCell;
use std::fmt::Display;
use std::ops::{Bound, Range, RangeBounds};
use std::path::{Path, PathBuf};
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// The text being read and what was found wrong with it.
pub struct Source<'t> {
    pub path: &'t Path,
    pub text: &'t Text,
    errors: RefCell<Vec<(usize, Diagnostic)>>,
}

impl<'t> Source<'t> {
    pub fn new(path: &'t Path, text: &'t Text) -> Source<'t> {
        Source { path, text, errors: RefCell::default() }
    }

    pub fn error(
        &self,
        code: &'static str,
        span: Range<usize>,
        message: impl Into<String>,
        label: impl Into<String>,
        help: impl Into<String>,
    ) {
        let place = self.text.place(self.path, span.clone(), label.into());
        let mut d = Diagnostic::error(code, message).at(place);
        let help = help.into();
        if !help.is_empty() {
            d = d.help(help);
        }
        self.errors.borrow_mut().push((span.start, d));
    }

    /// What was wrong, in the order of the text.
    pub fn into_errors(self) -> Vec<Diagnostic> {
        let mut errors = self.errors.into_inner();
        errors.sort_by_key(|(at, _)| *at);
        debug_assert!(errors.iter().all(|(_, d)| d.severity == Severity::Error));
        errors.into_iter().map(|(_, d)| d).collect()
    }
}

/// One table of the recipe.
pub struct Table<'s, 't> {
    pub source: &'s Source<'t>,
    /// `[data]`, or `the recipe`.
    pub title: String,
    table: Option<&'s DeTable<'t>>,
    /// Where the table is; the end of the text when it is absent.
    pub span: Range<usize>,
    known: RefCell<Vec<&'static str>>,
}

/// A value and the key it stands under.
#[derive(Clone)]
pub struct Item<'s, 't> {
    pub source: &'s Source<'t>,
    pub key: String,
    value: &'s Spanned<DeValue<'t>>,
}

impl<'s, 't> Table<'s, 't> {
    pub fn root(source: &'s Source<'t>, table: &'s DeTable<'t>) -> Table<'s, 't> {
        let end = source.text.recipe().len();
        Table {
            source,
            title: "the recipe".into(),
            table: Some(table),
            span: end..end,
            known: RefCell::default(),
        }
    }

    /// Whether the table was written at all.
    pub fn present(&self) -> bool {
        self.table.is_some()
    }

    /// A key that may be absent.
    pub fn get(&self, key: &'static str) -> Option<Item<'s, 't>> {
        let mut known = self.known.borrow_mut();
        if !known.contains(&key) {
            known.push(key);
        }
        drop(known);
        let value = self.table?.get(key)?;
        Some(Item { source: self.source, key: key.into(), value })
    }

    /// A key that must be there.
    pub fn need(&self, key: &'static str, help: &str) -> Option<Item<'s, 't>> {
        let item = self.get(key);
        if item.is_none() {
            self.missing(key, help);
        }
        item
    }

    pub fn missing(&self, key: &str, help: &str) {
        let message = format!("`{key}` is missing in {}", self.title);
        self.source.error("P0103", self.span.clone(), message, "needed here", help);
    }

    /// A sub-table; an absent one reads as empty.
    pub fn section(&self, key: &'static str) -> Table<'s, 't> {
        let end = self.source.text.recipe().len();
        let (table, span) = match self.get(key) {
            None => (None, end..end),
            Some(item) => (item.table(), item.span()),
        };
        Table {
            source: self.source,
            title: format!("[{key}]"),
            table,
            span,
            known: RefCell::default(),
        }
    }

    /// A key that exists, but not together with what was chosen.
    pub fn reject(&self, key: &'static str, why: &str) {
        if let Some(item) = self.get(key) {
            let message = format!("`{key}` does not apply here");
            self.source.error("P0107", item.key_span(self), message, why, "remove it");
        }
    }

    /// Reports every key that nobody asked for.
    pub fn finish(self) {
        let Some(table) = self.table else { return };
        let known = self.known.borrow();
        for key in table.keys() {
            let name = key.get_ref().as_ref();
            if known.contains(&name) {
                continue;
            }
            let near = nearest(name, known.iter().copied());
            let help = match near {
                Some(k) => format!("did you mean `{k}`?"),
                None => match super::sections::section_of(name) {
                    Some(section) => format!("`{name}` is a key of {section}"),
                    None if known.is_empty() => String::new(),
                    None => format!("the keys of {} are {}", self.title, words(known.iter())),
                },
            };
            let message = format!("unknown key `{name}` in {}", self.title);
            self.source.error("P0102", key.span(), message, "unknown", help);
        }
    }

    fn key_span(&self, name: &str) -> Option<Range<usize>> {
        self.table?.keys().find(|k| k.get_ref() == name).map(|k| k.span())
    }

    /// Every entry, for tables whose keys the person names.
    pub fn entries(&self) -> Vec<(String, Item<'s, 't>)> {
        let Some(table) = self.table else { return vec![] };
        let mut entries: Vec<_> = table
            .iter()
            .map(|(k, value)| {
                let key = k.get_ref().to_string();
                (k.span().start, (key.clone(), Item { source: self.source, key, value }))
            })
            .collect();
        entries.sort_by_key(|(at, _)| *at);
        entries.into_iter().map(|(_, e)| e).collect()
    }
}

impl<'s, 't> Item<'s, 't> {
    pub fn span(&self) -> Range<usize> {
        self.value.span()
    }

    fn key_span(&self, table: &Table) -> Range<usize> {
        table.key_span(&self.key).unwrap_or_else(|| self.span())
    }

    /// The value's place, with `label` at it.
    pub fn place(&self, label: &str) -> Place {
        self.source.text.place(self.source.path, self.span(), label.into())
    }

    fn mismatch<T>(&self, want: &str) -> Option<T> {
        let found = kind(self.value.get_ref());
        let message = format!("`{}` is {want}, not {found}", self.key);
        self.source.error("P0104", self.span(), message, format!("expected {want}"), "");
        None
    }

    fn out_of_range<T>(&self, value: impl Display, range: &str) -> Option<T> {
        let message = format!("`{}` is out of range", self.key);
        self.source.error("P0105", self.span(), message, format!("{value} is not {range}"), "");
        None
    }

    /// Any other fault of the value.
    pub fn invalid<T>(&self, message: impl Into<String>, label: &str, help: &str) -> Option<T> {
        self.source.error("P0105", self.span(), message, label, help);
        None
    }

    pub fn table(&self) -> Option<&'s DeTable<'t>> {
        match self.value.get_ref() {
            DeValue::Table(t) => Some(t),
            _ => self.mismatch("a table"),
        }
    }

    /// The table under this key, with keys the person names.
    pub fn as_section(&self) -> Option<Table<'s, 't>> {
        let table = self.table()?;
        Some(Table {
            source: self.source,
            title: format!("`{}`", self.key),
            table: Some(table),
            span: self.span(),
            known: RefCell::default(),
        })
    }

    pub fn array(&self) -> Option<Vec<Item<'s, 't>>> {
        match self.value.get_ref() {
            DeValue::Array(a) => Some(
                a.iter()
                    .map(|value| Item { source: self.source, key: self.key.clone(), value })
                    .collect(),
            ),
            _ => self.mismatch("an array"),
        }
    }

    pub fn is_array(&self) -> bool {
        self.value.get_ref().is_array()
    }

    pub fn is_string(&self) -> bool {
        self.value.get_ref().is_str()
    }

    pub fn string(&self) -> Option<String> {
        match self.value.get_ref() {
            DeValue::String(s) => Some(s.to_string()),
            _ => self.mismatch("a string"),
        }
    }

    pub fn path(&self) -> Option<PathBuf> {
        let s = self.string()?;
        if s.is_empty() {
            return self.invalid(format!("`{}` is an empty path", self.key), "empty", "");
        }
        Some(PathBuf::from(s))
    }

    pub fn bool(&self) -> Option<bool> {
        match self.value.get_ref() {
            DeValue::Boolean(b) => Some(*b),
            _ => self.mismatch("true or false"),
        }
    }

    fn raw_int(&self) -> Option<i64> {
        match self.value.get_ref() {
            DeValue::Integer(i) => match i64::from_str_radix(i.as_str(), i.radix()) {
                Ok(x) => Some(x),
                Err(_) => self.out_of_range(i.as_str(), "a 64-bit integer"),
            },
            _ => self.mismatch("an integer"),
        }
    }

    pub fn int(&self, range: impl RangeBounds<i64>) -> Option<i64> {
        let x = self.raw_int()?;
        if range.contains(&x) { Some(x) } else { self.out_of_range(x, &described(&range)) }
    }

    /// A whole number of at least `least`.
    pub fn count_to(&self, least: u64, most: u64) -> Option<u64> {
        self.int(least as i64..=most as i64).map(|x| x as u64)
    }

    pub fn count(&self, least: u64) -> Option<u64> {
        self.int(least as i64..).map(|x| x as u64)
    }

    /// A finite number that is in the range as written and as f32; integers are numbers too.
    pub fn real(&self, range: impl RangeBounds<f64>) -> Option<f64> {
        let x = match self.value.get_ref() {
            DeValue::Integer(_) => self.raw_int()? as f64,
            DeValue::Float(x) => match x.as_str().parse::<f64>() {
                Ok(x) => x,
                Err(_) => return self.mismatch("a number"),
            },
            _ => return self.mismatch("a number"),
        };
        if !x.is_finite() {
            return self.out_of_range(x, "finite");
        }
        if !range.contains(&x) {
            return self.out_of_range(x, &described(&range));
        }
        // What is written is what is meant; what is used is f32. Here, so that no key can miss it.
        let used = f64::from(x as f32);
        if !holds(x) {
            return self.out_of_range(format!("{x:e}"), F32);
        }
        if !range.contains(&used) {
            let value = format!("{x}, which is {used} in f32, in which steps are computed,");
            return self.out_of_range(value, &described(&range));
        }
        Some(x)
    }

    /// One of a closed set of words.
    pub fn word<T: Copy>(&self, set: &[(&str, T)]) -> Option<T> {
        let s = self.string()?;
        if let Some((_, t)) = set.iter().find(|(w, _)| *w == s) {
            return Some(*t);
        }
        let message = format!("unknown {} `{s}`", self.key);
        let help = match nearest(&s, set.iter().map(|(w, _)| *w)) {
            Some(w) => format!("did you mean `{w}`?"),
            None => format!("there are {}", listed(set)),
        };
        self.source.error("P0106", self.span(), message, "unknown", help);
        None
    }
}

/// Whether f32 has a number as it is, rounded: 0, or one of its normal numbers.
pub fn holds(x: f64) -> bool {
    let used = f64::from(x as f32);
    x == 0.0 || (used.is_finite() && used.abs() >= f64::from(f32::MIN_POSITIVE))
}

/// What a number that [`holds`] refuses is not.
const F32: &str = "a number of f32, in which steps are computed: 0, or from 1.2e-38 to 3.4e38";

pub fn listed<T>(set: &[(&str, T)]) -> String {
    words(set.iter().map(|(w, _)| w))
}

fn words(set: impl Iterator<Item = impl Display>) -> String {
    let quoted: Vec<String> = set.map(|w| format!("`{w}`")).collect();
    quoted.join(", ")
}

fn described<T: Display>(range: &impl RangeBounds<T>) -> String {
    let low = match range.start_bound() {
        Bound::Included(x) => Some(format!("at least {x}")),
        Bound::Excluded(x) => Some(format!("greater than {x}")),
        Bound::Unbounded => None,
    };
    let high = match range.end_bound() {
        Bound::Included(x) => Some(format!("at most {x}")),
        Bound::Excluded(x) => Some(format!("less than {x}")),
        Bound::Unbounded => None,
    };
    low.into_iter().chain(high).collect::<Vec<_>>().join(" and ")
}

pub fn kind(value: &DeValue) -> &'static str {
    match value {
        DeValue::String(_) => "a string",
        DeValue::Integer(_) => "an integer",
        DeValue::Float(_) => "a number",
        DeValue::Boolean(_) => "true or false",
        DeValue::Datetime(_) => "a date",
        DeValue::Array(_) => "an array",
        DeValue::Table(_) => "a table",
    }
}
