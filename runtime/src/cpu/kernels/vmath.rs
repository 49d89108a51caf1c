//! Elementary functions in f32, without branches so that loops over them vectorise.
//!
//! Each function comes as a lane (`exp_lane::<L>(x)`, to be inlined into a loop of a
//! [`multiversion!`](crate::multiversion) function) and over slices (`exp(x, out)`,
//! `exp_in_place(x)`). Errors, checked by the tests over the whole range, are at most 1 ulp for `log`,
//! `sin`, `cos` and `pow`, 2 ulp for `exp`, `expm1`, `log1p` and `rsqrt`, and 3 ulp for `sigmoid`,
//! `tanh` and `erf`; `sqrt` is correctly rounded. Infinities, NaN, signed zeros, overflow and gradual
//! underflow are those of C99 Annex F.
//!
//! Polynomials are minimax fits (Remez exchange) made for this file unless a source is given.

#![allow(clippy::excessive_precision, reason = "coefficients keep the digits of their fit")]

use crate::cpu::simd::Level;
use crate::multiversion;

/// 1.5 * 2^23: adding and subtracting it rounds |x| < 2^22 to an integer, ties to even, and leaves
/// that integer in the low bits of the sum.
const ROUND: f32 = 12582912.0;
/// The same for f64: 1.5 * 2^52.
const ROUND64: f64 = 6755399441055744.0;

// ln 2 in two parts; the first has 10 significant bits, so n * LN2_HI is exact for |n| < 2^13.
const LN2_HI: f32 = 0.693359375;
const LN2_LO: f32 = -2.121_944_4e-4;

/// `2^n` for `-126 <= n <= 127`.
#[inline(always)]
fn exp2i(n: i32) -> f32 {
    f32::from_bits(((n + 127) << 23) as u32)
}

