//! The thread pool's engine beside a native AIO engine, for requests that would block the loop.

#![allow(unsafe_code)]

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use coralio_runtime::AioContext;

use crate::backend::thread_pool::ThreadPool;
use crate::engine::Engine;
use crate::engine::erased::ErasedEngine;
use crate::engine::stats::{Stats, add};
use crate::engine::transfer::{Request, submit_and_wait};

/// See the module documentation.
pub(crate) struct Fallback {
    /// Created when first needed.
    engine: OnceLock<Arc<Engine<ThreadPool>>>,
    depth: u32,
    /// Requests that the primary engine refused because they would have blocked.
    refusals: AtomicU64,
    completed_refusals: AtomicU64,
}

impl Fallback {
    pub(super) fn new(depth: u32) -> Fallback {
        Fallback { engine: OnceLock::new(), depth, refusals: AtomicU64::new(0), completed_refusals: AtomicU64::new(0) }
    }

    pub(super) fn engine(&self) -> Option<&Arc<Engine<ThreadPool>>> {
        self.engine.get()
    }

    /// As [`submit_and_wait`], on a thread. Returns `None` if there are no resources for the
    /// engine. Called on the home thread of the driver's context.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    pub(super) unsafe fn submit_and_wait(&self, attempt: &Request) -> Option<i64> {
        if self.engine.get().is_none() {
            // Only the home thread gets here, so the cell is still empty.
            let _ = self.engine.set(self.create().ok()?);
        }
        // SAFETY: promised by the caller.
        self.engine.get().map(|engine| unsafe { submit_and_wait(&**engine, attempt) })
    }

    fn create(&self) -> io::Result<Arc<Engine<ThreadPool>>> {
        let engine = Engine::new(ThreadPool::new(self.depth)?, self.depth, false)?;
        engine.backend().notify(AioContext::current().expect("the caller checked that this is its context's thread"));
        Ok(engine)
    }

    /// Makes the drained engine leave its context, or join `context`.
    pub(super) fn move_to(&self, context: Option<&AioContext>) {
        if let Some(engine) = self.engine.get() {
            engine.owner().move_to(context);
            if let Some(context) = context {
                engine.backend().notify(context.clone());
            }
        }
    }

    /// Counts a request that the primary engine has refused, by a completion or at submit, and that
    /// is made again.
    pub(crate) fn count_refusal(&self, by_completion: bool) {
        add(&self.refusals, 1);
        add(&self.completed_refusals, u64::from(by_completion));
    }

    /// Combines the statistics of both engines, given those of the primary one. A request that the
    /// primary engine refused counts once.
    pub(super) fn stats_with(&self, primary: Stats) -> Stats {
        let offloaded = self.engine.get().map(|engine| engine.stats()).unwrap_or_default();
        let refusals = self.refusals.load(Ordering::Relaxed);
        let mut all = primary;
        all.add(offloaded);
        all.requests -= refusals;
        all.completions -= self.completed_refusals.load(Ordering::Relaxed);
        all.offloaded = offloaded.requests;
        all
    }
}
