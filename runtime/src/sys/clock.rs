//! A context's clock: the system's time, or a virtual time.
//!
//! Everything scheduled by time uses the context's clock: timers, sleeps, timeouts, idle bottom
//! halves, and the reported duration of waits. Measurements of the machine itself do not: adaptive
//! polling, and the stall watcher.
//!
//! A *virtual* clock stands still while there is work. It advances when the loop would sleep:
//!
//! ```text
//!   I/O, simulated   the source's `sleep` advances it: to the next completion, or by the timeout
//!   I/O, real        waits in real time; with no completion before the next timer, advances to it
//!   a timer only     advances to it immediately, unless a descriptor is ready or a notify arrived
//!   neither          sleeps in real time, until a descriptor or another thread wakes the loop
//! ```

#![allow(unsafe_code)]

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// A handle to a virtual clock, usable from any thread. Virtual time only counts: an hour of it
/// passes in a moment.
///
/// A context that is given the clock by
/// [`ContextBuilder::virtual_clock`](crate::ContextBuilder::virtual_clock) uses it for timers,
/// sleeps and timeouts. The clock stands still while there is work, and advances to the next timer
/// when there is none. A simulated device keeps a handle too, and advances the clock to its
/// completions.
///
/// Contexts of several threads that share a clock see the same time, and any idle one advances it.
/// Like all interleavings of threads, the result differs from run to run.
///
/// ```
/// use coralio::sleep;
/// use coralio::context::{AioContext, VirtualClock};
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
    /// Nanoseconds since `base`. Relaxed throughout: every handle sees it grow, and it publishes no
    /// other data.
    ns: Arc<AtomicU64>,
}

impl VirtualClock {
    /// Creates a clock that starts at the present time, and stands still.
    pub fn new() -> VirtualClock {
        VirtualClock { base: Instant::now(), ns: Arc::default() }
    }

    /// Returns the clock's time. Comparable only with other times of this clock.
    pub fn now(&self) -> Instant {
        self.base + self.elapsed()
    }

    /// Returns by how much the clock has advanced since its creation: the same in each run, and so
    /// suitable for logs.
    pub fn elapsed(&self) -> Duration {
        Duration::from_nanos(self.ns.load(Ordering::Relaxed))
    }

    /// Advances the clock by `time`. The clock counts nanoseconds, and saturates after 584 years: a
    /// sleep or timeout beyond that never ends.
    ///
    /// Does not wake any loop, nor need it: a loop that sleeps in real time has no timer, or I/O
    /// that takes real time.
    pub fn advance(&self, time: Duration) {
        let add = |ns: u64| Some(ns.saturating_add(nanos(time)));
        // `fetch_update` cannot fail: `add` always returns a value.
        let _ = self.ns.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add);
    }

    /// Advances the clock to `then`, unless it is later already.
    pub fn advance_to(&self, then: Instant) {
        self.ns.fetch_max(nanos(then.saturating_duration_since(self.base)), Ordering::Relaxed);
    }

    /// Returns whether `then` is within the clock's range; the clock never reaches other times.
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

/// The longest step of the coarse clock, that of a kernel with 100 ticks per second.
pub(crate) const COARSE_STEP: Duration = Duration::from_millis(10);

/// Returns the time of one of the kernel's monotonic clocks, in nanoseconds.
#[inline]
fn system_nanos(clock: libc::clockid_t) -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // Not by rustix: its search for the vDSO crashes under valgrind 3.19.
    // SAFETY: `time` is valid, and each supported kernel has these clocks.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
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

    /// Returns the time in milliseconds, modulo 2^32, since an unspecified start. The time may be
    /// up to [`COARSE_STEP`] old; the call costs a fifth of a call of `now`.
    pub(crate) fn coarse_ms(&self) -> u32 {
        match self {
            Clock::Real => (system_nanos(libc::CLOCK_MONOTONIC_COARSE) / 1_000_000) as u32,
            Clock::Virtual(clock) => clock.elapsed().as_millis() as u32,
        }
    }

    /// Returns the time in nanoseconds since an unspecified start; for a virtual clock, since its
    /// creation. Costs less than `now`.
    #[inline]
    pub(crate) fn nanos(&self) -> u64 {
        match self {
            Clock::Real => system_nanos(libc::CLOCK_MONOTONIC),
            Clock::Virtual(clock) => clock.ns.load(Ordering::Relaxed),
        }
    }

    #[inline]
    pub(crate) fn is_virtual(&self) -> bool {
        matches!(self, Clock::Virtual(_))
    }

    /// Returns the time left until `until`; `None` if the clock never reaches it.
    #[inline]
    fn left(&self, until: Option<Instant>) -> Option<Duration> {
        let comes = |until: &Instant| !matches!(self, Clock::Virtual(clock) if !clock.reaches(*until));
        Some(until.filter(comes)?.saturating_duration_since(self.now()))
    }

    /// Sleeps until `until` by calling `sleep`, which sleeps for at most its argument, and returns
    /// the number of events that ended the sleep.
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

    /// Lets an engine sleep until `until` by calling `sleep`, which returns `None` if it did not
    /// sleep, and otherwise whether the sleep produced a completion.
    #[inline]
    pub(crate) fn sleep_in_source(
        &self,
        until: Option<Instant>,
        sleep: impl FnOnce(Option<Duration>) -> Option<io::Result<bool>>,
    ) -> Option<io::Result<bool>> {
        let timeout = self.left(until);
        let Clock::Virtual(clock) = self else { return sleep(timeout) };
        let (before, began) = (clock.elapsed(), Instant::now());
        let slept = sleep(timeout)?;
        // The engine did not advance the clock, so it sleeps in real time. If the timeout has
        // elapsed in real time, it counts as elapsed in virtual time too.
        if let (Some(until), Some(timeout)) = (until, timeout) {
            if clock.elapsed() == before && began.elapsed() >= timeout && !matches!(slept, Ok(true)) {
                clock.advance_to(until);
            }
        }
        Some(slept)
    }
}
