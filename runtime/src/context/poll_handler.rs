//! Poll handlers: sources that the loop checks in memory instead of by a system call, and how long
//! it busy-polls them before it sleeps (rule X5).
//!
//! Each source has a *window*, the time for which busy-polling it pays. The window grows while
//! events arrive soon after the loop gave up, and shrinks while none do. Windows are per source, so
//! that a slow source costs a fast one nothing. While the loop busy-polls it makes no system call,
//! and neither does a notifier, since the loop is not asleep. Descriptors cannot be checked in
//! memory: their events wait for at most the user's limit, which no window exceeds.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::context::SharedContext;
use crate::context::registration::{Entry, Key, Kind, State, Table};
use crate::trace::Span;

mod handle;

pub use handle::{PollHandler, PollHandlerInfo};

/// The initial size of a window; one that shrinks below it is closed.
const SMALLEST: u64 = 4_000;

/// How long busy-polling pays, in nanoseconds. Written by the home thread only.
#[derive(Default)]
pub(crate) struct PollWindow(AtomicU64);

impl PollWindow {
    pub(crate) fn ns(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adjusts the window after a wait of `waited` nanoseconds: the source became ready
    /// (`became_ready`), or did not.
    pub(crate) fn adjust(&self, waited: u64, became_ready: bool, limit: u64) {
        let window = self.ns();
        let adjusted = if waited > limit {
            // The wait exceeds the limit, so polling longer could not have paid.
            if window / 2 < SMALLEST { 0 } else { window / 2 }
        } else if became_ready && waited > window {
            (window * 2).clamp(SMALLEST.min(limit), limit)
        } else {
            window.min(limit)
        };
        self.0.store(adjusted, Ordering::Relaxed);
    }
}

type IsReady = Arc<dyn Fn() -> bool + Send + Sync>;

pub(crate) struct Poller {
    is_ready: IsReady,
    window: Arc<PollWindow>,
}

/// All poll handlers of a context.
pub(crate) type Pollers = Table<Poller>;

impl Kind for Poller {
    type Event = ();
    type Queues = ();
    const CREATION: &'static str = "add a poll handler";
    const SPAN: Span = Span::PollHandler;

    fn table(shared: &SharedContext) -> &Pollers {
        &shared.pollers
    }

    fn pending(state: &State<Self>) -> u64 {
        state.entries.len() as u64
    }

    fn cancel(_: &mut Entry<Self>, (): &mut (), _: &SharedContext) {}

    fn requeue(_: &mut State<Self>, _: usize, _: &SharedContext) -> bool {
        // The loop ignored this source while its handler ran.
        true
    }
}

impl Pollers {
    /// Visits the entries whose handler is not running, without holding the lock, until `each`
    /// returns false.
    fn visit(&self, mut each: impl FnMut(Key, &IsReady, &PollWindow) -> bool) {
        let mut from = 0;
        while !self.is_empty() {
            let (key, is_ready, window) = {
                let state = self.lock();
                let idle = |(index, entry): &(usize, &Entry<_>)| *index >= from && !entry.is_running;
                let Some((_, Entry { key, kind, .. })) = state.entries.iter().find(idle) else { return };
                (*key, Arc::clone(&kind.is_ready), Arc::clone(&kind.window))
            };
            if !each(key, &is_ready, &window) {
                return;
            }
            from = key.index + 1;
        }
    }

    /// Returns whether a source is ready whose window is at least `looked_for` long.
    pub(crate) fn is_ready(&self, looked_for: u64) -> bool {
        let mut ready = false;
        self.visit(|_, is_ready, window| {
            ready = window.ns() >= looked_for && is_ready();
            !ready
        });
        ready
    }

    /// Returns the longest window.
    pub(crate) fn longest(&self) -> u64 {
        let mut longest = 0;
        self.visit(|_, _, window| {
            longest = longest.max(window.ns());
            true
        });
        longest
    }

    /// Adjusts each source's window after a wait of `waited`, by whether the source is ready now.
    pub(crate) fn adjust(&self, waited: u64, limit: u64) {
        self.visit(|_, is_ready, window| {
            window.adjust(waited, is_ready(), limit);
            true
        });
    }

    /// Calls the handlers of the ready sources. Returns whether there were any.
    ///
    /// # Control
    ///
    /// May enter and poll, through the handlers. A handler that polls is not called recursively
    /// (rule X4).
    #[inline]
    pub(crate) fn run_ready(&self, shared: &Arc<SharedContext>) -> bool {
        !self.is_empty() && self.run_any(shared)
    }

