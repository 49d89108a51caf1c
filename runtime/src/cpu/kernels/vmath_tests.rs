use super::*;
use crate::cpu::simd::{Avx2, Portable};

/// Distance from `y` to the exact value `t`, in units of the last place of the result.
fn ulps(y: f32, t: f64) -> f64 {
    let rounded = t as f32;
    if y == rounded || (y.is_nan() && rounded.is_nan()) {
        return 0.0;
    }
    if !y.is_finite() || !rounded.is_finite() {
        // One unit beyond the largest finite value is infinity.
        let y = if y.is_infinite() {
            f64::from(f32::MAX).copysign(f64::from(y)) * (1.0 + f64::exp2(-24.0))
        } else {
            f64::from(y)
        };
        return ((y - t) / f64::exp2(104.0)).abs();
    }
    let a = rounded.abs().max(f32::MIN_POSITIVE);
    let ulp = f64::from(f32::from_bits(a.to_bits() + 1)) - f64::from(a);
    (f64::from(y) - t).abs() / ulp
}

/// Every `step`-th f32 bit pattern (both signs) whose value is finite and in `[lo, hi]`.
fn sweep(lo: f32, hi: f32, step: u32) -> Vec<f32> {
    let mut v: Vec<f32> = (0..u32::MAX / step)
        .map(|i| f32::from_bits(i * step))
        .filter(|x| x.is_finite() && *x >= lo && *x <= hi)
        .collect();
    v.extend([0.0, -0.0, 1.0, -1.0, 0.5, 2.0, lo, hi].into_iter().filter(|x| *x >= lo && *x <= hi));
    v
}

struct Case {
    name: &'static str,
    slice: fn(&[f32], &mut [f32]),
    lanes: [fn(f32) -> f32; 2],
    exact: fn(f64) -> f64,
    lo: f32,
    hi: f32,
    bound: f64,
}

fn check(c: &Case) {
    // A prime step visits every exponent and mixes the low bits.
    let xs = sweep(c.lo, c.hi, 2_039);
    let mut out = vec![0.0; xs.len()];
    (c.slice)(&xs, &mut out);
    let mut worst = [(0.0f64, 0.0f32); 3];
    for (&x, &y) in xs.iter().zip(&out) {
        let t = (c.exact)(f64::from(x));
        for (w, y) in worst.iter_mut().zip([y, (c.lanes[0])(x), (c.lanes[1])(x)]) {
            let e = ulps(y, t);
            if e > w.0 {
                *w = (e, x);
            }
        }
    }
    println!("{:8} slice {:?} portable {:?} fma {:?}", c.name, worst[0], worst[1], worst[2]);
    for w in worst {
        assert!(w.0 <= c.bound, "{}: {} ulp at {:e}", c.name, w.0, w.1);
    }
}

macro_rules! case {
    ($test:ident, $slice:ident, $lane:ident, $exact:expr, $lo:expr, $hi:expr, $bound:expr) => {
        #[test]
        fn $test() {
            check(&Case {
                name: stringify!($slice),
                slice: $slice,
                // `mul_add` is exact everywhere, so the FMA form can be tested on any processor.
                lanes: [$lane::<Portable>, $lane::<Avx2>],
                exact: $exact,
                lo: $lo,
                hi: $hi,
                bound: $bound,
            });
        }
    };
}

const BIG: f32 = f32::MAX;

/// erf in f64: Maclaurin series, or the continued fraction of erfc.
fn erf64(x: f64) -> f64 {
    let a = x.abs();
    let y = if a < 2.5 {
        let (mut term, mut sum, mut n) = (a, a, 0.0);
        while term.abs() > 1e-18 * sum.abs() && n < 200.0 {
            n += 1.0;
            term *= -a * a / n;
            sum += term / (2.0 * n + 1.0);
        }
        sum * std::f64::consts::FRAC_2_SQRT_PI
    } else if a < 6.0 {
        let mut f = 0.0;
        for k in (1..=60).rev() {
            f = f64::from(k) / 2.0 / (a + f);
        }
        1.0 - (-a * a).exp() / (a + f) / std::f64::consts::PI.sqrt()
    } else {
        1.0
    };
    y.copysign(x)
}

case!(exp_error, exp, exp_lane, f64::exp, -BIG, BIG, 1.5);
case!(expm1_error, expm1, expm1_lane, f64::exp_m1, -BIG, BIG, 2.0);
case!(log_error, log, log_lane, f64::ln, 0.0, BIG, 1.0);
case!(log1p_error, log1p, log1p_lane, f64::ln_1p, -1.0, BIG, 2.0);
case!(tanh_error, tanh, tanh_lane, f64::tanh, -BIG, BIG, 3.0);
case!(erf_error, erf, erf_lane, erf64, -BIG, BIG, 3.0);
case!(
    sigmoid_error,
    sigmoid,
    sigmoid_lane,
    |x| if x < 0.0 { x.exp() / (1.0 + x.exp()) } else { 1.0 / (1.0 + (-x).exp()) },
    -BIG,
    BIG,
    2.5
);
case!(sqrt_error, sqrt, sqrt_lane, f64::sqrt, 0.0, BIG, 0.5);
case!(rsqrt_error, rsqrt, rsqrt_lane, |x| 1.0 / x.sqrt(), f32::MIN_POSITIVE, BIG, 1.5);
case!(sin_error, sin, sin_lane, f64::sin, -1.0e6, 1.0e6, 1.0);
case!(cos_error, cos, cos_lane, f64::cos, -1.0e6, 1.0e6, 1.0);

