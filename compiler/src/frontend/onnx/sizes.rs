//! How large literals may be, and values that follow from literals alone.

use super::node::fail;
use crate::diagnostic::Diagnostic;

type Res<T> = Result<T, Diagnostic>;

/// Most elements that a folded literal may have.
pub const MAX_FOLDED: usize = 1 << 22;

/// Most elements of a value that follows from literals alone and is not folded, but computed in every
/// step that needs it.
const MAX_COMPUTED: usize = 1 << 32;

/// Whether a value of literals is folded, and not computed in every step.
///
/// # Errors
/// P0213 where it is too large for either.
pub fn folds(shape: &[usize]) -> Res<bool> {
    match check_size(shape) {
        Err(d) if is_beyond(shape) => Err(d),
        small => Ok(small.is_ok()),
    }
}

/// Whether a value of literals is too large even for a step to compute.
pub fn is_beyond(shape: &[usize]) -> bool {
    let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    n.is_none_or(|n| n > MAX_COMPUTED)
}

/// Checks a folded result's extents before anything of that size is allocated.
///
/// # Errors
/// P0213.
pub fn check_size(shape: &[usize]) -> Res<()> {
    let n = shape.iter().try_fold(1usize, |n, &d| n.checked_mul(d));
    match n {
        Some(n) if n <= MAX_FOLDED => Ok(()),
        _ => Err(fail("P0213", format!("a constant of shape {shape:?} is too large to fold"))
            .help(format!(
                "at most {MAX_FOLDED} elements are evaluated at compile time; make the tensor an \
                 input or an initializer, or bind the dynamic dimensions to smaller extents"
            ))),
    }
}
