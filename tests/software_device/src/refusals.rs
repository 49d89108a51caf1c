//! What tests have libraries and the driver refuse.

use std::collections::BTreeMap;
use std::sync::Mutex;

/// What [`refuses`] goes by, the environment's until a test says otherwise, and captured calls since.
static REFUSED: Mutex<(Option<String>, BTreeMap<String, u64>)> =
    Mutex::new((None, BTreeMap::new()));

/// Has libraries refuse what `words` say, and nothing else.
pub fn refuse(words: String) {
    let mut refused = REFUSED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    *refused = (Some(words), BTreeMap::new());
}

/// Whether the words of `PRECAST_SOFTWARE_DEVICE_REFUSES`, or of a test, have one that `is` asked for.
pub fn told(is: impl Fn(&str) -> bool) -> bool {
    let mut refused = REFUSED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let words = refused.0.get_or_insert_with(|| {
        std::env::var("PRECAST_SOFTWARE_DEVICE_REFUSES").unwrap_or_default()
    });
    words.split(',').any(is)
}

/// Whether a library is to refuse one of its candidates in a stream: `cudnn:1,cublas` is cuDNN's engine
/// 1 and all of cuBLASLt's, `cublas-epilogue:192` a value of `cublasLtEpilogue_t`. With `captured-` before it, only where the stream captures; and
/// `captured-cublas#3` is the third product that is captured, whichever candidate it has.
pub fn refuses(library: &str, candidate: u64, captures: bool) -> bool {
    let one = format!("{library}:{candidate}");
    if told(|w| w == library || w == one) {
        return true;
    }
    if !captures {
        return false;
    }
    let count = {
        let mut refused = REFUSED.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
        let count = refused.1.entry(library.into()).or_default();
        *count += 1;
        *count
    };
    let nth = format!("{library}#{count}");
    told(|w| w.strip_prefix("captured-").is_some_and(|w| w == library || w == one || w == nth))
}
