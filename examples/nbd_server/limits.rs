//! Limits on the resources of clients: connections, descriptors, and the time that a peer may be
//! unreachable.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::time::Duration;

use coralio::sync::Semaphore;
use coralio::task::Cancelled;

/// Descriptors reserved for files and engines.
const RESERVE: u64 = 64;

/// The slots for connections, shared by all threads.
#[derive(Clone)]
pub struct Slots(Arc<Semaphore>);

/// The slot of one connection. Dropping it, on any thread, frees the slot.
pub struct Slot(Slots);

impl Slots {
    pub fn new(count: usize) -> Slots {
        Slots(Arc::new(Semaphore::new(count)))
    }

    /// Takes a slot if one is free.
    pub fn try_take(&self) -> Option<Slot> {
        self.0.try_acquire()?.forget();
        Some(Slot(self.clone()))
    }

    /// Takes a slot, waiting until one is free.
    ///
    /// # Errors
    ///
    /// [`Cancelled`] if the coroutine is cancelled or an enclosing timeout expires.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn take(&self) -> Result<Slot, Cancelled> {
        self.0.acquire_cancellable()?.forget();
        Ok(Slot(self.clone()))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.0.add_permits(1);
    }
}

/// Raises the descriptor limit of the process to its hard limit. Returns how many connections fit
/// beside the descriptors that are open now.
pub fn connections_that_fit() -> io::Result<usize> {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: each call accesses only the structure that it is given.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) != 0 {
            return Err(io::Error::last_os_error());
        }
        let raised = libc::rlimit { rlim_cur: limit.rlim_max, ..limit };
        if libc::setrlimit(libc::RLIMIT_NOFILE, &raw const raised) == 0 {
            limit = raised;
        }
    }
    let open = fs::read_dir("/proc/self/fd").map_or(RESERVE, |entries| entries.count() as u64);
    let most = limit.rlim_cur;
    // With a small limit, reserve less so that some remain for clients.
    let fit = most.saturating_sub(open).saturating_sub(RESERVE.min(most / 4));
    Ok(usize::try_from(fit).unwrap_or(usize::MAX))
}

/// Makes the system probe the peer of a TCP connection after `idle` of silence, and end the
/// connection if the peer does not answer for as long again. The connection also ends if data is
/// not acknowledged for twice `idle`.
pub fn keep_alive(socket: &impl AsRawFd, idle: Duration) -> io::Result<()> {
    const PROBES: libc::c_int = 5;
    let seconds = idle.as_secs().clamp(1, 32_767) as libc::c_int;
    let set = |level, name, value: libc::c_int| {
        let len = size_of_val(&value) as libc::socklen_t;
        // SAFETY: the value outlives the call, which reads `len` bytes of it.
        match unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    set(libc::IPPROTO_TCP, libc::TCP_KEEPIDLE, seconds)?;
    set(libc::IPPROTO_TCP, libc::TCP_KEEPINTVL, (seconds / PROBES).max(1))?;
    set(libc::IPPROTO_TCP, libc::TCP_KEEPCNT, PROBES)?;
    set(libc::IPPROTO_TCP, libc::TCP_USER_TIMEOUT, 2 * seconds * 1000)?;
    set(libc::SOL_SOCKET, libc::SO_KEEPALIVE, 1)
}
