//! Real requests on real files.

use super::super::conformance::{
    self, NOW, Page, Temp, bad, eventfd, in_forked_child, next, one, operation, peek, submit, unless_refused, wait,
};
use super::context::setup_error;
use super::*;
use parking_lot::Mutex;
use std::os::fd::AsFd;

conformance::tests!(contexts);

/// Creates a separate pool, so that tests do not take each other's contexts.
fn pool() -> Option<&'static Pool> {
    unless_refused(LinuxAio::new(1))?;
    // Kept, so that a leak checker does not report it.
    static POOLS: Mutex<Vec<&Pool>> = Mutex::new(Vec::new());
    let pool = Box::leak(Box::new(Pool::new()));
    POOLS.lock().push(pool);
    Some(pool)
}

/// Creates a backend, if the machine allows it.
fn contexts(depth: u32) -> Vec<LinuxAio> {
    unless_refused(LinuxAio::new(depth)).into_iter().collect()
}

#[test]
fn batch_is_accepted_up_to_the_bad_request() {
    // E2: a batch is accepted up to a bad request, whose error is reported separately.
    let file = Temp::in_memory();
    for backend in contexts(8) {
        let (mut first, mut third) = ([1; 16], [3; 16]);
        let operations = [
            operation(Opcode::Write, &file.0, &mut first, 0),
            bad(),
            operation(Opcode::Write, &file.0, &mut third, 32),
        ];
        let mut entries = [0, 1, 2].map(|key| backend.prepare(&operations[key as usize], key));
        assert_eq!(entries.each_ref().map(|entry| backend.key(entry)), [0, 1, 2]);
        assert_eq!(submit(&backend, &mut entries).unwrap(), 1);
        let error = submit(&backend, &mut entries[1..]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        assert_eq!(submit(&backend, &mut entries[2..]).unwrap(), 1);
        assert_eq!([next(&backend).key, next(&backend).key], [0, 2]);
        assert_eq!(peek(&backend), None);
        assert_eq!(submit(&backend, &mut []).unwrap(), 0);
    }
}

#[test]
fn depth_out_of_range_is_rejected() {
    // E14: see `check_depths`.
    conformance::check_depths(LinuxAio::new);
}

#[test]
fn context_error_names_cause_and_remedy() {
    // E14: the kernel's error is returned with the likely cause and remedy.
    for (errno, kind, words) in [
        (libc::EAGAIN, io::ErrorKind::QuotaExceeded, ["fs.aio-max-nr", "smaller depth", "sysctl"]),
        (libc::ENOSYS, io::ErrorKind::Unsupported, ["CONFIG_AIO", "seccomp", "io_setup"]),
        (libc::EPERM, io::ErrorKind::PermissionDenied, ["forbidden", "seccomp", "io_setup"]),
        (libc::ENOMEM, io::ErrorKind::OutOfMemory, ["io_setup", "queue depth 64", "memory"]),
    ] {
        let error = setup_error(io::Error::from_raw_os_error(errno), 64);
        assert_eq!(error.kind(), kind);
        for word in words {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
    let error = poll_error(io::Error::from_raw_os_error(libc::EINVAL));
    assert!(error.to_string().contains("Linux 4.18"), "{error}");
}

#[test]
fn ring_of_unknown_layout_is_rejected() {
    // E14: the completion ring is read only if its header says that it is laid out as expected
    let header = |magic, incompat_features, header_length| {
        let mut header = abi::Ring::default();
        (header.nr, header.magic) = (128, magic);
        (header.incompat_features, header.header_length) = (incompat_features, header_length);
        check_layout(&header)
    };
    assert_eq!(header(abi::RING_MAGIC, 0, 32).unwrap(), 128);
    for error in [header(0, 0, 32), header(abi::RING_MAGIC, 1, 32), header(abi::RING_MAGIC, 0, 64)] {
        let error = error.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::Unsupported);
        assert!(error.to_string().contains("unknown layout") && error.to_string().contains("BackendKind::Threads"));
    }
}

#[test]
fn idle_context_is_reused() {
    // C10: contexts, being expensive to create, are reused like stacks, and are clean then.
    let Some(pool) = pool() else { return };
    let other = eventfd();
    let backend = LinuxAio::from_pool(77, pool).unwrap();
    let ring = backend.ring;
    // Dropped with its poll request armed, and again with the poll request's event on the ring.
    for ready in [false, true] {
        if ready {
            other.notify();
        }
        let backend = LinuxAio::from_pool(77, pool).unwrap();
        wait(&backend, Some(other.as_fd()), NOW).unwrap();
        assert!(backend.poll_event.is_armed());
    }
    assert_eq!(pool.0.lock().len(), 1);
    drop(backend);
    assert_eq!(pool.0.lock().len(), 2);
    assert_ne!(LinuxAio::from_pool(78, pool).unwrap().ring, ring, "the depth differs");
    let again = [LinuxAio::from_pool(77, pool).unwrap(), LinuxAio::from_pool(77, pool).unwrap()];
    assert!(again.iter().any(|backend| backend.ring == ring));
    for backend in &again {
        assert_eq!(backend.header().head.load(Relaxed), backend.header().tail.load(Relaxed));
        assert_eq!(peek(backend), None);
    }
}

#[test]
fn cache_keeps_few_and_shallow_contexts() {
    // E14: pooled contexts count against fs.aio-max-nr, so their number is limited, and all are
    // destroyed before a new context is refused.
    let Some(pool) = pool() else { return };
    drop(LinuxAio::from_pool(Pool::MAX_CACHED_DEPTH + 1, pool).unwrap());
    assert!(pool.0.lock().is_empty());
    let many: Vec<_> =
        (1..=Pool::MAX_CACHED as u32 + 1).map(|depth| LinuxAio::from_pool(depth, pool).unwrap()).collect();
    drop(many);
    let depths: Vec<_> = pool.0.lock().iter().map(|context| context.depth).collect();
    assert_eq!(depths, [2, 3, 4, 5, 6, 7, 8, 9], "the oldest is gone");
    assert!(pool.drain() && !pool.drain());
}

#[test]
fn context_with_requests_in_flight_is_not_cached() {
    // E13: the next user would see their completions.
    let Some(pool) = pool() else { return };
    let (file, never) = (Temp::new(&std::env::temp_dir(), libc::O_DIRECT), eventfd());
    let mut page = Page([1; 4096]);
    let backend = LinuxAio::from_pool(4, pool).unwrap();
    let write = backend.prepare(&operation(Opcode::Write, &file.0, &mut page.0, 0), 1);
    // Stays in flight until the context is destroyed.
    let poll =
        Iocb(abi::Iocb { opcode: abi::IOCB_CMD_POLL, fildes: never.as_fd().as_raw_fd() as u32, ..Default::default() });
    assert_eq!(submit(&backend, &mut [write, poll]).unwrap(), 2);
    assert_eq!(next(&backend), Completion { key: 1, result: 4096 });
    assert_eq!(peek(&backend), None);
    drop(backend);
    assert!(pool.0.lock().is_empty());
}

#[test]
fn forked_child_leaves_the_parents_contexts_unchanged() {
    // C10: pooled contexts belong to the process that created them.
    let Some(pool) = pool() else { return };
    let (file, other) = (Temp::in_memory(), eventfd());
    let mut buffer = [2; 8];
    let backend = LinuxAio::from_pool(5, pool).unwrap();
    drop(LinuxAio::from_pool(6, pool).unwrap());
    wait(&backend, Some(other.as_fd()), NOW).unwrap();
    let dropped = || {
        let stale = pool.get(6).is_none();
        // SAFETY: the child does not use the backend again, and the parent keeps its own.
        drop(unsafe { ptr::read(&backend) });
        i32::from(!(stale && pool.0.lock().is_empty()))
    };
    assert_eq!(in_forked_child(dropped), 0);
    assert_eq!(one(&backend, operation(Opcode::Write, &file.0, &mut buffer, 0)), 8);
    assert!(pool.get(6).is_some());
}

#[test]
fn full_ring_accepts_no_request() {
    // E9: the trap: EFAULT comes before the cursor moves, whether there are more events than
    // requested or fewer.
    let file = Temp::in_memory();
    let Some(backend) = unless_refused(LinuxAio::new(8)) else { return };
    let mut buffer = [0; 8];
    let operation = operation(Opcode::Write, &file.0, &mut buffer, 0);
    let mut entries = [1, 2, 3].map(|key| backend.prepare(&operation, key));
    assert_eq!(submit(&backend, &mut entries).unwrap(), 3);
    let head = backend.header().head.load(Relaxed);
    for min in [1, 3, 0, 8] {
        // SAFETY: nothing is mapped at the address, so the kernel writes no event.
        let error =
            unsafe { abi::io_getevents(backend.ring, min, EVENT_CAPACITY, FAULTING_ADDRESS, None) }.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        assert_eq!(backend.header().head.load(Relaxed), head);
    }
    assert_eq!([next(&backend).key, next(&backend).key, next(&backend).key], [1, 2, 3]);
}
