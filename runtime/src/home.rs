//! What a thread has while it runs a context: its coroutines, and who of them is on the stack.
//!
//! ```text
//!   thread's own stack     'A' (entered by it)     'B' (entered by 'A')
//!   ------------------     -------------------     --------------------
//!   Home::enter  frame <---- Home::enter  frame <---- running
//!                  woken: X        woken: -
//! ```
//!
//! Each `enter` keeps a *frame* on the stack of whoever entered. The frames, innermost first, are the chain of entered
//! coroutines. A frame has a list of its own: coroutines that its coroutine woke (rule W1). They run from the same frame
//! when that coroutine yields or ends, one after the other, so a chain of wakes never makes the stack grow. A round of
//! the loop keeps a frame too, one in which no coroutine runs: what is woken there is entered at once.
//!
//! Every suspension goes through [`Home::suspend`], and every resumption through [`Home::resume`]: one choke point for
//! each. Named here, and cited where they are relied on:
//!
//! - *home outlives its stacks*: a `Home` lives in the frame of the call that runs the context, and is dropped after
//!   all its coroutines have ended. References to it are found through a thread-local and only ever lie on those
//!   stacks, so they never dangle.
//! - *taken out while it runs*: a block in state `Entered` has its machine in use by exactly one `resume`. Nobody else
//!   touches it until it suspends or ends.

#![allow(unsafe_code)]

use std::any::Any;
use std::cell::{Cell, OnceCell};
use std::panic::{AssertUnwindSafe, Location, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::{fmt, io, ptr, thread};

use corosensei::{CoroutineResult, Yielder};

use crate::context::Source;
use crate::context::shared::Shared;
use crate::coroutine::control::{Blocks, Control, ControlList, CoroutineId, Machine, Own, Packet, Resume, State};
use crate::coroutine::stack::{RunningStack, StackPool};
use crate::coroutine::{Attributes, Cancelled, EnterError};

thread_local! {
    /// The context that this thread is home to, while it runs one.
    static HOME: Cell<*const Home> = const { Cell::new(ptr::null()) };
}

/// What a coroutine left: its value, or the payload of its panic.
pub(crate) type Outcome<T> = thread::Result<T>;

/// One `enter`, or one round of the loop, that has not returned.
struct Frame {
    parent: *const Frame,
    /// Who ran when this frame was pushed.
    outer: Option<&'static Control>,
    /// Woken by the coroutine that runs; they run next, from this frame.
    woken: ControlList,
    /// Lock depth when the coroutine that runs was resumed: it may not suspend with more (rule X8).
    lock_depth: Cell<u32>,
}

impl Frame {
    #[inline]
    fn above(home: &Home) -> Frame {
        Frame { parent: home.top.get(), outer: home.running.get(), woken: ControlList::new(), lock_depth: Cell::new(0) }
    }

    #[inline]
    fn push<'a>(&'a self, home: &'a Home) -> Leave<'a> {
        home.top.set(self);
        Leave { home, frame: self }
    }
}

/// Takes a frame off, also when what ran in it unwinds: `top` never points at a frame that is gone.
struct Leave<'a> {
    home: &'a Home,
    frame: &'a Frame,
}

impl Drop for Leave<'_> {
    #[inline]
    fn drop(&mut self) {
        // After a panic: nobody who was woken may be forgotten over it.
        self.home.ready.append(&self.frame.woken);
        self.home.top.set(self.frame.parent);
        self.home.running.set(self.frame.outer);
    }
}

