//! The plan file: JSON, one short container a line, fields in declaration order.

use crate::digest::{Seal, Sealed};
use crate::schema::{Plan, VERSION};
use serde::Deserialize;

/// Containers that fit this many characters stay on one line.
const WIDTH: usize = 110;

impl Plan {
    /// The plan file's text, with its digest. The same plan gives the same bytes.
    pub fn to_json(&self) -> String {
        let mut compact = serde_json::to_string(self).expect("a plan has string keys only");
        // Behind the version, which is the first field.
        let first = compact.find(',').expect("a plan has fields");
        compact.insert_str(first, &format!(",\"digest\":\"{}\"", self.digest()));
        let mut out = String::with_capacity(compact.len() * 2);
        let end = layout(compact.as_bytes(), 0, 0, &mut out);
        debug_assert_eq!(end, compact.len());
        out.push('\n');
        out
    }

    /// Reads a plan file. The result is well formed, not yet valid: see [`Plan::validate`].
    ///
    /// # Errors
    /// Another version, text that is not a plan, or a plan that was changed since it was written: one
    /// line that says what and where.
    pub fn from_json(text: &str) -> Result<Plan, String> {
        match Plan::unsealed(text)? {
            (plan, Seal::Whole | Seal::Absent) => Ok(plan),
            (plan, Seal::Changed) => Err(format!(
                "the plan was changed since it was written: what it says has the digest {}, not the \
                 one beside it",
                plan.digest()
            )),
        }
    }

    /// As [`Plan::from_json`], whether the plan was changed or not.
    ///
    /// # Errors
    /// Another version, or text that is not a plan.
    pub fn unsealed(text: &str) -> Result<(Plan, Seal), String> {
        #[derive(Deserialize)]
        struct Head {
            version: u32,
        }
        let head: Head =
            serde_json::from_str(text).map_err(|e| format!("this is not a plan file: {e}"))?;
        if head.version != VERSION {
            return Err(format!(
                "this plan has version {}; this program reads version {VERSION}: compile it again",
                head.version
            ));
        }
        let read: Sealed =
            serde_json::from_str(text).map_err(|e| format!("the plan file is damaged: {e}"))?;
        let seal = match read.digest {
            None => Seal::Absent,
            Some(d) if d == read.plan.digest() => Seal::Whole,
            Some(_) => Seal::Changed,
        };
        Ok((read.plan, seal))
    }
}

/// Index after the value that starts at `at`.
fn skip(text: &[u8], mut at: usize) -> usize {
    let mut depth = 0;
    loop {
        match text[at] {
            b'"' => at = string_end(text, at) - 1,
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth -= 1,
            _ => {}
        }
        at += 1;
        if depth == 0 && (at == text.len() || matches!(text[at], b',' | b'}' | b']' | b':')) {
            return at;
        }
    }
}

fn string_end(text: &[u8], mut at: usize) -> usize {
    at += 1;
    while text[at] != b'"' {
        at += if text[at] == b'\\' { 2 } else { 1 };
    }
    at + 1
}

/// Copies the compact value at `at` with spaces after separators.
fn one_line(text: &[u8], mut at: usize, end: usize, out: &mut String) {
    while at < end {
        let next = if text[at] == b'"' { string_end(text, at) } else { at + 1 };
        out.push_str(std::str::from_utf8(&text[at..next]).expect("cut at ASCII"));
        if matches!(text[at], b',' | b':') {
            out.push(' ');
        }
        at = next;
    }
}

fn layout(text: &[u8], at: usize, indent: usize, out: &mut String) -> usize {
    let end = skip(text, at);
    let container = matches!(text[at], b'{' | b'[');
    if !container || end - at + 2 * indent <= WIDTH {
        one_line(text, at, end, out);
        return end;
    }
    out.push(text[at] as char);
    let mut i = at + 1;
    while i < end - 1 {
        out.push('\n');
        out.extend(std::iter::repeat_n(' ', 2 * (indent + 1)));
        if text[at] == b'{' {
            let key = string_end(text, i);
            one_line(text, i, key + 1, out);
            i = key + 1;
        }
        i = layout(text, i, indent + 1, out);
        if text[i] == b',' {
            out.push(',');
            i += 1;
        }
    }
    out.push('\n');
    out.extend(std::iter::repeat_n(' ', 2 * indent));
    out.push(text[end - 1] as char);
    end
}
