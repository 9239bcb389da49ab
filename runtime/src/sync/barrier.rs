//! A barrier: coroutines wait for each other (rule S11).
//!
//! The number of waiters is guarded by the wait queue's lock. The last arrival grants all of them
//! within one critical section, so no waiter can leave once its round is complete. Their wakers are
//! collected for that; the memory is reserved before, with the queue unlocked.

use std::fmt;

use crate::coroutine::{Cancelled, WaitReason};
use crate::sync::wait_queue::{Abandoned, IF_CANCELLED, WaitQueue};

/// Lets a fixed number of coroutines, of any number of contexts and threads, wait for each other,
/// round after round.
///
/// ```
/// use coralio::spawn;
/// use coralio::sync::Barrier;
/// use std::cell::Cell;
/// use std::rc::Rc;
///
/// coralio::run(|| {
///     let shared = Rc::new((Barrier::new(3), Cell::new(0)));
///     let tasks = [(); 3].map(|()| {
///         let shared = Rc::clone(&shared);
///         spawn(move || {
///             shared.1.set(shared.1.get() + 1);
///             let passed = shared.0.wait().unwrap();
///             assert_eq!(shared.1.get(), 3);
///             passed.is_leader()
///         })
///     });
///     let leaders = tasks.map(|task| task.join().unwrap()).into_iter().filter(|&is_leader| is_leader);
///     assert_eq!(leaders.count(), 1);
/// });
/// ```
pub struct Barrier {
    size: usize,
    /// The state is the number of waiters.
    queue: WaitQueue<(), usize>,
}

/// The result of a passed [`Barrier`].
#[derive(Clone, Copy, Debug)]
pub struct BarrierWaitResult {
    is_leader: bool,
}

impl BarrierWaitResult {
    /// Returns whether this coroutine was the last one to arrive; there is one in each round.
    pub fn is_leader(&self) -> bool {
        self.is_leader
    }
}

impl Barrier {
    /// Creates a barrier for `size` coroutines; 0 is taken for 1.
    pub const fn new(size: usize) -> Barrier {
        Barrier { size, queue: WaitQueue::new(0) }
    }

    /// Waits until as many coroutines wait as the barrier is for. The last one does not suspend.
    ///
    /// # Errors
    ///
    /// [`Cancelled`], if the coroutine was cancelled or an enclosing timeout expired: its arrival is
    /// withdrawn, and the others wait for one more. A round that is complete is passed even so.
    ///
    /// # Control
    ///
    /// May yield.
    #[track_caller]
    pub fn wait(&self) -> Result<BarrierWaitResult, Cancelled> {
        let mut wakers = Vec::new();
        loop {
            let mut locked = self.queue.lock();
            let waiting = *locked.state();
            if waiting + 1 < self.size {
                *locked.state() += 1;
                let reason = WaitReason::Barrier(std::ptr::from_ref(self).addr());
                let passed = self.queue.wait(locked, (), reason, IF_CANCELLED, || (), |gone| self.gone(gone));
                return passed.map(|()| BarrierWaitResult { is_leader: false }).map_err(|()| Cancelled);
            }
            if wakers.capacity() < waiting {
                drop(locked);
                wakers.reserve(waiting);
                continue;
            }
            while let Some(waker) = locked.grant_first() {
                wakers.push(waker);
            }
            *locked.state() = 0;
            drop(locked);
            wakers.iter().for_each(|waker| waker.wake_later());
            return Ok(BarrierWaitResult { is_leader: true });
        }
    }

    /// Handles a waiter that leaves.
    fn gone(&self, gone: Abandoned<'_, (), usize>) {
        match gone {
            Abandoned::Left(mut locked) => *locked.state() -= 1,
            // Its round is complete.
            Abandoned::Granted(()) => {}
        }
    }
}

impl fmt::Debug for Barrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Barrier").field("size", &self.size).finish_non_exhaustive()
    }
}
