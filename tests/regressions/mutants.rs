//! Three that were never seen in the field, and would be as bad: they are guarded in the same places as the historic ones. (A
//! fourth, a cancel that returns early, was seen elsewhere: it is H12.)
//!
//! - No completion ends the loop's sleep: it sleeps beside the engine. What else there is wakes it, or nothing does.
//! - The kernel takes a part of a batch, and the rest is dropped from the queue with it: those coroutines wait for ever.
//! - A request is counted out of those in flight after its coroutine has run, not before. That one submits, and polls until
//!   its own requests are done; but the queue looks full, of a request that is over.

use std::panic::resume_unwind;

use coralio_aio::kernel::scripted::Scripted;
use coralio_aio::policy::{Counts, Current, NotTaken, Notifier, Policy};
use coralio_aio::{AioContext, Engine, VirtualClock, spawn};

use crate::{Outcome, panic_message, read, rounds, three_and_a_later_one};

/// What a call did not take is dropped.
struct DropsTheTail;

// SAFETY: it reaps under the lock, and waits for what it has cancelled.
unsafe impl Policy for DropsTheTail {
    const NOT_TAKEN: NotTaken = NotTaken::TailForgotten;
}

/// Counts when it comes back.
struct CountsLate;

// SAFETY: it reaps under the lock, and waits for what it has cancelled.
unsafe impl Policy for CountsLate {
    const COUNTS: Counts = Counts::AfterWaking;
}

/// Nothing of the engine's ends a sleep.
struct LosesTheNotifier;

// SAFETY: it reaps under the lock, and waits for what it has cancelled.
unsafe impl Policy for LosesTheNotifier {
    const NOTIFIER: Notifier = Notifier::Lost;
}

/// Whether a read comes to its end while the loop sleeps fifty times, which an alarm ends; and how the engine stands.
fn read_in_fifty_sleeps<P: Policy>() -> (bool, String) {
    let sleeps_in_no_time = AioContext::builder().virtual_clock(VirtualClock::new()).deadlock_report(None);
    let ran = sleeps_in_no_time.run(|_context| {
        let engine = Engine::<_, P>::attach(Scripted::new(1), 1).unwrap();
        let reader = spawn({
            let engine = engine.clone();
            move || read(&engine, 0)
        });
        rounds(|| reader.is_finished());
        let state = format!("{engine:?}");
        (reader.is_finished(), state)
    });
    ran.unwrap()
}

#[test]
fn a_lost_notifier_leaves_the_loop_asleep() {
    // E1: the request is with the kernel, and nobody waits for it.
    let (finished, state) = read_in_fifty_sleeps::<LosesTheNotifier>();
    assert!(!finished && state.contains("in_flight 1") && state.contains("1 requests taken, 0 completed"), "{state}");
}

#[test]
fn a_completion_ends_the_sleep() {
    // E1: the first one.
    let (finished, state) = read_in_fifty_sleeps::<Current>();
    assert!(finished && state.contains("in_flight 0"), "{state}");
}

#[test]
fn a_dropped_tail_is_never_heard_of() {
    // E2: two of three are neither pending nor in flight, and the engine takes itself for idle.
    let Outcome { ended, state, .. } = three_and_a_later_one::<DropsTheTail>(|kernel| kernel.take_at_most(1));
    assert_eq!(ended, [Some(Ok(512)), None, None, Some(Ok(512))]);
    assert!(state.contains("in_flight 0") && state.contains("2 requests taken, 2 completed"), "{state}");
}

#[test]
fn a_tail_stays_in_line() {
    // E2: all get through.
    let Outcome { ended, .. } = three_and_a_later_one::<Current>(|kernel| kernel.take_at_most(1));
    assert_eq!(ended, [Some(Ok(512)); 4]);
}

/// At a depth of one, a coroutine whose read is done waits for another's, by polling.
fn wait_for_anothers<P: Policy>() -> Option<String> {
    AioContext::run(|context| {
        let engine = Engine::<_, P>::attach(Scripted::new(1), 1).unwrap();
        let first = spawn({
            let context = context.clone();
            move || {
                read(&engine, 0);
                let second = spawn(move || read(&engine, 512));
                while !second.is_finished() {
                    context.poll(true);
                }
            }
        });
        panic_message(|| first.join().unwrap_or_else(|payload| resume_unwind(payload)))
    })
}

#[test]
fn a_count_that_comes_late_holds_up_a_nested_poll() {
    // E5: the nested poll sleeps for a completion, of a request that is over.
    let message = wait_for_anothers::<CountsLate>().unwrap();
    assert!(message.contains("this sleep would never end: nothing is on the ring, and of 0 requests"), "{message}");
}

#[test]
fn a_count_that_comes_first_does_not() {
    // E5: there is room for the second as soon as the first is off the ring.
    assert_eq!(wait_for_anothers::<Current>(), None);
}