/// See the module.
pub(crate) struct Home {
    pub(crate) shared: Arc<Shared>,
    /// The I/O source of this context, if it has one.
    pub(crate) source: OnceCell<Arc<dyn Source>>,
    /// Rounds of the loop that have not ended, nested ones included.
    rounds: Cell<u32>,
    /// Innermost frame; null on the thread's own stack.
    top: Cell<*const Frame>,
    /// Who runs in that frame; `None` in a round of the loop. Here and not there, to be found with one look less: every
    /// suspension waits for it.
    running: Cell<Option<&'static Control>>,
    /// Run in the loop's next round, or in a nested one.
    ready: ControlList,
    /// Taken up by a round that has not come to them yet.
    taken: ControlList,
    blocks: Blocks,
    stacks: StackPool,
    serial: Cell<u64>,
    /// Kept so that taking over what other threads woke allocates nothing.
    wake_buffer: Cell<Vec<CoroutineId>>,
    /// From here on nothing new starts and nothing is woken: what is left will be unwound.
    ending: Cell<bool>,
}

impl Home {
    /// Makes this thread home to a context for the time of `f`, then ends what is left of its coroutines.
    pub(crate) fn run<R>(shared: Arc<Shared>, stack_size: usize, f: impl FnOnce(&Home) -> R) -> R {
        assert!(
            HOME.get().is_null(),
            "this thread runs a context already; spawn a coroutine in it, or run the other context on another thread"
        );
        let home = Home {
            shared,
            source: OnceCell::new(),
            rounds: Cell::new(0),
            top: Cell::new(ptr::null()),
            running: Cell::new(None),
            ready: ControlList::new(),
            taken: ControlList::new(),
            blocks: Blocks::new(),
            stacks: StackPool::new(stack_size),
            serial: Cell::new(0),
            wake_buffer: Cell::new(Vec::new()),
            ending: Cell::new(false),
        };
        HOME.set(&home);
        // Caught, so that the coroutines are unwound on a thread that does not unwind itself.
        let outcome = catch_unwind(AssertUnwindSafe(|| f(&home)));
        let last_words = home.end();
        HOME.set(ptr::null());
        if home.is_leaking() {
            std::mem::forget(home);
        }
        match (outcome, last_words) {
            (Ok(value), None) => value,
            (Err(payload), _) | (_, Some(payload)) => resume_unwind(payload),
        }
    }

    /// The home of this thread, if it runs a context.
    #[inline]
    pub(crate) fn current<'a>() -> Option<&'a Home> {
        // SAFETY: *home outlives its stacks*: not null only during `Home::run`, and callers keep the reference on
        // stacks that end before it does.
        unsafe { HOME.get().as_ref() }
    }

    /// The home of this thread.
    #[inline]
    #[track_caller]
    pub(crate) fn expect<'a>(what: &str) -> &'a Home {
        match Home::current() {
            Some(home) => home,
            None => no_home(what),
        }
    }

    #[inline]
    fn frame(&self) -> Option<&Frame> {
        // SAFETY: frames lie on the stacks of `enter` and `round`, which take them off before they return.
        unsafe { self.top.get().as_ref() }
    }

