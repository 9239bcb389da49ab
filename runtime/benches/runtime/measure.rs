//! Interleaved measuring rounds; the clock, and the other counters.

#![allow(unsafe_code)]

use std::os::unix::thread::JoinHandleExt;
use std::thread::{self, JoinHandle};
use std::time::Duration;
use std::{fs, mem};

use crate::cases::{Case, Run, Unit};
use crate::options::{Options, refuse};

/// The approximate duration of one measurement: long for the clock's resolution, short for drifts
/// of the machine.
const MEASUREMENT_NS: f64 = 10_000_000.0;
/// Divides the repetitions of batched cases.
pub(crate) const BATCH: u64 = 32;

/// The clock of the whole process's CPU time.
pub(crate) const PROCESS: libc::clockid_t = libc::CLOCK_PROCESS_CPUTIME_ID;

/// A case's medians, in its unit.
pub(crate) struct Figures<'a> {
    pub(crate) case: &'a Case,
    pub(crate) ours: f64,
    /// In the case's order.
    pub(crate) peers: Vec<f64>,
}

/// A participant and its figures so far.
struct Series {
    run: Run,
    times: u64,
    figures: Vec<f64>,
}

impl Series {
    fn of(run: Run, unit: Unit, options: &Options) -> Series {
        let times = match unit {
            Unit::Ns if options.trial => BATCH,
            Unit::Ns => times_for(run),
            Unit::Writes if options.trial => BATCH,
            Unit::Writes => 64 * BATCH,
            Unit::NsPerSecond if options.trial => 1,
            Unit::NsPerSecond => 1000,
        };
        Series { run, times, figures: Vec::new() }
    }

    fn measure(&mut self) {
        self.figures.push((self.run)(self.times));
    }
}

/// Runs all cases, round by round. Untimed cases need few rounds and a quiet process, so they run
/// first.
pub(crate) fn in_turns<'a>(cases: &[&'a Case], options: &Options) -> Vec<Figures<'a>> {
    let (timed, counted): (Vec<_>, Vec<_>) = cases.iter().partition(|case| case.unit == Unit::Ns);
    let rounds = if options.trial { 1 } else { options.rounds };
    let mut figures = rounds_of(&counted, options, rounds.min(3));
    figures.extend(rounds_of(&timed, options, rounds));
    figures
}

fn rounds_of<'a>(cases: &[&'a Case], options: &Options, rounds: usize) -> Vec<Figures<'a>> {
    let series = |case: &'a Case| {
        let runs = std::iter::once(case.ours).chain(case.peers.iter().map(|peer| peer.run));
        (case, runs.map(|run| Series::of(run, case.unit, options)).collect::<Vec<_>>())
    };
    let mut all: Vec<_> = cases.iter().map(|&case| series(case)).collect();
    for _ in 0..rounds {
        all.iter_mut().flat_map(|(_, series)| series).for_each(Series::measure);
    }
    all.into_iter()
        .map(|(case, series)| {
            let mut medians = series.into_iter().map(|series| median(series.figures));
            Figures { case, ours: medians.next().expect("ours comes first"), peers: medians.collect() }
        })
        .collect()
}

/// Returns how many repetitions make one measurement.
fn times_for(run: Run) -> u64 {
    let ns = run(32 * BATCH);
    (MEASUREMENT_NS / ns) as u64 / BATCH * BATCH + BATCH
}

fn median(mut figures: Vec<f64>) -> f64 {
    figures.sort_unstable_by(f64::total_cmp);
    figures[figures.len() / 2]
}

/// Returns the nanoseconds of CPU time that `f` took, divided by `times`.
pub(crate) fn time(times: u64, f: impl FnOnce()) -> f64 {
    let before = read(PROCESS);
    f();
    (read(PROCESS) - before) / times as f64
}

/// Sleeps, after giving another thread time to fall asleep. Returns how far `clock` advances
/// meanwhile, in nanoseconds per second.
pub(crate) fn asleep(millis: u64, clock: libc::clockid_t) -> f64 {
    let period = Duration::from_millis(millis);
    thread::sleep(period / 10);
    let before = read(clock);
    thread::sleep(period);
    (read(clock) - before) / period.as_secs_f64()
}

/// Returns the CPU clock of another thread, valid until that thread has ended.
pub(crate) fn clock_of<T>(thread: &JoinHandle<T>) -> libc::clockid_t {
    let mut clock = 0;
    // SAFETY: a thread with a handle has not been joined; `clock` is ours to write.
    let result = unsafe { libc::pthread_getcpuclockid(thread.as_pthread_t(), &mut clock) };
    assert_eq!(result, 0, "the thread lives");
    clock
}

/// Reads a clock, in nanoseconds.
fn read(clock: libc::clockid_t) -> f64 {
    // SAFETY: the kernel writes only the given timespec; all zeroes is a valid one.
    let (result, now) = unsafe {
        let mut now = mem::zeroed::<libc::timespec>();
        (libc::clock_gettime(clock, &mut now), now)
    };
    assert_eq!(result, 0, "Linux has had these clocks since 2.6.12");
    now.tv_sec as f64 * 1e9 + now.tv_nsec as f64
}

/// Returns the write system calls that `f` made in all threads, divided by `times`.
pub(crate) fn writes(times: u64, f: impl FnOnce()) -> f64 {
    let before = writes_so_far();
    f();
    (writes_so_far() - before) as f64 / times as f64
}

fn writes_so_far() -> u64 {
    let io = fs::read_to_string("/proc/self/io");
    let io = io.unwrap_or_else(|error| refuse(&format!("/proc/self/io, which counts system calls: {error}")));
    let count = io.lines().find_map(|line| line.strip_prefix("syscw: "));
    count.and_then(|count| count.parse().ok()).expect("proc(5) promises syscw")
}

/// Pins this thread, and the threads that it starts, to one CPU.
pub(crate) fn pin(cpu: usize) {
    if cpu >= libc::CPU_SETSIZE as usize {
        refuse(&format!("--pin: there is no CPU {cpu}"));
    }
    // SAFETY: CPU_SET writes within the set, as checked above; the kernel reads the set with its
    // actual size.
    let result = unsafe {
        let mut set = mem::zeroed::<libc::cpu_set_t>();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &set)
    };
    if result != 0 {
        refuse(&format!("--pin: cannot stay on CPU {cpu}: {}", std::io::Error::last_os_error()));
    }
}

/// Selects SCHED_BATCH: a woken thread then does not preempt its waker, which continues until it
/// sleeps. Otherwise, on one CPU, the two ends of a ping-pong seldom sleep: each is signalled
/// before it gets there.
pub(crate) fn let_the_waker_go_on() {
    // SAFETY: all zeroes is a valid parameter, and alive during the call.
    let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_BATCH, &mem::zeroed::<libc::sched_param>()) };
    if result != 0 {
        let error = std::io::Error::last_os_error();
        eprintln!("no SCHED_BATCH ({error}): `wake-sleeping` sleeps as often as `wake-sleeping-writes` tells");
    }
}
