//! The ring of the event log, checked on every interleaving that the memory model allows.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p coralio-runtime --release --test loom_trace`
//!
//! `ring.rs` is the library's own source file.
#![cfg(loom)]
#![allow(unreachable_pub, dead_code)]

use std::sync::Arc;

use loom::thread;

mod atomic {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
}
#[path = "../src/trace/ring.rs"]
mod ring;

use ring::{Ring, WORDS};

/// A record that reveals a mix of two records.
fn record(value: u64) -> [u64; WORDS] {
    [value; WORDS]
}

fn assert_whole(there: &[(u64, [u64; WORDS])]) {
    for (number, words) in there {
        assert!(words.iter().all(|word| *word == words[0]), "record {number} is mixed: {words:?}");
        assert_ne!(words[0], 0, "record {number} was read before it was written");
    }
}

#[test]
fn records_are_read_whole() {
    // Trace: a reader concurrent with two writers sees whole records only; no record is lost in the
    // end
    loom::model(|| {
        let ring = Arc::new(Ring::new(2));
        let writers = [7, 8].map(|value| {
            let ring = Arc::clone(&ring);
            thread::spawn(move || ring.push(record(value)))
        });
        assert_whole(&ring.read().1);
        for writer in writers {
            writer.join().unwrap();
        }
        let (total, there) = ring.read();
        assert_whole(&there);
        assert_eq!((total, there.len()), (2, 2));
    });
}

#[test]
fn overwritten_records_are_detected() {
    // Trace: the ring wraps around while it is read
    loom::model(|| {
        let ring = Arc::new(Ring::new(1));
        ring.push(record(1));
        let writer = {
            let ring = Arc::clone(&ring);
            thread::spawn(move || ring.push(record(2)))
        };
        for (number, words) in ring.read().1 {
            assert_eq!(words, record(number + 1));
        }
        writer.join().unwrap();
        assert_eq!(ring.read(), (2, vec![(1, record(2))]));
    });
}
