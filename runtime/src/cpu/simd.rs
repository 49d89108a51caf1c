//! Instruction sets: run-time detection and functions compiled once per set.
//!
//! A function written with [`multiversion!`] is compiled for the portable baseline, for AVX2 and
//! for AVX-512, and picks one per call from [`isa`] (one relaxed load). Its body is ordinary Rust
//! over slices, generic over a [`Level`], which LLVM vectorises with the instructions of the set.

use std::sync::atomic::{AtomicU8, Ordering};

/// Instruction sets the kernels are compiled for, from least to most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isa {
    /// The target's baseline (SSE2 on x86-64, NEON on AArch64).
    Portable = 1,
    /// AVX2, FMA and F16C.
    Avx2 = 2,
    /// `Avx2` and AVX-512 F, BW, DQ and VL.
    Avx512 = 3,
    /// `Avx512` and the bf16 dot product (AVX512-BF16).
    Avx512Bf16 = 4,
}

static DETECTED: AtomicU8 = AtomicU8::new(0);

/// The best set this processor and operating system offer.
#[inline]
pub fn isa() -> Isa {
    match DETECTED.load(Ordering::Relaxed) {
        1 => Isa::Portable,
        2 => Isa::Avx2,
        3 => Isa::Avx512,
        4 => Isa::Avx512Bf16,
        _ => detect(),
    }
}

#[cold]
fn detect() -> Isa {
    let found = detect_uncached();
    DETECTED.store(found as u8, Ordering::Relaxed);
    found
}

