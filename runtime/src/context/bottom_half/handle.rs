//! The public side of bottom halves.

use std::fmt;
use std::panic::Location;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::{Callback, Due, Entry};
use crate::context::{AioContext, ContextEnded, Key, SharedContext};

impl AioContext {
    /// Creates a bottom half: when it is scheduled, the loop runs `callback` in its next iteration.
    ///
    /// The callback is `Send`, since another thread's poll may run it.
    ///
    /// # Errors
    ///
    /// Fails if the context has ended. `callback` is dropped.
    #[doc(alias = "aio_bh_new")]
    #[track_caller]
    pub fn new_bottom_half(&self, mut callback: impl FnMut() + Send + 'static) -> Result<BottomHalf, ContextEnded> {
        self.insert_bottom_half(Box::new(move |_, _| callback()))
    }

    /// As [`new_bottom_half`](Self::new_bottom_half), for a callback that schedules, cancels or
    /// [deletes](BottomHalf::delete) its own bottom half: the callback receives its own handle.
    ///
    /// ```
    /// use coralio_runtime::AioContext;
    ///
    /// AioContext::run(|ctx| {
    ///     let mut left = 3;
    ///     let bh = ctx.new_bottom_half_with(move |own| {
    ///         left -= 1;
    ///         if left > 0 { own.schedule() } else { own.delete() }
    ///     })?;
    ///     bh.schedule();
    ///     (0..3).for_each(|_| assert!(ctx.poll(false)));
    ///     assert!(!ctx.poll(false));
    ///     Ok::<_, coralio_runtime::ContextEnded>(())
    /// })
    /// .unwrap();
    /// ```
    ///
    /// # Errors
    ///
    /// As [`new_bottom_half`](Self::new_bottom_half).
    #[track_caller]
    pub fn new_bottom_half_with(
        &self,
        mut callback: impl FnMut(&BottomHalf) + Send + 'static,
    ) -> Result<BottomHalf, ContextEnded> {
        self.insert_bottom_half(Box::new(move |shared, key| {
            callback(&BottomHalf { shared: Arc::clone(shared), key, owns: false });
        }))
    }

    #[track_caller]
    fn insert_bottom_half(&self, callback: Callback) -> Result<BottomHalf, ContextEnded> {
        let entry = Entry::new(callback, false, Location::caller());
        // In a statement of its own, so that a rejected callback is dropped without the lock.
        let inserted = self.shared.bottom_halves.table.lock().entries.insert(entry);
        match inserted {
            Ok(key) => Ok(BottomHalf { shared: Arc::clone(&self.shared), key, owns: true }),
            Err(_rejected) => Err(ContextEnded { operation: "create a bottom half" }),
        }
    }

    /// Runs `callback` once, in the loop's next iteration. From any thread.
    ///
    /// # Errors
    ///
    /// Fails if the context has ended. `callback` is dropped. A callback that was accepted, but has
    /// not run when the context ends, is dropped then.
    #[doc(alias = "aio_bh_schedule_oneshot")]
    #[track_caller]
    pub fn schedule_oneshot(&self, callback: impl FnOnce() + Send + 'static) -> Result<(), ContextEnded> {
        let mut callback = Some(callback);
        let run: Callback = Box::new(move |_, _| {
            if let Some(callback) = callback.take() {
                callback();
            }
        });
        let bottom_halves = &self.shared.bottom_halves;
        let mut table = bottom_halves.table.lock();
        let inserted = table.entries.insert(Entry::new(run, true, Location::caller()));
        if let Ok(key) = inserted {
            table.schedule(key, Due::NextRound, &self.shared.scheduler.clock);
            bottom_halves.queued.store(true, Ordering::Relaxed);
        }
        drop(table);
        match inserted {
            Ok(_) => self.shared.scheduler.wake_loop(),
            Err(_rejected) => return Err(ContextEnded { operation: "schedule a one-shot callback" }),
        }
        Ok(())
    }

