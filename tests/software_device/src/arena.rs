//! Device memory: pages of the host in a range of addresses of its own.
//!
//! Every allocation ends at a page that nothing may touch, what is left of its pages carries a
//! pattern, its bytes begin as ones (NaN, or -1), addresses are not used again, and the host
//! cannot read or write any of it unless the device is at work.

use std::collections::BTreeMap;

const PAGE: usize = 4096;
/// Bytes between two allocations that nothing may touch.
const GAP: usize = 16 * PAGE;
/// Addresses set aside, not memory.
const RANGE: usize = 256 << 30;
/// What the bytes around an allocation hold.
const PATTERN: u8 = 0xa5;
/// What a new allocation holds.
const POISON: u8 = 0xff;
/// Alignment of an allocation.
const ALIGN: usize = 256;

struct Allocation {
    bytes: usize,
    pages: usize,
    pages_len: usize,
}

/// The memory of the device.
pub struct Arena {
    base: usize,
    next: usize,
    allocations: BTreeMap<usize, Allocation>,
    total: usize,
    used: usize,
    open: bool,
    peak: usize,
}

fn protect(at: usize, len: usize, access: i32) {
    // SAFETY: the range lies in the arena's own mapping.
    let failed = unsafe { libc::mprotect(at as *mut libc::c_void, len, access) };
    assert_eq!(
        failed,
        0,
        "mprotect of {len} bytes at {at:#x}: {}",
        std::io::Error::last_os_error()
    );
}

const NONE: i32 = libc::PROT_NONE;
const BOTH: i32 = libc::PROT_READ | libc::PROT_WRITE;

impl Arena {
    /// An arena that has `total` bytes, of which others hold `taken`.
    pub fn new(total: usize, taken: usize) -> Arena {
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: a new mapping at an address of the system's choice.
        let base = unsafe { libc::mmap(std::ptr::null_mut(), RANGE, NONE, flags, -1, 0) };
        assert_ne!(
            base,
            libc::MAP_FAILED,
            "no addresses for device memory: {}",
            std::io::Error::last_os_error()
        );
        let base = base as usize;
        Arena {
            base,
            next: base,
            allocations: BTreeMap::new(),
            total,
            used: taken.min(total),
            open: false,
            peak: 0,
        }
    }

    /// Bytes in all, and bytes not given out.
    pub fn info(&self) -> (usize, usize) {
        (self.total, self.total - self.used)
    }

    /// The most bytes that were given out at once.
    pub fn peak(&self) -> usize {
        self.peak
    }

    /// Allocations that were not freed.
    pub fn live(&self) -> usize {
        self.allocations.len()
    }

    /// The address of `bytes` new bytes, or `None` where too few are left.
    pub fn allocate(&mut self, bytes: usize) -> Option<u64> {
        let rounded = bytes.max(1).checked_next_multiple_of(ALIGN)?;
        if rounded > self.total - self.used {
            return None;
        }
        let pages_len = rounded.next_multiple_of(PAGE);
        let pages = self.next + GAP;
        if pages + pages_len + GAP > self.base + RANGE {
            return None;
        }
        self.next = pages + pages_len;
        protect(pages, pages_len, BOTH);
        let at = pages + pages_len - rounded;
        // SAFETY: the pages were just made accessible.
        unsafe {
            std::ptr::write_bytes(pages as *mut u8, PATTERN, pages_len);
            std::ptr::write_bytes(at as *mut u8, POISON, bytes);
        }
        if !self.open {
            protect(pages, pages_len, NONE);
        }
        self.used += rounded;
        self.peak = self.peak.max(self.used);
        self.allocations.insert(at, Allocation { bytes, pages, pages_len });
        Some(at as u64)
    }

    /// Gives back an allocation; `None` if there is none at `at`, an error if its surroundings
    /// were written to. The arena is open.
    pub fn free(&mut self, at: u64) -> Option<Result<(), String>> {
        let checked = self.check_one(at as usize, self.allocations.get(&(at as usize))?);
        let a = self.allocations.remove(&(at as usize))?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | libc::MAP_FIXED;
        // SAFETY: the pages are the allocation's own; mapping them anew drops what they hold.
        let again =
            unsafe { libc::mmap(a.pages as *mut libc::c_void, a.pages_len, NONE, flags, -1, 0) };
        assert_ne!(again, libc::MAP_FAILED, "mmap: {}", std::io::Error::last_os_error());
        self.used -= a.bytes.max(1).next_multiple_of(ALIGN);
        Some(checked)
    }

    fn check_one(&self, at: usize, a: &Allocation) -> Result<(), String> {
        // SAFETY: the pages are mapped, and accessible while the arena is open.
        let bytes = unsafe { std::slice::from_raw_parts(a.pages as *const u8, a.pages_len) };
        let first = at - a.pages;
        let wrong =
            |range: std::ops::Range<usize>| range.into_iter().find(|&i| bytes[i] != PATTERN);
        if let Some(i) = wrong(0..first) {
            return Err(format!(
                "{} bytes before an allocation of {} bytes were written to",
                first - i,
                a.bytes
            ));
        }
        if let Some(i) = wrong(first + a.bytes..bytes.len()) {
            let past = i - first - a.bytes;
            return Err(format!(
                "byte {past} after an allocation of {} bytes was written to",
                a.bytes
            ));
        }
        Ok(())
    }

    /// Whether the bytes around every allocation are as they were. The arena is open.
    pub fn check(&self) -> Result<(), String> {
        self.allocations.iter().try_for_each(|(&at, a)| self.check_one(at, a))
    }

    /// Lets memory be read and written, or forbids it.
    pub fn set_open(&mut self, open: bool) {
        if self.open != open {
            for a in self.allocations.values() {
                protect(a.pages, a.pages_len, if open { BOTH } else { NONE });
            }
            self.open = open;
        }
    }

    /// Whether `at` is an address of the device, allocated or not.
    pub fn is_device(&self, at: u64) -> bool {
        (self.base..self.base + RANGE).contains(&(at as usize))
    }

    /// Whether `bytes` bytes from `at` lie in one allocation.
    pub fn holds(&self, at: u64, bytes: usize) -> bool {
        let at = at as usize;
        self.allocations
            .range(..=at)
            .next_back()
            .is_some_and(|(&start, a)| at - start <= a.bytes && bytes <= a.bytes - (at - start))
    }

    /// Start and length of the allocation around `at`.
    pub fn around(&self, at: u64) -> Option<(u64, usize)> {
        let (&start, a) = self.allocations.range(..=at as usize).next_back()?;
        (at as usize - start < a.bytes.max(1)).then_some((start as u64, a.bytes))
    }
}
