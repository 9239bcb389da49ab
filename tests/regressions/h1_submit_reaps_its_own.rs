//! H1, July 2016: submit had been changed to reap, and a completion entered its coroutine
//! immediately.
//!
//! 'A' submits a request that completes within submit. The reap, still on the stack of 'A', finds
//! it and enters the coroutine that waits for it: 'A' itself.

use coralio::context::AioContext;
use coralio::coroutine::Coroutine;
use coralio::engine::Engine;
use coralio::engine::guards::{AllGuards, Guards, WakeGuard};
use coralio::engine::scripted::ScriptedBackend;

use crate::{panic_message, read};

/// As of July 2016: no check at all.
struct July2016;

// SAFETY: it reaps under the lock.

unsafe impl Guards for July2016 {
    const WAKE_GUARD: WakeGuard = WakeGuard::None;
}

fn schedule<G: Guards>() -> Option<String> {
    AioContext::run(|_context| {
        let backend = ScriptedBackend::new(8);
        backend.complete_on_submit(0, 0);
        let engine = Engine::<_, G>::attach(backend, 8).unwrap();
        let a = Coroutine::builder().name("A").create(move || assert_eq!(read(&engine, 0), 0)).unwrap();
        let message = panic_message(|| a.enter());
        assert!(a.has_ended());
        message
    })
}

#[test]
fn unguarded_submitter_enters_itself() {
    // H1: the submitting coroutine enters itself recursively.
    assert_eq!(schedule::<July2016>().unwrap(), "recursive entry of 'A': main > 'A'");
}

#[test]
fn guarded_submitter_finds_its_result() {
    // H1, E4, E6: the reap does not enter the submitter, which finds its result before it yields.
    assert_eq!(schedule::<AllGuards>(), None);
}