    #[inline(never)]
    fn run_any(&self, shared: &Arc<SharedContext>) -> bool {
        let mut progress = false;
        self.visit(|key, is_ready, _| {
            let started = if is_ready() { self.lock().start(key) } else { None };
            if let Some(started) = started {
                progress = true;
                drop(self.call(shared, started, ()));
            }
            true
        });
        progress
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AioContext;
    use std::sync::atomic::{AtomicBool, AtomicUsize};
    use std::time::Duration;

    const LIMIT: u64 = 100_000;

    fn adjusted(steps: &[(u64, bool)]) -> u64 {
        let window = PollWindow::default();
        steps.iter().for_each(|&(waited, became_ready)| window.adjust(waited, became_ready, LIMIT));
        window.ns()
    }

    #[test]
    fn window_grows_and_shrinks() {
        // X5: the window grows while longer polling would have paid, up to the limit, and shrinks
        // otherwise
        assert_eq!(adjusted(&[(50_000, true)]), SMALLEST);
        assert_eq!(adjusted(&[(50_000, true); 3]), 4 * SMALLEST);
        assert_eq!(adjusted(&[(50_000, true); 5]), 16 * SMALLEST, "enough is enough");
        assert_eq!(adjusted(&[(99_999, true); 20]), LIMIT, "no more than the limit");
        assert_eq!(adjusted(&[(50_000, false); 5]), 0, "another source came");
        let mut steps = vec![(50_000, true); 5];
        steps.push((LIMIT + 1, true));
        assert_eq!(adjusted(&steps), 8 * SMALLEST, "too slow");
        steps.extend([(LIMIT + 1, false); 4]);
        assert_eq!(adjusted(&steps), 0, "not worth it any more");
    }

    #[test]
    fn slow_source_does_not_shrink_a_fast_sources_window() {
        // X5: each source has its own window; events of one source do not affect another's
        AioContext::run(|ctx| {
            let fast_is_ready = Arc::new(AtomicBool::new(true));
            let looked = Arc::clone(&fast_is_ready);
            let fast = ctx.add_poll_handler(move || looked.load(Ordering::Relaxed), || {}).unwrap();
            let slow = ctx.add_poll_handler(|| false, || {}).unwrap();
            let pollers = &ctx.shared.pollers;
            (0..3).for_each(|_| pollers.adjust(20_000, LIMIT));
            assert_eq!((fast.window().as_nanos(), slow.window().as_nanos()), (16_000, 0));
            fast_is_ready.store(false, Ordering::Relaxed);
            pollers.adjust(20_000, LIMIT);
            assert_eq!(fast.window().as_nanos(), 16_000, "nothing came for it: nothing is learnt");
            assert_eq!(pollers.longest(), 16_000);
            drop(fast);
            assert_eq!(pollers.longest(), 0);
        });
    }

    #[test]
    fn busy_poll_needs_no_notification() {
        // X5: a source that becomes ready in memory is found by polling, without a system call on
        // either side
        AioContext::builder()
            .busy_poll_max(Duration::from_secs(3600))
            .run(|ctx| {
                // A loop that checked only once before its sleep would never end this test.
                let (looks, runs) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
                let (looked, counted, shared) = (Arc::clone(&looks), Arc::clone(&runs), Arc::downgrade(&ctx.shared));
                let added = ctx.add_poll_handler(
                    move || {
                        assert!(!shared.upgrade().expect("it runs").scheduler.sleep.needs_kick());
                        looked.fetch_add(1, Ordering::Relaxed) >= 1000
                    },
                    move || _ = counted.fetch_add(1, Ordering::Relaxed),
                );
                let handler = added.unwrap();
                let window = Arc::clone(&ctx.shared.pollers.lock().entries[handler.0.key.index].kind.window);
                window.0.store(u64::MAX >> 1, Ordering::Relaxed);
                assert!(ctx.poll(true));
                assert_eq!(runs.load(Ordering::Relaxed), 1);
            })
            .unwrap();
    }

    #[test]
    fn is_ready_cannot_suspend_the_polling_coroutine() {
        // X5, X8: the loop calls `is_ready` without the context's lock, also in a poll of a
        // coroutine. If `is_ready` suspended that coroutine, its enterers would continue without
        // the lock that they hold
        AioContext::builder()
            .busy_poll_max(Duration::from_secs(3600))
            .run(|ctx| {
                let looks = AtomicUsize::new(0);
                let is_ready = move || {
                    assert!(!crate::can_suspend());
                    looks.fetch_add(1, Ordering::Relaxed) >= 1000
                };
                let handler = ctx.add_poll_handler(is_ready, || {}).unwrap();
                let window = Arc::clone(&ctx.shared.pollers.lock().entries[handler.0.key.index].kind.window);
                window.0.store(u64::MAX >> 1, Ordering::Relaxed);
                let context = ctx.clone();
                assert!(crate::spawn(move || context.poll(true)).join().unwrap());
            })
            .unwrap();
    }

    #[test]
    fn notification_ends_one_busy_poll() {
        // X5, X6: a notification to a loop that is awake makes one blocking poll return; the next
        // one busy-polls for its full window
        AioContext::builder()
            .busy_poll_max(Duration::from_secs(3600))
            .run(|ctx| {
                let looks = Arc::new(AtomicUsize::new(0));
                let looked = Arc::clone(&looks);
                let handler =
                    ctx.add_poll_handler(move || looked.fetch_add(1, Ordering::Relaxed) >= 1000, || {}).unwrap();
                let window = Arc::clone(&ctx.shared.pollers.lock().entries[handler.0.key.index].kind.window);
                window.0.store(u64::MAX >> 1, Ordering::Relaxed);
                ctx.notify();
                assert!(!ctx.poll(true));
                assert!(looks.load(Ordering::Relaxed) < 1000, "the poll returned immediately");
                assert!(ctx.poll(true), "the source was ready in the end");
            })
            .unwrap();
    }
}
