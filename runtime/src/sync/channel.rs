//! A queue of messages with room for so many, from any number of senders to any number of receivers (rule S4).
//!
//! Messages, counts of handles and the line lie under one lock. Whoever waits has its message, or the place for it, in its
//! node; so the one that comes from the other side moves the message itself, and the waiter finds all done. Hence:
//!
//! - *one kind waits*: receivers are in line only while no message is there, senders only while there is no room. So one
//!   line serves both, and nobody who comes later can take what somebody in line was to have.
//!
//! A node whose owner sends carries a message, one whose owner receives carries none; a grant turns that around. A grant
//! that did not says that the other side is gone. A receiver that unwinds after its grant puts the message back, before all
//! others; there may be more messages than room for that time.

mod error;

use std::collections::VecDeque;
use std::fmt;
use std::sync::Arc;

pub use error::{RecvError, SendError, TryRecvError, TrySendError};

use super::wait_queue::{Gone, Locked, WaitQueue};
use crate::coroutine::waiting::Waiting;

/// A channel with room for `capacity` messages, which is taken at once.
///
/// It is for coroutines of any number of contexts and threads. A send waits while there is no room, a receive while there is
/// no message; first come, first served. With a capacity of 0 the two meet: a send waits until its message is received.
/// Messages are moved under a short lock, so box large ones. Both handles can be cloned; each message is received once.
///
/// The channel is closed when all senders are gone, or all receivers. Receivers still get what was sent before; what no
/// receiver is left for is dropped.
///
/// ```
/// use coralio_runtime::{AioContext, channel, spawn};
///
/// AioContext::run(|_ctx| {
///     let (sender, receiver) = channel(2);
///     let producer = spawn(move || (0..10).try_for_each(|n| sender.send(n)));
///     let consumer = spawn(move || receiver.iter().sum::<i32>()); // until the producer has ended
///     producer.join().unwrap().unwrap();
///     assert_eq!(consumer.join().unwrap(), 45);
/// });
/// ```
///
/// # Panics
///
/// If there is no memory for so many messages.
///
/// # Control
///
/// Never switches.
pub fn channel<T>(capacity: usize) -> (Sender<T>, Receiver<T>) {
    let inside = Inside { messages: VecDeque::with_capacity(capacity), capacity, senders: 1, receivers: 1 };
    let channel = Arc::new(Channel { line: WaitQueue::new(inside) });
    (Sender { channel: Arc::clone(&channel) }, Receiver { channel })
}

struct Channel<T> {
    line: WaitQueue<Option<T>, Inside<T>>,
}

struct Inside<T> {
    messages: VecDeque<T>,
    capacity: usize,
    senders: usize,
    receivers: usize,
}

type Line<'a, T> = Locked<'a, Option<T>, Inside<T>>;

/// Why a message was not sent at once.
enum Unsent<'a, T> {
    Full(T, Line<'a, T>),
    Closed(T),
}

/// Why no message was received at once.
enum Unreceived<'a, T> {
    Empty(Line<'a, T>),
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
        let line = self.line.lock();
        let (message, mut line) = match self.hand_over(message, line) {
            Ok(()) => return Ok(()),
            Err(back) => back,
        };
        let inside = line.state();
        if inside.receivers == 0 {
            Err(Unsent::Closed(message))
        } else if inside.has_room() {
            inside.messages.push_back(message);
            Ok(())
        } else {
            Err(Unsent::Full(message, line))
        }
    }

    /// Hands a message to the first in line, if that one receives.
    #[track_caller]
    fn hand_over<'a>(&self, message: T, mut line: Line<'a, T>) -> Result<(), (T, Line<'a, T>)> {
        let Some(place @ None) = line.first() else { return Err((message, line)) };
        *place = Some(message);
        let receiver = line.grant_first();
        drop(line);
        if let Some(receiver) = receiver {
            receiver.wake_later();
        }
        Ok(())
    }

    #[track_caller]
    fn receive(&self) -> Result<T, Unreceived<'_, T>> {
        let mut line = self.line.lock();
        let first = line.state().messages.pop_front();
        let mut sent = None;
        let mut sender = None;
        // The longest waiting sender has the place that this made, or meets the receiver.
        if (first.is_none() || line.state().has_room())
            && let Some(message @ Some(_)) = line.first()
        {
            sent = message.take();
            sender = line.grant_first();
        }
        let message = match first {
            Some(first) => {
                line.state().messages.extend(sent);
                Some(first)
            }
            None => sent,
        };
        match message {
            Some(message) => {
                drop(line);
                if let Some(sender) = sender {
                    sender.wake_later();
                }
                Ok(message)
            }
            None if line.state().senders == 0 => Err(Unreceived::Closed),
            None => Err(Unreceived::Empty(line)),
        }
    }

    /// One goes away that waited.
    fn gone(&self, gone: Gone<'_, Option<T>, Inside<T>>) {
        match gone {
            // Those behind it wait for more than its place.
            Gone::Left(_) => {}
            // It sent, and its message is on its way; or it received, and there was none.
            Gone::Granted(None) => {}
            Gone::Granted(Some(message)) => {
                let Err((message, mut line)) = self.hand_over(message, self.line.lock()) else { return };
                if line.state().receivers > 0 {
                    line.state().messages.push_front(message);
                } else {
                    // A message that was not sent. Dropping it may run anything.
                    drop(line);
                    drop(message);
                }
            }
        }
    }

    /// For messages: which channel it is.
    fn address(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

/// The handle of a [`channel`] that sends. Any thread may have it, and clone it.
pub struct Sender<T> {
    channel: Arc<Channel<T>>,
}

impl<T> Sender<T> {
    /// Sends a message; suspends the coroutine while there is no room, or, with a capacity of 0, until it is received.
    ///
    /// # Errors
    ///
    /// No receiver is left; or the wait was cut short, because the coroutine was cancelled or a timeout around this is
    /// over. Both give the message back. If there is room, it is sent all the same.
    ///
    /// # Panics
    ///
    /// Outside a coroutine, if it would have to wait.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn send(&self, message: T) -> Result<(), SendError<T>> {
        match self.channel.send(message) {
            Ok(()) => Ok(()),
            Err(Unsent::Closed(message)) => Err(SendError::Closed(message)),
            Err(Unsent::Full(message, line)) => {
                let waiting = Waiting::Send(self.channel.address());
                let gone = |gone: Gone<'_, _, _>| self.channel.gone(gone);
                match self.channel.line.wait_cancellable(line, Some(message), waiting, || (), gone) {
                    Ok(None) => Ok(()),
                    Ok(Some(message)) => Err(SendError::Closed(message)),
                    Err(Some(message)) => Err(SendError::Cancelled(message)),
                    Err(None) => unreachable!("a message is taken with a grant"),
                }
            }
        }
    }

    /// Sends a message if there is room, or one waits for it. Also outside a coroutine.
    ///
    /// # Errors
    ///
    /// There is no room, or no receiver is left. Both give the message back.
    ///
    /// # Control
    ///
    /// Never switches. The receiver runs when the running coroutine yields, or else in its loop's next round.
    #[track_caller]
    pub fn try_send(&self, message: T) -> Result<(), TrySendError<T>> {
        self.channel.send(message).map_err(|unsent| match unsent {
            Unsent::Full(message, _) => TrySendError::Full(message),
            Unsent::Closed(message) => TrySendError::Closed(message),
        })
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Sender<T> {
        self.channel.line.lock().state().senders += 1;
        Sender { channel: Arc::clone(&self.channel) }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        let mut line = self.channel.line.lock();
        line.state().senders -= 1;
        if line.state().senders == 0 {
            // *one kind waits*, and it is not senders: their handles are gone.
            self.channel.line.hand_out(line, |line| line.grant_first());
        }
    }
}

impl<T> fmt::Debug for Sender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sender").finish_non_exhaustive()
    }
}

