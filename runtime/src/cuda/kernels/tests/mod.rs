//! Kernels on the software device against loops in f64.

mod along;
mod attention;
mod memory;
mod moves;
mod product;

use super::samples::samples;
use crate::cuda::launch::Facts;
use memory::Memory;

/// A Hopper.
fn large() -> Facts {
    Facts {
        capability: (9, 0),
        multiprocessors: 132,
        shared_per_block: 232_448,
        threads_per_multiprocessor: 2048,
    }
}

/// A device of one multiprocessor, which gets large tiles and no parts of k.
fn tiny() -> Facts {
    Facts {
        capability: (8, 9),
        multiprocessors: 1,
        shared_per_block: 101_376,
        threads_per_multiprocessor: 1536,
    }
}

#[test]
fn samples_are_stable_and_named_apart() {
    let (one, two) = (samples(&large()), samples(&large()));
    assert_eq!(one, two);
    let mut names: Vec<_> = one.iter().map(|s| &s.entry).collect();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), one.len());
    if let Ok(folder) = std::env::var("PRECAST_KERNEL_TEXTS") {
        for s in one {
            std::fs::write(format!("{folder}/{}.cu", s.entry), &s.text).expect("a writable folder");
        }
    }
}
