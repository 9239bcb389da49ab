//! Conformance tests for every backend, with requests on real files (the simulated backend
//! substitutes its own files).
//!
//! A backend's test module runs them all with `conformance::tests!(backends)`, where the function
//! `backends` creates backends of a given depth.

#![allow(unsafe_code)]

use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::*};
use std::thread;
use std::time::Duration;

use coralio_runtime::EventNotifier;

use super::queue_depth::MAX_DEPTH;
use super::{Backend, Completion, Opcode, Operation};

/// Generates a test from each function.
macro_rules! tests {
    ($backends:expr) => {
        $crate::backend::conformance::tests! {
            @each $backends,
                all_operations_work_on_all_kinds_of_file
                registered_files_are_used_by_number
                in_flight_never_exceeds_the_depth
                wait_leaves_the_ring_unchanged
                completions_end_a_sleep
                another_thread_ends_a_sleep
                sleep_ends_while_another_thread_peeks
                timeout_or_signal_ends_a_sleep
                watch_moves_to_another_descriptor
                ring_wraps_around
        }
    };
    (@each $backends:expr, $($body:ident)*) => {
        $(#[test]
        fn $body() {
            $crate::backend::conformance::$body($backends);
        })*
    };
}
pub(super) use tests;

/// Returns the kernel, or `None`, with a line on standard error, if the machine refuses it.
pub(super) fn unless_refused<B: Backend>(backend: io::Result<B>) -> Option<B> {
    if let Err(error) = &backend {
        assert_ne!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        // Bypasses the test harness, which captures the output of the macro.
        let _ = writeln!(io::stderr(), "skipped: {error}");
    }
    backend.ok()
}

pub(super) const NOW: Option<Duration> = Some(Duration::ZERO);

#[repr(C, align(4096))]
pub(super) struct Page(pub(super) [u8; 4096]);

/// A file that is removed with its guard.
pub(super) struct Temp(pub(super) File, pub(super) PathBuf);

impl Temp {
    pub(super) fn new(directory: &Path, flags: i32) -> Temp {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("coralio-kernel-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = directory.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).custom_flags(flags).open(&path);
        Temp(file.unwrap(), path)
    }

    /// On tmpfs every request completes within submit.
    pub(super) fn in_memory() -> Temp {
        Temp::new(Path::new("/dev/shm"), 0)
    }

    /// In memory, on disk through the page cache, and on disk with direct I/O.
    pub(super) fn all() -> [Temp; 3] {
        let disk = std::env::temp_dir();
        [Temp::in_memory(), Temp::new(&disk, 0), Temp::new(&disk, libc::O_DIRECT)]
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.1);
    }
}

pub(super) fn operation(opcode: Opcode, fd: &impl AsFd, buffer: &mut [u8], offset: u64) -> Operation {
    let (fd, addr, len) = (fd.as_fd().as_raw_fd(), buffer.as_mut_ptr().expose_provenance() as u64, buffer.len() as u64);
    Operation { opcode, fd, addr, len, offset }
}

pub(super) fn bad() -> Operation {
    Operation { opcode: Opcode::SyncAll, fd: -1, addr: 0, len: 0, offset: 0 }
}

pub(super) fn submit<B: Backend>(backend: &B, entries: &mut [B::Entry]) -> io::Result<usize> {
    // SAFETY: every test keeps its buffers until it has the completions.
    unsafe { backend.submit(entries) }
}

// SAFETY of the following: each test drives its own backend, and keeps the rules for the driving
// thread: one thread submits and waits, and completions are taken by one thread at a time, each
// once.

pub(super) fn peek(backend: &impl Backend) -> Option<Completion> {
    // SAFETY: see above.
    unsafe { backend.peek_completion() }
}

pub(super) fn commit(backend: &impl Backend) {
    // SAFETY: see above.
    unsafe { backend.advance() }
}

pub(super) fn cancel(backend: &impl Backend, key: u64) {
    // SAFETY: see above; the key is of one of the test's requests.
    unsafe { backend.cancel(key) }
}

pub(super) fn wait(backend: &impl Backend, other: Option<BorrowedFd<'_>>, timeout: Option<Duration>) -> io::Result<()> {
    // SAFETY: see above.
    unsafe { backend.wait(other, timeout) }
}

pub(super) fn register(backend: &impl Backend, fd: BorrowedFd<'_>) -> RawFd {
    // SAFETY: the number is used only with this backend, and every test unregisters it once.
    unsafe { backend.register(fd) }
}

pub(super) fn unregister(backend: &impl Backend, number: RawFd) {
    // SAFETY: as above.
    unsafe { backend.unregister(number) }
}

