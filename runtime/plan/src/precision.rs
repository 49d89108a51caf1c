//! What products multiply.

use crate::dtype::DType;
use crate::schema::Math;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The precision of a product's operands; sums are f32 in all of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    F32,
    /// f32 tensors, rounded to 10 stored significand bits on their way into the product.
    Tf32,
    F16,
    Bf16,
    /// E4M3 or E5M2, either operand, each tensor with a scale of its own.
    Fp8,
}

impl Precision {
    pub const ALL: [Precision; 5] =
        [Precision::F32, Precision::Tf32, Precision::F16, Precision::Bf16, Precision::Fp8];

    /// Of operands stored in `format`.
    pub fn of(format: DType, math: Math) -> Precision {
        match math {
            Math::Tf32 if format == DType::F32 => Precision::Tf32,
            _ => format.into(),
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::Tf32 => "tf32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
            Precision::Fp8 => "fp8",
        }
    }

    /// Bytes of a stored operand's element.
    pub const fn size(self) -> usize {
        match self {
            Precision::F32 | Precision::Tf32 => 4,
            Precision::F16 | Precision::Bf16 => 2,
            Precision::Fp8 => 1,
        }
    }
}

/// Of exact products of a stored format.
///
/// # Panics
/// Where the format is not real.
impl From<DType> for Precision {
    fn from(d: DType) -> Precision {
        match d {
            DType::F32 => Precision::F32,
            DType::F16 => Precision::F16,
            DType::Bf16 => Precision::Bf16,
            DType::F8e4m3 | DType::F8e5m2 => Precision::Fp8,
            DType::I64 | DType::I32 | DType::U8 | DType::Bool => {
                panic!("products of {d} have no precision")
            }
        }
    }
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// Rounds to TF32: nearest, ties to even, 10 stored significand bits, the exponents of f32.
pub fn round_tf32(x: f32) -> f32 {
    if !x.is_finite() {
        return x;
    }
    let b = x.to_bits();
    f32::from_bits(b.wrapping_add(0xfff + ((b >> 13) & 1)) & !0x1fff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_what_files_say() {
        for p in Precision::ALL {
            assert_eq!(serde_json::to_string(&p).unwrap(), format!("\"{}\"", p.name()));
        }
        assert_eq!(Precision::of(DType::F32, Math::Tf32), Precision::Tf32);
        assert_eq!(Precision::of(DType::Bf16, Math::Tf32), Precision::Bf16);
        assert_eq!(Precision::of(DType::F8e5m2, Math::Exact), Precision::Fp8);
    }

    /// Where f16 is normal, TF32 has its values.
    #[test]
    fn tf32_rounds_as_f16_does_within_its_range() {
        for i in 0..100_000u32 {
            let x = f32::from_bits(0x3880_0000 + i * 1237);
            if x < 65504.0 {
                assert_eq!(round_tf32(x), DType::F16.round(x), "{x}");
                assert_eq!(round_tf32(-x), -DType::F16.round(x));
            }
        }
    }

    #[test]
    fn tf32_keeps_what_is_not_finite_and_the_range_of_f32() {
        assert!(round_tf32(f32::NAN).is_nan());
        assert!(round_tf32(f32::from_bits(0x7f80_0001)).is_nan());
        assert_eq!(round_tf32(f32::INFINITY), f32::INFINITY);
        assert_eq!(round_tf32(f32::MAX), f32::INFINITY);
        assert_eq!(round_tf32(1e-40), f32::from_bits((1e-40f32.to_bits() + 0xfff) & !0x1fff));
        assert_eq!(round_tf32(1.0 + 2f32.powi(-11)), 1.0);
        assert_eq!(round_tf32(1.0 + 3.0 * 2f32.powi(-11)), 1.0 + 2.0 * 2f32.powi(-10));
    }
}
