//! Notify: one permit, or all that wait; no notification is lost.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use crate::common::{Log, panic_of};
use coralio_runtime::{
    AioContext, Cancelled, IoThread, JoinHandle, Notify, TimedOut, VirtualClock, spawn, timeout, yield_now,
};

/// Spawns a coroutine that waits for a notification, and logs it.
fn wait(notify: &Rc<Notify>, log: &Log, name: &'static str) -> JoinHandle<Result<(), Cancelled>> {
    let (notify, log) = (Rc::clone(notify), log.clone());
    spawn(move || {
        notify.notified()?;
        log.add(name);
        Ok(())
    })
}

#[test]
fn notify_one_stores_a_single_permit() {
    // S7: without a waiter one permit is stored, however often `notify_one` is called
    AioContext::run(|ctx| {
        let (notify, log) = (Rc::new(Notify::new()), Log::default());
        (0..3).for_each(|_| notify.notify_one());
        let waiters = ["a", "b", "c"].map(|name| wait(&notify, &log, name));
        ctx.poll(false);
        assert_eq!(log.take(), "a");
        notify.notify_one();
        ctx.poll(false);
        assert_eq!(log.take(), "b");
        notify.notify_one();
        waiters.into_iter().for_each(|waiter| assert_eq!(waiter.join().unwrap(), Ok(())));
        assert_eq!(log.take(), "c");
        let said = panic_of(|| notify.notified());
        assert!(said.contains("would block outside a coroutine"), "{said}");
    });
}

#[test]
fn notify_waiters_wakes_those_that_wait() {
    // S7: all that wait at the time are woken, in order of arrival; no permit is stored for later
    // ones
    AioContext::run(|ctx| {
        let (notify, log) = (Rc::new(Notify::new()), Log::default());
        notify.notify_waiters();
        let early = ["a", "b", "c"].map(|name| wait(&notify, &log, name));
        ctx.poll(false);
        assert_eq!(log.take(), "");
        notify.notify_waiters();
        let late = wait(&notify, &log, "late");
        ctx.poll(false);
        assert_eq!(log.take(), "a b c");
        early.into_iter().for_each(|waiter| assert_eq!(waiter.join().unwrap(), Ok(())));
        assert!(!late.is_finished());
        late.cancel();
        assert_eq!(late.join().unwrap(), Err(Cancelled));
    });
}

#[test]
fn notification_of_an_unwound_waiter_goes_to_the_next() {
    // S7, C9: the context ends before a notified waiter has run: the notification by `notify_one`
    // goes to a waiter of another context, or is stored; that by `notify_waiters` ends with it
    let other = IoThread::start("other").unwrap();
    let notify = Arc::new(Notify::new());
    let unwind_notified = |notified: fn(&Notify)| {
        let run = AioContext::builder().report_unwound(false).run(|ctx| {
            let theirs = Arc::clone(&notify);
            drop(spawn(move || theirs.notified()));
            ctx.poll(false);
            notified(&notify);
        });
        run.unwrap();
    };
    unwind_notified(Notify::notify_one);
    let theirs = Arc::clone(&notify);
    assert_eq!(other.context().spawn(move || theirs.notified()).join().unwrap(), Ok(()));
    unwind_notified(Notify::notify_waiters);
    AioContext::run(|_| panic_of(|| notify.notified()));
    other.stop().unwrap();
}

#[test]
fn wait_can_be_cancelled() {
    // S7, S4: a cancelled or timed-out wait consumes no notification; one that was notified before
    // its deadline succeeds
    let clock = VirtualClock::new();
    let run = AioContext::builder().virtual_clock(clock.clone()).run_coroutine(|_| {
        let notify = Rc::new(Notify::new());
        let late = timeout(Duration::from_millis(1), || notify.notified());
        assert_eq!(late, Err(TimedOut));
        notify.notify_one();
        assert_eq!(timeout(Duration::ZERO, || notify.notified()), Ok(Ok(())));

        let theirs = Rc::clone(&notify);
        let waiter = spawn(move || timeout(Duration::from_millis(1), || theirs.notified()));
        yield_now();
        notify.notify_one();
        clock.advance(Duration::from_millis(1));
        assert_eq!(waiter.join().unwrap(), Ok(Ok(())));
    });
    run.unwrap();
}

#[test]
fn wait_until_misses_nothing_between_check_and_wait() {
    // S7: `notify_waiters` is called after the condition was checked, and before the wait
    let run = AioContext::builder().run_coroutine(|_| {
        let (notify, checks) = (Notify::new(), Cell::new(0));
        let waited = notify.wait_until(|| {
            checks.set(checks.get() + 1);
            if checks.get() == 1 {
                notify.notify_waiters();
            }
            checks.get() == 2
        });
        assert_eq!((waited, checks.get()), (Ok(()), 2));
    });
    run.unwrap();
}

#[test]
fn threads_notify_each_other() {
    // S7: a notification from a thread without a context, and between contexts
    let shared = Arc::new((AtomicBool::new(false), Notify::new()));
    let theirs = Arc::clone(&shared);
    let other = thread::spawn(move || {
        let wait = |_: &AioContext| {
            theirs.1.wait_until(|| theirs.0.load(Ordering::Relaxed))?;
            theirs.1.notified()
        };
        AioContext::builder().run_coroutine(wait).unwrap()
    });
    shared.0.store(true, Ordering::Relaxed);
    shared.1.notify_waiters();
    shared.1.notify_one();
    while !other.is_finished() {
        shared.1.notify_one();
        thread::yield_now();
    }
    assert_eq!(other.join().unwrap(), Ok(()));
}
