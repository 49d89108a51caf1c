//! Where the keys of a recipe are in its text, for what is found wrong after reading.

use super::Recipe;
use super::set::Text;
use crate::diagnostic::Place;
use std::collections::BTreeMap;
use std::ops::Range;
use toml::de::{DeTable, DeValue};

/// The text of a recipe and the bytes of each of its keys. Where something is written is no part
/// of what it says, so any two are equal.
#[derive(Clone, Debug, Default)]
pub struct Origin {
    text: Text,
    /// By dotted path, `loss_scale.init`, `data.dims.N`, `precision.pins.0`: from the first byte
    /// of the key (of an element of an array: of the value) to the last of the value.
    keys: BTreeMap<String, Range<usize>>,
    /// Options of the command line by the keys that they overrule.
    flags: BTreeMap<String, String>,
}

impl PartialEq for Origin {
    fn eq(&self, _: &Origin) -> bool {
        true
    }
}

impl Origin {
    pub(super) fn new(text: &Text, root: &DeTable<'_>) -> Origin {
        let mut origin = Origin { text: text.clone(), ..Origin::default() };
        origin.table("", root);
        origin
    }

    fn table(&mut self, prefix: &str, table: &DeTable<'_>) {
        for (key, value) in table {
            let path = format!("{prefix}{}", key.get_ref());
            let (from, to) = (key.span().start, value.span().end);
            self.value(path, from.min(to)..to, value.get_ref());
        }
    }

    fn value(&mut self, path: String, span: Range<usize>, value: &DeValue<'_>) {
        let inside = format!("{path}.");
        self.keys.insert(path, span);
        match value {
            DeValue::Table(t) => self.table(&inside, t),
            DeValue::Array(items) => {
                for (i, item) in items.iter().enumerate() {
                    self.value(format!("{inside}{i}"), item.span(), item.get_ref());
                }
            }
            _ => {}
        }
    }
}

impl Recipe {
    /// Whether the recipe's text has the key, given by its dotted path.
    pub fn wrote(&self, key: &str) -> bool {
        self.origin.keys.contains_key(key)
    }

    /// Another value than the one that was written is used for a key: that of an option of the
    /// command line, such as `--device a100`, which is to blame for it.
    pub fn overrule(&mut self, key: &str, flag: &str) {
        self.origin.keys.remove(key);
        self.origin.flags.insert(key.into(), flag.into());
    }

    /// The place of the first of some keys that the command line or the recipe gave, with `label` at
    /// it; the recipe itself where none did.
    pub fn place(&self, keys: &[&str], label: &str) -> Place {
        // What was said last is looked at first.
        if let Some(flag) = keys.iter().find_map(|k| self.origin.flags.get(*k)) {
            return Place::Flag { flag: flag.clone() };
        }
        match keys.iter().find_map(|k| self.origin.keys.get(*k)) {
            Some(span) => self.origin.text.place(&self.path, span.clone(), label.into()),
            None => Place::File { path: self.path.clone() },
        }
    }
}