/// Splits `x` (|x| < 2^20) into `n ln 2 + r`, |r| <= ln(2)/2, and returns `(n, r, expm1(r))`.
#[inline(always)]
fn exp_parts<L: Level>(x: f32) -> (i32, f32) {
    let t = L::fma(x, std::f32::consts::LOG2_E, ROUND);
    let nf = t - ROUND;
    let n = (t.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
    let r = L::fma(nf, -LN2_HI, x);
    let r = L::fma(nf, -LN2_LO, r);
    // expm1(r) = r + r^2 q(r).
    let q = L::fma(1.990_824_1e-4, r, 1.393_409_2e-3);
    let q = L::fma(q, r, 8.333_285e-3);
    let q = L::fma(q, r, 4.166_646_1e-2);
    let q = L::fma(q, r, 0.166_666_67);
    let q = L::fma(q, r, 0.5);
    (n, L::fma(q, r * r, r))
}

/// `x` limited to `[lo, hi]`; NaN stays NaN.
#[inline(always)]
fn clamp(x: f32, lo: f32, hi: f32) -> f32 {
    let x = if x < lo { lo } else { x };
    if x > hi { hi } else { x }
}

/// `e^x`.
#[inline(always)]
pub fn exp_lane<L: Level>(x: f32) -> f32 {
    // Beyond these bounds the result has rounded to 0 or infinity.
    let x = clamp(x, -104.0, 89.0);
    let (n, p) = exp_parts::<L>(x);
    // 2^n in two factors, so that n = 128 and subnormal results come out right.
    let h = n >> 1;
    (p + 1.0) * exp2i(h) * exp2i(n - h)
}

/// `e^x - 1`, accurate in the relative sense near 0.
#[inline(always)]
pub fn expm1_lane<L: Level>(x: f32) -> f32 {
    let c = clamp(x, -25.0, 89.0);
    let (n, p) = exp_parts::<L>(c);
    // 2^n (p + 1) - 1 at half scale, since 2^128 overflows.
    let s = exp2i(n - 1);
    let y = 2.0 * L::fma(p, s, s - 0.5);
    // Also keeps the sign of zero.
    if n == 0 { if x == 0.0 { x } else { p } } else { y }
}

/// Splits a positive normal `x` into `(k, m)` with `x = 2^k m`, `sqrt(1/2) <= m < sqrt(2)`.
#[inline(always)]
fn log_parts(x: f32) -> (i32, f32) {
    const SQRT_HALF: u32 = 0x3f35_04f3;
    let i = x.to_bits().wrapping_add(0x3f80_0000 - SQRT_HALF);
    let k = (i >> 23) as i32 - 127;
    (k, f32::from_bits((i & 0x007f_ffff) + SQRT_HALF))
}

/// `log(1 + f) = f - hfsq + s (hfsq + R)`; returns `(hfsq, s (hfsq + R))`.
///
/// Polynomial and arrangement of FreeBSD's `e_logf.c` (Sun Microsystems, 1993).
#[inline(always)]
fn log_tail<L: Level>(f: f32) -> (f32, f32) {
    let s = f / (2.0 + f);
    let z = s * s;
    let r = L::fma(0.242_790_79, z, 0.284_987_87);
    let r = L::fma(r, z, 0.400_009_72);
    let r = L::fma(r, z, 0.666_666_6);
    let hfsq = 0.5 * f * f;
    (hfsq, s * L::fma(r, z, hfsq))
}

/// Natural logarithm.
#[inline(always)]
pub fn log_lane<L: Level>(x: f32) -> f32 {
    let tiny = x < f32::MIN_POSITIVE;
    let (xs, k0) = if tiny { (x * 33554432.0, -25) } else { (x, 0) };
    let (k, m) = log_parts(xs);
    let k = (k + k0) as f32;
    let f = m - 1.0;
    let (hfsq, t) = log_tail::<L>(f);
    let y = L::fma(k, LN2_HI, f - (hfsq - L::fma(k, LN2_LO, t)));
    log_special(x, y)
}

/// The result of a logarithm at 0, below 0, at infinity and at NaN; `y` elsewhere.
#[inline(always)]
fn log_special(x: f32, y: f32) -> f32 {
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == 0.0 { f32::NEG_INFINITY } else { y };
    // False for NaN too.
    if x >= 0.0 { y } else { f32::NAN }
}

/// `log(1 + x)`, accurate in the relative sense near 0.
#[inline(always)]
pub fn log1p_lane<L: Level>(x: f32) -> f32 {
    let u = 1.0 + x;
    let (k, m) = log_parts(u);
    // What rounding 1 + x lost, relative to u.
    let c = if x > 1.0 { 1.0 - (u - x) } else { x - (u - 1.0) };
    let c = c / u;
    let near = k == 0;
    let f = if near { x } else { m - 1.0 };
    let c = if near { 0.0 } else { c };
    let kf = k as f32;
    let (hfsq, t) = log_tail::<L>(f);
    let y = L::fma(kf, LN2_HI, f - (hfsq - (t + L::fma(kf, LN2_LO, c))));
    // log1p(-0) = -0, and f - hfsq would round subnormals correctly but lose the sign of zero.
    let y = if x == 0.0 { x } else { y };
    let y = if x == f32::INFINITY { x } else { y };
    let y = if x == -1.0 { f32::NEG_INFINITY } else { y };
    if x >= -1.0 { y } else { f32::NAN }
}

/// Hyperbolic tangent: `-t / (t + 2)` with `t = expm1(-2|x|)`.
#[inline(always)]
pub fn tanh_lane<L: Level>(x: f32) -> f32 {
    let a = x.abs();
    let t = expm1_lane::<L>(-2.0 * a);
    (-t / (t + 2.0)).copysign(x)
}

/// Logistic function `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid_lane<L: Level>(x: f32) -> f32 {
    let e = exp_lane::<L>(-x.abs());
    let n = if x < 0.0 { e } else { 1.0 };
    n / (1.0 + e)
}