    /// The coroutine that runs, if one does (and not the loop, or the thread's own stack).
    #[inline]
    pub(crate) fn running(&self) -> Option<&'static Control> {
        self.running.get()
    }

    /// The part of `block` that is this thread's.
    #[inline]
    pub(crate) fn own(&self, block: &'static Control) -> &'static Own {
        // SAFETY: *home's own*: callers have the block from a live identity, and handles that look behind it do not
        // leave the thread, so the block is held by this thread's context.
        unsafe { block.own() }
    }

    /// Makes a coroutine. It is suspended before its first instruction (rule C1).
    ///
    /// # Safety
    ///
    /// What `F` and `T` borrow lives until the coroutine has ended, at the latest when [`Home::run`] returns.
    pub(crate) unsafe fn create<F, T>(&self, attributes: Attributes, propagates: bool, f: F) -> io::Result<CoroutineId>
    where
        F: FnOnce() -> T,
    {
        // What a closure has caught is moved onto the new stack; a large one would not leave room for its work.
        // corosensei takes 1 KiB in all; a strong alignment could double what there is.
        const LARGE: usize = 512;
        if size_of::<F>() > LARGE || align_of::<F>() > 64 {
            // SAFETY: the caller's promise.
            return unsafe { self.create_on_stack(attributes, propagates, Box::new(f)) };
        }
        // SAFETY: the caller's promise.
        unsafe { self.create_on_stack(attributes, propagates, f) }
    }

    /// # Safety
    ///
    /// As [`Home::create`].
    unsafe fn create_on_stack<F, T>(&self, attributes: Attributes, propagates: bool, f: F) -> io::Result<CoroutineId>
    where
        F: FnOnce() -> T,
    {
        if self.ending.get() {
            return Err(io::Error::other("the context is ending, and starts nothing new"));
        }
        let lease = self.stacks.take(attributes.stack_size)?;
        let mut rest = lease;
        let Some(place) = rest.carve(size_of::<Outcome<T>>(), align_of::<Outcome<T>>()) else {
            self.stacks.give_back(lease);
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a coroutine's result of {} bytes does not fit on its stack; return a Box of it, or give it a \
                     larger stack_size",
                    size_of::<Outcome<T>>()
                ),
            ));
        };
        let block = self.blocks.take();
        block.set_context(self.shared.id());
        let own = self.own(block);
        own.state.set(State::Suspended);
        own.woken.set(false);
        own.unwinding.set(false);
        own.swallowed.set(0);
        own.detached.set(false);
        own.propagates.set(propagates);
        own.lease.set(Some(lease));
        own.packet.set(Some(Packet::of::<T>(place)));
        own.joiner.set(None);
        if attributes.name.is_some() || own.name.borrow().is_some() {
            own.name.replace(attributes.name);
        }
        own.serial.set(self.serial.get() + 1);
        self.serial.set(self.serial.get() + 1);
        own.created_at.set(attributes.created_at);

        let body = move |yielder: &Yielder<Resume, ()>, first: Resume| {
            own.yielder.set(yielder);
            let outcome = catch_unwind(AssertUnwindSafe(|| match first {
                Resume::Go => f(),
                Resume::Unwind => {
                    drop(f);
                    resume_unwind(Box::new(Cancelled))
                }
            }));
            // SAFETY: `place` was carved for an Outcome<T> off the top of this very stack, and is written once.
            unsafe { place.cast::<Outcome<T>>().write(outcome) };
        };
        // SAFETY: what `body` caught lives long enough, by the caller's promise. The machine ends before the stack is given back or unmapped (*home
        // outlives its stacks), and the block's place for it is empty in state Free.
        unsafe {
            let machine = Machine::with_stack_unchecked(RunningStack::new(&rest), body);
            (*own.machine.get()).write(machine);
        }
        Ok(block.id())
    }

    /// Enters `id`, or says why that cannot be (rule C5).
    ///
    /// # Control
    ///
    /// Enters it, and then whatever it woke.
    #[inline]
    pub(crate) fn try_enter(&self, id: CoroutineId) -> Result<(), EnterError> {
        if id.is_live() && self.own(id.block).state.get() == State::Suspended && !id.block.ticket.is_scheduled() {
            self.enter(id.block);
            return Ok(());
        }
        Err(self.refuse_to_enter(id))
    }

    #[cold]
    fn refuse_to_enter(&self, id: CoroutineId) -> EnterError {
        if !id.is_live() {
            return EnterError::Ended;
        }
        let own = self.own(id.block);
        let name = own.label().to_string();
        match own.state.get() {
            State::Suspended | State::Scheduled => EnterError::Scheduled { name, at: id.block.scheduled_at() },
            State::Entered => EnterError::Recursive { name, chain: self.chain().to_string() },
            State::Finished | State::Free => EnterError::Ended,
        }
    }

    /// Whether the context is ending: nothing new starts, and what is left is unwound.
    pub(crate) fn is_ending(&self) -> bool {
        self.ending.get()
    }

    /// Who is on the stack, outermost first.
    pub(crate) fn chain(&self) -> Chain<'_> {
        Chain(self)
    }

    /// Runs `first`, and then what was woken meanwhile. A panic of one that has no join handle goes on here.
    #[inline]
    fn enter(&self, first: &'static Control) {
        let frame = Frame::above(self);
        let _leave = frame.push(self);
        let mut next = Some(first);
        while let Some(block) = next {
            self.running.set(Some(block));
            frame.lock_depth.set(self.shared.lock.depth());
            if let Some(payload) = self.resume(block, Resume::Go) {
                resume_unwind(payload);
            }
            next = frame.woken.pop();
        }
    }

    /// The one place where a coroutine's stack is switched to.
    #[inline]
    fn resume(&self, block: &'static Control, how: Resume) -> Option<Box<dyn Any + Send>> {
        let own = self.own(block);
        own.state.set(State::Entered);
        block.ticket.clear_scheduled();
        // SAFETY: the state was Suspended or Scheduled, so the machine is there; now it is Entered, and nobody else
        // touches it (*taken out while it runs*).
        let machine = unsafe { (*own.machine.get()).assume_init_mut() };
        match machine.resume(how) {
            CoroutineResult::Yield(()) => None,
            CoroutineResult::Return(()) => self.finish(block),
        }
    }

    /// A coroutine has ended: its stack is free, unless its result still lies there for the join handle.
    fn finish(&self, block: &'static Control) -> Option<Box<dyn Any + Send>> {
        let own = self.own(block);
        own.state.set(State::Finished);
        // SAFETY: the machine is still in its place; it is dropped here, once, being done.
        unsafe { (*own.machine.get()).assume_init_drop() };
        if !own.propagates.get() && !own.detached.get() {
            if let Some(joiner) = own.joiner.take() {
                self.wake(joiner);
            }
            return None;
        }
        let packet = own.packet.take().expect("a finished coroutine has an outcome");
        let _release = Release { home: self, block };
        // SAFETY: the body wrote the outcome before it returned, and the packet was taken, so nobody reads it again.
        let payload = unsafe { (packet.payload)(packet.place) };
        payload.filter(|payload| own.propagates.get() && !payload.is::<Cancelled>())
    }

    /// Takes the outcome of a finished coroutine, and gives its stack back.
    pub(crate) fn fetch<T>(&self, block: &'static Control) -> Outcome<T> {
        let packet = self.own(block).packet.take().expect("an outcome is fetched once");
        let _release = Release { home: self, block };
        // SAFETY: the join handle knows the type that the coroutine was made with, and the packet was taken, so the
        // outcome is read once.
        unsafe { packet.place.cast::<Outcome<T>>().read() }
    }

    /// Nobody will fetch this one's outcome.
    pub(crate) fn detach(&self, block: &'static Control) {
        let own = self.own(block);
        own.detached.set(true);
        if own.state.get() == State::Finished {
            self.discard(block);
        }
    }

    fn discard(&self, block: &'static Control) {
        let packet = self.own(block).packet.take().expect("a finished coroutine has an outcome");
        let _release = Release { home: self, block };
        // SAFETY: as in `finish`.
        drop(unsafe { (packet.payload)(packet.place) });
    }

    /// Wakes a coroutine of this thread (rule W1).
    ///
    /// # Control
    ///
    /// Enters it if no coroutine is running; otherwise it runs when the running one yields or ends.
    #[track_caller]
    pub(crate) fn wake(&self, id: CoroutineId) {
        if !id.is_live() || self.ending.get() {
            return;
        }
        let own = self.own(id.block);
        match own.state.get() {
            State::Suspended => self.wake_suspended(id.block),
            // It will look before it suspends.
            State::Entered => own.woken.set(true),
            State::Scheduled | State::Finished | State::Free => {}
        }
    }

    /// As [`wake`](Self::wake), for destructors: it runs when the running coroutine yields or ends, or else in the loop's
    /// next round.
    ///
    /// # Control
    ///
    /// Never switches.
    #[track_caller]
    pub(crate) fn wake_later(&self, id: CoroutineId) {
        let suspended = id.is_live() && self.own(id.block).state.get() == State::Suspended;
        if suspended && self.running.get().is_none() && !self.ending.get() {
            self.make_ready(id.block, Location::caller());
        } else {
            self.wake(id);
        }
    }

    /// As [`wake`](Self::wake), for whoever has left word where the coroutine looks before it suspends (rule E6).
    ///
    /// # Control
    ///
    /// May enter it.
    #[inline]
    #[track_caller]
    pub(crate) fn wake_unless_entered(&self, block: &'static Control) {
        if self.own(block).state.get() == State::Suspended && !self.ending.get() {
            self.wake_suspended(block);
        }
    }

    #[inline]
    #[track_caller]
    fn wake_suspended(&self, block: &'static Control) {
        match self.frame() {
            Some(frame) if self.running.get().is_some() => {
                block.set_scheduled_at(Location::caller());
                self.own(block).state.set(State::Scheduled);
                frame.woken.push(block);
            }
            // A destructor woke it while this thread unwinds: it could not be suspended here.
            _ if thread::panicking() => self.make_ready(block, Location::caller()),
            _ => self.enter(block),
        }
    }

    /// Makes a suspended coroutine run in the loop's next round, or in a nested one.
    #[inline]
    pub(crate) fn make_ready(&self, block: &'static Control, at: &'static Location<'static>) {
        let own = self.own(block);
        debug_assert_eq!(own.state.get(), State::Suspended);
        block.set_scheduled_at(at);
        own.state.set(State::Scheduled);
        self.ready.push(block);
    }

    /// Whether the running coroutine can be suspended here. It cannot outside a coroutine, nor while its stack unwinds:
    /// unwinding state belongs to the thread, and another coroutine would see it.
    #[inline]
    pub(crate) fn can_suspend(&self) -> bool {
        self.running().is_some_and(|block| !self.own(block).unwinding.get()) && !thread::panicking()
    }

    /// As `suspend_if_possible`, where there is no other way to wait.
    ///
    /// # Control
    ///
    /// Yields. Unwinds instead of returning if the coroutine is cancelled meanwhile.
    #[inline]
    #[track_caller]
    pub(crate) fn suspend(&self) {
        if !self.suspend_if_possible() {
            self.refuse_to_suspend();
        }
    }

    /// The one place where a coroutine's stack is left. Returns false, at once, where that cannot be: its stack unwinds.
    ///
    /// All the way from the public functions to the switch is inlined: the processor expects returns to match the calls
    /// that it saw last, so each frame that is left on another stack costs a return guessed wrong.
    ///
    /// # Control
    ///
    /// Yields. Unwinds instead of returning if the coroutine is cancelled meanwhile.
    #[inline]
    #[track_caller]
    pub(crate) fn suspend_if_possible(&self) -> bool {
        let (Some(block), Some(frame)) = (self.running.get(), self.frame()) else {
            yields_outside();
        };
        let own = self.own(block);
        if own.unwinding.get() || thread::panicking() {
            return false;
        }
        if self.shared.lock.depth() > frame.lock_depth.get() {
            yields_with_lock(own, self.shared.lock.depth() - frame.lock_depth.get());
        }
        own.state.set(State::Suspended);
        if own.woken.take() {
            self.make_ready(block, Location::caller());
        }
        self.switch_out(own);
        true
    }

    /// Back through the loop: everything else that is ready runs first.
    ///
    /// # Control
    ///
    /// Yields.
    #[track_caller]
    pub(crate) fn reschedule(&self) {
        if let Some(block) = self.running() {
            self.own(block).woken.set(true);
        }
        self.suspend();
    }

    #[inline]
    fn switch_out(&self, own: &Own) {
        // SAFETY: the yielder lies at the root of the stack that this runs on, so it lives.
        let yielder = unsafe { &*own.yielder.get() };
        match yielder.suspend(()) {
            Resume::Go => {}
            Resume::Unwind => resume_unwind(Box::new(Cancelled)),
        }
    }

    #[cold]
    fn refuse_to_suspend(&self) {
        let own = self.own(self.running().expect("only a coroutine is refused"));
        if own.unwinding.get() && !thread::panicking() {
            // It caught the unwinding and went on. So it is told again; but not for ever.
            let swallowed = own.swallowed.get() + 1;
            own.swallowed.set(swallowed);
            if swallowed < 1000 {
                resume_unwind(Box::new(Cancelled));
            }
            abort(format_args!(
                "coroutine {} (created at {}) was cancelled, and caught the unwinding {swallowed} times to wait \
                 again; let the payload `Cancelled` pass",
                own.label(),
                own.created_at.get()
            ));
        }
        abort(format_args!(
            "coroutine {} (created at {}) waits while its stack unwinds; a destructor may do I/O, but not wait for \
             another coroutine",
            own.label(),
            own.created_at.get()
        ));
    }

    /// Runs `f` as a round of the loop: what is woken in it is entered at once, also if a coroutine polls.
    pub(crate) fn round<R>(&self, f: impl FnOnce() -> R) -> R {
        struct Ended<'a>(&'a Home);
        impl Drop for Ended<'_> {
            fn drop(&mut self) {
                self.0.rounds.set(self.0.rounds.get() - 1);
            }
        }
        // Woken by the coroutines beneath, which do not yield while this round lasts.
        let mut beneath = self.frame();
        while let Some(frame) = beneath {
            self.ready.append(&frame.woken);
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

    /// Whether the loop is in a round, which will flush the I/O source when it ends.
    #[inline]
    pub(crate) fn is_in_round(&self) -> bool {
        self.rounds.get() != 0
    }

    /// Runs what is ready now. What becomes ready meanwhile waits for the next round, or for a nested one.
    ///
    /// # Control
    ///
    /// Enters.
    pub(crate) fn run_ready(&self) -> bool {
        self.accept_wakes();
        self.taken.append(&self.ready);
        let mut progress = false;
        while let Some(block) = self.taken.pop() {
            progress = true;
            self.enter(block);
        }
        progress
    }

    /// Whether something is ready to run.
    pub(crate) fn has_ready(&self) -> bool {
        !self.ready.is_empty() || !self.taken.is_empty()
    }

    /// Takes over what other threads woke.
    fn accept_wakes(&self) {
        if !self.shared.wakes.is_pending() {
            return;
        }
        let mut woken = self.wake_buffer.take();
        self.shared.wakes.take_all(&mut woken);
        for id in woken.drain(..) {
            // A coroutine that ran since, or ended, has had its wake (rules W3 and W4).
            if !id.is_live() || !id.block.ticket.is_scheduled() {
                continue;
            }
            let own = self.own(id.block);
            match own.state.get() {
                State::Suspended => self.make_ready(id.block, id.block.scheduled_at()),
                State::Entered => own.woken.set(true),
                State::Scheduled | State::Finished | State::Free => {}
            }
        }
        self.wake_buffer.set(woken);
    }

    /// Ends what is left, in the order in which it was created: unwinds every coroutine (rule C9). Returns the payload of
    /// the first destructor that panicked.
    fn end(&self) -> Option<Box<dyn Any + Send>> {
        self.ending.set(true);
        while self.taken.pop().is_some() || self.ready.pop().is_some() {}
        let mut left: Vec<_> =
            self.blocks.all().into_iter().filter(|block| self.own(block).state.get() != State::Free).collect();
        left.sort_unstable_by_key(|block| self.own(block).serial.get());
        if self.is_leaking() {
            eprintln!(
                "coralio: a context ended with {} suspended coroutines; with panic = \"abort\" they cannot be unwound \
                 and are leaked; join them before the context ends",
                left.len()
            );
            return None;
        }
        let mut payload = None;
        for block in left {
            let ended = catch_unwind(AssertUnwindSafe(|| match self.own(block).state.get() {
                State::Suspended | State::Scheduled => self.unwind(block),
                State::Finished => self.discard(block),
                // Its join handle lay on the stack of another one, and went with it.
                State::Free => {}
                State::Entered => unreachable!("nothing is entered when the loop has returned"),
            }));
            if let Err(panic) = ended {
                payload.get_or_insert(panic);
            }
        }
        payload
    }

    /// Whether suspended coroutines are left that cannot be unwound: then nothing of theirs may be freed.
    fn is_leaking(&self) -> bool {
        let suspended =
            |block: &&'static Control| matches!(self.own(block).state.get(), State::Suspended | State::Scheduled);
        cfg!(panic = "abort") && self.blocks.all().iter().any(suspended)
    }

    fn unwind(&self, block: &'static Control) {
        let own = self.own(block);
        own.propagates.set(true);
        let frame = Frame::above(self);
        frame.lock_depth.set(self.shared.lock.depth());
        let _leave = frame.push(self);
        self.running.set(Some(block));
        // From the first: one that was never entered drops what it caught, and may not wait in that either.
        own.unwinding.set(true);
        if let Some(payload) = self.resume(block, Resume::Unwind) {
            resume_unwind(payload);
        }
    }
}

