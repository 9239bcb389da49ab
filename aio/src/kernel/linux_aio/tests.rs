//! Real requests on real files: with the ring read in memory and, by the same bodies, without.

use super::context::setup_error;
use super::*;
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicBool;
use std::thread;

const NOW: Option<Duration> = Some(Duration::ZERO);

#[repr(C, align(4096))]
struct Page([u8; 4096]);

/// A pool of a test's own, so that tests do not take each other's contexts.
fn pool() -> &'static Pool {
    // Kept, so that a leak checker does not take it for lost.
    static POOLS: Mutex<Vec<&Pool>> = Mutex::new(Vec::new());
    let pool = Box::leak(Box::new(Pool::new()));
    POOLS.lock().unwrap().push(pool);
    pool
}

/// One that reads the ring, and one that may not.
fn both(depth: u32) -> [LinuxAio; 2] {
    let ring = LinuxAio::new(depth).unwrap();
    assert_ne!(ring.slots, 0, "the ring is as we know it");
    let mut blind = LinuxAio::new(depth).unwrap();
    blind.slots = 0;
    [ring, blind]
}

/// A file that goes with its guard.
struct Temp(File, PathBuf);

impl Temp {
    fn new(directory: &Path, flags: i32) -> Temp {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("coralio-linux-aio-{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
        let path = directory.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).custom_flags(flags).open(&path);
        Temp(file.unwrap(), path)
    }

    /// On tmpfs every request completes within submit.
    fn in_memory() -> Temp {
        Temp::new(Path::new("/dev/shm"), 0)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.1);
    }
}

fn operation(opcode: Opcode, fd: &impl AsFd, buffer: &mut [u8], offset: u64) -> Operation {
    let (fd, addr, len) = (fd.as_fd().as_raw_fd(), buffer.as_mut_ptr().expose_provenance() as u64, buffer.len() as u64);
    Operation { opcode, fd, addr, len, offset }
}

fn bad() -> Operation {
    Operation { opcode: Opcode::SyncAll, fd: -1, addr: 0, len: 0, offset: 0 }
}

fn submit(kernel: &LinuxAio, entries: &mut [Iocb]) -> io::Result<usize> {
    // SAFETY: every test keeps its buffers till it has the completions.
    unsafe { kernel.submit(entries) }
}

/// Waits for the next completion, and takes it.
fn next(kernel: &LinuxAio) -> Completion {
    loop {
        if let Some(completion) = kernel.peek() {
            kernel.commit();
            return completion;
        }
        kernel.wait(1, None, None).unwrap();
    }
}

fn one(kernel: &LinuxAio, operation: Operation) -> i64 {
    assert_eq!(submit(kernel, &mut [kernel.prepare(&operation, 7)]).unwrap(), 1);
    let Completion { key, result } = next(kernel);
    assert_eq!(key, 7);
    result
}

fn eventfd() -> OwnedFd {
    // SAFETY: no memory is involved; the descriptor is new and nobody else's.
    unsafe {
        let fd = libc::eventfd(0, libc::EFD_NONBLOCK);
        assert!(fd >= 0);
        OwnedFd::from_raw_fd(fd)
    }
}

fn signal(fd: &OwnedFd) {
    // SAFETY: eight bytes, as an eventfd wants.
    assert_eq!(unsafe { libc::write(fd.as_raw_fd(), 1u64.to_ne_bytes().as_ptr().cast(), 8) }, 8);
}

/// Whether it was signalled; not any more.
fn reset(fd: &OwnedFd) -> bool {
    let mut count = 0u64;
    // SAFETY: room for eight bytes.
    unsafe { libc::read(fd.as_raw_fd(), (&raw mut count).cast(), 8) == 8 }
}

fn epoll_with(fd: &OwnedFd) -> OwnedFd {
    // SAFETY: the event outlives the call; the descriptor is new and nobody else's.
    unsafe {
        let epoll = OwnedFd::from_raw_fd(libc::epoll_create1(0));
        let mut event = libc::epoll_event { events: libc::EPOLLIN as u32, u64: 0 };
        assert_eq!(libc::epoll_ctl(epoll.as_raw_fd(), libc::EPOLL_CTL_ADD, fd.as_raw_fd(), &mut event), 0);
        epoll
    }
}

