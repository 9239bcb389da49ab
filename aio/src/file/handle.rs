//! A file as a backend identifies it: a number, and a registration that ends when the file is
//! closed.
//!
//! Registering a file saves io_uring a little work per request, but costs two system calls, to
//! register and to unregister it. So a file is registered only after some requests have used it.

#![allow(unsafe_code)]

use std::cell::{Cell, OnceCell};
use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::Arc;

use crate::backend::Opcode;
use crate::backend::simulated::SimulatedBackend;
use crate::engine::erased::ErasedEngine;

use super::route::{Route, RouteTable};

/// The number of a file's requests after which it is registered.
const USES_TO_REGISTRATION: u32 = 16;

pub(super) struct Handle {
    /// The backend's number for the file. Stored directly because each request needs it.
    number: Cell<RawFd>,
    /// The number of requests until the file is registered; 0 afterwards.
    uses_left: Cell<u32>,
    pub(super) ways: RouteTable,
    owner: Owner,
}

enum Owner {
    /// The number is a descriptor of this process, or stands for one until it is unregistered,
    /// before the descriptor is closed.
    Real { registered: OnceCell<Registered>, engine: Arc<dyn ErasedEngine>, fd: OwnedFd },
    /// The number is meaningful only to the simulated backend.
    Simulated(Simulated),
}

/// An open file of the simulated backend.
pub(super) struct Simulated {
    pub(super) backend: SimulatedBackend,
    pub(super) number: RawFd,
}

impl Handle {
    pub(super) fn real(engine: &Arc<dyn ErasedEngine>, fd: OwnedFd, ways: RouteTable) -> Handle {
        let reaches_engine = ways.of(Opcode::Write) != Route::InPlace;
        Handle {
            number: Cell::new(fd.as_raw_fd()),
            uses_left: Cell::new(if reaches_engine { USES_TO_REGISTRATION } else { 0 }),
            ways,
            owner: Owner::Real { registered: OnceCell::new(), engine: Arc::clone(engine), fd },
        }
    }

    pub(super) fn simulated(backend: SimulatedBackend, number: RawFd, direct: bool) -> Handle {
        let owner = Owner::Simulated(Simulated { backend, number });
        Handle { number: Cell::new(number), uses_left: Cell::new(0), ways: RouteTable::primary(direct), owner }
    }

    /// Returns the descriptor for a request in place. Those of simulated files go other ways.
    #[inline]
    pub(super) fn raw(&self) -> RawFd {
        match &self.owner {
            Owner::Real { fd, .. } => fd.as_raw_fd(),
            Owner::Simulated(simulated) => simulated.number,
        }
    }

    /// Returns the number for a request.
    #[inline]
    pub(super) fn number(&self) -> RawFd {
        if self.uses_left.get() > 0 {
            self.count_use();
        }
        self.number.get()
    }

    #[cold]
    fn count_use(&self) {
        let left = self.uses_left.get() - 1;
        self.uses_left.set(left);
        if let (0, Owner::Real { registered, engine, fd }) = (left, &self.owner) {
            let number = engine.register(fd.as_fd());
            // The number is the descriptor if the backend does not register files.
            if number != fd.as_raw_fd() {
                self.number.set(number);
                let _ = registered.set(Registered { engine: Arc::clone(engine), number });
            }
        }
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
    pub(super) fn duplicate(&self, direct: bool) -> Handle {
        Handle::simulated(self.backend.clone(), self.backend.files().duplicate(self.number), direct)
    }

    /// Opens the same file through the page cache.
    pub(super) fn reopen(&self) -> Handle {
        Handle::simulated(self.backend.clone(), self.backend.files().reopen(self.number), false)
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
            Owner::Simulated(_) => write!(f, "Simulated({})", self.number.get()),
        }
    }
}

/// Keeps a file registered with an engine's backend until dropped.
struct Registered {
    engine: Arc<dyn ErasedEngine>,
    number: RawFd,
}

impl Drop for Registered {
    fn drop(&mut self) {
        // SAFETY: `register` returned the number for this value, which is dropped once, after the
        // last request that used the number, and before its descriptor is closed.
        unsafe { self.engine.unregister(self.number) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::RuntimeBuilder;
    use crate::driver::{BackendKind, Driver};

    #[test]
    fn only_a_file_in_use_is_registered() {
        // E13: the first requests of a file use its descriptor, and later ones its registration
        let ran = RuntimeBuilder::new().backend(BackendKind::Uring).run(|| {
            let driver = Driver::of_this_context().unwrap();
            let fd = OwnedFd::from(std::fs::File::open("/proc/self/exe").unwrap());
            let descriptor = fd.as_raw_fd();
            let probe = Registered { engine: Arc::clone(&driver.engine), number: driver.engine.register(fd.as_fd()) };
            if probe.number == descriptor {
                std::mem::forget(probe);
                return coralio_runtime::report(format_args!("skipped: the limits let no file be registered"));
            }
            drop(probe);
            let handle = Handle::real(&driver.engine, fd, RouteTable::primary(true));
            let numbers: Vec<_> = (0..2 * USES_TO_REGISTRATION).map(|_| handle.number()).collect();
            assert_eq!(numbers.iter().take_while(|&&number| number == descriptor).count(), 15);
            assert!(numbers[15..].iter().all(|&number| number < 0 && number == numbers[15]));
        });
        if let Err(error) = ran {
            coralio_runtime::report(format_args!("skipped: {error}"));
        }
    }
}
