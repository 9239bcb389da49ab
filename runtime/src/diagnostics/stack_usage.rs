//! Stack usage of a coroutine: the stack is painted before it starts, and words that lost the paint
//! were used.
//!
//! ```text
//!   limit                                                                   top
//!   | guard | paint paint paint paint | written once | frames of active calls |
//!                                     ^ high water
//! ```

#![allow(unsafe_code)]

use std::ptr;

use crate::coroutine::control_block::{BlockRef, LocalState};
use crate::coroutine::stack::StackLease;
use crate::scheduler::Home;
use crate::task::coroutine::{Builder, Coroutine};

/// Not an address, not a small number, not text.
const PAINT: u64 = 0xa5c3_96e1_5a3c_691e;

impl Builder {
    /// Sets whether the stack is measured; the default is that of the context. Read the result with
    /// [`Coroutine::stack_high_water`] or
    /// [`JoinHandle::stack_high_water`](crate::JoinHandle::stack_high_water).
    ///
    /// Cost: the whole stack is written before the coroutine starts, so all of it becomes resident
    /// memory. For 128 KiB that takes a few microseconds, or some tens for a new stack.
    ///
    /// ```
    /// use coralio_runtime::{AioContext, Coroutine};
    ///
    /// AioContext::run(|ctx| {
    ///     let task = Coroutine::builder().measure_stack(true).spawn(|| format!("{:?}", [1; 10])).unwrap();
    ///     while !task.is_finished() {
    ///         ctx.poll(true);
    ///     }
    ///     println!("{} bytes of stack", task.stack_high_water().unwrap());
    /// });
    /// ```
    pub fn measure_stack(mut self, measure: bool) -> Builder {
        self.attributes.measure_stack = Some(measure);
        self
    }
}

impl Coroutine {
    /// Returns the maximum number of stack bytes that the coroutine has used so far. The result and
    /// the runtime's own frames are counted, the guard page is not. `None`: it is not measured
    /// ([`Builder::measure_stack`]), or has ended.
    ///
    /// Memory counts as used from the lowest word that was written. A matching `stack_size` is
    /// larger by 8 KiB, for the guard page and the offset between neighbouring stacks. Leave more
    /// room for signal handlers and for code paths that were not taken this time.
    pub fn stack_high_water(self) -> Option<usize> {
        high_water(self.id)
    }
}

/// Returns the high-water mark on the home thread; `None` elsewhere.
pub(crate) fn high_water(id: BlockRef) -> Option<usize> {
    let home = Home::current().filter(|_| id.is_live())?;
    let local = home.local(id.block);
    let lease = local.lease.get().filter(|_| local.measured.get())?;
    Some(lease.high_water())
}

impl LocalState {
    /// Paints the stack; called before the coroutine starts.
    #[cold]
    pub(crate) fn measure(&self, lease: &StackLease) {
        lease.paint();
        self.measured.set(true);
    }
}

impl StackLease {
    /// Paints a stack on which nothing runs.
    fn paint(&self) {
        let usable = self.usable();
        let words = usable.len() / size_of::<u64>();
        let lowest = ptr::with_exposed_provenance_mut::<u64>(usable.start);
        // SAFETY: *guarded*: these bytes of the mapping are readable and writable, and belong to
        // the lease's owner; the start is page-aligned. No code runs on them yet.
        unsafe { std::slice::from_raw_parts_mut(lowest, words) }.fill(PAINT);
    }

    /// Returns how many bytes of a painted stack have lost their paint.
    fn high_water(&self) -> usize {
        let usable = self.usable();
        let is_painted = |address: &usize| {
            // SAFETY: as in `paint`, which initialized the words. Volatile, since the caller may
            // itself run on this stack: the compiler must assume nothing about the words' values.
            unsafe { ptr::with_exposed_provenance::<u64>(*address).read_volatile() == PAINT }
        };
        let lost = usable.clone().step_by(size_of::<u64>()).find(|address| !is_painted(address));
        usable.end - lost.unwrap_or(usable.end)
    }
}
