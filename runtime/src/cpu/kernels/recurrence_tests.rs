use super::super::testing::{Buf, Rng, same_for_any_thread_count};
use super::*;

/// Tensors of one problem, in f32.
struct Problem {
    p: Recurrence,
    gates: Buf,
    matrix: Buf,
    states: Buf,
    bias: Buf,
    d_y: Buf,
}

struct Results {
    y: Buf,
    kept: Buf,
    before: Buf,
    d_gates: Buf,
    d_states: Buf,
}

impl Problem {
    fn random(cell: RecurrentCell, way: Way, steps: usize, batch: usize, hidden: usize) -> Problem {
        let squash = match cell {
            RecurrentCell::Rnn => [Squash::Tanh; 3],
            _ => [Squash::Sigmoid, Squash::Tanh, Squash::Tanh],
        };
        let p = Recurrence { cell, squash, way, steps, batch, hidden };
        let (rng, d) = (&mut Rng(9), way.directions());
        let each = batch * d * hidden;
        let of = |rng: &mut Rng, n: usize, scale: f32| {
            let values: Vec<f32> = (0..n).map(|_| scale * rng.unit()).collect();
            Buf::new(DType::F32, &values)
        };
        Problem {
            p,
            gates: of(rng, steps * cell.gates() * each, 1.0),
            matrix: of(rng, d * cell.gates() * hidden * hidden, 1.0 / (hidden as f32).sqrt()),
            states: of(rng, cell.states() * each, 1.0),
            bias: of(rng, d * hidden, 1.0),
            d_y: of(rng, (steps + cell.states()) * each, 1.0),
        }
    }

    fn run(&self) -> Results {
        let p = &self.p;
        let each = p.batch * p.directions() * p.hidden;
        let poison = |n: usize| Buf::poisoned(DType::F32, n * each);
        let mut r = Results {
            y: poison(p.steps + p.cell.states()),
            kept: poison(p.steps * p.cell.kept()),
            before: poison(p.steps),
            d_gates: poison(p.steps * p.cell.gates()),
            d_states: poison(p.cell.states()),
        };
        let read = |b: &Buf| Dense { ptr: b.ptr().cast_mut(), dtype: b.dtype };
        let write = |b: &mut Buf| Dense { ptr: b.ptr_mut(), dtype: b.dtype };
        let x = Forward {
            gates: read(&self.gates),
            matrix: read(&self.matrix),
            states: read(&self.states),
            bias: p.cell.has_bias().then(|| read(&self.bias)),
            peephole: None,
            lengths: None,
            y: write(&mut r.y),
            kept: write(&mut r.kept),
            before: write(&mut r.before),
        };
        let back = Backward {
            matrix: x.matrix,
            kept: x.kept,
            before: x.before,
            d_y: read(&self.d_y),
            peephole: None,
            lengths: None,
            d_gates: write(&mut r.d_gates),
            d_states: write(&mut r.d_states),
        };
        let mut scratch = vec![0; p.scratch_bytes(true).max(p.scratch_bytes(false))];
        // SAFETY: buffers of the sizes of the problem.
        unsafe {
            p.forward(&x, &mut scratch);
            p.backward(&back, &mut scratch);
        }
        r
    }
}

/// States wider than a block of k, sequences that are no whole panels, both directions.
#[test]
fn a_plain_cell_by_its_definition() {
    for (steps, batch, h) in [(3, 1, 33), (2, 13, 300), (3, 50, 16), (2, 100, 40)] {
        let a = Problem::random(RecurrentCell::Rnn, Way::Both, steps, batch, h);
        let r = a.run();
        for (b, d) in (0..batch).flat_map(|b| [(b, 0), (b, 1)]) {
            let row = |t: usize| ((t * batch + b) * 2 + d) * h;
            let weight = |i: usize, j: usize| a.matrix.get((d * h + i) * h + j);
            let order: Vec<usize> =
                (0..steps).map(|t| if d == 1 { steps - 1 - t } else { t }).collect();
            let mut state: Vec<f64> = (0..h).map(|j| a.states.get(row(0) + j)).collect();
            for &t in &order {
                let new: Vec<f64> = (0..h)
                    .map(|i| {
                        let sum: f64 = (0..h).map(|j| weight(i, j) * state[j]).sum();
                        (a.gates.get(row(t) + i) + sum).tanh()
                    })
                    .collect();
                for j in 0..h {
                    assert!((r.before.get(row(t) + j) - state[j]).abs() < 1e-5);
                    assert!((r.y.get(row(t) + j) - new[j]).abs() < 1e-5, "{steps} {batch} {h}");
                }
                state = new;
            }
            let mut grad: Vec<f64> = (0..h).map(|j| a.d_y.get(row(steps) + j)).collect();
            for &t in order.iter().rev() {
                let g: Vec<f64> = (0..h)
                    .map(|j| {
                        let y = r.y.get(row(t) + j);
                        (grad[j] + a.d_y.get(row(t) + j)) * (1.0 - y * y)
                    })
                    .collect();
                for (j, g) in g.iter().enumerate() {
                    assert!((r.d_gates.get(row(t) + j) - g).abs() < 2e-5, "{steps} {batch} {h}");
                }
                grad = (0..h).map(|j| (0..h).map(|i| weight(i, j) * g[i]).sum()).collect();
            }
            for (j, g) in grad.iter().enumerate() {
                assert!((r.d_states.get(row(0) + j) - g).abs() < 2e-5);
                assert_eq!(r.y.get(row(steps) + j), r.y.get(row(order[steps - 1]) + j));
            }
        }
    }
}

#[test]
fn results_have_the_same_bits_for_any_number_of_threads() {
    for cell in RecurrentCell::ALL {
        let a = Problem::random(cell, Way::Both, 3, 29, 70);
        let bytes = same_for_any_thread_count(|| {
            let r = a.run();
            [r.y, r.kept, r.before, r.d_gates, r.d_states].map(|b| b.bytes().to_vec())
        });
        let finite = |b: &Vec<u8>| {
            b.chunks_exact(4).all(|x| f32::from_le_bytes(x.try_into().expect("four")).is_finite())
        };
        assert!(bytes.iter().all(finite), "{cell:?} leaves something unwritten");
    }
}
