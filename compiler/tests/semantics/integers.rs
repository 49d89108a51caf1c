//! Reductions of integers are exact in 32 bits.

use crate::cases::{Case, Gradient, ints};
use crate::rng::Rng;
use crate::table::graph_of;
use precast_compiler::ops::ReduceInt;
use precast_compiler::reference;
use precast_plan::{DType, ReduceOp};

/// The reduction of each row.
fn reduced(f: ReduceOp, rows: usize, x: &[i64]) -> Vec<i64> {
    let shape = [rows, x.len() / rows];
    let case = Case {
        op: ReduceInt { f, axes: vec![1] }.into(),
        x: vec![ints(DType::I32, shape, x)],
        gradient: Gradient::Checked,
    };
    let (g, inputs, node) = graph_of(&case);
    let out = reference::eval(&g, &inputs, &inputs).unwrap();
    out.value(g.node(node).outputs[0]).ints().to_vec()
}

fn check(rows: usize, x: &[i64]) {
    for &f in ReduceOp::ALL {
        let want: Vec<i64> = x
            .chunks(x.len() / rows)
            .map(|row| match f {
                ReduceOp::Sum => row.iter().sum::<i64>().clamp(i32::MIN.into(), i32::MAX.into()),
                ReduceOp::Max => *row.iter().max().unwrap(),
                ReduceOp::Min => *row.iter().min().unwrap(),
            })
            .collect();
        assert_eq!(reduced(f, rows, x), want, "{} of rows of {}", f.name(), x.len() / rows);
    }
}

#[test]
fn every_bit_counts() {
    let (low, high) = (i64::from(i32::MIN), i64::from(i32::MAX));
    for row in [
        vec![high, -high, 1, 16_777_217],
        vec![low, high],
        vec![low, 0, 0, 5],
        vec![-1, -65_536, -65_537],
        vec![1 << 24, 1, 1],
        vec![-7],
        // Beyond 32 bits the nearest.
        vec![high, 1],
        vec![low, -1],
        vec![high; 40],
        vec![low; 40],
    ] {
        check(1, &row);
    }
    let mut rng = Rng(5);
    for (rows, columns) in [(7, 33), (3, 1000)] {
        let any = (0..rows * columns).map(|_| rng.below(1 << 24) as i64 - (1 << 23));
        check(rows, &any.collect::<Vec<_>>());
        let near = (0..rows * columns).map(|_| high - rng.below(3) as i64);
        check(rows, &near.collect::<Vec<_>>());
    }
}

/// More elements have digits of fewer bits.
#[test]
fn long_rows_are_exact() {
    for n in [65_793, 65_794, 300_000] {
        let row: Vec<i64> = (0..n).map(|i| (i * 7919 % 65_521) - 32_700).collect();
        check(1, &row);
        check(1, &vec![7_001; n as usize]);
    }
}
