//! What time it is: the system's time, or one that is only counted.
//!
//! All that decides by the time asks its context's clock: timers, sleeps, timeouts, idle bottom halves, and how long
//! somebody has waited. What measures the machine itself does not: adaptive polling, and the watcher for stalls.
//!
//! A *virtual* clock stands still while anything is to be done. It goes on when the loop would sleep:
//!
//! ```text
//!   I/O of a simulated kernel    the source's `sleep` advances it: to the next completion, or by the timeout
//!   I/O of a real kernel         waited for in real time; if none comes for as long as until the next timer, to that timer
//!   no I/O, a timer              to the timer, at once, if no descriptor is ready and nobody notifies the loop
//!   neither                      the loop sleeps in real time, until a descriptor or another thread wakes it
//! ```

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{AioContext, ContextBuilder};

/// A clock that only counts: an hour of it passes in a moment. This is a handle to it, for any thread.
///
/// Given to a context by [`ContextBuilder::virtual_clock`], it is what timers, sleeps and timeouts there go by. It stands
/// still while there is something to do, and is advanced to the next timer when there is not. What simulates a device keeps a
/// handle too, and advances it to when the device is done.
///
/// Contexts of several threads that share one clock see the same time, and whichever has nothing to do advances it: that is
/// not the same in each run, as nothing is between threads.
///
/// ```
/// use coralio_runtime::{AioContext, VirtualClock, sleep};
/// use std::time::Duration;
///
/// let clock = VirtualClock::new();
/// AioContext::builder()
///     .virtual_clock(clock.clone())
///     .run_coroutine(|_ctx| sleep(Duration::from_secs(3600)))
///     .unwrap()
///     .unwrap();
/// assert_eq!(clock.elapsed(), Duration::from_secs(3600));
/// ```
#[derive(Clone, Debug)]
pub struct VirtualClock {
    base: Instant,
    /// Nanoseconds since then. Relaxed throughout: each handle sees it grow, and nothing else is handed over by it.
    ns: Arc<AtomicU64>,
}

impl VirtualClock {
    /// One that begins now, and stands still.
    pub fn new() -> VirtualClock {
        VirtualClock { base: Instant::now(), ns: Arc::default() }
    }

    /// What time it shows. It compares with what this clock shows at another time, and with nothing else.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn now(&self) -> Instant {
        self.base + self.elapsed()
    }

    /// By how much it was advanced since it was made: the same in each run, and so fit for a log.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.ns.load(Ordering::Relaxed))
    }

    /// Advances it by `time`. It counts nanoseconds, and ends after 584 years: there it stands still.
    ///
    /// No loop is told; it need not be. One that sleeps in real time has no timer, or I/O that takes real time.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn advance(&self, time: Duration) {
        let add = |ns: u64| Some(ns.saturating_add(nanos(time)));
        // Always there is a next value.
        let _ = self.ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Advances it to `then`, unless it is later already.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn advance_to(&self, then: Instant) {
        self.ns.fetch_max(nanos(then.saturating_duration_since(self.base)), Ordering::Relaxed);
    }

    /// Whether it will ever show `then`.
    fn reaches(&self, then: Instant) -> bool {
        then.saturating_duration_since(self.base).as_nanos() <= u128::from(u64::MAX)
    }
}

impl Default for VirtualClock {
    fn default() -> VirtualClock {
        VirtualClock::new()
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A context's clock.
#[derive(Clone, Debug, Default)]
pub(crate) enum Clock {
    #[default]
    Real,
    Virtual(VirtualClock),
}

impl Clock {
    #[inline]
    pub(crate) fn now(&self) -> Instant {
        match self {
            Clock::Real => Instant::now(),
            Clock::Virtual(clock) => clock.now(),
        }
    }

    #[inline]
    pub(crate) fn is_virtual(&self) -> bool {
        matches!(self, Clock::Virtual(_))
    }

    fn left(&self, until: Option<Instant>) -> Option<Duration> {
        Some(until?.saturating_duration_since(self.now()))
    }

    /// Sleeps until `until`, by `sleep`: it returns how many events ended it, and sleeps for no longer than it is told.
    pub(crate) fn sleep_until(
        &self,
        until: Option<Instant>,
        sleep: impl Fn(Option<Duration>) -> io::Result<usize>,
    ) -> io::Result<()> {
        let asked = match (self, until) {
            (Clock::Virtual(clock), Some(until)) if clock.reaches(until) => {
                let ready = sleep(Some(Duration::ZERO))?;
                if ready == 0 {
                    clock.advance_to(until);
                }
                return Ok(());
            }
            (Clock::Virtual(_), _) => sleep(None),
            (Clock::Real, until) => sleep(self.left(until)),
        };
        asked.map(drop)
    }

    /// Lets an engine sleep until `until`, by `sleep`, which says whether it slept at all; `is_ready` says whether that brought
    /// a completion.
    pub(crate) fn sleep_in_source(
        &self,
        until: Option<Instant>,
        sleep: impl FnOnce(Option<Duration>) -> Option<io::Result<()>>,
        is_ready: impl FnOnce() -> bool,
    ) -> Option<io::Result<()>> {
        let timeout = self.left(until);
        let Clock::Virtual(clock) = self else { return sleep(timeout) };
        let (before, began) = (clock.elapsed(), Instant::now());
        let slept = sleep(timeout)?;
        // It has not advanced the clock, so it sleeps in real time; and if that is over, so is the virtual one.
        if let (Some(until), Some(timeout)) = (until, timeout)
            && clock.elapsed() == before
            && began.elapsed() >= timeout
            && !is_ready()
        {
            clock.advance_to(until);
        }
        Some(slept)
    }
}

impl AioContext {
    /// What time it is for this context: by its virtual clock, if it has one, else by the system's. Timers and timeouts go by
    /// it. From any thread.
    ///
    /// # Control
    ///
    /// Never switches.
    #[doc(alias = "qemu_clock_get_ns")]
    pub fn now(&self) -> Instant {
        self.shared.clock.now()
    }
}

impl ContextBuilder {
    /// Makes the context go by `clock` instead of the system's time: timers, [`sleep`](crate::sleep),
    /// [`timeout`](crate::timeout), idle bottom halves, and how long somebody has waited. For tests and simulations.
    ///
    /// The clock is advanced when the loop has nothing else to do: to the next timer, or to what a simulated kernel says. I/O
    /// of a real kernel is waited for in real time, and a timer meanwhile fires after as much real time as it has left. With
    /// no timer and no I/O, the loop looks for a deadlock at once, if it may
    /// ([`deadlock_report`](Self::deadlock_report)), and then sleeps until a descriptor or another thread wakes it. It never
    /// spins on memory: [`poll_limit`](Self::poll_limit) is about real time.
    pub fn virtual_clock(mut self, clock: VirtualClock) -> ContextBuilder {
        self.clock = Clock::Virtual(clock);
        self
    }
}
