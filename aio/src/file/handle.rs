//! A file as the backend knows it: a number, and the registration to drop on close.

#![allow(unsafe_code)]

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::backend::simulated::SimulatedBackend;
use crate::engine::erased::ErasedEngine;

pub(super) struct Handle {
    /// The backend's number for the file. Stored directly because each request needs it.
    number: RawFd,
    owner: Owner,
}

enum Owner {
    /// The number is a descriptor of this process, or stands for one until it is unregistered,
    /// before the descriptor is closed.
    Real { _registered: Option<Registered>, fd: OwnedFd },
    /// The number is meaningful only to the simulated backend.
    Simulated(Simulated),
}

/// An open file of the simulated backend.
pub(super) struct Simulated {
    pub(super) backend: SimulatedBackend,
    pub(super) number: RawFd,
}

impl Handle {
    pub(super) fn real(engine: &Arc<dyn ErasedEngine>, fd: OwnedFd) -> Handle {
        let (number, _registered) = Registered::new(engine, fd.as_fd());
        Handle { number, owner: Owner::Real { _registered, fd } }
    }

    pub(super) fn simulated(backend: SimulatedBackend, number: RawFd) -> Handle {
        Handle { number, owner: Owner::Simulated(Simulated { backend, number }) }
    }

    #[inline]
    pub(super) fn number(&self) -> RawFd {
        self.number
    }

    /// Returns the descriptor.
    ///
    /// # Panics
    ///
    /// If the file is simulated.
    pub(super) fn into_fd(self) -> OwnedFd {
        match self.owner {
            Owner::Real { fd, .. } => fd,
            Owner::Simulated(_) => panic!("cannot detach a simulated file: it belongs to its run"),
        }
    }

    pub(super) fn as_simulated(&self) -> Option<&Simulated> {
        match &self.owner {
            Owner::Real { .. } => None,
            Owner::Simulated(simulated) => Some(simulated),
        }
    }

    /// Returns the descriptor; `None` if the file is simulated.
    pub(super) fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        match &self.owner {
            Owner::Real { fd, .. } => Some(fd.as_fd()),
            Owner::Simulated(_) => None,
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        self.descriptor().unwrap_or_else(|| {
            panic!("a simulated file has no descriptor: use File's own calls, or run this outside the simulation")
        })
    }
}

impl Simulated {
    /// Returns another descriptor of the same open file.
    pub(super) fn duplicate(&self) -> Handle {
        Handle::simulated(self.backend.clone(), self.backend.files().duplicate(self.number))
    }

    /// Opens the same file through the page cache.
    pub(super) fn reopen(&self) -> Handle {
        Handle::simulated(self.backend.clone(), self.backend.files().reopen(self.number))
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.backend.files().close(self.number);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Owner::Real { fd, .. } => fd.fmt(f),
            Owner::Simulated(_) => write!(f, "Simulated({})", self.number),
        }
    }
}

/// Keeps a file registered with an engine's backend until dropped.
struct Registered {
    engine: Arc<dyn ErasedEngine>,
    number: RawFd,
}

impl Registered {
    /// Registers a file. Returns the number that requests use for it, and a guard that unregisters
    /// it, unless the number is the descriptor itself.
    fn new(engine: &Arc<dyn ErasedEngine>, fd: BorrowedFd<'_>) -> (RawFd, Option<Registered>) {
        let number = engine.register(fd);
        let registered = || Registered { engine: Arc::clone(engine), number };
        (number, (number != fd.as_raw_fd()).then(registered))
    }
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: `register` returned the number for this value, which is dropped once, after the
        // last request that used the number, and before its descriptor is closed.
        unsafe { self.engine.unregister(self.number) };
    }
}
