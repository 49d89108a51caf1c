//! Safetensors files: the header as a document, its length, and the numbers behind it.

use super::rng::Rng;
use super::{bytes, tree};
use serde_json::Value;

/// The header and what is behind it.
fn parts(file: &[u8]) -> Option<(Value, &[u8])> {
    let n = u64::from_le_bytes(file.get(..8)?.try_into().ok()?);
    let end = usize::try_from(n).ok()?.checked_add(8)?;
    Some((serde_json::from_slice(file.get(8..end)?).ok()?, &file[end..]))
}

fn join(header: &Value, data: &[u8]) -> Vec<u8> {
    let mut head = header.to_string().into_bytes();
    head.resize(head.len().next_multiple_of(8), b' ');
    [&(head.len() as u64).to_le_bytes(), head.as_slice(), data].concat()
}

/// `None` where the file is none of its kind.
pub fn mutate(input: &[u8], other: &[u8], rng: &mut Rng) -> Option<Vec<u8>> {
    let (mut header, data) = parts(input)?;
    match rng.below(8) {
        0 => return Some(join(&header, &bytes::mutate(data, other, rng))),
        1 => {
            let mut out = join(&header, data);
            let at = rng.below(8);
            out[at] = rng.next() as u8;
            return Some(out);
        }
        // What a checkpoint says of itself is JSON in strings.
        2 | 3 => {
            if let Some(Value::Object(meta)) = header.get_mut("__metadata__")
                && let Some(key) = rng.of(&meta.keys().cloned().collect::<Vec<_>>())
                && let Some(Value::String(text)) = meta.get_mut(key)
                && let Ok(mut inner) = serde_json::from_str::<Value>(text)
            {
                // A number alone is a document without parts.
                match inner.is_number() {
                    true => *text = super::INTEGERS[rng.below(super::INTEGERS.len())].to_string(),
                    false => {
                        tree::change(&mut inner, &Value::Null, rng);
                        *text = inner.to_string();
                    }
                }
            } else {
                tree::change(&mut header, &Value::Null, rng);
            }
        }
        _ => {
            let theirs = parts(other).map_or(Value::Null, |(h, _)| h);
            tree::change(&mut header, &theirs, rng);
        }
    }
    Some(join(&header, data))
}
