//! Real requests on real rings: conformance, and behaviour specific to io_uring.

use super::super::conformance::{
    self, Page, Temp, bad, eventfd, in_forked_child, next, one, operation, peek, register, scaled, submit,
    unless_refused, unregister, wait, wait_for,
};
use super::setup::refused;
use super::*;
use crate::AlignedBuf;
use crate::backend::queue_depth::MAX_DEPTH;
use std::cell::RefCell;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

fn ring(depth: u32) -> Option<IoUring> {
    unless_refused(IoUring::new(depth))
}

/// Creates a backend with a table of files, where the kernel is new enough, and one without.
fn both(depth: u32) -> Vec<IoUring> {
    let [Some(new), Some(mut old)] = [(); 2].map(|()| ring(depth)) else { return Vec::new() };
    old.files = Files::default();
    vec![new, old]
}

conformance::tests!(both);

#[test]
fn bad_request_is_accepted_and_fails_alone() {
    // E2: a bad request is accepted, and its completion has the error.
    let Some(backend) = ring(8) else { return };
    let file = Temp::in_memory();
    let (mut first, mut third) = ([1; 16], [3; 16]);
    let operations =
        [operation(Opcode::Write, &file.0, &mut first, 0), bad(), operation(Opcode::Write, &file.0, &mut third, 32)];
    let mut entries = [0, 1, 2].map(|key| backend.prepare(&operations[key as usize], key));
    assert_eq!(entries.each_ref().map(|entry| backend.key(entry)), [0, 1, 2]);
    assert_eq!(submit(&backend, &mut entries).unwrap(), 3);
    let mut done = [(); 3].map(|()| next(&backend));
    done.sort_by_key(|completion| completion.key);
    assert_eq!(done.map(|completion| completion.result), [16, -i64::from(libc::EBADF), 16]);
    assert_eq!(peek(&backend), None);
    assert_eq!(submit(&backend, &mut []).unwrap(), 0);
}

#[test]
fn unconsumed_entries_are_not_lent() {
    // E2, E13: the kernel stops at an invalid request; the requests behind it are taken off the
    // ring, and may be submitted again
    let Some(backend) = ring(4) else { return };
    let file = Temp::in_memory();
    let write = |backend: &IoUring, bytes: &mut [u8], at, key| {
        backend.prepare(&operation(Opcode::Write, &file.0, bytes, at), key)
    };
    let (mut first, mut third) = ([1; 4], [3; 4]);
    let nonsense = || Entry(opcode::Fsync::new(types::Fd(-1)).build().flags(squeue::Flags::BUFFER_SELECT).user_data(1));
    for round in 0..5 {
        let mut entries =
            [write(&backend, &mut first, 0, 0), nonsense(), write(&backend, &mut third, 4 + round * 4, 2)];
        assert_eq!(submit(&backend, &mut entries).unwrap(), 2);
        let mut done = [next(&backend), next(&backend)];
        done.sort_by_key(|completion| completion.key);
        assert_eq!(done.map(|completion| completion.key), [0, 1]);
        assert!(done[0].result == 4 && done[1].result < 0, "{done:?}");
        assert_eq!(submit(&backend, &mut []).unwrap(), 0);
        assert_eq!((peek(&backend), backend.in_flight.count()), (None, 0));
        assert_eq!(file.0.metadata().unwrap().len(), 4 + round * 4, "the third request had not completed");
        assert_eq!(submit(&backend, &mut entries[2..]).unwrap(), 1);
        assert_eq!(next(&backend), Completion { key: 2, result: 4 });
    }
}

#[test]
fn missing_offset_means_the_descriptors_position() {
    // E15: u64::MAX, which this kernel takes for the descriptor's position, fails like any other
    // offset beyond a file's end
    let Some(backend) = ring(4) else { return };
    let file = Temp::in_memory();
    let mut buffer = vec![5; 8];
    assert_eq!(one(&backend, operation(Opcode::Write, &file.0, &mut buffer, 0)), 8);
    for offset in [u64::MAX, u64::MAX - 1, 1 << 63] {
        for opcode in [Opcode::Read, Opcode::Write] {
            assert_eq!(one(&backend, operation(opcode, &file.0, &mut buffer, offset)), -i64::from(libc::EINVAL));
        }
    }
}

