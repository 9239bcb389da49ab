//! H6, 2016: the kernel returns "try again" while nothing is in flight, and nothing ever retries.
//!
//! `EAGAIN` from `io_submit` means that the kernel lacks the resources for more requests; usually
//! requests in flight hold them, and a completion frees some. So `blocked` was set, and the next
//! submit left to the next completion. But other processes may hold them: with nothing in flight no
//! completion comes.
//!
//! The guard: with nothing in flight, the loop's next iteration retries, and does not sleep before.

use coralio_aio::policy::{Current, NotTaken, Policy};

use crate::{Outcome, three_and_a_later_one};

/// As of 2016: "try again" waits for a completion.
struct WaitsForCompletion2016;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Policy for WaitsForCompletion2016 {
    const NOT_TAKEN: NotTaken = NotTaken::StuckAfterAgain;
}

#[test]
fn without_the_guard_nobody_tries_again() {
    // H6: all requests are queued, nothing is in flight, and there is only one submit.
    let Outcome { ended, state, submits } =
        three_and_a_later_one::<WaitsForCompletion2016>(|kernel| kernel.refuse(libc::EAGAIN));
    assert_eq!(ended, [None; 4]);
    assert!(state.contains("in_flight 0, depth 8, plug depth 0, blocked true"), "{state}");
    assert_eq!(submits, 1);
}

#[test]
fn with_the_guard_the_next_round_does() {
    // H6, E2: the second submit takes all three.
    let Outcome { ended, state, submits } = three_and_a_later_one::<Current>(|kernel| kernel.refuse(libc::EAGAIN));
    assert_eq!(ended, [Some(Ok(512)); 4]);
    assert!(state.contains("blocked false"), "{state}");
    assert_eq!(submits, 3);
}
