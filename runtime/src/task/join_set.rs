//! A set of coroutines that are joined in the order in which they end (rule S8).

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::rc::Rc;
use std::{io, thread};

use crate::context::LocalContext;
use crate::coroutine::{Cancelled, CoroutineId, WaitReason};
use crate::scheduler::Scheduler;
use crate::task::{Coroutine, CoroutineBuilder, JoinHandle, expect_spawned};

/// A set of coroutines of this thread with one type of result, which end in any order.
///
/// Dropping the set cancels the coroutines left in it, and does not wait: they continue detached
/// until they return. Use [`shutdown`](Self::shutdown) to wait for them, or a
/// [`scope`](crate::scope()), whose coroutines may also borrow.
///
/// ```
/// use coralio::sleep;
/// use coralio::task::JoinSet;
/// use std::time::Duration;
///
/// coralio::run(|| {
///     let mut set = JoinSet::new();
///     for n in [3, 1, 2] {
///         set.spawn(move || {
///             sleep(Duration::from_millis(20 * n)).unwrap();
///             n
///         });
///     }
///     let mut ended = Vec::new();
///     while let Some(result) = set.join_next().unwrap() {
///         ended.push(result.unwrap());
///     }
///     assert_eq!(ended, [1, 2, 3]);
/// });
/// ```
///
/// Coroutines with names, which are polled, cancelled and detached:
///
/// ```
/// use coralio::{sleep, yield_now};
/// use coralio::context::AioContext;
/// use coralio::coroutine::Coroutine;
/// use coralio::task::JoinSet;
/// use std::time::Duration;
///
/// AioContext::run(|ctx| {
///     let mut set = JoinSet::new();
///     set.spawn_with(Coroutine::builder().name("short"), || Ok(yield_now())).unwrap();
///     set.spawn_with(Coroutine::builder().name("long"), || sleep(Duration::from_secs(3600))).unwrap();
///     while set.len() == 2 {
///         ctx.poll(true);
///         if let Some(result) = set.try_join_next() {
///             assert!(result.unwrap().is_ok());
///         }
///     }
///     set.cancel_all();
///     assert!(set.join_next().unwrap().unwrap().unwrap().is_err());
///     set.spawn(|| Ok(()));
///     set.detach_all(); // the drop of the set cancels nothing
/// });
/// ```
#[must_use = "dropping the set cancels its coroutines"]
pub struct JoinSet<T> {
    /// The handles, in order of creation.
    handles: BTreeMap<u64, JoinHandle<T>>,
    created: u64,
    shared: Rc<Shared>,
}

/// The part of the set that its coroutines share.
#[derive(Default)]
struct Shared {
    /// The numbers of the coroutines that have ended, in that order.
    ended: RefCell<VecDeque<u64>>,
    /// The coroutine that waits for one of them.
    waiter: Cell<Option<CoroutineId>>,
}

/// Held by each coroutine of the set, and dropped last.
struct Ended(Rc<Shared>, u64);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.ended.borrow_mut().push_back(self.1);
        if let (Some(scheduler), Some(waiter)) = (Scheduler::current(), self.0.waiter.take()) {
            // The waiter runs after this coroutine has ended, when its result is stored.
            scheduler.wake_later(waiter);
        }
    }
}