#[test]
fn oversized_length_is_not_truncated_to_zero() {
    // E10: io_uring lengths have 32 bits; a short read reports its length
    let Some(backend) = ring(4) else { return };
    let file = Temp::in_memory();
    // On the heap: the length below, counted from a stack address, would leave the address space.
    let mut buffer = vec![5; 8];
    assert_eq!(one(&backend, operation(Opcode::Write, &file.0, &mut buffer, 0)), 8);
    buffer.fill(0);
    // The file has eight bytes, so no more are written to memory.
    let read = Operation { len: 1 << 32, ..operation(Opcode::Read, &file.0, &mut buffer, 0) };
    assert_eq!(one(&backend, read), 8);
    assert_eq!(buffer, [5; 8]);
}

#[test]
fn unaligned_direct_io_is_rejected() {
    // E14: if the file system requires alignment, the completion has its error
    let Some(backend) = ring(4) else { return };
    let file = Temp::new(&std::env::temp_dir(), libc::O_DIRECT);
    let mut pages = [Page([1; 4096]), Page([2; 4096])];
    assert_eq!(one(&backend, operation(Opcode::Write, &file.0, &mut pages[0].0, 0)), 4096);
    let unaligned = one(&backend, operation(Opcode::Read, &file.0, &mut pages[1].0[..100], 0));
    assert!([100, -i64::from(libc::EINVAL)].contains(&unaligned), "{unaligned}");
}

#[test]
fn drop_waits_for_requests_in_flight() {
    // E13: the kernel would continue requests after the ring is closed
    const BLOCK: usize = 64 * 1024;
    let file = Temp::new(&std::env::temp_dir(), libc::O_DIRECT);
    let page = || Page([7; 4096]);
    let mut out: Vec<_> = (0..BLOCK / 4096 * 32).map(|_| page()).collect();
    // SAFETY: pages are contiguous, without gaps.
    let bytes = |pages: &mut [Page]| unsafe {
        &mut *ptr::slice_from_raw_parts_mut(pages.as_mut_ptr().cast::<u8>(), pages.len() * 4096)
    };
    let Some(backend) = ring(32) else { return };
    assert_eq!(one(&backend, operation(Opcode::Write, &file.0, bytes(&mut out), 0)), (BLOCK * 32) as i64);
    let mut back: Vec<_> = (0..out.len()).map(|_| Page([0; 4096])).collect();
    for _ in 0..scaled(20) {
        bytes(&mut back).fill(0);
        let Some(backend) = ring(32) else { return };
        let mut entries: Vec<_> = bytes(&mut back)
            .chunks_mut(BLOCK)
            .zip(0..)
            .map(|(part, key)| backend.prepare(&operation(Opcode::Read, &file.0, part, key * BLOCK as u64), key))
            .collect();
        assert_eq!(submit(&backend, &mut entries).unwrap(), 32);
        drop(backend);
        assert!(bytes(&mut back).iter().all(|&byte| byte == 7));
    }
}

#[test]
fn forked_child_leaves_the_parents_rings_unchanged() {
    // C10: in a forked child, dropping a ring is fine and waits for nothing
    let Some(backend) = ring(4) else { return };
    let never = eventfd();
    // SAFETY: no pointers.
    let blocking = unsafe { libc::fcntl(never.as_fd().as_raw_fd(), libc::F_SETFL, 0) };
    assert_eq!(blocking, 0);
    let mut count = [0; 8];
    let mut read = [backend.prepare(&operation(Opcode::Read, &never, &mut count, 0), 1)];
    assert_eq!(submit(&backend, &mut read).unwrap(), 1);
    let dropped = || {
        // SAFETY: the child does not use the backend again, and the parent keeps its own.
        drop(unsafe { ptr::read(&backend) });
        0
    };
    assert_eq!(in_forked_child(dropped), 0);
    never.notify();
    assert_eq!(next(&backend), Completion { key: 1, result: 8 });
    assert_eq!(u64::from_ne_bytes(count), 1);
}

/// Whether the ring has a table of files: on old kernels it has none.
fn has_a_table(backend: &IoUring) -> bool {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the call writes the one structure.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) }, 0);
    let has = backend.ring.params().is_feature_no_iowait() && limit.rlim_cur >= files::PLACES.into();
    if !has {
        eprintln!("skipped: Linux before 6.15, or a limit of {} descriptors, too low for the table", limit.rlim_cur);
    }
    has
}

