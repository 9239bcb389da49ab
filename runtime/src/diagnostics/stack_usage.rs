//! The public side of stack measurement.

use crate::scheduler::Scheduler;
use crate::task::{Builder, Coroutine, JoinHandle};

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
        let scheduler = Scheduler::current().filter(|_| self.id.is_live())?;
        let local = scheduler.local(self.id.block);
        let lease = local.lease.get().filter(|_| local.measured.get())?;
        Some(lease.high_water())
    }
}

impl<T> JoinHandle<T> {
    /// Returns the stack usage, as
    /// [`Coroutine::stack_high_water`](crate::Coroutine::stack_high_water) does; also after the
    /// coroutine has ended.
    pub fn stack_high_water(&self) -> Option<usize> {
        self.coroutine().stack_high_water()
    }
}