/// The handle of a [`channel`] that receives. Any thread may have it, and clone it; each message is received once.
pub struct Receiver<T> {
    channel: Arc<Channel<T>>,
}

impl<T> Receiver<T> {
    /// Receives the oldest message; suspends the coroutine while there is none.
    ///
    /// # Errors
    ///
    /// No sender is left, and no message; or the wait was cut short, because the coroutine was cancelled or a timeout
    /// around this is over. If there is a message, it is received all the same.
    ///
    /// # Panics
    ///
    /// Outside a coroutine, if it would have to wait.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.receive(Waiting::Receive)
    }

    /// Receives; notes what for, if it waits.
    #[track_caller]
    pub(super) fn receive(&self, waiting: fn(usize) -> Waiting) -> Result<T, RecvError> {
        match self.channel.receive() {
            Ok(message) => Ok(message),
            Err(Unreceived::Closed) => Err(RecvError::Closed),
            Err(Unreceived::Empty(line)) => {
                let waiting = waiting(self.channel.address());
                let gone = |gone: Gone<'_, _, _>| self.channel.gone(gone);
                match self.channel.line.wait_cancellable(line, None, waiting, || (), gone) {
                    Ok(message) => message.ok_or(RecvError::Closed),
                    Err(_) => Err(RecvError::Cancelled),
                }
            }
        }
    }

    /// Receives the oldest message, if there is one. Also outside a coroutine.
    ///
    /// # Errors
    ///
    /// There is no message; and if no sender is left, there will be none.
    ///
    /// # Control
    ///
    /// Never switches. A sender that waited runs when the running coroutine yields, or else in its loop's next round.
    #[track_caller]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.channel.receive().map_err(|unreceived| match unreceived {
            Unreceived::Empty(_) => TryRecvError::Empty,
            Unreceived::Closed => TryRecvError::Closed,
        })
    }

    /// Receives message after message, until [`recv`](Self::recv) would return an error.
    pub fn iter(&self) -> Messages<'_, T> {
        Messages(self)
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Receiver<T> {
        self.channel.line.lock().state().receivers += 1;
        Receiver { channel: Arc::clone(&self.channel) }
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut line = self.channel.line.lock();
        line.state().receivers -= 1;
        if line.state().receivers == 0 {
            // Dropped when the line is let go.
            let _unread = std::mem::take(&mut line.state().messages);
            // *one kind waits*, and it is not receivers: their handles are gone.
            self.channel.line.hand_out(line, |line| line.grant_first());
        }
    }
}

impl<'a, T> IntoIterator for &'a Receiver<T> {
    type Item = T;
    type IntoIter = Messages<'a, T>;

    fn into_iter(self) -> Messages<'a, T> {
        self.iter()
    }
}

impl<T> fmt::Debug for Receiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Receiver").finish_non_exhaustive()
    }
}

/// The messages of a channel: see [`Receiver::iter`].
#[derive(Debug)]
pub struct Messages<'a, T>(&'a Receiver<T>);

impl<T> Iterator for Messages<'_, T> {
    type Item = T;

    /// # Control
    ///
    /// May yield.
    #[track_caller]
    fn next(&mut self) -> Option<T> {
        self.0.recv().ok()
    }
}
