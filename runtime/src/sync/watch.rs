//! A watch channel: the latest value, for any number of receivers.
//!
//! The value is in an `Arc`, which a receiver clones under a short lock. So a borrowed value can be
//! kept across a suspension, and blocks no sender.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::coroutine::{Cancelled, WaitReason};
use crate::sync::{Notify, RecvError};
use crate::sys::opaque_debug;

/// Creates a channel that holds one value, at first `value`. Receivers see the latest value; values
/// in between may be missed. It serves coroutines of any number of contexts and threads.
///
/// ```
/// use coralio::spawn;
/// use coralio::context::AioContext;
/// use coralio::sync::watch;
///
/// AioContext::run(|ctx| {
///     let (limit, mut watched) = watch::channel(10);
///     let task = spawn(move || {
///         let mut seen = vec![*watched.borrow()];
///         while watched.changed().is_ok() {
///             seen.push(*watched.borrow());
///         }
///         seen // the sender is gone
///     });
///     ctx.poll(false);
///     limit.send(20).unwrap();
///     drop(limit);
///     assert_eq!(task.join().unwrap(), [10, 20]);
/// });
/// ```
pub fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let state = State { value: Arc::new(value), version: 0, senders: 1, receivers: 1 };
    let channel = Arc::new(Channel { state: Mutex::new(state), changed: Notify::new(), closed: Notify::new() });
    (Sender { channel: Arc::clone(&channel) }, Receiver { channel, seen: 0 })
}

struct Channel<T> {
    state: Mutex<State<T>>,
    /// Notifies receivers of a new version, or that the last sender is gone.
    changed: Notify,
    /// Notifies senders that the last receiver is gone.
    closed: Notify,
}

struct State<T> {
    value: Arc<T>,
    /// The number of values sent.
    version: u64,
    senders: usize,
    receivers: usize,
}

impl<T> Channel<T> {
    fn borrow(&self) -> Arc<T> {
        Arc::clone(&self.state.lock().value)
    }

    fn reason(&self) -> WaitReason {
        WaitReason::Watch(std::ptr::from_ref(self).addr())
    }
}

/// The sending handle of a [watch channel](channel()). It can be sent to any thread, and cloned.
///
/// ```
/// use coralio::spawn;
/// use coralio::context::AioContext;
/// use coralio::sync::watch;
///
/// AioContext::run(|ctx| {
///     let (limit, watched) = watch::channel(10);
///     let late = limit.subscribe();
///     assert_eq!((limit.receiver_count(), *limit.send_replace(20)), (2, 10));
///     assert_eq!(*late.borrow(), 20);
///     let sender = spawn(move || {
///         limit.closed().unwrap();
///         assert!(limit.is_closed() && limit.send(30).is_err());
///     });
///     ctx.poll(false);
///     drop((watched, late));
///     sender.join().unwrap();
/// });
/// ```
pub struct Sender<T> {
    channel: Arc<Channel<T>>,
}

impl<T> Sender<T> {
    /// Replaces the value, and wakes the receivers that wait for a change. Callable outside a
    /// coroutine.
    ///
    /// # Errors
    ///
    /// No receiver is left. The error returns `value`, and the channel keeps its old value. See
    /// also [`send_replace`](Self::send_replace).
    #[track_caller]
    pub fn send(&self, value: T) -> Result<(), T> {
        if self.is_closed() {
            return Err(value);
        }
        self.send_replace(value);
        Ok(())
    }

    /// Replaces the value like [`send`](Self::send), even if no receiver is left, and returns the
    /// previous one.
    #[track_caller]
    pub fn send_replace(&self, value: T) -> Arc<T> {
        let value = Arc::new(value);
        let mut state = self.channel.state.lock();
        state.version += 1;
        let before = std::mem::replace(&mut state.value, value);
        drop(state);
        self.channel.changed.notify_waiters();
        before
    }

    /// Returns the value as it is now.
    pub fn borrow(&self) -> Arc<T> {
        self.channel.borrow()
    }

    /// Creates a receiver, which has seen the present value.
    pub fn subscribe(&self) -> Receiver<T> {
        let mut state = self.channel.state.lock();
        state.receivers += 1;
        Receiver { channel: Arc::clone(&self.channel), seen: state.version }
    }

    /// Returns the number of receivers.
    pub fn receiver_count(&self) -> usize {
        self.channel.state.lock().receivers
    }

