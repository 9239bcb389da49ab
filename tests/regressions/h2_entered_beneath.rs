//! H2, September 2016: the guard compared with the current coroutine only.
//!
//! ```text
//!   main > 'A'          reads 0: submits, and the reap finds request 1 complete; 'X' waits for it
//!   main > 'A' > 'X'    done: releases the lock, and ends; the next waiter is 'Y'
//!   main > 'A' > 'Y'    has the lock, reads 2: submits, and the reap finds request 0 complete
//!                       'A' is not current, but entered, below 'Y'
//! ```

use std::rc::Rc;

use coralio::context::AioContext;
use coralio::coroutine::Coroutine;
use coralio::engine::Engine;
use coralio::engine::guards::{AllGuards, Guards, WakeGuard};
use coralio::engine::scripted::ScriptedBackend;
use coralio::sync::CoMutex;

use crate::{panic_message, read};

/// As of September 2016: only the fix for H1.
struct September2016;

// SAFETY: it reaps under the lock.

unsafe impl Guards for September2016 {
    const WAKE_GUARD: WakeGuard = WakeGuard::EnterUnlessCurrent;
}

fn schedule<G: Guards>() -> Option<String> {
    AioContext::run(|context| {
        let backend = ScriptedBackend::new(8);
        // Request 0 belongs to 'X', 1 to 'A', 2 to 'Y', in order of submission.
        backend.complete_on_submit(0, 1);
        backend.complete_on_submit(1, 2);
        let engine = Engine::<_, G>::attach(backend, 8).unwrap();
        let metadata = Rc::new(CoMutex::new(()));
        let under_lock = |name| {
            let (engine, metadata) = (engine.clone(), Rc::clone(&metadata));
            let body = move || {
                let _guard = metadata.lock();
                read(&engine, 0);
            };
            Coroutine::builder().name(name).create(body).unwrap()
        };
        let (x, y) = (under_lock("X"), under_lock("Y"));
        let a = Coroutine::builder()
            .name("A")
            .create({
                let engine = engine.clone();
                move || _ = read(&engine, 0)
            })
            .unwrap();

        x.enter(); // takes the lock, submits request 0, yields
        y.enter(); // waits for the lock
        let message = panic_message(|| {
            a.enter();
            while !(a.has_ended() && x.has_ended() && y.has_ended()) {
                context.poll(true);
            }
        });
        assert!(a.has_ended() && x.has_ended());
        message
    })
}

#[test]
fn comparison_with_the_current_coroutine_does_not_suffice() {
    // H2: a coroutine that is entered below the current one is entered recursively.
    assert_eq!(schedule::<September2016>().unwrap(), "recursive entry of 'A': main > 'A' > 'Y'");
}

#[test]
fn check_of_is_entered_suffices() {
    // H2, E6: 'A' is not entered, and finds its result when the coroutines above it have yielded.
    assert_eq!(schedule::<AllGuards>(), None);
}
