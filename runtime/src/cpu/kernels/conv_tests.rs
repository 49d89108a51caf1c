use super::super::conv_wgrad::ConvWeightGradPlan;
use super::super::testing::{Buf, Rng, rounding, same_for_any_thread_count};
use super::*;
use crate::cpu::simd::{Isa, isa};

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

fn random_conv(rng: &mut Rng) -> Conv2d {
    let groups = rng.pick(&[1, 1, 1, 2, 3]);
    loop {
        // Half of the grouped ones are depthwise.
        let depthwise = groups > 1 && rng.below(2) == 0;
        let per_group =
            |most: usize, rng: &mut Rng| if depthwise { 1 } else { 1 + rng.below(most) };
        let c = Conv2d {
            n: 1 + rng.below(3),
            cin: groups * per_group(7, rng),
            cout: groups * per_group(20, rng),
            groups,
            input: [1 + rng.below(20), 1 + rng.below(36)],
            kernel: [1 + rng.below(4), 1 + rng.below(4)],
            stride: [1 + rng.below(3), rng.pick(&[1, 1, 2, 3])],
            dilation: [1 + rng.below(2), 1 + rng.below(2)],
            pad: [[rng.below(3), rng.below(3)], [rng.below(3), rng.below(3)]],
        };
        let fits = (0..2)
            .all(|d| (c.kernel[d] - 1) * c.dilation[d] < c.input[d] + c.pad[d][0] + c.pad[d][1]);
        if fits {
            return c;
        }
    }
}

/// Calls `f(n, co, y pixel, global x channel, x pixel, weight index)` for every product.
fn products(c: &Conv2d, mut f: impl FnMut(usize, usize, usize)) {
    let [oh, ow] = c.output();
    let (ci, co) = (c.cin_group(), c.cout_group());
    for n in 0..c.n {
        for o in 0..c.cout {
            for ch in 0..ci {
                let xc = o / co * ci + ch;
                for th in 0..c.kernel[0] {
                    for tw in 0..c.kernel[1] {
                        let w = ((o * ci + ch) * c.kernel[0] + th) * c.kernel[1] + tw;
                        for i in 0..oh {
                            for j in 0..ow {
                                let h = i * c.stride[0] + th * c.dilation[0];
                                let q = j * c.stride[1] + tw * c.dilation[1];
                                let (Some(h), Some(q)) =
                                    (h.checked_sub(c.pad[0][0]), q.checked_sub(c.pad[1][0]))
                                else {
                                    continue;
                                };
                                if h >= c.input[0] || q >= c.input[1] {
                                    continue;
                                }
                                let x = ((n * c.cin + xc) * c.input[0] + h) * c.input[1] + q;
                                let y = ((n * c.cout + o) * oh + i) * ow + j;
                                f(x, w, y);
                            }
                        }
                    }
                }
            }
        }
    }
}

fn sizes(c: &Conv2d) -> [usize; 3] {
    let [oh, ow] = c.output();
    [
        c.n * c.cin * c.input[0] * c.input[1],
        c.cout * c.cin_group() * c.kernel[0] * c.kernel[1],
        c.n * c.cout * oh * ow,
    ]
}

fn compare(c: &Conv2d, what: &str, got: &Buf, want: &[f64], size: &[f64]) {
    for (e, (&w, &s)) in want.iter().zip(size).enumerate() {
        let bound = 1e-6 * (2.0 * s + 1.0) + rounding(got.dtype, w);
        assert!((got.get(e) - w).abs() <= bound, "{what} {c:?} [{e}]: {}, want {w}", got.get(e));
    }
}

fn formats(rng: &mut Rng, path: Path) -> (DType, DType, DType) {
    let out = rng.pick(&[DType::F32, DType::F32, DType::Bf16, DType::F16]);
    match path {
        path if path.pairs() => (DType::Bf16, DType::Bf16, out),
        _ => {
            let real = [DType::F32, DType::F32, DType::Bf16, DType::F16];
            (rng.pick(&real), rng.pick(&real), out)
        }
    }
}

#[test]
fn forward_and_data_gradient_of_random_shapes() {
    for path in paths() {
        let mut rng = Rng(17);
        for _ in 0..150 {
            let c = random_conv(&mut rng);
            let [nx, nw, ny] = sizes(&c);
            let (ts, tw, tt) = formats(&mut rng, path);
            let w = Buf::random(&mut rng, tw, nw);

            let x = Buf::random(&mut rng, ts, nx);
            let mut y = Buf::poisoned(tt, ny);
            let plan = ConvPlan::forward_on(path, c, ts, tw, tt);
            let mut scratch = vec![0xff; plan.scratch_bytes()];
            // SAFETY: dense tensors of these sizes.
            unsafe { plan.run(x.ptr(), w.ptr(), y.ptr_mut(), None, &mut scratch) };
            let (mut want, mut size) = (vec![0.0; ny], vec![0.0; ny]);
            products(&c, |xi, wi, yi| {
                let p = x.get(xi) * w.get(wi);
                want[yi] += p;
                size[yi] += p.abs();
            });
            compare(&c, "forward", &y, &want, &size);

            let dy = Buf::random(&mut rng, ts, ny);
            let mut dx = Buf::poisoned(tt, nx);
            let plan = ConvPlan::backward_data_on(path, c, ts, tw, tt);
            let mut scratch = vec![0xff; plan.scratch_bytes()];
            // SAFETY: dense tensors of these sizes.
            unsafe { plan.run(dy.ptr(), w.ptr(), dx.ptr_mut(), None, &mut scratch) };
            let (mut want, mut size) = (vec![0.0; nx], vec![0.0; nx]);
            products(&c, |xi, wi, yi| {
                let p = dy.get(yi) * w.get(wi);
                want[xi] += p;
                size[xi] += p.abs();
            });
            compare(&c, "data gradient", &dx, &want, &size);
        }
    }
}

