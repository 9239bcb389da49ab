//! The measured cases, their peers, and their limits.

#[cfg(may)]
use crate::may;
use crate::{across, bare, eventfd, ours, tokio};

/// The unit of a figure, which also decides how often the operation is repeated.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    /// Nanoseconds of the process's CPU time per operation.
    Ns,
    /// Write system calls per operation.
    Writes,
    /// Nanoseconds of CPU time per second.
    NsPerSecond,
}

impl Unit {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Unit::Ns => "ns",
            Unit::Writes => "writes",
            Unit::NsPerSecond => "ns/s",
        }
    }
}

/// Repeats the operation the given number of times; returns the figure. For [`Unit::NsPerSecond`]
/// the argument is in milliseconds.
pub(crate) type Run = fn(u64) -> f64;

/// A measured case.
pub(crate) struct Case {
    pub(crate) name: &'static str,
    pub(crate) unit: Unit,
    pub(crate) ours: Run,
    /// The limit that we guarantee.
    pub(crate) at_most: Option<f64>,
    pub(crate) peers: &'static [Peer],
}

/// The closest equivalent in another runtime.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) run: Run,
    /// The limit that we guarantee for our figure divided by the peer's.
    pub(crate) at_most: Option<f64>,
}

const fn peer(name: &'static str, run: Run) -> Peer {
    Peer { name, run, at_most: None }
}

impl Peer {
    const fn at_most(self, ratio: f64) -> Peer {
        Peer { at_most: Some(ratio), ..self }
    }
}

const fn timed(name: &'static str, ours: Run, at_most: Option<f64>, peers: &'static [Peer]) -> Case {
    Case { name, unit: Unit::Ns, ours, at_most, peers }
}

/// Untimed cases come first: `may`'s threads, once started, wake up a hundred times a second.
pub(crate) const CASES: [Case; 18] = [
    Case {
        name: "idle",
        unit: Unit::NsPerSecond,
        ours: across::idle,
        at_most: None,
        peers: &[peer("eventfd", eventfd::idle)],
    },
    Case { name: "idle-loop", unit: Unit::NsPerSecond, ours: across::idle_loop, at_most: Some(0.0), peers: &[] },
    Case { name: "wake-busy", unit: Unit::Writes, ours: across::wake_busy, at_most: Some(0.0), peers: &[] },
    // Validates its neighbours: the counter of `wake-busy` works, and the loops of `wake-sleeping`
    // sleep.
    Case {
        name: "wake-sleeping-writes",
        unit: Unit::Writes,
        ours: across::wake_sleeping_writes,
        at_most: Some(1.0),
        peers: &[peer("eventfd", eventfd::ping_pong_writes)],
    },
    timed(
        "wake-sleeping",
        across::wake_sleeping,
        None,
        &[peer("eventfd", eventfd::ping_pong).at_most(1.2), peer("eventfd-read", eventfd::ping_pong_by_reads)],
    ),
    timed("enter-yield", ours::enter_and_yield, Some(35.0), &[peer("bare", bare::resume_and_suspend).at_most(1.5)]),
    timed("create-enter-end", ours::create_enter_end, Some(60.0), &[peer("bare", bare::create_resume_end)]),
    timed("spawn-end", ours::spawn_and_end, Some(60.0), &[peer("bare", bare::create_resume_end)]),
    timed(
        "spawn-join",
        ours::spawn_and_join_do_not_allocate,
        Some(120.0),
        &[
            peer("bare", bare::create_resume_end),
            peer("tokio", tokio::spawn_and_join_do_not_allocate).at_most(1.0),
            #[cfg(may)]
            peer("may", may::spawn_and_join_do_not_allocate).at_most(1.0),
        ],
    ),
    timed("yield-one", ours::yield_alone, None, &[peer("bare", bare::resume_and_suspend)]),
    timed(
        "yield-two",
        ours::yield_two,
        Some(60.0),
        &[
            peer("bare", bare::resume_and_suspend),
            peer("tokio", tokio::yield_two).at_most(1.0),
            #[cfg(may)]
            peer("may", may::yield_two).at_most(1.0),
        ],
    ),
    timed("wake", ours::wake, None, &[peer("bare", bare::resume_and_suspend)]),
    timed(
        "mutex",
        ours::mutex,
        Some(15.0),
        &[
            peer("tokio", tokio::mutex),
            #[cfg(may)]
            peer("may", may::mutex),
        ],
    ),
    timed(
        "mutex-contended-4",
        ours::mutex_contended,
        None,
        &[
            peer("tokio", tokio::mutex_contended).at_most(1.0),
            #[cfg(may)]
            peer("may", may::mutex_contended),
        ],
    ),
    timed("bottom-half", ours::bottom_half, Some(60.0), &[]),
    timed("echo", ours::echo, None, &[]),
    timed("empty-poll", ours::empty_poll, Some(40.0), &[]),
    timed("traced-event", ours::traced_event, Some(50.0), &[]),
];