/// Waits for the next completion, and takes it.
pub(super) fn next(backend: &impl Backend) -> Completion {
    loop {
        if let Some(completion) = peek(backend) {
            commit(backend);
            return completion;
        }
        wait(backend, None, None).unwrap();
    }
}

pub(super) fn one(backend: &impl Backend, operation: Operation) -> i64 {
    assert_eq!(submit(backend, &mut [backend.prepare(&operation, 7)]).unwrap(), 1);
    let Completion { key, result } = next(backend);
    assert_eq!(key, 7);
    result
}

pub(super) fn eventfd() -> EventNotifier {
    EventNotifier::new().unwrap()
}

/// Runs `f` in a forked child, which exits with its result as the status and runs no code of its
/// parent. Returns the status.
pub(crate) fn in_forked_child(f: impl FnOnce() -> i32) -> i32 {
    // SAFETY: the child runs `f` alone; there is room for one status.
    unsafe {
        let child = libc::fork();
        if child == 0 {
            libc::_exit(f());
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        status
    }
}

/// E14: a queue depth out of range is an error that gives cause and remedy.
pub(super) fn check_depths<B: Backend>(new: fn(u32) -> io::Result<B>) {
    for depth in [0, MAX_DEPTH + 1, u32::MAX] {
        let Err(error) = new(depth) else { panic!("depth {depth} was accepted") };
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("must be 1 to 32768; 32 suits most"), "{error}");
    }
    for depth in [1, 33] {
        if let Some(backend) = unless_refused(new(depth)) {
            assert_eq!(backend.capacity(), depth);
        }
    }
}

pub(super) fn epoll_with(fd: &EventNotifier) -> OwnedFd {
    // SAFETY: the event outlives the call; the descriptor is new and has no other owner.
    unsafe {
        let epoll = OwnedFd::from_raw_fd(libc::epoll_create1(0));
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        assert_eq!(libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_fd().as_raw_fd(), &mut event), 0);
        epoll
    }
}

/// Waits like a loop: checks, sleeps, checks again.
pub(super) fn wait_for(backend: &impl Backend, watched: &impl AsFd, signalled: &EventNotifier) {
    loop {
        assert_eq!(peek(backend), None);
        wait(backend, Some(watched.as_fd()), None).unwrap();
        if signalled.test_and_clear() {
            return;
        }
    }
}

pub(super) fn all_operations_work_on_all_kinds_of_file<B: Backend>(backends: fn(u32) -> Vec<B>) {
    // E10, E15: read, write, both vectored, data sync, full sync; at the end of the file and
    // beyond.
    for file in Temp::all() {
        for (backend, fill) in backends(4).iter().zip([0x5a, 0xa5]) {
            let (mut out, mut back) = (Page([fill; 4096]), Page([0; 4096]));
            assert_eq!(one(backend, operation(Opcode::Write, &file.0, &mut out.0, 4096)), 4096);
            assert_eq!(one(backend, operation(Opcode::Read, &file.0, &mut back.0, 4096)), 4096);
            assert!(back.0 == out.0);

            let (mut out, mut back) =
                ([Page([fill ^ 1; 4096]), Page([fill ^ 2; 4096])], [Page([0; 4096]), Page([0; 4096])]);
            for (opcode, pages) in [(Opcode::WriteVectored, &mut out), (Opcode::ReadVectored, &mut back)] {
                let vectors =
                    pages.each_mut().map(|page| libc::iovec { iov_base: page.0.as_mut_ptr().cast(), iov_len: 4096 });
                let addr = vectors.as_ptr().expose_provenance() as u64;
                let operation = Operation { opcode, fd: file.0.as_raw_fd(), addr, len: 2, offset: 8192 };
                assert_eq!(one(backend, operation), 8192);
            }
            assert!(back[0].0 == out[0].0 && back[1].0 == out[1].0);

            for opcode in [Opcode::SyncData, Opcode::SyncAll] {
                let operation = Operation { opcode, fd: file.0.as_raw_fd(), addr: 0, len: 0, offset: 0 };
                assert_eq!(one(backend, operation), 0);
            }

            // Short across the end of the file, empty beyond: the file has 16 KiB.
            let mut pages = [const { Page([9; 4096]) }; 2];
            // SAFETY: the two pages are contiguous.
            let both = unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast::<u8>(), 8192) };
            assert_eq!(one(backend, operation(Opcode::Read, &file.0, both, 12288)), 4096);
            assert!(both[..4096] == out[1].0);
            assert_eq!(one(backend, operation(Opcode::Read, &file.0, both, 1 << 20)), 0);
        }
    }
}

