//! Watch channels: the latest value; no change is missed.

use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use coralio_runtime::{AioContext, Cancelled, Coroutine, RecvError, TimedOut, spawn, timeout, watch, yield_now};

#[test]
fn receiver_sees_the_latest_value_once() {
    // S11: values sent between two looks count as one change, also for a clone; a new subscriber has
    // seen the present value
    AioContext::run(|_| {
        let (sender, mut receiver) = watch::channel(0);
        assert_eq!((*receiver.borrow(), receiver.has_changed()), (0, Ok(false)));
        (1..=3).for_each(|n| sender.send(n).unwrap());
        let mut clone = receiver.clone();
        assert_eq!((*receiver.borrow(), receiver.has_changed()), (3, Ok(true)), "a look is no update");
        assert_eq!((receiver.changed(), receiver.has_changed()), (Ok(()), Ok(false)));
        assert_eq!((*clone.borrow_and_update(), clone.has_changed()), (3, Ok(false)));
        assert_eq!(sender.subscribe().has_changed(), Ok(false));
        assert_eq!((*sender.send_replace(4), *sender.borrow()), (3, 4));
    });
}

#[test]
fn waiting_receivers_are_woken_by_a_change() {
    // S11: all receivers that wait for a change, or for a condition, get it; a borrowed value blocks
    // no sender, and stays as it was
    AioContext::run(|_| {
        let (sender, receiver) = watch::channel(0);
        let waiting = [1, 2].map(|_| {
            let mut receiver = receiver.clone();
            spawn(move || {
                receiver.changed()?;
                Ok::<_, RecvError>(*receiver.borrow())
            })
        });
        let mut receiver = receiver;
        let large = spawn(move || receiver.wait_for(|&n| n > 1).map(|n| *n));
        let sending = spawn(move || {
            let before = sender.borrow();
            yield_now();
            sender.send(1).unwrap();
            yield_now();
            sender.send(2).unwrap();
            *before
        });
        assert_eq!(waiting.map(|task| task.join().unwrap()), [Ok(1), Ok(1)]);
        assert_eq!((large.join().unwrap(), sending.join().unwrap()), (Ok(2), 0));
    });
}

#[test]
fn channel_closes_when_one_side_is_gone() {
    // S11: receivers get the last change, and then an error; senders learn that no receiver is left
    AioContext::run(|ctx| {
        let (sender, mut receiver) = watch::channel(0);
        let second = sender.clone();
        sender.send(1).unwrap();
        drop(sender);
        let waiting = spawn(move || [(); 2].map(|()| receiver.changed()));
        ctx.poll(false);
        assert!(!waiting.is_finished(), "one sender is left");
        drop(second);
        assert_eq!(waiting.join().unwrap(), [Ok(()), Err(RecvError::Disconnected)]);

        let (sender, receiver) = watch::channel(0);
        let clone = receiver.clone();
        let sender = Rc::new(sender);
        let theirs = Rc::clone(&sender);
        let closed = spawn(move || theirs.closed());
        ctx.poll(false);
        drop(receiver);
        ctx.poll(false);
        assert_eq!((closed.is_finished(), sender.receiver_count(), sender.is_closed()), (false, 1, false));
        drop(clone);
        assert_eq!(closed.join().unwrap(), Ok(()));
        assert_eq!((sender.send(1), *sender.borrow()), (Err(1), 0));
    });
}

#[test]
fn cancelled_wait_loses_no_change() {
    // S11, S4: after a timeout or a cancellation the next call returns the change
    let run = AioContext::builder().run_coroutine(|ctx| {
        let (sender, mut receiver) = watch::channel(0);
        let theirs = sender.clone();
        let closed = spawn(move || theirs.closed());
        assert_eq!(timeout(Duration::from_millis(1), || receiver.changed()), Err(TimedOut));
        let me = Coroutine::current().unwrap();
        me.cancel();
        assert_eq!(receiver.changed(), Err(RecvError::Cancelled));
        sender.send(1).unwrap();
        assert_eq!(receiver.changed(), Ok(()));
        closed.cancel();
        ctx.poll(false);
        assert!(closed.is_finished());
        assert_eq!(closed.join().unwrap(), Err(Cancelled));
    });
    run.unwrap();
}

#[test]
fn replaced_value_is_dropped_outside_the_lock() {
    // S11: the destructor of a replaced value uses the channel
    struct Uses(Option<Arc<watch::Sender<Uses>>>);
    impl Drop for Uses {
        fn drop(&mut self) {
            if let Some(sender) = &self.0 {
                assert_eq!(sender.receiver_count(), 1);
            }
        }
    }
    let (sender, receiver) = watch::channel(Uses(None));
    let sender = Arc::new(sender);
    assert!(sender.send(Uses(Some(Arc::clone(&sender)))).is_ok());
    assert!(sender.send(Uses(None)).is_ok());
    drop(receiver);
}

#[test]
fn receiver_on_another_thread_sees_the_last_value() {
    // S11: a thread sends many values; the receiver misses some, but not the last
    let (sender, mut receiver) = watch::channel(0);
    let sending = thread::spawn(move || (1..=1000).for_each(|n| sender.send(n).unwrap()));
    let run = AioContext::builder().run_coroutine(|_| {
        let mut last = 0;
        while receiver.changed().is_ok() {
            let now = *receiver.borrow_and_update();
            assert!(now >= last, "values do not go back");
            last = now;
        }
        last
    });
    assert_eq!(run.unwrap(), 1000);
    sending.join().unwrap();
}
