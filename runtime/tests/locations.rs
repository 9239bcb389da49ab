//! Source locations in dumps and panics: they point at the caller's code, never into the library.
#![allow(clippy::redundant_closure)] // A function passed by itself would be called in `core`.

mod common;

use std::future::pending;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::rc::Rc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use common::in_child;
use coralio_runtime::{
    AioContext, Barrier, CoFd, CoMutex, CoQueue, CoRwLock, Coroutine, IoThread, JoinHandle, JoinSet, Notify, OnceCell,
    Semaphore, block_on, channel, ctrl_c, interval, interval_at, oneshot, race, scope, select, signal, sleep,
    sleep_until, spawn, spawn_now, suspend, timeout, timeout_at, wait_readable, wait_writable, watch, yield_now,
};

const HOUR: Duration = Duration::from_secs(3600);

/// Asserts that each location in the dump's lines about coroutines is in this file.
#[track_caller]
fn assert_locations(ctx: &AioContext, is_of_interest: impl Fn(&str) -> bool, count: usize) {
    let dump = ctx.dump().to_string();
    let lines: Vec<_> = dump.lines().filter(|line| line.contains("; created at ") && is_of_interest(line)).collect();
    assert_eq!(lines.len(), count, "{dump}");
    for line in lines {
        let locations: Vec<_> = line.split_whitespace().filter(|word| word.contains(".rs:")).collect();
        let ours = locations.iter().all(|location| location.starts_with(file!()));
        assert!(ours && locations.len() >= 2, "{line}");
    }
}