pub(super) fn registered_files_are_used_by_number<B: Backend>(backends: fn(u32) -> Vec<B>) {
    // E2: a request goes to the file registered under its number, whatever was registered and
    // unregistered meanwhile
    let files = [(); 3].map(|()| Temp::in_memory());
    for backend in backends(8) {
        let write = |number: RawFd, byte: u8| {
            let mut buffer = [byte; 16];
            let operation = Operation { fd: number, ..operation(Opcode::Write, &files[0].0, &mut buffer, 0) };
            assert_eq!(one(&backend, operation), 16);
        };
        let byte = |file: &Temp| {
            let mut buffer = [0; 16];
            assert_eq!(one(&backend, operation(Opcode::Read, &file.0, &mut buffer, 0)), 16);
            buffer[15]
        };
        let [first, second, third] = files.each_ref().map(|file| register(&backend, file.0.as_fd()));
        (1..).zip([first, second, third]).for_each(|(byte, number)| write(number, byte));
        assert_eq!(files.each_ref().map(byte), [1, 2, 3]);
        unregister(&backend, second);
        write(third, 4);
        let again = register(&backend, files[0].0.as_fd());
        write(again, 5);
        assert_eq!(files.each_ref().map(byte), [5, 2, 4]);
        // A file registered twice remains registered when one registration ends.
        unregister(&backend, again);
        write(first, 6);
        write(files[1].0.as_raw_fd(), 7);
        assert_eq!(files.each_ref().map(byte), [6, 7, 4]);
        unregister(&backend, first);
        unregister(&backend, third);
    }
}

