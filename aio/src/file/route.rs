//! Selects how each request of a file is performed under `BackendKind::Auto`.
//!
//! Requests that do not wait for a device are performed [in place](crate::engine::in_place): those on
//! tmpfs, and reads whose data is in the page cache. There a long request takes as long as its copy
//! does, so reads are split, and other long requests are given to the engine, whose workers perform
//! them. The rest of this text is about native AIO, which takes io_uring's place where that is not
//! available.
//!
//! Native AIO carries out some requests within submit, where the whole loop waits for the device (Linux
//! 6.18, medians at queue depth 1, in microseconds): a direct write that extends the file 58 to
//! 116, a read that misses the page cache 51 to 105, a page-cached write of 1 MiB 263 to 4800. Only
//! the kernel can tell which requests block. With `RWF_NOWAIT`, whose cost is not measurable, it
//! refuses them within 1 to 2 microseconds, and a thread performs them. Most file systems reject
//! `RWF_NOWAIT` for buffered writes, so threads do all of those, and the syncs that follow.
//!
//! The kernel also refuses direct writes that fill a hole. Their submit takes 35 to 80 microseconds
//! for the allocation, but does not wait for the device. A thread would, with the file locked:
//! copying a file then took twice as long. So these are submitted without `RWF_NOWAIT`, unless a
//! thread already has the file locked.

#![allow(unsafe_code)]

use std::cell::Cell;
use std::mem;
use std::ptr;
use std::slice;
use std::sync::Arc;

use crate::backend::{Opcode, Operation};
use crate::driver::Driver;
use crate::engine::erased::ErasedEngine;
use crate::engine::transfer::{Request, submit_and_wait};

/// With fewer dirty bytes than this in the page cache, submitting a sync does not block: the kernel
/// performs it elsewhere.
const MUCH_DIRTY: u64 = 1 << 20;

const READS: [Opcode; 2] = [Opcode::Read, Opcode::ReadVectored];
const WRITES: [Opcode; 2] = [Opcode::Write, Opcode::WriteVectored];
const SYNCS: [Opcode; 2] = [Opcode::SyncData, Opcode::SyncAll];

/// How a request is carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// By the main engine.
    Primary,
    /// By the main engine with `nowait`, so it may be refused.
    PrimaryNowait,
    /// By a thread.
    Offload,
    /// By the calling thread.
    InPlace,
    /// By the calling thread with `nowait`, so it may be refused.
    InPlaceNowait,
}

impl Route {
    pub(super) fn is_in_place(self) -> bool {
        matches!(self, Route::InPlace | Route::InPlaceNowait)
    }

    #[inline]
    pub(super) fn is_nowait(self) -> bool {
        matches!(self, Route::PrimaryNowait | Route::InPlaceNowait)
    }
}

/// The ways of the requests on one descriptor, by opcode.
#[derive(Clone)]
pub(super) struct RouteTable {
    by_opcode: [Cell<Route>; 6],
    pub(super) direct: bool,
}

impl RouteTable {
    /// Creates the table of a descriptor that only the main engine serves.
    pub(super) fn primary(direct: bool) -> RouteTable {
        RouteTable { by_opcode: [const { Cell::new(Route::Primary) }; 6], direct }
    }

    #[inline]
    pub(super) fn of(&self, opcode: Opcode) -> Route {
        self.by_opcode[opcode as usize].get()
    }

    fn set(&self, opcodes: [Opcode; 2], way: Route) {
        opcodes.iter().for_each(|&opcode| self.by_opcode[opcode as usize].set(way));
    }
}

/// What decides the ways of a file's requests.
#[derive(Clone, Copy)]
enum Policy {
    /// The user named the backend, or it is simulated.
    Named,
    /// No device is below the file system.
    InMemory,
    /// The cheapest way that does not block the loop.
    Auto,
}

/// What the routes of one open file have in common.
pub(super) struct FileRoutes {
    policy: Policy,
    /// The driver whose threads perform requests that would block the main engine. `None` if no
    /// request would.
    threads: Option<Arc<Driver>>,
    /// Bytes written through the page cache since the last sync.
    dirty: Cell<u64>,
    /// Writes in progress on threads: each locks the file while it lasts.
    writing: Cell<u32>,
}

/// Counts a write on a thread for as long as it exists, including during unwinding.
struct Writing<'a>(&'a Cell<u32>);

