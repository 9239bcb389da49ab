//! A bounded message queue from any number of senders to any number of receivers.
//!
//! Created by [`bounded`], which has an example.

// Rule S4. Messages, handle counts and the wait queue are guarded by one lock. A waiter has its
// message, or the place for it, in its node; so the other side moves the message itself, and the
// waiter finds everything done. Therefore:
//
// - *one kind waits*: receivers are queued only while there is no message, senders only while
//   there is no room. So one wait queue serves both, and no later arrival can take a message or a
//   place meant for a waiter.
//
// A queued sender's node has a message, a queued receiver's has none. A grant takes the sender's
// message, or gives the receiver one; a node that is unchanged after its grant means that the other
// side is gone. A receiver that unwinds after its grant puts the message back at the front; until
// that message is received, there may be more messages than the capacity.

mod error;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

pub use error::{RecvError, SendError, TryRecvError, TrySendError};

use crate::coroutine::WaitReason;
use crate::sync::wait_queue::{Abandoned, IF_CANCELLED, Locked, WaitQueue};

/// Creates a channel with room for `capacity` messages, allocated immediately.
///
/// The channel serves coroutines of any number of contexts and threads. A send waits while there is
/// no room, a receive while there is no message, in order of arrival. With a capacity of 0 the two
/// rendezvous: a send waits until its message is received. Messages are moved under a short lock,
/// so box large ones. Both handles can be cloned; each message is received once.
///
/// The channel is closed when all senders are gone, or all receivers. Receivers still get the
/// messages sent before; messages that no receiver is left for are dropped.
///
/// ```
/// use coralio::spawn;
/// use coralio::sync::channel;
///
/// coralio::run(|| {
///     let (sender, receiver) = channel::bounded(2);
///     let producer = spawn(move || (0..10).try_for_each(|n| sender.send(n)));
///     let consumer = spawn(move || receiver.iter().sum::<i32>()); // until the producer has ended
///     producer.join().unwrap().unwrap();
///     assert_eq!(consumer.join().unwrap(), 45);
/// });
/// ```
///
/// # Panics
///
/// If there is no memory for `capacity` messages.
pub fn bounded<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let inside = Inside { messages: VecDeque::with_capacity(capacity), capacity, senders: 1, receivers: 1 };
    let channel = Arc::new(Channel { queue: WaitQueue::new(inside) });
    (Sender { channel: Arc::clone(&channel) }, Receiver { channel })
}

struct Channel<T> {
    queue: WaitQueue<Option<T>, Inside<T>>,
}

struct Inside<T> {
    messages: VecDeque<T>,
    capacity: usize,
    senders: usize,
    receivers: usize,
}

type LockedQueue<'a, T> = Locked<'a, Option<T>, Inside<T>>;

/// The reason why a message could not be sent immediately.
enum Unsent<'a, T> {
    Full(T, LockedQueue<'a, T>),
    Closed(T),
}

/// The reason why no message could be received immediately.
enum Unreceived<'a, T> {
    Empty(LockedQueue<'a, T>),
    Closed,
}

impl<T> Inside<T> {
    fn has_room(&self) -> bool {
        self.messages.len() < self.capacity
    }
}

impl<T> Channel<T> {
    #[track_caller]
    fn send(&self, message: T) -> Result<(), Unsent<'_, T>> {
        let locked = self.queue.lock();
        let (message, mut locked) = match self.hand_over(message, locked) {
            Ok(()) => return Ok(()),
            Err(back) => back,
        };
        let inside = locked.state();
        if inside.receivers == 0 {
            Err(Unsent::Closed(message))
        } else if inside.has_room() {
            inside.messages.push_back(message);
            Ok(())
        } else {
            Err(Unsent::Full(message, locked))
        }
    }

    /// Passes a message to the first waiter, if that is a receiver.
    #[track_caller]
    fn hand_over<'a>(&self, message: T, mut locked: LockedQueue<'a, T>) -> Result<(), (T, LockedQueue<'a, T>)> {
        let Some(place @ None) = locked.first() else { return Err((message, locked)) };
        *place = Some(message);
        locked.wake_first();
        Ok(())
    }

    #[track_caller]
    fn receive(&self) -> Result<T, Unreceived<'_, T>> {
        let mut locked = self.queue.lock();
        let first = locked.state().messages.pop_front();
        let mut sent = None;
        let mut sender = None;
        // The longest waiting sender gets the place freed here, or meets the receiver.
        if first.is_none() || locked.state().has_room() {
            if let Some(message @ Some(_)) = locked.first() {
                sent = message.take();
                sender = locked.grant_first();
            }
        }
        let message = match first {
            Some(first) => {
                locked.state().messages.extend(sent);
                Some(first)
            }
            None => sent,
        };
        match message {
            Some(message) => {
                drop(locked);
                if let Some(sender) = sender {
                    sender.wake_later();
                }
                Ok(message)
            }
            None if locked.state().senders == 0 => Err(Unreceived::Closed),
            None => Err(Unreceived::Empty(locked)),
        }
    }

    /// Handles a waiter that leaves.
    fn gone(&self, gone: Abandoned<'_, Option<T>, Inside<T>>) {
        match gone {
            // The waiters behind it still have to wait.
            Abandoned::Left(_) => {}
            // A sender whose message was taken, or a receiver that found the channel closed.
            Abandoned::Granted(None) => {}
            Abandoned::Granted(Some(message)) => {
                let Err((message, mut locked)) = self.hand_over(message, self.queue.lock()) else { return };
                if locked.state().receivers > 0 {
                    locked.state().messages.push_front(message);
                } else {
                    // An unsent message. Its destructor may run any code.
                    drop(locked);
                    drop(message);
                }
            }
        }
    }

    /// Returns the channel's address, for messages.
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

