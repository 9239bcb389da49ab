//! Detection of coroutines that can never run again (rule S6).
//!
//! The check runs when the loop has been idle for a while, with no I/O, timer, fd handler or bottom
//! half left that could end that. A coroutine is stuck if only other stuck coroutines can end its
//! wait: its waker is known and stuck, or all coroutines wait and no other thread runs. A deadlock
//! is reported once. It is not an error: the loop continues to sleep, and a debugger finds
//! everything unchanged.

use std::cell::{Cell, LazyCell};
use std::fmt::Write;
use std::{fs, io, ptr};

use crate::context::IdleHook;
use crate::coroutine::{ControlBlock, State};
use crate::diagnostics::WakeSource;
use crate::scheduler::Scheduler;
use crate::sys::report;

/// Returns the coroutines that nothing can wake any more.
fn stuck(scheduler: &Scheduler) -> Vec<&'static ControlBlock> {
    let reason = |block: &'static ControlBlock| scheduler.local(block).wait_reason.get();
    let is_suspended = |block: &&'static ControlBlock| scheduler.local(block).state.get() == State::Suspended;
    let mut stuck: Vec<_> = scheduler.live().filter(is_suspended).collect();
    let suspended = stuck.len();
    let threads = LazyCell::new(is_threaded);
    loop {
        let others = stuck.len() < suspended;
        let may_run = |block: &&'static ControlBlock| match reason(block).wake_source(scheduler) {
            WakeSource::Event => true,
            WakeSource::Coroutine(source) => !stuck.iter().any(|&other| ptr::eq(other, source)),
            WakeSource::Nobody => false,
            WakeSource::Others => others,
            WakeSource::Anyone => others || *threads,
        };
        let still: Vec<_> = stuck.iter().copied().filter(|block| !may_run(block)).collect();
        if still.len() == stuck.len() {
            return still;
        }
        stuck = still;
    }
}

/// Creates the hook that reports the stuck coroutines, unless the same ones were reported before.
pub(crate) fn reporter() -> IdleHook {
    let last_reported_serial = Cell::new(0);
    Box::new(move |home| {
        let stuck = stuck(&home.scheduler);
        let youngest = stuck.iter().map(|block| home.scheduler.local(block).serial.get()).max().unwrap_or(0);
        if !stuck.is_empty() && last_reported_serial.replace(youngest) != youngest {
            report_stuck(&home.scheduler, &stuck);
        }
    })
}

fn report_stuck(scheduler: &Scheduler, stuck: &[&'static ControlBlock]) {
    const MAX: usize = 32;
    let which = match stuck.len() {
        1 => "this coroutine".to_string(),
        count => format!("these {count} coroutines"),
    };
    let mut text =
        format!("coralio: deadlock: nothing can wake {which}; the loop has no I/O in flight, no timer and no watch\n");
    for block in stuck.iter().take(MAX) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {}", scheduler.describe(block));
    }
    if stuck.len() > MAX {
        let _ = writeln!(text, "  and {} more", stuck.len() - MAX);
    }
    report(format_args!("{text}"));
}

/// Returns whether this process has other threads; true if that cannot be determined.
fn is_threaded() -> bool {
    let threads = || -> io::Result<usize> { Ok(fs::read_dir("/proc/self/task")?.count()) };
    threads().map_or(true, |threads| threads > 1)
}