/// Waits as a loop does: looks, sleeps, looks again.
fn wait_for(kernel: &LinuxAio, watched: &OwnedFd, signalled: &OwnedFd) {
    loop {
        assert_eq!(kernel.peek(), None);
        kernel.wait(1, Some(watched.as_fd()), None).unwrap();
        if reset(signalled) {
            return;
        }
    }
}

#[test]
fn all_operations_on_both_kinds_of_file() {
    // E15: read, write, vectored both, data sync, full sync.
    for file in [Temp::new(&std::env::temp_dir(), libc::O_DIRECT), Temp::in_memory()] {
        for (kernel, fill) in both(4).iter().zip([0x5a, 0xa5]) {
            let (mut out, mut back) = (Page([fill; 4096]), Page([0; 4096]));
            assert_eq!(one(kernel, operation(Opcode::Write, &file.0, &mut out.0, 4096)), 4096);
            assert_eq!(one(kernel, operation(Opcode::Read, &file.0, &mut back.0, 4096)), 4096);
            assert!(back.0 == out.0);

            let (mut out, mut back) =
                ([Page([fill ^ 1; 4096]), Page([fill ^ 2; 4096])], [Page([0; 4096]), Page([0; 4096])]);
            for (opcode, pages) in [(Opcode::WriteVectored, &mut out), (Opcode::ReadVectored, &mut back)] {
                let vectors =
                    pages.each_mut().map(|page| libc::iovec { iov_base: page.0.as_mut_ptr().cast(), iov_len: 4096 });
                let addr = vectors.as_ptr().expose_provenance() as u64;
                let operation = Operation { opcode, fd: file.0.as_raw_fd(), addr, len: 2, offset: 8192 };
                assert_eq!(one(kernel, operation), 8192);
            }
            assert!(back[0].0 == out[0].0 && back[1].0 == out[1].0);

            for opcode in [Opcode::SyncData, Opcode::SyncAll] {
                let operation = Operation { opcode, fd: file.0.as_raw_fd(), addr: 0, len: 0, offset: 0 };
                assert_eq!(one(kernel, operation), 0);
            }
        }
    }
}

#[test]
fn a_batch_is_taken_up_to_the_bad_one() {
    // E2: a part is accepted; the bad one's error is its own.
    let file = Temp::in_memory();
    for kernel in both(8) {
        let (mut first, mut third) = ([1; 16], [3; 16]);
        let operations = [
            operation(Opcode::Write, &file.0, &mut first, 0),
            bad(),
            operation(Opcode::Write, &file.0, &mut third, 32),
        ];
        let mut entries = [0, 1, 2].map(|key| kernel.prepare(&operations[key as usize], key));
        assert_eq!(entries.each_ref().map(|entry| kernel.key(entry)), [0, 1, 2]);
        assert_eq!(submit(&kernel, &mut entries).unwrap(), 1);
        let error = submit(&kernel, &mut entries[1..]).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EBADF));
        assert_eq!(submit(&kernel, &mut entries[2..]).unwrap(), 1);
        assert_eq!([next(&kernel).key, next(&kernel).key], [0, 2]);
        assert_eq!(kernel.peek(), None);
        assert_eq!(submit(&kernel, &mut []).unwrap(), 0);
    }
}

