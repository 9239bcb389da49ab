//! Detection of iterations that take too long, by a watcher thread; reported with the running
//! coroutine and a backtrace (off by default).
//!
//! The loop's counter is odd during an iteration, or an enter outside of one, and even otherwise.
//! The watcher reads it a few times within the limit; a counter that stays at the same odd value
//! for that long is a stall. It is reported once, while it lasts, so the backtrace shows the slow
//! code.

use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::context::AioContext;
use crate::context::shared::SharedContext;
use crate::diagnostics::interrupt::{self, Prepared};
use crate::sys::report::report;

/// The counter read by the watcher. Written by the home thread only.
#[derive(Default)]
pub(crate) struct Heartbeat(AtomicU64);

impl Heartbeat {
    /// Begins a section that should not take long. Beginning a nested one also shows progress of
    /// the outer one.
    #[inline]
    pub(crate) fn begin(&self) -> u64 {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store((before | 1) + 2, Ordering::Relaxed);
        before
    }

    /// Pauses for a sleep of the loop, which does not count for any section around it.
    pub(crate) fn pause(&self) -> u64 {
        let before = self.0.load(Ordering::Relaxed);
        self.0.store((before + 1) & !1, Ordering::Relaxed);
        before
    }

    /// Continues after a sleep of the loop.
    pub(crate) fn resume(&self, before: u64) {
        self.0.store(before + 2, Ordering::Relaxed);
    }

    /// Ends the section; continues the one around it, if there is one.
    #[inline]
    pub(crate) fn end(&self, before: u64) {
        let now = self.0.load(Ordering::Relaxed);
        self.0.store(if before & 1 == 1 { now + 2 } else { now + 1 }, Ordering::Relaxed);
    }
}

/// The thread that watches a loop; stopped when this is dropped.
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watcher {
    pub(crate) fn start(context: &AioContext, limit: Duration) -> io::Result<Watcher> {
        let stop = Arc::new(AtomicBool::new(false));
        let (told, shared) = (Arc::clone(&stop), Arc::clone(&context.shared));
        let thread = thread::Builder::new().name("coralio-stall".into()).spawn(move || watch(&shared, limit, &told))?;
        Ok(Watcher { stop, thread: Some(thread) })
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            let _reported = thread.join();
        }
    }
}

fn watch(shared: &SharedContext, limit: Duration, stop: &AtomicBool) {
    let (mut last, mut since, mut reported) = (0, Instant::now(), false);
    while !stop.load(Ordering::Relaxed) {
        thread::park_timeout(limit / 4);
        let now = shared.heartbeat.0.load(Ordering::Relaxed);
        if now != last || now & 1 == 0 {
            (last, since, reported) = (now, Instant::now(), false);
        } else if since.elapsed() >= limit && !reported {
            reported = true;
            report_stall(shared, since.elapsed(), limit);
        }
    }
}

fn report_stall(shared: &SharedContext, took: Duration, limit: Duration) {
    let mut chain = Prepared::with_capacity(16 * 1024);
    // Writing to preallocated memory does not fail.
    let who = match interrupt::stopped(shared, |home| _ = write!(chain, "{}", home.chain())) {
        Ok(((), backtrace)) => {
            let more = if chain.is_complete() { "" } else { " > .." };
            format!("  on the stack: {}{more}\n{backtrace}", chain.as_str())
        }
        Err(why) => format!("  unknown location: {why}\n"),
    };
    report(format_args!(
        "coralio: stall: the loop of thread {} has spent {took:.0?} in one iteration, over the limit of {limit:?}; \
         nothing else runs meanwhile\n{who}",
        shared.thread.describe()
    ));
}

#[cfg(test)]
mod tests {
    use super::super::interrupt::allocations;
    use super::*;
    use crate::Coroutine;

    #[test]
    fn stall_report_allocates_nothing_while_the_thread_is_stopped() {
        // X11: the home thread may have been stopped inside the allocator
        AioContext::run(|ctx| {
            let (shared, over) = (Arc::clone(&ctx.shared), Arc::new(AtomicBool::new(false)));
            let ends = Arc::clone(&over);
            let looker = thread::spawn(move || {
                let limit = Duration::from_millis(1);
                let seen = allocations::while_stopped(&shared, || report_stall(&shared, limit, limit));
                ends.store(true, Ordering::Relaxed);
                seen
            });
            let busy = Coroutine::builder().name(String::from("busy")).create(move || {
                while !over.load(Ordering::Relaxed) {
                    thread::yield_now();
                }
            });
            busy.unwrap().enter();
            assert_eq!(looker.join().unwrap(), 0);
        });
    }
}