/// The sending handle of a [channel](bounded). It can be sent to any thread, and cloned.
pub struct Sender<T> {
    channel: Arc<Channel<T>>,
}

impl<T> Sender<T> {
    /// Sends a message; suspends the coroutine until there is room, or, with a capacity of 0, until
    /// it is received.
    ///
    /// # Errors
    ///
    /// No receiver is left; or the wait was cut short, because the coroutine was cancelled or an
    /// enclosing timeout expired. Both errors return the message. If there is room, a cancelled
    /// coroutine sends the message nevertheless.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        match self.channel.send(message) {
            Ok(()) => Ok(()),
            Err(Unsent::Closed(message)) => Err(SendError::Disconnected(message)),
            Err(Unsent::Full(message, locked)) => {
                let waiting = WaitReason::Send(self.channel.address());
                let gone = |gone: Abandoned<'_, _, _>| self.channel.gone(gone);
                match self.channel.queue.wait(locked, Some(message), waiting, IF_CANCELLED, || (), gone) {
                    Ok(None) => Ok(()),
                    Ok(Some(message)) => Err(SendError::Disconnected(message)),
                    Err(Some(message)) => Err(SendError::Cancelled(message)),
                    Err(None) => unreachable!("a grant comes with a message"),
                }
            }
        }
    }

    /// Sends a message if there is room or a receiver waits. Callable outside a coroutine.
    ///
    /// # Errors
    ///
    /// The channel is full, or no receiver is left. Both errors return the message.
    #[track_caller]
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        self.channel.send(message).map_err(|unsent| match unsent {
            Unsent::Full(message, _) => TrySendError::Full(message),
            Unsent::Closed(message) => TrySendError::Disconnected(message),
        })
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.channel.queue.lock().state().senders += 1;
        Sender { channel: Arc::clone(&self.channel) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut locked = self.channel.queue.lock();
        locked.state().senders -= 1;
        if locked.state().senders == 0 {
            // *one kind waits*: the waiters are receivers, since no sender is left.
            self.channel.queue.grant_all(locked, |locked| locked.grant_first());
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

/// The receiving handle of a [channel](bounded). It can be sent to any thread, and cloned; each
/// message is received once.
pub struct Receiver<T> {
    channel: Arc<Channel<T>>,
}

impl<T> Receiver<T> {
    /// Receives the oldest message; suspends the coroutine until there is one.
    ///
    /// # Errors
    ///
    /// No sender is left, and no message; or the wait was cut short, because the coroutine was
    /// cancelled or an enclosing timeout expired. If there is a message, a cancelled coroutine
    /// receives it nevertheless.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.receive(WaitReason::Receive)
    }

    /// Receives a message; `waiting` records the wait's reason.
    #[track_caller]
    pub(super) fn receive(&self, waiting: fn(usize) -> WaitReason) -> Result<T, RecvError> {
        match self.channel.receive() {
            Ok(message) => Ok(message),
            Err(Unreceived::Closed) => Err(RecvError::Disconnected),
            Err(Unreceived::Empty(locked)) => {
                let waiting = waiting(self.channel.address());
                let gone = |gone: Abandoned<'_, _, _>| self.channel.gone(gone);
                match self.channel.queue.wait(locked, None, waiting, IF_CANCELLED, || (), gone) {
                    Ok(message) => message.ok_or(RecvError::Disconnected),
                    Err(_) => Err(RecvError::Cancelled),
                }
            }
        }
    }

    /// Receives the oldest message, if there is one. Callable outside a coroutine.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use coralio::sync::channel::{self, TryRecvError, TrySendError};
    ///
    /// AioContext::run(|_ctx| {
    ///     let (sender, receiver) = channel::bounded(1);
    ///     assert_eq!(receiver.try_recv(), Err(TryRecvError::Empty));
    ///     sender.try_send("one").unwrap();
    ///     assert_eq!(sender.try_send("two"), Err(TrySendError::Full("two")));
    ///     drop(sender);
    ///     assert_eq!(receiver.try_recv(), Ok("one"));
    ///     assert_eq!(receiver.try_recv(), Err(TryRecvError::Disconnected));
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// There is no message; if no sender is left either, there will be none.
    #[track_caller]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.channel.receive().map_err(|unreceived| match unreceived {
            Unreceived::Empty(_) => TryRecvError::Empty,
            Unreceived::Closed => TryRecvError::Disconnected,
        })
    }

    /// Returns an iterator that receives messages until [`recv`](Self::recv) returns an error.
    pub fn iter(&self) -> Iter<'_, T> {
        Iter(self)
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        self.channel.queue.lock().state().receivers += 1;
        Receiver { channel: Arc::clone(&self.channel) }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut locked = self.channel.queue.lock();
        locked.state().receivers -= 1;
        if locked.state().receivers == 0 {
            // Dropped after the lock is released.
            let _unread = std::mem::take(&mut locked.state().messages);
            // *one kind waits*: the waiters are senders, since no receiver is left.
            self.channel.queue.grant_all(locked, |locked| locked.grant_first());
        }
    }
}

impl<'a, T> IntoIterator for &'a Receiver<T> {
    type Item = T;
    type IntoIter = Iter<'a, T>;

    fn into_iter(self) -> Iter<'a, T> {
        self.iter()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// An iterator over the messages of a channel: see [`Receiver::iter`].
#[derive(Debug)]
pub struct Iter<'a, T>(&'a Receiver<T>);

impl<T> Iterator for Iter<'_, T> {
    type Item = T;

    /// # Control
    ///
    /// May yield.
    #[track_caller]
    fn next(&mut self) -> Option<T> {
        self.0.recv().ok()
    }
}
