//! What the runtime costs on top of a bare stack switch.
//!
//! ```text
//! cargo bench -p coralio-runtime                           a table
//! cargo bench -p coralio-runtime -- --json --pin 1         for a program, on one CPU
//! cargo bench -p coralio-runtime -- --rounds 31 mutex      what has `mutex` in its name
//! ```
//!
//! Each round measures every case, ours and its peer one right after the other, so that a noisy neighbour meets both.
//! Figures are medians over the rounds, in nanoseconds of this thread's CPU time.

mod bare;
mod measure;
mod options;
mod ours;
mod report;

use options::Options;

/// One thing that is measured.
struct Case {
    name: &'static str,
    /// Does it that many times; returns nanoseconds per time.
    ours: fn(u64) -> f64,
    /// The nearest that bare corosensei has.
    bare: Option<fn(u64) -> f64>,
    /// What we answer for: nanoseconds, and the ratio to `bare`.
    at_most_ns: Option<f64>,
    at_most_ratio: Option<f64>,
}

const CASES: [Case; 10] = [
    Case {
        name: "enter-yield",
        ours: ours::enter_and_yield,
        bare: Some(bare::resume_and_suspend),
        at_most_ns: Some(35.0),
        at_most_ratio: Some(1.5),
    },
    Case {
        name: "create-enter-end",
        ours: ours::create_enter_end,
        bare: Some(bare::create_resume_end),
        at_most_ns: Some(60.0),
        at_most_ratio: None,
    },
    Case {
        name: "spawn-end",
        ours: ours::spawn_and_end,
        bare: Some(bare::create_resume_end),
        at_most_ns: Some(60.0),
        at_most_ratio: None,
    },
    Case {
        name: "spawn-join",
        ours: ours::spawn_and_join,
        bare: Some(bare::create_resume_end),
        at_most_ns: None,
        at_most_ratio: None,
    },
    Case { name: "mutex", ours: ours::mutex, bare: None, at_most_ns: Some(15.0), at_most_ratio: None },
    Case { name: "bottom-half", ours: ours::bottom_half, bare: None, at_most_ns: Some(60.0), at_most_ratio: None },
    Case {
        name: "yield-now",
        ours: ours::yield_now_alone,
        bare: Some(bare::resume_and_suspend),
        at_most_ns: None,
        at_most_ratio: None,
    },
    Case {
        name: "yield-now-two",
        ours: ours::yield_now_in_turns,
        bare: Some(bare::resume_and_suspend),
        at_most_ns: None,
        at_most_ratio: None,
    },
    Case {
        name: "wake",
        ours: ours::wake,
        bare: Some(bare::resume_and_suspend),
        at_most_ns: None,
        at_most_ratio: None,
    },
    Case { name: "empty-poll", ours: ours::empty_poll, bare: None, at_most_ns: Some(40.0), at_most_ratio: None },
];

fn main() {
    let options = Options::parse();
    if let Some(cpu) = options.pin {
        measure::pin(cpu);
    }
    let cases: Vec<_> = CASES.iter().filter(|case| case.name.contains(&options.filter)).collect();
    if cases.is_empty() {
        let names: Vec<_> = CASES.iter().map(|case| case.name).collect();
        options::refuse(&format!("no case has '{}' in its name; there are: {}", options.filter, names.join(" ")));
    }
    report::print(&options, &measure::in_turns(&cases, &options));
}