/// Error function: `x + x P(x^2)` near 0, `1 - e^(-|x| Q(|x|))` elsewhere.
#[inline(always)]
pub fn erf_lane<L: Level>(x: f32) -> f32 {
    let a = x.abs();
    let s = x * x;
    let p = L::fma(-5.919_421_6e-4, s, 4.979_131_1e-3);
    let p = L::fma(p, s, -2.675_703_6e-2);
    let p = L::fma(p, s, 0.112_815_53);
    let p = L::fma(p, s, -0.376_124_7);
    let p = L::fma(p, s, 0.128_379_15);
    let near = L::fma(p, x, x);
    // erf rounds to 1 from 3.92 on; the fit holds to 4.
    let t = clamp(a, 0.0, 4.0);
    let q = L::fma(1.152_407_4e-5, t, -3.256_701_8e-4);
    let q = L::fma(q, t, 3.653_833_4e-3);
    let q = L::fma(q, t, -2.378_549e-2);
    let q = L::fma(q, t, 0.106_263_31);
    let q = L::fma(q, t, 0.635_135_8);
    let q = L::fma(q, t, 0.128_652_18);
    let far = 1.0 - exp_lane::<L>(-L::fma(q, t, t));
    if a < 0.9375 { near } else { far.copysign(x) }
}

/// `1 / sqrt(x)`, two roundings.
#[inline(always)]
pub fn rsqrt_lane<L: Level>(x: f32) -> f32 {
    1.0 / x.sqrt()
}

/// Square root, correctly rounded.
#[inline(always)]
pub fn sqrt_lane<L: Level>(x: f32) -> f32 {
    x.sqrt()
}

/// Where the reduction of [`sin_lane`] and [`cos_lane`] ends: n pi/2 is subtracted in two f64
/// parts, whose products are exact while n has at most 20 bits.
const TRIG_MAX: f32 = 1.0e6;

/// Sine or cosine (`QUARTER` = 0 or 1 quarter turns ahead), computed in f64; |x| <= `TRIG_MAX`.
#[inline(always)]
fn trig<L: Level>(x: f32, quarter: u64) -> f32 {
    let d = f64::from(x);
    let t = d * std::f64::consts::FRAC_2_PI + ROUND64;
    let n = t - ROUND64;
    let q = t.to_bits().wrapping_add(quarter);
    // pi/2 to 33 bits, and the rest (FreeBSD's `e_rem_pio2.c`).
    let r = d - n * 1.570_796_326_734_125_6;
    let r = r - n * 6.077_100_506_506_192e-11;
    let s = r * r;
    let sin = L::fma64(2.724_938_997_354_614_8e-6, s, -0.000_198_400_827_167_160_87);
    let sin = L::fma64(sin, s, 0.008_333_331_867_591_602);
    let sin = L::fma64(sin, s, -0.166_666_666_638_383_82);
    let sin = L::fma64(sin, s * r, r);
    let cos = L::fma64(-2.723_655_779_750_330_5e-7, s, 0.000_024_799_855_978_569_437);
    let cos = L::fma64(cos, s, -0.001_388_888_507_122_240_4);
    let cos = L::fma64(cos, s, 0.041_666_666_637_193_77);
    let cos = L::fma64(cos, s, -0.499_999_999_999_635_9);
    let cos = L::fma64(cos, s, 1.0);
    let y = if q & 1 == 0 { sin } else { cos };
    let y = y as f32;
    f32::from_bits(y.to_bits() ^ (((q & 2) << 30) as u32))
}

/// Sine for |x| <= 1e6 (the slice function takes any x).
#[inline(always)]
pub fn sin_lane<L: Level>(x: f32) -> f32 {
    let y = trig::<L>(x, 0);
    if x == 0.0 { x } else { y }
}

/// Cosine for |x| <= 1e6 (the slice function takes any x).
#[inline(always)]
pub fn cos_lane<L: Level>(x: f32) -> f32 {
    trig::<L>(x, 1)
}

