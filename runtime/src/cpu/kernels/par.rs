//! Tasks over the current rayon pool.
//!
//! Work is divided by shapes alone: a task does the same arithmetic whichever thread runs it, and
//! no sum crosses tasks except in a fixed order, so results have the same bits for any number of
//! threads.

/// Scratch slots that [`for_each`] may use: one for each thread of the current pool.
pub fn slots() -> usize {
    rayon::current_num_threads()
}

/// Runs `f(task, slot)` for every task below `tasks`. At most one running call has a given slot,
/// `slot < slots()`.
///
/// Does not allocate when called from a thread of the pool. `f` must not use rayon itself: a
/// thread that waits could start another task with the same slot.
pub fn for_each(tasks: usize, f: &(impl Fn(usize, usize) + Sync)) {
    if tasks <= 1 || slots() == 1 {
        let slot = rayon::current_thread_index().unwrap_or(0);
        (0..tasks).for_each(|t| f(t, slot));
    } else {
        split(0, tasks, f);
    }
}

fn split(from: usize, to: usize, f: &(impl Fn(usize, usize) + Sync)) {
    if to - from == 1 {
        let slot = rayon::current_thread_index().expect("join runs inside a pool");
        f(from, slot);
    } else {
        let mid = from.midpoint(to);
        rayon::join(|| split(from, mid, f), || split(mid, to, f));
    }
}

/// A pointer that tasks share; each writes its own part.
#[derive(Clone, Copy, Debug)]
pub struct SharedPtr<T>(*mut T);

// SAFETY: a bare address; whoever dereferences it answers for races.
unsafe impl<T> Send for SharedPtr<T> {}
// SAFETY: as above.
unsafe impl<T> Sync for SharedPtr<T> {}

impl<T> SharedPtr<T> {
    pub fn new(p: *mut T) -> Self {
        SharedPtr(p)
    }

    pub fn get(self) -> *mut T {
        self.0
    }
}

/// Hands out aligned pieces of a caller's scratch memory.
#[derive(Debug)]
pub struct Scratch<'a> {
    rest: &'a mut [u8],
}

/// Alignment of the pieces: a cache line.
pub const ALIGN: usize = 64;

/// Bytes that a piece of `n` elements of `T` takes, with room to align it.
pub const fn piece_bytes<T>(n: usize) -> usize {
    (n * size_of::<T>()).next_multiple_of(ALIGN) + ALIGN
}

impl<'a> Scratch<'a> {
    pub fn new(bytes: &'a mut [u8]) -> Self {
        Scratch { rest: bytes }
    }

    /// `n` elements with unspecified contents.
    ///
    /// # Panics
    /// If the scratch memory is smaller than its caller was told it must be.
    pub fn take<T>(&mut self, n: usize) -> SharedPtr<T> {
        let rest = std::mem::take(&mut self.rest);
        let pad = rest.as_ptr().align_offset(ALIGN);
        let bytes = (n * size_of::<T>()).next_multiple_of(ALIGN);
        assert!(pad + bytes <= rest.len(), "scratch memory is too small");
        let (piece, rest) = rest[pad..].split_at_mut(bytes);
        self.rest = rest;
        SharedPtr(piece.as_mut_ptr().cast())
    }
}
