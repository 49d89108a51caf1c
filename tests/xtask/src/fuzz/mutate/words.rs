//! Texts of words, numbers and signs, in lines.

use super::rng::Rng;
use super::{INTEGERS, REALS};
use std::ops::Range;

/// Runs of letters and digits, and single other characters; spaces and line ends belong to none.
fn words(text: &[u8]) -> Vec<Range<usize>> {
    let class = |b: u8| match b {
        b'a'..=b'z' | b'A'..=b'Z' | b'_' | 128.. => 1,
        b'0'..=b'9' => 2,
        b' ' | b'\t' | b'\n' | b'\r' => 0,
        _ => 3,
    };
    let mut out: Vec<Range<usize>> = vec![];
    for (i, &b) in text.iter().enumerate() {
        let c = class(b);
        // A word may hold digits, a number may not hold letters.
        let goes_on = i > 0 && (class(text[i - 1]) == c || (c == 2 && class(text[i - 1]) == 1));
        match out.last_mut() {
            Some(last) if c != 0 && c != 3 && goes_on && last.end == i => last.end = i + 1,
            _ if c != 0 => out.push(i..i + 1),
            _ => {}
        }
    }
    out
}

fn lines(text: &[u8]) -> Vec<Range<usize>> {
    let mut at = 0;
    text.split_inclusive(|&b| b == b'\n')
        .map(|line| {
            at += line.len();
            at - line.len()..at
        })
        .collect()
}

/// A text with a word or a line changed, removed, repeated or moved.
pub fn mutate(input: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = input.to_vec();
    let put = |out: &mut Vec<u8>, at: Range<usize>, new: &[u8]| {
        out.splice(at, new.iter().copied());
    };
    let (words_in, lines_in) = (words(input), lines(input));
    let (Some(word), Some(line)) = (rng.of(&words_in).cloned(), rng.of(&lines_in).cloned()) else {
        return super::bytes::mutate(input, other, rng);
    };
    match rng.below(10) {
        0 | 1 => {
            let numbers: Vec<_> =
                words_in.iter().filter(|w| input[w.start].is_ascii_digit()).cloned().collect();
            let at = rng.of(&numbers).cloned().unwrap_or(word);
            let new = match rng.one_in(3) {
                true => rng.of(REALS).expect("there are some").to_string(),
                false => rng.of(INTEGERS).expect("there are some").to_string(),
            };
            put(&mut out, at, new.as_bytes());
        }
        2..=4 => {
            let (from, list) = match rng.one_in(3) {
                true => (other, words(other)),
                false => (input, words_in),
            };
            let new = rng.of(&list).map_or(&b""[..], |w| &from[w.clone()]).to_vec();
            put(&mut out, word, &new);
        }
        5 => put(&mut out, word, b""),
        6 => put(&mut out, line, b""),
        7 => {
            let from = rng.of(&lines_in).cloned().unwrap_or(line.clone());
            let new = input[from].to_vec();
            put(&mut out, line.start..line.start, &new);
        }
        8 => {
            let list = lines(other);
            let new = rng.of(&list).map_or(&b""[..], |l| &other[l.clone()]).to_vec();
            put(&mut out, line.start..line.start, &new);
        }
        _ => {
            let again = input[word.clone()].to_vec();
            put(&mut out, word.start..word.start, &again);
        }
    }
    out
}
