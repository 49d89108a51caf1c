//! The cut against the optimum that a solver for integer programs found.
//!
//! `tests/oracle/labels.json` holds random problems that are too large to enumerate, and
//! `tests/oracle/labels.py` found their optimum with HiGHS, which knows nothing of cuts: every label
//! and every copy is a variable of 0 or 1 there. With `PRECAST_ORACLE=write` the test writes the
//! problems instead of reading them.

use super::*;
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

struct Dice(u64);

impl Dice {
    fn roll(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % n
    }
    fn price(&mut self) -> Price {
        (1 + self.roll(1000)) as Price * 1000
    }
    fn either(&mut self) -> Either {
        Either { full: self.price(), half: self.price() }
    }
}

/// A random model: storages, of which some may not be narrow, and kernels that read a few of them;
/// some copy elements, some have to be narrow.
fn random(dice: &mut Dice) -> Model {
    let (stores, kernels) = (20 + dice.roll(20), 15 + dice.roll(15));
    let store = |dice: &mut Dice| {
        let mut own = dice.either();
        // A wide storage moves twice the bytes, more or less.
        own.full += own.half / 2;
        if dice.roll(4) == 0 {
            own.half = NEVER;
        }
        Store { value: ValueId(0), own, cast: dice.either() }
    };
    let stores: Vec<Store> = (0..stores).map(|_| store(dice)).collect();
    let kernel = |dice: &mut Dice, node: usize| {
        let mut own = dice.either();
        own.full += own.half;
        match dice.roll(8) {
            0 => own.half = NEVER,
            1 => own.full = NEVER,
            _ => {}
        }
        let mut reads: Vec<usize> =
            (0..1 + dice.roll(3)).map(|_| dice.roll(stores.len())).collect();
        reads.sort_unstable();
        reads.dedup();
        // What copies elements writes another storage, one that may be either.
        let free = |s: &usize| stores[*s].own.half < NEVER && !reads.contains(s);
        let writes: Vec<usize> = match dice.roll(5) {
            0 if own.full < NEVER => {
                (0..stores.len()).filter(free).skip(node % 7).take(1).collect()
            }
            _ => vec![],
        };
        Kernel { node: NodeId(node as u32), own, unasked: None, reads, writes }
    };
    let kernels: Vec<Kernel> = (0..kernels).map(|i| kernel(dice, i)).collect();
    let (of_operands, fixed) = (kernels.len(), dice.price());
    Model {
        half: DType::Bf16,
        stores,
        kernels,
        of_operands,
        store_of: vec![],
        fixed,
        users: OnceLock::new(),
    }
}

fn written(m: &Model) -> Value {
    let either = |e: Either| {
        let one = |p: Price| if p >= NEVER { Value::Null } else { json!(p) };
        json!([one(e.full), one(e.half)])
    };
    let stores: Vec<Value> =
        m.stores.iter().map(|s| json!({ "own": either(s.own), "cast": either(s.cast) })).collect();
    let kernels: Vec<Value> = m
        .kernels
        .iter()
        .map(|k| json!({ "own": either(k.own), "reads": k.reads, "writes": k.writes }))
        .collect();
    json!({ "fixed": m.fixed, "stores": stores, "kernels": kernels })
}

fn file(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/oracle").join(name)
}

fn read(name: &str) -> Value {
    let text = std::fs::read_to_string(file(name)).unwrap_or_else(|e| panic!("{name}: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{name}: {e}"))
}

#[test]
fn the_cut_costs_what_an_integer_program_costs() {
    let mut dice = Dice(23);
    let models: Vec<Model> = (0..40).map(|_| random(&mut dice)).collect();
    let problems = Value::Array(models.iter().map(written).collect());
    if std::env::var("PRECAST_ORACLE").is_ok_and(|v| v == "write") {
        std::fs::write(file("labels.json"), format!("{problems}\n")).unwrap();
        return;
    }
    assert_eq!(problems, read("labels.json"), "run labels.py on new problems");
    let answers = read("labels.answers.json");
    let answers = answers.as_array().expect("a list");
    assert_eq!(answers.len(), models.len());
    let mut possible = 0;
    for (i, (m, answer)) in models.iter().zip(answers).enumerate() {
        let price = m.price(&m.cut());
        match answer.as_u64() {
            Some(best) => {
                assert_eq!(price, best, "problem {i}");
                possible += 1;
            }
            None => assert!(price >= NEVER, "problem {i} has no solution"),
        }
    }
    assert!(possible > 20, "{possible} of the problems have a solution");
}
