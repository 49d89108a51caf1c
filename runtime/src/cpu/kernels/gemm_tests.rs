use super::super::testing::{Buf, Rng, rounding, same_for_any_thread_count};
use super::*;

/// A strided random operand of `[b0, b1, rows, cols]`; dimensions in random order in memory.
fn layout(
    rng: &mut Rng,
    batch: [usize; 2],
    rows: usize,
    cols: usize,
) -> (isize, isize, [isize; 2], usize) {
    let dims = [batch[0], batch[1], rows, cols];
    let mut order = [0, 1, 2, 3];
    for i in (1..4).rev() {
        order.swap(i, rng.below(i + 1));
    }
    let mut strides = [0isize; 4];
    let mut size = 1 + rng.below(2);
    let first = size;
    for d in order {
        strides[d] = size as isize;
        size *= dims[d].max(1);
        if rng.below(3) == 0 {
            size += rng.below(5);
        }
    }
    if first == 2 {
        // A stride of 2 somewhere is tested by chance; make unit strides as common.
    }
    (strides[2], strides[3], [strides[0], strides[1]], size + first)
}

struct Problem {
    shape: Shape,
    a: (Buf, isize, isize, [isize; 2]),
    b: (Buf, isize, isize, [isize; 2]),
    c: (Buf, isize, isize, [isize; 2]),
    d: (DType, isize, isize, [isize; 2], usize),
    alpha: f32,
    beta: f32,
}

impl Problem {
    fn random(rng: &mut Rng, path: Path, sizes: &[usize]) -> Problem {
        let batch = rng.pick(&[[1, 1], [1, 1], [2, 1], [2, 3], [1, 2]]);
        let shape = Shape { batch, m: rng.pick(sizes), n: rng.pick(sizes), k: rng.pick(sizes) };
        let reals = [DType::F32, DType::F32, DType::Bf16, DType::F16, DType::F8e4m3, DType::F8e5m2];
        let (ta, tb) = match path {
            path if path.pairs() => (DType::Bf16, DType::Bf16),
            _ => (rng.pick(&reals), rng.pick(&reals)),
        };
        let mut operand = |t: DType, rows: usize, cols: usize| {
            let (rs, cs, mut bs, len) = layout(rng, batch, rows, cols);
            if rng.below(4) == 0 {
                bs = [0, 0];
            }
            (Buf::random(rng, t, len), rs, cs, bs)
        };
        let a = operand(ta, shape.m, shape.k);
        let b = operand(tb, shape.k, shape.n);
        let tc = reals[rng_index(&a.0, 4)];
        let mut rng2 = Rng(len_seed(&a.0, &b.0));
        let (rs, cs, bs, len) = layout(&mut rng2, batch, shape.m, shape.n);
        let c = (Buf::random(&mut rng2, tc, len), rs, cs, bs);
        let (mut rs, mut cs, mut bs, mut len) = layout(&mut rng2, batch, shape.m, shape.n);
        if rng2.below(2) == 0 {
            // Row-major, the form that sums go into directly.
            (rs, cs) = (shape.n as isize + rng2.below(3) as isize, 1);
            let one = rs as usize * shape.m;
            bs = [(one * batch[1]) as isize, one as isize];
            len = one * batch[0] * batch[1];
        }
        let td = rng2.pick(&[DType::F32, DType::F32, DType::Bf16, DType::F16]);
        Problem {
            shape,
            a,
            b,
            c,
            d: (td, rs, cs, bs, len.max(1)),
            alpha: rng2.pick(&[1.0, 1.0, 0.5, -1.25]),
            beta: rng2.pick(&[0.0, 0.0, 1.0, 0.75]),
        }
    }

    fn run(&self, path: Path, epilogue: Option<&dyn Epilogue>) -> Buf {
        let mat = |o: &(Buf, isize, isize, [isize; 2])| MatRef {
            ptr: o.0.ptr(),
            dtype: o.0.dtype,
            rs: o.1,
            cs: o.2,
            bs: o.3,
        };
        let (dtype, rs, cs, bs, len) = self.d;
        let mut out = Buf::new(dtype, &vec![-3.0; len]);
        let gemm = Gemm {
            shape: self.shape,
            a: mat(&self.a),
            b: mat(&self.b),
            c: Some(mat(&self.c)),
            d: Some(MatMut { ptr: out.ptr_mut(), dtype, rs, cs, bs }),
            alpha: self.alpha,
            beta: self.beta,
            epilogue,
        };
        let mut scratch = vec![0xffu8; scratch_bytes_on(path, &self.shape)];
        // SAFETY: the layouts stay inside their buffers.
        unsafe { gemm.run_on(path, &mut scratch) };
        out
    }

