//! A coroutine's beginning and end: its stack, its closure, its result.
//!
//! The result lies at the top of the coroutine's own stack, so the stack returns to the pool once
//! the result is fetched by a join handle, or dropped.

#![allow(unsafe_code)]

use std::alloc::Layout;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{Ordering, compiler_fence};
use std::{io, thread};

use corosensei::Yielder;

use crate::coroutine::{
    Attributes, Cancelled, ControlBlock, CoroutineId, Joiner, RawCoroutine, ResultSlot, Resume, RunningStack, State,
};
use crate::scheduler::Scheduler;
use crate::sys::{__rust_begin_short_backtrace, Payload};

impl Scheduler {
    /// Creates a coroutine, suspended before its first instruction (rule C1).
    ///
    /// # Safety
    ///
    /// Everything that `F` and `T` borrow lives until the coroutine has ended, at the latest when
    /// `LocalContext::run` returns.
    pub(crate) unsafe fn create<F, T>(&self, attributes: Attributes, propagates: bool, f: F) -> io::Result<CoroutineId>
    where
        F: FnOnce() -> T,
    {
        // The closure is moved onto the new stack; a large one would leave no room for its work.
        const LARGE: usize = 512;
        if size_of::<F>() > LARGE || align_of::<F>() > 64 {
            // SAFETY: the caller's promise.
            return unsafe { self.create_from(attributes, propagates, Box::new(f)) };
        }
        // SAFETY: the caller's promise.
        unsafe { self.create_from(attributes, propagates, f) }
    }

    /// As `create`. Only the closure's own steps are compiled for each type.
    ///
    /// # Safety
    ///
    /// As [`Scheduler::create`].
    unsafe fn create_from<F, T>(&self, attributes: Attributes, propagates: bool, f: F) -> io::Result<CoroutineId>
    where
        F: FnOnce() -> T,
    {
        let (block, closure) = self.prepare(attributes, propagates, const { &Body::of::<F, T>() })?;
        // SAFETY: `closure` was carved for an F off the top of the new stack. Its captures live long
        // enough, by the caller's promise.
        unsafe { closure.cast::<F>().write(f) };
        // Last, for an inspector that stops this thread: a block that is not free is fully
        // initialized.
        compiler_fence(Ordering::SeqCst);
        self.local(block).state.set(State::Suspended);
        Ok(block.id())
    }

    /// Prepares a block and a stack for a closure of the types of `body`. Returns the place on the
    /// stack to which the caller writes the closure.
    fn prepare(
        &self,
        attributes: Attributes,
        propagates: bool,
        body: &'static Body,
    ) -> io::Result<(&'static ControlBlock, *mut u8)> {
        if self.ending.get() {
            return Err(io::Error::other("the context is ending and starts no new coroutine"));
        }
        // First: the subscriber is foreign code.
        #[cfg(feature = "tracing")]
        let span = super::span::create(&attributes);
        let lease = self.stacks.take(attributes.stack_size)?;
        let mut rest = lease;
        let Some(place) = rest.carve(body.result) else {
            self.stacks.give_back(lease);
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a coroutine's result of {} bytes does not fit on its stack; return it in a Box, or set a larger \
                     stack_size",
                    body.result.size()
                ),
            ));
        };
        let closure = rest.cut(body.closure);
        let block = self.blocks.take();
        block.set_context(self.shared.id());
        let local = self.local(block);
        if let Some(tracer) = &self.shared.tracer {
            tracer.create(block.id().traced(), attributes.name.as_deref(), attributes.created_at);
        }
        let measure = attributes.track_stack_usage.unwrap_or(self.stacks.measure);
        self.live_count.set(self.live_count.get() + 1);
        self.serial.set(self.serial.get() + 1);
        local.reset(attributes, self.serial.get(), lease, ResultSlot { place, payload: body.payload });
        local.propagates.set(propagates);
        #[cfg(feature = "tracing")]
        local.span.set(span);
        local.since.set(self.clock.ms());
        if measure {
            lease.paint();
            local.measured.set(true);
        }

        let run = move |yielder: &Yielder<Resume, ()>, first: Resume| {
            self.switching.set(false);
            local.yielder.set(yielder);
            // SAFETY: both were carved for these types off the top of this very stack; the closure
            // was written before the first resumption, which is this one.
            unsafe { (body.run)(closure, place, first) };
            self.switching.set(true);
        };
        // SAFETY: the scheduler outlives the raw coroutine, which ends before the stack is returned
        // or unmapped (*home outlives its stacks*). The block's slot for it is empty in state Free.
        unsafe {
            let raw = RawCoroutine::with_stack_unchecked(RunningStack::new(&rest), run);
            (*local.raw.get()).write(raw);
        }
        Ok((block, closure))
    }

    /// Finishes a coroutine that has ended: frees its stack, unless its result still lies there for
    /// the join handle.
    pub(crate) fn finish(&self, block: &'static ControlBlock) -> Option<Payload> {
        let local = self.local(block);
        local.state.set(State::Finished);
        // SAFETY: the raw coroutine is still in its slot; it has completed, and is dropped here,
        // once.
        unsafe { (*local.raw.get()).assume_init_drop() };
        if !local.propagates.get() && !local.detached.get() {
            match local.joiner.take() {
                Some(Joiner::Coroutine(joiner)) => self.wake(joiner),
                Some(Joiner::Task(waker)) => {
                    // The waker is foreign code, and the coroutine's stack is finished: nothing can
                    // be suspended there.
                    self.running.set(None);
                    waker.wake();
                }
                None => {}
            }
            self.trace_end(block);
            return None;
        }
        self.trace_end(block);
        let result = local.result.take().expect("a finished coroutine has an outcome");
        let _release = Release { scheduler: self, block };
        // The coroutine's stack is finished: the result's destructor runs outside a coroutine, and
        // cannot be suspended.
        self.running.set(None);
        // SAFETY: the body wrote the outcome before it returned, and the packet was taken, so it is
        // read only once.
        let payload = unsafe { (result.payload)(result.place) };
        payload.filter(|payload| local.propagates.get() && !payload.is::<Cancelled>())
    }

    /// Traces the end, after the joiner was woken and before the block is reused.
    #[inline]
    fn trace_end(&self, block: &'static ControlBlock) {
        if let Some(tracer) = &self.shared.tracer {
            tracer.end(block.id().traced());
        }
    }

    /// Takes the outcome of a finished coroutine, and returns its stack to the pool.
    pub(crate) fn fetch<T>(&self, block: &'static ControlBlock) -> thread::Result<T> {
        let result = self.local(block).result.take().expect("an outcome is taken once");
        let _release = Release { scheduler: self, block };
        // SAFETY: the join handle has the type with which the coroutine was created, and the packet
        // was taken, so the outcome is read once.
        unsafe { result.place.cast::<thread::Result<T>>().read() }
    }

    /// Marks the coroutine as detached: its outcome will not be fetched.
    pub(crate) fn detach(&self, block: &'static ControlBlock) {
        let local = self.local(block);
        local.detached.set(true);
        if local.state.get() == State::Finished {
            drop(self.discard(block));
        }
    }

    /// Drops a finished coroutine's value, or returns the payload of its panic.
    pub(crate) fn discard(&self, block: &'static ControlBlock) -> Option<Payload> {
        // `None`: the value was taken already, and its destructor, which is running, called this.
        let result = self.local(block).result.take()?;
        let _release = Release { scheduler: self, block };
        // SAFETY: as in `finish`.
        unsafe { (result.payload)(result.place) }
    }
}

