//! Threads, and the scratch memory each of them owns.

use crate::error::{Error, Result};
use rayon::prelude::*;
use std::cell::UnsafeCell;

/// A block of 64-byte aligned, zeroed memory.
pub struct Aligned {
    words: Vec<[u64; 8]>,
    bytes: usize,
}

impl Aligned {
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(bytes: usize) -> Result<Aligned> {
        let n = bytes.div_ceil(64).max(1);
        let mut words: Vec<[u64; 8]> = Vec::new();
        // One line more, since a vector of words is aligned to eight bytes only.
        words.try_reserve_exact(n + 1).map_err(|_| {
            Error::new("R0101", format!("cannot allocate {bytes} bytes"))
                .help("lower the batch size, or run on a machine with more memory")
        })?;
        words.resize(n + 1, [0; 8]);
        Ok(Aligned { words, bytes })
    }

    /// First byte, aligned to 64.
    pub fn ptr(&self) -> *mut u8 {
        let p = self.words.as_ptr() as *mut u8;
        p.wrapping_add(p.align_offset(64))
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }
}

/// A thread pool whose workers own scratch memory.
pub struct Pool {
    pool: rayon::ThreadPool,
    scratch: Vec<UnsafeCell<Aligned>>,
}

// SAFETY: scratch block `t` is touched by worker `t` alone (see `for_each`).
unsafe impl Sync for Pool {}

impl Pool {
    /// `threads` = 0 takes every core.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn new(threads: usize) -> Result<Pool> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores } else { threads };
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .thread_name(|i| format!("precast-{i}"))
            .build()
            .map_err(|e| Error::new("R0102", format!("cannot start {threads} threads: {e}")))?;
        let scratch = (0..threads)
            .map(|_| Aligned::new(64).map(UnsafeCell::new))
            .collect::<Result<Vec<_>>>()?;
        Ok(Pool { pool, scratch })
    }

    pub fn threads(&self) -> usize {
        self.scratch.len()
    }

    /// Gives every worker at least `bytes` of scratch memory.
    ///
    /// # Errors
    /// If the memory cannot be had.
    pub fn reserve(&mut self, bytes: usize) -> Result<()> {
        for s in &mut self.scratch {
            if s.get_mut().len() < bytes {
                *s.get_mut() = Aligned::new(bytes)?;
            }
        }
        Ok(())
    }

    /// Runs `f` on a worker.
    pub fn install<R: Send>(&self, f: impl FnOnce() -> R + Send) -> R {
        self.pool.install(f)
    }

    /// Calls `f(i, scratch)` for every `i < n`; the scratch pointer belongs to the calling worker
    /// until `f` returns, so `f` must not use rayon. Does not allocate when called from a worker.
    pub fn for_each(&self, n: usize, f: impl Fn(usize, *mut u8) + Sync) {
        if n == 0 {
            return;
        }
        self.install(|| {
            if n == 1 || self.threads() == 1 {
                let scratch = self.mine();
                (0..n).for_each(|i| f(i, scratch));
            } else {
                (0..n).into_par_iter().with_max_len(1).for_each(|i| f(i, self.mine()));
            }
        });
    }

    /// The scratch memory of the worker that calls.
    ///
    /// # Panics
    /// If the caller is not one of this pool's workers.
    pub fn mine(&self) -> *mut u8 {
        let t = self.pool.current_thread_index().expect("called from a worker of the pool");
        // SAFETY: reads the pointer of a block that is replaced only through `&mut self`.
        unsafe { (*self.scratch[t].get()).ptr() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn every_index_runs_once_whatever_the_number_of_threads() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).unwrap();
            pool.reserve(1000).unwrap();
            let hits: Vec<AtomicUsize> = (0..97).map(|_| AtomicUsize::new(0)).collect();
            pool.for_each(97, |i, scratch| {
                assert_eq!(scratch as usize % 64, 0);
                hits[i].fetch_add(1, Ordering::Relaxed);
            });
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn an_impossible_allocation_is_an_error() {
        assert_eq!(Aligned::new(usize::MAX / 2).err().unwrap().code, "R0101");
    }
}