/// `x^y` as C99's `powf`: `2^(y log2 |x|)` in f64, then the special cases.
#[inline(always)]
pub fn pow_lane<L: Level>(x: f32, y: f32) -> f32 {
    let a = x.abs();
    // Subnormals become normal in f64, so there is one case. 0 and infinity are replaced below.
    let d = f64::from(a);
    const SQRT_HALF: u64 = 0x3fe6_a09e_667f_3bcd;
    let i = d.to_bits().wrapping_add(0x3ff0_0000_0000_0000 - SQRT_HALF);
    // The exponent through the bits of 2^52 + e: there is no 64-bit conversion before AVX-512.
    let k = f64::from_bits((i >> 52) | 0x4330_0000_0000_0000) - (4503599627370496.0 + 1023.0);
    let m = f64::from_bits((i & 0x000f_ffff_ffff_ffff) + SQRT_HALF);
    // log2 m = s P(s^2), s = (m - 1) / (m + 1).
    let s = (m - 1.0) / (m + 1.0);
    let z = s * s;
    let p = L::fma64(0.283_124_737_508_838_17, z, 0.319_890_674_478_514_5);
    let p = L::fma64(p, z, 0.412_209_600_166_467_04);
    let p = L::fma64(p, z, 0.577_077_939_124_187_9);
    let p = L::fma64(p, z, 0.961_796_694_123_721_6);
    let p = L::fma64(p, z, 2.885_390_081_777_844_8);
    let e = f64::from(y) * L::fma64(p, s, k);
    // Beyond these bounds the result has rounded to 0 or infinity.
    let e = if e > 200.0 { 200.0 } else { e };
    let e = if e < -200.0 { -200.0 } else { e };
    let t = e + ROUND64;
    let r = e - (t - ROUND64);
    let q = L::fma64(0.000_015_316_445_611_243_107, r, 0.000_154_697_314_093_830_03);
    let q = L::fma64(q, r, 0.001_333_342_270_170_03);
    let q = L::fma64(q, r, 0.009_618_025_605_177_33);
    let q = L::fma64(q, r, 0.055_504_109_760_693_52);
    let q = L::fma64(q, r, 0.240_226_512_135_751_36);
    let q = L::fma64(q, r, 0.693_147_180_535_025_8);
    let q = L::fma64(q, r, 0.999_999_999_959_550_2);
    let scale = f64::from_bits(t.to_bits().wrapping_add(1023) << 52);
    let v = (q * scale) as f32;

    // Is y an integer, and odd? From 2^24 on every f32 is an even integer.
    let ay = y.abs();
    let whole = (ay + 8388608.0) - 8388608.0 == ay || ay >= 8388608.0;
    let half = 0.5 * ay;
    let half_whole = (half + 8388608.0) - 8388608.0 == half || half >= 8388608.0;
    let odd = whole && !half_whole;

    // 0 and infinity: as |x| grows without bound or shrinks to 0.
    let grows = y > 0.0;
    let edge = if (a == 0.0) == grows { 0.0 } else { f32::INFINITY };
    let v = if a == 0.0 || a == f32::INFINITY { edge } else { v };
    // Infinite y.
    let edge = if (a > 1.0) == grows { f32::INFINITY } else { 0.0 };
    let v = if ay == f32::INFINITY { edge } else { v };
    let v = if ay == f32::INFINITY && a == 1.0 { 1.0 } else { v };
    // Signs, and negative numbers to a fractional power.
    let negative = x.is_sign_negative();
    let v = if negative && odd { -v } else { v };
    let fractional = x < 0.0 && !whole && a != f32::INFINITY && ay != f32::INFINITY;
    let v = if fractional { f32::NAN } else { v };
    let v = if x.is_nan() || y.is_nan() { f32::NAN } else { v };
    if y == 0.0 || x == 1.0 { 1.0 } else { v }
}

