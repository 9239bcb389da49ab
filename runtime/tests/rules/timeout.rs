//! Edge cases of timeouts, sleeps and cancelling: a deadline that has passed when the wait begins, or
//! passes at the moment of the grant.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::common::{Log, scaled};
use coralio_runtime::channel::{Receiver, SendError};
use coralio_runtime::{
    AioContext, Cancelled, CoMutex, CoQueue, CoRwLock, Coroutine, IoThread, RecvError, Semaphore, TimedOut,
    VirtualClock, channel, is_cancelled, oneshot, sleep, spawn, suspend, timeout, yield_now,
};

const MS: Duration = Duration::from_millis(1);

/// Runs `f` in a coroutine, in a context with a virtual clock.
fn with_virtual_clock(f: impl FnOnce(&VirtualClock) + 'static) {
    let clock = VirtualClock::new();
    let run = AioContext::builder().virtual_clock(clock.clone()).run_coroutine(|_| f(&clock));
    run.unwrap();
}

/// Starts `wait` under a timeout, grants its request, and lets the deadline pass before it resumes.
fn granted_as_time_is_over<T: 'static>(
    clock: &VirtualClock,
    wait: impl FnOnce() -> T + 'static,
    grant: impl FnOnce(),
) -> Result<T, TimedOut> {
    let waiter = spawn(move || timeout(MS, wait));
    yield_now();
    assert!(!waiter.is_finished(), "it waits");
    grant();
    clock.advance(MS);
    waiter.join().unwrap()
}

#[test]
fn grant_wins_over_a_later_deadline() {
    // S4: a waiter whose request is granted, and that resumes after its deadline, succeeds, and
    // nothing is lost
    with_virtual_clock(|clock| {
        let (sender, receiver) = channel::bounded(1);
        let received = granted_as_time_is_over(clock, move || receiver.recv(), || sender.try_send(7).unwrap());
        assert_eq!(received, Ok(Ok(7)));

        let (sender, receiver) = channel::bounded(0);
        let sent =
            granted_as_time_is_over(clock, move || sender.send(7).is_ok(), || assert_eq!(receiver.try_recv(), Ok(7)));
        assert_eq!(sent, Ok(true));

        let (sender, receiver) = oneshot::channel();
        let received = granted_as_time_is_over(clock, move || receiver.recv(), || sender.send(7).unwrap());
        assert_eq!(received, Ok(Ok(7)));

        let semaphore = Rc::new(Semaphore::new(0));
        let theirs = Rc::clone(&semaphore);
        let wait = move || theirs.acquire_cancellable().map(|permit| permit.forget());
        assert_eq!(granted_as_time_is_over(clock, wait, || semaphore.add_permits(1)), Ok(Ok(())));
        assert_eq!(semaphore.available(), 0);

        let mutex = Rc::new(CoMutex::new(()));
        let (theirs, guard) = (Rc::clone(&mutex), mutex.try_lock().unwrap());
        let wait = move || theirs.lock_cancellable().map(std::mem::forget);
        assert_eq!(granted_as_time_is_over(clock, wait, || drop(guard)), Ok(Ok(())));
        assert!(mutex.try_lock().is_none());

        let lock = Rc::new(CoRwLock::new(()));
        let (theirs, guard) = (Rc::clone(&lock), lock.try_write().unwrap());
        let wait = move || theirs.read_cancellable().map(std::mem::forget);
        assert_eq!(granted_as_time_is_over(clock, wait, || drop(guard)), Ok(Ok(())));
        assert!(lock.try_write().is_none());

        let shared = Rc::new((CoMutex::new(()), CoQueue::new()));
        let theirs = Rc::clone(&shared);
        let wait = move || theirs.1.wait_cancellable(theirs.0.lock()).map(drop);
        assert_eq!(granted_as_time_is_over(clock, wait, || assert!(shared.1.wake_one())), Ok(Ok(())));

        let other = spawn(|| {
            suspend();
            7
        });
        let coroutine = other.coroutine();
        let joined = granted_as_time_is_over(clock, move || other.join().unwrap(), || coroutine.enter());
        assert_eq!(joined, Ok(7));

        let other = IoThread::start("other").unwrap();
        let (sender, receiver) = channel::bounded(1);
        let handle = other.context().spawn(move || receiver.recv().unwrap());
        let finish = || {
            sender.try_send(7).unwrap();
            // Arrives behind the wake of the receiver, so the receiver has ended when this runs.
            let (done, is_done) = mpsc::channel();
            drop(other.context().spawn(move || done.send(()).unwrap()));
            is_done.recv().unwrap();
            other.stop().unwrap();
        };
        assert_eq!(granted_as_time_is_over(clock, move || handle.join().unwrap(), finish), Ok(7));
    });
}

#[test]
fn abandoned_wait_has_no_effect() {
    // S4: if the deadline passes first, the message stays with the sender, the permit in the
    // semaphore, the wake in the queue
    with_virtual_clock(|_| {
        let (sender, receiver) = channel::bounded(1);
        assert_eq!(timeout(MS, || receiver.recv()), Err(TimedOut));
        sender.try_send(7).unwrap();
        assert_eq!(receiver.recv(), Ok(7));

        let semaphore = Semaphore::new(1);
        assert_eq!(timeout(MS, || semaphore.acquire_many_cancellable(2).map(drop)), Err(TimedOut));
        assert_eq!(semaphore.available(), 1);

        let (mutex, queue) = (CoMutex::new(()), CoQueue::new());
        assert_eq!(timeout(MS, || queue.wait_cancellable(mutex.lock()).map(drop)), Err(TimedOut));
        assert!(!queue.wake_one() && mutex.try_lock().is_some());
    });
}