impl<T: 'static> JoinSet<T> {
    /// Creates an empty set.
    pub fn new() -> JoinSet<T> {
        JoinSet { handles: BTreeMap::new(), created: 0, shared: Rc::default() }
    }

    /// Spawns a coroutine as [`spawn`](crate::spawn()) does, and adds it to the set. Returns the
    /// coroutine, for example to cancel it alone.
    ///
    /// # Panics
    ///
    /// As [`spawn`](crate::spawn()).
    #[track_caller]
    pub fn spawn(&mut self, f: impl FnOnce() -> T + 'static) -> Coroutine {
        expect_spawned(self.spawn_with(Coroutine::builder(), f))
    }

    /// Spawns a coroutine as [`spawn`](Self::spawn) does, with a name or a stack size.
    ///
    /// # Errors
    ///
    /// No memory for a stack, or the context is ending.
    ///
    /// # Panics
    ///
    /// Outside a context.
    #[track_caller]
    pub fn spawn_with(&mut self, builder: CoroutineBuilder, f: impl FnOnce() -> T + 'static) -> io::Result<Coroutine> {
        self.created += 1;
        let ended = Ended(Rc::clone(&self.shared), self.created);
        let handle = builder.spawn(move || {
            let _ended = ended;
            f()
        })?;
        let coroutine = handle.coroutine();
        self.handles.insert(self.created, handle);
        Ok(coroutine)
    }

    /// Waits until a coroutine of the set has ended, removes it and returns its result: the value,
    /// or the payload of its panic, as [`JoinHandle::join`] does. Returns `None` if the set is
    /// empty. A coroutine is suspended meanwhile; on the thread's own stack, the loop runs
    /// meanwhile.
    ///
    /// # Errors
    ///
    /// [`Cancelled`], if none has ended and the waiting coroutine was cancelled, or an enclosing
    /// timeout expired. The set is unchanged, and its coroutines continue.
    ///
    /// # Panics
    ///
    /// Outside a context, if the set is not empty.
    ///
    /// # Control
    ///
    /// May yield; on the thread's own stack, may enter.
    #[track_caller]
    pub fn join_next(&mut self) -> Result<Option<thread::Result<T>>, Cancelled> {
        loop {
            if let Some(result) = self.try_join_next() {
                return Ok(Some(result));
            }
            if self.handles.is_empty() {
                return Ok(None);
            }
            self.wait()?;
        }
    }

    /// Waits until a coroutine has ended, even one that is no longer in the set.
    #[track_caller]
    fn wait(&self) -> Result<(), Cancelled> {
        let scheduler = Scheduler::expect("joining a coroutine");
        let has_ended = || !self.shared.ended.borrow().is_empty();
        match scheduler.running() {
            Some(running) => scheduler.suspend_until(WaitReason::JoinSet, || {
                self.shared.waiter.set(Some(running.id()));
                has_ended().then_some(())
            }),
            // A destructor at the very end: the coroutines will not run any more.
            None if scheduler.is_ending() => Err(Cancelled),
            None => {
                LocalContext::expect("joining a coroutine").context.poll_until(has_ended);
                Ok(())
            }
        }
    }

    /// Removes a coroutine that has ended, and returns its result; `None` if there is none.
    #[track_caller]
    pub fn try_join_next(&mut self) -> Option<thread::Result<T>> {
        loop {
            let number = self.shared.ended.borrow_mut().pop_front()?;
            // None: it was detached.
            if let Some(handle) = self.handles.remove(&number) {
                return Some(handle.join());
            }
        }
    }

    /// Cancels all coroutines of the set, as [`cancel_all`](Self::cancel_all) does, and waits for them.
    /// Their results are dropped, and the payloads of their panics.
    ///
    /// # Errors
    ///
    /// [`Cancelled`], as [`join_next`](Self::join_next): all coroutines were cancelled, and remain in
    /// the set until they are joined.
    ///
    /// # Control
    ///
    /// May yield; on the thread's own stack, may enter.
    #[track_caller]
    pub fn shutdown(&mut self) -> Result<(), Cancelled> {
        self.cancel_all();
        while self.join_next()?.is_some() {}
        Ok(())
    }
}

impl<T> JoinSet<T> {
    /// Returns the number of coroutines in the set, including ended ones that were not joined.
    pub fn len(&self) -> usize {
        self.handles.len()
    }

    /// Returns whether the set is empty.
    pub fn is_empty(&self) -> bool {
        self.handles.is_empty()
    }

    /// Cancels all coroutines of the set, in order of creation: from now on their waits return
    /// [`Cancelled`]. They remain in the set.
    #[doc(alias = "abort_all")]
    #[track_caller]
    pub fn cancel_all(&self) {
        self.handles.values().for_each(|handle| handle.coroutine().cancel_later());
    }

    /// Removes all coroutines from the set without cancelling them: they continue detached.
    pub fn detach_all(&mut self) {
        self.handles.clear();
    }
}

impl<T: 'static> Default for JoinSet<T> {
    fn default() -> JoinSet<T> {
        JoinSet::new()
    }
}

impl<T> Drop for JoinSet<T> {
    fn drop(&mut self) {
        self.cancel_all();
    }
}

impl<T> fmt::Debug for JoinSet<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JoinSet").field("len", &self.len()).finish_non_exhaustive()
    }
}
