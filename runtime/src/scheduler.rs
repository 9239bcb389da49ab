//! The state of a thread that runs a context: its coroutines, and which of them are on the stack.
//!
//! ```text
//!   thread's own stack     'A' (entered by it)     'B' (entered by 'A')
//!   ------------------     -------------------     --------------------
//!   Home::enter  frame <---- Home::enter  frame <---- running
//!                  woken: X        woken: -
//! ```
//!
//! Each `enter` keeps a *frame* on the enterer's stack. The frames, innermost first, are the chain
//! of entered coroutines. Each frame has a list of the coroutines that its coroutine woke (rule
//! W1). They run from the same frame when that coroutine yields or ends, one after the other, so a
//! chain of wakes never makes the stack grow. An iteration of the loop keeps a frame too, in which
//! no coroutine runs: a coroutine woken there is entered immediately.
//!
//! Every suspension goes through [`Home::suspend_if_possible`], and every resumption through
//! [`Home::resume`]: one choke point for each. Invariants, cited where code relies on them:
//!
//! - *home outlives its stacks*: a `Home` lives in the frame of the call that runs the context, and
//!   is dropped after all its coroutines have ended. References to it are found through a
//!   thread-local and only ever lie on those stacks, so they never dangle.
//! - *taken out while it runs*: the machine of a block in state `Entered` is in use by exactly one
//!   `resume`. No other code touches it until the coroutine suspends or ends.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{Ordering, compiler_fence};
use std::time::{Duration, Instant};
use std::{fmt, ptr, thread};

use crate::context::AioContext;
use crate::context::poll_handler::PollWindow;
use crate::context::shared::SharedContext;
use crate::context::source::Sources;
use crate::coroutine::control_block::{BlockPool, BlockRef, ControlBlock, LocalState, RunQueue, State};
use crate::coroutine::stack::StackPool;
use crate::diagnostics::backtrace::Request;
use crate::diagnostics::deadlock::IdleTimer;
use crate::diagnostics::stack_overflow::AlternateStack;
use crate::scheduler::remote_queue::RemoteEvent;
use crate::sys::fork::{in_child, refuse_in_child};
use crate::sys::report::report;

pub(crate) mod lifecycle;
pub(crate) mod notify;
pub(crate) mod remote_queue;
mod switch;
mod teardown;
mod wake;

use switch::Frame;

thread_local! {
    /// The home of this thread, while it runs a context.
    pub(crate) static HOME: Cell<*const Home> = const { Cell::new(ptr::null()) };
    /// The home of this thread while it is hidden: its loop sleeps, and another thread may inspect
    /// it.
    pub(crate) static SUSPENDED: Cell<*const Home> = const { Cell::new(ptr::null()) };
}

/// The state of a thread that runs a context; see the module docs.
pub(crate) struct Home {
    pub(crate) shared: Arc<SharedContext>,
    /// A handle to the same context, for code here that polls.
    pub(crate) context: AioContext,
    /// How long busy-polling for completions pays off before the loop sleeps.
    pub(crate) source_window: PollWindow,
    /// The I/O source of this context, if it has one.
    pub(crate) source: Sources,
    /// Iterations of the loop that have not ended, nested ones included.
    rounds: Cell<u32>,
    /// Innermost frame; null on the thread's own stack.
    top: Cell<*const Frame>,
    /// Whether there is an event log. Cached as a field, since each switch reads it.
    has_tracer: bool,
    /// The coroutine that runs in that frame; `None` in an iteration of the loop. Stored here
    /// rather than in the frame to save a dependent load: every suspension waits for it.
    running: Cell<Option<&'static ControlBlock>>,
    /// Coroutines that run in the loop's next iteration, or in a nested one.
    pub(crate) ready: RunQueue,
    /// Coroutines taken up by an iteration that has not reached them yet.
    pub(crate) taken: RunQueue,
    pub(crate) blocks: BlockPool,
    stacks: StackPool,
    serial: Cell<u64>,
    /// Set while switching stacks: a stack walk is impossible then, since the unwind tables do not
    /// hold.
    pub(crate) switching: Cell<bool>,
    /// Whether stalls are watched for.
    pub(crate) stall_watched: Cell<bool>,
    /// Whether the end of the context reports the coroutines that were unwound.
    pub(crate) reports_unwound: Cell<bool>,
    /// Decides when to look for a deadlock.
    pub(crate) patience: IdleTimer,
    /// Iterations that made progress.
    pub(crate) progress: Cell<u64>,
    /// Coroutines that have not ended, or whose result was not fetched.
    pub(crate) live_count: Cell<usize>,
    /// The serial of the youngest coroutine in the latest deadlock report.
    pub(crate) last_reported_serial: Cell<u64>,
    /// The loop's clock when last read: milliseconds since the context began, modulo 2^32.
    pub(crate) clock: Cell<u32>,
    began: Instant,
    /// Iterations since the clock was read.
    rounds_since_tick: Cell<u32>,
    /// Events taken over from other threads and not handled yet, in reverse order of arrival. The
    /// list survives a panic, and a nested iteration continues with it. Its memory is kept, so that
    /// taking over allocates nothing.
    arrived: Cell<Vec<RemoteEvent>>,
    /// The context, the innermost iteration, or the innermost explicit enter began while the thread
    /// was unwinding: the unwinding stack lies below it. Coroutines that run above may be suspended.
    unwinds_beneath: Cell<bool>,
    /// The coroutine most recently suspended above an unwinding stack. For messages.
    suspended_above: Cell<Option<BlockRef>>,
    /// The context is ending: nothing new starts and nothing is woken; the remaining coroutines
    /// will be unwound.
    pub(crate) ending: Cell<bool>,
    /// The backtrace request in progress, if any.
    pub(crate) trace: Cell<*const Request>,
}

