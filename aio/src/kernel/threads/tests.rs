//! Real requests on real files, and the engine on top: page-cached in memory, on the disk, and past the page cache.

use super::kick::uninterrupted;
use super::*;
use crate::kernel::Opcode;
use crate::pool::tests::{idle_pool, pool_of, serve};
use crate::{AioContext, Engine, spawn, yield_now};
use std::cell::{Cell, RefCell};
use std::fs::{File, OpenOptions};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::thread;

const NOW: Option<Duration> = Some(Duration::ZERO);

#[repr(C, align(4096))]
#[derive(Clone)]
struct Page([u8; 4096]);

/// A file that goes with its guard.
struct Temp(File, PathBuf);

impl Temp {
    fn new(directory: &Path, flags: i32) -> Temp {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!("coralio-threads-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let path = directory.join(name);
        let file = OpenOptions::new().read(true).write(true).create_new(true).custom_flags(flags).open(&path);
        Temp(file.unwrap(), path)
    }

    fn in_memory() -> Temp {
        Temp::new(Path::new("/dev/shm"), 0)
    }

    /// In memory, on the disk through the page cache, and past it.
    fn all() -> [Temp; 3] {
        let disk = std::env::temp_dir();
        [Temp::in_memory(), Temp::new(&disk, 0), Temp::new(&disk, libc::O_DIRECT)]
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

fn sync() -> Operation {
    Operation { opcode: Opcode::SyncAll, fd: -1, addr: 0, len: 0, offset: 0 }
}

fn submit(kernel: &Threads, entries: &mut [Entry]) -> io::Result<usize> {
    // SAFETY: every test keeps its buffers till it has the completions.
    unsafe { kernel.submit(entries) }
}

/// So many that do nothing: they fail on a worker.
fn submit_bad(kernel: &Threads, keys: std::ops::Range<u64>) -> io::Result<usize> {
    let mut entries: Vec<_> = keys.map(|key| kernel.prepare(&sync(), key)).collect();
    submit(kernel, &mut entries)
}

/// Waits for the next completion, and takes it.
fn next(kernel: &Threads) -> Completion {
    loop {
        if let Some(completion) = kernel.peek() {
            kernel.commit();
            return completion;
        }
        kernel.wait(1, None, None).unwrap();
    }
}

fn one(kernel: &Threads, operation: Operation) -> i64 {
    assert_eq!(submit(kernel, &mut [kernel.prepare(&operation, 7)]).unwrap(), 1);
    let Completion { key, result } = next(kernel);
    assert_eq!(key, 7);
    result
}

fn eventfd() -> OwnedFd {
    // SAFETY: no memory is involved; the descriptor is new and nobody else's.
    unsafe { OwnedFd::from_raw_fd(libc::eventfd(0, libc::EFD_NONBLOCK)) }
}

fn signal(fd: &OwnedFd) {
    // SAFETY: eight bytes, as an eventfd wants.
    assert_eq!(unsafe { libc::write(fd.as_raw_fd(), 1u64.to_ne_bytes().as_ptr().cast(), 8) }, 8);
}

fn scaled(count: usize) -> usize {
    let divisor = std::env::var("CORALIO_TEST_DIVISOR").ok().and_then(|text| text.parse().ok()).unwrap_or(1);
    (count / divisor).max(2)
}

#[test]
fn all_operations_on_all_files() {
    // E15: read, write, vectored both, data sync, full sync.
    let kernel = Threads::new(4).unwrap();
    for file in Temp::all() {
        let (mut out, mut back) = (Page([0x5a; 4096]), Page([0; 4096]));
        assert_eq!(one(&kernel, operation(Opcode::Write, &file.0, &mut out.0, 4096)), 4096);
        assert_eq!(one(&kernel, operation(Opcode::Read, &file.0, &mut back.0, 4096)), 4096);
        assert!(back.0 == out.0);
        let (mut out, mut back) = ([Page([1; 4096]), Page([2; 4096])], [Page([0; 4096]), Page([0; 4096])]);
        for (opcode, pages) in [(Opcode::WriteVectored, &mut out), (Opcode::ReadVectored, &mut back)] {
            let vectors =
                pages.each_mut().map(|page| libc::iovec { iov_base: page.0.as_mut_ptr().cast(), iov_len: 4096 });
            let addr = vectors.as_ptr().expose_provenance() as u64;
            let operation = Operation { opcode, fd: file.0.as_raw_fd(), addr, len: 2, offset: 8192 };
            assert_eq!(one(&kernel, operation), 8192);
        }
        assert!(back[0].0 == out[0].0 && back[1].0 == out[1].0);
        for opcode in [Opcode::SyncData, Opcode::SyncAll] {
            assert_eq!(one(&kernel, Operation { opcode, fd: file.0.as_raw_fd(), ..sync() }), 0);
        }
        // Across the end it is short, behind it nothing: the file has sixteen KiB.
        let mut pages = [const { Page([9; 4096]) }; 2];
        // SAFETY: two pages lie one behind the other.
        let both = unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast::<u8>(), 8192) };
        assert_eq!(one(&kernel, operation(Opcode::Read, &file.0, both, 12288)), 4096);
        assert_eq!(one(&kernel, operation(Opcode::Read, &file.0, both, 1 << 20)), 0);
    }
}

#[test]
fn errors_are_completions() {
    // E14: what the system call says, each request's own; a batch is taken though one is bad.
    let kernel = Threads::new(8).unwrap();
    let file = Temp::in_memory();
    let mut buffer = [1; 16];
    let write = operation(Opcode::Write, &file.0, &mut buffer, 0);
    let reader = File::open(&file.1).unwrap();
    let (pipe, _writer) = io::pipe().unwrap();
    let bad = [
        (Operation { fd: -1, ..write }, libc::EBADF),
        (Operation { fd: reader.as_raw_fd(), ..write }, libc::EBADF),
        (Operation { offset: u64::MAX, ..write }, libc::EINVAL),
        (Operation { fd: pipe.as_raw_fd(), opcode: Opcode::Read, ..write }, libc::ESPIPE),
        (Operation { fd: pipe.as_raw_fd(), ..sync() }, libc::EINVAL),
    ];
    for (operation, errno) in &bad {
        assert_eq!(one(&kernel, *operation), -i64::from(*errno));
    }
    let mut entries = [(write, 0), (bad[0].0, 1), (write, 2)].map(|(operation, key)| kernel.prepare(&operation, key));
    assert_eq!(entries.each_ref().map(|entry| kernel.key(entry)), [0, 1, 2]);
    assert_eq!(submit(&kernel, &mut entries).unwrap(), 3);
    let mut results = [0; 3];
    for _ in 0..3 {
        let Completion { key, result } = next(&kernel);
        results[key as usize] = result;
    }
    assert_eq!(results, [16, -i64::from(libc::EBADF), 16]);
    assert_eq!(submit(&kernel, &mut []).unwrap(), 0);
}

#[test]
fn an_interrupted_call_is_made_again() {
    // E14: a signal is not the caller's affair; any other error is.
    let mut left = 3;
    let result = uninterrupted(|| {
        left -= 1;
        // SAFETY: errno is this thread's.
        unsafe { *libc::__errno_location() = libc::EINTR };
        if left > 0 { -1 } else { 512 }
    });
    assert_eq!((result, left), (512, 0));
    let refused = uninterrupted(|| {
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = libc::EIO };
        -1
    });
    assert_eq!(refused, -i64::from(libc::EIO));
}

