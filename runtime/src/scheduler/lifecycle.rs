//! A coroutine's beginning and end: its stack, its closure, its result.
//!
//! The result lies at the top of the coroutine's own stack, so the stack returns to the pool once
//! the result is fetched by a join handle, or dropped.

#![allow(unsafe_code)]

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{Ordering, compiler_fence};
use std::{io, ptr, thread};

use corosensei::Yielder;

use crate::coroutine::control_block::{Control, CoroutineId, Joiner, Machine, Packet, Resume, State};
use crate::coroutine::error::Cancelled;
use crate::coroutine::stack::RunningStack;
use crate::coroutine::wait_reason::Waiting;
use crate::scheduler::Home;
use crate::task::coroutine::Attributes;

/// The outcome of a coroutine: its value, or the payload of its panic.
pub(crate) type Outcome<T> = thread::Result<T>;

impl Home {
    /// Creates a coroutine, suspended before its first instruction (rule C1).
    ///
    /// # Safety
    ///
    /// Everything that `F` and `T` borrow lives until the coroutine has ended, at the latest when
    /// [`Home::run`] returns.
    pub(crate) unsafe fn create<F, T>(&self, attributes: Attributes, propagates: bool, f: F) -> io::Result<CoroutineId>
    where
        F: FnOnce() -> T,
    {
        // A closure's captures are moved onto the new stack; large ones would leave no room for its
        // work. corosensei takes 1 KiB in all; a large alignment could double that.
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
            return Err(io::Error::other("the context is ending and starts no new coroutine"));
        }
        let lease = self.stacks.take(attributes.stack_size)?;
        let mut rest = lease;
        let Some(place) = rest.carve(size_of::<Outcome<T>>(), align_of::<Outcome<T>>()) else {
            self.stacks.give_back(lease);
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                format!(
                    "a coroutine's result of {} bytes does not fit on its stack; return it in a Box, or set a larger \
                     stack_size",
                    size_of::<Outcome<T>>()
                ),
            ));
        };
        let block = self.blocks.take();
        block.set_context(self.shared.id());
        let own = self.own(block);
        own.woken.set(false);
        own.yielder.set(ptr::null());
        own.limits.set(ptr::null());
        own.shields.set(0);
        own.unwinding.set(false);
        own.swallowed.set(0);
        own.detached.set(false);
        own.propagates.set(propagates);
        own.measured.set(false);
        own.lease.set(Some(lease));
        own.packet.set(Some(Packet::of::<T>(place)));
        own.joiner.set(None);
        if let Some(tracer) = &self.shared.tracer {
            tracer.create(block.id(), attributes.name.as_deref(), attributes.created_at);
        }
        if attributes.name.is_some() || own.name.borrow().is_some() {
            own.name.replace(attributes.name);
        }
        self.alive.set(self.alive.get() + 1);
        own.serial.set(self.serial.get() + 1);
        self.serial.set(self.serial.get() + 1);
        own.created_at.set(attributes.created_at);
        own.suspended_at.set(attributes.created_at);
        own.waiting.set(Waiting::Enter);
        own.since.set(self.clock.get());
        if attributes.measure_stack.unwrap_or(self.stacks.measures()) {
            own.measure(&lease);
        }

        let body = move |yielder: &Yielder<Resume, ()>, first: Resume| {
            self.switching.set(false);
            own.yielder.set(yielder);
            let outcome = catch_unwind(AssertUnwindSafe(|| match first {
                Resume::Go => f(),
                Resume::Trace => unreachable!("only an entered coroutine is traced"),

                Resume::Unwind => {
                    drop(f);
                    resume_unwind(Box::new(Cancelled))
                }
            }));
            // SAFETY: `place` was carved for an Outcome<T> off the top of this very stack, and is
            // written once.
            unsafe { place.cast::<Outcome<T>>().write(outcome) };
            self.switching.set(true);
        };
        // SAFETY: the captures of `body` live long enough, by the caller's promise. The machine
        // ends before the stack is returned or unmapped (*home outlives its stacks*), and the
        // block's slot for it is empty in state Free.
        unsafe {
            let machine = Machine::with_stack_unchecked(RunningStack::new(&rest), body);
            (*own.machine.get()).write(machine);
        }
        // Last, for a thread that stops this one: a block that is not free is fully initialized.
        compiler_fence(Ordering::SeqCst);
        own.state.set(State::Suspended);
        Ok(block.id())
    }

    /// Finishes a coroutine that has ended: frees its stack, unless its result still lies there for
    /// the join handle.
    pub(crate) fn finish(&self, block: &'static Control) -> Option<Box<dyn Any + Send>> {
        let own = self.own(block);
        own.state.set(State::Finished);
        // SAFETY: the machine is still in its slot; it has completed, and is dropped here, once.
        unsafe { (*own.machine.get()).assume_init_drop() };
        if !own.propagates.get() && !own.detached.get() {
            match own.joiner.take() {
                Some(Joiner::Coroutine(joiner)) => self.wake(joiner),
                Some(Joiner::Task(waker)) => {
                    // The waker is foreign code, and the coroutine's stack is finished: nothing can
                    // be suspended there.
                    self.running.set(None);
                    waker.wake();
                }
                None => {}
            }
            self.tell_end(block);
            return None;
        }
        self.tell_end(block);
        let packet = own.packet.take().expect("a finished coroutine has an outcome");
        let _release = Release { home: self, block };
        // The coroutine's stack is finished: the result's destructor runs outside a coroutine, and
        // cannot be suspended.
        self.running.set(None);
        // SAFETY: the body wrote the outcome before it returned, and the packet was taken, so it is
        // read only once.
        let payload = unsafe { (packet.payload)(packet.place) };
        payload.filter(|payload| own.propagates.get() && !payload.is::<Cancelled>())
    }

    /// Traces the end, after the joiner was woken and before the block is reused.
    #[inline]
    fn tell_end(&self, block: &'static Control) {
        if let Some(tracer) = &self.shared.tracer {
            tracer.end(block.id());
        }
    }

    /// Takes the outcome of a finished coroutine, and returns its stack to the pool.
    pub(crate) fn fetch<T>(&self, block: &'static Control) -> Outcome<T> {
        let packet = self.own(block).packet.take().expect("an outcome is taken once");
        let _release = Release { home: self, block };
        // SAFETY: the join handle has the type with which the coroutine was created, and the packet
        // was taken, so the outcome is read once.
        unsafe { packet.place.cast::<Outcome<T>>().read() }
    }

    /// Marks the coroutine as detached: its outcome will not be fetched.
    pub(crate) fn detach(&self, block: &'static Control) {
        let own = self.own(block);
        own.detached.set(true);
        if own.state.get() == State::Finished {
            drop(self.discard(block));
        }
    }

    /// Drops a finished coroutine's value, or returns the payload of its panic.
    pub(crate) fn discard(&self, block: &'static Control) -> Option<Box<dyn Any + Send>> {
        // None: taken already; the value's destructor is running, and led here.
        let packet = self.own(block).packet.take()?;
        let _release = Release { home: self, block };
        // SAFETY: as in `finish`.
        unsafe { (packet.payload)(packet.place) }
    }
}

/// Returns a finished coroutine's stack and block, even if its result's destructor panics.
struct Release<'a> {
    home: &'a Home,
    block: &'static Control,
}

impl Drop for Release<'_> {
    fn drop(&mut self) {
        let own = self.home.own(self.block);
        own.state.set(State::Free);
        // First, for a thread that stops this one: the name changes only while the block is free.
        compiler_fence(Ordering::SeqCst);
        self.home.alive.set(self.home.alive.get() - 1);
        // A joiner that was never woken may keep a context alive.
        let _unwoken = own.joiner.take();
        self.block.ticket.retire();
        self.home.stacks.give_back(own.lease.take().expect("a coroutine has a stack until it is released"));
        self.home.blocks.give_back(self.block);
    }
}

impl Packet {
    fn of<T>(place: *mut u8) -> Packet {
        /// # Safety
        ///
        /// `place` holds an `Outcome<T>` that is not read again.
        unsafe fn payload<T>(place: *mut u8) -> Option<Box<dyn Any + Send>> {
            // SAFETY: the caller's promise.
            unsafe { place.cast::<Outcome<T>>().read() }.err()
        }
        Packet { place, payload: payload::<T> }
    }
}
