//! AVX-512 and AVX512-BF16 in plain Rust, so that tests run their products on any processor.
//!
//! Everything but the instructions is shared with [`F32x16`] and [`Bf16x32`]: packing, tile shapes,
//! cache blocks and inner loops.

use super::*;

/// [`Bf16x32`] without its instructions.
#[derive(Clone, Copy, Debug)]
pub struct EmulatedBf16;

/// `a b + c`, rounded once to nearest even, with subnormal operands and results taken for zeros of
/// their sign. `a` and `b` are bf16 values.
///
/// A result is subnormal if it is below the least normal number once rounded to 24 bits, as with
/// any x86 instruction that flushes (Intel SDM volume 1, 4.9.1.5).
fn fma_flushing(a: f32, b: f32, c: f32) -> f32 {
    let normal = |x: f32| if x.is_subnormal() { 0f32.copysign(x) } else { x };
    let (a, b, c) = (normal(a), normal(b), normal(c));
    let r = normal(a.mul_add(b, c));
    if r.abs() == f32::MIN_POSITIVE {
        // `mul_add` rounds to the spacing of the subnormals, twice that of 24 bits here. The product
        // is exact in f64, and so is the sum with its error (Knuth's two-sum).
        let (p, c) = (f64::from(a) * f64::from(b), f64::from(c));
        let s = p + c;
        let v = s - p;
        let error = (p - (s - v)) + (c - v);
        let least = f64::from(f32::MIN_POSITIVE) * (1.0 - 2f64.powi(-25));
        let below = s.abs() < least || (s.abs() == least && error * s.signum() < 0.0);
        if below {
            return 0f32.copysign(r);
        }
    }
    r
}

/// One lane of VDPBF16PS: the product of the high halves is added first, then that of the low ones
/// (Intel SDM volume 2, VDPBF16PS). MXCSR plays no part.
pub fn dot(acc: f32, a: Pair, b: Pair) -> f32 {
    let hi = |x: Pair| f32::from_bits(x & 0xffff_0000);
    let lo = |x: Pair| f32::from_bits(x << 16);
    fma_flushing(lo(a), lo(b), fma_flushing(hi(a), hi(b), acc))
}

/// [`F32x16`] without its instructions.
#[derive(Clone, Copy, Debug)]
pub struct EmulatedF32;

/// What does not depend on how a lane multiplies.
macro_rules! lanes16 {
    ($name:ident, $el:ty, ku $ku:literal, $mac:expr) => {
        // SAFETY: every method touches the N elements it names.
        unsafe impl Lanes for $name {
            type El = $el;
            type V = [$el; 16];
            type Acc = [f32; 16];
            const N: usize = 16;
            const KU: usize = $ku;
            const KC: usize = 256;
            unsafe fn zero() -> [f32; 16] {
                [0.0; 16]
            }
            unsafe fn load(p: *const $el) -> [$el; 16] {
                // SAFETY: the caller gives 16 elements.
                unsafe { p.cast::<[$el; 16]>().read_unaligned() }
            }
            unsafe fn splat(p: *const $el) -> [$el; 16] {
                // SAFETY: the caller gives one element.
                [unsafe { p.read_unaligned() }; 16]
            }
            unsafe fn mac(acc: [f32; 16], a: [$el; 16], b: [$el; 16]) -> [f32; 16] {
                std::array::from_fn(|i| $mac(acc[i], a[i], b[i]))
            }
            unsafe fn load_acc(p: *const f32) -> [f32; 16] {
                // SAFETY: the caller gives 16 elements.
                unsafe { p.cast::<[f32; 16]>().read_unaligned() }
            }
            unsafe fn store_acc(p: *mut f32, a: [f32; 16]) {
                // SAFETY: the caller gives 16 elements.
                unsafe { p.cast::<[f32; 16]>().write_unaligned(a) }
            }
            unsafe fn add(a: [f32; 16], b: [f32; 16]) -> [f32; 16] {
                std::array::from_fn(|i| a[i] + b[i])
            }
            loops!(12, 2, [1 2 3 4 5 6 7 8 9 10 11 12]);
        }
    };
}

