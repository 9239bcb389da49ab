//! Plugs: requests are held back, to share one system call.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Engine;
use super::guards::{Guards, UnplugDecrement};
use crate::backend::Backend;

/// Holds requests back while it exists; when the last plug is dropped, the loop submits them.
///
/// A plug is a performance hint: before the loop sleeps, and every sixteenth iteration, it submits
/// plugged requests too.
#[must_use = "requests are held back until the plug is dropped"]
pub struct Plug {
    engine: Arc<dyn Unplug>,
    /// The plug of the context's other engine.
    #[allow(dead_code)] // held until dropped
    other: Option<Box<Plug>>,
}

impl Plug {
    /// Joins the plugs of a context's two engines.
    pub(crate) fn and(mut self, other: Option<Plug>) -> Plug {
        self.other = other.map(Box::new);
        self
    }
}

/// Type-erased engine, as a plug needs it.
trait Unplug: Send + Sync {
    fn unplug(&self);
}

impl<B: Backend, G: Guards> Engine<B, G> {
    /// Delays requests until the plug is dropped.
    #[doc(alias = "blk_io_plug")]
    pub fn plug(self: &Arc<Self>) -> Plug {
        // Without the lock: other contexts' threads, and those that hold the lock, may get here.
        // Relaxed: a late submit is found by the loop before it sleeps.
        self.plug_depth.fetch_add(1, Ordering::Relaxed);
        Plug { engine: Arc::clone(self) as Arc<dyn Unplug>, other: None }
    }
}

impl<B: Backend, G: Guards> Unplug for Engine<B, G> {
    fn unplug(&self) {
        let counts = match G::UNPLUG_DECREMENT {
            UnplugDecrement::Always => true,
            UnplugDecrement::OnlyWhenNotFull => {
                self.owner.acquire().is_none_or(|lock| self.pending.len(&lock) < self.depth as usize)
            }
        };
        self.plug_depth.fetch_sub(u32::from(counts), Ordering::Relaxed);
        // A destructor enters no coroutine: the loop's next iteration submits, and a sleeping loop
        // is woken.
        self.owner.wake_loop();
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
