//! Which of its context's engines takes a file's request, where the context may choose.
//!
//! Native AIO costs least for what completes later, or at once from memory. But some requests it carries out within submit, and the
//! whole loop waits (Linux 6.18, medians of one at a time, in microseconds): a direct write that extends the file or fills a hole
//! 58 to 116, a read of what is not in the page cache 51 to 105, a page-cached write of 1 MiB 263 to 4800. The kernel
//! knows best which ones. Asked not to block (`RWF_NOWAIT`, which costs nothing that could be measured) it refuses them within 1
//! to 2 microseconds, and a thread does them. Only of page-cached writes it will not tell, on most file systems: threads have all
//! of these, and the syncs after them.
//!
//! On tmpfs nothing waits for a device, and devices that are no disks say nothing of the kind: the main engine has all of theirs.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::mem;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;

use crate::any::AnyEngine;
use crate::auto::Auto;
use crate::kernel::{Opcode, Operation};

/// With less than this in the page cache a sync is as quick to submit as any: the kernel has it done elsewhere.
const MUCH_DIRTY: u64 = 1 << 20;

/// How a request goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    /// To the main engine.
    Main,
    /// To the main engine, which may refuse it.
    Try,
    /// To a thread.
    Spare,
}

/// The ways of a file's requests.
pub(super) struct Route {
    /// The engines, where there is something to choose.
    auto: Option<Arc<Auto>>,
    /// By the file's own descriptor: of reads, of writes.
    own: [Cell<Way>; 2],
    /// By the one through the page cache, where the own one is direct.
    cached: [Cell<Way>; 2],
    /// Bytes written through the page cache since the last sync.
    dirty: Cell<u64>,
}

impl Route {
    /// For a file of an engine that is the only one.
    pub(super) fn main() -> Route {
        Route::among(None, false)
    }

    /// For a file of this thread's context.
    pub(super) fn new(fd: BorrowedFd<'_>, is_file: bool, direct: bool) -> Route {
        let auto = Auto::of_this_context().filter(|auto| auto.may_block() && !(is_file && is_in_memory(fd)));
        Route::among(auto, direct)
    }

    fn among(auto: Option<Arc<Auto>>, direct: bool) -> Route {
        let ways = |ways: [Way; 2]| ways.map(|way| Cell::new(if auto.is_some() { way } else { Way::Main }));
        let own = ways([Way::Try, if direct { Way::Try } else { Way::Spare }]);
        let cached = ways([Way::Try, Way::Spare]);
        Route { auto, own, cached, dirty: Cell::new(0) }
    }

    #[inline]
    fn cell(&self, write: bool, own: bool) -> &Cell<Way> {
        &(if own { &self.own } else { &self.cached })[usize::from(write)]
    }

    /// Which way a request is to go; `own` says whether it is for the file's own descriptor.
    #[inline]
    pub(super) fn way(&self, opcode: Opcode, own: bool) -> Way {
        match opcode {
            Opcode::Read | Opcode::ReadVectored => self.cell(false, own).get(),
            Opcode::Write | Opcode::WriteVectored => self.cell(true, own).get(),
            Opcode::SyncData | Opcode::SyncAll if self.dirty.get() >= MUCH_DIRTY => Way::Spare,
            Opcode::SyncData | Opcode::SyncAll => Way::Main,
        }
    }

    /// Has a thread do it. `main` is for when no thread can be had at all.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`](crate::Engine::transfer).
    #[cold]
    pub(super) unsafe fn on_spare(&self, operation: &Operation, own: bool, main: &AnyEngine) -> i64 {
        let is_sync = matches!(operation.opcode, Opcode::SyncData | Opcode::SyncAll);
        if is_sync {
            self.dirty.set(0);
        }
        // SAFETY: the caller's promise.
        let result = self.auto.as_ref().and_then(|auto| unsafe { auto.perform_on_spare(operation) });
        // SAFETY: the caller's promise, and nobody else has had it.
        let result = result.unwrap_or_else(|| unsafe { main.perform(operation, false) });
        if !is_sync && self.way(operation.opcode, own) == Way::Spare {
            self.dirty.set(self.dirty.get() + result.max(0) as u64);
        }
        result
    }

    /// What a request that was tried came to: whether a thread is to do it.
    pub(super) fn is_refusal(&self, result: i64, opcode: Opcode, own: bool, direct: bool) -> bool {
        match (-result) as i32 {
            libc::EAGAIN => {
                self.auto.iter().for_each(|auto| auto.count_refusal());
                true
            }
            libc::EOPNOTSUPP => {
                // It will never tell, and is not asked again. Direct reads seldom wait; of others one cannot know.
                let write = matches!(opcode, Opcode::Write | Opcode::WriteVectored);
                let never_waits = !write && own && direct;
                self.cell(write, own).set(if never_waits { Way::Main } else { Way::Spare });
                true
            }
            _ => false,
        }
    }
}

/// Whether the file system has no device below it.
fn is_in_memory(fd: BorrowedFd<'_>) -> bool {
    // SAFETY: the structure is plain data for which zero is valid, and the kernel fills it.
    unsafe {
        let mut fs: libc::statfs = mem::zeroed();
        libc::fstatfs(fd.as_raw_fd(), &mut fs) == 0 && fs.f_type == libc::TMPFS_MAGIC
    }
}
