//! Threads, and the scratch memory each of them owns.

use crate::error::{Error, Result};
use rayon::prelude::*;
use std::alloc::{Layout, alloc_zeroed, dealloc};
use std::cell::UnsafeCell;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};

/// Bytes of all blocks of this process.
static LIVE: AtomicU64 = AtomicU64::new(0);

/// A block of zeroed memory, aligned to 64 bytes.
pub struct Aligned {
    ptr: NonNull<u8>,
    layout: Layout,
    bytes: usize,
}

// SAFETY: an owned block; whoever writes through `ptr` answers for races.
unsafe impl Send for Aligned {}
// SAFETY: as above.
unsafe impl Sync for Aligned {}

impl Aligned {
    /// # Errors
    /// If the memory cannot be had.
    pub fn new(bytes: usize) -> Result<Aligned> {
        let fail = || {
            Error::new(
                "R0101",
                format!("cannot allocate {}", precast_plan::units::bytes(bytes as u64)),
            )
            .help("lower the batch size, or run on a machine with more memory")
        };
        let layout = Layout::from_size_align(bytes.max(64), 64).map_err(|_| fail())?;
        // SAFETY: the size is not zero.
        let ptr = NonNull::new(unsafe { alloc_zeroed(layout) }).ok_or_else(fail)?;
        LIVE.fetch_add(layout.size() as u64, Ordering::Relaxed);
        Ok(Aligned { ptr, layout, bytes })
    }

    /// Bytes of all blocks that live in this process, whoever holds them.
    pub fn live() -> u64 {
        LIVE.load(Ordering::Relaxed)
    }

    /// First byte.
    pub fn ptr(&self) -> *mut u8 {
        self.ptr.as_ptr()
    }

    pub fn len(&self) -> usize {
        self.bytes
    }

    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    pub fn bytes(&self) -> &[u8] {
        // SAFETY: owned and initialised; those who write through `ptr` keep to the borrow rules.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.bytes) }
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: as above, and exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) }
    }
}

impl Drop for Aligned {
    fn drop(&mut self) {
        // SAFETY: allocated with this layout.
        unsafe { dealloc(self.ptr.as_ptr(), self.layout) };
        LIVE.fetch_sub(self.layout.size() as u64, Ordering::Relaxed);
    }
}

/// Most threads of a pool, unless the machine has more cores: each has a stack and scratch memory.
pub const MAX_THREADS: usize = 1024;

/// A thread pool whose workers own scratch memory.
pub struct Pool {
    pool: rayon::ThreadPool,
    scratch: Vec<UnsafeCell<Aligned>>,
}

// SAFETY: scratch block `t` is touched by worker `t` alone (see `for_each`).
unsafe impl Sync for Pool {}

impl Pool {
    /// Bytes of a worker's stack, of which it touches what it needs.
    pub const STACK: u64 = 2 << 20;

    /// `threads` = 0 takes every core.
    ///
    /// # Errors
    /// If the threads cannot be started.
    pub fn new(threads: usize) -> Result<Pool> {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = if threads == 0 { cores } else { threads };
        if threads > MAX_THREADS.max(cores) {
            let text = format!("{threads} threads are more than {}", MAX_THREADS.max(cores));
            return Err(Error::new("R0102", text).help("0 threads take every core"));
        }
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(threads)
            .stack_size(Pool::STACK as usize)
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

    /// Bytes of scratch memory and, at most, of stack of all workers.
    pub fn bytes(&mut self) -> u64 {
        self.scratch.iter_mut().map(|s| s.get_mut().len().max(64) as u64 + Pool::STACK).sum()
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
