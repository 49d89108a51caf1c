//! Extraction against the optimum that a solver for integer programs found.
//!
//! `tests/oracle/structures.json` holds random choices with shared parts, and
//! `tests/oracle/structures.py` found the cheapest of each with HiGHS. Extraction is a heuristic, so
//! it may cost more, but not much. With `PRECAST_ORACLE=write` the test writes the problems.

use super::*;
use crate::ops::Unary;
use precast_plan::UnaryOp;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
}

/// Classes that need only later ones; some candidates do the work of several classes at once, which
/// pays only where all of those are needed.
fn random(dice: &mut Dice, node: &ENode) -> Problem {
    let n = 24 + dice.roll(24);
    let mut candidates: Vec<Vec<Candidate>> = vec![];
    for c in 0..n {
        let left = n - c - 1;
        let count = if left == 0 { 1 } else { 1 + dice.roll(3) };
        let list = (0..count).map(|_| {
            let children: SmallVec<[u32; 4]> = match left {
                0 => SmallVec::new(),
                _ => {
                    (0..1 + dice.roll(3)).map(|_| (c + 1 + dice.roll(left.min(9))) as u32).collect()
                }
            };
            Candidate { node: node.clone(), children, price: 1 + dice.roll(1000) as Price }
        });
        candidates.push(list.collect());
    }
    let classes: Vec<Id> = (0..n).map(Id::from).collect();
    let index = classes.iter().enumerate().map(|(i, &c)| (c, i as u32)).collect();
    Problem { classes, index, candidates, roots: vec![0, 1, 2] }
}

fn written(p: &Problem) -> Value {
    let classes: Vec<Value> = p
        .candidates
        .iter()
        .map(|l| {
            l.iter().map(|k| json!({ "price": k.price, "children": k.children.to_vec() })).collect()
        })
        .collect();
    json!({ "roots": p.roots, "classes": classes })
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle").join(name)
}

fn read(name: &str) -> Value {
    let text = std::fs::read_to_string(file(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn extraction_is_near_an_integer_program() {
    let mut eg = Eg::default();
    let op = crate::ops::Op::from(Unary { f: UnaryOp::Neg });
    let node = eg.analysis.intern(Sym::Op(op), SmallVec::new());
    let mut dice = Dice(31);
    let problems: Vec<Problem> = (0..40).map(|_| random(&mut dice, &node)).collect();
    let text = Value::Array(problems.iter().map(written).collect());
    if std::env::var("PRECAST_ORACLE").is_ok_and(|v| v == "write") {
        std::fs::write(file("structures.json"), format!("{text}\n")).unwrap();
        return;
    }
    assert_eq!(text, read("structures.json"), "run structures.py on new problems");
    let answers = read("structures.answers.json");
    let answers = answers.as_array().expect("a list");
    assert_eq!(answers.len(), problems.len());
    let (mut exact, mut worst) = (0, 1.0f64);
    for (i, (p, answer)) in problems.iter().zip(answers).enumerate() {
        let ours = p.price(&p.solve(&eg));
        let best = answer.as_u64().expect("every problem has a solution");
        assert!(ours >= best, "problem {i}: {ours} is below the optimum {best}");
        exact += usize::from(ours == best);
        worst = worst.max(ours as f64 / best as f64);
    }
    println!("{exact} of {} exact, the worst {worst:.3} times the optimum", problems.len());
    assert!(exact * 2 >= problems.len(), "{exact} exact");
    assert!(worst < 1.4, "{worst}");
}
