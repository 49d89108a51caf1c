//! Functions that the standard library lacks.

/// Gauss error function to the last digits of f64, by the series without cancellation
/// `erf(x) = 2/√π · exp(−x²) · Σ 2ⁿ x²ⁿ⁺¹ / (2n+1)!!` (Abramowitz & Stegun, 7.1.6).
pub fn erf(x: f64) -> f64 {
    if x.is_nan() || x.abs() > 6.0 {
        // 1 − erf(6) is below 3e-17, less than half a unit in the last place of 1.
        return if x.is_nan() { x } else { 1f64.copysign(x) };
    }
    let xx = x * x;
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > sum.abs() * 1e-18 {
        n += 1.0;
        term *= 2.0 * xx / (2.0 * n + 1.0);
        sum += term;
    }
    std::f64::consts::FRAC_2_SQRT_PI * (-xx).exp() * sum
}

/// `1 / (1 + exp(−x))`, without overflow.
pub fn sigmoid(x: f64) -> f64 {
    if x >= 0.0 {
        1.0 / (1.0 + (-x).exp())
    } else {
        let e = x.exp();
        e / (1.0 + e)
    }
}

/// Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC'11).
pub fn philox(mut counter: [u32; 4], mut key: [u32; 2]) -> [u32; 4] {
    let wide = |a: u32, b: u32| {
        let p = u64::from(a) * u64::from(b);
        ((p >> 32) as u32, p as u32)
    };
    for round in 0..10 {
        if round > 0 {
            key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
        }
        let (hi0, lo0) = wide(0xD251_1F53, counter[0]);
        let (hi1, lo1) = wide(0xCD9E_8D57, counter[2]);
        counter = [hi1 ^ counter[1] ^ key[0], lo1, hi0 ^ counter[3] ^ key[1], lo0];
    }
    counter
}

/// [`precast_plan::Instr::Uniform`] at the point with linear index `point`.
pub fn uniform(point: u64, stream: u32, seed: i32, step: i32) -> f64 {
    let counter = [point as u32, (point >> 32) as u32, stream, 0];
    let word = philox(counter, [seed as u32, step as u32])[0];
    f64::from(word >> 8) * 2f64.powi(-24)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of Random123 (`kat_vectors`, lines `philox4x32 10`).
    #[test]
    fn philox_gives_the_known_answers() {
        assert_eq!(philox([0; 4], [0; 2]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        assert_eq!(
            philox([u32::MAX; 4], [u32::MAX; 2]),
            [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]
        );
        assert_eq!(
            philox(
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0]
            ),
            [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
        );
        assert_eq!(uniform(0, 0, 0, 0), f64::from(0x66_27e8) / f64::from(1 << 24));
        assert_ne!(uniform(1 << 32, 0, 0, 0), uniform(0, 0, 0, 0));
    }

    #[test]
    fn erf_matches_tables() {
        // Abramowitz & Stegun, table 7.1, and mpmath.
        for (x, y) in [
            (0.0, 0.0),
            (1e-10, 1.128_379_167_095_512_6e-10),
            (0.5, 0.520_499_877_813_046_5),
            (1.0, 0.842_700_792_949_714_9),
            (2.0, 0.995_322_265_018_952_7),
            (3.5, 0.999_999_256_901_627_7),
            (7.0, 1.0),
        ] {
            assert!((erf(x) - y).abs() <= 2e-15 * y.abs(), "erf({x}) = {:e}, not {y:e}", erf(x));
            assert_eq!(erf(-x), -erf(x));
        }
        assert!(erf(f64::NAN).is_nan());
    }
}
