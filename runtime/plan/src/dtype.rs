//! Element formats: one row per format, and exact conversions to and from `f32`.
//!
//! Adding a format is adding a variant and its row in [`DType::facts`]; the generic tests walk
//! [`DType::ALL`].

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// The format of a stored element.
///
/// `tf32` is not here: it is a way of multiplying f32 tensors ([`crate::Math`]), never a storage
/// format.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DType {
    F32,
    F16,
    Bf16,
    F8e4m3,
    F8e5m2,
    I64,
    I32,
    U8,
    Bool,
}

/// What a register, or a tensor before its precision is chosen, can be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// A real number; computed in f32.
    Real,
    /// A 32-bit signed integer in programs (stored as i64, i32 or u8).
    Int,
    Bool,
}

/// One row of the format table.
#[derive(Clone, Copy, Debug)]
pub struct Facts {
    pub name: &'static str,
    /// Bytes of one element.
    pub size: usize,
    pub kind: Kind,
    /// Stored significand bits, without the implicit one (0 for integers).
    pub mantissa_bits: u32,
    /// Largest finite value (reals), as f64.
    pub max: f64,
    /// Smallest positive normal value (reals).
    pub min_normal: f64,
    /// Smallest positive subnormal value (reals).
    pub min_subnormal: f64,
}

impl DType {
    /// Every format, in declaration order.
    pub const ALL: [DType; 9] = [
        DType::F32,
        DType::F16,
        DType::Bf16,
        DType::F8e4m3,
        DType::F8e5m2,
        DType::I64,
        DType::I32,
        DType::U8,
        DType::Bool,
    ];

    /// The row of this format.
    ///
    /// The 8-bit formats are those of Micikevicius et al., "FP8 Formats for Deep Learning" (2022):
    /// E4M3 has no infinities and one NaN pattern per sign, E5M2 follows IEEE 754.
    pub const fn facts(self) -> Facts {
        const fn real(
            name: &'static str,
            size: usize,
            mantissa_bits: u32,
            max: f64,
            min_normal: f64,
            min_subnormal: f64,
        ) -> Facts {
            Facts { name, size, kind: Kind::Real, mantissa_bits, max, min_normal, min_subnormal }
        }
        const fn int(name: &'static str, size: usize, kind: Kind) -> Facts {
            Facts {
                name,
                size,
                kind,
                mantissa_bits: 0,
                max: 0.0,
                min_normal: 0.0,
                min_subnormal: 0.0,
            }
        }
        match self {
            DType::F32 => {
                real("f32", 4, 23, f32::MAX as f64, f32::MIN_POSITIVE as f64, 1.401298464324817e-45)
            }
            DType::F16 => real("f16", 2, 10, 65504.0, 6.103515625e-5, 5.960464477539063e-8),
            DType::Bf16 => real(
                "bf16",
                2,
                7,
                3.3895313892515355e38,
                1.1754943508222875e-38,
                9.183549615799121e-41,
            ),
            DType::F8e4m3 => real("f8e4m3", 1, 3, 448.0, 0.015625, 0.001953125),
            DType::F8e5m2 => real("f8e5m2", 1, 2, 57344.0, 6.103515625e-5, 1.52587890625e-5),
            DType::I64 => int("i64", 8, Kind::Int),
            DType::I32 => int("i32", 4, Kind::Int),
            DType::U8 => int("u8", 1, Kind::Int),
            DType::Bool => int("bool", 1, Kind::Bool),
        }
    }

    pub const fn name(self) -> &'static str {
        self.facts().name
    }

    /// Bytes of one element.
    pub const fn size(self) -> usize {
        self.facts().size
    }

    pub const fn kind(self) -> Kind {
        self.facts().kind
    }

    pub const fn is_real(self) -> bool {
        matches!(self.kind(), Kind::Real)
    }

    /// A real format narrower than f32.
    pub const fn is_low_precision(self) -> bool {
        self.is_real() && self.size() < 4
    }

    /// Rounds to this format (nearest, ties to even) and widens back; identity for `F32`.
    ///
    /// Values above the largest finite value become infinite (NaN in E4M3, which has no infinity).
    ///
    /// # Panics
    /// On integer formats.
    pub fn round(self, x: f32) -> f32 {
        match self {
            DType::F32 => x,
            DType::F16 => half::f16::from_f32(x).to_f32(),
            DType::Bf16 => half::bf16::from_f32(x).to_f32(),
            DType::F8e4m3 => f8_to_f32(f8_from_f32::<4>(x), 4),
            DType::F8e5m2 => f8_to_f32(f8_from_f32::<5>(x), 5),
            _ => panic!("round: {self} is not a real format"),
        }
    }

    /// The bit pattern of `x` rounded to this format, in the low bits.
    ///
    /// # Panics
    /// On integer formats.
    pub fn encode(self, x: f32) -> u32 {
        match self {
            DType::F32 => x.to_bits(),
            DType::F16 => u32::from(half::f16::from_f32(x).to_bits()),
            DType::Bf16 => u32::from(half::bf16::from_f32(x).to_bits()),
            DType::F8e4m3 => u32::from(f8_from_f32::<4>(x)),
            DType::F8e5m2 => u32::from(f8_from_f32::<5>(x)),
            _ => panic!("encode: {self} is not a real format"),
        }
    }

    /// Whether the format has a value, up to its rounding.
    pub fn holds(self, x: f64) -> bool {
        match self {
            DType::Bool => x == 0.0 || x == 1.0,
            DType::U8 => x.fract() == 0.0 && (0.0..=255.0).contains(&x),
            DType::I32 => x.fract() == 0.0 && (-2147483648.0..=2147483647.0).contains(&x),
            DType::I64 => x.fract() == 0.0 && x.abs() <= (1u64 << 53) as f64,
            _ => x.is_finite() && self.decode(self.encode(x as f32)).is_finite(),
        }
    }

    /// The value of a bit pattern of this format.
    ///
    /// # Panics
    /// On integer formats.
    pub fn decode(self, bits: u32) -> f32 {
        match self {
            DType::F32 => f32::from_bits(bits),
            DType::F16 => half::f16::from_bits(bits as u16).to_f32(),
            DType::Bf16 => half::bf16::from_bits(bits as u16).to_f32(),
            DType::F8e4m3 => f8_to_f32(bits as u8, 4),
            DType::F8e5m2 => f8_to_f32(bits as u8, 5),
            _ => panic!("decode: {self} is not a real format"),
        }
    }
}

