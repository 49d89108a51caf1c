//! Generated kernels on host memory against the interpreter: random programs, spaces, layouts and
//! formats, and the forms that real plans take.

use super::PRELUDE;
pub use super::samples::Case;
use super::samples::*;
use crate::cuda::launch::{Facts, Lowered, Task};
use crate::cuda::testing::{Kernels, Memory, Tolerance, difference, expected};
use precast_plan::*;

mod random;

/// A small device, so that small spaces fill it and rows are split.
pub fn facts() -> Facts {
    Facts {
        capability: (9, 0),
        multiprocessors: 4,
        shared_per_block: 227 * 1024,
        threads_per_multiprocessor: 512,
    }
}

impl Case {
    /// Every element set by `f(tensor, element)`.
    pub fn memory(&self, f: impl Fn(TensorId, u64) -> f32) -> Memory {
        let mut m = Memory::new(&self.plan, 0xA5);
        for t in 0..self.plan.tensors.len() as TensorId {
            for i in 0..m.elements(t) {
                let x = f(t, i);
                let v = match m.dtype(t) {
                    DType::U8 => Value::Int(x.abs() as i32),
                    d => match d.kind() {
                        Kind::Real => Value::Real(x),
                        Kind::Int => Value::Int(x as i32),
                        Kind::Bool => Value::Bool(x > 0.0),
                    },
                };
                m.set(t, i, v);
            }
        }
        m
    }
}

/// Every case with one tolerance.
fn with(cases: Vec<Case>, tolerance: f32) -> Vec<(Case, f32)> {
    cases.into_iter().map(|c| (c, tolerance)).collect()
}

/// Lowers, compiles and runs every case with shuffled threads, twice in different orders.
pub fn check(cases: &[(Case, f32)], fill: impl Fn(TensorId, u64) -> f32 + Copy) {
    let lowered: Vec<Lowered> = cases.iter().map(|(c, _)| c.lower(&facts())).collect();
    let kernels = Kernels::compile(PRELUDE, &lowered);
    for (i, ((case, tolerance), lowered)) in cases.iter().zip(&lowered).enumerate() {
        let before = case.memory(fill);
        let want = expected(&case.plan, &case.rows, &before);
        let mut first = before.clone();
        let describe = || {
            let dims: Vec<_> = case.rows.instances.iter().map(|i| (&i.dims, i.reduced)).collect();
            format!("case {i}, {dims:?}\n{}", case.plan.programs[0])
        };
        kernels.run(&mut first, lowered, 0).unwrap_or_else(|e| panic!("{}\n{e}", describe()));
        let all = 0..case.plan.tensors.len() as TensorId;
        let tolerance = Tolerance { relative: *tolerance, floor: 1e-3 };
        if let Some(text) = difference(&case.plan, all, &first, &want, tolerance) {
            panic!("{text}\n{}\n{:#?}", describe(), case.rows.instances);
        }
        let mut second = before.clone();
        kernels
            .run(&mut second, lowered, 1 + i as u64)
            .unwrap_or_else(|e| panic!("{}\n{e}", describe()));
        assert!(first.same_bytes(&second), "the order of threads matters: {}", describe());
    }
}

/// Values between -4 and 4 with all bits of a significand.
fn spread(t: TensorId, i: u64) -> f32 {
    let h = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15 ^ u64::from(t) << 20) >> 40;
    (h as f32 / 16_777_216.0 - 0.5) * 8.0
}

#[test]
fn every_operation_on_every_format() {
    let cases = operations().into_iter().map(|c| (c, 1e-6));
    check(&cases.chain(copies().into_iter().map(|c| (c, 0.0))).collect::<Vec<_>>(), spread);
}

#[test]
fn special_values_are_what_the_interpreter_makes_of_them() {
    let values = [
        0.0,
        -0.0,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
        1e-45,
        -1e-40,
        f32::MAX,
        65520.0,
        -3e9,
        3e9,
        2.5,
        -0.5,
        464.0,
        480.0,
        61440.0,
        1e-8,
        f32::MIN_POSITIVE,
    ];
    let fill = move |_, i: u64| values[i as usize % values.len()];
    let code = "load 0|load 1|max %0 %1|min %0 %1|to_int %0|is_finite %0|round.f16 %0|\
        round.bf16 %0|round.f8e4m3 %0|round.f8e5m2 %0|lt %0 %1|reduce.max %0|reduce.min %0|\
        floor %0|round_even %0|to_bool %0|neg %0";
    let f = DType::F32;
    let mut outputs: Vec<(DType, u32)> =
        [2, 3, 6, 7, 8, 9, 11, 12, 13, 14, 16].map(|r| (f, r)).into();
    outputs.extend([(DType::I32, 4), (DType::Bool, 5), (DType::Bool, 10), (DType::Bool, 15)]);
    outputs.extend([(DType::F16, 0), (DType::Bf16, 0), (DType::F8e4m3, 0), (DType::F8e5m2, 0)]);
    let p = program(&[(f, false), (f, false)], code, &outputs);
    check(&[(simple(p, &[18, 19], 1), 0.0)], fill);
}

