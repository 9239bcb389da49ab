//! The part of a context that all threads may access.

use std::any::Any;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};

use parking_lot::Mutex;

use crate::context::{
    BottomHalves, ContextLock, ContextWaiters, EventSource, HomeThread, LocalContext, Pollers, Timers, Watches,
};
use crate::scheduler::SharedScheduler;
use crate::sys::{Clock, Epoll};
use crate::trace::Tracer;

/// The token of the loop's own eventfd in the epoll set.
pub(crate) const NOTIFY_TOKEN: u64 = u64::MAX;

pub(crate) struct SharedContext {
    /// What other threads need of the scheduler. Shared with wakers.
    pub(crate) scheduler: Arc<SharedScheduler>,
    pub(crate) thread: HomeThread,
    pub(crate) lock: ContextLock,
    pub(crate) epoll: Epoll,
    pub(crate) bottom_halves: BottomHalves,
    pub(crate) watches: Watches,
    pub(crate) timers: Timers,
    pub(crate) waiters: ContextWaiters,
    pub(crate) pollers: Pollers,
    /// How long the loop may busy-poll before it sleeps, in nanoseconds.
    pub(crate) busy_poll_max: AtomicU64,
    /// Counts iterations with other work, so that fd handlers get their turn.
    pub(crate) busy_rounds: AtomicU32,
    /// The last sleep has polled epoll and queued all events. Relaxed: accessed under the context's
    /// lock, except for the sleeper's own store before it takes the lock.
    pub(crate) sleep_asked: AtomicBool,
    /// For polls of other threads; the home thread has its own copy. `None` after the context has
    /// ended.
    pub(crate) source: Mutex<Option<Arc<dyn EventSource>>>,
}

impl SharedContext {
    /// Creates the context of the calling thread.
    pub(crate) fn new(clock: Clock, tracer: Option<Tracer>) -> io::Result<Arc<SharedContext>> {
        let epoll = Epoll::new()?;
        let scheduler = SharedScheduler::new(clock, tracer)?;
        // Edge-triggered, so the counter is never read.
        epoll.add(scheduler.event_fd().as_raw_fd(), (libc::EPOLLIN | libc::EPOLLET) as u32, NOTIFY_TOKEN)?;
        Ok(Arc::new(SharedContext {
            scheduler,
            thread: HomeThread::here(),
            lock: ContextLock::default(),
            epoll,
            bottom_halves: BottomHalves::default(),
            watches: Watches::default(),
            timers: Timers::default(),
            waiters: ContextWaiters::default(),
            pollers: Pollers::default(),
            busy_poll_max: AtomicU64::new(0),
            busy_rounds: AtomicU32::new(0),
            sleep_asked: AtomicBool::new(false),
            source: Mutex::new(None),
        }))
    }

    /// Returns the home of this context, if this is its thread.
    #[inline]
    pub(crate) fn home<'a>(&self) -> Option<&'a LocalContext> {
        LocalContext::current().filter(|home| ptr::eq(&*home.context.shared, self))
    }

    /// Closes the context: removes the users' registrations, and rejects new ones. Returns the
    /// closures and everything else that they own, to be dropped without any lock.
    pub(crate) fn close(&self) -> Vec<Box<dyn Any>> {
        let mut values: Vec<Box<dyn Any>> = vec![Box::new(self.source.lock().take())];
        values.extend(self.bottom_halves.close(self));
        values.extend(self.watches.close(self));
        values.extend(self.timers.close(self));
        values.extend(self.pollers.close(self));
        values.extend(self.scheduler.remote_queue.close().into_iter().map(|event| Box::new(event) as _));
        values
    }
}

#[cfg(test)]
mod tests {
    use std::thread;
    use std::time::Instant;

    use crate::AioContext;

    /// Returns whether the loop, which falls asleep while the callback runs, is woken for what the
    /// callback registered.
    fn wakes<H>(register: impl FnOnce(&AioContext) -> H) -> bool {
        AioContext::run(|ctx| {
            let registered = register(ctx);
            thread::scope(|scope| assert!(scope.spawn(|| ctx.poll(false)).join().unwrap()));
            drop(registered);
            ctx.shared.scheduler.sleep.is_kicked()
        })
    }

    #[test]
    fn callback_on_foreign_thread_wakes_the_loop_for_queued_work() {
        // X3, X6, X7: a callback run by a foreign poll schedules or arms itself, and releases the
        // lock, so that the home loop falls asleep: once the callback has returned and is queued,
        // the loop is woken. It is not if nothing was queued
        let falls_asleep = |ctx: &AioContext| {
            let shared = std::sync::Arc::downgrade(&ctx.shared);
            move || shared.upgrade().expect("the context lives").scheduler.sleep.going_to_sleep()
        };
        for (queues, idle) in [(true, false), (true, true), (false, false)] {
            let woken = wakes(|ctx| {
                let sleep = falls_asleep(ctx);
                let bh = ctx.new_bottom_half_with(move |own| {
                    match (queues, idle) {
                        (true, false) => own.schedule(),
                        (true, true) => own.schedule_idle(),
                        _ => {}
                    }
                    sleep();
                });
                bh.inspect(|bh| bh.schedule()).unwrap()
            });
            assert_eq!(woken, queues, "bottom half, idle {idle}");
            let woken = wakes(|ctx| {
                let sleep = falls_asleep(ctx);
                let timer = ctx.new_timer_with(move |own| {
                    if queues {
                        own.arm_at(Instant::now());
                    }
                    sleep();
                });
                timer.inspect(|timer| timer.arm_at(Instant::now())).unwrap()
            });
            assert_eq!(woken, queues, "timer");
        }
        // The loop skips a source while its handler runs, so it must check once the handler has
        // returned.
        assert!(wakes(|ctx| ctx.add_poll_handler(|| true, falls_asleep(ctx)).unwrap()), "poll handler");
    }
}