#[test]
fn file_is_closed_when_the_ring_releases_it() {
    // E13: a file is closed when it is unregistered, not before and not later
    let Some(backend) = ring(8) else { return };
    if !has_a_table(&backend) {
        return;
    }
    let (reader, writer) = UnixStream::pair().unwrap();
    let number = register(&backend, writer.as_fd());
    if number >= -1 {
        // The table of files counts towards the limit on locked memory.
        return eprintln!("skipped: no room in the ring's table of files");
    }
    drop(writer);
    let write = |count| {
        let mut buffer = [7; 16];
        let operation = operation(Opcode::Write, &reader, &mut buffer[..count], 0);
        one(&backend, Operation { fd: number, ..operation })
    };
    assert_eq!(write(16), 16);
    unregister(&backend, number);
    assert_eq!(write(16), -i64::from(libc::EBADF));
    // Ends when the other end is closed everywhere.
    assert_eq!(std::io::read_to_string(&reader).unwrap().len(), 16);
}

#[test]
fn forked_child_leaves_the_parents_files_registered() {
    // C10, E13: a forked child neither removes registered files nor adds any
    let Some(backend) = ring(4) else { return };
    let file = Temp::in_memory();
    let number = register(&backend, file.0.as_fd());
    let changed = || {
        unregister(&backend, number);
        i32::from(register(&backend, file.0.as_fd()) < 0)
    };
    assert_eq!(in_forked_child(changed), 0);
    let mut buffer = [1; 16];
    let operation = operation(Opcode::Write, &file.0, &mut buffer, 0);
    assert_eq!(one(&backend, Operation { fd: number, ..operation }), 16);
}

#[test]
fn full_file_table_accepts_no_more_files() {
    // E14: a file without a slot uses its descriptor; a released slot is used again
    let Some(backend) = ring(4) else { return };
    let file = Temp::in_memory();
    if !has_a_table(&backend) {
        return;
    }
    let register = || register(&backend, file.0.as_fd());
    let numbers: Vec<_> = (0..files::PLACES).map(|_| register()).collect();
    assert!(numbers.iter().all(|&number| number < -1), "{numbers:?}");
    assert_eq!(register(), file.0.as_raw_fd());
    unregister(&backend, file.0.as_raw_fd());
    unregister(&backend, numbers[17]);
    assert_eq!(register(), numbers[17]);
}

#[test]
fn depth_out_of_range_is_rejected() {
    // E14: see `check_depths`.
    conformance::check_depths(IoUring::new);
    if let Some(backend) = ring(MAX_DEPTH) {
        assert_eq!(backend.capacity(), MAX_DEPTH);
    }
}

#[test]
fn ring_error_names_cause_and_remedy() {
    // E14: the kernel's error is returned with the likely cause and remedy.
    for (errno, kind, words) in [
        (libc::ENOSYS, io::ErrorKind::Unsupported, ["CONFIG_IO_URING", "seccomp", "Linux 6.0 or later"]),
        (libc::ENOMEM, io::ErrorKind::OutOfMemory, ["depth 64", "ulimit -l", "smaller depth"]),
        (libc::EMFILE, io::Error::from_raw_os_error(libc::EMFILE).kind(), ["descriptor", "ulimit -n", "raise"]),
        (libc::EINVAL, io::ErrorKind::InvalidInput, ["io_uring_setup", "queue depth 64", "Invalid argument"]),
    ] {
        let error = refused(io::Error::from_raw_os_error(errno), 64);
        assert_eq!(error.kind(), kind);
        for word in words.into_iter().chain(["use native AIO (BackendKind::Aio)"]) {
            assert!(error.to_string().contains(word), "{error}");
        }
    }
}

