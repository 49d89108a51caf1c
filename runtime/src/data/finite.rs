//! NaN and infinities among the data: one in a million rows ruins every weight, so each batch is
//! looked at as it is read.

use super::Wanted;
use super::source::Rows;
use crate::error::{Error, Result};
use precast_plan::DType;

/// What to do about them.
pub(crate) const NOT_FINITE: &str =
    "mend or drop such rows; `[data] on_nonfinite = \"allow\"` takes them as they are";

/// The first element that is NaN or infinite, of elements of a real format.
pub(super) fn first_other(bytes: &[u8], dtype: DType) -> Option<usize> {
    // All are looked at before it is asked which: a loop of vectors, several times as fast as one
    // that may end.
    let (any, size) = match dtype {
        DType::F32 => {
            let other = |any: u32, b: &[u8]| {
                let x = u32::from_le_bytes([b[0], b[1], b[2], b[3]]);
                any | u32::from(x & 0x7f80_0000 == 0x7f80_0000)
            };
            (bytes.chunks_exact(4).fold(0, other) != 0, 4)
        }
        DType::F16 | DType::Bf16 => {
            let exponent = if dtype == DType::F16 { 0x7c00 } else { 0x7f80 };
            let other = |any: u16, b: &[u8]| {
                any | u16::from(u16::from_le_bytes([b[0], b[1]]) & exponent == exponent)
            };
            (bytes.chunks_exact(2).fold(0, other) != 0, 2)
        }
        DType::F8e4m3 | DType::F8e5m2 => (true, 1),
        DType::I64 | DType::I32 | DType::U8 | DType::Bool => return None,
    };
    if !any {
        return None;
    }
    bytes.chunks_exact(size).position(|b| {
        let mut word = [0; 4];
        word[..size].copy_from_slice(b);
        !dtype.decode(u32::from_le_bytes(word)).is_finite()
    })
}

/// `R0418` for element `i` of row `r`, which is not finite in the input's format.
pub(super) fn error(
    source: &Rows,
    (r, i): (u64, usize),
    wanted: &Wanted,
    (scale, shift): (f64, f64),
) -> Result<Error> {
    let (x, what) = source.value(r, i)?;
    if !x.is_finite() {
        return Ok(Error::new("R0418", format!("{what} is {x}")).help(NOT_FINITE));
    }
    let scaled = if (scale, shift) == (1.0, 0.0) { "" } else { ", scaled and shifted," };
    // As short as the format it was stored in has it.
    let short = x as f32;
    let value = if f64::from(short) == x { format!("{short:e}") } else { format!("{x:e}") };
    let text = format!("{what} is {value}, which{scaled} is more than {} holds", wanted.dtype);
    Ok(Error::new("R0418", text).help(NOT_FINITE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_has_its_infinities() {
        for dtype in [DType::F32, DType::F16, DType::Bf16, DType::F8e4m3, DType::F8e5m2] {
            let size = dtype.size();
            for bits in 0..=u16::MAX {
                // Of f32 the upper half, with a mantissa whose other bits are 0 and not.
                let words = match size {
                    4 => [u32::from(bits) << 16, u32::from(bits) << 16 | 1],
                    2 => [u32::from(bits); 2],
                    _ => [u32::from(bits & 0xff); 2],
                };
                for word in words {
                    let mut bytes = dtype.encode(1.0).to_le_bytes()[..size].to_vec();
                    bytes.extend(&word.to_le_bytes()[..size]);
                    let want = (!dtype.decode(word).is_finite()).then_some(1);
                    assert_eq!(first_other(&bytes, dtype), want, "{dtype} {word:x}");
                }
            }
        }
        assert_eq!(first_other(&[255; 16], DType::I64), None);
    }
}
