//! Text to tokens. Statements end at the end of their line.

use super::{is_word_char, is_word_start};
use std::ops::Range;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    /// `matmul`, `f32`, `fc1.weight`
    Word(String),
    /// `"anything"`
    Str(String),
    Int(i64),
    Real(f64),
    /// `%12`, `%hidden`
    Value(String),
    /// `<00ff>`
    Hex(Vec<u8>),
    /// `@`, `=`, `:`, `,`, brackets
    Punct(char),
}

impl Token {
    pub fn describe(&self) -> String {
        match self {
            Token::Word(w) => format!("`{w}`"),
            Token::Str(_) => "a string".into(),
            Token::Int(_) => "an integer".into(),
            Token::Real(_) => "a number".into(),
            Token::Value(v) => format!("`%{v}`"),
            Token::Hex(_) => "bytes".into(),
            Token::Punct(c) => format!("`{c}`"),
        }
    }
}

/// A token and the bytes of the text it came from.
pub type Spanned = (Token, Range<usize>);

/// What is wrong with a line, and where.
pub type LexError = (String, Range<usize>);

/// The tokens of `text[line]`, without its comment.
pub fn lex(text: &str, line: Range<usize>) -> Result<Vec<Spanned>, LexError> {
    let bytes = text.as_bytes();
    let mut tokens = Vec::new();
    let mut at = line.start;
    let end = line.end;
    let run = |from: usize, keep: &dyn Fn(u8) -> bool| {
        (from..end).find(|&i| !keep(bytes[i])).unwrap_or(end)
    };
    while at < end {
        let c = bytes[at];
        let start = at;
        let token = match c {
            b' ' | b'\t' | b'\r' => {
                at += 1;
                continue;
            }
            b'#' => break,
            b'"' => {
                let (s, next) = string(text, start, end)?;
                at = next;
                Token::Str(s)
            }
            b'%' => {
                at = run(start + 1, &|c| c.is_ascii_alphanumeric() || c == b'_' || c == b'.');
                if at == start + 1 {
                    return Err(("a value has a label, such as `%0`".into(), start..at));
                }
                Token::Value(text[start + 1..at].into())
            }
            b'<' => {
                at = run(start + 1, &|c| c.is_ascii_hexdigit());
                if at == end || bytes[at] != b'>' {
                    return Err(("expected bytes in base 16 and `>`".into(), start..at));
                }
                let hex = hex(&bytes[start + 1..at]);
                at += 1;
                Token::Hex(
                    hex.ok_or_else(|| ("an odd number of base-16 digits".to_string(), start..at))?,
                )
            }
            b'0'..=b'9' | b'-' => {
                at = run(start + 1, &|c| c.is_ascii_alphanumeric() || b".+-".contains(&c));
                number(&text[start..at]).ok_or_else(|| ("not a number".to_string(), start..at))?
            }
            c if is_word_start(c) => {
                at = run(start, &is_word_char);
                Token::Word(text[start..at].into())
            }
            b'@' | b'=' | b':' | b',' | b'(' | b')' | b'[' | b']' | b'{' | b'}' => {
                at += 1;
                Token::Punct(c as char)
            }
            _ => {
                let c = text[start..].chars().next().expect("within the line");
                return Err((format!("unexpected character {c:?}"), start..start + c.len_utf8()));
            }
        };
        tokens.push((token, start..at));
    }
    Ok(tokens)
}

fn number(s: &str) -> Option<Token> {
    if let Ok(x) = s.parse::<i64>() {
        return Some(Token::Int(x));
    }
    // Rust reads `infinity` and `NaN` too; the language has one spelling of each.
    let spelled = s == "-inf" || !s.bytes().any(|c| c.is_ascii_alphabetic() && c != b'e');
    s.parse::<f64>().ok().filter(|_| spelled).map(Token::Real)
}

fn hex(digits: &[u8]) -> Option<Vec<u8>> {
    let digit = |c: u8| (c as char).to_digit(16).map(|d| d as u8);
    let (pairs, rest) = digits.as_chunks::<2>();
    if !rest.is_empty() {
        return None;
    }
    pairs.iter().map(|[a, b]| Some(digit(*a)? << 4 | digit(*b)?)).collect()
}

/// A quoted string from its opening quote; gives the byte after the closing one.
fn string(text: &str, start: usize, end: usize) -> Result<(String, usize), LexError> {
    let mut out = String::new();
    let mut chars = text[start..end].char_indices().skip(1);
    while let Some((i, c)) = chars.next() {
        match c {
            '"' => return Ok((out, start + i + 1)),
            '\\' => {
                let escaped = match chars.next() {
                    Some((_, c @ ('"' | '\\'))) => Some(c),
                    Some((_, 'n')) => Some('\n'),
                    Some((_, 't')) => Some('\t'),
                    Some((_, 'u')) => {
                        let digits: String =
                            chars.by_ref().map(|(_, c)| c).take_while(|&c| c != '}').collect();
                        let digits = digits.strip_prefix('{');
                        digits
                            .and_then(|d| u32::from_str_radix(d, 16).ok())
                            .and_then(char::from_u32)
                    }
                    _ => None,
                };
                let at = start + i;
                out.push(escaped.ok_or_else(|| ("unknown escape".to_string(), at..at + 1))?);
            }
            c => out.push(c),
        }
    }
    Err(("the string has no end".into(), start..end))
}
