//! Recurrences beside the CPU's kernel, in every form.

use super::{Memory, large, tiny};
use crate::cpu::kernels::recurrence::{Backward, Dense, Forward, Recurrence as OnCpu};
use crate::cuda::kernels::recurrence_samples::varied;
use crate::cuda::kernels::samples::Sample;
use crate::cuda::kernels::{lower_recurrence, lower_recurrence_grad};
use crate::cuda::launch::{Facts, Lowered};
use precast_plan::{Access, DType, Plan};

fn close(plan: &Plan, a: &Access, got: &Memory, want: &Memory, wider: f64, what: &str) {
    let t = &plan.tensors[a.tensor as usize];
    let n = t.shape.iter().product::<u64>() as usize;
    let flat = Access { strides: vec![1], ..a.clone() };
    // Neighbours of a rounding in 16 bits, and f32 sums in another order.
    let step = match t.dtype {
        DType::F32 => 1e-5,
        d => 2.0 * 2f64.powi(-(d.facts().mantissa_bits as i32)),
    };
    for i in 0..n {
        let (g, w) = (got.get(&flat, &[i]), want.get(&flat, &[i]));
        assert!(
            (g - w).abs() <= step * wider * w.abs().max(0.5),
            "{what}, element {i}: {g}, not {w}"
        );
    }
}

fn check(batch: u64, steps: u64, hidden: u64, facts: &Facts) {
    for sample in varied(batch, steps, hidden) {
        let mut s = Sample::new();
        let (forward, back) = sample.build(&mut s);
        let fill = |m: &mut Memory| {
            let scaled = [&forward.matrix, &forward.gates];
            let mut list = vec![&forward.states, &back.d_y];
            list.extend(scaled);
            list.extend(&forward.bias);
            list.extend(&forward.peephole);
            for a in list {
                m.random(a.tensor, 3 + u64::from(a.tensor));
            }
            // States neither vanish nor grow.
            let scale = (4.0 / hidden as f64).sqrt().min(1.0);
            let dims = sample.shape.matrix_dims();
            for (d, i) in
                (0..dims[0] as usize).flat_map(|d| (0..dims[1] as usize).map(move |i| (d, i)))
            {
                for j in 0..dims[2] as usize {
                    let at = [d, i, j];
                    m.set(&forward.matrix, &at, scale * m.get(&forward.matrix, &at));
                }
            }
            if let (Some(f), Some(b)) = (&forward.peephole, &back.peephole) {
                for i in 0..sample.shape.peephole_dims()[1] as usize {
                    for d in 0..sample.shape.directions() as usize {
                        m.set(b, &[d, i], m.get(f, &[d, i]));
                    }
                }
            }
            for i in 0..batch as usize {
                let n = [steps as f64, 1.0, 0.0, 2.0][i % 4].min(steps as f64);
                for a in forward.lengths.iter().chain(&back.lengths) {
                    m.set(a, &[i], n);
                }
            }
        };
        let (mut gpu, mut cpu) = (Memory::new(&s.plan), Memory::new(&s.plan));
        fill(&mut gpu);
        fill(&mut cpu);
        let mut lowered = Lowered::default();
        lower_recurrence(&s.plan, &forward, facts, &mut lowered).expect("it lowers");
        gpu.run(&lowered, 5);
        let mut lowered = Lowered::default();
        lower_recurrence_grad(&s.plan, &back, facts, &mut lowered).expect("it lowers");
        gpu.run(&lowered, 7);

        let dense = |a: &Access| Dense {
            ptr: cpu.element(a, &vec![0; a.strides.len()]).1,
            dtype: s.plan.tensors[a.tensor as usize].dtype,
        };
        let optional = |a: &Option<Access>| a.as_ref().map(dense);
        let problem = OnCpu::new(&sample.shape);
        let mut scratch = vec![0; problem.scratch_bytes(true).max(problem.scratch_bytes(false))];
        let (there, again) = (
            Forward {
                gates: dense(&forward.gates),
                matrix: dense(&forward.matrix),
                states: dense(&forward.states),
                bias: optional(&forward.bias),
                peephole: optional(&forward.peephole),
                lengths: optional(&forward.lengths),
                y: dense(&forward.y),
                kept: dense(&forward.kept),
                before: dense(&forward.before),
            },
            Backward {
                matrix: dense(&back.matrix),
                kept: dense(&back.kept),
                before: dense(&back.before),
                d_y: dense(&back.d_y),
                peephole: optional(&back.peephole),
                lengths: optional(&back.lengths),
                d_gates: dense(&back.d_gates),
                d_states: dense(&back.d_states),
            },
        );
        // SAFETY: tensors of the sizes of the sample.
        unsafe {
            problem.forward(&there, &mut scratch);
            problem.backward(&again, &mut scratch);
        }
        for (what, a, _) in forward.writes().into_iter().chain(back.writes()) {
            // Long sums of a matrix whose elements are large, read back into themselves.
            let wider = (hidden as f64 / 4.0).sqrt().max(1.0);
            close(&s.plan, a, &gpu, &cpu, wider, &format!("{what} of {sample:?}"));
        }
    }
}

#[test]
fn a_sequence_for_every_block() {
    check(5, 4, 6, &large());
}

#[test]
fn several_sequences_for_a_block() {
    check(11, 3, 5, &tiny());
}

#[test]
fn states_wider_than_a_pass_of_columns() {
    check(3, 2, 140, &large());
}
