//! Which coroutines of a thread are entered, and which run next.
//!
//! ```text
//!   thread's own stack     'A' (entered by it)     'B' (entered by 'A')
//!   ------------------     -------------------     --------------------
//!        enter  frame <----      enter  frame <---- running
//!                  deferred: X     deferred: -
//! ```
//!
//! Each `enter` keeps a *frame* on the enterer's stack. The frames, innermost first, are the chain
//! of entered coroutines. Each frame has a list of the coroutines that its coroutine woke (rule
//! W1). They run from the same frame when that coroutine yields or ends, one after the other, so a
//! chain of wakes never makes the stack grow. An iteration of the loop keeps a frame too, in which
//! no coroutine runs: a coroutine woken there is entered immediately.
//!
//! Every suspension goes through [`Scheduler::suspend_if_possible`], and every resumption through
//! [`Scheduler::resume`]: one choke point for each. Invariants, cited where code relies on them:
//!
//! - *home outlives its stacks*: a `Scheduler` lives in the frame of the call that runs the
//!   context, and is dropped after all its coroutines have ended. References to it are found
//!   through a thread-local and only ever lie on those stacks, so they never dangle.
//! - *taken out while it runs*: the raw coroutine of a block in state `Entered` is in use by
//!   exactly one `resume`. No other code touches it until the coroutine suspends or ends.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::ptr;
use std::sync::Arc;

use crate::coroutine::{BlockPool, ControlBlock, LocalState, RunQueue, StackPool, State};
use crate::sys::refuse_in_child;

mod backtrace;
mod cancel;
mod frame;
mod lifecycle;
mod loop_clock;
pub(crate) mod notify;
mod ready;
pub(crate) mod remote_queue;
pub(crate) mod shared;
#[cfg(feature = "tracing")]
mod span;
mod switch;
mod teardown;
mod unwinding;
mod wake;

use backtrace::store_backtrace;
use frame::Frame;
pub(crate) use notify::NotifyState;
pub(crate) use remote_queue::{RemoteEvent, RemoteQueue};
pub(crate) use shared::SharedScheduler;

pub(crate) use cancel::{suspend_for, try_suspend_for};
use loop_clock::LoopClock;
use unwinding::Unwinding;

thread_local! {
    /// The scheduler of this thread, while it runs a context that is not hidden.
    static CURRENT: Cell<*const Scheduler> = const { Cell::new(ptr::null()) };
}

/// The coroutines of a thread; see the module docs.
pub(crate) struct Scheduler {
    pub(crate) shared: Arc<SharedScheduler>,
    /// Innermost frame; null on the thread's own stack.
    top: Cell<*const Frame>,
    /// The coroutine that runs in that frame; `None` in an iteration of the loop. Stored here
    /// rather than in the frame to save a dependent load: every suspension waits for it.
    running: Cell<Option<&'static ControlBlock>>,
    /// Iterations of the loop that have not ended, nested ones included.
    rounds: Cell<u32>,
    /// Whether there is an event log. Cached as a field, since each switch reads it.
    has_tracer: bool,
    /// Set while switching stacks: a stack walk is impossible then, since the unwind tables do not
    /// hold.
    switching: Cell<bool>,
    /// The context is ending: nothing new starts and nothing is woken; the remaining coroutines
    /// will be unwound.
    ending: Cell<bool>,
    /// Coroutines that run in the loop's next iteration, or in a nested one.
    ready: RunQueue,
    /// Coroutines taken up by an iteration that has not reached them yet.
    taken: RunQueue,
    /// Events taken over from other threads and not handled yet, in reverse order of arrival. The
    /// list survives a panic, and a nested iteration continues with it. Its memory is kept, so that
    /// taking over allocates nothing.
    taken_events: Cell<Vec<RemoteEvent>>,
    unwinding: Unwinding,
    blocks: BlockPool,
    stacks: StackPool,
    /// The number of the youngest coroutine.
    serial: Cell<u64>,
    /// Coroutines that have not ended, or whose result was not fetched.
    live_count: Cell<usize>,
    pub(crate) clock: LoopClock,
}

impl Scheduler {
    pub(crate) fn new(shared: Arc<SharedScheduler>, stacks: StackPool) -> Scheduler {
        Scheduler {
            top: Cell::new(ptr::null()),
            running: Cell::new(None),
            rounds: Cell::new(0),
            has_tracer: shared.tracer.is_some(),
            switching: Cell::new(false),
            ending: Cell::new(false),
            ready: RunQueue::new(),
            taken: RunQueue::new(),
            taken_events: Cell::default(),
            unwinding: Unwinding::default(),
            blocks: BlockPool::new(),
            stacks,
            serial: Cell::new(0),
            live_count: Cell::new(0),
            clock: LoopClock::new(shared.clock.clone()),
            shared,
        }
    }

    /// Returns the scheduler of this thread, if it runs a context.
    #[inline]
    pub(crate) fn current<'a>() -> Option<&'a Scheduler> {
        // SAFETY: *home outlives its stacks*: by the promise of `set_current`, and because callers
        // keep the reference on stacks that end before the run of the context does.
        unsafe { CURRENT.get().as_ref() }
    }

    /// Sets the scheduler of this thread.
    ///
    /// # Safety
    ///
    /// The scheduler is not dropped or moved until `set_current` is called again, on this thread.
    pub(crate) unsafe fn set_current(scheduler: Option<&Scheduler>) {
        CURRENT.set(scheduler.map_or(ptr::null(), ptr::from_ref));
    }

    /// Returns the scheduler of this thread, or panics with `what` as the refused operation.
    #[inline]
    #[track_caller]
    pub(crate) fn expect<'a>(what: &str) -> &'a Scheduler {
        match Scheduler::current() {
            Some(scheduler) => scheduler,
            None => no_home(what),
        }
    }

    /// Returns the running coroutine; `None` in the loop and on the thread's own stack.
    #[inline]
    pub(crate) fn running(&self) -> Option<&'static ControlBlock> {
        self.running.get()
    }

    /// Returns the home thread's part of `block`.
    #[inline]
    pub(crate) fn local(&self, block: &'static ControlBlock) -> &'static LocalState {
        // SAFETY: *home's own*: callers have the block from a live identity, and handles through
        // which blocks are accessed do not leave the thread, so the block is held by this thread's
        // context.
        unsafe { block.local() }
    }

    /// Returns whether the context is ending: nothing new starts, and the remaining coroutines are
    /// unwound.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// Returns whether the thread is between two stacks.
    pub(crate) fn is_switching(&self) -> bool {
        self.switching.get()
    }

    /// Returns the number of coroutines that have not ended, or whose result was not fetched.
    pub(crate) fn live_count(&self) -> usize {
        self.live_count.get()
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
}

#[cold]
#[track_caller]
pub(crate) fn no_home(what: &str) -> ! {
    refuse_in_child(what);
    panic!("{what} outside a context: wrap the program in `run(|| ..)` or `AioContext::run(|ctx| ..)` on this thread")
}
