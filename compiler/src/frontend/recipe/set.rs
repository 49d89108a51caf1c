//! Keys that a command line sets over those of a recipe: `optimizer.lr=1e-4`.
//!
//! A setting is read as a line of TOML and takes the place of what the recipe says. What is wrong with
//! it is said as of the recipe, at a place of its own.

use super::read::Source;
use crate::diagnostic::Place;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use toml::Spanned;
use toml::de::{DeTable, DeValue};

/// Of two keys only one may be written; who sets one takes back the other.
const EITHER: &[(&str, &str, &str)] = &[("train", "steps", "epochs"), ("data", "file", "files")];

/// A recipe's text with the settings behind it, each on a line of its own. Byte ranges count in the
/// whole.
#[derive(Clone, Debug, Default)]
pub struct Text {
    whole: Arc<str>,
    /// First byte of each setting.
    starts: Vec<usize>,
}

impl Text {
    pub fn new(recipe: &str, settings: &[String]) -> Text {
        let (mut whole, mut starts) = (recipe.to_string(), vec![]);
        for setting in settings {
            whole.push('\n');
            starts.push(whole.len());
            whole += &line(setting);
        }
        Text { whole: whole.into(), starts }
    }

    /// The recipe's own text.
    pub fn recipe(&self) -> &str {
        let end = self.starts.first().map_or(self.whole.len(), |s| s - 1);
        &self.whole[..end]
    }

    /// The settings, behind blanks in the place of what is before them, so that byte ranges of what is
    /// parsed count in the whole.
    pub fn settings(&self) -> Vec<String> {
        (0..self.starts.len())
            .map(|i| {
                let range = self.setting(i);
                " ".repeat(range.start) + &self.whole[range]
            })
            .collect()
    }

    fn setting(&self, i: usize) -> Range<usize> {
        let end = self.starts.get(i + 1).map_or(self.whole.len(), |next| next - 1);
        self.starts[i]..end
    }

    /// A place in the recipe, which is at `path`, or in a setting.
    pub fn place(&self, path: &Path, span: Range<usize>, label: String) -> Place {
        match self.starts.iter().rposition(|start| *start <= span.start) {
            None => Place::Span { path: path.into(), text: self.recipe().into(), span, label },
            Some(i) => {
                let own = self.setting(i);
                let within = |at: usize| at.clamp(own.start, own.end) - own.start;
                Place::Span {
                    path: PathBuf::from("--set"),
                    text: self.whole[own.clone()].into(),
                    span: within(span.start)..within(span.end),
                    label,
                }
            }
        }
    }
}

/// A setting as a line of TOML. A value that is no TOML and does not begin like any is a string.
fn line(setting: &str) -> String {
    let setting = setting.trim();
    let Some(at) = equals(setting) else { return setting.into() };
    let (key, value) = (setting[..at].trim(), setting[at + 1..].trim());
    let plain = format!("{key} = {value}");
    if value.starts_with(['"', '\'', '[', '{']) || is_one(&plain, value) {
        return plain;
    }
    // What JSON escapes, TOML does, too.
    format!("{key} = {}", serde_json::Value::String(value.into()))
}

/// Where a key ends, which may have an equals sign in quotes.
fn equals(setting: &str) -> Option<usize> {
    let mut quote = None;
    setting.char_indices().find_map(|(i, c)| match (quote, c) {
        (None, '=') => Some(i),
        (None, '"' | '\'') => {
            quote = Some(c);
            None
        }
        (Some(q), c) if q == c => {
            quote = None;
            None
        }
        _ => None,
    })
}

/// Whether a line is one key with all of `value`.
fn is_one(line: &str, value: &str) -> bool {
    let (table, errors) = DeTable::parse_recoverable(line);
    let mut level = table.get_ref();
    loop {
        let mut entries = level.iter();
        let (Some((_, last)), None) = (entries.next(), entries.next()) else { return false };
        match last.get_ref() {
            DeValue::Table(inner) => level = inner,
            _ => return errors.is_empty() && &line[last.span()] == value,
        }
    }
}

/// How many words a dotted key has.
fn words(line: &str) -> usize {
    let key = format!("{} = 0", equals(line).map_or(line, |at| &line[..at]).trim_start());
    let (table, _) = DeTable::parse_recoverable(&key);
    let (mut level, mut count) = (table.get_ref(), 0);
    while let Some((_, value)) = level.iter().next() {
        count += 1;
        match value.get_ref() {
            DeValue::Table(inner) => level = inner,
            _ => break,
        }
    }
    count
}

