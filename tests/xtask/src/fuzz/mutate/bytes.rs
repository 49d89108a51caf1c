//! Bytes cut, repeated, overwritten and moved.

use super::rng::Rng;

/// Longest input that grows further.
const MOST: usize = 1 << 20;

pub fn mutate(input: &[u8], other: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut out = input.to_vec();
    if out.is_empty() {
        return other[..rng.below(other.len() + 1)].to_vec();
    }
    let at = rng.below(out.len());
    let len = 1 + rng.below(16).min(out.len() - at - 1);
    match rng.below(9) {
        0 => out.truncate(at),
        1 => {
            out.drain(at..at + len);
        }
        2 if out.len() < MOST => {
            let again = out[at..at + len].to_vec();
            out.splice(at..at, again);
        }
        3 => out[at] = rng.next() as u8,
        4 => out[at] ^= 1 << rng.below(8),
        5 => {
            let from = rng.below(out.len() - len + 1);
            let piece = out[from..from + len].to_vec();
            out[at..at + len].copy_from_slice(&piece);
        }
        6 => {
            let edges: &[&[u8]] =
                &[&[0], &[255], &[0; 4], &[255; 4], &[0; 8], &[255; 8], &[128, 0, 0, 0]];
            let edge = rng.of(edges).copied().unwrap_or(&[0]);
            let end = (at + edge.len()).min(out.len());
            out[at..end].copy_from_slice(&edge[..end - at]);
        }
        7 if !other.is_empty() && out.len() < MOST => {
            let from = rng.below(other.len());
            let piece = &other[from..(from + 1 + rng.below(64)).min(other.len())];
            out.splice(at..at, piece.iter().copied());
        }
        _ => {
            let last = out.len() - 1;
            out.swap(at, last.min(at + len));
        }
    }
    out
}
