//! Along one axis: running sums, and the places of the largest.

use super::convert;
use super::par::{self, SharedPtr};
use precast_plan::DType;

/// A strided tensor of lines: extents before, along and behind an axis.
#[derive(Clone, Copy, Debug)]
pub struct Lines {
    pub ptr: *mut u8,
    pub dtype: DType,
    pub strides: [isize; 3],
}

// SAFETY: a bare address; whoever dereferences it answers for races.
unsafe impl Send for Lines {}
// SAFETY: as above.
unsafe impl Sync for Lines {}

impl Lines {
    fn at(&self, at: [usize; 3]) -> *mut u8 {
        let offset: isize = self.strides.iter().zip(at).map(|(s, i)| s * i as isize).sum();
        self.ptr.wrapping_offset(offset * self.dtype.size() as isize)
    }

    /// Elements `at`, …, `at + out.len()` behind the axis, as f32.
    ///
    /// # Safety
    /// They exist and are real.
    unsafe fn load(&self, at: [usize; 3], out: &mut [f32]) {
        // SAFETY: the caller's contract.
        unsafe {
            if self.strides[2] == 1 {
                return convert::widen(self.dtype, self.at(at), out);
            }
            for (i, x) in out.iter_mut().enumerate() {
                let p = self.at([at[0], at[1], at[2] + i]);
                convert::widen(self.dtype, p, std::slice::from_mut(x));
            }
        }
    }

    /// The reverse of [`Lines::load`].
    ///
    /// # Safety
    /// As there.
    unsafe fn store(&self, at: [usize; 3], x: &[f32]) {
        // SAFETY: the caller's contract.
        unsafe {
            if self.strides[2] == 1 {
                return convert::narrow(self.dtype, x, self.at(at));
            }
            for (i, x) in x.iter().enumerate() {
                let p = self.at([at[0], at[1], at[2] + i]);
                convert::narrow(self.dtype, std::slice::from_ref(x), p);
            }
        }
    }

    /// # Safety
    /// The element exists and is integer.
    unsafe fn int(&self, at: [usize; 3]) -> i32 {
        let p = self.at(at);
        // SAFETY: the caller's contract.
        unsafe {
            match self.dtype {
                DType::I64 => {
                    let x = p.cast::<i64>().read_unaligned();
                    x.clamp(i64::from(i32::MIN), i64::from(i32::MAX)) as i32
                }
                DType::I32 => p.cast::<i32>().read_unaligned(),
                DType::U8 => i32::from(p.read()),
                other => panic!("integers of {other}"),
            }
        }
    }
}

/// Lines that one task sums together.
const TOGETHER: usize = 64;

/// Running sums along the middle axis of `dims`, in f64; integers wrap at 32 bits.
///
/// # Safety
/// `x` and `y` have `dims`; they do not overlap. Integer results are i32.
pub unsafe fn cumsum(dims: [usize; 3], exclusive: bool, reverse: bool, x: Lines, y: Lines) {
    let [outer, n, inner] = dims;
    let tiles = inner.div_ceil(TOGETHER);
    par::for_each(outer * tiles, &|task, _| {
        let (o, first) = (task / tiles, task % tiles * TOGETHER);
        let len = TOGETHER.min(inner - first);
        let along = |i: usize| [o, if reverse { n - 1 - i } else { i }, first];
        if x.dtype.is_real() {
            let (mut sum, mut buf) = ([0f64; TOGETHER], [0f32; TOGETHER]);
            for i in 0..n {
                // SAFETY: the elements exist, and these lines are this task's.
                unsafe { x.load(along(i), &mut buf[..len]) };
                for (s, v) in sum.iter_mut().zip(&mut buf[..len]) {
                    let before = *s;
                    *s += f64::from(*v);
                    *v = (if exclusive { before } else { *s }) as f32;
                }
                // SAFETY: as above.
                unsafe { y.store(along(i), &buf[..len]) };
            }
            return;
        }
        for j in first..first + len {
            let mut sum = 0i32;
            for i in 0..n {
                let [o, i, _] = along(i);
                // SAFETY: as above.
                unsafe {
                    let before = sum;
                    sum = sum.wrapping_add(x.int([o, i, j]));
                    let v = if exclusive { before } else { sum };
                    y.at([o, i, j]).cast::<i32>().write_unaligned(v);
                }
            }
        }
    });
}

/// Ascending unsigned integers for ascending reals: NaN last, zeros of both signs equal.
fn rank(x: f32) -> u32 {
    if x.is_nan() {
        return u32::MAX;
    }
    let bits = (x + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

/// Bytes of scratch memory that [`top_k`] divides among threads.
pub fn top_k_scratch_bytes(n: usize) -> usize {
    par::slots() * par::piece_bytes::<u64>(n)
}

/// Places of the `k` largest (smallest) elements along the middle axis of `dims`, in order, of equal
/// ones the first first.
///
/// # Safety
/// `x` has `dims`, `index` is i32 of `[outer, k, inner]`; they do not overlap.
///
/// # Panics
/// If the scratch memory is too small.
pub unsafe fn top_k(
    dims: [usize; 3],
    k: usize,
    largest: bool,
    x: Lines,
    index: Lines,
    scratch: &mut [u8],
) {
    let [outer, n, inner] = dims;
    let mut pieces = par::Scratch::new(scratch);
    let keys: SharedPtr<u64> = pieces.take(par::slots() * n);
    par::for_each(outer * inner, &|line, slot| {
        let (o, j) = (line / inner, line % inner);
        // SAFETY: the slot's own part.
        let keys = unsafe { std::slice::from_raw_parts_mut(keys.get().add(slot * n), n) };
        for (i, key) in keys.iter_mut().enumerate() {
            let ascending = if x.dtype.is_real() {
                let mut v = 0f32;
                // SAFETY: the element exists.
                unsafe { x.load([o, i, j], std::slice::from_mut(&mut v)) };
                rank(v)
            } else {
                // SAFETY: as above.
                unsafe { x.int([o, i, j]) }.cast_unsigned() ^ 1 << 31
            };
            let major = if largest { !ascending } else { ascending };
            *key = u64::from(major) << 32 | i as u64;
        }
        if k < n {
            keys.select_nth_unstable(k);
        }
        keys[..k].sort_unstable();
        for (i, key) in keys[..k].iter().enumerate() {
            // SAFETY: the element exists, and the line is this task's.
            unsafe { index.at([o, i, j]).cast::<i32>().write_unaligned(*key as u32 as i32) };
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_ascend_with_the_reals() {
        let x = [f32::NEG_INFINITY, -2.0, -1e-45, -0.0, 1e-45, 3.0, f32::INFINITY, f32::NAN];
        let ranks = x.map(rank);
        assert!(ranks.is_sorted_by(|a, b| a < b), "{ranks:?}");
        assert_eq!(rank(0.0), rank(-0.0));
        assert_eq!(rank(-f32::NAN), rank(f32::NAN));
    }
}