/// Gives a finished coroutine's stack and block back, whatever its result's destructor does.
struct Release<'a> {
    home: &'a Home,
    block: &'static Control,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        let own = self.home.own(self.block);
        own.state.set(State::Free);
        self.block.ticket.retire();
        self.home.stacks.give_back(own.lease.take().expect("a coroutine has a stack until it is released"));
        self.home.blocks.give_back(self.block);
    }
}

impl Packet {
    fn of<T>(place: *mut u8) -> Packet {
        /// # Safety
        ///
        /// `place` holds an `Outcome<T>` that nobody reads again.
        unsafe fn payload<T>(place: *mut u8) -> Option<Box<dyn Any + Send>> {
            // SAFETY: the caller's promise.
            unsafe { place.cast::<Outcome<T>>().read() }.err()
        }
        Packet { place, payload: payload::<T> }
    }
}

/// `main > 'A' > loop > 'B'`: who is on the stack, outermost first.
pub(crate) struct Chain<'a>(&'a Home);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut frames = Vec::new();
        let (mut frame, mut running) = (self.0.frame(), self.0.running.get());
        while let Some(inner) = frame {
            frames.push(running);
            running = inner.outer;
            // SAFETY: as in `Home::frame`.
            frame = unsafe { inner.parent.as_ref() };
        }
        f.write_str("main")?;
        for running in frames.into_iter().rev() {
            match running {
                Some(block) => write!(f, " > {}", self.0.own(block).label())?,
                None => f.write_str(" > loop")?,
            }
        }
        Ok(())
    }
}

#[cold]
#[track_caller]
fn yields_outside() -> ! {
    panic!("yield outside a coroutine; only code in a coroutine can be suspended: spawn one")
}

#[cold]
#[track_caller]
fn yields_with_lock(own: &Own, guards: u32) -> ! {
    panic!(
        "coroutine {} yields while it holds the context's lock ({guards} times); drop the guard first: whoever runs next \
         would run under it",
        own.label()
    )
}

#[cold]
#[track_caller]
fn no_home(what: &str) -> ! {
    panic!("{what} outside a context; wrap the program in `run(|| ..)` or `AioContext::run(|ctx| ..)` on this thread")
}

/// Says why, and ends the process: for states in which going on would be undefined.
#[cold]
fn abort(why: fmt::Arguments<'_>) -> ! {
    eprintln!("coralio: {why}");
    std::process::abort()
}