/// Puts settings, as [`Text::settings`] gives them, into the recipe's tree. What is wrong with them is
/// told to `source`.
pub fn apply<'t>(tree: &mut DeTable<'t>, settings: &'t [String], source: &Source) {
    for setting in settings {
        let begin = setting.len() - setting.trim_start().len();
        let (table, errors) = DeTable::parse_recoverable(setting);
        let help = "`--set KEY=VALUE`, such as `--set optimizer.lr=1e-4`: a dotted key of the recipe \
                    and a value of TOML, or a word";
        for e in &errors {
            let span = e.span().filter(|s| s.start >= begin).unwrap_or(begin..setting.len());
            source.error("P0101", span, "not a key and a value", e.message(), help);
        }
        if errors.is_empty() {
            let table = table.into_inner();
            take_back(tree, &table, source.text.recipe().len());
            merge(tree, table, words(setting), source);
        }
    }
}

/// Removes the other of two keys, of which only one may be written, where the recipe has it.
fn take_back(tree: &mut DeTable, setting: &DeTable, recipe: usize) {
    for (section, a, b) in EITHER {
        let Some(set) = setting.get(*section).and_then(|v| v.get_ref().as_table()) else {
            continue;
        };
        let Some(DeValue::Table(own)) = tree.get_mut(*section).map(Spanned::get_mut) else {
            continue;
        };
        for (one, other) in [(a, b), (b, a)] {
            let written = own.get(*other).is_some_and(|v| v.span().start < recipe);
            if written && set.contains_key(*one) && !set.contains_key(*other) {
                own.remove(*other);
            }
        }
    }
}

/// Puts the one entry of `over`, a key of so many words, into a table.
fn merge<'t>(base: &mut DeTable<'t>, over: DeTable<'t>, words: usize, source: &Source) {
    for (key, value) in over {
        let name = key.get_ref().to_string();
        match base.get_mut(name.as_str()) {
            Some(inner) if words > 1 => descend(inner, &name, key.span(), value, words - 1, source),
            _ => {
                // The key's own place is that of the setting, too.
                base.remove(name.as_str());
                base.insert(key, value);
            }
        }
    }
}

/// [`merge`] into what stands under a key.
fn descend<'t>(
    base: &mut Spanned<DeValue<'t>>,
    name: &str,
    key: Range<usize>,
    over: Spanned<DeValue<'t>>,
    words: usize,
    source: &Source,
) {
    let DeValue::Table(over) = over.into_inner() else { return };
    match base.get_mut() {
        DeValue::Table(inner) => merge(inner, over, words, source),
        DeValue::Array(items) => {
            let count = items.len();
            for (key, value) in over {
                let word = key.get_ref().to_string();
                let item = word.parse().ok().and_then(|i: usize| items.get_mut(i));
                match item {
                    Some(item) if words > 1 => {
                        descend(item, &word, key.span(), value, words - 1, source);
                    }
                    Some(item) => *item = value,
                    None => {
                        let message = format!("`{name}` has no element `{word}`");
                        let label = format!("elements count from 0; there are {count}");
                        source.error("P0104", key.span(), message, label, "");
                    }
                }
            }
        }
        other => {
            let message = format!("`{name}` is {}, not a table", super::read::kind(other));
            source.error("P0104", key, message, "has no keys of its own", "");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_are_toml_or_words() {
        for (setting, want) in [
            ("optimizer.lr=1e-4", "optimizer.lr = 1e-4"),
            ("precision.policy=bf16", "precision.policy = \"bf16\""),
            (" target.device = cuda:1 ", "target.device = \"cuda:1\""),
            ("data.shuffle=false", "data.shuffle = false"),
            ("data.file='a b.csv'", "data.file = 'a b.csv'"),
            ("data.file=a#b.csv", "data.file = \"a#b.csv\""),
            ("data.dims={N=4}", "data.dims = {N=4}"),
            ("data.inputs.\"a=b\"=c", "data.inputs.\"a=b\" = \"c\""),
            // What only begins as a number is a word, and a second line is a part of it.
            ("train.steps=5#x", "train.steps = \"5#x\""),
            ("train.steps=", "train.steps = \"\""),
            ("train.freeze=[1", "train.freeze = [1"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(line(setting), want);
        }
        assert!(!line("a=1\nmodel='x'").contains('\n'));
    }

    #[test]
    fn words_of_keys_are_counted() {
        for (line, want) in [("a = 1", 1), ("  a.b.c = { d = 2 }", 3), ("a.\"b.c\" = 1", 2)] {
            assert_eq!(words(line), want, "{line}");
        }
    }
}
