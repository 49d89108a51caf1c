//! Reductions over a row of f32. Sums run in sixteen lanes, added at the end in a fixed order, so
//! that they vectorise and have the same bits on every processor that has FMA.

use super::vmath::exp_lane;
use crate::multiversion;

const LANES: usize = 16;

/// Adds the lanes pairwise.
#[inline(always)]
fn fold(mut s: [f32; LANES], f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut n = LANES / 2;
    while n > 0 {
        for i in 0..n {
            s[i] = f(s[i], s[i + n]);
        }
        n /= 2;
    }
    s[0]
}

multiversion! {
    /// The largest value, ignoring NaN; negative infinity for an empty row.
    pub fn max<L>(x: &[f32]) -> f32 {
        let mut m = [f32::NEG_INFINITY; LANES];
        let (chunks, rest) = x.as_chunks::<LANES>();
        for c in chunks {
            for i in 0..LANES {
                m[i] = if c[i] > m[i] { c[i] } else { m[i] };
            }
        }
        for (m, &x) in m.iter_mut().zip(rest) {
            *m = if x > *m { x } else { *m };
        }
        fold(m, |a, b| if b > a { b } else { a })
    }

    /// `x = e^(x * scale - shift)`; returns the sum.
    pub fn exp_sum<L>(x: &mut [f32], scale: f32, shift: f32) -> f32 {
        let mut s = [0f32; LANES];
        let (chunks, rest) = x.as_chunks_mut::<LANES>();
        for c in chunks {
            for i in 0..LANES {
                c[i] = exp_lane::<L>(L::fma(c[i], scale, -shift));
                s[i] += c[i];
            }
        }
        for (s, x) in s.iter_mut().zip(rest) {
            *x = exp_lane::<L>(L::fma(*x, scale, -shift));
            *s += *x;
        }
        fold(s, |a, b| a + b)
    }

    /// `x = e^(x * scale - high - low)`: the probabilities of scores of which `high + low` is the
    /// logarithm of the sum of exponentials.
    pub fn probabilities<L>(x: &mut [f32], scale: f32, high: f32, low: f32) {
        for x in x {
            *x = exp_lane::<L>(L::fma(*x, scale, -high) - low);
        }
    }

    /// `x = x * a`.
    pub fn scale<L>(x: &mut [f32], a: f32) {
        for x in x {
            *x *= a;
        }
    }

    /// `sum x y` over two rows of the same length.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn dot<L>(x: &[f32], y: &[f32]) -> f32 {
        assert_eq!(x.len(), y.len(), "lengths of x and y");
        let mut s = [0f32; LANES];
        let (xc, xr) = x.as_chunks::<LANES>();
        let (yc, yr) = y.as_chunks::<LANES>();
        for (x, y) in xc.iter().zip(yc) {
            for i in 0..LANES {
                s[i] = L::fma(x[i], y[i], s[i]);
            }
        }
        for ((s, &x), &y) in s.iter_mut().zip(xr).zip(yr) {
            *s = L::fma(x, y, *s);
        }
        fold(s, |a, b| a + b)
    }

    /// The gradient of softmax: `dp = p * (dp - delta) * scale`.
    ///
    /// # Panics
    /// If the lengths differ.
    pub fn softmax_grad<L>(p: &[f32], dp: &mut [f32], delta: f32, scale: f32) {
        assert_eq!(p.len(), dp.len(), "lengths of p and dp");
        for (d, &p) in dp.iter_mut().zip(p) {
            *d = p * (*d - delta) * scale;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::Rng;
    use super::*;

    #[test]
    fn rows_of_every_length() {
        let mut rng = Rng(2);
        for n in 0..70 {
            let x: Vec<f32> = (0..n).map(|_| rng.unit()).collect();
            let y: Vec<f32> = (0..n).map(|_| rng.unit()).collect();
            let want = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max(&x), want);
            let exact: f64 = x.iter().zip(&y).map(|(&x, &y)| f64::from(x) * f64::from(y)).sum();
            assert!((f64::from(dot(&x, &y)) - exact).abs() < 1e-5);
            let mut e = x.clone();
            let sum = exp_sum(&mut e, 0.5, 0.25);
            let exact: f64 = x.iter().map(|&x| (0.5 * f64::from(x) - 0.25).exp()).sum();
            assert!((f64::from(sum) - exact).abs() < 1e-5 * (1.0 + exact));
            for (e, &x) in e.iter().zip(&x) {
                assert!((f64::from(*e) - (0.5 * f64::from(x) - 0.25).exp()).abs() < 1e-6);
            }
        }
    }

    #[test]
    fn max_ignores_nan() {
        assert_eq!(max(&[f32::NAN, 1.0, f32::NAN, 3.0, 2.0]), 3.0);
        assert_eq!(max(&[f32::NAN; 20]), f32::NEG_INFINITY);
    }
}
