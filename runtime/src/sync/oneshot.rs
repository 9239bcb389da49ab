//! A oneshot channel: room for one message, and a sender that is consumed by sending.

use crate::coroutine::WaitReason;
use crate::sync::channel::{self, RecvError, TryRecvError};
use crate::sys::opaque_debug;

/// Creates the two handles for one value, sent from any thread to a coroutine that waits for it.
///
/// ```
/// use coralio::spawn;
/// use coralio::sync::oneshot;
/// use std::thread;
///
/// coralio::run(|| {
///     let (sender, receiver) = oneshot::channel();
///     let waiting = spawn(move || receiver.recv().unwrap());
///     let other = thread::spawn(move || sender.send("from a thread that has no loop"));
///     assert_eq!(waiting.join().unwrap(), "from a thread that has no loop");
///     other.join().unwrap().unwrap();
/// });
/// ```
pub fn channel<T>() -> (Sender<T>, Receiver<T>) {
    let (sender, receiver) = channel::bounded(1);
    (Sender(sender), Receiver(receiver))
}

/// The sending handle of a [oneshot channel](channel()). Dropping it instead closes the channel,
/// and the receiver gets an error.
pub struct Sender<T>(channel::Sender<T>);

impl<T> Sender<T> {
    /// Sends the value. It never waits, and may be called outside a coroutine.
    ///
    /// # Errors
    ///
    /// Returns the value if the receiver is gone.
    #[track_caller]
    pub fn send(self, value: T) -> Result<(), T> {
        // There is room: it is the first message.
        self.0.try_send(value).map_err(|error| error.into_inner())
    }
}

/// The receiving handle of a [oneshot channel](channel()).
pub struct Receiver<T>(channel::Receiver<T>);

impl<T> Receiver<T> {
    /// Receives the value; suspends the coroutine until it is sent.
    ///
    /// # Errors
    ///
    /// The sender is gone, and the value, if any, was received already; or the wait was cut short,
    /// because the coroutine was cancelled or an enclosing timeout expired: then `recv` may be
    /// called again.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn recv(&self) -> Result<T, RecvError> {
        self.0.receive(WaitReason::OneShot)
    }

    /// Receives the value, if it was sent. Callable outside a coroutine.
    ///
    /// # Errors
    ///
    /// The value was not sent yet; or the sender is gone, and it never will be.
    #[track_caller]
    pub fn try_recv(&self) -> Result<T, TryRecvError> {
        self.0.try_recv()
    }
}

opaque_debug!(Sender<T>, Receiver<T>);