impl<'a> Writing<'a> {
    fn new(count: &'a Cell<u32>) -> Writing<'a> {
        count.set(count.get() + 1);
        Writing(count)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

impl FileRoutes {
    /// Creates the routes of a file of `driver`'s context; `in_memory` if no device is below its file
    /// system. `None`: the engine is a test's own.
    pub(super) fn new(driver: Option<&Arc<Driver>>, in_memory: bool) -> FileRoutes {
        let policy = match driver.filter(|driver| driver.is_auto()) {
            None => Policy::Named,
            Some(_) if in_memory => Policy::InMemory,
            Some(_) => Policy::Auto,
        };
        let threads = driver.filter(|driver| driver.fallback.is_some()).cloned();
        FileRoutes { policy, threads, dirty: Cell::new(0), writing: Cell::new(0) }
    }

    /// Creates the table of a descriptor of this file.
    pub(super) fn table(&self, direct: bool, appends: bool) -> RouteTable {
        let [reads, writes, syncs] = match (self.policy, self.threads.is_some()) {
            (Policy::Named, _) => [Route::Primary; 3],
            (Policy::InMemory, _) => [Route::InPlace; 3],
            (Policy::Auto, false) if direct => [Route::Primary; 3],
            (Policy::Auto, false) => [Route::InPlaceNowait, Route::Primary, Route::Primary],
            (Policy::Auto, true) => [
                if direct { Route::PrimaryNowait } else { Route::InPlaceNowait },
                if direct && !appends { Route::PrimaryNowait } else { Route::Offload },
                Route::Primary,
            ],
        };
        let table = RouteTable::primary(direct);
        table.set(READS, reads);
        table.set(WRITES, writes);
        table.set(SYNCS, syncs);
        table
    }

    /// Returns the way of a read whose data may be in the page cache, in a batch with others.
    pub(super) fn in_batch(&self) -> Route {
        if self.threads.is_some() { Route::PrimaryNowait } else { Route::Primary }
    }

    /// Returns the way of a request in memory whose copy takes long.
    #[cold]
    pub(super) fn of_long(&self) -> Route {
        if self.threads.is_some() { Route::Offload } else { Route::Primary }
    }

    /// Returns whether all requests are performed in place.
    pub(super) fn are_in_place(&self) -> bool {
        matches!(self.policy, Policy::InMemory)
    }

    /// Returns whether a sync would block the main engine.
    pub(super) fn sync_blocks(&self) -> bool {
        self.dirty.get() >= MUCH_DIRTY && self.threads.is_some()
    }

    /// Creates the routes of another descriptor of the same open file.
    pub(super) fn duplicate(&self) -> FileRoutes {
        FileRoutes {
            policy: self.policy,
            threads: self.threads.clone(),
            dirty: self.dirty.clone(),
            writing: Cell::new(0),
        }
    }

    /// Counts bytes written through the page cache.
    pub(super) fn count_dirty(&self, bytes: u64) {
        self.dirty.set(self.dirty.get().saturating_add(bytes));
    }

    /// Performs a request on a thread, or on `main` if no thread is available.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`](crate::engine::Engine::transfer).
    #[cold]
    pub(super) unsafe fn offload(&self, operation: &Operation, ways: &RouteTable, main: &dyn ErasedEngine) -> i64 {
        let attempt = Request { operation: *operation, nowait: false };
        if SYNCS.contains(&operation.opcode) {
            self.dirty.set(0);
        }
        let _writing = WRITES.contains(&operation.opcode).then(|| Writing::new(&self.writing));
        // SAFETY: promised by the caller.
        let result = self.threads.as_ref().and_then(|driver| unsafe { driver.offload(&attempt) });
        // SAFETY: promised by the caller, and no engine has had the request.
        let result = result.unwrap_or_else(|| unsafe { submit_and_wait(main, &attempt) });
        if WRITES.contains(&operation.opcode) && ways.of(operation.opcode) == Route::Offload {
            self.count_dirty(result.max(0) as u64);
        }
        result
    }

    /// Returns whether a thread or the main engine repeats a request that was refused on its `way`;
    /// `None` if `result` is not a refusal.
    pub(super) fn offloads_refused(
        &self,
        result: i64,
        operation: &Operation,
        way: Route,
        ways: &RouteTable,
    ) -> Option<bool> {
        let (opcode, has_threads) = (operation.opcode, self.threads.is_some());
        let count = |by_completion| {
            if way == Route::PrimaryNowait {
                let fallback = self.threads.as_ref().and_then(|driver| driver.fallback.as_ref());
                fallback.into_iter().for_each(|fallback| fallback.count_refusal(by_completion));
            }
        };
        match (-result) as i32 {
            libc::EAGAIN => {
                count(true);
                // While a thread writes, the main engine would wait for the file's lock.
                let only_fills = WRITES.contains(&opcode) && self.writing.get() == 0 && self.is_within(operation);
                Some(has_threads && !only_fills)
            }
            libc::EOPNOTSUPP => {
                count(false);
                // `RWF_NOWAIT` is not supported, so it is not used again. Direct reads seldom
                // block; other requests might.
                let read = READS.contains(&opcode);
                // Writes on a direct descriptor are tried with `nowait` too.
                let offloads = has_threads && !(read && ways.direct);
                ways.set(if read { READS } else { WRITES }, if offloads { Route::Offload } else { Route::Primary });
                Some(offloads)
            }
            _ => None,
        }
    }

    /// Whether a write ends within the file.
    fn is_within(&self, operation: &Operation) -> bool {
        // SAFETY: *lent to the kernel*: the memory stays valid and unmodified during the request.
        let len = unsafe { len_of(operation) };
        // SAFETY: the structure is plain data for which zero is valid, and the kernel fills it.
        let (found, stat) = unsafe {
            let mut stat: libc::stat = mem::zeroed();
            (libc::fstat(operation.fd, &mut stat), stat)
        };
        found == 0 && operation.offset.saturating_add(len) <= stat.st_size as u64
    }
}

/// Returns the length of all buffers of a request, in bytes.
///
/// # Safety
///
/// The array of a vectored request is valid, and not being modified.
pub(super) unsafe fn len_of(operation: &Operation) -> u64 {
    match operation.opcode {
        Opcode::ReadVectored | Opcode::WriteVectored => {
            let vectors = ptr::with_exposed_provenance::<libc::iovec>(operation.addr as usize);
            // SAFETY: promised by the caller: the array has `len` vectors.
            let vectors = unsafe { slice::from_raw_parts(vectors, operation.len as usize) };
            vectors.iter().map(|one| one.iov_len as u64).sum()
        }
        _ => operation.len,
    }
}
