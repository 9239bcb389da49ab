//! H4, 2014: two completions are taken together, and the first one's coroutine polls until the
//! second is done.
//!
//! If the reap keeps the events in a batch of its own, the nested poll finds nothing on the ring
//! and waits forever for an event held further down on the stack.

use std::cell::Cell;
use std::panic::resume_unwind;
use std::rc::Rc;

use coralio::context::AioContext;
use coralio::engine::Engine;
use coralio::engine::guards::{AllGuards, Guards, RingCursor};
use coralio::engine::scripted::ScriptedBackend;
use coralio::spawn;

use crate::{panic_message, read};

/// As of 2014: events are taken off the ring in batches.
struct Batch2014;

// SAFETY: it reaps under the lock.

unsafe impl Guards for Batch2014 {
    const RING_CURSOR: RingCursor = RingCursor::PerReap;
}

fn schedule<G: Guards>() -> Option<String> {
    AioContext::run(|context| {
        let engine = Engine::<_, G>::attach(ScriptedBackend::new(8), 8).unwrap();
        let second_done = Rc::new(Cell::new(false));
        let first = spawn({
            let (engine, second_done, context) = (engine.clone(), Rc::clone(&second_done), context.clone());
            move || {
                read(&engine, 0);
                while !second_done.get() {
                    context.poll(true);
                }
            }
        });
        let second = spawn({
            let second_done = Rc::clone(&second_done);
            move || {
                read(&engine, 512);
                second_done.set(true);
            }
        });
        panic_message(|| {
            first.join().unwrap_or_else(|payload| resume_unwind(payload));
            second.join().unwrap();
        })
    })
}

#[test]
fn private_batch_makes_the_nested_poll_endless() {
    // H4: the scripted backend detects, without a time limit, that the sleep could not end.
    let message = schedule::<Batch2014>().unwrap();
    assert!(message.contains("this sleep would never end: the ring is empty"), "{message}");
}

#[test]
fn shared_cursor_lets_the_nested_poll_continue() {
    // H4, E5, X2: the nested poll reaps the second completion, and the outer reap finds nothing
    // left.
    assert_eq!(schedule::<AllGuards>(), None);
}
