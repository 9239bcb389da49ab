//! H6, 2016: the kernel returns "try again" while nothing is in flight, and nothing ever retries.
//!
//! `EAGAIN` from `io_submit` means that the kernel lacks the resources for more requests; usually
//! requests in flight hold them, and a completion frees some. So `blocked` was set, and the next
//! submit left to the next completion. But other processes may hold them: with nothing in flight no
//! completion comes.
//!
//! The guard: with nothing in flight, the loop's next iteration retries, and does not sleep before.

use coralio::guards::{AllGuards, Guards, PartialSubmit};

use crate::{Outcome, three_and_a_later_one};

/// As of 2016: "try again" waits for a completion.
struct WaitsForCompletion2016;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for WaitsForCompletion2016 {
    const PARTIAL_SUBMIT: PartialSubmit = PartialSubmit::WedgeOnEagain;
}

#[test]
fn unguarded_loop_never_retries() {
    // H6: all requests are queued, nothing is in flight, and there is only one submit.
    let Outcome { ended, state, submits } =
        three_and_a_later_one::<WaitsForCompletion2016>(|backend| backend.refuse(libc::EAGAIN));
    assert_eq!(ended, [None; 4]);
    assert!(state.contains("in_flight 0, depth 8, plug depth 0, blocked true"), "{state}");
    assert_eq!(submits, 1);
}

#[test]
fn guarded_loop_submits_next_round() {
    // H6, E2: the second submit takes all three.
    let Outcome { ended, state, submits } = three_and_a_later_one::<AllGuards>(|backend| backend.refuse(libc::EAGAIN));
    assert_eq!(ended, [Some(Ok(512)); 4]);
    assert!(state.contains("blocked false"), "{state}");
    assert_eq!(submits, 3);
}