    /// Returns the bottom halves of this context, including one-shots. From any thread, even while
    /// the loop hangs.
    pub fn bottom_halves(&self) -> Vec<BottomHalfInfo> {
        let table = self.shared.bottom_halves.table.lock();
        let info = |(_, entry): (Key, &Entry)| BottomHalfInfo {
            created_at: entry.created_at,
            is_scheduled: entry.due == Due::NextRound,
            is_idle_scheduled: entry.due == Due::Idle,
            is_one_shot: entry.one_shot,
            is_running: entry.callback.is_none(),
        };
        table.entries.iter().map(info).collect()
    }
}

/// The state of a bottom half, returned by [`AioContext::bottom_halves`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BottomHalfInfo {
    /// Where the bottom half was created.
    pub created_at: &'static Location<'static>,
    /// Scheduled for the next iteration.
    pub is_scheduled: bool,
    /// Scheduled to run within 10 ms ([`BottomHalf::schedule_idle`]).
    pub is_idle_scheduled: bool,
    /// Created by [`AioContext::schedule_oneshot`].
    pub is_one_shot: bool,
    /// The callback is running.
    pub is_running: bool,
}

/// A callback that the loop runs when scheduled. Dropping the handle, even within the callback,
/// deletes the bottom half. After the context has ended, a handle does nothing.
///
/// ```
/// use coralio_runtime::AioContext;
/// use std::sync::atomic::{AtomicU32, Ordering};
/// use std::sync::Arc;
///
/// AioContext::run(|ctx| {
///     let runs = Arc::new(AtomicU32::new(0));
///     let bh = ctx.new_bottom_half({
///         let runs = Arc::clone(&runs);
///         move || { runs.fetch_add(1, Ordering::Relaxed); }
///     })?;
///     bh.schedule();
///     bh.schedule(); // still once
///     assert!(ctx.poll(false));
///     assert_eq!(runs.load(Ordering::Relaxed), 1);
///     Ok::<_, coralio_runtime::ContextEnded>(())
/// })
/// .unwrap();
/// ```
#[doc(alias = "QEMUBH")]
#[must_use = "dropping it deletes the bottom half"]
pub struct BottomHalf {
    shared: Arc<SharedContext>,
    key: Key,
    /// False for the handle passed to the callback; dropping that one deletes nothing.
    owns: bool,
}

impl BottomHalf {
    /// Schedules the bottom half for the next iteration. Scheduling it again before it runs has no
    /// effect. From any thread.
    #[doc(alias = "qemu_bh_schedule")]
    pub fn schedule(&self) {
        self.shared.bottom_halves.schedule(self.key, Due::NextRound, &self.shared);
    }

    /// Schedules the bottom half to run within 10 ms, without keeping the loop busy. From any
    /// thread.
    #[doc(alias = "qemu_bh_schedule_idle")]
    pub fn schedule_idle(&self) {
        self.shared.bottom_halves.schedule(self.key, Due::Idle, &self.shared);
    }

    /// Cancels a schedule. A callback that is running already is not affected. From any thread.
    #[doc(alias = "qemu_bh_cancel")]
    pub fn cancel(&self) {
        if let Some(entry) = self.shared.bottom_halves.table.lock().entries.get_mut(self.key) {
            entry.due = Due::Never;
        }
    }

    /// Deletes the bottom half, as dropping its handle does. A running callback finishes first.
    /// From any thread.
    #[doc(alias = "qemu_bh_delete")]
    pub fn delete(&self) {
        let mut table = self.shared.bottom_halves.table.lock();
        let Some(entry) = table.entries.get_mut(self.key) else { return };
        entry.due = Due::Never;
        if entry.callback.is_none() {
            entry.deleted = true;
            return;
        }
        let entry = table.entries.remove(self.key);
        drop(table);
        drop(entry);
    }
}

impl Drop for BottomHalf {
    fn drop(&mut self) {
        if self.owns {
            self.delete();
        }
    }
}

impl fmt::Debug for BottomHalf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BottomHalf").finish_non_exhaustive()
    }
}