impl Home {
    /// Makes this thread home to a context while `f` runs, then ends the remaining coroutines.
    #[track_caller]
    pub(crate) fn run<R>(shared: Arc<SharedContext>, stacks: StackPool, f: impl FnOnce(&Home) -> R) -> R {
        crate::context::atfork::notice_forks();
        assert!(
            SUSPENDED.get().is_null(),
            "cannot run a context inside an engine's `sleep`: the thread's context is asleep; run it on another thread"
        );
        assert!(
            HOME.get().is_null(),
            "this thread already runs a context; spawn a coroutine in it, or run the other context on another thread"
        );
        let _alternate_stack = AlternateStack::install();
        let has_tracer = shared.tracer.is_some();
        let began = shared.clock.now();
        let home = Home {
            context: AioContext { shared: Arc::clone(&shared) },
            shared,
            source_window: PollWindow::default(),
            source: Sources::default(),
            rounds: Cell::new(0),
            has_tracer,
            top: Cell::new(ptr::null()),
            running: Cell::new(None),
            ready: RunQueue::new(),
            taken: RunQueue::new(),
            blocks: BlockPool::new(),
            stacks,
            serial: Cell::new(0),
            switching: Cell::new(false),
            stall_watched: Cell::new(false),
            reports_unwound: Cell::new(true),
            patience: IdleTimer::default(),
            progress: Cell::new(0),
            live_count: Cell::new(0),
            last_reported_serial: Cell::new(0),
            clock: Cell::new(0),
            began,
            rounds_since_tick: Cell::new(0),
            arrived: Cell::new(Vec::new()),
            unwinds_beneath: Cell::new(thread::panicking()),
            suspended_above: Cell::new(None),
            ending: Cell::new(false),
            trace: Cell::new(ptr::null()),
        };
        let current = Current::set(&home);
        // Panics are caught, so that the coroutines are unwound on a thread that is not itself
        // unwinding.
        let outcome = catch_unwind(AssertUnwindSafe(|| f(&home)));
        let last_words = home.end();
        drop(current);
        if in_child() {
            home.leave_in_child();
        } else if home.is_leaking() {
            std::mem::forget(home);
        } else {
            // Dropped here and not at the end: an engine's destructor may panic, and this thread is
            // not unwinding yet.
            drop(home);
        }
        match (outcome, last_words) {
            (Ok(value), None) => value,
            (Err(payload), last_words) => {
                last_words.into_iter().for_each(drop_quietly);
                resume_unwind(payload)
            }
            (Ok(_), Some(payload)) => resume_unwind(payload),
        }
    }

    /// Returns the home of this thread, if it runs a context.
    #[inline]
    pub(crate) fn current<'a>() -> Option<&'a Home> {
        // SAFETY: *home outlives its stacks*: the pointer is non-null only during `Home::run`, and
        // callers keep the reference on stacks that end before `Home::run` does.
        unsafe { HOME.get().as_ref() }
    }

    /// Like [`current`](Self::current), but also while the home is hidden. For a signal handler,
    /// which only reads.
    pub(crate) fn current_or_suspended<'a>() -> Option<&'a Home> {
        // SAFETY: as in `current`: `hidden` returns before the home is gone.
        Home::current().or_else(|| unsafe { SUSPENDED.get().as_ref() })
    }