#[test]
fn query_of_cancellation_changes_nothing() {
    // S4: `is_cancelled` after the deadline does not make the timeout report a failed operation
    with_virtual_clock(|clock| {
        let timed = timeout(MS, || {
            clock.advance(MS);
            (is_cancelled(), is_cancelled())
        });
        assert_eq!(timed, Ok((true, true)));
    });
}

#[test]
fn receiver_under_short_timeouts_gets_each_message() {
    // S4: a thread sends while a coroutine receives under timeouts that expire at about the moment
    // of the grant
    let total = scaled(20_000) as u64;
    let (sender, receiver) = channel::bounded::<u64>(1);
    let sending = std::thread::spawn(move || {
        AioContext::builder().run_coroutine(|_| (0..total).for_each(|n| sender.send(n).unwrap())).unwrap();
    });
    let receive = |_: &AioContext| {
        let mut next = 0;
        loop {
            match timeout(Duration::from_nanos(1), || receiver.recv()) {
                Ok(Ok(n)) => {
                    assert_eq!(n, next, "each message arrives once, in order");
                    next += 1;
                }
                Ok(Err(RecvError::Disconnected)) => return next,
                Ok(Err(RecvError::Cancelled)) | Err(TimedOut) => {}
            }
        }
    };
    assert_eq!(AioContext::builder().run_coroutine(receive).unwrap(), total);
    sending.join().unwrap();
}

/// Returns how often another coroutine ran while the current one called `f` three times.
fn turns_of_others(mut f: impl FnMut()) -> u32 {
    let turns = Rc::new(Cell::new(0));
    let counted = Rc::clone(&turns);
    let other = spawn(move || {
        loop {
            counted.set(counted.get() + 1);
            yield_now();
        }
    });
    (0..3).for_each(|_| f());
    other.cancel();
    drop(other);
    turns.get()
}

#[test]
fn sleep_always_yields() {
    // S4: a sleep of zero duration, or one of a cancelled coroutine, lets others run, once each
    let run = AioContext::builder().report_unwound(false).run_coroutine(|_| {
        assert_eq!(turns_of_others(|| assert_eq!(sleep(Duration::ZERO), Ok(()))), 3);
        let cancelled = spawn(|| {
            Coroutine::current().unwrap().cancel();
            turns_of_others(|| assert_eq!(sleep(Duration::from_secs(3600)), Err(Cancelled)))
        });
        assert_eq!(cancelled.join().unwrap(), 3);
    });
    run.unwrap();
}

#[test]
fn expired_timeout_yields() {
    // S4: a wait whose deadline passes before it begins, or within the call, lets others run
    let run = AioContext::builder().report_unwound(false).run_coroutine(|_| {
        let (_sender, receiver) = channel::bounded::<()>(1);
        let wait = |time| timeout(time, || receiver.recv());
        assert_eq!(turns_of_others(|| assert_eq!(wait(Duration::ZERO), Err(TimedOut))), 3);
        assert!(turns_of_others(|| assert_eq!(wait(Duration::from_nanos(1)), Err(TimedOut))) >= 3);
    });
    run.unwrap();
}

#[test]
fn sleep_on_the_threads_own_stack_runs_the_loop() {
    // S4: outside a coroutine a sleep of zero duration runs one iteration of the loop
    AioContext::run(|_| {
        let log = Log::default();
        let theirs = log.clone();
        drop(spawn(move || theirs.add("ran")));
        sleep(Duration::ZERO).unwrap();
        assert_eq!(log.take(), "ran");
    });
}

#[test]
fn cancel_from_another_thread_ends_the_wait() {
    // S4, W1: a waker cancels from any thread, and notifies the loop
    AioContext::run(|ctx| {
        let task = spawn(|| sleep(Duration::MAX));
        ctx.poll(false);
        let waker = task.coroutine().waker();
        let other = thread::spawn(move || waker.cancel());
        assert_eq!(task.join().unwrap(), Err(Cancelled));
        other.join().unwrap();
    });
}

#[test]
fn next_coroutine_in_the_same_block_is_not_cancelled() {
    // S4, W4: cancelling an ended coroutine has no effect, even if its control block is reused; nor
    // does the flag stay in the block
    AioContext::run(|ctx| {
        let first = spawn(|| ());
        let (handle, waker) = (first.coroutine(), first.coroutine().waker());
        first.cancel();
        first.join().unwrap();
        for _ in 0..100 {
            let next = spawn(|| {
                yield_now();
                is_cancelled()
            });
            ctx.poll(false);
            handle.cancel();
            waker.cancel();
            assert!(!next.join().unwrap());
        }
    });
}

#[test]
fn errors_of_waits_convert_to_io_errors() {
    // S4: `?` in a function of I/O converts the errors of timeouts and channels; a cancellation is still
    // recognised
    fn waits(receiver: &Receiver<u8>) -> io::Result<()> {
        timeout(Duration::ZERO, || receiver.recv())??;
        Ok(())
    }
    AioContext::run(|_| {
        spawn(|| {
            let (sender, receiver) = channel::bounded(1);
            assert_eq!(waits(&receiver).unwrap_err().kind(), io::ErrorKind::TimedOut);
            drop(sender);
            assert_eq!(waits(&receiver).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
            let broken = io::Error::from(SendError::Disconnected(Cell::new(1)));
            assert_eq!(broken.kind(), io::ErrorKind::BrokenPipe);
            for error in [RecvError::Cancelled.into(), io::Error::from(SendError::Cancelled(1))] {
                assert!(Cancelled::is_cause_of(&error));
            }
        })
        .join()
        .unwrap();
    });
}