    fn check(&self, out: &Buf) {
        let s = &self.shape;
        let (_, rs, cs, bs, len) = self.d;
        let mut written = vec![false; len];
        for b0 in 0..s.batch[0] {
            for b1 in 0..s.batch[1] {
                let at = |o: [isize; 2], rs: isize, cs: isize, i: usize, j: usize| {
                    (b0 as isize * o[0] + b1 as isize * o[1] + i as isize * rs + j as isize * cs)
                        as usize
                };
                for i in 0..s.m {
                    for j in 0..s.n {
                        let (mut sum, mut size) = (0.0f64, 0.0f64);
                        for p in 0..s.k {
                            let x = self.a.0.get(at(self.a.3, self.a.1, self.a.2, i, p));
                            let y = self.b.0.get(at(self.b.3, self.b.1, self.b.2, p, j));
                            sum += x * y;
                            size += (x * y).abs();
                        }
                        let mut want = f64::from(self.alpha) * sum;
                        if self.beta != 0.0 {
                            want += f64::from(self.beta)
                                * self.c.0.get(at(self.c.3, self.c.1, self.c.2, i, j));
                        }
                        let e = at(bs, rs, cs, i, j);
                        written[e] = true;
                        let got = out.get(e);
                        let bound =
                            1e-6 * (size * 2.0 + want.abs() + 1.0) + rounding(out.dtype, want);
                        assert!(
                            (got - want).abs() <= bound,
                            "{s:?} ({i}, {j}): {got}, want {want}"
                        );
                    }
                }
            }
        }
        for (e, written) in written.iter().enumerate() {
            assert!(*written || out.get(e) == -3.0, "{s:?}: element {e} is not part of D");
        }
    }
}

fn rng_index(a: &Buf, n: usize) -> usize {
    a.len % n
}

fn len_seed(a: &Buf, b: &Buf) -> u64 {
    (a.len * 31 + b.len) as u64
}

fn paths() -> Vec<Path> {
    let mut v = vec![Path::F32(Isa::Portable), Path::EmulatedF32, Path::EmulatedBf16];
    if isa() >= Isa::Avx2 {
        v.push(Path::F32(Isa::Avx2));
    }
    if isa() >= Isa::Avx512 {
        v.push(Path::F32(Isa::Avx512));
    }
    if isa() >= Isa::Avx512Bf16 {
        v.push(Path::Bf16Dot);
    } else {
        eprintln!("SKIPPED: the AVX512-BF16 micro-kernel; this processor has {:?}", isa());
    }
    v
}

#[test]
fn random_strides_formats_and_sizes() {
    for path in paths() {
        let mut rng = Rng(7);
        for _ in 0..300 {
            let p = Problem::random(&mut rng, path, &[0, 1, 2, 3, 5, 8, 13, 16, 17, 31, 33, 50]);
            p.check(&p.run(path, None));
        }
    }
}

#[test]
fn sizes_beyond_one_block() {
    for path in paths() {
        let mut rng = Rng(11);
        for _ in 0..4 {
            let p = Problem::random(&mut rng, path, &[150, 257, 401]);
            p.check(&p.run(path, None));
        }
    }
}

#[test]
fn long_k_is_cut_into_parts_and_bits_do_not_depend_on_threads() {
    for path in paths() {
        let mut rng = Rng(3);
        for (m, n, k) in [(33, 70, 5000), (200, 150, 300), (130, 600, 64), (4, 4, 9000)] {
            let mut p = Problem::random(&mut rng, path, &[1]);
            let t = if path.pairs() { DType::Bf16 } else { DType::F32 };
            p.shape = Shape { batch: [1, 1], m, n, k };
            p.a = (Buf::random(&mut rng, t, m * k), k as isize, 1, [0, 0]);
            p.b = (Buf::random(&mut rng, t, n * k), n as isize, 1, [0, 0]);
            p.c = (Buf::random(&mut rng, t, m * n), n as isize, 1, [0, 0]);
            p.d = (DType::F32, n as isize, 1, [0, 0], m * n);
            let bytes = same_for_any_thread_count(|| p.run(path, None).bytes().to_vec());
            let out: Vec<f32> =
                bytes.chunks(4).map(|b| f32::from_ne_bytes([b[0], b[1], b[2], b[3]])).collect();
            p.check(&Buf::new(DType::F32, &out));
        }
    }
}

