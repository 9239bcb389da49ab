//! The simulated backend alone: conformance, and Linux's behaviour in edge cases.

use super::super::Opcode;
use super::super::conformance::{self, Temp, bad, next, operation, peek, submit, wait};
use super::*;

fn kernel(depth: u32, bad_ring: bool) -> SimKernel {
    let (latency, faults, most_steps) = (Latency::default(), Faults::none(), u64::MAX);
    let settings = Settings { depth, sector: 512, latency, faults, tears: true, bad_ring, most_steps };
    let kernel = SimKernel::new(settings, Tape::random(1), false);
    kernel.machine().files.adopts = true;
    kernel
}

/// Backends with a ring that is read in memory, and without.
fn both(depth: u32) -> Vec<SimKernel> {
    vec![kernel(depth, false), kernel(depth, true)]
}

conformance::tests!(both);

#[test]
fn a_bad_one_is_refused_first_and_ends_the_batch_elsewhere() {
    // E2, E17: as with native AIO, submitting [good, bad, good] returns 1, and [bad, good] the
    // error of the bad request.
    let file = Temp::in_memory();
    for kernel in both(8) {
        let mut bytes = [1; 16];
        let good = operation(Opcode::Write, &file.0, &mut bytes, 0);
        let far = Operation { offset: u64::MAX, ..good };
        for (bad, errno) in [(bad(), libc::EBADF), (far, libc::EINVAL)] {
            let mut entries = [good, bad, good].map(|operation| kernel.prepare(&operation, 7));
            assert_eq!(submit(&kernel, &mut entries).unwrap(), 1);
            assert_eq!(submit(&kernel, &mut entries[1..]).unwrap_err().raw_os_error(), Some(errno));
            assert_eq!(next(&kernel).result, 16);
            assert_eq!(submit(&kernel, &mut []).unwrap(), 0);
        }
        assert_eq!(peek(&kernel), None);
    }
}

#[test]
fn a_buffer_that_changes_is_noticed() {
    // E13, E17: a foreign write to a lent buffer is detected, and the backend then does not write
    // to the buffer.
    let file = Temp::in_memory();
    for opcode in [Opcode::Read, Opcode::Write] {
        let (kernel, mut bytes) = (kernel(8, false), [1; 16]);
        let address = bytes.as_mut_ptr();
        let mut entries = [kernel.prepare(&operation(opcode, &file.0, &mut bytes, 0), 7)];
        assert_eq!(submit(&kernel, &mut entries).unwrap(), 1);
        // SAFETY: the array is alive, and there is no reference to it.
        unsafe { *address.add(3) ^= 1 };
        next(&kernel);
        assert!(kernel.machine().violations[0].contains("changed while the kernel had it"));
    }
}

#[test]
#[should_panic(expected = "this sleep would never end")]
fn a_sleep_that_nothing_ends_is_told() {
    // E17: detected without a time limit.
    let _ = wait(&kernel(8, false), 1, None, None);
}