    /// Returns whether no receiver is left.
    pub fn is_closed(&self) -> bool {
        self.receiver_count() == 0
    }

    /// Waits until no receiver is left.
    ///
    /// # Errors
    ///
    /// [`Cancelled`], if there is a receiver and the coroutine was cancelled or an enclosing
    /// timeout expired.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn closed(&self) -> Result<(), Cancelled> {
        self.channel.closed.wait_until_for(self.channel.reason(), || self.is_closed())
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.channel.state.lock().senders += 1;
        Sender { channel: Arc::clone(&self.channel) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut state = self.channel.state.lock();
        state.senders -= 1;
        let is_last = state.senders == 0;
        drop(state);
        if is_last {
            self.channel.changed.notify_waiters();
        }
    }
}

/// The receiving handle of a [watch channel](channel()). It can be sent to any thread, and cloned;
/// each handle sees each change for itself.
///
/// ```
/// use coralio::spawn;
/// use coralio::context::AioContext;
/// use coralio::sync::watch;
///
/// AioContext::run(|_ctx| {
///     let (progress, mut watched) = watch::channel(0);
///     let half = spawn(move || {
///         assert_eq!(watched.has_changed(), Ok(true));
///         assert_eq!(*watched.borrow_and_update(), 10);
///         *watched.wait_for(|percent| *percent >= 50).unwrap()
///     });
///     progress.send(10).unwrap();
///     let worker = spawn(move || [30, 60].iter().for_each(|percent| {
///         progress.send(*percent).unwrap();
///         coralio::yield_now();
///     }));
///     assert_eq!(half.join().unwrap(), 60);
///     worker.join().unwrap();
/// });
/// ```
pub struct Receiver<T> {
    channel: Arc<Channel<T>>,
    /// The version seen last.
    seen: u64,
}

impl<T> Receiver<T> {
    /// Returns the value as it is now. It does not count as seen: see
    /// [`borrow_and_update`](Self::borrow_and_update).
    ///
    /// The value may be kept for any time, also across a suspension: a sender replaces it without
    /// waiting.
    pub fn borrow(&self) -> Arc<T> {
        self.channel.borrow()
    }

    /// Returns the value as it is now, and marks it as seen.
    pub fn borrow_and_update(&mut self) -> Arc<T> {
        let state = self.channel.state.lock();
        self.seen = state.version;
        Arc::clone(&state.value)
    }

    /// Returns whether there is a value that this receiver has not seen.
    ///
    /// # Errors
    ///
    /// This receiver has seen the value, and no sender is left.
    pub fn has_changed(&self) -> Result<bool, RecvError> {
        let state = self.channel.state.lock();
        match state.version != self.seen {
            true => Ok(true),
            false if state.senders == 0 => Err(RecvError::Disconnected),
            false => Ok(false),
        }
    }

    /// Waits until there is a value that has not been seen, and marks it as seen. The initial value
    /// counts as seen.
    ///
    /// # Errors
    ///
    /// This receiver has seen the value, and no sender is left; or the coroutine was cancelled, or
    /// an enclosing timeout expired: a change is then returned by the next call.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn changed(&mut self) -> Result<(), RecvError> {
        let wait = self.channel.changed.wait_until_for(self.channel.reason(), || self.has_changed() != Ok(false));
        wait.map_err(|Cancelled| RecvError::Cancelled)?;
        self.has_changed()?;
        self.borrow_and_update();
        Ok(())
    }

    /// Waits until a value satisfies `condition`, marks it as seen and returns it. Checks the present
    /// value first. Values that are replaced quickly may not be checked.
    ///
    /// # Errors
    ///
    /// As [`changed`](Self::changed).
    ///
    /// # Panics
    ///
    /// As [`changed`](Self::changed).
    ///
    /// # Control
    ///
    /// May yield; as `condition`.
    #[track_caller]
    pub fn wait_for(&mut self, mut condition: impl FnMut(&T) -> bool) -> Result<Arc<T>, RecvError> {
        loop {
            let value = self.borrow_and_update();
            if condition(&value) {
                return Ok(value);
            }
            self.changed()?;
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        self.channel.state.lock().receivers += 1;
        Receiver { channel: Arc::clone(&self.channel), seen: self.seen }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.channel.state.lock();
        state.receivers -= 1;
        let is_last = state.receivers == 0;
        drop(state);
        if is_last {
            self.channel.closed.notify_waiters();
        }
    }
}

opaque_debug!(Sender<T>, Receiver<T>);
