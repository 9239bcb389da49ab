//! Plugs: requests are held back, to share one system call.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::erased::ErasedEngine;
use super::guards::Guards;
use crate::backend::Backend;

/// Holds requests back while it exists; when the last plug is dropped, the loop submits them.
///
/// A plug is a performance hint: before the loop sleeps, and every sixteenth iteration, it submits
/// plugged requests too. Requests that the loop's thread performs itself
/// ([`Stats::in_place`](crate::driver::Stats::in_place)) are not held back.
#[must_use = "requests are held back until the plug is dropped"]
pub struct Plug {
    engine: Arc<dyn ErasedEngine>,
}

impl Plug {
    pub(crate) fn new(engine: Arc<dyn ErasedEngine>) -> Plug {
        // Without the lock: threads of other contexts get here too, as do callers that hold the
        // lock. Relaxed: before the loop sleeps, it submits requests that were delayed too long.
        engine.plug_depth().fetch_add(1, Ordering::Relaxed);
        Plug { engine }
    }
}

impl<B: Backend, G: Guards> Engine<B, G> {
    /// Delays requests until the plug is dropped.
    #[doc(alias = "blk_io_plug")]
    pub fn plug(self: &Arc<Self>) -> Plug {
        Plug::new(Arc::clone(self) as Arc<dyn ErasedEngine>)
    }
}

impl Drop for Plug {
    fn drop(&mut self) {
        self.engine.unplug();
    }
}

impl std::fmt::Debug for Plug {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Plug").finish_non_exhaustive()
    }
}
