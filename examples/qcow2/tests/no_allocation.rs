//! Reads and in-place writes do not allocate if the tables are in memory.

#![allow(unsafe_code)]

mod common;
#[path = "../../../runtime/tests/common/counting.rs"]
mod counting;

use common::{Scratch, for_writing};
use coralio::AlignedBuf;
use coralio_qcow2::{CreateOptions, Qcow2, open};
use counting::allocations;

#[test]
fn cached_cluster_io_does_not_allocate() {
    // qcow2: a lookup in a cached table, and one file request.
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
        let before = allocations();
        round();
        allocations() - before
    });
    assert_eq!(count, 0);
}