/// Returns both ends of a socket whose near end is full.
fn full_pair() -> (UnixStream, UnixStream) {
    let (mut near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    while near.write(&[0; 4096]).is_ok() {}
    (near, far)
}

#[test]
fn waits_show_their_callers() {
    // X11: whatever a coroutine waits for, the dump shows where the caller waits, and where it
    // created the coroutine
    let other = IoThread::start("other").unwrap();
    let remote = other.context().clone();
    AioContext::builder()
        .report_unwound(false)
        .run(|ctx| {
            let locked = Rc::new(CoMutex::new(()));
            let _locked = Box::leak(Box::new(Rc::clone(&locked))).lock();
            let written = Rc::new(CoRwLock::new(()));
            let _written = Box::leak(Box::new(Rc::clone(&written))).write();
            let read = Rc::new(CoRwLock::new(()));
            let _read = Box::leak(Box::new(Rc::clone(&read))).read();
            let none = Rc::new(Semaphore::new(0));
            let initializing = Rc::new(OnceCell::new());
            let theirs = Rc::clone(&initializing);
            let initializer = spawn(move || *theirs.get_or_init(|| suspend()));
            let (sender, receiver) = channel::bounded::<u8>(0);
            let (sender, receiver) = (Rc::new(sender), Rc::new(receiver));
            let full = Rc::new(channel::bounded::<u8>(0));
            let mut waits: Vec<JoinHandle<()>> = Vec::new();
            macro_rules! wait {
                ($($held:ident)*, $wait:expr) => {{
                    $(let $held = Rc::clone(&$held);)*
                    waits.push(spawn(move || _ = $wait));
                }};
            }
            wait!(, suspend());
            wait!(, sleep(HOUR));
            wait!(, timeout(HOUR, || sleep(HOUR)));
            wait!(locked, locked.lock());
            wait!(locked, locked.lock_cancellable());
            wait!(written, written.read());
            wait!(written, written.read_cancellable());
            wait!(written, written.write());
            wait!(written, written.write_cancellable());
            wait!(read, read.read().upgrade());
            wait!(none, none.acquire());
            wait!(none, none.acquire_many(2));
            wait!(none, none.acquire_cancellable());
            wait!(none, none.acquire_many_cancellable(2));
            wait!(receiver, receiver.recv());
            wait!(receiver, receiver.iter().next());
            wait!(full, full.0.send(0));
            wait!(, { let (_sender, receiver) = oneshot::channel::<u8>(); receiver.recv() });
            wait!(, CoQueue::new().wait(CoMutex::new(()).lock()));
            wait!(, CoQueue::new().wait_cancellable(CoMutex::new(()).lock()));
            wait!(locked, CoMutex::lock_owned(locked));
            wait!(locked, CoMutex::lock_owned_cancellable(locked));
            wait!(none, Semaphore::acquire_owned(none));
            wait!(none, Semaphore::acquire_many_owned(none, 2));
            wait!(none, Semaphore::acquire_owned_cancellable(none));
            wait!(, Barrier::new(2).wait());
            wait!(initializing, *initializing.get_or_init(|| ()));
            wait!(initializing, initializing.get_or_try_init(|| Ok::<_, ()>(())).copied());
            wait!(, { let (_sender, mut receiver) = watch::channel(0); receiver.changed() });
            wait!(, { let (_sender, mut receiver) = watch::channel(0); receiver.wait_for(|&n| n > 0) });
            wait!(, { let (sender, _receiver) = watch::channel(0); sender.closed() });
            wait!(, sleep_until(Instant::now() + HOUR));
            wait!(, timeout_at(Instant::now() + HOUR, || sleep(HOUR)));
            wait!(, interval_at(Instant::now() + HOUR, HOUR).tick());
            wait!(, Notify::new().notified());
            wait!(, Notify::new().wait_until(|| false));
            wait!(, block_on(pending::<()>()));
            wait!(, { let (_near, far) = UnixStream::pair().unwrap(); wait_readable(&far) });
            wait!(, ctrl_c());
            wait!(, signal(libc::SIGUSR2).unwrap().recv());
            wait!(, { let (near, _far) = full_pair(); wait_writable(&near) });
            wait!(, { let (_near, far) = UnixStream::pair().unwrap(); CoFd::new(far).unwrap().read(&mut [0]) });
            wait!(, { let (near, _far) = full_pair(); CoFd::new(near).unwrap().write(&[0; 1 << 20]) });
            wait!(, {
                let (_near, far) = UnixStream::pair().unwrap();
                CoFd::new(far).unwrap().read_with(|mut far| far.read(&mut [0]))
            });
            let sleeper = remote.clone();
            wait!(, sleeper.spawn(|| sleep(HOUR)).join());
            let sleeper = remote.clone();
            wait!(, sleeper.run_on(|| sleep(HOUR)));
            wait!(, spawn(|| suspend()).join());
            wait!(, scope(|s| drop(s.spawn(|| suspend()))));
            wait!(, scope(|s| s.spawn(|| suspend()).join()));
            wait!(, { let mut set = JoinSet::new(); set.spawn(|| suspend()); set.join_next() });
            wait!(, { let mut set = JoinSet::new(); set.spawn(|| suspend()); set.shutdown() });
            wait!(, select((|| suspend(), || suspend())));
            wait!(, race((|| suspend(), || suspend())));
            wait!(, race([|| suspend()]));
            wait!(, race(vec![|| suspend()]));
            waits.push(spawn_now(|| suspend()));
            waits.push(Coroutine::builder().spawn(|| suspend()).unwrap());
            while ctx.poll(false) {}
            let count = waits.len();
            // Others wait for twelve more: three coroutines, two of sets, six branches, an initializer.
            assert_locations(ctx, |line| line.contains(" waits for "), count + 12);
            drop(initializer);
            drop(sender);
        })
        .unwrap();
    other.stop().unwrap();
    AioContext::builder()
        .report_unwound(false)
        .run_coroutine(|ctx| {
            let ctx = ctx.clone();
            spawn(move || assert_locations(&ctx, |line| line.starts_with("    'main'"), 1)).join().unwrap();
        })
        .unwrap();
}

#[test]
fn wakes_show_their_callers() {
    // X11: for a scheduled coroutine, the dump shows where it was woken
    let run = AioContext::builder().report_unwound(false).run_coroutine(|ctx| {
        let (sender, receiver) = channel::bounded::<u8>(0);
        let (back, answers) = channel::bounded::<u8>(0);
        let (once, value) = oneshot::channel::<u8>();
        let none = Rc::new(Semaphore::new(0));
        let lock = Rc::new(CoRwLock::new(()));
        let queue = Rc::new((CoQueue::new(), CoMutex::new(())));
        let notify = Rc::new((Notify::new(), Notify::new()));
        let writing = lock.write();
        let suspended = [(); 4].map(|()| spawn(|| suspend()));
        let woken: Vec<JoinHandle<()>> = vec![
            spawn(move || _ = receiver.recv()),
            spawn(move || _ = back.send(0)),
            spawn(move || _ = value.recv()),
            spawn({
                let none = Rc::clone(&none);
                move || none.acquire().forget()
            }),
            spawn({
                let lock = Rc::clone(&lock);
                move || drop(lock.read())
            }),
            spawn({
                let queue = Rc::clone(&queue);
                move || drop(queue.0.wait(queue.1.lock()))
            }),
            spawn({
                let queue = Rc::clone(&queue);
                move || drop(queue.0.wait(queue.1.lock()))
            }),
            spawn({
                let notify = Rc::clone(&notify);
                move || _ = notify.0.notified()
            }),
            spawn({
                let notify = Rc::clone(&notify);
                move || _ = notify.1.notified()
            }),
        ];
        yield_now();
        sender.try_send(0).unwrap();
        answers.try_recv().unwrap();
        once.send(0).unwrap();
        none.add_permits(1);
        let reading = writing.downgrade();
        assert!(queue.0.wake_one());
        queue.0.wake_all();
        notify.0.notify_one();
        notify.1.notify_waiters();
        suspended[0].coroutine().wake();
        suspended[1].cancel();
        suspended[2].coroutine().waker().wake();
        suspended[3].coroutine().waker().cancel();
        assert_locations(ctx, |line| line.contains(" scheduled at"), woken.len() + suspended.len());
        drop(reading);
        scope(|s| {
            drop(s.spawn(|| suspend()));
            yield_now();
            s.cancel();
            assert_locations(ctx, |line| line.contains(" scheduled at"), 1);
        });
    });
    run.unwrap();
}

#[test]

fn panics_show_their_callers() {
    // X11: an invalid call panics at the caller's line. In a process of its own, for its panic hook
    if in_child("panics_show_their_callers").is_some_and(|child| {
        assert!(child.status.success(), "{}", String::from_utf8_lossy(&child.stderr));
        true
    }) {
        return;
    }
    static PLACES: Mutex<Vec<(String, u32)>> = Mutex::new(Vec::new());
    std::panic::set_hook(Box::new(|info| {
        let at: &Location<'_> = info.location().unwrap();
        PLACES.lock().unwrap().push((at.file().to_string(), at.line()));
    }));
    let calls: [&dyn Fn(); 19] = [
        &|| drop(spawn(|| ())),
        &|| drop(spawn_now(|| ())),
        &|| _ = Coroutine::new(|| ()),
        &|| drop(Coroutine::builder().create(|| ())),
        &|| drop(Coroutine::builder().spawn(|| ())),
        &|| scope(|_| ()),
        &|| suspend(),
        &|| yield_now(),
        &|| _ = sleep(HOUR),
        &|| _ = timeout(HOUR, || ()),
        &|| _ = timeout_at(Instant::now(), || ()),
        &|| _ = sleep_until(Instant::now()),
        &|| _ = interval(HOUR),
        &|| _ = interval_at(Instant::now(), Duration::ZERO),
        &|| select((|| (), || ())).0,
        &|| race([|| ()]),
        &|| _ = JoinSet::new().spawn(|| ()),
        &|| drop(CoFd::new(UnixStream::pair().unwrap().0)),
        &|| AioContext::run(|_| AioContext::run(|_| ())),
    ];
    for (index, call) in calls.iter().enumerate() {
        assert!(catch_unwind(AssertUnwindSafe(call)).is_err(), "call {index}");
        let places = std::mem::take(&mut *PLACES.lock().unwrap());
        let is_here = |(file, _): &(String, u32)| file.ends_with("locations.rs");
        if !places.iter().all(is_here) {
            let _ = std::panic::take_hook();
            panic!("call {index}: {places:?}");
        }
    }
}