#[test]
fn uniform_is_the_same_stream_in_every_layout() {
    check(&with(uniforms(), 0.0), spread);
}

#[test]
fn rows_of_every_length_and_orientation() {
    check(&with(lengths(), 3e-4), spread);
}

#[test]
fn what_is_written_in_place_is_read_first() {
    check(&with(in_place(), 1e-5), spread);
}

#[test]
fn many_tensors_share_launches() {
    let [updates, norms, most] = many();
    assert_eq!(updates.lower(&facts()).tasks.len(), 1);
    assert_eq!(norms.lower(&facts()).tasks.len(), 2);
    assert_eq!(most.lower(&facts()).tasks.len(), 2);
    check(&[(updates, 1e-6), (norms, 2e-5), (most, 0.0)], spread);
}

#[test]
fn transposed_inputs_pass_through_tiles() {
    let cases = transposed();
    let tiled = cases.iter().filter(|c| {
        let Task::Launch(l) = &c.lower(&facts()).tasks[0] else {
            return false;
        };
        l.source.text.contains("tile0")
    });
    assert_eq!(tiled.count(), cases.len());
    check(&with(cases, 0.0), spread);
}

/// The texts of a lowered step, without the hashes in their names.
fn shown(case: &Case) -> String {
    use crate::cuda::launch::Task;
    let h200 = Facts { multiprocessors: 132, threads_per_multiprocessor: 2048, ..facts() };
    let texts = case.lower(&h200).tasks.into_iter().map(|t| {
        let Task::Launch(l) = t else { unreachable!("row programs are launches") };
        let hash = l.source.entry.rfind('_').expect("a hash");
        let text = l.source.text.replace(&l.source.entry[hash..], "");
        format!("grid {:?} block {:?} shared {}\n{text}", l.grid, l.block, l.shared)
    });
    texts.collect::<Vec<_>>().join("\n")
}

#[test]
fn texts_a_person_may_read() {
    let [softmax, norm, _] = <[Program; 3]>::try_from(stages()).expect("three programs");
    let gelu = "load 0|load 1|add %0 %1|real 0.70710677|mul %2 %3|erf %4|real 1|add %5 %6|\
        real 0.5|mul %2 %8|mul %9 %7";
    let bf = DType::Bf16;
    let mut case = Case::new(program(&[(bf, false), (DType::F32, false)], gelu, &[(bf, 10)]));
    let dims = [512, 768];
    let x = case.access(bf, &dims, 0, &[768, 1]);
    let b = case.access(DType::F32, &dims, 0, &[0, 1]);
    let y = case.access(bf, &dims, 0, &[768, 1]);
    case.instance(&dims, 0, vec![x, b], vec![y]);
    insta::assert_snapshot!("bias_gelu", shown(&case.whole()));
    let mut case = Case::new(norm);
    let dims = [8192, 768];
    let x = case.access(bf, &dims, 0, &[768, 1]);
    let g = case.access(DType::F32, &dims, 0, &[0, 1]);
    let outs = [(bf, [768, 1]), (DType::F32, [1, 0]), (DType::F32, [1, 0])];
    let outs = outs.map(|(d, s)| case.access(d, &dims, 0, &s)).into();
    case.instance(&dims, 1, vec![x, g], outs);
    insta::assert_snapshot!("norm_of_short_rows", shown(&case.whole()));
    insta::assert_snapshot!("softmax_of_few_long_rows", shown(&simple(softmax, &[4, 1 << 18], 1)));
    let p = program(&[(bf, false)], "load 0|reduce.sum %0", &[(DType::F32, 1)]);
    let mut case = Case::new(p);
    let x = case.access(bf, &[768, 8192], 0, &[1, 768]);
    let y = case.access(DType::F32, &[768, 8192], 0, &[1, 0]);
    case.instance(&[768, 8192], 1, vec![x], vec![y]);
    insta::assert_snapshot!("column_sums", shown(&case.whole()));
}

/// Also where the mean is large beside what surrounds it.
#[test]
fn means_and_squares_are_found_in_one_pass() {
    let cases = moments();
    for case in &cases {
        let passes = case.lower(&facts()).tasks.len();
        let dims = &case.rows.instances[0].dims;
        assert_eq!(passes, 3, "columns and points {dims:?}: moments, their results, the rest");
    }
    check(&with(cases, 2e-4), |t, i| match t {
        0 => 30.0 + ((i * 7919) % 1009) as f32 / 500.0,
        _ => spread(t, i),
    });
}

#[test]
fn rows_with_gaps_are_read_in_vectors() {
    let cases = gaps();
    for case in &cases {
        let lowered = case.lower(&facts());
        let Some(Task::Launch(first)) = lowered.tasks.first() else { panic!("a launch") };
        let text = &first.source.text;
        assert!(text.contains("lane < ") && !text.contains("v += 1)"), "{text}");
        assert!(text.contains("load<8>(") || text.contains("load<4>("), "{text}");
    }
    check(&with(cases, 3e-4), spread);
}

#[test]
fn points_may_lie_apart() {
    check(&with(strided(), 0.0), spread);
}

#[test]
fn columns_are_scaled_by_their_least_and_greatest() {
    check(&with(least(), 1e-3), spread);
}
