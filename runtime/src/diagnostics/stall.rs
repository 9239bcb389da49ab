//! Detection of iterations that take too long, by a watcher thread; reported with the running
//! coroutine and a backtrace (off by default).
//!
//! The watcher reads the loop's heartbeat a few times within the limit; a counter that stays at the
//! same odd value for that long is a stall. It is reported once, while it lasts, so the backtrace
//! shows the slow code.

use std::fmt::Write;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::context::{AioContext, Heartbeat, SharedContext};
use crate::diagnostics::Prepared;
use crate::diagnostics::interrupt;
use crate::sys::report;

/// The thread that watches a loop; stopped when this is dropped.
pub(crate) struct Watcher {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Watcher {
    pub(crate) fn start(context: &AioContext, heartbeat: Arc<Heartbeat>, limit: Duration) -> io::Result<Watcher> {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, shared) = (Arc::clone(&stop), Arc::clone(&context.shared));
        let thread = thread::Builder::new()
            .name("coralio-stall".into())
            .spawn(move || watch(&shared, &heartbeat, limit, &stopped))?;
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

fn watch(shared: &SharedContext, heartbeat: &Heartbeat, limit: Duration, stop: &AtomicBool) {
    let (mut last, mut since, mut reported) = (0, Instant::now(), false);
    while !stop.load(Ordering::Relaxed) {
        thread::park_timeout(limit / 4);
        let now = heartbeat.count();
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
    let who = match interrupt::stopped(shared, |scheduler| _ = write!(chain, "{}", scheduler.chain())) {
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
