//! The simulated backend alone: conformance, and Linux's behaviour in edge cases.

use super::super::Opcode;
use super::super::conformance::{self, Temp, bad, next, operation, peek, submit, wait};
use super::*;

fn backend(depth: u32) -> SimulatedBackend {
    let (latency, faults, max_steps) = (Latency::default(), Faults::none(), u64::MAX);
    let settings = Settings { depth, sector_size: 512, latency, faults, torn_writes: true, max_steps };
    let backend = SimulatedBackend::new(settings, Tape::random(1), false);
    backend.machine().files.adopts = true;
    backend
}

conformance::tests!(|depth| vec![backend(depth)]);

#[test]
fn bad_request_is_rejected_if_first_and_ends_the_batch_otherwise() {
    // E2, E17: as with native AIO, submitting [good, bad, good] returns 1, and [bad, good] the
    // error of the bad request.
    let file = Temp::in_memory();
    let backend = backend(8);
    let mut bytes = [1; 16];
    let good = operation(Opcode::Write, &file.0, &mut bytes, 0);
    let far = Operation { offset: u64::MAX, ..good };
    for (bad, errno) in [(bad(), libc::EBADF), (far, libc::EINVAL)] {
        let mut entries = [good, bad, good].map(|operation| backend.prepare(&operation, 7));
        assert_eq!(submit(&backend, &mut entries).unwrap(), 1);
        assert_eq!(submit(&backend, &mut entries[1..]).unwrap_err().raw_os_error(), Some(errno));
        assert_eq!(next(&backend).result, 16);
        assert_eq!(submit(&backend, &mut []).unwrap(), 0);
    }
    assert_eq!(peek(&backend), None);
}

#[test]
fn changed_buffer_is_detected() {
    // E13, E17: a foreign write to a lent buffer is detected, and the backend then does not write
    // to the buffer.
    let file = Temp::in_memory();
    for opcode in [Opcode::Read, Opcode::Write] {
        let (backend, mut bytes) = (backend(8), [1; 16]);
        let address = bytes.as_mut_ptr();
        let mut entries = [backend.prepare(&operation(opcode, &file.0, &mut bytes, 0), 7)];
        assert_eq!(submit(&backend, &mut entries).unwrap(), 1);
        // SAFETY: the array is alive, and there is no reference to it.
        unsafe { *address.add(3) ^= 1 };
        next(&backend);
        assert!(backend.machine().violations[0].contains("changed while the kernel had it"));
    }
}

#[test]
#[should_panic(expected = "this sleep would never end")]
fn endless_sleep_is_reported() {
    // E17: detected without a time limit.
    let _ = wait(&backend(8), None, None);
}

#[test]
fn latency_may_be_any_range_of_durations() {
    // E17: also one whose steps are rounded to more than a duration holds
    for shortest in (1..1000).map(Duration::from_nanos) {
        let range = Latency::between(shortest, Duration::MAX);
        let faults::Times::Of(times) = range.times() else { panic!("{range:?}") };
        assert!(times.is_sorted() && times[0] == shortest && times[15] > Duration::MAX / 2, "{range:?}");
    }
}