/// Runs `f` on a thread with a seccomp filter that fails the system call `call` with `errno`.
fn behind_a_filter<T: Send>(call: libc::c_long, errno: i32, f: impl FnOnce() -> T + Send) -> T {
    let statement = |code: u32, k: u32| libc::sock_filter { code: code as u16, jt: 0, jf: 0, k };
    let jump = |k: u32| libc::sock_filter { jf: 1, ..statement(libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K, k) };
    let mut filter = [
        // The first word is the number of the system call.
        statement(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0),
        jump(call as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ERRNO | errno as u32),
        statement(libc::BPF_RET | libc::BPF_K, libc::SECCOMP_RET_ALLOW),
    ];
    let behind = move || {
        let program = libc::sock_fprog { len: filter.len() as u16, filter: filter.as_mut_ptr() };
        // SAFETY: the program outlives the calls. The filter applies to this thread, and ends with
        // it.
        unsafe {
            assert_eq!(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
            assert_eq!(libc::prctl(libc::PR_SET_SECCOMP, libc::SECCOMP_MODE_FILTER, &raw const program), 0);
        }
        f()
    };
    std::thread::scope(|scope| scope.spawn(behind).join().unwrap())
}

#[test]
fn seccomp_filter_is_reported() {
    // E14: like in a container, with a real filter; so is a call that an older kernel lacks
    if ring(8).is_none() {
        return;
    }
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap();
    let outdated = format!("it needs Linux 6.0 or later, and this is Linux {};", release.trim());
    for (call, errno, kind, word) in [
        (
            libc::SYS_io_uring_setup,
            libc::EPERM,
            io::ErrorKind::PermissionDenied,
            "forbidden, likely by a seccomp filter",
        ),
        (libc::SYS_io_uring_setup, libc::ENOSYS, io::ErrorKind::Unsupported, "io_uring is not available"),
        (libc::SYS_io_uring_register, libc::EPERM, io::ErrorKind::PermissionDenied, "io_uring_register"),
        (libc::SYS_io_uring_register, libc::EINVAL, io::ErrorKind::Unsupported, &outdated),
    ] {
        let error = behind_a_filter(call, errno, || IoUring::new(8).unwrap_err());
        assert_eq!(error.kind(), kind);
        assert!(error.to_string().contains(word) && error.to_string().contains("BackendKind::Aio"), "{error}");
    }
}

#[test]
fn submit_that_consumes_nothing_lends_nothing() {
    // E2, E13: EAGAIN or another error; the ring is empty afterwards
    let Some(backend) = ring(2) else { return };
    let file = Temp::in_memory();
    let mut buffer = [1; 4];
    let mut entries = [3, 4].map(|key| backend.prepare(&operation(Opcode::Write, &file.0, &mut buffer, 0), key));
    for (errno, said) in [(libc::EAGAIN, libc::EAGAIN), (libc::EIO, libc::EIO), (0, libc::EAGAIN)] {
        let result = behind_a_filter(libc::SYS_io_uring_enter, errno, || submit(&backend, &mut entries));
        assert_eq!(result.unwrap_err().raw_os_error(), Some(said));
        assert_eq!((backend.in_flight.count(), file.0.metadata().unwrap().len()), (0, 0));
    }
    assert_eq!(submit(&backend, &mut entries).unwrap(), 2);
    let mut keys = [next(&backend).key, next(&backend).key];
    keys.sort();
    assert_eq!((keys, peek(&backend)), ([3, 4], None));
}

#[test]
fn deferred_entries_are_submitted_by_the_next_call() {
    // E2, E3: a deferred entry counts as accepted, takes no system call, and is submitted by the
    // next submit, by either kind of sleep, or before the ring is closed
    let Some(backend) = ring(2) else { return };
    let (file, other) = (Temp::in_memory(), eventfd());
    let buffer = RefCell::new([1; 4]);
    let write = |backend: &IoUring, at, key| {
        backend.prepare(&operation(Opcode::Write, &file.0, &mut *buffer.borrow_mut(), at), key)
    };
    let defer = |backend: &IoUring, entries: &mut [Entry]| {
        // SAFETY: the buffer outlives the requests, and this thread alone uses the backend.
        unsafe { backend.defer(entries) }
    };
    type Way<'a> = (&'a str, &'a dyn Fn(&IoUring));
    let ways: [Way<'_>; 4] = [
        ("submit nothing", &|backend| assert_eq!(submit(backend, &mut []).unwrap(), 0)),
        ("submit another", &|backend| assert_eq!(submit(backend, &mut [write(backend, 8, 1)]).unwrap(), 1)),
        ("sleep in place", &|backend| wait(backend, None, None).unwrap()),
        ("sleep of the loop", &|backend| wait(backend, Some(other.as_fd()), None).unwrap()),
    ];
    for (number, (way, next_call)) in ways.into_iter().enumerate() {
        let mut entry = [write(&backend, 0, 0)];
        let deferred = behind_a_filter(libc::SYS_io_uring_enter, libc::EIO, || defer(&backend, &mut entry));
        assert_eq!(deferred, 1, "{way}");
        assert!(backend.has_deferred() && peek(&backend).is_none(), "{way}");
        next_call(&backend);
        let count = if number == 1 { 2 } else { 1 };
        (0..count).for_each(|_| assert_eq!(next(&backend).result, 4, "{way}"));
        assert!(!backend.has_deferred(), "{way}");
        assert_eq!((backend.in_flight.count(), peek(&backend)), (0, None), "{way}");
    }
    // Entries beyond the depth are not accepted.
    assert_eq!(defer(&backend, &mut [2, 3, 4].map(|key| write(&backend, 16, key))), 2);
    assert_eq!(defer(&backend, &mut [write(&backend, 16, 5)]), 0);
    drop(backend);
    assert_eq!(file.0.metadata().unwrap().len(), 20, "the drop submits");
}

#[test]
fn registered_buffers_are_used_by_address() {
    // E13, E16: after a number of requests the ring registers the buffer's memory, unless that is
    // refused; requests on other memory, on a part of the buffer, and on the next buffer at the same
    // address transfer the right bytes
    const REQUESTS: usize = 2 * buffers::TRIES as usize;
    let file = Temp::in_memory();
    for is_refused in [false, true] {
        let Some(backend) = ring(2) else { return };
        let mut buffer = AlignedBuf::new(8192, 4096);
        let address = buffer.as_ptr();
        let mut other = [0; 4096];
        let transfer = |opcode, memory: &mut [u8], at| {
            let len = memory.len();
            let mut prepare = || backend.prepare(&operation(opcode, &file.0, memory, at), 7);
            let entry = if is_refused {
                behind_a_filter(libc::SYS_io_uring_register, libc::ENOMEM, prepare)
            } else {
                prepare()
            };
            assert_eq!(submit(&backend, &mut [entry]).unwrap(), 1);
            assert_eq!(next(&backend).result, len as i64);
        };
        for number in 0..REQUESTS {
            if number == REQUESTS - 10 {
                drop(buffer);
                buffer = AlignedBuf::new(8192, 4096);
            }
            let (at, value) = (number as u64 % 7, number as u8);
            let range = [0..4096, 4096..8192, 100..4196][number % 3].clone();
            buffer[range.clone()].fill(value);
            transfer(Opcode::Write, &mut buffer[range.clone()], at);
            transfer(Opcode::Read, &mut other, at);
            assert_eq!(other, [value; 4096], "request {number}");
            buffer[range.clone()].fill(0);
            transfer(Opcode::Read, &mut buffer[range.clone()], at);
            assert!(buffer[range].iter().all(|&byte| byte == value), "request {number}");
        }
        let number = backend.buffers.number_of(&backend.ring, address.addr(), 4096);
        if is_refused {
            assert_eq!(number, None);
        } else if number.is_none() {
            eprintln!("skipped: the limit on locked memory is exhausted");
        }
    }
}

#[test]
fn refused_call_leaves_deferred_entries_on_the_ring() {
    // E2, W3: the kernel accepts nothing: entries of that call are taken off the ring, deferred
    // ones stay, also if they fill the ring, which leaves no room for the poll request
    let Some(backend) = ring(2) else { return };
    let (file, other) = (Temp::in_memory(), eventfd());
    let mut buffer = [1; 4];
    let mut entries = [0, 1].map(|key| backend.prepare(&operation(Opcode::Write, &file.0, &mut buffer, key * 4), key));
    // SAFETY: the buffer outlives the request, and this thread alone uses the backend.
    let defer = |entries: &mut [Entry]| unsafe { backend.defer(entries) };
    let [first, second] = &mut entries;
    assert_eq!(defer(std::slice::from_mut(first)), 1);
    let second = std::slice::from_mut(second);
    let refused = behind_a_filter(libc::SYS_io_uring_enter, libc::EAGAIN, || submit(&backend, second));
    assert_eq!(refused.unwrap_err().raw_os_error(), Some(libc::EAGAIN));
    assert_eq!((backend.rings.unsubmitted(), backend.in_flight.count()), (1, 1));
    assert_eq!(defer(second), 1);
    let sleep = || wait(&backend, Some(other.as_fd()), None);
    behind_a_filter(libc::SYS_io_uring_enter, libc::EAGAIN, sleep).unwrap();
    assert_eq!((backend.rings.unsubmitted(), backend.poll_event.is_armed()), (2, false));
    sleep().unwrap();
    let mut keys = [next(&backend).key, next(&backend).key];
    keys.sort();
    assert_eq!((keys, peek(&backend), backend.poll_event.is_armed()), ([0, 1], None, true));
}

#[test]
fn rejected_poll_request_is_not_armed() {
    // W3, E14: without memory for the poll request the sleep ends, and the next one tries again
    let Some(backend) = ring(2) else { return };
    let other = eventfd();
    let wait = || wait(&backend, Some(other.as_fd()), None);
    behind_a_filter(libc::SYS_io_uring_enter, libc::EAGAIN, wait).unwrap();
    assert!(!backend.poll_event.is_armed());
    other.notify();
    wait_for(&backend, &other, &other);
}
