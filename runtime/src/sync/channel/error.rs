//! Errors of sending and receiving.

use std::error::Error;
use std::fmt;
use std::io;

use crate::coroutine::Cancelled;

const NO_RECEIVER: &str = "channel closed: no receiver is left";
const NO_SENDER: &str = "channel closed: no sender and no message is left";
const CUT_SHORT: &str = "cancelled while waiting: the coroutine was cancelled or its timeout has expired";

/// The error of [`send`](super::Sender::send); contains the unsent message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum SendError<T> {
    /// No receiver is left.
    Disconnected(T),
    /// The coroutine was cancelled while it waited for room, or a timeout expired.
    Cancelled(T),
}

/// The error of [`try_send`](super::Sender::try_send); contains the unsent message.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum TrySendError<T> {
    /// The channel is full.
    Full(T),
    /// No receiver is left.
    Disconnected(T),
}

/// The error of [`recv`](super::Receiver::recv).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RecvError {
    /// No sender is left, and no message.
    Disconnected,
    /// The coroutine was cancelled while it waited for a message, or a timeout expired.
    Cancelled,
}

/// The error of [`try_recv`](super::Receiver::try_recv).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TryRecvError {
    /// The channel is empty.
    Empty,
    /// No sender is left, and no message.
    Disconnected,
}

impl<T> SendError<T> {
    /// Returns the message.
    pub fn into_inner(self) -> T {
        match self {
            SendError::Disconnected(message) | SendError::Cancelled(message) => message,
        }
    }
}

impl<T> TrySendError<T> {
    /// Returns the message.
    pub fn into_inner(self) -> T {
        match self {
            TrySendError::Full(message) | TrySendError::Disconnected(message) => message,
        }
    }
}

/// Does not require `T: Debug`.
impl<T> fmt::Debug for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Disconnected(_) => "Disconnected(..)",
            SendError::Cancelled(_) => "Cancelled(..)",
        })
    }
}

impl<T> fmt::Debug for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "Full(..)",
            TrySendError::Disconnected(_) => "Disconnected(..)",
        })
    }
}

impl<T> fmt::Display for SendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SendError::Disconnected(_) => NO_RECEIVER,
            SendError::Cancelled(_) => CUT_SHORT,
        })
    }
}

impl<T> fmt::Display for TrySendError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TrySendError::Full(_) => "the channel is full",
            TrySendError::Disconnected(_) => NO_RECEIVER,
        })
    }
}

impl fmt::Display for RecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RecvError::Disconnected => NO_SENDER,
            RecvError::Cancelled => CUT_SHORT,
        })
    }
}

impl fmt::Display for TryRecvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            TryRecvError::Empty => "the channel is empty",
            TryRecvError::Disconnected => NO_SENDER,
        })
    }
}

impl<T> From<SendError<T>> for io::Error {
    /// Drops the message. `BrokenPipe`: no receiver is left. Otherwise as from [`Cancelled`].
    fn from(error: SendError<T>) -> io::Error {
        match error {
            SendError::Disconnected(_) => io::Error::new(io::ErrorKind::BrokenPipe, NO_RECEIVER),
            SendError::Cancelled(_) => Cancelled.into(),
        }
    }
}

impl From<RecvError> for io::Error {
    /// `UnexpectedEof`: no sender is left. Otherwise as from [`Cancelled`].
    fn from(error: RecvError) -> io::Error {
        match error {
            RecvError::Disconnected => io::Error::new(io::ErrorKind::UnexpectedEof, error),
            RecvError::Cancelled => Cancelled.into(),
        }
    }
}

impl<T> Error for SendError<T> {}
impl<T> Error for TrySendError<T> {}
impl Error for RecvError {}
impl Error for TryRecvError {}