    /// Returns the home of this thread, or panics with `what` as the refused operation.
    #[inline]
    #[track_caller]
    pub(crate) fn expect<'a>(what: &str) -> &'a Home {
        match Home::current() {
            Some(home) => home,
            None => no_home(what),
        }
    }

    #[inline]
    pub(crate) fn frame(&self) -> Option<&Frame> {
        // SAFETY: frames lie on the stacks of `enter` and `round`, which pop them before they
        // return.
        unsafe { self.top.get().as_ref() }
    }

    /// Returns the running coroutine; `None` in the loop and on the thread's own stack.
    #[inline]
    pub(crate) fn running(&self) -> Option<&'static ControlBlock> {
        self.running.get()
    }

    /// Returns the home thread's part of `block`.
    #[inline]
    pub(crate) fn local(&self, block: &'static ControlBlock) -> &'static LocalState {
        // SAFETY: *home's own*: callers have the block from a live identity, and handles that
        // dereference it do not leave the thread, so the block is held by this thread's context.
        unsafe { block.local() }
    }

    /// Returns whether the context is ending: nothing new starts, and the remaining coroutines are
    /// unwound.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// Runs `f` as an iteration of the loop: a coroutine woken in it is entered immediately, even
    /// if a coroutine polls.
    pub(crate) fn round<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Ended<'a>(&'a Home);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.rounds.set(self.0.rounds.get() - 1);
            }
        }
        if thread::panicking() && !self.unwinds_beneath.get() {
            return self.above_unwinding(|| self.round(f));
        }
        // Coroutines woken by the coroutines below, which do not yield while this iteration lasts.
        let mut beneath = self.frame();
        while let Some(frame) = beneath {
            self.ready.append(&frame.deferred);
            // SAFETY: as in `frame`.
            beneath = unsafe { frame.parent.as_ref() };
        }
        let frame = Frame::above(self);
        let _leave = frame.push(self);
        self.running.set(None);
        self.rounds.set(self.rounds.get() + 1);
        let _ended = Ended(self);
        f()
    }

    /// Runs `f`, called by a destructor while its thread unwinds. The unwinding stack lies below:
    /// coroutines that `f` enters are not affected, and may be suspended.
    #[cold]
    fn above_unwinding<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Restore<'a>(&'a Home);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                self.0.unwinds_beneath.set(false);
            }
        }
        self.unwinds_beneath.set(true);
        let _restore = Restore(self);
        f()
    }

    /// Starts a heartbeat for the stall watcher, if there is one; dropping the value ends it.
    #[inline]
    pub(crate) fn heartbeat(&self) -> Option<impl Drop> {
        struct Beating<'a>(&'a Home, u64);
        impl Drop for Beating<'_> {
            fn drop(&mut self) {
                self.0.shared.heartbeat.end(self.1);
            }
        }
        self.stall_watched.get().then(|| Beating(self, self.shared.heartbeat.begin()))
    }

    /// Returns the live coroutines, in order of creation.
    pub(crate) fn live(&self) -> impl Iterator<Item = &'static ControlBlock> {
        let mut live: Vec<_> = self.live_in_any_order().collect();
        self.sort_by_age(&mut live);
        live.into_iter()
    }

    /// Like [`live`](Self::live), unsorted. Allocates nothing and only reads.
    pub(crate) fn live_in_any_order(&self) -> impl Iterator<Item = &'static ControlBlock> {
        self.blocks.all().filter(|block| self.local(block).state.get() != State::Free)
    }

    /// Sorts coroutines by age. Allocates nothing and only reads the blocks.
    pub(crate) fn sort_by_age(&self, blocks: &mut [&'static ControlBlock]) {
        blocks.sort_unstable_by_key(|block| self.local(block).serial.get());
    }

    /// Counts an iteration, and reads the clock every sixty-fourth: accurate enough for how long a
    /// coroutine has waited.
    #[inline]
    pub(crate) fn count_round(&self) {
        self.rounds_since_tick.set(self.rounds_since_tick.get() + 1);
        if self.rounds_since_tick.get() >= 64 {
            self.look_at_clock();
        }
    }

    /// Sets the loop's clock.
    pub(crate) fn look_at_clock(&self) {
        self.rounds_since_tick.set(0);
        self.clock.set(self.elapsed_ms());
    }

    /// Returns the time since the loop's clock showed `then`.
    pub(crate) fn since(&self, then: u32) -> Duration {
        Duration::from_millis(u64::from(self.elapsed_ms().wrapping_sub(then)))
    }

    /// Returns the milliseconds since the context began.
    fn elapsed_ms(&self) -> u32 {
        self.shared.clock.now().saturating_duration_since(self.began).as_millis() as u32
    }

    /// Runs `f` as if this thread were home to no context.
    pub(crate) fn hidden<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Shown<'a>(&'a Home);
        impl Drop for Shown<'_> {
            fn drop(&mut self) {
                if in_child() {
                    return;
                }
                HOME.set(self.0);
                compiler_fence(Ordering::SeqCst);
                SUSPENDED.set(ptr::null());
            }
        }
        // One of the two is set at any moment, so a signal handler always finds the home.
        SUSPENDED.set(self);
        compiler_fence(Ordering::SeqCst);
        HOME.set(ptr::null());
        let _shown = Shown(self);
        f()
    }

    /// Returns whether the loop is in an iteration, which will flush the I/O source when it ends.
    #[inline]
    pub(crate) fn is_in_round(&self) -> bool {
        self.rounds.get() != 0
    }

    /// Runs the coroutines that are ready now. Coroutines that become ready meanwhile wait for the
    /// next iteration, or for a nested one.
    ///
    /// # Control
    ///
    /// Enters coroutines.
    pub(crate) fn run_ready(&self) -> bool {
        // Coroutines scheduled before another one yielded run before that one.
        self.accept();
        self.taken.append(&self.ready);
        let mut progress = false;
        while let Some(block) = self.taken.pop() {
            assert_eq!(self.local(block).state.get(), State::Scheduled, "a coroutine on a run list is scheduled");
            progress = true;
            self.enter(block);
        }
        progress
    }

    /// Returns whether a coroutine is ready to run.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.taken.is_empty()
    }

    /// Takes over the events pushed by other threads.
    fn accept(&self) {
        if !self.shared.arrivals.is_pending() {
            return;
        }
        // Events left over by a panic, or by an outer iteration, come first.
        self.handle_taken();
        let mut arrived = self.arrived.take();
        self.shared.arrivals.take_all(&mut arrived);
        arrived.reverse();
        self.arrived.set(arrived);
        self.handle_taken();
    }

    /// Handles the events taken over, one by one: an event may panic, or run a nested iteration,
    /// and the remaining ones stay on the list (rule W3).
    fn handle_taken(&self) {
        loop {
            let mut arrived = self.arrived.take();
            let next = arrived.pop();
            let is_last = arrived.is_empty();
            self.arrived.set(arrived);
            let id = match next {
                None => return,
                Some(RemoteEvent::Wake(id)) => id,
                Some(RemoteEvent::Run(begin)) => {
                    if !is_last {
                        self.shared.arrivals.keep_pending();
                    }
                    begin();
                    continue;
                }
            };
            // A coroutine that ran since, or has ended, has had its wake (rules W3 and W4).
            if !id.is_live() || !id.block.word.is_scheduled() {
                continue;
            }
            let local = self.local(id.block);
            match local.state.get() {
                State::Suspended => {
                    local.state.set(State::Scheduled);
                    self.taken.push(id.block);
                }
                State::Entered => local.woken.set(true),
                State::Scheduled | State::Finished | State::Free => {}
            }
        }
    }
}