#[test]
fn d_may_be_c() {
    let (m, n, k) = (37, 65, 40);
    let mut rng = Rng(5);
    let (a, b) =
        (Buf::random(&mut rng, DType::F32, m * k), Buf::random(&mut rng, DType::F32, k * n));
    for (alpha, beta, dtype) in [
        (1.0, 1.0, DType::F32),
        (0.5, 1.0, DType::F32),
        (1.0, 0.5, DType::F32),
        (1.0, 1.0, DType::Bf16),
    ] {
        let before = Buf::random(&mut rng, dtype, m * n);
        let values: Vec<f32> = before.values().iter().map(|&x| x as f32).collect();
        let mut d = Buf::new(dtype, &values);
        let shape = Shape { batch: [1, 1], m, n, k };
        let (rs, bs) = (n as isize, [0, 0]);
        let gemm = Gemm {
            shape,
            a: MatRef { ptr: a.ptr(), dtype: DType::F32, rs: k as isize, cs: 1, bs },
            b: MatRef { ptr: b.ptr(), dtype: DType::F32, rs, cs: 1, bs },
            c: Some(MatRef { ptr: d.ptr_mut(), dtype, rs, cs: 1, bs }),
            d: Some(MatMut { ptr: d.ptr_mut(), dtype, rs, cs: 1, bs }),
            alpha,
            beta,
            epilogue: None,
        };
        let mut scratch = vec![0; scratch_bytes(&shape, DType::F32, DType::F32)];
        // SAFETY: dense matrices of these sizes.
        unsafe { gemm.run(&mut scratch) };
        for i in 0..m {
            for j in 0..n {
                let sum: f64 = (0..k).map(|p| a.get(i * k + p) * b.get(p * n + j)).sum();
                let want = f64::from(alpha) * sum + f64::from(beta) * before.get(i * n + j);
                assert!((d.get(i * n + j) - want).abs() <= 2e-5 + rounding(dtype, want) * 1.01);
            }
        }
    }
}

#[test]
fn the_epilogue_sees_every_element_once_with_its_place() {
    for path in paths() {
        let mut rng = Rng(23);
        for _ in 0..20 {
            let mut p = Problem::random(&mut rng, path, &[1, 7, 40, 150]);
            p.alpha = 1.0;
            p.beta = 0.0;
            p.d.0 = DType::F32;
            let plain = p.run(path, None);
            let marked = p.run(
                path,
                Some(&|t: &mut Tile| {
                    for i in 0..t.rows {
                        let mark = (t.batch * 100_000 + (t.row0 + i) * 300) as f32;
                        let col0 = t.col0;
                        for (j, v) in t.row_mut(i).iter_mut().enumerate() {
                            *v = *v * 0.0 + mark + (col0 + j) as f32;
                        }
                    }
                }),
            );
            let s = p.shape;
            let (_, rs, cs, bs, _) = p.d;
            for b in 0..s.batch[0] * s.batch[1] {
                for i in 0..s.m {
                    for j in 0..s.n {
                        let e = (b / s.batch[1]) as isize * bs[0]
                            + (b % s.batch[1]) as isize * bs[1]
                            + i as isize * rs
                            + j as isize * cs;
                        assert_eq!(marked.get(e as usize), (b * 100_000 + i * 300 + j) as f64);
                        assert!(plain.get(e as usize).is_finite());
                    }
                }
            }
        }
    }
}

#[test]
fn infinities_and_nan_pass_through() {
    for path in paths() {
        let t = if path.pairs() { DType::Bf16 } else { DType::F32 };
        let (m, n, k) = (13, 17, 9);
        let mut av = vec![1.0f32; m * k];
        av[3 * k + 2] = f32::INFINITY;
        av[5 * k + 8] = f32::NAN;
        let p = Problem {
            shape: Shape { batch: [1, 1], m, n, k },
            a: (Buf::new(t, &av), k as isize, 1, [0, 0]),
            b: (Buf::new(t, &vec![1.0; n * k]), n as isize, 1, [0, 0]),
            c: (Buf::new(t, &vec![f32::NAN; m * n]), n as isize, 1, [0, 0]),
            d: (DType::F32, n as isize, 1, [0, 0], m * n),
            alpha: 1.0,
            // A NaN in C does not count where beta is 0.
            beta: 0.0,
        };
        let out = p.run(path, None);
        for i in 0..m {
            for j in 0..n {
                let v = out.get(i * n + j);
                match i {
                    3 => assert_eq!(v, f64::INFINITY),
                    5 => assert!(v.is_nan()),
                    _ => assert_eq!(v, k as f64),
                }
            }
        }
    }
}