lanes16!(EmulatedF32, f32, ku 1, |acc, a: f32, b| a.mul_add(b, acc));
lanes16!(EmulatedBf16, Pair, ku 2, dot);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::kernels::testing::Rng;

    fn pair(lo: f32, hi: f32) -> Pair {
        assert!((lo.to_bits() | hi.to_bits()) & 0xffff == 0, "{lo} and {hi} are bf16 values");
        (lo.to_bits() >> 16) | hi.to_bits()
    }

    #[test]
    fn the_high_halves_come_first_and_each_sum_is_rounded() {
        // 2^24 + 1 is a tie, which goes to the even 2^24; 2^24 + 2 is exact.
        let big = 2f32.powi(24);
        assert_eq!(dot(big, pair(0.0, 1.0), pair(0.0, 1.0)), big);
        assert_eq!(dot(big, pair(1.0, 1.0), pair(1.0, 1.0)), big);
        assert_eq!(dot(big, pair(2.0, 1.0), pair(1.0, 1.0)), big + 2.0);
        // The high product cancels the sum before the low one is added; the other order loses it.
        assert_eq!(dot(big, pair(1.0, -big), pair(1.0, 1.0)), 1.0);
        assert_eq!(dot(big, pair(-big, 1.0), pair(1.0, 1.0)), 0.0);
        // The product itself is not rounded: (1 + 2^-7)^2 - 1 = 2^-6 + 2^-14.
        let x = 1.0 + 2f32.powi(-7);
        assert_eq!(dot(-1.0, pair(0.0, x), pair(0.0, x)), 2f32.powi(-6) + 2f32.powi(-14));
    }

    #[test]
    fn subnormals_are_zeros_of_their_sign() {
        let least = f32::MIN_POSITIVE;
        let sub = f32::from_bits(0x0040_0000);
        let huge = 2f32.powi(100);
        // As operands, wherever they stand.
        assert_eq!(dot(1.0, pair(sub, 0.0), pair(huge, 0.0)), 1.0);
        assert_eq!(dot(1.0, pair(0.0, huge), pair(0.0, sub)), 1.0);
        assert_eq!(dot(sub, pair(0.0, 0.0), pair(0.0, 0.0)).to_bits(), 0);
        // As results, of a product or of a difference.
        let half = 2f32.powi(-63);
        assert_eq!(dot(0.0, pair(0.0, half), pair(0.0, half)), least);
        assert_eq!(dot(0.0, pair(0.0, half), pair(0.0, half / 2.0)).to_bits(), 0);
        let y = dot(-0.0, pair(0.0, -half), pair(0.0, half / 2.0));
        assert_eq!(y.to_bits(), 0x0000_0000, "-0 of the high half, then + 0 * 0");
        let z = fma_flushing(-half, half / 2.0, -0.0);
        assert_eq!(z.to_bits(), 0x8000_0000);
        assert_eq!(dot(1.5 * least, pair(0.0, -half), pair(0.0, half)).to_bits(), 0);
    }

    #[test]
    fn what_rounds_to_the_least_normal_number_counts_as_normal() {
        let least = f32::MIN_POSITIVE;
        // least (1 - 2^-26) is nearer to `least` in 24 bits; least (1 - 2^-24) is itself in 24 bits,
        // and so subnormal, though a tie among the subnormals would go to `least`.
        let (x, y) = (2f32.powi(-63), 2f32.powi(-63 - 26));
        assert_eq!(fma_flushing(x, -y, least), least);
        let y = 2f32.powi(-63 - 24);
        assert_eq!(fma_flushing(x, -y, least), 0.0);
        // The tie between the two goes to the even one, which is `least`.
        let y = 2f32.powi(-63 - 25);
        assert_eq!(fma_flushing(x, -y, least), least);
        assert_eq!(fma_flushing(-x, -y, -least), -least);
        // A hair below the tie, too fine for f64.
        let y = y * (1.0 + 2f32.powi(-7));
        assert_eq!(fma_flushing(x, -y, least), 0.0);
    }

    #[test]
    fn infinities_and_nan() {
        let inf = f32::INFINITY;
        assert_eq!(dot(1.0, pair(inf, 1.0), pair(1.0, 1.0)), inf);
        assert!(dot(1.0, pair(inf, 1.0), pair(0.0, 1.0)).is_nan());
        assert!(dot(-inf, pair(1.0, inf), pair(1.0, 1.0)).is_nan());
        assert!(dot(f32::NAN, pair(0.0, 0.0), pair(0.0, 0.0)).is_nan());
        let max = f32::from_bits(0x7f7f_0000);
        assert_eq!(dot(0.0, pair(0.0, max), pair(0.0, max)), inf);
    }

    /// A bf16 value: mostly of moderate size, some near the ends of the exponent range.
    fn bf16(rng: &mut Rng) -> u32 {
        let sign = (rng.below(2) as u32) << 15;
        let exponent = match rng.below(16) {
            0 => rng.below(3),
            1 => 60 + rng.below(8),
            2 => rng.below(255),
            _ => 120 + rng.below(10),
        } as u32;
        sign | exponent << 7 | rng.below(128) as u32
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_instruction_agrees_with_its_description() {
        use crate::cpu::simd::{Isa, isa};
        if isa() != Isa::Avx512Bf16 {
            eprintln!("SKIPPED: the AVX512-BF16 instruction; this processor has {:?}", isa());
            return;
        }
        let mut rng = Rng(41);
        let (mr, nr) = (Bf16x32::MR, Bf16x32::NR);
        let (mut same, mut all) = (0, 0);
        for _ in 0..400 {
            let kc = 1 + rng.below(20);
            let mut panel = |w: usize| -> Vec<Pair> {
                (0..kc * w).map(|_| bf16(&mut rng) | bf16(&mut rng) << 16).collect()
            };
            let (a, b) = (panel(mr), panel(nr));
            let mut c = [vec![0f32; mr * nr], vec![0f32; mr * nr]];
            // SAFETY: panels of these sizes; the processor has the instruction.
            unsafe {
                EmulatedBf16::panel(kc, a.as_ptr(), b.as_ptr(), c[0].as_mut_ptr(), nr, false);
                Bf16x32::panel(kc, a.as_ptr(), b.as_ptr(), c[1].as_mut_ptr(), nr, false);
            }
            let value = |x: Pair, high: bool| {
                f64::from(f32::from_bits(if high { x & 0xffff_0000 } else { x << 16 }))
            };
            for i in 0..mr {
                for j in 0..nr {
                    let (want, got) = (c[0][i * nr + j], c[1][i * nr + j]);
                    all += 1;
                    if want.to_bits() == got.to_bits() || (want.is_nan() && got.is_nan()) {
                        same += 1;
                        continue;
                    }
                    // Another order of the sums, and subnormals that are kept, are still right: a
                    // rounding of each sum and, for each flush, the least normal number times the
                    // largest factor.
                    let (mut size, mut factor) = (0f64, 1f64);
                    for p in 0..kc {
                        for high in [false, true] {
                            let (x, y) = (value(a[p * mr + i], high), value(b[p * nr + j], high));
                            size += (x * y).abs();
                            factor = factor.max(x.abs()).max(y.abs());
                        }
                    }
                    let bound = 2.0
                        * kc as f64
                        * (f64::from(f32::EPSILON) * size + f64::from(f32::MIN_POSITIVE) * factor);
                    let off = (f64::from(got) - f64::from(want)).abs();
                    assert!(off <= bound || bound > f64::from(f32::MAX), "{got:e}, want {want:e}");
                }
            }
        }
        eprintln!("{same} of {all} sums have the bits that the instruction's description gives");
    }
}
