//! No allocation inside a step: a counting allocator watches the phases of a plan.

mod common;

use precast_runtime::{Backend, CpuBackend, Phase};
use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

struct Counting;

static COUNT: AtomicUsize = AtomicUsize::new(0);

// SAFETY: passes every call on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn steps_do_not_allocate() {
    for threads in [1, 2] {
        let mut backend = CpuBackend::new(&common::mlp(), threads).unwrap();
        let step = |b: &mut CpuBackend| {
            b.run(Phase::Micro).unwrap();
            b.run(Phase::Update).unwrap();
        };
        // The first steps let thread-local storage and the pool's queues reach their sizes.
        (0..4).for_each(|_| step(&mut backend));
        let before = COUNT.load(Ordering::Relaxed);
        let steps = 200;
        (0..steps).for_each(|_| step(&mut backend));
        let count = COUNT.load(Ordering::Relaxed) - before;
        // rayon's injector, through which a phase enters the pool, takes a block of memory for
        // every 63 entries, and sometimes one more when its threads are slow to wake. A kernel or
        // a step that allocated would do so at least once a step.
        assert!(count <= steps / 10, "{count} allocations in {steps} steps, {threads} threads");
    }
}
