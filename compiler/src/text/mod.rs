//! Textual IR: what `precast show` prints, what filetests are written in, and a model format of its
//! own.
//!
//! `print(parse(t)) == t` for every text that [`print()`] wrote, and `parse(print(g))` is `g`. The
//! grammar is in `docs/IR.md`. Written by hand, a text may leave out node names, and result types
//! where they follow from the operands; values may have any label (`%hidden`).

mod lex;
mod line;
mod parse;
mod print;
#[cfg(test)]
mod tests;

pub use parse::parse;
pub use print::print;

use crate::ir::{Region, VarRole};

const REGIONS: [Region; 3] = [Region::Forward, Region::Backward, Region::Update];

const ROLES: [(&str, VarRole); 7] = [
    ("param", VarRole::Param),
    ("buffer", VarRole::Buffer),
    ("optimizer", VarRole::Optimizer),
    ("ema", VarRole::Ema),
    ("accumulator", VarRole::Accumulator),
    ("machine", VarRole::Machine),
    ("weight_copy", VarRole::WeightCopy),
];

/// Whether a name can stand without quotes.
fn is_bare(name: &str) -> bool {
    let mut chars = name.bytes();
    chars.next().is_some_and(is_word_start) && chars.all(is_word_char)
}

fn is_word_start(c: u8) -> bool {
    c.is_ascii_alphabetic() || c == b'_' || c == b'/'
}

fn is_word_char(c: u8) -> bool {
    c.is_ascii_alphanumeric() || b"_/.+-".contains(&c)
}

/// Operations whose `dtype` and `shape` attributes repeat their result type, and are left out where
/// they do.
fn repeats_type(op: &str) -> bool {
    op == "input" || op == "var"
}
