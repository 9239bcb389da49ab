//! Lesson 11. Nested polls.
//!
//! A coroutine may itself call the loop: a *nested poll*, until some event has occurred. Storage
//! code does that where it cannot yield, in a destructor for instance. The outer iteration is
//! suspended in the middle of its work meanwhile, and the nested one must not miss that work.
//! A running loop counts as no coroutine (lesson 4), even on the stack of A: its reap runs a woken
//! coroutine immediately, on top of A. But A stays entered.
//!
//! In 2014, before lessons 8 to 10, a reap put all completions into a private batch. Programs hung.
//!
//! Puzzle: A and B read. Both requests are done when the loop checks the ring. It takes both
//! completions off the ring, and enters A, which polls until B's read is done. When is that?
//!
//! Hint: where is B's completion?

#[path = "../lesson/mod.rs"]
pub mod lesson;

use std::cell::Cell;
use std::panic::resume_unwind;
use std::rc::Rc;

use coralio::engine::guards::{AllGuards, Guards, InFlightDecrement, RingCursor};

use lesson::{Disk, act, attach, backend, read, say, spawn};

/// As of 2014: a reap takes all completions off the ring, then processes them.
struct Batch2014;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for Batch2014 {
    const RING_CURSOR: RingCursor = RingCursor::PerReap;
}

/// Never in use: a reap decrements `in_flight` after the wake.
struct CountsLate;

// SAFETY: as above.
unsafe impl Guards for CountsLate {
    const IN_FLIGHT_DECREMENT: InFlightDecrement = InFlightDecrement::AfterWaking;
}

/// Runs A, which reads, then polls until B has read, at most three times.
fn poll_for_b<G: Guards>(title: &str, depth: u32, blocking: bool) {
    act(title, |context| {
        let disk: Disk<G> = attach(&backend(), depth);
        let b_has_read = Rc::new(Cell::new(false));
        let a = spawn("A", {
            let (disk, b_has_read, context) = (disk.clone(), Rc::clone(&b_has_read), context.clone());
            move || {
                read(&disk, 0);
                for _ in (0..3).take_while(|_| !b_has_read.get()) {
                    say("B has not read: polls");
                    context.poll(blocking);
                }
                assert!(b_has_read.get(), "A has polled three times, and B has not read");
            }
        });
        let b = spawn("B", move || {
            read(&disk, 512);
            b_has_read.set(true);
        });
        while !(a.is_finished() && b.is_finished()) {
            context.poll(true);
        }
        _ = [a, b].map(|one| one.join().unwrap_or_else(|payload| resume_unwind(payload)));
    });
}

pub fn main() {
    // B's completion is in the batch, in a local variable of the outer reap, below A on the stack.
    // The nested poll sleeps for an event that has already occurred: in the field forever. Here the
    // scripted backend panics instead, which unwinds A. Then the reap continues, and B ends.
    poll_for_b::<Batch2014>("The puzzle: the loop takes both completions off the ring", 8, true);
    lesson::print(
        "\nThe stack during the nested sleep, top first:\n\n\
         \u{20}   sleep        waits for the ring, which is empty\n\
         \u{20}   iteration    nested, called by A\n\
         \u{20}   A            polls until B has read\n\
         \u{20}   reap         in its batch: B's completion\n\
         \u{20}   iteration    called by the program\n",
    );

    // Not sleeping ends the hang, but no number of iterations reaches the batch.
    poll_for_b::<Batch2014>("A fix that fails: A's polls do not block", 8, false);

    // A reap takes one completion, decrements `in_flight`, advances the ring's cursor, and only
    // then wakes a coroutine. The rest stays on the ring, where a nested reap finds it. Back from
    // the wake, the reap reads the ring again: it keeps no copy and no position of its own.
    poll_for_b::<AllGuards>("The fix: one completion at a time, and a shared cursor", 8, true);

    // Why is `in_flight` decremented before the wake? At depth 1, B's request is pending until A's
    // is done. If the count is still 1 when A polls, the queue looks full: B's request is not
    // submitted, and A sleeps for a completion that was processed already.
    poll_for_b::<CountsLate>("Where the order matters: depth 1, in_flight decremented after the wake", 1, true);

    // When A polls, the count is 0: there is room, so A's poll submits B's request, and reaps it.
    poll_for_b::<AllGuards>("Depth 1, in_flight decremented before the wake", 1, true);
}
