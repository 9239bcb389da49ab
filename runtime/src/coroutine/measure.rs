//! How much of its stack a coroutine uses: the stack is painted before it starts, and what has lost its paint was used.
//!
//! ```text
//!   limit                                                                top
//!   | guard | paint paint paint paint | written once | frames of those who wait |
//!                                     ^ high water
//! ```

#![allow(unsafe_code)]

use std::ptr;

use crate::home::Home;

use super::control::{CoroutineId, Own};
use super::stack::StackLease;
use super::{Builder, Coroutine};

/// No address, no small number, no character of a text.
const PAINT: u64 = 0xa5c3_96e1_5a3c_691e;

impl Builder {
    /// Whether its stack is measured; without it, what the context was built with. Read it by
    /// [`Coroutine::stack_high_water`] or [`JoinHandle::stack_high_water`](crate::JoinHandle::stack_high_water).
    ///
    /// Costs: the whole stack is written to before the coroutine starts, so all of it becomes resident memory. For
    /// 128 KiB that takes a few microseconds, or some tens where the stack is a new one.
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
    /// How many bytes of its stack it has used so far, at most; its result and the runtime's own frames are counted,
    /// the guard page is not. `None`: it is not measured ([`Builder::measure_stack`]), or has ended.
    ///
    /// Memory counts as used from the lowest word that was written. A `stack_size` for as much is larger by 8 KiB: the
    /// guard page, and what neighbours start lower than each other. Leave room besides, for signal handlers and for ways
    /// through the code that were not taken this time.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn stack_high_water(self) -> Option<usize> {
        high_water(self.id)
    }
}

/// On the home thread; `None` elsewhere.
pub(crate) fn high_water(id: CoroutineId) -> Option<usize> {
    let home = Home::current().filter(|_| id.is_live())?;
    let own = home.own(id.block);
    let lease = own.lease.get().filter(|_| own.measured.get())?;
    Some(lease.high_water())
}

impl Own {
    /// Before the coroutine has begun.
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
        // SAFETY: *guarded*: these bytes of the mapping are readable and writable, and belong to whoever holds the lease;
        // the start is a page's. Nobody runs on them yet.
        unsafe { std::slice::from_raw_parts_mut(lowest, words) }.fill(PAINT);
    }

    /// Of one that was painted: how much has lost its paint.
    fn high_water(&self) -> usize {
        let usable = self.usable();
        let is_painted = |address: &usize| {
            // SAFETY: as in `paint`: it was written then. Volatile, since whoever runs there may be the caller: the
            // compiler is to know nothing of what these words are.
            unsafe { ptr::with_exposed_provenance::<u64>(*address).read_volatile() == PAINT }
        };
        let lost = usable.clone().step_by(size_of::<u64>()).find(|address| !is_painted(address));
        usable.end - lost.unwrap_or(usable.end)
    }
}
