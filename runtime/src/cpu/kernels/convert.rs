//! Conversions between f32 and the narrower formats, over raw slices.
//!
//! Narrowing rounds to nearest, ties to even; values beyond the largest finite one become infinite
//! (NaN in E4M3); NaN stays NaN. Bit for bit what [`DType::encode`] and [`DType::decode`] give,
//! except the payload and sign of NaN.

use crate::multiversion;
use precast_plan::DType;
use std::sync::OnceLock;

/// The 256 values of an 8-bit format.
fn table(dtype: DType) -> &'static [f32; 256] {
    static E4M3: OnceLock<[f32; 256]> = OnceLock::new();
    static E5M2: OnceLock<[f32; 256]> = OnceLock::new();
    let cell = if dtype == DType::F8e4m3 { &E4M3 } else { &E5M2 };
    cell.get_or_init(|| std::array::from_fn(|i| dtype.decode(i as u32)))
}

#[inline(always)]
fn f32_to_bf16(x: f32) -> u16 {
    let b = x.to_bits();
    let rounded = b.wrapping_add(0x7fff + ((b >> 16) & 1)) >> 16;
    let nan = (b >> 16) | 0x40;
    (if x.is_nan() { nan } else { rounded }) as u16
}

/// Rounds to an 8-bit format with `E` exponent bits; `LAST` is the code of its largest finite
/// value, `OVER` what lies beyond.
#[inline(always)]
fn f32_to_f8<const E: u32, const LAST: u32, const OVER: u32>(x: f32) -> u8 {
    let mant = 7 - E;
    let bias = (1u32 << (E - 1)) - 1;
    let sign = (x.to_bits() >> 24) & 0x80;
    let a = f32::from_bits(x.to_bits() & 0x7fff_ffff);
    let shift = 23 - mant;
    let bits = a.to_bits();
    let rounded = bits + ((1 << (shift - 1)) - 1) + ((bits >> shift) & 1);
    let normal = (rounded >> shift).wrapping_sub((127 - bias) << mant);
    // Adding 2^(23 + exponent of the smallest subnormal) rounds to a multiple of it.
    let magic = (127 + 23 + 1 - bias - mant) << 23;
    let subnormal = (a + f32::from_bits(magic)).to_bits().wrapping_sub(magic);
    let min_normal = f32::from_bits((127 + 1 - bias) << 23);
    let code = if a < min_normal { subnormal } else { normal };
    let code = if code > LAST { OVER } else { code };
    // Infinity overflows above; only NaN is left.
    let code = if x.is_nan() { 0x7f } else { code };
    (sign | code) as u8
}