/// Sets this thread's home, until dropped: no exit from [`Home::run`] leaves a pointer to it
/// behind.
struct Current<'a>(&'a Home);

impl<'a> Current<'a> {
    fn set(home: &'a Home) -> Current<'a> {
        HOME.set(home);
        Current(home)
    }
}

impl Drop for Current<'_> {
    fn drop(&mut self) {
        if in_child() {
            // The child's home was disabled at the fork, and its coroutines are leaked.
            return;
        }
        if !self.0.is_leaking() && self.0.live_in_any_order().next().is_some() {
            abort(format_args!("context ended without unwinding all of its coroutines, whose stacks would be freed"));
        }
        // First, so that other threads learn that the home is going before they inspect it.
        self.0.shared.thread.leave();
        HOME.set(ptr::null());
    }
}

/// Drops the payload of a panic that is not reported. If the drop panics, the new payload is
/// leaked.
fn drop_quietly(payload: Box<dyn Any + Send>) {
    std::mem::forget(catch_unwind(AssertUnwindSafe(|| drop(payload))));
}

#[cold]
#[track_caller]
fn no_home(what: &str) -> ! {
    refuse_in_child(what);
    panic!("{what} outside a context: wrap the program in `run(|| ..)` or `AioContext::run(|ctx| ..)` on this thread")
}

/// Reports `why` and aborts the process: for states in which continuing would be undefined.
#[cold]
fn abort(why: fmt::Arguments<'_>) -> ! {
    report(format_args!("coralio: {why}"));
    std::process::abort()
}