/// Returns a finished coroutine's stack and block, even if its result's destructor panics.
struct Release<'a> {
    scheduler: &'a Scheduler,
    block: &'static ControlBlock,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        let local = self.scheduler.local(self.block);
        local.state.set(State::Free);
        // First, for an inspector that stops this thread: the name changes only while the block is
        // free.
        compiler_fence(Ordering::SeqCst);
        self.scheduler.live_count.set(self.scheduler.live_count.get() - 1);
        // A joiner that was never woken may keep a context alive.
        let _unwoken = local.joiner.take();
        self.block.word.retire();
        self.scheduler.stacks.give_back(local.lease.take().expect("a coroutine has a stack until it is released"));
        self.scheduler.blocks.give_back(self.block);
    }
}

/// The steps of a coroutine that depend on the types of its closure and result.
struct Body {
    closure: Layout,
    result: Layout,
    /// Runs the closure, or drops it if the coroutine is to unwind, and writes the outcome.
    run: unsafe fn(closure: *mut u8, place: *mut u8, first: Resume),
    /// Takes the outcome: returns the panic payload, or drops the value.
    payload: unsafe fn(place: *mut u8) -> Option<Payload>,
}

impl Body {
    const fn of<F: FnOnce() -> T, T>() -> Body {
        /// # Safety
        ///
        /// `closure` holds an `F` that is not read again, and `place` has room for the outcome.
        unsafe fn run<F: FnOnce() -> T, T>(closure: *mut u8, place: *mut u8, first: Resume) {
            // SAFETY: the caller's promise.
            let f = unsafe { closure.cast::<F>().read() };
            let outcome = catch_unwind(AssertUnwindSafe(|| match first {
                Resume::Continue => __rust_begin_short_backtrace(f),
                Resume::Backtrace => unreachable!("only an entered coroutine is traced"),
                Resume::Unwind => {
                    drop(f);
                    resume_unwind(Box::new(Cancelled))
                }
            }));
            // SAFETY: the caller's promise.
            unsafe { place.cast::<thread::Result<T>>().write(outcome) };
        }
        /// # Safety
        ///
        /// `place` holds an `thread::Result<T>` that is not read again.
        unsafe fn payload<T>(place: *mut u8) -> Option<Payload> {
            // SAFETY: the caller's promise.
            unsafe { place.cast::<thread::Result<T>>().read() }.err()
        }
        Body {
            closure: Layout::new::<F>(),
            result: Layout::new::<thread::Result<T>>(),
            run: run::<F, T>,
            payload: payload::<T>,
        }
    }
}