macro_rules! over_slices {
    ($($(#[$meta:meta])* $name:ident, $in_place:ident, $lane:ident;)*) => {
        multiversion! {$(
            $(#[$meta])*
            ///
            /// # Panics
            /// If the lengths differ.
            pub fn $name<L>(x: &[f32], out: &mut [f32]) {
                assert_eq!(x.len(), out.len(), "lengths of x and out");
                for (o, &x) in out.iter_mut().zip(x) {
                    *o = $lane::<L>(x);
                }
            }
            #[doc = concat!("[`", stringify!($name), "`] in place.")]
            pub fn $in_place<L>(x: &mut [f32]) {
                for x in x {
                    *x = $lane::<L>(*x);
                }
            }
        )*}
    };
}

over_slices! {
    /// `out = e^x`.
    exp, exp_in_place, exp_lane;
    /// `out = e^x - 1`.
    expm1, expm1_in_place, expm1_lane;
    /// `out = log x`.
    log, log_in_place, log_lane;
    /// `out = log(1 + x)`.
    log1p, log1p_in_place, log1p_lane;
    /// `out = tanh x`.
    tanh, tanh_in_place, tanh_lane;
    /// `out = 1 / (1 + e^-x)`.
    sigmoid, sigmoid_in_place, sigmoid_lane;
    /// `out = erf x`.
    erf, erf_in_place, erf_lane;
    /// `out = sqrt x`.
    sqrt, sqrt_in_place, sqrt_lane;
    /// `out = 1 / sqrt x`.
    rsqrt, rsqrt_in_place, rsqrt_lane;
}

multiversion! {
    fn sin_fast<L>(x: &mut [f32]) -> bool {
        let mut far = false;
        for x in x.iter_mut() {
            far |= x.abs() > TRIG_MAX;
            *x = sin_lane::<L>(*x);
        }
        far
    }
    fn cos_fast<L>(x: &mut [f32]) -> bool {
        let mut far = false;
        for x in x.iter_mut() {
            far |= x.abs() > TRIG_MAX;
            *x = cos_lane::<L>(*x);
        }
        far
    }
    /// `out = x^y`, elementwise.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn pow<L>(x: &[f32], y: &[f32], out: &mut [f32]) {
        assert!(x.len() == out.len() && y.len() == out.len(), "lengths of x, y and out");
        for ((o, &x), &y) in out.iter_mut().zip(x).zip(y) {
            *o = pow_lane::<L>(x, y);
        }
    }
    /// `x = x^y` for one exponent.
    pub fn powf_in_place<L>(x: &mut [f32], y: f32) {
        for x in x {
            *x = pow_lane::<L>(*x, y);
        }
    }
}

/// Runs the fast form over blocks and repairs the blocks that hold large arguments one by one.
fn trig_in_place(x: &mut [f32], fast: fn(&mut [f32]) -> bool, exact: fn(f64) -> f64) {
    let mut saved = [0f32; 64];
    for block in x.chunks_mut(64) {
        saved[..block.len()].copy_from_slice(block);
        if fast(block) {
            for (y, &x) in block.iter_mut().zip(&saved) {
                if x.abs() > TRIG_MAX {
                    *y = exact(f64::from(x)) as f32;
                }
            }
        }
    }
}

/// `x = sin x`.
pub fn sin_in_place(x: &mut [f32]) {
    trig_in_place(x, sin_fast, f64::sin);
}

/// `x = cos x`.
pub fn cos_in_place(x: &mut [f32]) {
    trig_in_place(x, cos_fast, f64::cos);
}

/// `out = sin x`.
///
/// # Panics
/// If the lengths differ.
pub fn sin(x: &[f32], out: &mut [f32]) {
    out.copy_from_slice(x);
    sin_in_place(out);
}

/// `out = cos x`.
///
/// # Panics
/// If the lengths differ.
pub fn cos(x: &[f32], out: &mut [f32]) {
    out.copy_from_slice(x);
    cos_in_place(out);
}

#[cfg(test)]
#[path = "vmath_tests.rs"]
mod tests;
