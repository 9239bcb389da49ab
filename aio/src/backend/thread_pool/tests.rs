//! Real requests on real files: conformance, behaviour specific to the thread pool, and the engine
//! on top.

use super::super::conformance::{
    self, NOW, Page, Temp, bad, cancel, commit, eventfd, next, one, operation, peek, scaled, submit, wait,
};
use super::*;
use crate::backend::Opcode;
use crate::backend::pool::tests::{idle_pool, pool_of, serve};
use crate::backend::system_call::uninterrupted;
use crate::engine::Engine;
use coralio_runtime::{AioContext, spawn, yield_now};
use std::cell::Cell;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

/// Creates a backend on the process's pool, and one on a pool with a single thread, which works in
/// order.
fn backends(depth: u32) -> Vec<ThreadPool> {
    vec![ThreadPool::new(depth).unwrap(), ThreadPool::on(pool_of(1, Duration::MAX), depth).unwrap()]
}

conformance::tests!(backends);

/// Submits one request per key, each of which does nothing but fail on a worker.
fn submit_bad(backend: &ThreadPool, keys: std::ops::Range<u64>) -> io::Result<usize> {
    let mut entries: Vec<_> = keys.map(|key| backend.prepare(&bad(), key)).collect();
    submit(backend, &mut entries)
}

#[test]
fn errors_are_reported_as_completions() {
    // E14: each completion has its own request's error; a batch is accepted although one request is
    // bad.
    let backend = ThreadPool::new(8).unwrap();
    let file = Temp::in_memory();
    let mut buffer = [1; 16];
    let write = operation(Opcode::Write, &file.0, &mut buffer, 0);
    let reader = File::open(&file.1).unwrap();
    let (socket, _peer) = UnixStream::pair().unwrap();
    let refused = [
        (Operation { fd: -1, ..write }, libc::EBADF),
        (Operation { fd: reader.as_raw_fd(), ..write }, libc::EBADF),
        (Operation { offset: u64::MAX, ..write }, libc::EINVAL),
        (Operation { fd: socket.as_raw_fd(), opcode: Opcode::Read, ..write }, libc::ESPIPE),
        (Operation { fd: socket.as_raw_fd(), ..bad() }, libc::EINVAL),
    ];
    for (operation, errno) in &refused {
        assert_eq!(one(&backend, *operation), -i64::from(*errno));
    }
    let mut entries =
        [(write, 0), (refused[0].0, 1), (write, 2)].map(|(operation, key)| backend.prepare(&operation, key));
    assert_eq!(entries.each_ref().map(|entry| backend.key(entry)), [0, 1, 2]);
    assert_eq!(submit(&backend, &mut entries).unwrap(), 3);
    let mut results = [0; 3];
    for _ in 0..3 {
        let Completion { key, result } = next(&backend);
        results[key as usize] = result;
    }
    assert_eq!(results, [16, -i64::from(libc::EBADF), 16]);
    assert_eq!(submit(&backend, &mut []).unwrap(), 0);
}