#[test]
fn no_more_in_flight_than_the_depth() {
    // E2: a part is taken; "try again" when the queue is full, until a completion was committed.
    let kernel = Threads::new(3).unwrap();
    assert_eq!(submit_bad(&kernel, 0..5).unwrap(), 3);
    assert_eq!(submit_bad(&kernel, 3..5).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    kernel.wait(3, None, None).unwrap();
    assert!(kernel.peek().is_some());
    assert_eq!(submit_bad(&kernel, 3..5).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    kernel.commit();
    assert_eq!(submit_bad(&kernel, 3..5).unwrap(), 1);
    assert_eq!((0..3).map(|_| next(&kernel).key).max(), Some(3));
    assert_eq!(kernel.peek(), None);
}

#[test]
fn waiting_takes_nothing() {
    // E9: a completion is taken by peek and commit alone.
    let (kernel, other) = (Threads::new(8).unwrap(), eventfd());
    assert_eq!(submit_bad(&kernel, 4..7).unwrap(), 3);
    for (min, other) in [(3, None), (1, Some(other.as_fd())), (0, None), (99, Some(other.as_fd()))] {
        kernel.wait(min, other, if min == 99 { NOW } else { None }).unwrap();
    }
    for _ in 0..3 {
        assert_eq!(kernel.peek(), kernel.peek());
        assert!(kernel.peek().is_some());
        kernel.commit();
    }
    assert_eq!(kernel.peek(), None);
}

#[test]
fn a_sleep_is_ended_by_completions() {
    // W3: at any moment: the thread that works is as quick as the one that goes to sleep. For one, and for several.
    for depth in [1, 2, 5] {
        let kernel = Threads::new(depth).unwrap();
        for round in 0..scaled(3000) as u64 {
            assert_eq!(submit_bad(&kernel, 0..u64::from(depth)).unwrap(), depth as usize);
            if round % 2 == 0 {
                kernel.wait(depth, None, None).unwrap();
                // For one alone it may end early: by a kick for a completion that was reaped without a sleep.
                assert!(depth == 1 || kernel.target.completions.has(depth), "all of them were waited for");
            }
            let mut keys: Vec<_> = (0..depth).map(|_| next(&kernel).key).collect();
            keys.sort_unstable();
            assert_eq!(keys, (0..u64::from(depth)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn a_sleep_is_ended_by_the_other_descriptor() {
    // W3: also while requests are in flight that do not complete.
    let pool = idle_pool();
    let kernel = Threads::on(pool, 4).unwrap();
    let other = eventfd();
    assert_eq!(submit_bad(&kernel, 0..2).unwrap(), 2);
    thread::scope(|scope| {
        scope.spawn(|| signal(&other));
        kernel.wait(2, Some(other.as_fd()), None).unwrap();
    });
    assert_eq!(kernel.peek(), None);
    serve(pool);
    assert_eq!([next(&kernel).key, next(&kernel).key], [0, 1], "one thread takes them in order");
}

#[test]
fn a_sleep_ends_by_time_or_signal() {
    // X7 and "a signal ends it early, which is not an error".
    extern "C" fn ignore(_: i32) {}
    // SAFETY: the handler does nothing.
    unsafe { libc::signal(libc::SIGUSR2, ignore as extern "C" fn(i32) as usize) };
    let (kernel, other) = (Threads::new(2).unwrap(), eventfd());
    for timeout in [Duration::ZERO, Duration::from_micros(1500)] {
        kernel.wait(1, Some(other.as_fd()), Some(timeout)).unwrap();
        kernel.wait(2, None, Some(timeout)).unwrap();
    }
    for timeout in [None, Some(Duration::MAX)] {
        let (sleeper, up) = (AtomicU64::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            let result = scope.spawn(|| {
                // SAFETY: it only says who we are.
                sleeper.store(unsafe { libc::pthread_self() }, Ordering::Release);
                let result = kernel.wait(1, Some(other.as_fd()), timeout);
                up.store(true, Ordering::Release);
                result
            });
            // Till one of them finds it asleep.
            while !up.load(Ordering::Acquire) {
                let sleeper = sleeper.load(Ordering::Acquire);
                if sleeper != 0 {
                    // SAFETY: the thread is not joined yet.
                    unsafe { libc::pthread_kill(sleeper, libc::SIGUSR2) };
                }
                thread::yield_now();
            }
            result.join().unwrap().unwrap();
        });
    }
}

#[test]
fn two_who_wait_are_refused() {
    // E9: a kick wakes one; the other would sleep for ever.
    let (kernel, other) = (Threads::new(2).unwrap(), eventfd());
    assert!(kernel.target.completions.going_to_sleep());
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| kernel.wait(1, Some(other.as_fd()), NOW)));
    let payload = caught.unwrap_err();
    assert!(payload.downcast_ref::<&str>().unwrap().contains("only its home thread may"));
    kernel.target.completions.awake();
    kernel.wait(1, Some(other.as_fd()), NOW).unwrap();
}

#[test]
fn depth_has_limits() {
    // E14: the message says cause and remedy.
    for depth in [0, MAX_DEPTH + 1, u32::MAX] {
        let error = Threads::new(depth).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput);
        assert!(error.to_string().contains("1..=32768: 32 suits most"), "{error}");
    }
    assert_eq!(Threads::new(33).unwrap().capacity(), 33);
}

#[test]
fn it_ends_after_its_requests() {
    // E13: dropped with requests in flight, it waits for them, those included that no thread has taken yet.
    let (file, pool) = (Temp::in_memory(), idle_pool());
    let mut buffer = [3; 16];
    let kernel = Threads::on(pool, 8).unwrap();
    let mut entries: Vec<_> =
        (0..8).map(|key| kernel.prepare(&operation(Opcode::Write, &file.0, &mut buffer, key * 16), key)).collect();
    assert_eq!(submit(&kernel, &mut entries).unwrap(), 8);
    let target = Arc::clone(&kernel.target);
    let waits = thread::spawn(move || drop(kernel));
    // It has announced its sleep: nothing but the requests will end it.
    while !target.completions.is_asleep() {
        thread::yield_now();
    }
    serve(pool);
    waits.join().unwrap();
    assert_eq!(file.0.metadata().unwrap().len(), 128);
}

fn rounds_until(done: impl Fn() -> bool) {
    while !done() {
        yield_now();
    }
}

/// Runs `f` as a coroutine, with an engine on `kernel`.
fn with_engine<R>(kernel: Threads, f: impl FnOnce(&AioContext, &Arc<Engine<Threads>>) -> R) -> R {
    let depth = kernel.capacity();
    let run = AioContext::builder().unwind_report(false).run_coroutine(|context| {
        let engine = Engine::<Threads>::attach(kernel, depth).unwrap();
        f(context, &engine)
    });
    run.unwrap()
}

fn transfer(engine: &Engine<Threads>, opcode: Opcode, fd: i32, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let operation = Operation { opcode, fd, addr: buffer.as_mut_ptr() as u64, len: buffer.len() as u64, offset };
    // SAFETY: the buffer is borrowed exclusively until this returns or unwinds.
    unsafe { engine.transfer(&operation) }
}

#[test]
fn every_block_is_what_was_written_there_last() {
    // E13, E16: coroutines with blocks of their own on one file, at depth 1 to 1024, against a model
    for file in Temp::all() {
        for depth in [1, 2, 7, 32, 1024] {
            let model = with_engine(Threads::new(depth).unwrap(), |_, engine| {
                let model = Rc::new(RefCell::new(vec![0u8; 64]));
                let workers: Vec<_> = (0..16u64)
                    .map(|me| {
                        let (engine, model, fd) = (Arc::clone(engine), Rc::clone(&model), file.0.as_raw_fd());
                        spawn(move || {
                            let mut page = Page([0; 4096]);
                            for round in 0..scaled(12) as u64 {
                                let block = me * 4 + (round * 7 + me) % 4;
                                let value = (round * 16 + me + 1) as u8;
                                page.0.fill(value);
                                let offset = block * 4096;
                                assert_eq!(transfer(&engine, Opcode::Write, fd, &mut page.0, offset).unwrap(), 4096);
                                model.borrow_mut()[block as usize] = value;
                                page.0.fill(0);
                                assert_eq!(transfer(&engine, Opcode::Read, fd, &mut page.0, offset).unwrap(), 4096);
                                assert!(page.0.iter().all(|&byte| byte == value));
                            }
                        })
                    })
                    .collect();
                workers.into_iter().for_each(|worker| worker.join().unwrap());
                let stats = engine.stats();
                assert_eq!((stats.in_flight, stats.pending, stats.requests), (0, 0, stats.completions));
                model.take()
            });
            for (block, value) in model.into_iter().enumerate().filter(|&(_, value)| value != 0) {
                let mut page = Page([0; 4096]);
                file.0.read_exact_at(&mut page.0, block as u64 * 4096).unwrap();
                assert!(page.0.iter().all(|&byte| byte == value), "block {block}");
            }
        }
    }
}

#[test]
fn a_hundred_thousand_and_none_is_lost() {
    // E9, W3: while another thread polls the same context, reaping behind the back of the one that sleeps
    let file = Temp::in_memory();
    file.0.set_len(64 * 512).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let total = scaled(100_000) as u64;
    let foreign = with_engine(Threads::new(32).unwrap(), |context, engine| {
        let foreign = thread::spawn({
            let (context, over) = (context.clone(), Arc::clone(&over));
            move || {
                while !over.load(Ordering::Relaxed) {
                    context.poll(false);
                    thread::yield_now();
                }
            }
        });
        let done = Rc::new(Cell::new(0));
        let readers: Vec<_> = (0..64u64)
            .map(|me| {
                let (engine, done, fd) = (Arc::clone(engine), Rc::clone(&done), file.0.as_raw_fd());
                spawn(move || {
                    let mut buffer = [1; 512];
                    while done.get() < total {
                        done.set(done.get() + 1);
                        assert_eq!(transfer(&engine, Opcode::Read, fd, &mut buffer, me * 512).unwrap(), 512);
                    }
                })
            })
            .collect();
        readers.into_iter().for_each(|reader| reader.join().unwrap());
        over.store(true, Ordering::Relaxed);
        let stats = engine.stats();
        assert_eq!((stats.completions, stats.in_flight, stats.pending), (total, 0, 0));
        foreign
    });
    // Not before: it may be waiting for the lock, which the loop has that runs us.
    foreign.join().unwrap();
}

#[test]
fn a_kick_ends_the_sleep() {
    // X6: the loop sleeps on requests that do not complete, and another thread brings it work
    let pool = idle_pool();
    with_engine(Threads::on(pool, 4).unwrap(), |context, engine| {
        let reader = spawn({
            let engine = Arc::clone(engine);
            move || transfer(&engine, Opcode::Read, -1, &mut [0; 8], 0).unwrap_err().raw_os_error()
        });
        rounds_until(|| engine.stats().in_flight == 1);
        for number in 0..scaled(200) {
            let context = context.clone();
            let work = thread::spawn(move || context.spawn(move || number));
            let remote = work.join().unwrap();
            assert_eq!(remote.join().unwrap(), number);
        }
        assert!(!reader.is_finished());
        serve(pool);
        assert_eq!(reader.join().unwrap(), Some(libc::EBADF));
    });
}

/// Notes what its buffer has when it goes.
struct Lent(Page, Rc<Cell<usize>>);

impl Drop for Lent {
    fn drop(&mut self) {
        self.1.set(self.1.get() + usize::from(self.0.0.iter().all(|&byte| byte == 7)));
    }
}

#[test]
fn the_context_ends_with_requests_in_flight() {
    // E13, C9: unwound only after the workers have filled the buffers; none of them has begun when the context ends
    let (file, pool) = (Temp::in_memory(), idle_pool());
    file.0.write_all_at(&vec![7; 12 * 4096], 0).unwrap();
    let filled = Rc::new(Cell::new(0));
    let kernel = Threads::on(pool, 8).unwrap();
    let target = Arc::clone(&kernel.target);
    let helper = thread::spawn(move || {
        // Until the one that ends the context sleeps on its requests.
        while !target.completions.is_asleep() {
            thread::yield_now();
        }
        serve(pool);
    });
    with_engine(kernel, |_, engine| {
        for number in 0..12 {
            let (engine, filled, fd) = (Arc::clone(engine), Rc::clone(&filled), file.0.as_raw_fd());
            drop(spawn(move || {
                let mut lent = Lent(Page([0; 4096]), filled);
                transfer(&engine, Opcode::Read, fd, &mut lent.0.0, number * 4096).unwrap();
                crate::suspend();
            }));
        }
        rounds_until(|| engine.stats().in_flight == 8);
        assert_eq!(engine.stats().pending, 4);
    });
    helper.join().unwrap();
    assert_eq!(filled.get(), 12);
}

#[test]
fn engines_share_the_pool() {
    // E16: several contexts on one pool, of fewer threads than they have requests
    let pool = pool_of(2, Duration::MAX);
    let file = Temp::in_memory();
    file.0.write_all_at(&[7; 4096], 0).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                with_engine(Threads::on(pool, 16).unwrap(), |_, engine| {
                    let readers: Vec<_> = (0..16)
                        .map(|_| {
                            let (engine, fd) = (Arc::clone(engine), file.0.as_raw_fd());
                            spawn(move || {
                                for _ in 0..scaled(200) {
                                    let mut page = Page([0; 4096]);
                                    assert_eq!(transfer(&engine, Opcode::Read, fd, &mut page.0, 0).unwrap(), 4096);
                                    assert!(page.0.iter().all(|&byte| byte == 7));
                                }
                            })
                        })
                        .collect();
                    readers.into_iter().for_each(|reader| reader.join().unwrap());
                });
            });
        }
    });
}

#[test]
fn what_no_worker_has_begun_is_taken_back() {
    // E11: a cancelled request that still waits for a thread completes at once, and is not done; one of another engine with the
    // same key is left alone.
    let pool = idle_pool();
    let (kernel, other) = (Threads::on(pool, 4).unwrap(), Threads::on(pool, 4).unwrap());
    assert_eq!((submit_bad(&other, 1..2).unwrap(), submit_bad(&kernel, 0..3).unwrap()), (1, 3));
    kernel.cancel(1);
    kernel.cancel(9);
    assert_eq!(next(&kernel), Completion { key: 1, result: -i64::from(libc::ECANCELED) });
    assert_eq!((kernel.peek(), other.peek()), (None, None));
    serve(pool);
    let bad = |key| Completion { key, result: -i64::from(libc::EBADF) };
    assert_eq!([next(&other), next(&kernel), next(&kernel)], [bad(1), bad(0), bad(2)]);
}
