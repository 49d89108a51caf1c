//! All structures that an e-graph holds: what choices and bounds of small graphs are checked against.

use super::extract::{Choice, Problem};
use super::lean;

/// Every choice, as far as `most` go.
pub fn every(p: &Problem, most: usize) -> Vec<Choice> {
    let mut out = vec![];
    go(p, &mut vec![None; p.classes.len()], p.roots.clone(), most, &mut out);
    out
}

fn go(p: &Problem, choice: &mut Choice, mut open: Vec<u32>, most: usize, out: &mut Vec<Choice>) {
    let next = loop {
        match open.pop() {
            Some(c) if choice[c as usize].is_some() => {}
            other => break other,
        }
    };
    let Some(c) = next else {
        if lean::acyclic(p, choice) {
            out.push(choice.clone());
        }
        return;
    };
    for (k, candidate) in p.candidates[c as usize].iter().enumerate() {
        if out.len() < most {
            choice[c as usize] = Some(k as u32);
            let open = open.iter().chain(&candidate.children).copied().collect();
            go(p, choice, open, most, out);
        }
    }
    choice[c as usize] = None;
}