#[test]
fn interrupted_call_is_retried() {
    // E14: EINTR is retried and hidden from the caller; any other error is returned.
    let mut left = 3;
    let result = uninterrupted(|| {
        left -= 1;
        // SAFETY: errno is thread-local.
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
fn completion_makes_room_when_it_is_consumed() {
    // E2: room is made by commit, not by the completion or by peek.
    let backend = ThreadPool::new(3).unwrap();
    assert_eq!(submit_bad(&backend, 0..5).unwrap(), 3);
    assert_eq!(submit_bad(&backend, 3..5).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    wait(&backend, None, None).unwrap();
    assert!(peek(&backend).is_some());
    assert_eq!(submit_bad(&backend, 3..5).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    commit(&backend);
    assert_eq!(submit_bad(&backend, 3..5).unwrap(), 1);
    assert_eq!((0..3).map(|_| next(&backend).key).max(), Some(3));
    assert_eq!(peek(&backend), None);
}

#[test]
fn sleep_can_be_ended_at_any_moment() {
    // W3: workers complete one request or several while the reader goes to sleep
    for depth in [1, 2, 5] {
        let backend = ThreadPool::new(depth).unwrap();
        for round in 0..scaled(3000) as u64 {
            assert_eq!(submit_bad(&backend, 0..u64::from(depth)).unwrap(), depth as usize);
            if round % 2 == 0 {
                wait(&backend, None, None).unwrap();
            }
            let mut keys: Vec<_> = (0..depth).map(|_| next(&backend).key).collect();
            keys.sort_unstable();
            assert_eq!(keys, (0..u64::from(depth)).collect::<Vec<_>>());
        }
    }
}

#[test]
fn readable_descriptor_ends_a_sleep() {
    // W3: also while requests in flight do not complete.
    let pool = idle_pool();
    let backend = ThreadPool::on(pool, 4).unwrap();
    let other = eventfd();
    assert_eq!(submit_bad(&backend, 0..2).unwrap(), 2);
    thread::scope(|scope| {
        scope.spawn(|| other.notify());
        wait(&backend, Some(other.as_fd()), None).unwrap();
    });
    assert_eq!(peek(&backend), None);
    serve(pool);
    assert_eq!([next(&backend).key, next(&backend).key], [0, 1], "one thread runs requests in order");
}

#[test]
fn second_waiter_is_rejected() {
    // E9: a signal wakes one waiter; a second one would sleep forever.
    let (backend, other) = (ThreadPool::new(2).unwrap(), eventfd());
    assert!(backend.sink.completions.going_to_sleep());
    let caught = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| wait(&backend, Some(other.as_fd()), NOW)));
    let payload = caught.unwrap_err();
    assert!(payload.downcast_ref::<&str>().unwrap().contains("only its home thread may"));
    backend.sink.completions.awake();
    wait(&backend, Some(other.as_fd()), NOW).unwrap();
}

#[test]
fn depth_out_of_range_is_rejected() {
    // E14: see `check_depths`.
    conformance::check_depths(ThreadPool::new);
}

#[test]
fn backend_ends_after_its_requests() {
    // E13: dropped with requests in flight, the backend waits for them, including those that no
    // thread has taken yet.
    let (file, pool) = (Temp::in_memory(), idle_pool());
    let mut buffer = [3; 16];
    let backend = ThreadPool::on(pool, 8).unwrap();
    let mut entries: Vec<_> =
        (0..8).map(|key| backend.prepare(&operation(Opcode::Write, &file.0, &mut buffer, key * 16), key)).collect();
    assert_eq!(submit(&backend, &mut entries).unwrap(), 8);
    let sink = Arc::clone(&backend.sink);
    let waits = thread::spawn(move || drop(backend));
    // The sleep is announced: only the requests can end it.
    while !sink.completions.is_asleep() {
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

/// Runs `f` as a coroutine, with an engine on `backend`.
fn with_engine<R>(backend: ThreadPool, f: impl FnOnce(&AioContext, &Arc<Engine<ThreadPool>>) -> R) -> R {
    let depth = backend.capacity();
    let run = AioContext::builder().report_unwound(false).run_coroutine(|context| {
        let engine = Engine::<ThreadPool>::attach(backend, depth).unwrap();
        f(context, &engine)
    });
    run.unwrap()
}

fn transfer(engine: &Engine<ThreadPool>, opcode: Opcode, fd: i32, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let operation = Operation { opcode, fd, addr: buffer.as_mut_ptr() as u64, len: buffer.len() as u64, offset };
    // SAFETY: the buffer is borrowed exclusively until this returns or unwinds.
    unsafe { engine.transfer(&operation) }
}

#[test]
fn no_completion_of_a_hundred_thousand_is_lost() {
    // E9, W3: no request is lost while another thread polls the same context, reaping during the
    // home thread's sleep
    let file = Temp::in_memory();
    file.0.set_len(64 * 512).unwrap();
    let over = Arc::new(AtomicBool::new(false));
    let total = scaled(100_000) as u64;
    let foreign = with_engine(ThreadPool::new(32).unwrap(), |context, engine| {
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
    // Joined only now: the thread may be waiting for the lock, which the loop holds while it runs
    // the closure above.
    foreign.join().unwrap();
}

#[test]
fn notification_ends_the_sleep() {
    // X6: the loop sleeps on requests that do not complete, and another thread schedules work
    let pool = idle_pool();
    with_engine(ThreadPool::on(pool, 4).unwrap(), |context, engine| {
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

#[test]
fn context_end_cancels_requests_that_no_worker_has_begun() {
    // C9: the pool has no worker, so waiting for one of these requests would never end
    let file = Temp::in_memory();
    let backend = ThreadPool::on(idle_pool(), 8).unwrap();
    let counted = Rc::new(Cell::new(0));
    with_engine(backend, |_, engine| {
        for number in 0..12 {
            let (engine, fd, lent) = (Arc::clone(engine), file.0.as_raw_fd(), Rc::clone(&counted));
            drop(spawn(move || {
                let _unwound = CountsDrop(lent);
                let _ = transfer(&engine, Opcode::Read, fd, &mut [0; 8], number);
                panic!("a request of an ended context returned");
            }));
        }
        rounds_until(|| engine.stats().in_flight == 8);
        assert_eq!(engine.stats().pending, 4);
    });
    assert_eq!(counted.get(), 12);
}

struct CountsDrop(Rc<Cell<usize>>);

impl Drop for CountsDrop {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

#[test]
fn engines_share_the_pool() {
    // E16: several contexts share a pool with fewer threads than they have requests
    let pool = pool_of(2, Duration::MAX);
    let file = Temp::in_memory();
    file.0.write_all_at(&[7; 4096], 0).unwrap();
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                with_engine(ThreadPool::on(pool, 16).unwrap(), |_, engine| {
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
fn requests_that_no_worker_has_begun_are_cancelled() {
    // E11: a cancelled request that no worker has begun completes immediately, without being
    // performed; a request of another engine with the same key is unaffected.
    let pool = idle_pool();
    let (backend, other) = (ThreadPool::on(pool, 4).unwrap(), ThreadPool::on(pool, 4).unwrap());
    assert_eq!((submit_bad(&other, 1..2).unwrap(), submit_bad(&backend, 0..3).unwrap()), (1, 3));
    cancel(&backend, 1);
    cancel(&backend, 9);
    assert_eq!(next(&backend), Completion { key: 1, result: -i64::from(libc::ECANCELED) });
    assert_eq!((peek(&backend), peek(&other)), (None, None));
    serve(pool);
    let bad = |key| Completion { key, result: -i64::from(libc::EBADF) };
    assert_eq!([next(&other), next(&backend), next(&backend)], [bad(1), bad(0), bad(2)]);
}
