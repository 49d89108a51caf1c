//! Speed of the CPU kernels on shapes of the CIFAR CNN and the 4x256 GPT, in GFLOP/s:
//! `cargo run --release -p precast-runtime --example kernel_speed`.
//!
//! The best of several runs, since other work on the machine only ever slows a run down.

use precast_plan::DType;
use precast_runtime::cpu::kernels::attention::{Attention, Backward, View4};
use precast_runtime::cpu::kernels::conv::{Conv2d, ConvPlan};
use precast_runtime::cpu::kernels::conv_wgrad::ConvWeightGradPlan;
use precast_runtime::cpu::kernels::gemm::{Gemm, MatMut, MatRef, Shape, scratch_bytes};
use precast_runtime::cpu::kernels::pool::MaxPool2d;
use std::time::Instant;

/// Seconds of the fastest of the runs that fit a third of a second, at least three.
fn best(mut f: impl FnMut()) -> f64 {
    let start = Instant::now();
    let mut best = f64::MAX;
    let mut runs = 0;
    while runs < 3 || start.elapsed().as_secs_f64() < 0.3 {
        let t = Instant::now();
        f();
        best = best.min(t.elapsed().as_secs_f64());
        runs += 1;
    }
    best
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 97) as f32 / 97.0 - 0.5).collect()
}

fn products(threads: usize) {
    println!("matrix products, {threads} thread(s)");
    let shapes = [
        (1024, 1024, 1024, false),
        (1024, 256, 1024, false),
        (1024, 256, 256, true),
        (1024, 768, 256, true),
        (1024, 1024, 256, true),
        (256, 1024, 1024, false),
        (256, 256, 1024, false),
        (64, 10, 2048, true),
        (128, 784, 64, false),
    ];
    for (m, n, k, transposed) in shapes {
        let (a, b) = (values(m * k), values(k * n));
        let mut d = vec![0f32; m * n];
        let (rs, cs) = if transposed { (1, k as isize) } else { (n as isize, 1) };
        let shape = Shape { batch: [1, 1], m, n, k };
        let mut scratch = vec![0; scratch_bytes(&shape, DType::F32, DType::F32)];
        let gemm = Gemm {
            shape,
            a: MatRef {
                ptr: a.as_ptr().cast(),
                dtype: DType::F32,
                rs: k as isize,
                cs: 1,
                bs: [0, 0],
            },
            b: MatRef { ptr: b.as_ptr().cast(), dtype: DType::F32, rs, cs, bs: [0, 0] },
            c: None,
            d: Some(MatMut {
                ptr: d.as_mut_ptr().cast(),
                dtype: DType::F32,
                rs: n as isize,
                cs: 1,
                bs: [0, 0],
            }),
            alpha: 1.0,
            beta: 0.0,
            epilogue: None,
        };
        // SAFETY: dense matrices of these sizes.
        let seconds = best(|| unsafe { gemm.run(&mut scratch) });
        let flops = 2.0 * (m * n * k) as f64 / 1e9;
        let t = if transposed { "x W^T" } else { "" };
        println!("  {m:5} x {n:4} x {k:4} {t:6} {:6.1}", flops / seconds);
    }
}

fn convolutions(threads: usize) {
    println!(
        "3x3 convolutions, batch 64, {threads} thread(s): forward / data gradient / weight gradient"
    );
    let t = DType::F32;
    for (cin, cout, size) in
        [(3, 32, 32), (32, 32, 32), (32, 64, 16), (64, 64, 16), (64, 128, 8), (128, 128, 8)]
    {
        let c = Conv2d {
            n: 64,
            cin,
            cout,
            groups: 1,
            input: [size, size],
            kernel: [3, 3],
            stride: [1, 1],
            dilation: [1, 1],
            pad: [[1, 1], [1, 1]],
        };
        let (x, w) = (values(64 * cin * size * size), values(cout * cin * 9));
        let mut y = values(64 * cout * size * size);
        let (mut dx, mut dw) = (x.clone(), w.clone());
        let forward = ConvPlan::forward(c, t, t, t);
        let data = ConvPlan::backward_data(c, t, t, t);
        let weight = ConvWeightGradPlan::new(c, t, t, t);
        let bytes = forward.scratch_bytes().max(data.scratch_bytes()).max(weight.scratch_bytes());
        let mut scratch = vec![0; bytes];
        let (xp, wp) = (x.as_ptr().cast(), w.as_ptr().cast());
        let yp: *mut u8 = y.as_mut_ptr().cast();
        let (dxp, dwp): (*mut u8, *mut u8) = (dx.as_mut_ptr().cast(), dw.as_mut_ptr().cast());
        // SAFETY: dense tensors of these sizes.
        let times = unsafe {
            [
                best(|| forward.run(xp, wp, yp, None, &mut scratch)),
                best(|| data.run(yp, wp, dxp, None, &mut scratch)),
                best(|| weight.run(xp, yp, dwp, false, &mut scratch)),
            ]
        };
        let flops = 2.0 * (64 * cout * size * size * cin * 9) as f64 / 1e9;
        let [f, d, w] = times.map(|t| flops / t);
        let ms: f64 = times.iter().sum::<f64>() * 1e3;
        println!(
            "  {cin:3} -> {cout:3} at {size:2}x{size:2}: {f:6.1} / {d:6.1} / {w:6.1}   {ms:6.2} ms, scratch {} kB",
            bytes / 1024
        );
    }
}

