//! The exhibits: historical versions of the engine, each with one guard removed, and two
//! hypothetical ones.
//!
//! Each is the production engine with one constant of [`Guards`] changed.

use coralio::engine::guards::{
    AfterReap, AllGuards, Guards, InFlightDecrement, OnCancel, PartialSubmit, RingCursor, ShortRead, UnplugDecrement,
    WakeGuard,
};

use super::workloads::{WORKLOADS, Workload};

/// A version of the engine.
pub struct Version {
    /// The rule that it violates.
    pub rule: &'static str,
    pub when: &'static str,
    /// How it differs.
    pub what: &'static str,
    /// The name of the workload that it fails.
    pub bane: &'static str,
    /// All workloads, on this version.
    pub workloads: [Workload; WORKLOADS],
}

impl Version {
    /// Returns the name for titles.
    pub fn rule_or_today(&self) -> &str {
        if self.rule.is_empty() { "All guards in" } else { self.rule }
    }
}

/// Defines the versions, each by the constant that differs.
macro_rules! versions {
    ($($name:ident { $constant:ident: $type:ty = $value:expr } $rule:literal $when:literal $what:literal fails $bane:literal)*) => {
        $(
            struct $name;
            // SAFETY: where two threads reap without the lock, the workload synchronizes them; and
            // the only request cancelled in flight reads into leaked memory.
            unsafe impl Guards for $name {
                const $constant: $type = $value;
            }
        )*
        /// Returns all versions in the order of their rules.
        pub fn versions() -> Vec<Version> {
            vec![$(Version { rule: $rule, when: $when, what: $what, bane: $bane, workloads: super::workloads::all::<$name>() }),*]
        }
    };
}

versions! {
    July2016 { WAKE_GUARD: WakeGuard = WakeGuard::None }
        "H1" "July 2016" "a completion enters its coroutine" fails "own"
    September2016 { WAKE_GUARD: WakeGuard = WakeGuard::EnterUnlessCurrent }
        "H2" "Sept. 2016" "a completion enters its coroutine unless that is the current one" fails "lock"
    Unlocked2018 { REAP_LOCKS: bool = false }
        "H3" "2018" "a reap from submit does not take the lock" fails "thread"
    Batch2014 { RING_CURSOR: RingCursor = RingCursor::PerReap }
        "H4" "2014" "a reap takes completions off the ring in batches" fails "nested"
    LeavesTheLoop2016 { PARTIAL_SUBMIT: PartialSubmit = PartialSubmit::WedgeOnError }
        "H5" "2016" "after a submit error the remaining requests wait for a completion" fails "bad"
    WaitsForCompletion2016 { PARTIAL_SUBMIT: PartialSubmit = PartialSubmit::WedgeOnEagain }
        "H6" "2016" "after EAGAIN all requests wait for a completion" fails "again"
    ShortCircuit2021 { UNPLUG_DECREMENT: UnplugDecrement = UnplugDecrement::OnlyWhenNotFull }
        "H7" "2021" "unplug decrements the plug depth in only one of two branches" fails "plug"
    SubmitsFromReap2026 { AFTER_REAP: AfterReap = AfterReap::ReapSubmits }
        "H10" "2026" "a reap submits the requests that have gathered" fails "long"
    TakenForTheEnd2022 { SHORT_READ: ShortRead = ShortRead::TreatAsEof }
        "H11" "2022" "a short read is taken for the end of the file" fails "short"
    NeverSubmitted2022 { AFTER_REAP: AfterReap = AfterReap::NobodySubmits }
        "H11" "2022" "requests queued during a reap wait for the next reap" fails "short"
    LetsGo { ON_CANCEL: OnCancel = OnCancel::ReturnsAtOnce }
        "H12" "elsewhere" "cancel returns before the kernel is done" fails "cancel"
    DropsTheTail { PARTIAL_SUBMIT: PartialSubmit = PartialSubmit::TailForgotten }
        "E2" "never" "requests that the kernel did not accept are dropped" fails "part"
    CountsLate { IN_FLIGHT_DECREMENT: InFlightDecrement = InFlightDecrement::AfterWaking }
        "E5" "never" "in_flight is decremented after the coroutine has run" fails "depth1"
}

/// Returns the version with all guards.
pub fn today() -> Version {
    Version {
        rule: "",
        when: "today",
        what: "all guards in",
        bane: "",
        workloads: super::workloads::all::<AllGuards>(),
    }
}
