//! H1, July 2016: submit had been changed to reap, and a completion entered its coroutine
//! immediately.
//!
//! 'A' submits a request that completes within submit. The reap, still on the stack of 'A', finds
//! it and enters the coroutine that waits for it: 'A' itself.

use coralio_aio::kernel::scripted::Scripted;
use coralio_aio::policy::{Current, OnCompletion, Policy};
use coralio_aio::{AioContext, Coroutine, Engine};

use crate::{panic_message, read};

/// As of July 2016: no check at all.
struct July2016;

// SAFETY: it reaps under the lock.

unsafe impl Policy for July2016 {
    const ON_COMPLETION: OnCompletion = OnCompletion::Enter;
}

fn schedule<P: Policy>() -> Option<String> {
    AioContext::run(|_context| {
        let kernel = Scripted::new(8);
        kernel.complete_on_submit(0, 0);
        let engine = Engine::<_, P>::attach(kernel, 8).unwrap();
        let a = Coroutine::builder().name("A").create(move || assert_eq!(read(&engine, 0), 0)).unwrap();
        let message = panic_message(|| a.enter());
        assert!(a.has_ended());
        message
    })
}

#[test]
fn without_a_guard_the_submitter_enters_itself() {
    // H1: the submitting coroutine enters itself recursively.
    assert_eq!(schedule::<July2016>().unwrap(), "recursive entry of 'A': main > 'A'");
}

#[test]
fn with_the_guard_it_finds_its_result() {
    // H1, E4, E6: the reap does not enter the submitter, which finds its result before it yields.
    assert_eq!(schedule::<Current>(), None);
}
