//! The public side of bottom halves.

use std::panic::Location;

use super::BottomHalfKind;
use crate::context::registration::Handle;
use crate::context::{AioContext, ContextEnded};

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
        let kind = BottomHalfKind { is_idle: false, is_one_shot: false };
        Ok(BottomHalf(Handle::new(&self.shared, kind, Some(Box::new(move |(), _, _| callback())))?))
    }

    /// As [`new_bottom_half`](Self::new_bottom_half), for a callback that schedules, cancels or
    /// [deletes](BottomHalf::delete) its own bottom half: the callback receives its own handle.
    ///
    /// ```
    /// use coralio::context::AioContext;
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
    ///     Ok::<_, coralio::context::ContextEnded>(())
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
        let kind = BottomHalfKind { is_idle: false, is_one_shot: false };
        let callback = move |(), shared: &_, key| callback(&BottomHalf(Handle::within(shared, key)));
        Ok(BottomHalf(Handle::new(&self.shared, kind, Some(Box::new(callback)))?))
    }

    /// Runs `callback` once, in the loop's next iteration. From any thread.
    ///
    /// ```
    /// use coralio::context::AioContext;
    /// use std::sync::mpsc;
    ///
    /// AioContext::run(|ctx| {
    ///     let (sender, receiver) = mpsc::channel();
    ///     let other = sender.clone();
    ///     ctx.schedule_oneshot(move || sender.send("once").unwrap()).unwrap();
    ///     let tidy = ctx.new_bottom_half(move || other.send("within 10 ms").unwrap()).unwrap();
    ///     tidy.schedule_idle();
    ///     assert!(ctx.bottom_halves().iter().any(|half| half.is_one_shot && half.is_scheduled));
    ///     while !ctx.bottom_halves().iter().all(|half| !half.is_scheduled && !half.is_idle_scheduled) {
    ///         ctx.poll(true);
    ///     }
    ///     assert_eq!(receiver.try_iter().collect::<Vec<_>>(), ["once", "within 10 ms"]);
    /// });
    /// ```
    ///
    /// # Errors
    ///
    /// Fails if the context has ended. `callback` is dropped. A callback that was accepted, but has
    /// not run when the context ends, is dropped then.
    #[doc(alias = "aio_bh_schedule_oneshot")]
    #[track_caller]
    pub fn schedule_oneshot(&self, callback: impl FnOnce() + Send + 'static) -> Result<(), ContextEnded> {
        let mut callback = Some(callback);
        let run = move |(), _: &_, _| callback.take().into_iter().for_each(|callback| callback());
        let kind = BottomHalfKind { is_idle: false, is_one_shot: true };
        let inserted = self.shared.bottom_halves.insert(kind, Some(Box::new(run)));
        let key = inserted.map_err(|_| ContextEnded { operation: "schedule a one-shot callback" })?;
        self.shared.bottom_halves.schedule(key, false, &self.shared);
        Ok(())
    }

    /// Returns the bottom halves of this context, including one-shots. From any thread, even while
    /// the loop hangs.
    pub fn bottom_halves(&self) -> Vec<BottomHalfInfo> {
        self.shared.bottom_halves.list(|entry| BottomHalfInfo {
            created_at: entry.created_at,
            is_scheduled: entry.ticket != 0 && !entry.kind.is_idle,
            is_idle_scheduled: entry.ticket != 0 && entry.kind.is_idle,
            is_one_shot: entry.kind.is_one_shot,
            is_running: entry.is_running,
        })
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
/// use coralio::context::AioContext;
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
///     Ok::<_, coralio::context::ContextEnded>(())
/// })
/// .unwrap();
/// ```
#[doc(alias = "QEMUBH")]
#[must_use = "dropping it deletes the bottom half"]
#[derive(Debug)]
pub struct BottomHalf(Handle<BottomHalfKind>);

impl BottomHalf {
    /// Schedules the bottom half for the next iteration. Scheduling it again before it runs has no
    /// effect. From any thread.
    #[doc(alias = "qemu_bh_schedule")]
    pub fn schedule(&self) {
        self.0.table().schedule(self.0.key, false, &self.0.shared);
    }

    /// Schedules the bottom half to run within 10 ms, without keeping the loop busy. From any
    /// thread.
    #[doc(alias = "qemu_bh_schedule_idle")]
    pub fn schedule_idle(&self) {
        self.0.table().schedule(self.0.key, true, &self.0.shared);
    }

    /// Cancels a schedule. A callback that is running already is not affected. From any thread.
    #[doc(alias = "qemu_bh_cancel")]
    pub fn cancel(&self) {
        drop(self.0.cancel());
    }

    /// Deletes the bottom half, as dropping its handle does. A running callback finishes first.
    /// From any thread.
    #[doc(alias = "qemu_bh_delete")]
    pub fn delete(&self) {
        self.0.delete();
    }
}
