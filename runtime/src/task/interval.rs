//! Ticks at a fixed period (rule S12).

use std::time::{Duration, Instant};

use crate::context::LocalContext;
use crate::coroutine::Cancelled;
use crate::task::sleep_until;

/// Creates an interval that ticks every `period`, the first time immediately.
///
/// ```
/// use coralio::spawn;
/// use coralio::context::AioContext;
/// use coralio::task::interval;
/// use std::time::Duration;
///
/// AioContext::run(|ctx| {
///     let began = ctx.now();
///     let ticks = spawn(|| {
///         let mut interval = interval(Duration::from_millis(5));
///         [(); 3].map(|()| interval.tick().unwrap())
///     });
///     let [first, _, third] = ticks.join().unwrap();
///     assert_eq!(third - first, Duration::from_millis(10));
///     assert!(ctx.now() - began >= Duration::from_millis(10));
/// });
/// ```
///
/// # Panics
///
/// Outside a context; if the period is zero.
#[track_caller]
pub fn interval(period: Duration) -> Interval {
    interval_at(LocalContext::expect("an interval").context.now(), period)
}

/// Creates an interval that ticks every `period`, the first time at `start`: a time of the context's
/// clock, see [`AioContext::now`](crate::AioContext::now).
///
/// ```
/// use coralio::spawn;
/// use coralio::context::{AioContext, VirtualClock};
/// use coralio::task::{MissedTickBehavior, interval_at, sleep_until};
/// use std::time::Duration;
///
/// let clock = VirtualClock::new();
/// let second = Duration::from_secs(1);
/// AioContext::builder()
///     .virtual_clock(clock.clone())
///     .run_coroutine(|ctx| {
///         let start = ctx.now() + second;
///         let mut interval = interval_at(start, second);
///         interval.set_missed_tick_behavior(MissedTickBehavior::Skip);
///         interval.tick().unwrap();
///         sleep_until(start + second * 5 / 2).unwrap(); // misses the next one
///         assert_eq!(interval.tick(), Ok(start + second));
///         assert_eq!(interval.tick(), Ok(start + 3 * interval.period()));
///     })
///     .unwrap();
/// assert_eq!(clock.elapsed(), Duration::from_secs(4));
/// ```
///
/// # Panics
///
/// If the period is zero.
#[track_caller]
pub fn interval_at(start: Instant, period: Duration) -> Interval {
    assert!(!period.is_zero(), "an interval of zero length would tick without end: pass a positive period");
    Interval { next: start, period, missed_tick_behavior: MissedTickBehavior::default() }
}

/// What an [`Interval`] does after ticks were missed: when `tick` is called later than one period
/// after the tick was due.
///
/// ```text
///   period        |     |     |     |     |     |     |
///   Burst         0     1  (busy ..)  2 3 4     5     6     catches up
///   Delay         0     1  (busy ..)  2     3     4         a period after the late one
///   Skip          0     1  (busy ..)  2   3     4     5     at the next multiple of the period
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MissedTickBehavior {
    /// Ticks without waiting until all missed ticks were made up for.
    #[default]
    Burst,
    /// The next tick is one period after the late one.
    Delay,
    /// The next tick is at the next multiple of the period, counted from the start.
    Skip,
}

/// Ticks at a fixed period: created by [`interval`] and [`interval_at`].
#[derive(Debug)]
pub struct Interval {
    next: Instant,
    period: Duration,
    missed_tick_behavior: MissedTickBehavior,
}

impl Interval {
    /// Waits for the next tick, and returns the time at which it was due. Always yields, as
    /// [`sleep`](crate::sleep()) does.
    ///
    /// # Errors
    ///
    /// [`Cancelled`], if the coroutine was cancelled or an enclosing timeout expired; the next call
    /// waits for the same tick.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// Yields; on the thread's own stack, may enter.
    #[track_caller]
    pub fn tick(&mut self) -> Result<Instant, Cancelled> {
        sleep_until(self.next)?;
        let due = self.next;
        let now = LocalContext::expect("an interval").context.now();
        let late = now.saturating_duration_since(due);
        self.next = match self.missed_tick_behavior {
            MissedTickBehavior::Delay if late > self.period => after(now, self.period),
            MissedTickBehavior::Skip if late > self.period => after(now, self.period) - remainder(late, self.period),
            _ => after(due, self.period),
        };
        Ok(due)
    }

    /// Lets the next tick be one period from now.
    ///
    /// # Panics
    ///
    /// Outside a context.
    #[track_caller]
    pub fn reset(&mut self) {
        self.next = after(LocalContext::expect("an interval").context.now(), self.period);
    }

    /// Sets what happens after missed ticks; at first [`MissedTickBehavior::Burst`].
    pub fn set_missed_tick_behavior(&mut self, behavior: MissedTickBehavior) {
        self.missed_tick_behavior = behavior;
    }

    /// Returns the period.
    pub fn period(&self) -> Duration {
        self.period
    }
}

/// Returns the time `period` after `time`, or one in the far future.
fn after(time: Instant, period: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 60 * 60);
    time.checked_add(period).unwrap_or_else(|| time + CENTURY)
}

/// Returns `time` modulo `period`.
fn remainder(time: Duration, period: Duration) -> Duration {
    let rest = time.as_nanos() % period.as_nanos();
    Duration::new((rest / 1_000_000_000) as u64, (rest % 1_000_000_000) as u32)
}