#[test]
fn no_more_in_flight_than_the_depth() {
    // E2: "try again" when the queue is full; the poll request has a slot of its own.
    let (file, other) = (Temp::in_memory(), eventfd());
    for kernel in both(8) {
        let mut buffer = [0; 16];
        let operation = operation(Opcode::Write, &file.0, &mut buffer, 0);
        let mut entries: Vec<_> = (0..9).map(|key| kernel.prepare(&operation, key)).collect();
        assert_eq!(submit(&kernel, &mut entries).unwrap(), 8);
        assert_eq!(submit(&kernel, &mut entries[8..]).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        kernel.wait(1, Some(other.as_fd()), None).unwrap();
        assert_eq!(next(&kernel).key, 0);
        assert_eq!(submit(&kernel, &mut entries[8..]).unwrap(), 1);
        let keys: Vec<_> = (0..8).map(|_| next(&kernel).key).collect();
        assert_eq!(keys, [1, 2, 3, 4, 5, 6, 7, 8]);
    }
}

#[test]
fn waiting_takes_nothing() {
    // E9: a completion is taken by peek and commit alone.
    let (file, other) = (Temp::in_memory(), eventfd());
    for kernel in both(8) {
        let mut buffer = [0; 16];
        let operation = operation(Opcode::Write, &file.0, &mut buffer, 0);
        let mut entries = [4, 5, 6].map(|key| kernel.prepare(&operation, key));
        assert_eq!(submit(&kernel, &mut entries).unwrap(), 3);
        for (min, other) in [(3, None), (1, Some(other.as_fd())), (1, None), (0, None)] {
            kernel.wait(min, other, None).unwrap();
        }
        for key in [4, 5, 6] {
            assert_eq!(kernel.peek(), kernel.peek());
            assert_eq!(kernel.peek(), Some(Completion { key, result: 16 }));
            kernel.commit();
        }
        assert_eq!(kernel.peek(), None);
    }
}

#[test]
fn a_sleep_is_ended_by_completions() {
    // E13: what completes after submit ends the sleep; direct I/O on a disk is such a thing.
    let file = Temp::new(&std::env::temp_dir(), libc::O_DIRECT);
    for kernel in both(8) {
        let mut pages = [const { Page([9; 4096]) }; 4];
        for round in 0..50 {
            let mut entries: Vec<_> = (pages.iter_mut().zip(0..))
                .map(|(page, key)| kernel.prepare(&operation(Opcode::Write, &file.0, &mut page.0, key * 4096), key))
                .collect();
            assert_eq!(submit(&kernel, &mut entries).unwrap(), 4);
            if round % 2 == 0 {
                kernel.wait(4, None, None).unwrap();
            }
            let mut keys: Vec<_> = (0..4).map(|_| next(&kernel).key).collect();
            keys.sort();
            assert_eq!(keys, [0, 1, 2, 3]);
        }
    }
}

#[test]
fn a_sleep_is_ended_by_another_thread() {
    // W3: eventfd, or an epoll with it, signalled at any moment.
    for kernel in both(8) {
        let signalled = eventfd();
        let epoll = epoll_with(&signalled);
        for watched in [&signalled, &epoll] {
            thread::scope(|scope| {
                for _ in 0..200 {
                    scope.spawn(|| signal(&signalled));
                    wait_for(&kernel, watched, &signalled);
                }
            });
        }
    }
}

#[test]
fn a_sleep_ends_though_another_thread_peeks() {
    // W3: the event that is to wake the home thread is not swallowed behind its back.
    for kernel in both(8) {
        let (signalled, rounds) = (eventfd(), AtomicU32::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                for round in 0..20_000 {
                    signal(&signalled);
                    while rounds.load(Acquire) == round {
                        assert_eq!(kernel.peek(), None);
                    }
                }
            });
            for round in 0..20_000 {
                // Peeks at times only: whether the poll request is armed when it sleeps differs from round to round.
                while !reset(&signalled) {
                    kernel.wait(1, Some(signalled.as_fd()), None).unwrap();
                }
                rounds.store(round + 1, Release);
            }
        });
    }
}

#[test]
fn the_event_that_wakes_is_left_to_the_sleeper() {
    // W3: the same, step by step.
    let [kernel, _] = both(8);
    let signalled = eventfd();
    signal(&signalled);
    kernel.wait(1, Some(signalled.as_fd()), None).unwrap();
    let on_ring = || kernel.header().head.load(Relaxed) != kernel.header().tail.load(Relaxed);
    for bit in [ASLEEP, SWALLOWING] {
        kernel.watch.fetch_or(bit, Relaxed);
        assert_eq!(kernel.peek(), None);
        assert!(on_ring(), "it is not the peeker's to take");
        kernel.watch.fetch_and(!bit, Relaxed);
    }
    assert_eq!(kernel.peek(), None);
    assert!(!on_ring());
    assert_eq!(kernel.watch.load(Relaxed), 0);
}

