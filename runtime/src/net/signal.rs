//! Signals that a coroutine waits for (rule S14).
//!
//! The handler writes a byte to a socket, whose other end the coroutine reads. So a signal before
//! the wait is not lost, and several that arrive before they are received count as one.

use std::io::{self, ErrorKind, Read};
use std::os::unix::net::UnixStream;

use signal_hook::SigId;
use signal_hook::low_level::{pipe, unregister};

use crate::net::wait_readable;
use crate::sys::opaque_debug;

/// Starts to receive `signal`, for example `libc::SIGTERM`.
///
/// From now on the signal's default action does not take place any more in this process, also after
/// the [`Signal`] was dropped: an unreceived `SIGTERM` is then ignored. Each [`Signal`] of one signal
/// receives it; further handlers of `signal-hook` are called as before.
///
/// ```
/// use coralio::spawn;
/// use coralio::context::AioContext;
/// use coralio::task::signal;
///
/// AioContext::run(|ctx| {
///     let mut hangups = signal(libc::SIGHUP).unwrap();
///     let reloading = spawn(move || {
///         hangups.recv()?;
///         Ok::<_, std::io::Error>("reads the configuration")
///     });
/// #   signal_hook::low_level::raise(libc::SIGHUP).unwrap();
///     // kill -HUP <pid>
///     assert_eq!(reloading.join().unwrap().unwrap(), "reads the configuration");
/// #   _ = ctx;
/// });
/// ```
///
/// # Errors
///
/// The signal cannot be handled, as `SIGKILL` or the signals of a crash; or there is no descriptor
/// left.
pub fn signal(signal: i32) -> io::Result<Signal> {
    if signal_hook::consts::FORBIDDEN.contains(&signal) {
        let why = format!("cannot handle signal {signal}: reserved or fatal; choose another, such as SIGTERM");
        return Err(io::Error::new(ErrorKind::InvalidInput, why));
    }
    let (reader, writer) = UnixStream::pair()?;
    reader.set_nonblocking(true)?;
    Ok(Signal { id: pipe::register(signal, writer)?, reader })
}

/// Waits for `SIGINT`, which the terminal sends when the user presses Ctrl-C.
///
/// The first call replaces the default action, as [`signal`] does: later signals that no call waits
/// for are ignored. A program that shuts down slowly should wait for a second signal, and exit.
///
/// ```no_run
/// use coralio::task::{ctrl_c, race};
///
/// fn serve() {
///     // ..
/// }
///
/// coralio::run(|| race((|| _ = ctrl_c(), serve)));
/// ```
///
/// # Errors
///
/// As [`signal`] and [`Signal::recv`].
///
/// # Panics
///
/// Outside a coroutine.
///
/// # Control
///
/// Yields.
#[track_caller]
pub fn ctrl_c() -> io::Result<()> {
    signal(signal_hook::consts::SIGINT)?.recv()
}

/// A stream of signals of one kind: created by [`signal`]. It may be sent to another thread.
pub struct Signal {
    id: SigId,
    reader: UnixStream,
}

impl Signal {
    /// Waits for the signal. Signals that arrived since the last call, or since [`signal`], count as
    /// one.
    ///
    /// # Errors
    ///
    /// [`Cancelled`](crate::Cancelled), as an I/O error, if there was no signal and the coroutine was
    /// cancelled or an enclosing timeout expired. Otherwise as [`wait_readable`].
    ///
    /// # Panics
    ///
    /// Outside a coroutine, if it would have to wait.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn recv(&mut self) -> io::Result<()> {
        let mut has_arrived = false;
        loop {
            match self.reader.read(&mut [0; 64]) {
                Ok(0) => return Err(io::Error::other("the signal's handler was removed by other code")),
                Ok(_) => has_arrived = true,
                Err(error) if error.kind() == ErrorKind::WouldBlock && has_arrived => return Ok(()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => wait_readable(&self.reader)?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl Drop for Signal {
    fn drop(&mut self) {
        unregister(self.id);
    }
}

opaque_debug!(Signal);