impl fmt::Display for DType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for DType {
    type Err = String;
    fn from_str(s: &str) -> Result<Self, String> {
        DType::ALL
            .into_iter()
            .find(|d| d.name() == s)
            .ok_or_else(|| format!("unknown format `{s}`"))
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Kind::Real => "real",
            Kind::Int => "int",
            Kind::Bool => "bool",
        })
    }
}

/// Rounds to an 8-bit float with `E` exponent bits (4: E4M3 without infinities, 5: E5M2).
fn f8_from_f32<const E: i32>(x: f32) -> u8 {
    let mant = 7 - E;
    let bias = (1 << (E - 1)) - 1;
    let sign = ((x.to_bits() >> 31) as u8) << 7;
    if x.is_nan() {
        return sign | 0x7f;
    }
    let overflow = if E == 4 { 0x7f } else { 0x7c };
    let a = f64::from(x.abs());
    if a == 0.0 {
        return sign;
    }
    if a.is_infinite() {
        return sign | overflow;
    }
    // The spacing of representable values around `a`; f64 holds every quotient exactly.
    let e = ((a.to_bits() >> 52) as i32 - 1023).max(1 - bias);
    let ulp = 2f64.powi(e - mant);
    let q = (a / ulp).round_ties_even() as i64;
    // `q` counts ulps: 2^mant ulps reach the next binade, which carries by itself.
    let code = ((i64::from(e - (1 - bias))) << mant) + q;
    let largest = if E == 4 { 0x7e } else { 0x7b };
    if code > largest { sign | overflow } else { sign | code as u8 }
}

fn f8_to_f32(bits: u8, exponent_bits: i32) -> f32 {
    let mant = 7 - exponent_bits;
    let bias = (1 << (exponent_bits - 1)) - 1;
    let sign = if bits & 0x80 != 0 { -1.0 } else { 1.0 };
    let code = i32::from(bits & 0x7f);
    if exponent_bits == 4 && code == 0x7f {
        return f32::NAN.copysign(sign);
    }
    if exponent_bits == 5 && code >= 0x7c {
        return if code == 0x7c { f32::INFINITY * sign } else { f32::NAN.copysign(sign) };
    }
    let (e, m) = (code >> mant, code & ((1 << mant) - 1));
    let magnitude = if e == 0 {
        m as f32 * 2f32.powi(1 - bias - mant)
    } else {
        ((1 << mant) + m) as f32 * 2f32.powi(e - bias - mant)
    };
    sign * magnitude
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_parse_back() {
        for d in DType::ALL {
            assert_eq!(d.name().parse::<DType>(), Ok(d));
        }
    }

    #[test]
    fn every_pattern_of_the_small_formats_survives_a_round_trip() {
        for d in DType::ALL.into_iter().filter(|d| d.is_low_precision()) {
            for bits in 0..1u32 << (8 * d.size()) {
                let x = d.decode(bits);
                if x.is_nan() {
                    assert!(d.decode(d.encode(x)).is_nan());
                } else {
                    assert_eq!(d.encode(x), bits, "{d} {bits:#x} = {x}");
                }
            }
        }
    }

    #[test]
    fn rounding_is_to_the_nearest_with_ties_to_even() {
        for d in DType::ALL.into_iter().filter(|d| d.is_low_precision()) {
            let mut values: Vec<f32> = (0..1u32 << (8 * d.size() - 1))
                .map(|b| d.decode(b))
                .filter(|x| x.is_finite())
                .collect();
            values.sort_by(f32::total_cmp);
            for (i, w) in values.windows(2).enumerate() {
                let mid = ((f64::from(w[0]) + f64::from(w[1])) / 2.0) as f32;
                let even = if d.encode(w[0]) & 1 == 0 { w[0] } else { w[1] };
                assert_eq!(d.round(mid), even, "{d} between {} and {} ({i})", w[0], w[1]);
                assert_eq!(d.round(f32::from_bits(mid.to_bits() - 1)), w[0]);
                assert_eq!(d.round(f32::from_bits(mid.to_bits() + 1)), w[1]);
            }
        }
    }

    #[test]
    fn the_table_states_the_extremes() {
        for d in DType::ALL.into_iter().filter(|d| d.is_low_precision()) {
            let f = d.facts();
            assert_eq!(f64::from(d.round(f.max as f32)), f.max);
            assert!(!d.round((f.max * 1.1) as f32).is_finite());
            assert_eq!(f64::from(d.decode(1)), f.min_subnormal, "{d}");
            assert_eq!(d.encode(f.min_normal as f32), 1 << f.mantissa_bits, "{d}");
        }
    }
}
