//! Faults and latencies of the simulation: by rate, or by script.

use std::time::Duration;

/// Defines the rates, each with its setter.
macro_rules! rates {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// The rates of faults, from 0 (never) to 1 (always).
        ///
        /// ```
        /// use coralio::simulate::Faults;
        ///
        /// let harsh = Faults::harmless().short(0.5).errors(0.01);
        /// ```
        #[derive(Clone, Debug, PartialEq)]
        #[must_use]
        pub struct Faults {
            $(pub(super) $name: f64,)*
            pub(super) max_faults: u32,
        }

        impl Faults {
            /// Creates rates without faults. Requests complete in the order of their latencies.
            pub fn none() -> Faults {
                Faults { $($name: 0.0,)* max_faults: u32::MAX }
            }

            $($(#[$doc])*
            ///
            /// # Panics
            ///
            /// If `rate` is not from 0 to 1.
            pub fn $name(mut self, rate: f64) -> Faults {
                assert!((0.0..=1.0).contains(&rate), "invalid rate {rate}: must be 0 (never) to 1 (always)");
                self.$name = rate;
                self
            })*
        }
    };
}

rates! {
    /// Sets how often a submit accepts nothing (EAGAIN). At most three times in a row.
    refused,
    /// Sets how often a submit accepts only part of the offered requests.
    partial,
    /// Sets how often a submit fails because of its first request, with `EINVAL`.
    invalid,
    /// Sets how often a request completes within its submit.
    at_once,
    /// Sets how often a request takes a second longer than its [`Latency`].
    stalled,
    /// Sets how often a sleep ends later than the first completion: several completions are
    /// then found after one wake-up.
    late,
    /// Sets how often a sleep ends without a completion, as by a signal.
    early,
    /// Sets how often a read or write is short.
    short,
    /// Sets how often a request fails: with `EIO`, and writes also with `ENOSPC`. After a
    /// failed sync, the data that it should have made durable may be lost even if a later sync
    /// succeeds, as on Linux.
    errors,
    /// Sets how often a cancel stops its request, as io_uring may; otherwise the request
    /// continues, as with native AIO.
    cancelled,
}

impl Faults {
    /// Creates rates of the faults that this library hides from a program: all except
    /// [`errors`](Self::errors) and [`invalid`](Self::invalid). The default.
    pub fn harmless() -> Faults {
        let often = Faults::none().refused(0.1).partial(0.2).at_once(0.2).late(0.2);
        often.stalled(0.02).early(0.05).short(0.1).cancelled(0.5)
    }

    /// Sets the maximum number of faults in one run, of all kinds together; injected faults do not
    /// count. Useful with [`explore_all`](super::super::super::simulate::Simulation::explore_all).
    ///
    /// ```
    /// use coralio::simulate::{Faults, Latency, Simulation};
    /// use std::time::Duration;
    ///
    /// let kernel = Faults::none()
    ///     .refused(0.1).partial(0.1).invalid(0.01) // submits
    ///     .at_once(0.1).stalled(0.1).late(0.1).early(0.1) // completions
    ///     .cancelled(0.5)
    ///     .max_faults(2);
    /// let disk = Latency::between(Duration::from_micros(50), Duration::from_millis(20));
    /// let machine = Simulation::new().faults(kernel).latency(disk).torn_writes(false).max_steps(10_000);
    /// machine.run(0..10, |sim| {
    ///     let _ = sim.create("file", 512).write_at(b"hello", 0); // fails if the submit was invalid
    ///     Ok(())
    /// });
    /// let write = |sim: &coralio::simulate::Sim| sim.create("file", 512).write_at(b"hello", 0).map(drop);
    /// assert_eq!(machine.fingerprint(7, write), machine.fingerprint(7, write)); // the same run
    /// ```
    pub fn max_faults(mut self, faults: u32) -> Faults {
        self.max_faults = faults;
        self
    }
}

impl Default for Faults {
    fn default() -> Faults {
        Faults::harmless()
    }
}

/// A single fault for [`Sim::inject`](super::super::super::simulate::Sim::inject).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next submit fails with this `errno`; `EAGAIN` means that it should be retried.
    Refuse(i32),
    /// The next submit accepts at most this many requests, at least one.
    Take(usize),
    /// The next accepted request completes within its submit.
    AtOnce,
    /// The next accepted request takes this much longer.
    Delay(Duration),
    /// The next accepted request transfers at most this many bytes.
    Short(usize),
    /// The next accepted request fails with this `errno`, and does nothing.
    Error(i32),
}

impl Fault {
    /// Whether the fault affects a submit rather than a request.
    pub(super) fn is_of_submit(self) -> bool {
        match self {
            Fault::Refuse(_) | Fault::Take(_) => true,
            Fault::AtOnce | Fault::Delay(_) | Fault::Short(_) | Fault::Error(_) => false,
        }
    }
}

/// How long requests take: a list of times, from which each request draws one. Listing a time
/// several times makes it more likely. [`all_orders`](Self::all_orders) instead generates every
/// completion order, for exhaustive runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency(Times);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Times {
    /// Drawn from these times, in ascending order: the shortest is choice 0.
    Of(Vec<Duration>),
    /// By the position among the requests in flight.
    AnyOrder,
}

impl Latency {
    /// Creates a latency that is the same for every request.
    pub fn fixed(time: Duration) -> Latency {
        Latency(Times::Of(vec![time]))
    }

    /// Creates a latency of sixteen times from `shortest` to `longest`, in geometric progression:
    /// like a disk, mostly fast.
    ///
    /// # Panics
    ///
    /// If `shortest` is 0 or exceeds `longest`.
    pub fn between(shortest: Duration, longest: Duration) -> Latency {
        assert!(
            !shortest.is_zero() && shortest <= longest,
            "invalid latency {shortest:?} to {longest:?}: must be more than 0, and the shortest first"
        );
        let factor = longest.as_secs_f64() / shortest.as_secs_f64();
        let step = |step| shortest.as_secs_f64() * factor.powf(f64::from(step) / 15.0);
        // The last one can be rounded to more than a duration holds.
        let times = (0..16).map(|number| Duration::try_from_secs_f64(step(number)).unwrap_or(longest));
        Latency(Times::Of(times.collect()))
    }

    /// Creates a latency from a list of times.
    ///
    /// # Panics
    ///
    /// If the list is empty.
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Latency {
        let mut times: Vec<_> = times.into_iter().collect();
        assert!(!times.is_empty(), "invalid latency: must have at least one value");
        times.sort();
        Latency(Times::Of(times))
    }

    /// Generates every completion order, and none twice, for
    /// [`explore_all`](super::super::super::simulate::Simulation::explore_all). A request completes
    /// a millisecond after the last of those in flight, or before one of them. Within a submit, any
    /// number of the requests in flight complete, from none to all, in order; a sleep ends after
    /// one or more have completed. So [`at_once`](Faults::at_once), [`stalled`](Faults::stalled)
    /// and [`late`](Faults::late) would add nothing.
    pub fn all_orders() -> Latency {
        Latency(Times::AnyOrder)
    }

    pub(super) fn times(&self) -> &Times {
        &self.0
    }
}

impl Default for Latency {
    /// 50 microseconds to 5 milliseconds.
    fn default() -> Latency {
        Latency::between(Duration::from_micros(50), Duration::from_millis(5))
    }
}
