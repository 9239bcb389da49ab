//! Three failures that were never seen in the field and would be as bad; they are guarded in the
//! same places as the historic ones. (A fourth, a cancel that returns early, was seen elsewhere: it
//! is H12.)
//!
//! - No completion ends the loop's sleep, because it does not sleep in the engine: only other
//!   events wake it, or none.
//! - The kernel takes a part of a batch, and the rest is dropped from the queue with it: those
//!   coroutines wait forever.
//! - The count of requests in flight is decremented after the coroutine has run, not before. That
//!   coroutine submits, and polls until its own requests are done; but the queue looks full,
//!   because of a request that is over.

use std::panic::resume_unwind;

use coralio::context::{AioContext, VirtualClock};
use coralio::engine::Engine;
use coralio::engine::guards::{AllGuards, Guards, InFlightDecrement, Notifier, PartialSubmit};
use coralio::engine::scripted::ScriptedBackend;
use coralio::spawn;

use crate::{Outcome, panic_message, read, rounds, three_and_a_later_one};

/// Requests not taken by a call are dropped.
struct DropsTheTail;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for DropsTheTail {
    const PARTIAL_SUBMIT: PartialSubmit = PartialSubmit::TailForgotten;
}

/// The count is decremented after the coroutine has run.
struct CountsLate;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for CountsLate {
    const IN_FLIGHT_DECREMENT: InFlightDecrement = InFlightDecrement::AfterWaking;
}

/// No completion of the engine ends a sleep.
struct LosesTheNotifier;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for LosesTheNotifier {
    const NOTIFIER: Notifier = Notifier::Lost;
}

/// Returns whether a read ends while the loop sleeps fifty times, each ended by an alarm; and the
/// engine's state.
fn read_in_fifty_sleeps<G: Guards>() -> (bool, String) {
    let sleeps_in_no_time = AioContext::builder().virtual_clock(VirtualClock::new()).report_deadlocks_after(None);
    let ran = sleeps_in_no_time.run(|_context| {
        let engine = Engine::<_, G>::attach(ScriptedBackend::new(1), 1).unwrap();
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
fn lost_notifier_leaves_the_loop_asleep() {
    // E1: the kernel has the request, and nothing waits for its completion.
    let (finished, state) = read_in_fifty_sleeps::<LosesTheNotifier>();
    assert!(
        !finished && state.contains("in_flight 1") && state.contains("1 requests submitted, 0 completed"),
        "{state}"
    );
}

#[test]
fn completion_ends_the_sleep() {
    // E1: the first completion ends the sleep.
    let (finished, state) = read_in_fifty_sleeps::<AllGuards>();
    assert!(finished && state.contains("in_flight 0"), "{state}");
}

#[test]
fn dropped_tail_never_completes() {
    // E2: two of three are neither pending nor in flight, and the engine considers itself idle.
    let Outcome { ended, state, .. } = three_and_a_later_one::<DropsTheTail>(|backend| backend.take_at_most(1));
    assert_eq!(ended, [Some(Ok(512)), None, None, Some(Ok(512))]);
    assert!(state.contains("in_flight 0") && state.contains("2 requests submitted, 2 completed"), "{state}");
}

#[test]
fn tail_stays_queued() {
    // E2: all requests are completed.
    let Outcome { ended, .. } = three_and_a_later_one::<AllGuards>(|backend| backend.take_at_most(1));
    assert_eq!(ended, [Some(Ok(512)); 4]);
}

/// At a depth of one, polls in a coroutine whose read is done until another coroutine's read is
/// done.
fn wait_for_anothers<G: Guards>() -> Option<String> {
    AioContext::run(|context| {
        let engine = Engine::<_, G>::attach(ScriptedBackend::new(1), 1).unwrap();
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
fn late_decrement_blocks_a_nested_poll() {
    // E5: the nested poll sleeps for a completion of a request that is over.
    let message = wait_for_anothers::<CountsLate>().unwrap();
    assert!(message.contains("this sleep would never end: the ring is empty, and none of the 0 requests"), "{message}");
}

#[test]
fn early_decrement_does_not_block_a_nested_poll() {
    // E5: there is room for the second request as soon as the first is off the ring.
    assert_eq!(wait_for_anothers::<AllGuards>(), None);
}
