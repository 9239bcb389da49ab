//! What goes wrong, and how long things take: by rate, or by script.

use std::time::Duration;

/// How often what goes wrong, as rates from 0 (never) to 1 (always).
///
/// ```
/// use coralio_aio::simulate::Faults;
///
/// let harsh = Faults::harmless().short(0.5).errors(0.01);
/// ```
#[derive(Clone, Debug, PartialEq)]
#[must_use]
pub struct Faults {
    pub(super) refused: f64,
    pub(super) partial: f64,
    pub(super) invalid: f64,
    pub(super) at_once: f64,
    pub(super) stalled: f64,
    pub(super) late: f64,
    pub(super) early: f64,
    pub(super) short: f64,
    pub(super) errors: f64,
    pub(super) cancelled: f64,
    pub(super) most: u32,
}

/// Defines setters of rates.
macro_rules! rates {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $($(#[$doc])*
        ///
        /// # Panics
        ///
        /// If `rate` is not from 0 to 1.
        pub fn $name(mut self, rate: f64) -> Faults {
            assert!((0.0..=1.0).contains(&rate), "{rate} is no rate: it is 0 (never) to 1 (always)");
            self.$name = rate;
            self
        })*
    };
}

impl Faults {
    /// Nothing goes wrong. Requests complete in the order of their latencies.
    pub fn none() -> Faults {
        Faults {
            refused: 0.0,
            partial: 0.0,
            invalid: 0.0,
            at_once: 0.0,
            stalled: 0.0,
            late: 0.0,
            early: 0.0,
            short: 0.0,
            errors: 0.0,
            cancelled: 0.0,
            most: u32::MAX,
        }
    }

    /// What a program does not notice if this library does its part: all but
    /// [`errors`](Self::errors) and [`invalid`](Self::invalid). The default.
    pub fn harmless() -> Faults {
        let often = Faults::none().refused(0.1).partial(0.2).at_once(0.2).late(0.2);
        often.stalled(0.02).early(0.05).short(0.1).cancelled(0.5)
    }

    rates! {
        /// A submit is refused whole: "try again". At most three times in a row.
        refused,
        /// A submit takes a part of what it is offered.
        partial,
        /// A submit fails, and names the first request as the cause: `EINVAL`.
        invalid,
        /// A request completes within its submit.
        at_once,
        /// A request takes [`Latency`] and then a second.
        stalled,
        /// A sleep ends later than the first completion: several are there then, and were told of
        /// as one.
        late,
        /// A sleep ends though there is nothing, as a signal makes it do.
        early,
        /// A read or a write transfers less than it was asked for.
        short,
        /// A request fails: `EIO`, and for writes also `ENOSPC`. After a sync that failed, what it
        /// was to make durable may be lost though a later one succeeds, as on Linux.
        errors,
        /// A cancel stops its request, as io_uring may; otherwise the request goes on, as with
        /// native AIO.
        cancelled,
    }

    /// The most faults in one run, all kinds together; those of a script do not count. For tapes
    /// that are counted through.
    pub fn most(mut self, faults: u32) -> Faults {
        self.most = faults;
        self
    }
}

impl Default for Faults {
    fn default() -> Faults {
        Faults::harmless()
    }
}

/// One thing that goes wrong, for a script: see
/// [`Sim::inject`](super::super::super::simulate::Sim::inject).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The next submit fails with this `errno`; `EAGAIN` is "try again".
    Refuse(i32),
    /// The next submit takes at most so many requests, at least one.
    Take(usize),
    /// The next request that is taken completes within its submit.
    AtOnce,
    /// The next request that is taken takes so much longer.
    Delay(Duration),
    /// The next request that is taken transfers at most so many bytes.
    Short(usize),
    /// The next request that is taken fails with this `errno`, and does nothing.
    Error(i32),
}

impl Fault {
    /// Whether it concerns a submit, not a request.
    pub(super) fn is_of_submit(self) -> bool {
        match self {
            Fault::Refuse(_) | Fault::Take(_) => true,
            Fault::AtOnce | Fault::Delay(_) | Fault::Short(_) | Fault::Error(_) => false,
        }
    }
}

/// How long requests take: a list of times, of which each request takes one. To make one likelier,
/// name it several times. Or each order, for tapes that are counted through:
/// [`any_order`](Self::any_order).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Latency(Times);

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Times {
    /// One of these, the shortest first, which is the tamest.
    Of(Vec<Duration>),
    /// By the place among those in flight.
    AnyOrder,
}

impl Latency {
    /// Every request takes as long.
    pub fn fixed(time: Duration) -> Latency {
        Latency(Times::Of(vec![time]))
    }

    /// Sixteen times from `shortest` to `longest`, each longer than the one before by the same
    /// factor: as disks are, mostly quick.
    ///
    /// # Panics
    ///
    /// If `shortest` is 0, or longer than `longest`.
    pub fn between(shortest: Duration, longest: Duration) -> Latency {
        assert!(
            !shortest.is_zero() && shortest <= longest,
            "a latency goes from more than 0 up: {shortest:?} to {longest:?}"
        );
        let factor = longest.as_secs_f64() / shortest.as_secs_f64();
        Latency(Times::Of((0..16).map(|step| shortest.mul_f64(factor.powf(f64::from(step) / 15.0))).collect()))
    }

    /// One of these.
    ///
    /// # Panics
    ///
    /// If there are none.
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Latency {
        let mut times: Vec<_> = times.into_iter().collect();
        assert!(!times.is_empty(), "a latency is at least one time");
        times.sort();
        Latency(Times::Of(times))
    }

    /// Each order, and none twice, for
    /// [`exhaust`](super::super::super::simulate::Simulation::exhaust). A request completes behind
    /// the last of those in flight, a millisecond later, or before one of them. Within a submit
    /// complete none, or the first of all that are in flight, or more, up to all; a sleep ends when
    /// one has completed, or more. So [`at_once`](Faults::at_once), [`stalled`](Faults::stalled)
    /// and [`late`](Faults::late) would bring nothing new.
    pub fn any_order() -> Latency {
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
