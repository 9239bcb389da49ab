//! Rounds, in turns, on a clock that counts this thread's CPU time.

#![allow(unsafe_code)]

use std::mem;

use crate::Case;
use crate::options::{Options, refuse};

/// How long one measurement takes, about. Long against the clock, short against the machine's moods.
const MEASUREMENT_NS: f64 = 10_000_000.0;
/// Batched cases divide it.
pub(crate) const BATCH: u64 = 32;

/// A case's medians, in nanoseconds.
pub(crate) struct Figures<'a> {
    pub(crate) case: &'a Case,
    pub(crate) ours: f64,
    pub(crate) bare: Option<f64>,
}

/// Runs all cases, round by round.
pub(crate) fn in_turns<'a>(cases: &[&'a Case], options: &Options) -> Vec<Figures<'a>> {
    let rounds = if options.trial { 1 } else { options.rounds };
    let times = |f| if options.trial { BATCH } else { times_for(f) };
    let mut measured: Vec<_> = cases
        .iter()
        .map(|&case| (case, (case.ours, times(case.ours), vec![]), case.bare.map(|bare| (bare, times(bare), vec![]))))
        .collect();
    for _ in 0..rounds {
        for (_, (ours, times, ns), bare) in &mut measured {
            ns.push(ours(*times));
            if let Some((bare, times, ns)) = bare {
                ns.push(bare(*times));
            }
        }
    }
    let figures = |(case, (_, _, ns), bare): (_, (_, _, Vec<f64>), Option<(_, _, Vec<f64>)>)| Figures {
        case,
        ours: median(ns),
        bare: bare.map(|(_, _, ns)| median(ns)),
    };
    measured.into_iter().map(figures).collect()
}

/// How many times make one measurement.
fn times_for(f: fn(u64) -> f64) -> u64 {
    let ns = f(32 * BATCH);
    (MEASUREMENT_NS / ns) as u64 / BATCH * BATCH + BATCH
}

fn median(mut ns: Vec<f64>) -> f64 {
    ns.sort_unstable_by(f64::total_cmp);
    ns[ns.len() / 2]
}

/// Nanoseconds that each of `times` took in `f`.
pub(crate) fn time(times: u64, f: impl FnOnce()) -> f64 {
    let before = cpu_time();
    f();
    (cpu_time() - before) / times as f64
}

/// This thread's CPU time in nanoseconds.
pub(crate) fn cpu_time() -> f64 {
    // SAFETY: the kernel writes the one timespec that it is given; all zero is a valid one.
    let (result, now) = unsafe {
        let mut now = mem::zeroed::<libc::timespec>();
        (libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut now), now)
    };
    assert_eq!(result, 0, "Linux has had this clock since 2.6.12");
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Keeps this thread on one CPU.
pub(crate) fn pin(cpu: usize) {
    if cpu >= libc::CPU_SETSIZE as usize {
        refuse(&format!("--pin: there is no CPU {cpu}"));
    }
    // SAFETY: CPU_SET writes within the set, as was just checked; the kernel reads the set, of the size it is told.
    let result = unsafe {
        let mut set = mem::zeroed::<libc::cpu_set_t>();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if result != 0 {
        refuse(&format!("--pin: cannot stay on CPU {cpu}: {}", std::io::Error::last_os_error()));
    }
}