#[test]
fn trig_of_large_arguments() {
    let xs: Vec<f32> = sweep(-BIG, BIG, 200_003);
    let (mut s, mut c) = (vec![0.0; xs.len()], vec![0.0; xs.len()]);
    sin(&xs, &mut s);
    cos(&xs, &mut c);
    for ((&x, &s), &c) in xs.iter().zip(&s).zip(&c) {
        assert!(ulps(s, f64::from(x).sin()) <= 1.0, "sin {x:e}");
        assert!(ulps(c, f64::from(x).cos()) <= 1.0, "cos {x:e}");
    }
}

#[test]
fn pow_error() {
    let xs = sweep(0.0, BIG, 3_000_017);
    let mut worst = (0.0, 0.0, 0.0);
    for y in [0.5f32, -0.5, 2.0, 3.0, -1.0, 0.1, 1.0 / 3.0, -7.3, 40.0, 1e-6, 1e3] {
        let ys = vec![y; xs.len()];
        let mut out = vec![0.0; xs.len()];
        pow(&xs, &ys, &mut out);
        for (&x, &o) in xs.iter().zip(&out) {
            let t = f64::from(x).powf(f64::from(y));
            for o in [o, pow_lane::<Portable>(x, y)] {
                let e = ulps(o, t);
                if e > worst.0 {
                    worst = (e, x, y);
                }
            }
        }
    }
    println!("pow {worst:?}");
    assert!(worst.0 <= 1.0, "{worst:?}");
}

#[test]
fn pow_special_cases_are_those_of_std() {
    let v = [
        0.0f32,
        -0.0,
        1.0,
        -1.0,
        0.5,
        -0.5,
        2.0,
        -2.0,
        3.0,
        -3.0,
        1.5,
        -1.5,
        1e30,
        -1e30,
        1e-40,
        -1e-40,
        8388607.0,
        8388608.0,
        16777215.0,
        16777216.0,
        -16777215.0,
        f32::MAX,
        f32::MIN,
        f32::INFINITY,
        f32::NEG_INFINITY,
        f32::NAN,
    ];
    for x in v {
        for y in v {
            let want = x.powf(y);
            for got in [pow_lane::<Portable>(x, y), pow_lane::<Avx2>(x, y)] {
                let same = got.to_bits() == want.to_bits() || (got.is_nan() && want.is_nan());
                let close = want.is_finite() && want != 0.0 && ((got - want) / want).abs() < 2e-7;
                assert!(same || close, "{x:e}^{y:e} = {got:e}, std {want:e}");
            }
        }
    }
}

#[test]
fn special_values() {
    const INF: f32 = f32::INFINITY;
    type Row = (fn(&[f32], &mut [f32]), &'static [(f32, f32)]);
    let table: [Row; 11] = [
        (exp, &[(INF, INF), (-INF, 0.0), (0.0, 1.0), (-0.0, 1.0), (88.8, INF), (-104.5, 0.0)]),
        (expm1, &[(INF, INF), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (89.0, INF), (1e-40, 1e-40)]),
        (
            log,
            &[
                (INF, INF),
                (0.0, -INF),
                (-0.0, -INF),
                (1.0, 0.0),
                (-1.0, f32::NAN),
                (-INF, f32::NAN),
            ],
        ),
        (
            log1p,
            &[(INF, INF), (-1.0, -INF), (0.0, 0.0), (-0.0, -0.0), (-1.5, f32::NAN), (1e-40, 1e-40)],
        ),
        (tanh, &[(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (1e-40, 1e-40), (20.0, 1.0)]),
        (sigmoid, &[(INF, 1.0), (-INF, 0.0), (0.0, 0.5), (-200.0, 0.0)]),
        (erf, &[(INF, 1.0), (-INF, -1.0), (0.0, 0.0), (-0.0, -0.0), (5.0, 1.0), (-5.0, -1.0)]),
        (sqrt, &[(INF, INF), (-1.0, f32::NAN), (0.0, 0.0), (-0.0, -0.0), (4.0, 2.0)]),
        (rsqrt, &[(INF, 0.0), (-1.0, f32::NAN), (0.0, INF), (4.0, 0.5)]),
        (sin, &[(INF, f32::NAN), (-INF, f32::NAN), (0.0, 0.0), (-0.0, -0.0)]),
        (cos, &[(INF, f32::NAN), (-INF, f32::NAN), (0.0, 1.0), (-0.0, 1.0)]),
    ];
    for (i, (f, rows)) in table.iter().enumerate() {
        for &(x, want) in rows.iter().chain(&[(f32::NAN, f32::NAN)]) {
            // In every position of a vector and in the tail.
            let mut out = [0.0; 19];
            f(&[x; 19], &mut out);
            for y in out {
                let same = y.to_bits() == want.to_bits() || (y.is_nan() && want.is_nan());
                assert!(same, "function {i} at {x:e}: {y:e}, want {want:e}");
            }
        }
    }
}

#[test]
fn a_slice_gives_the_same_bits_at_every_offset() {
    let xs: Vec<f32> = (0..101).map(|i| (i as f32 - 50.0) * 0.173).collect();
    for f in [exp, expm1, tanh, sigmoid, erf, sin, cos] as [fn(&[f32], &mut [f32]); 7] {
        let mut whole = vec![0.0; xs.len()];
        f(&xs, &mut whole);
        for start in 0..20 {
            let mut part = vec![0.0; xs.len() - start];
            f(&xs[start..], &mut part);
            assert_eq!(part, whole[start..]);
        }
    }
}
