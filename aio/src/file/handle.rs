//! What a file is to its kernel: a number, and whoever has to be told when it goes.

use std::fmt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use crate::kernel::sim::SimKernel;

pub(super) struct Handle {
    /// At hand: each request takes it.
    number: RawFd,
    owner: Owner,
}

enum Owner {
    /// The number is a descriptor of this process.
    Real(OwnedFd),
    /// The number means something to the simulated kernel alone.
    Simulated(Simulated),
}

/// An open file of the simulated kernel.
pub(super) struct Simulated {
    pub(super) kernel: SimKernel,
    pub(super) number: RawFd,
}

impl Handle {
    pub(super) fn real(fd: OwnedFd) -> Handle {
        Handle { number: fd.as_raw_fd(), owner: Owner::Real(fd) }
    }

    pub(super) fn simulated(kernel: SimKernel, number: RawFd) -> Handle {
        Handle { number, owner: Owner::Simulated(Simulated { kernel, number }) }
    }

    #[inline]
    pub(super) fn as_raw_fd(&self) -> RawFd {
        self.number
    }

    pub(super) fn as_simulated(&self) -> Option<&Simulated> {
        match &self.owner {
            Owner::Real(_) => None,
            Owner::Simulated(simulated) => Some(simulated),
        }
    }

    pub(super) fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.owner {
            Owner::Real(fd) => fd.as_fd(),
            Owner::Simulated(_) => panic!(
                "a simulated file has no descriptor of this process: use File's own calls, or run this outside the simulation"
            ),
        }
    }
}

impl Simulated {
    /// The same file through the page cache.
    pub(super) fn reopen(&self) -> Handle {
        Handle::simulated(self.kernel.clone(), self.kernel.reopen(self.number))
    }
}

impl Drop for Simulated {
    fn drop(&mut self) {
        self.kernel.close(self.number);
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.owner {
            Owner::Real(fd) => fd.fmt(f),
            Owner::Simulated(_) => write!(f, "Simulated({})", self.number),
        }
    }
}
