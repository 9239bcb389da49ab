//! The public side of stack measurement.

use crate::scheduler::Scheduler;
use crate::task::{Coroutine, CoroutineBuilder, JoinHandle};

impl CoroutineBuilder {
    /// Sets whether the stack is measured; the default is that of the context. Read the result with
    /// [`Coroutine::peak_stack_usage`] or
    /// [`JoinHandle::peak_stack_usage`](crate::JoinHandle::peak_stack_usage).
    ///
    /// Cost: the whole stack is written before the coroutine starts, so all of it becomes resident
    /// memory. For 128 KiB that takes a few microseconds, or some tens for a new stack.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use coralio::coroutine::Coroutine;
    ///
    /// AioContext::run(|ctx| {
    ///     let task = Coroutine::builder().track_stack_usage(true).spawn(|| format!("{:?}", [1; 10])).unwrap();
    ///     while !task.is_finished() {
    ///         ctx.poll(true);
    ///     }
    ///     println!("{} bytes of stack", task.peak_stack_usage().unwrap());
    /// });
    /// ```
    pub fn track_stack_usage(mut self, measure: bool) -> CoroutineBuilder {
        self.attributes.track_stack_usage = Some(measure);
        self
    }
}

impl Coroutine {
    /// Returns the maximum number of stack bytes that the coroutine has used so far. The result and
    /// the runtime's own frames are counted, the guard page is not. `None`: it is not measured
    /// ([`CoroutineBuilder::track_stack_usage`]), or has ended.
    ///
    /// Memory counts as used from the lowest word that was written. A matching `stack_size` is
    /// larger by 8 KiB, for the guard page and the offset between neighbouring stacks. Leave more
    /// room for signal handlers and for code paths that were not taken this time.
    pub fn peak_stack_usage(self) -> Option<usize> {
        let scheduler = Scheduler::current().filter(|_| self.id.is_live())?;
        let local = scheduler.local(self.id.block);
        let lease = local.lease.get().filter(|_| local.measured.get())?;
        Some(lease.high_water())
    }
}

impl<T> JoinHandle<T> {
    /// Returns the stack usage, as
    /// [`Coroutine::peak_stack_usage`](crate::Coroutine::peak_stack_usage) does; also after the
    /// coroutine has ended.
    pub fn peak_stack_usage(&self) -> Option<usize> {
        self.coroutine().peak_stack_usage()
    }
}