#[test]
fn another_descriptor_takes_over() {
    // E12: an engine that moves to another loop watches that one's descriptor.
    for kernel in both(8) {
        let (old, new) = (eventfd(), eventfd());
        kernel.wait(1, Some(old.as_fd()), NOW).unwrap();
        assert_eq!(kernel.watch.load(Relaxed), ARMED | old.as_raw_fd() as u64);
        signal(&new);
        wait_for(&kernel, &new, &new);
        // Nothing is left over of either but what is armed.
        kernel.wait(1, Some(new.as_fd()), NOW).unwrap();
        assert_eq!(kernel.peek(), None);
        assert!([0, ARMED | new.as_raw_fd() as u64].contains(&kernel.watch.load(Relaxed)));
    }
}

#[test]
fn a_sleep_ends_by_time_or_signal() {
    // X7 and "a signal ends it early, which is not an error".
    extern "C" fn ignore(_: i32) {}
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR1, ignore as extern "C" fn(i32) as usize) };
    for kernel in both(2) {
        let other = eventfd();
        for timeout in [Duration::ZERO, Duration::from_micros(1500)] {
            kernel.wait(1, Some(other.as_fd()), Some(timeout)).unwrap();
            kernel.wait(2, None, Some(timeout)).unwrap();
        }
        for timeout in [None, Some(Duration::MAX)] {
            let (sleeper, up) = (AtomicU64::new(0), AtomicBool::new(false));
            thread::scope(|scope| {
                let result = scope.spawn(|| {
                    // SAFETY: it only says who we are.
                    sleeper.store(unsafe { libc::pthread_self() }, Release);
                    let result = kernel.wait(1, Some(other.as_fd()), timeout);
                    up.store(true, Release);
                    result
                });
                // Till one of them finds it asleep.
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

#[test]
fn the_ring_goes_round() {
    // E9: each completion once, in many rounds of the ring, submitted and taken in uneven lots.
    let file = Temp::in_memory();
    for kernel in both(32) {
        let mut buffers = [[0u8; 8]; 32];
        let mut first = 0;
        for lot in (1..=32).cycle().take(2000) {
            let mut entries: Vec<_> = (first..first + lot)
                .zip(&mut buffers)
                .map(|(key, buffer)| kernel.prepare(&operation(Opcode::Write, &file.0, buffer, 0), key))
                .collect();
            assert_eq!(submit(&kernel, &mut entries).unwrap(), lot as usize);
            for key in first..first + lot {
                assert_eq!(next(&kernel), Completion { key, result: 8 });
            }
            first += lot;
        }
        assert_eq!(kernel.peek(), None);
    }
}

#[test]
fn depth_has_limits() {
    // E14: the message says cause and remedy.
    for depth in [0, MAX_DEPTH + 1, u32::MAX] {
        let error = LinuxAio::new(depth).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("1..=32768"), "{error}");
    }
    assert_eq!(LinuxAio::new(33).unwrap().capacity(), 33);
}

#[test]
fn a_refused_context_says_why() {
    // E14: what the kernel refuses comes back with the likely cause and remedy.
    for (errno, kind, words) in [
        (libc::EAGAIN, io::ErrorKind::QuotaExceeded, ["fs.aio-max-nr", "smaller depth", "sysctl"]),
        (libc::ENOSYS, io::ErrorKind::Unsupported, ["CONFIG_AIO", "seccomp", "io_setup"]),
        (libc::EPERM, io::ErrorKind::PermissionDenied, ["forbidden", "seccomp", "io_setup"]),
        (libc::ENOMEM, io::ErrorKind::OutOfMemory, ["io_setup", "queue of 64", "memory"]),
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
fn an_idle_context_serves_again() {
    // C10: as for stacks, what is dear to make is kept; it comes back clean.
    let pool = pool();
    let other = eventfd();
    let kernel = LinuxAio::from_pool(77, pool).unwrap();
    let ring = kernel.ring;
    // Dropped with its poll request armed, and again with that one's event on the ring.
    for ready in [false, true] {
        if ready {
            signal(&other);
        }
        let kernel = LinuxAio::from_pool(77, pool).unwrap();
        kernel.wait(1, Some(other.as_fd()), NOW).unwrap();
        assert_ne!(kernel.watch.load(Relaxed), 0);
    }
    assert_eq!(pool.idle().len(), 1);
    drop(kernel);
    assert_eq!(pool.idle().len(), 2);
    assert_ne!(LinuxAio::from_pool(78, pool).unwrap().ring, ring, "that is another depth");
    let again = [LinuxAio::from_pool(77, pool).unwrap(), LinuxAio::from_pool(77, pool).unwrap()];
    assert!(again.iter().any(|kernel| kernel.ring == ring));
    for kernel in &again {
        assert_eq!(kernel.header().head.load(Relaxed), kernel.header().tail.load(Relaxed));
        assert_eq!(kernel.peek(), None);
    }
}

#[test]
fn few_and_shallow_contexts_are_kept() {
    // E14: what is kept counts against fs.aio-max-nr, so that there is a limit, and all are given up before one is refused.
    let pool = pool();
    drop(LinuxAio::from_pool(Pool::DEEPEST + 1, pool).unwrap());
    assert!(pool.idle().is_empty());
    let many: Vec<_> = (1..=Pool::SIZE as u32 + 1).map(|depth| LinuxAio::from_pool(depth, pool).unwrap()).collect();
    drop(many);
    let depths: Vec<_> = pool.idle().iter().map(|context| context.depth).collect();
    assert_eq!(depths, [2, 3, 4, 5, 6, 7, 8, 9], "the oldest has gone");
    assert!(pool.drain() && !pool.drain());
}

#[test]
fn a_context_with_requests_in_flight_is_not_kept() {
    // E13: the next one would see their completions.
    let (file, pool, never) = (Temp::new(&std::env::temp_dir(), libc::O_DIRECT), pool(), eventfd());
    let mut page = Page([1; 4096]);
    let kernel = LinuxAio::from_pool(4, pool).unwrap();
    let write = kernel.prepare(&operation(Opcode::Write, &file.0, &mut page.0, 0), 1);
    // It stays in flight till the context ends.
    let poll = Iocb(abi::Iocb { opcode: abi::IOCB_CMD_POLL, fildes: never.as_raw_fd() as u32, ..Default::default() });
    assert_eq!(submit(&kernel, &mut [write, poll]).unwrap(), 2);
    assert_eq!(next(&kernel), Completion { key: 1, result: 4096 });
    assert_eq!(kernel.peek(), None);
    drop(kernel);
    assert!(pool.idle().is_empty());
}

#[test]
fn a_forked_child_leaves_its_parents_contexts_alone() {
    // C10: what is kept is this process's own.
    let (file, pool, other) = (Temp::in_memory(), pool(), eventfd());
    let mut buffer = [2; 8];
    let kernel = LinuxAio::from_pool(5, pool).unwrap();
    drop(LinuxAio::from_pool(6, pool).unwrap());
    kernel.wait(1, Some(other.as_fd()), NOW).unwrap();
    // SAFETY: the child only drops and looks, and ends without running anything of its parent's.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let stale = pool.get(6).is_none();
        drop(kernel);
        let code = if stale && pool.idle().is_empty() { 0 } else { 1 };
        // SAFETY: as above.
        unsafe { libc::_exit(code) };
    }
    let mut status = 0;
    // SAFETY: room for one status.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0);
    assert_eq!(one(&kernel, operation(Opcode::Write, &file.0, &mut buffer, 0)), 8);
    assert!(pool.get(6).is_some());
}

#[test]
fn the_kernel_takes_nothing_that_it_cannot_hand_over() {
    // E9: the trap. EFAULT comes before the cursor moves, with one event or many, awake or woken.
    let file = Temp::in_memory();
    let [kernel, _] = both(8);
    let mut buffer = [0; 8];
    let operation = operation(Opcode::Write, &file.0, &mut buffer, 0);
    let mut entries = [1, 2, 3].map(|key| kernel.prepare(&operation, key));
    assert_eq!(submit(&kernel, &mut entries).unwrap(), 3);
    for (min, nr) in [(1, 1), (3, 3), (0, 8), (8, 8)] {
        let head = kernel.header().head.load(Relaxed);
        // SAFETY: nobody can write the trap.
        let error = unsafe { abi::io_getevents(kernel.ring, min, nr, kernel.trap, None) }.unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EFAULT));
        assert_eq!(kernel.header().head.load(Relaxed), head);
    }
    assert_eq!([next(&kernel).key, next(&kernel).key, next(&kernel).key], [1, 2, 3]);
}