multiversion! {
    unsafe fn widen_bf16<L>(src: *const u16, out: &mut [f32]) {
        for (i, o) in out.iter_mut().enumerate() {
            // SAFETY: the caller gives `out.len()` readable elements.
            *o = f32::from_bits(u32::from(unsafe { src.add(i).read() }) << 16);
        }
    }
    unsafe fn narrow_bf16<L>(x: &[f32], dst: *mut u16) {
        for (i, &x) in x.iter().enumerate() {
            // SAFETY: the caller gives `x.len()` writable elements.
            unsafe { dst.add(i).write(f32_to_bf16(x)) };
        }
    }
    unsafe fn narrow_e4m3<L>(x: &[f32], dst: *mut u8) {
        for (i, &x) in x.iter().enumerate() {
            // SAFETY: the caller gives `x.len()` writable elements.
            unsafe { dst.add(i).write(f32_to_f8::<4, 0x7e, 0x7f>(x)) };
        }
    }
    unsafe fn narrow_e5m2<L>(x: &[f32], dst: *mut u8) {
        for (i, &x) in x.iter().enumerate() {
            // SAFETY: the caller gives `x.len()` writable elements.
            unsafe { dst.add(i).write(f32_to_f8::<5, 0x7b, 0x7c>(x)) };
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod f16c {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx,f16c")]
    pub unsafe fn widen(src: *const u16, out: &mut [f32]) {
        let n = out.len() & !7;
        for i in (0..n).step_by(8) {
            // SAFETY: i + 8 <= out.len(), which the caller promises for `src` too.
            unsafe {
                let h = _mm_loadu_si128(src.add(i).cast());
                _mm256_storeu_ps(out.as_mut_ptr().add(i), _mm256_cvtph_ps(h));
            }
        }
        for (i, o) in out.iter_mut().enumerate().skip(n) {
            // SAFETY: as above.
            *o = half::f16::from_bits(unsafe { src.add(i).read() }).to_f32();
        }
    }

    #[target_feature(enable = "avx,f16c")]
    pub unsafe fn narrow(x: &[f32], dst: *mut u16) {
        let n = x.len() & !7;
        for i in (0..n).step_by(8) {
            // SAFETY: i + 8 <= x.len(), which the caller promises for `dst` too.
            unsafe {
                let v = _mm256_loadu_ps(x.as_ptr().add(i));
                let h = _mm256_cvtps_ph::<_MM_FROUND_TO_NEAREST_INT>(v);
                _mm_storeu_si128(dst.add(i).cast(), h);
            }
        }
        for (i, &x) in x.iter().enumerate().skip(n) {
            // SAFETY: as above.
            unsafe { dst.add(i).write(half::f16::from_f32(x).to_bits()) };
        }
    }
}

unsafe fn widen_f16(src: *const u16, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::simd::isa() >= crate::cpu::simd::Isa::Avx2 {
        // SAFETY: this level includes F16C; the caller gives the memory.
        return unsafe { f16c::widen(src, out) };
    }
    for (i, o) in out.iter_mut().enumerate() {
        // SAFETY: the caller gives `out.len()` readable elements.
        *o = half::f16::from_bits(unsafe { src.add(i).read() }).to_f32();
    }
}

unsafe fn narrow_f16(x: &[f32], dst: *mut u16) {
    #[cfg(target_arch = "x86_64")]
    if crate::cpu::simd::isa() >= crate::cpu::simd::Isa::Avx2 {
        // SAFETY: this level includes F16C; the caller gives the memory.
        return unsafe { f16c::narrow(x, dst) };
    }
    for (i, &x) in x.iter().enumerate() {
        // SAFETY: the caller gives `x.len()` writable elements.
        unsafe { dst.add(i).write(half::f16::from_f32(x).to_bits()) };
    }
}

/// Widens `out.len()` consecutive elements of `dtype` at `src`; exact.
///
/// # Safety
/// `src` is readable for `out.len()` elements, aligned to the element size, and does not overlap
/// `out`.
///
/// # Panics
/// If `dtype` is not a real format.
pub unsafe fn widen(dtype: DType, src: *const u8, out: &mut [f32]) {
    // SAFETY: the contract of this function is that of each branch.
    unsafe {
        match dtype {
            DType::F32 => std::ptr::copy_nonoverlapping(src.cast(), out.as_mut_ptr(), out.len()),
            DType::Bf16 => widen_bf16(src.cast(), out),
            DType::F16 => widen_f16(src.cast(), out),
            DType::F8e4m3 | DType::F8e5m2 => {
                let t = table(dtype);
                for (i, o) in out.iter_mut().enumerate() {
                    *o = t[usize::from(src.add(i).read())];
                }
            }
            _ => panic!("widen: {dtype} is not a real format"),
        }
    }
}

/// Rounds `x` to `dtype` and stores it at `dst`.
///
/// # Safety
/// `dst` is writable for `x.len()` elements, aligned to the element size, and does not overlap `x`.
///
/// # Panics
/// If `dtype` is not a real format.
pub unsafe fn narrow(dtype: DType, x: &[f32], dst: *mut u8) {
    // SAFETY: the contract of this function is that of each branch.
    unsafe {
        match dtype {
            DType::F32 => std::ptr::copy_nonoverlapping(x.as_ptr(), dst.cast(), x.len()),
            DType::Bf16 => narrow_bf16(x, dst.cast()),
            DType::F16 => narrow_f16(x, dst.cast()),
            DType::F8e4m3 => narrow_e4m3(x, dst),
            DType::F8e5m2 => narrow_e5m2(x, dst),
            _ => panic!("narrow: {dtype} is not a real format"),
        }
    }
}

/// One element of `dtype`, widened.
///
/// # Safety
/// `src` points to a readable, aligned element.
///
/// # Panics
/// If `dtype` is not a real format.
#[inline(always)]
pub unsafe fn read(dtype: DType, src: *const u8) -> f32 {
    // SAFETY: the caller's contract.
    unsafe {
        match dtype {
            DType::F32 => src.cast::<f32>().read(),
            DType::Bf16 => f32::from_bits(u32::from(src.cast::<u16>().read()) << 16),
            DType::F16 => half::f16::from_bits(src.cast::<u16>().read()).to_f32(),
            DType::F8e4m3 | DType::F8e5m2 => table(dtype)[usize::from(src.read())],
            _ => panic!("read: {dtype} is not a real format"),
        }
    }
}

/// Stores one element, rounded to `dtype`.
///
/// # Safety
/// `dst` points to a writable, aligned element.
///
/// # Panics
/// If `dtype` is not a real format.
#[inline(always)]
pub unsafe fn write(dtype: DType, dst: *mut u8, x: f32) {
    // SAFETY: the caller's contract.
    unsafe {
        match dtype {
            DType::F32 => dst.cast::<f32>().write(x),
            DType::Bf16 => dst.cast::<u16>().write(f32_to_bf16(x)),
            DType::F16 => dst.cast::<u16>().write(half::f16::from_f32(x).to_bits()),
            DType::F8e4m3 => dst.write(f32_to_f8::<4, 0x7e, 0x7f>(x)),
            DType::F8e5m2 => dst.write(f32_to_f8::<5, 0x7b, 0x7c>(x)),
            _ => panic!("write: {dtype} is not a real format"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NARROW: [DType; 4] = [DType::F16, DType::Bf16, DType::F8e4m3, DType::F8e5m2];

    fn bits_of(dtype: DType, bytes: &[u8], i: usize) -> u32 {
        match dtype.size() {
            1 => u32::from(bytes[i]),
            _ => u32::from(u16::from_ne_bytes([bytes[2 * i], bytes[2 * i + 1]])),
        }
    }

    fn narrow_all(dtype: DType, x: &[f32]) -> Vec<u32> {
        // A u64 buffer, so that the elements are aligned.
        let mut buf = vec![0u64; (x.len() * dtype.size()).div_ceil(8)];
        // SAFETY: the buffer holds x.len() elements.
        unsafe { narrow(dtype, x, buf.as_mut_ptr().cast()) };
        let bytes: &[u8] = bytemuck::cast_slice(&buf);
        (0..x.len()).map(|i| bits_of(dtype, bytes, i)).collect()
    }

    fn is_nan(dtype: DType, bits: u32) -> bool {
        dtype.decode(bits).is_nan()
    }

    #[test]
    fn every_pattern_widens_exactly() {
        for dtype in NARROW {
            let n = 1usize << (8 * dtype.size());
            let bytes: Vec<u16> = match dtype.size() {
                1 => (0..128).map(|i| u16::from_ne_bytes([2 * i as u8, 2 * i as u8 + 1])).collect(),
                _ => (0..=u16::MAX).collect(),
            };
            let mut out = vec![0f32; n];
            // SAFETY: `bytes` holds all n patterns.
            unsafe { widen(dtype, bytes.as_ptr().cast(), &mut out) };
            for (i, x) in out.iter().enumerate() {
                let want = dtype.decode(i as u32);
                assert!(
                    x.to_bits() == want.to_bits() || (x.is_nan() && want.is_nan()),
                    "{dtype} {i:#x}"
                );
            }
        }
    }

    #[test]
    fn rounding_agrees_with_the_reference_at_every_boundary() {
        for dtype in NARROW {
            let mut xs = Vec::new();
            for bits in 0..1u32 << (8 * dtype.size()) {
                let x = dtype.decode(bits);
                if !x.is_finite() {
                    xs.push(x);
                    continue;
                }
                // Towards the next pattern: the value, the middle, and one f32 step around each.
                let next = dtype.decode(bits + 1);
                let next = if next.is_finite() { next } else { x * 1.125 };
                let mid = ((f64::from(x) + f64::from(next)) / 2.0) as f32;
                for y in [x, mid] {
                    for d in [-1i32, 0, 1] {
                        xs.push(f32::from_bits(y.to_bits().wrapping_add_signed(d)));
                    }
                }
            }
            // And patterns from all over f32, subnormals included.
            xs.extend((0..1_000_000u32).map(|i| f32::from_bits(i.wrapping_mul(4_294_967))));
            xs.extend([0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN]);
            for (x, got) in xs.iter().zip(narrow_all(dtype, &xs)) {
                let want = dtype.encode(*x);
                assert!(
                    got == want || (is_nan(dtype, got) && is_nan(dtype, want)),
                    "{dtype}: {x:e} gives {got:#x}, want {want:#x}"
                );
                let mut one = [0u16; 1];
                // SAFETY: room for one element of two bytes; zero-extended for one-byte formats.
                unsafe { write(dtype, one.as_mut_ptr().cast(), *x) };
                assert!(u32::from(one[0]) == got || is_nan(dtype, got));
            }
        }
    }

    #[test]
    fn sixteen_bit_formats_agree_with_half() {
        let xs: Vec<f32> =
            (0..4_000_000u32).map(|i| f32::from_bits(i.wrapping_mul(1_073_741))).collect();
        for ((x, h), b) in
            xs.iter().zip(narrow_all(DType::F16, &xs)).zip(narrow_all(DType::Bf16, &xs))
        {
            assert!(h == u32::from(half::f16::from_f32(*x).to_bits()) || x.is_nan());
            assert!(b == u32::from(half::bf16::from_f32(*x).to_bits()) || x.is_nan());
        }
    }
}
