//! Memory for payloads: a little for each connection, and a budget that all of them share.
//!
//! What a connection has of its own serves its small requests, whatever others do. Beyond that they take units of the budget
//! if there are any, and wait for requests of their own connection if not. A large request waits in line for its units,
//! before a byte of its payload is read: so nobody who waits has what another one waits for. Who has units and lets them
//! lie, since it takes no replies or sends no payload, is sent away after a while; but only if somebody waits.

use std::cell::Cell;
use std::fs;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use coralio_aio::{Cancelled, CoFd, Semaphore, timeout};

/// What each connection has of its own, in bytes. A request that takes more is a large one.
pub const OWN: usize = 256 << 10;
/// The budget's unit, in bytes. One is enough for a small request.
const UNIT: usize = OWN;
/// Bytes that whoever is watched has to move in the time that it has.
const STEP: usize = 1 << 20;

/// What the connections of all threads share.
pub struct Budget {
    units: Semaphore,
    /// Large requests that wait in line.
    waiting: AtomicUsize,
    patience: Duration,
}

impl Budget {
    /// Whoever moves no megabyte for as long as `patience`, while others wait, is sent away.
    pub fn new(bytes: usize, patience: Duration) -> Arc<Budget> {
        Arc::new(Budget { units: Semaphore::new(bytes / UNIT), waiting: AtomicUsize::new(0), patience })
    }

    fn wait_for(&self, bytes: usize) -> Result<(), Cancelled> {
        struct Waits<'a>(&'a AtomicUsize);
        impl Drop for Waits<'_> {
            fn drop(&mut self) {
                self.0.fetch_sub(1, Ordering::Relaxed);
            }
        }
        // Relaxed, here and above: a number to look at now and then, nothing else.
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let _waits = Waits(&self.waiting);
        self.units.acquire_many_cancellable(bytes.div_ceil(UNIT))?.forget();
        Ok(())
    }
}

/// What one connection has under way, in bytes; and what it has of the budget for that.
pub struct Allowance {
    budget: Arc<Budget>,
    small: Cell<usize>,
    large: Cell<usize>,
    /// Taken for small requests.
    units: Cell<usize>,
}

impl Allowance {
    pub fn of(budget: &Arc<Budget>) -> Allowance {
        let [small, large, units] = [0; 3].map(Cell::new);
        Allowance { budget: Arc::clone(budget), small, large, units }
    }

    pub fn under_way(&self) -> usize {
        self.small.get() + self.large.get()
    }

    /// Takes what a small request needs; else there are others under way, which give theirs back.
    pub fn try_take(&self, bytes: usize) -> bool {
        debug_assert!(bytes <= OWN);
        if self.small.get() + bytes > OWN + self.units.get() * UNIT {
            let Some(unit) = self.budget.units.try_acquire() else { return false };
            unit.forget();
            self.units.set(self.units.get() + 1);
        }
        self.small.set(self.small.get() + bytes);
        true
    }

    /// Takes what a large request needs, when its turn has come.
    pub fn wait_for(&self, bytes: usize) -> Result<(), Cancelled> {
        self.budget.wait_for(bytes)?;
        self.large.set(self.large.get() + bytes);
        Ok(())
    }

    /// What a request has taken.
    pub fn give_back(&self, bytes: usize) {
        if bytes > OWN {
            self.large.set(self.large.get() - bytes);
            return self.budget.units.add_permits(bytes.div_ceil(UNIT));
        }
        self.small.set(self.small.get() - bytes);
        let needed = self.small.get().saturating_sub(OWN).div_ceil(UNIT);
        let unused = self.units.get() - needed;
        if unused > 0 {
            self.units.set(needed);
            self.budget.units.add_permits(unused);
        }
    }

    fn is_in_the_way(&self) -> bool {
        (self.large.get() > 0 || self.units.get() > 0) && self.budget.waiting.load(Ordering::Relaxed) > 0
    }
}

/// Watches whether a client moves what it has memory for.
pub struct Pace<'a> {
    allowance: &'a Allowance,
    /// Since when it has moved `moved` bytes, and been waited for.
    since: Option<Instant>,
    moved: usize,
}

/// What [`Pace`] waits for, or does not.
pub trait Duplex: Read + Write {}

impl<T: Read + Write> Duplex for T {}

impl Pace<'_> {
    pub fn of(allowance: &Allowance) -> Pace<'_> {
        Pace { allowance, since: None, moved: 0 }
    }

    /// `transfer` moves some bytes over the socket, which may take its time; unless others wait for the memory. What can be moved
    /// at once is, and costs no look at the clock.
    pub fn keep(
        &mut self,
        socket: &CoFd<fs::File>,
        mut transfer: impl FnMut(&mut dyn Duplex) -> io::Result<usize>,
    ) -> io::Result<usize> {
        let done = match transfer(&mut socket.get_ref()) {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait_for(|| transfer(&mut &*socket))?,
            done => done?,
        };
        self.moved += done;
        if self.moved >= STEP {
            *self = Pace::of(self.allowance);
        }
        Ok(done)
    }

    fn wait_for(&mut self, mut transfer: impl FnMut() -> io::Result<usize>) -> io::Result<usize> {
        let patience = self.allowance.budget.patience;
        loop {
            let since = *self.since.get_or_insert_with(Instant::now);
            match timeout(patience.saturating_sub(since.elapsed()), &mut transfer) {
                Ok(done) => return done,
                Err(_) if self.allowance.is_in_the_way() => {
                    let bytes = self.allowance.under_way();
                    let why = format!("it has {bytes} bytes under way, moves none of them, and others wait for memory");
                    return Err(io::Error::new(io::ErrorKind::InvalidData, format!("{why}; --memory may be more")));
                }
                Err(_) => *self = Pace::of(self.allowance),
            }
        }
    }
}
