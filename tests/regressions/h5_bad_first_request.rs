//! H5, 2016: the first of several pending requests fails at submit, and no request is ever
//! submitted again.
//!
//! `io_submit` fails as a whole if its first request is bad (a closed descriptor, say). The error
//! path completed that one with its error and meant to try the rest, but left its loop with
//! `blocked` set: no submit before a completion. Nothing was in flight that could complete, and all
//! later requests joined a queue that was never submitted.
//!
//! The guard: an error fails the first request alone, and the loop continues with the rest; and
//! `blocked` holds only while something is in flight.

use coralio::guards::{AllGuards, Guards, PartialSubmit};

use crate::{Outcome, three_and_a_later_one};

/// As of 2016: the error path leaves the loop.
struct LeavesTheLoop2016;

// SAFETY: it reaps under the lock, and waits for cancelled requests.
unsafe impl Guards for LeavesTheLoop2016 {
    const PARTIAL_SUBMIT: PartialSubmit = PartialSubmit::WedgeOnError;
}

#[test]
fn unguarded_bad_request_wedges_the_queue() {
    // H5: one submit, then none, with three requests queued and nothing in flight.
    let Outcome { ended, state, submits } =
        three_and_a_later_one::<LeavesTheLoop2016>(|backend| backend.refuse(libc::EBADF));
    assert_eq!(ended, [Some(Err(libc::EBADF)), None, None, None]);
    assert!(state.contains("in_flight 0, depth 8, plug depth 0, blocked true"), "{state}");
    assert_eq!(submits, 1);
}

#[test]
fn guarded_bad_request_fails_alone() {
    // H5, E2: the rest is submitted immediately, and so are later requests.
    let Outcome { ended, state, submits } = three_and_a_later_one::<AllGuards>(|backend| backend.refuse(libc::EBADF));
    assert_eq!(ended, [Some(Err(libc::EBADF)), Some(Ok(512)), Some(Ok(512)), Some(Ok(512))]);
    assert!(state.contains("blocked false"), "{state}");
    assert_eq!(submits, 3);
}
