//! Helpers for kernel tests: random tensors in any format, and pools of several sizes.

use super::convert;
use precast_plan::DType;

/// SplitMix64.
pub struct Rng(pub u64);

impl Rng {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    pub fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len())]
    }

    /// Uniform in [-1, 1).
    pub fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / 8388608.0 - 1.0
    }
}

/// A buffer of elements of one format, aligned to 8 bytes.
pub struct Buf {
    pub dtype: DType,
    pub len: usize,
    words: Vec<u64>,
}

impl Buf {
    pub fn new(dtype: DType, values: &[f32]) -> Buf {
        let mut words = vec![0u64; (values.len() * dtype.size()).div_ceil(8).max(1)];
        if dtype == DType::Bool {
            let bytes: &mut [u8] = bytemuck::cast_slice_mut(&mut words);
            bytes.iter_mut().zip(values).for_each(|(b, &v)| *b = u8::from(v != 0.0));
            return Buf { dtype, len: values.len(), words };
        }
        // SAFETY: the words hold that many elements.
        unsafe { convert::narrow(dtype, values, words.as_mut_ptr().cast()) };
        Buf { dtype, len: values.len(), words }
    }

    pub fn random(rng: &mut Rng, dtype: DType, len: usize) -> Buf {
        let values: Vec<f32> = (0..len).map(|_| rng.unit()).collect();
        Buf::new(dtype, &values)
    }

    /// Filled with a value that a kernel must overwrite.
    pub fn poisoned(dtype: DType, len: usize) -> Buf {
        Buf::new(dtype, &vec![f32::NAN; len])
    }

    pub fn ptr(&self) -> *const u8 {
        self.words.as_ptr().cast()
    }

    pub fn ptr_mut(&mut self) -> *mut u8 {
        self.words.as_mut_ptr().cast()
    }

    pub fn get(&self, i: usize) -> f64 {
        assert!(i < self.len);
        if self.dtype == DType::Bool {
            return f64::from(bytemuck::cast_slice::<u64, u8>(&self.words)[i]);
        }
        // SAFETY: i is below the length.
        f64::from(unsafe { convert::read(self.dtype, self.ptr().add(i * self.dtype.size())) })
    }

    pub fn values(&self) -> Vec<f64> {
        (0..self.len).map(|i| self.get(i)).collect()
    }

    pub fn bytes(&self) -> &[u8] {
        &bytemuck::cast_slice(&self.words)[..self.len * self.dtype.size()]
    }
}

/// Runs `f` in pools of 1, 2 and 3 threads and checks that the results have the same bits.
pub fn same_for_any_thread_count<R: PartialEq + std::fmt::Debug + Send>(
    f: impl Fn() -> R + Sync,
) -> R {
    let run = |threads: usize| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("a pool");
        pool.install(&f)
    };
    let one = run(1);
    for threads in [2, 3] {
        assert!(run(threads) == one, "{threads} threads give other bits than one");
    }
    one
}

/// Half a unit in the last place of `dtype` at `x`, for comparing rounded results.
pub fn rounding(dtype: DType, x: f64) -> f64 {
    let f = dtype.facts();
    let e = x.abs().max(f.min_normal).log2().floor();
    (e - f64::from(f.mantissa_bits) - 1.0).exp2()
}