pub(super) fn in_flight_never_exceeds_the_depth<B: Backend>(backends: fn(u32) -> Vec<B>) {
    // E2: a full queue returns EAGAIN; the poll request has a separate slot.
    let (file, other) = (Temp::in_memory(), eventfd());
    for backend in backends(8) {
        let mut buffer = [0; 16];
        let operation = operation(Opcode::Write, &file.0, &mut buffer, 0);
        let mut entries: Vec<_> = (0..9).map(|key| backend.prepare(&operation, key)).collect();
        assert_eq!(submit(&backend, &mut entries).unwrap(), 8);
        assert_eq!(submit(&backend, &mut entries[8..]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        wait(&backend, Some(other.as_fd()), None).unwrap();
        let mut keys = vec![next(&backend).key];
        assert_eq!(submit(&backend, &mut entries[8..]).unwrap(), 1);
        keys.extend((0..8).map(|_| next(&backend).key));
        keys.sort();
        assert_eq!(keys, [0, 1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

pub(super) fn wait_leaves_the_ring_unchanged<B: Backend>(backends: fn(u32) -> Vec<B>) {
    // E9: only peek and commit take completions.
    let (file, other) = (Temp::in_memory(), eventfd());
    for backend in backends(8) {
        let mut buffer = [0; 16];
        let operation = operation(Opcode::Write, &file.0, &mut buffer, 0);
        let mut entries = [4, 5, 6].map(|key| backend.prepare(&operation, key));
        assert_eq!(submit(&backend, &mut entries).unwrap(), 3);
        for other in [Some(other.as_fd()), None] {
            wait(&backend, other, None).unwrap();
        }
        assert!(peek(&backend).is_some_and(|first| peek(&backend) == Some(first)));
        let mut keys = [(); 3].map(|()| next(&backend).key);
        keys.sort();
        assert_eq!(keys, [4, 5, 6]);
        assert_eq!(peek(&backend), None);
    }
}

pub(super) fn completions_end_a_sleep<B: Backend>(backends: fn(u32) -> Vec<B>) {
    // E13: a request that completes after submit, such as direct I/O on a disk, ends the sleep.
    let file = Temp::new(&std::env::temp_dir(), libc::O_DIRECT);
    for backend in backends(8) {
        let mut pages = [const { Page([9; 4096]) }; 4];
        for round in 0..50 {
            let mut entries: Vec<_> = (pages.iter_mut().zip(0..))
                .map(|(page, key)| backend.prepare(&operation(Opcode::Write, &file.0, &mut page.0, key * 4096), key))
                .collect();
            assert_eq!(submit(&backend, &mut entries).unwrap(), 4);
            if round % 2 == 0 {
                wait(&backend, None, None).unwrap();
            }
            let mut keys: Vec<_> = (0..4).map(|_| next(&backend).key).collect();
            keys.sort();
            assert_eq!(keys, [0, 1, 2, 3]);
        }
    }
}

/// Returns `count`, divided by CORALIO_TEST_DIVISOR if set: everything takes fifty times as long
/// under valgrind.
pub(super) fn scaled(count: usize) -> usize {
    let divisor = std::env::var("CORALIO_TEST_DIVISOR").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    (count / divisor).max(2)
}

pub(super) fn another_thread_ends_a_sleep<B: Backend>(backends: fn(u32) -> Vec<B>) {
    // W3: an eventfd, or an epoll that contains it, signalled at any moment.
    for backend in backends(8) {
        let signalled = eventfd();
        let epoll = epoll_with(&signalled);
        for watched in [signalled.as_fd(), epoll.as_fd()] {
            thread::scope(|scope| {
                for _ in 0..scaled(200) {
                    scope.spawn(|| signalled.notify());
                    wait_for(&backend, &watched, &signalled);
                }
            });
        }
    }
}

pub(super) fn sleep_ends_while_another_thread_peeks<B: Backend>(backends: fn(u32) -> Vec<B>) {
    // W3: a peek by another thread does not take the event that must wake the home thread
    //
    // Both threads yield while they depend on the other: otherwise a round on a single CPU would
    // last two time slices.
    let total = scaled(4_000) as u32;
    for backend in backends(8) {
        let (signalled, rounds) = (eventfd(), AtomicU32::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..total {
                    signalled.notify();
                    while rounds.load(Acquire) == round {
                        assert_eq!(peek(&backend), None);
                        thread::yield_now();
                    }
                }
            });
            for round in 0..total {
                // No peek here: only the other thread's peek takes an event of an earlier round,
                // which ends each wait immediately. Whether the poll request is armed when the home
                // thread sleeps differs between rounds.
                while !signalled.test_and_clear() {
                    wait(&backend, Some(signalled.as_fd()), None).unwrap();
                    thread::yield_now();
                }
                rounds.store(round + 1, Release);
            }
        });
    }
}

pub(super) fn timeout_or_signal_ends_a_sleep<B: Backend>(backends: fn(u32) -> Vec<B>) {
    // X7: a sleep ends by timeout; a signal ends it early, without an error.
    extern "C" fn ignore(_: i32) {}
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, ignore as extern "C" fn(i32) as usize) };
    for backend in backends(2) {
        let other = eventfd();
        for timeout in [Duration::ZERO, Duration::from_micros(1500)] {
            wait(&backend, Some(other.as_fd()), Some(timeout)).unwrap();
            wait(&backend, None, Some(timeout)).unwrap();
        }
        for timeout in [None, Some(Duration::MAX)] {
            let (sleeper, up) = (AtomicU64::new(0), AtomicBool::new(false));
            thread::scope(|scope| {
                let result = scope.spawn(|| {
                    // SAFETY: only returns the thread's identity.
                    sleeper.store(unsafe { libc::pthread_self() }, Release);
                    let result = wait(&backend, Some(other.as_fd()), timeout);
                    up.store(true, Release);
                    result
                });
                // Until a signal finds the thread asleep.
                while !up.load(Acquire) {
                    let sleeper = sleeper.load(Acquire);
                    if sleeper != 0 {
                        // SAFETY: the thread is not joined yet.
                        unsafe { libc::pthread_kill(sleeper, libc::SIGUSR1) };
                    }
                    thread::yield_now();
                }
                result.join().unwrap().unwrap();
            });
        }
    }
}

pub(super) fn watch_moves_to_another_descriptor<B: Backend>(backends: fn(u32) -> Vec<B>) {
    // E12: an engine that moves to another loop watches the new loop's descriptor.
    for backend in backends(8) {
        let (old, new) = (eventfd(), eventfd());
        wait(&backend, Some(old.as_fd()), NOW).unwrap();
        new.notify();
        wait_for(&backend, &new, &new);
        // Nothing is left over from either descriptor except the armed poll request.
        wait(&backend, Some(new.as_fd()), NOW).unwrap();
        assert_eq!(peek(&backend), None);
    }
}

pub(super) fn ring_wraps_around<B: Backend>(backends: fn(u32) -> Vec<B>) {
    // E9: each completion is taken once, over many rounds of the ring, submitted and taken in
    // batches of varying size.
    let file = Temp::in_memory();
    for backend in backends(32) {
        let mut buffers = [[0u8; 8]; 32];
        let mut first = 0;
        for lot in (1..=32).cycle().take(scaled(2000)) {
            let mut entries: Vec<_> = (first..first + lot)
                .zip(&mut buffers)
                .map(|(key, buffer)| backend.prepare(&operation(Opcode::Write, &file.0, buffer, 0), key))
                .collect();
            assert_eq!(submit(&backend, &mut entries).unwrap(), lot as usize);
            let mut done: Vec<_> = (0..lot).map(|_| next(&backend)).collect();
            done.sort_by_key(|completion| completion.key);
            assert!(done.into_iter().eq((first..first + lot).map(|key| Completion { key, result: 8 })));
            first += lot;
        }
        assert_eq!(peek(&backend), None);
    }
}
