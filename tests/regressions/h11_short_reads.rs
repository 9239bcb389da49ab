//! H11, 2022 and later: a read that comes back short.
//!
//! The kernel may transfer less than requested, for reasons of its own. Two ways to get it wrong:
//!
//! - The short read was taken for the end of the file, and the rest of the buffer for zeroes.
//! - The rest was requested by a follow-up that the completion put on the queue. But a reap does
//!   not submit (rule E8), and with nothing in flight and no iteration of the loop under way, no
//!   later submit followed.
//!
//! The guards: only a read of zero bytes is the end of the file; and a request queued in a reap is
//! a request like any other, which the loop submits before it sleeps.

use std::fs::File as StdFile;
use std::io::IoSliceMut;
use std::os::fd::OwnedFd;

use coralio::context::AioContext;
use coralio::engine::Engine;
use coralio::engine::guards::{AfterReap, AllGuards, Guards, ShortRead};
use coralio::engine::scripted::ScriptedBackend;
use coralio::{File, spawn};

use crate::rounds;

/// A short read is the end of the file.
struct TakenForTheEnd2022;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for TakenForTheEnd2022 {
    const SHORT_READ: ShortRead = ShortRead::TreatAsEof;
}

/// The follow-up is queued and never submitted.
struct NeverSubmitted2022;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for NeverSubmitted2022 {
    const AFTER_REAP: AfterReap = AfterReap::NobodySubmits;
}

/// Reads a disk of twelve bytes into one buffer or two; the first read is short, with four bytes.
/// Returns the data, or the engine's state if the read does not end.
fn schedule<G: Guards>(buffers: usize) -> Result<Vec<u8>, String> {
    AioContext::run(|_context| {
        let backend = ScriptedBackend::new(8);
        let engine = Engine::<_, G>::attach(backend.clone(), 8).unwrap();
        let file = File::with_engine(&engine, OwnedFd::from(StdFile::open("/dev/null").unwrap())).unwrap();
        backend.set_disk(b"aaaabbbbcccc");
        backend.shorten(0, 4);
        let task = spawn(move || {
            let mut buf = *b"............";
            let read = if buffers == 1 {
                file.read_at(&mut buf, 0)
            } else {
                let (head, tail) = buf.split_at_mut(6);
                file.read_vectored_at(&mut [IoSliceMut::new(head), IoSliceMut::new(tail)], 0)
            };
            read.map(|read| buf[..read].to_vec())
        });
        rounds(|| task.is_finished());
        let state = format!("{engine:?}");
        task.cancel();
        task.join().unwrap().map_err(|_| state)
    })
}

#[test]
fn unguarded_short_read_is_taken_for_all() {
    // H11: four bytes of twelve are returned, without an error.
    assert_eq!(schedule::<TakenForTheEnd2022>(1).unwrap(), b"aaaa");
    assert_eq!(schedule::<TakenForTheEnd2022>(2).unwrap(), b"aaaa");
}

#[test]
fn unguarded_rest_is_never_submitted() {
    // H11: the follow-up is queued, nothing is in flight, and nothing submits it.
    for buffers in [1, 2] {
        let state = schedule::<NeverSubmitted2022>(buffers).unwrap_err();
        assert!(state.contains("in_flight 0"), "{state}");
        assert!(state.contains("blocked true, 1 requests submitted, 1 completed"), "{state}");
    }
}

#[test]
fn guarded_short_read_is_completed() {
    // H11, E10, E2: the follow-up is a request like any other, and the read is complete.
    assert_eq!(schedule::<AllGuards>(1).unwrap(), b"aaaabbbbcccc");
    assert_eq!(schedule::<AllGuards>(2).unwrap(), b"aaaabbbbcccc");
}