fn attention(threads: usize) {
    println!(
        "causal attention, {threads} thread(s): forward / backward, of the flops below the diagonal"
    );
    for (batch, t) in [(8, 128), (1, 1024)] {
        let a = Attention {
            batch,
            heads: 4,
            queries: t,
            keys: t,
            features: 64,
            value_features: 64,
            causal: true,
            scale: 0.125,
            fill: f32::NEG_INFINITY,
            safe: false,
        };
        let n = batch * 4 * t * 64;
        let (q, k, v, g) = (values(n), values(n), values(n), values(n));
        let (mut o, mut dq, mut dk, mut dv) = (values(n), values(n), values(n), values(n));
        let mut lse = [vec![0f32; batch * 4 * t], vec![0f32; batch * 4 * t]];
        let bytes = a.forward_scratch_bytes().max(a.backward_scratch_bytes());
        let mut scratch = vec![0; bytes];
        let view = |p: *const f32| View4::dense(p.cast(), DType::F32, [batch, 4, t, 64]);
        let [qv, kv, vv, gv] = [&q, &k, &v, &g].map(|b| view(b.as_ptr()));
        let ov = view(o.as_mut_ptr());
        let back = Backward {
            q: qv,
            k: kv,
            v: vv,
            o: ov,
            grad_o: gv,
            mask: None,
            grad_q: view(dq.as_mut_ptr()),
            grad_k: view(dk.as_mut_ptr()),
            grad_v: view(dv.as_mut_ptr()),
        };
        let [high, low] = &mut lse;
        let l = [high.as_mut_ptr(), low.as_mut_ptr()];
        // SAFETY: dense tensors of these sizes.
        let (f, b) = unsafe {
            (
                best(|| a.forward(qv, kv, vv, None, ov, l, &mut scratch)),
                best(|| a.backward(&back, l.map(|p| p.cast_const()), &mut scratch)),
            )
        };
        let product = (batch * 4 * t * t * 64) as f64 / 1e9;
        println!(
            "  B {batch} T {t:4}: {:6.1} / {:6.1} GFLOP/s, {:.2} / {:.2} ms, scratch {} kB",
            2.0 * product / f,
            5.0 * product / b,
            f * 1e3,
            b * 1e3,
            bytes / 1024
        );
    }
}

fn pooling(threads: usize) {
    for (c, size) in [(32, 32), (64, 16)] {
        let p = MaxPool2d {
            planes: 64 * c,
            input: [size, size],
            output: [size / 2, size / 2],
            kernel: [2, 2],
            stride: [2, 2],
            dilation: [1, 1],
            pad: [0, 0],
        };
        let x = values(64 * c * size * size);
        let (mut y, mut dx) = (values(x.len() / 4), x.clone());
        let mut arg = vec![0u8; y.len()];
        let mut scratch = vec![0; p.forward_scratch_bytes().max(p.backward_scratch_bytes())];
        let (yp, ap, dxp): (*mut u8, _, *mut u8) =
            (y.as_mut_ptr().cast(), arg.as_mut_ptr(), dx.as_mut_ptr().cast());
        // SAFETY: dense tensors of these sizes.
        let (f, b) = unsafe {
            (
                best(|| p.forward(x.as_ptr().cast(), yp, ap, DType::F32, &mut scratch)),
                best(|| p.backward(yp, ap, dxp, DType::F32, &mut scratch)),
            )
        };
        println!(
            "max pooling 2x2, 64x{c}x{size}x{size}, {threads} thread(s): {:.2} / {:.2} ms",
            f * 1e3,
            b * 1e3
        );
    }
}

fn main() {
    for threads in [1, 2] {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(|| {
            products(threads);
            convolutions(threads);
            attention(threads);
            pooling(threads);
        });
    }
}
