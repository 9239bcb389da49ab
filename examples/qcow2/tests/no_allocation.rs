//! Reads and in-place writes do not allocate if the tables are in memory.

#![allow(unsafe_code)]

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicUsize, Ordering};

use common::{Scratch, for_writing};
use coralio::AlignedBuf;
use coralio_qcow2::{CreateOptions, Qcow2, open};

struct Counting;

static ALLOCATIONS: AtomicUsize = AtomicUsize::new(0);

// SAFETY: forwards all calls to the system allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Relaxed: a plain counter.
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        // SAFETY: guaranteed by the caller.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: guaranteed by the caller.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

#[test]
fn cached_cluster_io_does_not_allocate() {
    // qcow2: a lookup in a cached table, and one file request. The only test in this file, because
    // allocations of other tests would be counted.
    let folder = Scratch::new();
    let path = folder.path("image");
    let count = coralio::run(|| {
        Qcow2::create(&path, &CreateOptions::new(1 << 20)).unwrap();
        let image = open(&path, &for_writing()).unwrap();
        let mut buf = AlignedBuf::new(4096, 4096);
        image.write_at(&AlignedBuf::new(1 << 20, 4096), 0).unwrap();
        let mut round = || {
            for n in 0..200 {
                image.read_at(&mut buf, n * 4096).unwrap();
                image.write_at(&buf, n * 4096).unwrap();
            }
        };
        round(); // allocates the engine's own memory
        let before = ALLOCATIONS.load(Ordering::Relaxed);
        round();
        ALLOCATIONS.load(Ordering::Relaxed) - before
    });
    assert_eq!(count, 0);
}
