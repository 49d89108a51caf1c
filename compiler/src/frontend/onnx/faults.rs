//! What is refused of a model, collected.

use crate::diagnostic::{Diagnostic, Diagnostics, Result};
use std::collections::BTreeSet;

/// What nodes were refused for. All are found in one go, so that a model is changed once.
#[derive(Default)]
pub struct Faults {
    /// Each with how many further nodes it is true of.
    list: Vec<(Diagnostic, usize)>,
    /// Names of results that there are none of.
    pub missing: BTreeSet<String>,
}

/// Most faults that are told one by one.
const TOLD: usize = 24;

impl Faults {
    pub fn add(&mut self, d: Diagnostic) {
        let like = |o: &Diagnostic| o.code == d.code && o.message == d.message;
        match self.list.iter_mut().find(|(o, _)| like(o)) {
            Some((_, more)) => *more += 1,
            None => self.list.push((d, 0)),
        }
    }

    /// # Errors
    /// All of them, where there are any.
    pub fn finish(self) -> Result<()> {
        let beyond = self.list.len().saturating_sub(TOLD);
        let mut all: Vec<Diagnostic> = vec![];
        for (mut d, more) in self.list.into_iter().take(TOLD) {
            match more {
                0 => {}
                1 => d.message += "; at another node too",
                n => d.message += &format!("; at {n} other nodes too"),
            }
            all.push(d);
        }
        if let (Some(last), true) = (all.last_mut(), beyond > 0) {
            last.message += &format!(" (and {beyond} other faults)");
        }
        if all.is_empty() { Ok(()) } else { Err(Diagnostics(all)) }
    }
}
