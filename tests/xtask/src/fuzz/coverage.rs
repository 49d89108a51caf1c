//! Which code an input reached. Where this binary was built with LLVM's coverage counters
//! (`cargo xtask fuzz --guided` does), an input that reaches new code is kept to be changed further;
//! where it was not, what was said of the input has to do.

use std::collections::BTreeSet;
use std::sync::Mutex;

/// Addresses of counters, from and to.
static REGIONS: Mutex<Vec<(usize, usize)>> = Mutex::new(Vec::new());

/// Called by the code that the compiler adds, once for every object file.
///
/// # Safety
/// The range is one of counters that live as long as the process.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn __sanitizer_cov_8bit_counters_init(from: *mut u8, to: *mut u8) {
    if let Ok(mut regions) = REGIONS.lock()
        && from < to
    {
        regions.push((from as usize, to as usize));
    }
}

/// What inputs reached so far.
#[derive(Default)]
pub struct Coverage {
    /// For every counter the sizes that it has had, one bit each.
    seen: Vec<Vec<u8>>,
    reached: usize,
    said: BTreeSet<u64>,
}

/// Counts that differ little are one.
fn bucket(count: u8) -> u8 {
    match count {
        0 => 0,
        1 => 1,
        2 => 2,
        3 => 4,
        4..=7 => 8,
        8..=15 => 16,
        16..=31 => 32,
        32..=127 => 64,
        128.. => 128,
    }
}

impl Coverage {
    /// Sets every counter to 0.
    pub fn begin(&mut self) {
        let regions = REGIONS.lock().expect("nobody panics while holding it");
        for &(from, to) in regions.iter() {
            // SAFETY: the counters live as long as the process; other threads are idle between inputs,
            // and a count that is lost is a matter of luck, not of meaning.
            unsafe { std::ptr::write_bytes(from as *mut u8, 0, to - from) }
        }
    }

    /// Whether the input that ended reached something new.
    pub fn is_new(&mut self, said: u64) -> bool {
        let mut new = self.said.len() < 1 << 16 && self.said.insert(said);
        let regions = REGIONS.lock().expect("nobody panics while holding it");
        self.seen.resize(regions.len(), vec![]);
        for (&(from, to), seen) in regions.iter().zip(&mut self.seen) {
            seen.resize(to - from, 0);
            // SAFETY: as above.
            let counts = unsafe { std::slice::from_raw_parts(from as *const u8, to - from) };
            let mut at = 0;
            // Most counters are 0: eight at a time.
            for (counts, seen) in counts.chunks(8).zip(seen.chunks_mut(8)) {
                at += counts.len();
                if counts.iter().all(|&c| c == 0) {
                    continue;
                }
                for (&c, s) in counts.iter().zip(seen) {
                    let bit = bucket(c);
                    if bit & !*s != 0 {
                        self.reached += usize::from(*s == 0);
                        *s |= bit;
                        new = true;
                    }
                }
            }
            debug_assert_eq!(at, to - from);
        }
        new
    }

    /// Places reached: of code where it is counted, of messages elsewhere.
    pub fn reached(&self) -> usize {
        self.reached.max(self.said.len())
    }
}

/// What distinguishes messages: the words of the first line, without names and numbers.
pub fn signature(stage: u8, message: &str) -> u64 {
    let message = message.lines().next().unwrap_or_default();
    let mut hash = 0xcbf2_9ce4_8422_2325u64 ^ u64::from(stage);
    let mut quoted = false;
    for b in message.bytes() {
        if b == b'`' {
            quoted = !quoted;
        }
        let skipped = quoted || !(b.is_ascii_alphabetic() || b == b'[');
        // A code's digits count, and are four behind a letter and a bracket.
        if !skipped {
            hash = (hash ^ u64::from(b)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    let code: Vec<u8> = message.bytes().skip_while(|b| *b != b'[').take(6).collect();
    code.iter().fold(hash, |h, b| (h ^ u64::from(*b)).wrapping_mul(0x0100_0000_01b3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_differ_by_words_and_codes_not_by_names() {
        let of = |m: &str| signature(0, m);
        assert_eq!(of("error[P0101]: no `x` in 3"), of("error[P0101]: no `yy` in 14"));
        assert_ne!(of("error[P0101]: no `x`"), of("error[P0102]: no `x`"));
        assert_ne!(of("error[P0101]: no `x`"), of("error[P0101]: an `x`"));
        let mut c = Coverage::default();
        assert!(c.is_new(1));
        assert!(!c.is_new(1));
    }
}