#[cfg(target_arch = "x86_64")]
fn detect_uncached() -> Isa {
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if avx512 && is_x86_feature_detected!("avx512bf16") {
        Isa::Avx512Bf16
    } else if avx512 {
        Isa::Avx512
    } else if avx2 {
        Isa::Avx2
    } else {
        Isa::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect_uncached() -> Isa {
    Isa::Portable
}

/// What a function body may know about the set it is compiled for.
///
/// Only [`Level::fma`] differs in value: with FMA it rounds once, without it twice, since a
/// software fused multiply-add would cost tens of instructions.
pub trait Level: Copy + 'static {
    /// Whether [`Level::fma`] rounds once.
    const FMA: bool;
    /// f32 lanes of a vector register.
    const LANES: usize;

    /// `a * b + c`.
    #[inline(always)]
    fn fma(a: f32, b: f32, c: f32) -> f32 {
        if Self::FMA { a.mul_add(b, c) } else { a * b + c }
    }

    /// `a * b + c` in f64.
    #[inline(always)]
    fn fma64(a: f64, b: f64, c: f64) -> f64 {
        if Self::FMA { a.mul_add(b, c) } else { a * b + c }
    }
}

/// The target's baseline.
#[derive(Clone, Copy, Debug)]
pub struct Portable;
/// AVX2 with FMA and F16C.
#[derive(Clone, Copy, Debug)]
pub struct Avx2;
/// AVX-512 F, BW, DQ and VL.
#[derive(Clone, Copy, Debug)]
pub struct Avx512;

impl Level for Portable {
    const FMA: bool = cfg!(any(target_arch = "aarch64", target_feature = "fma"));
    const LANES: usize = 4;
}
impl Level for Avx2 {
    const FMA: bool = true;
    const LANES: usize = 8;
}
impl Level for Avx512 {
    const FMA: bool = true;
    const LANES: usize = 16;
}

/// Defines functions that are compiled for every [`Isa`] and choose at run time.
///
/// The first generic parameter, without bounds, names the [`Level`] inside the body. Helpers that
/// the body calls must be `#[inline(always)]` and generic over the level too, or they are compiled
/// for the baseline.
///
/// ```
/// precast_runtime::multiversion! {
///     /// `y = a x + y`.
///     pub fn axpy<L>(a: f32, x: &[f32], y: &mut [f32]) {
///         for (y, &x) in y.iter_mut().zip(x) {
///             *y = L::fma(a, x, *y);
///         }
///     }
/// }
/// let mut y = [1.0, 2.0];
/// axpy(2.0, &[10.0, 20.0], &mut y);
/// assert_eq!(y, [21.0, 42.0]);
/// ```
///
/// `unsafe fn` and further const parameters (`fn f<L, const N: usize>`) are accepted.
#[macro_export]
macro_rules! multiversion {
    () => {};
    (
        $(#[$meta:meta])*
        $vis:vis fn $name:ident<$L:ident $(, const $C:ident : $cty:ty)*>(
            $($arg:ident : $ty:ty),* $(,)?
        ) $(-> $ret:ty)? $body:block
        $($rest:tt)*
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments)]
        $vis fn $name<$(const $C: $cty),*>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, clippy::extra_unused_type_parameters)]
            fn body<$L: $crate::cpu::simd::Level $(, const $C: $cty)*>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
                #[allow(clippy::too_many_arguments)]
                fn avx2<$(const $C: $cty),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::cpu::simd::Avx2 $(, $C)*>($($arg),*)
                }
                #[target_feature(
                    enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl"
                )]
                #[allow(clippy::too_many_arguments)]
                fn avx512<$(const $C: $cty),*>($($arg: $ty),*) $(-> $ret)? {
                    body::<$crate::cpu::simd::Avx512 $(, $C)*>($($arg),*)
                }
                match $crate::cpu::simd::isa() {
                    // SAFETY: `isa` returns a set only where the processor has it.
                    $crate::cpu::simd::Isa::Avx512 | $crate::cpu::simd::Isa::Avx512Bf16 => {
                        return unsafe { avx512::<$($C),*>($($arg),*) };
                    }
                    // SAFETY: as above.
                    $crate::cpu::simd::Isa::Avx2 => return unsafe { avx2::<$($C),*>($($arg),*) },
                    $crate::cpu::simd::Isa::Portable => {}
                }
            }
            body::<$crate::cpu::simd::Portable $(, $C)*>($($arg),*)
        }
        $crate::multiversion! { $($rest)* }
    };
    (
        $(#[$meta:meta])*
        $vis:vis unsafe fn $name:ident<$L:ident $(, const $C:ident : $cty:ty)*>(
            $($arg:ident : $ty:ty),* $(,)?
        ) $(-> $ret:ty)? $body:block
        $($rest:tt)*
    ) => {
        $(#[$meta])*
        #[allow(clippy::too_many_arguments, clippy::missing_safety_doc)]
        $vis unsafe fn $name<$(const $C: $cty),*>($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            #[allow(clippy::too_many_arguments, clippy::extra_unused_type_parameters)]
            unsafe fn body<$L: $crate::cpu::simd::Level $(, const $C: $cty)*>($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt")]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx2<$(const $C: $cty),*>($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: the caller keeps the contract of the function.
                    unsafe { body::<$crate::cpu::simd::Avx2 $(, $C)*>($($arg),*) }
                }
                #[target_feature(
                    enable = "avx2,fma,f16c,bmi1,bmi2,lzcnt,popcnt,avx512f,avx512bw,avx512dq,avx512vl"
                )]
                #[allow(clippy::too_many_arguments)]
                unsafe fn avx512<$(const $C: $cty),*>($($arg: $ty),*) $(-> $ret)? {
                    // SAFETY: as above.
                    unsafe { body::<$crate::cpu::simd::Avx512 $(, $C)*>($($arg),*) }
                }
                match $crate::cpu::simd::isa() {
                    // SAFETY: `isa` returns a set only where the processor has it.
                    $crate::cpu::simd::Isa::Avx512 | $crate::cpu::simd::Isa::Avx512Bf16 => {
                        return unsafe { avx512::<$($C),*>($($arg),*) };
                    }
                    // SAFETY: as above.
                    $crate::cpu::simd::Isa::Avx2 => return unsafe { avx2::<$($C),*>($($arg),*) },
                    $crate::cpu::simd::Isa::Portable => {}
                }
            }
            // SAFETY: as above.
            unsafe { body::<$crate::cpu::simd::Portable $(, $C)*>($($arg),*) }
        }
        $crate::multiversion! { $($rest)* }
    };
}

#[cfg(test)]
mod tests {
    use super::*;

    multiversion! {
        fn sum_of_squares<L>(x: &[f32]) -> f32 {
            x.iter().fold(0.0, |s, &x| L::fma(x, x, s))
        }
        fn scaled<L, const N: usize>(x: &mut [f32]) {
            for x in x { *x *= N as f32; }
        }
        unsafe fn first<L>(x: *const f32) -> f32 {
            // SAFETY: the caller passes a readable pointer.
            unsafe { *x }
        }
    }

    #[test]
    fn multiversioned_functions_run_on_this_processor() {
        let mut x = [1.0, 2.0, 3.0];
        assert_eq!(sum_of_squares(&x), 14.0);
        scaled::<2>(&mut x);
        assert_eq!(x, [2.0, 4.0, 6.0]);
        // SAFETY: `x` is alive and not empty.
        assert_eq!(unsafe { first(x.as_ptr()) }, 2.0);
    }

    #[test]
    fn detection_is_stable() {
        assert_eq!(isa(), detect_uncached());
        assert_eq!(isa(), isa());
    }
}