#[test]
fn weight_gradient_of_random_shapes() {
    for path in paths() {
        let mut rng = Rng(29);
        for _ in 0..150 {
            let c = random_conv(&mut rng);
            let pairs = c.stride[1] == 1 && c.output()[1].is_multiple_of(2);
            if !pairs && path.pairs() {
                continue;
            }
            let [nx, nw, ny] = sizes(&c);
            let (tx, ty, tw) = formats(&mut rng, path);
            let x = Buf::random(&mut rng, tx, nx);
            let dy = Buf::random(&mut rng, ty, ny);
            let accumulate = rng.below(2) == 1;
            let mut dw = Buf::random(&mut rng, tw, nw);
            let mut want = if accumulate { dw.values() } else { vec![0.0; nw] };
            let mut size = vec![1.0; nw];
            products(&c, |xi, wi, yi| {
                let p = dy.get(yi) * x.get(xi);
                want[wi] += p;
                size[wi] += p.abs();
            });
            let plan = ConvWeightGradPlan::new_on(path, c, tx, ty, tw);
            let mut scratch = vec![0xff; plan.scratch_bytes()];
            // SAFETY: dense tensors of these sizes.
            unsafe { plan.run(x.ptr(), dy.ptr(), dw.ptr_mut(), accumulate, &mut scratch) };
            compare(&c, "weight gradient", &dw, &want, &size);
        }
    }
}

const CIFAR: Conv2d = Conv2d {
    n: 9,
    cin: 19,
    cout: 32,
    groups: 1,
    input: [32, 32],
    kernel: [3, 3],
    stride: [1, 1],
    dilation: [1, 1],
    pad: [[1, 1], [1, 1]],
};

#[test]
fn bits_do_not_depend_on_threads() {
    let mut rng = Rng(31);
    for c in [CIFAR, Conv2d { stride: [2, 2], ..CIFAR }, Conv2d { cout: 19, groups: 19, ..CIFAR }] {
        let [nx, nw, ny] = sizes(&c);
        let x = Buf::random(&mut rng, DType::F32, nx);
        let w = Buf::random(&mut rng, DType::F32, nw);
        let dy = Buf::random(&mut rng, DType::F32, ny);
        let t = DType::F32;
        same_for_any_thread_count(|| {
            let (forward, data, weight) = (
                ConvPlan::forward(c, t, t, t),
                ConvPlan::backward_data(c, t, t, t),
                ConvWeightGradPlan::new(c, t, t, t),
            );
            let bytes =
                forward.scratch_bytes().max(data.scratch_bytes()).max(weight.scratch_bytes());
            let mut scratch = vec![0; bytes];
            let (mut y, mut dx, mut dw) =
                (Buf::poisoned(t, ny), Buf::poisoned(t, nx), Buf::poisoned(t, nw));
            // SAFETY: dense tensors of these sizes.
            unsafe {
                forward.run(x.ptr(), w.ptr(), y.ptr_mut(), None, &mut scratch);
                data.run(dy.ptr(), w.ptr(), dx.ptr_mut(), None, &mut scratch);
                weight.run(x.ptr(), dy.ptr(), dw.ptr_mut(), false, &mut scratch);
            }
            [y.bytes().to_vec(), dx.bytes().to_vec(), dw.bytes().to_vec()]
        });
    }
}

#[test]
fn the_epilogue_sees_every_pixel_once_with_its_place() {
    let mut rng = Rng(37);
    for _ in 0..20 {
        let c = random_conv(&mut rng);
        let [nx, nw, ny] = sizes(&c);
        for back in [false, true] {
            let t = DType::F32;
            let (plan, ns, nt, channels, plane) = if back {
                (ConvPlan::backward_data(c, t, t, t), ny, nx, c.cin, c.input)
            } else {
                (ConvPlan::forward(c, t, t, t), nx, ny, c.cout, c.output())
            };
            let source = Buf::random(&mut rng, t, ns);
            let w = Buf::random(&mut rng, t, nw);
            let mut out = Buf::poisoned(t, nt);
            let pixels = plane[0] * plane[1];
            let mut scratch = vec![0; plan.scratch_bytes()];
            let mark = |tile: &mut Tile| {
                for i in 0..tile.rows {
                    let first = (tile.batch * channels + tile.row0 + i) * pixels + tile.col0;
                    for (j, v) in tile.row_mut(i).iter_mut().enumerate() {
                        *v = *v * 0.0 + (first + j) as f32;
                    }
                }
            };
            // SAFETY: dense tensors of these sizes.
            unsafe { plan.run(source.ptr(), w.ptr(), out.ptr_mut(), Some(&mark), &mut scratch) };
            for e in 0..nt {
                assert_eq!(out.get(e), e as f64);
            }
        }
    }
}
