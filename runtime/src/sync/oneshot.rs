//! One value, sent once: a channel with room for one message, whose sender is used up by sending (rule S4).

use std::fmt;

use super::channel::{Receiver, RecvError, Sender, TryRecvError, channel};
use crate::coroutine::waiting::Waiting;

/// Two handles for one value, which goes from any thread to a coroutine that waits for it.
///
/// ```
/// use coralio_runtime::{AioContext, oneshot, spawn};
/// use std::thread;
///
/// AioContext::run(|_ctx| {
///     let (sender, receiver) = oneshot();
///     let waiting = spawn(move || receiver.recv().unwrap());
///     let other = thread::spawn(move || sender.send("from a thread that has no loop"));
///     assert_eq!(waiting.join().unwrap(), "from a thread that has no loop");
///     other.join().unwrap().unwrap();
/// });
/// ```
///
/// # Control
///
/// Never switches.
pub fn oneshot<T>() -> (OneShotSender<T>, OneShotReceiver<T>) {
    let (sender, receiver) = channel(1);
    (OneShotSender(sender), OneShotReceiver(receiver))
}

/// Sends the value of a [`oneshot`]. If it is dropped instead, the receiver is told.
pub struct OneShotSender<T>(Sender<T>);

impl<T> OneShotSender<T> {
    /// Sends the value. It never waits, and need not be in a coroutine.
    ///
    /// # Errors
    ///
    /// The receiver is gone: the value.
    ///
    /// # Control
    ///
    /// Never switches. The receiver runs when the running coroutine yields, or else in its loop's next round.
    #[track_caller]
    pub fn send(self, value: T) -> Result<(), T> {
        // There is room: it is the first message.
        self.0.try_send(value).map_err(|error| error.into_inner())
    }
}

/// Receives the value of a [`oneshot`].
pub struct OneShotReceiver<T>(Receiver<T>);

impl<T> OneShotReceiver<T> {
    /// Receives the value; suspends the coroutine until it is sent.
    ///
    /// # Errors
    ///
    /// The sender is gone, and the value, if there was one, was received; or the wait was cut short, because the coroutine was
    /// cancelled or a timeout around this is over: then one may wait again.
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
        self.0.receive(Waiting::OneShot)
    }

    /// Receives the value, if it was sent. Also outside a coroutine.
    ///
    /// # Errors
    ///
    /// It was not sent yet; or never will be, since the sender is gone.
    ///
    /// # Control
    ///
    /// Never switches.
    #[track_caller]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.0.try_recv()
    }
}

impl<T> fmt::Debug for OneShotSender<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneShotSender").finish_non_exhaustive()
    }
}

impl<T> fmt::Debug for OneShotReceiver<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("OneShotReceiver").finish_non_exhaustive()
    }
}
