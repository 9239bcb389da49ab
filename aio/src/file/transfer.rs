//! From a call to its requests: which descriptor they use, and continuing until all is done (rule
//! E10).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};

use coralio_runtime::can_suspend;
use rustix::fs::{Mode, OFlags, fcntl_getfl, open};

use crate::backend::{Opcode, Operation};
use crate::driver::unblock::unblock;
use crate::engine::guards::ShortRead;
use crate::engine::in_place::MAX_LEN;
use crate::engine::stats::Detour;
use crate::engine::transfer::{Request, submit_and_wait};
use crate::file::error::{explain, failed};

use super::bounce::{Bounce, LARGEST};
use super::handle::Handle;
use super::route::{Route, len_of};
use super::{Alignment, File};

/// Whether a write is too long for the loop's thread to copy it. It is not split, as a read is: other
/// writes could come in between.
///
/// # Safety
///
/// As [`len_of`].
#[inline(always)]
unsafe fn is_long_write(operation: &Operation) -> bool {
    // SAFETY: promised by the caller.
    operation.opcode.is_write() && unsafe { len_of(operation) } > MAX_LEN
}

impl File {
    /// Makes one request on one of the file's descriptors.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    unsafe fn request(&self, operation: Operation, handle: &Handle) -> io::Result<usize> {
        let way = match handle.ways.of(operation.opcode) {
            Route::InPlaceNowait if self.engine.shares_submit() => self.route.in_batch(),
            // SAFETY: promised by the caller.
            Route::InPlace if unsafe { is_long_write(&operation) } => self.route.of_long(),
            way => way,
        };
        // SAFETY: promised by the caller.
        unsafe { self.request_by(way, operation, handle) }
    }

    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    unsafe fn request_by(&self, way: Route, operation: Operation, handle: &Handle) -> io::Result<usize> {
        let attempt = Request { operation, nowait: way.is_nowait() };
        // SAFETY: promised by the caller.
        let result = unsafe {
            match way {
                Route::Offload => self.route.offload(&attempt.operation, &handle.ways, &*self.engine),
                Route::InPlace | Route::InPlaceNowait => self.engine.perform_in_place(handle.raw(), &attempt),
                Route::Primary | Route::PrimaryNowait => submit_and_wait(&*self.engine, &attempt),
            }
        };
        if result >= 0 {
            return Ok(result as usize);
        }
        // SAFETY: promised by the caller.
        unsafe { self.refused(result, attempt, way, handle) }
    }

    /// Handles a failed request: retries it another way if it was refused because it would have
    /// blocked the loop.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[cold]
    unsafe fn refused(&self, mut result: i64, attempt: Request, way: Route, handle: &Handle) -> io::Result<usize> {
        let (operation, ways) = (&attempt.operation, &handle.ways);
        let offloads = way.is_nowait().then(|| self.route.offloads_refused(result, operation, way, ways)).flatten();
        result = match offloads {
            None => result,
            // SAFETY: promised by the caller; the refused request has ended.
            Some(true) => unsafe { self.route.offload(operation, ways, &*self.engine) },
            // SAFETY: as above.
            Some(false) => unsafe { submit_and_wait(&*self.engine, &Request { nowait: false, ..attempt }) },
        };
        if result >= 0 {
            return Ok(result as usize);
        }
        let is_transfer = !matches!(operation.opcode, Opcode::SyncData | Opcode::SyncAll);
        let alignment = if is_transfer && ways.direct { self.alignment } else { Alignment::ANY };
        // SAFETY: promised by the caller.
        let bytes = unsafe { len_of(operation) };
        Err(explain(-result as i32, operation, bytes, handle.descriptor(), alignment))
    }

    /// Makes one request on the file's own descriptor, ordered with writes of the other kind.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    unsafe fn request_own(&self, operation: Operation) -> io::Result<usize> {
        let (_direct, _cached) = match operation.opcode.is_write() {
            false => (None, None),
            true if self.direct => (Some(self.order.direct()?), None),
            true => (None, self.order.cached()?),
        };
        // SAFETY: promised by the caller.
        unsafe { self.request(operation, &self.fd) }
    }

    /// Makes one request, on the path that its alignment allows.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    unsafe fn transfer(&self, opcode: Opcode, addr: u64, len: usize, offset: u64) -> io::Result<usize> {
        if !self.is_taken_as_is(addr, offset | len as u64) {
            // SAFETY: promised by the caller.
            return unsafe { self.transfer_unaligned(opcode, addr, len, offset) };
        }
        let operation = Operation { opcode, fd: self.fd.number(), addr, len: len as u64, offset };
        // SAFETY: promised by the caller.
        unsafe { self.request_own(operation) }
    }

    /// Makes one request that direct I/O does not accept: through an aligned buffer if only the
    /// memory is unaligned, otherwise through the page cache.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[cold]
    unsafe fn transfer_unaligned(&self, opcode: Opcode, addr: u64, len: usize, offset: u64) -> io::Result<usize> {
        if self.is_direct_range(offset | len as u64) {
            // SAFETY: promised by the caller.
            return unsafe { self.transfer_bounced(opcode, &[(addr, len)], offset) };
        }
        let handle = self.cached(opcode, len as u64, offset)?;
        let _order = if opcode.is_write() { self.order.cached()? } else { None };
        self.engine.count_detour(Detour::PageCached);
        let operation = Operation { opcode, fd: handle.number(), addr, len: len as u64, offset };
        // SAFETY: promised by the caller.
        unsafe { self.request(operation, handle) }
    }

    /// Makes one direct request for unaligned memory, through an aligned buffer. `opcode` is `Read`
    /// or `Write`. Transfers at most [`LARGEST`] bytes; the caller continues from there.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`], for each of `vectors`.
    #[cold]
    unsafe fn transfer_bounced(&self, opcode: Opcode, vectors: &[(u64, usize)], offset: u64) -> io::Result<usize> {
        let len = vectors.iter().map(|&(_, len)| len).sum::<usize>().min(LARGEST);
        let mut bounce = Bounce::new(len, self.alignment.memory);
        if opcode.is_write() {
            // SAFETY: promised by the caller.
            unsafe { bounce.gather(len, vectors) };
        }
        self.engine.count_detour(Detour::Bounced);
        let operation = Operation { opcode, fd: self.fd.number(), addr: bounce.addr(), len: len as u64, offset };
        // SAFETY: this call owns the buffer, and drops it after the request has ended.
        let done = unsafe { self.request_own(operation) }?;
        if !opcode.is_write() {
            // SAFETY: promised by the caller.
            unsafe { bounce.scatter(done, vectors) };
        }
        Ok(done)
    }

    /// Whether a request with a buffer at `addr` goes to `fd` unchanged: direct I/O accepts it, or
    /// there is no alternative. `offsets` is the bitwise OR of offset and length, or of several.
    #[inline]
    pub(super) fn is_taken_as_is(&self, addr: u64, offsets: u64) -> bool {
        addr & self.memory_mask == 0 && self.is_direct_range(offsets) || !self.may_cache
    }

    /// Whether offset and length, combined by a bitwise OR, are aligned.
    #[inline]
    fn is_direct_range(&self, offsets: u64) -> bool {
        offsets & self.offset_mask == 0
    }

    /// Transfers until everything is done, the file ends, or an error occurs (rule E10).
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    pub(super) unsafe fn transfer_all(&self, opcode: Opcode, addr: u64, len: usize, offset: u64) -> io::Result<usize> {
        if len == 0 {
            return self.transfer_nothing(opcode, offset);
        }
        // SAFETY: promised by the caller.
        let done = unsafe { self.transfer(opcode, addr, len, offset) }?;
        if done == len {
            return Ok(len);
        }
        // SAFETY: promised by the caller.
        unsafe { self.transfer_rest(opcode, addr, len, offset, done) }
    }

    #[cold]
    fn transfer_nothing(&self, opcode: Opcode, offset: u64) -> io::Result<usize> {
        self.check_request(opcode, 0, offset).map(|()| 0)
    }

    /// Returns the error that a request of this kind gets if the file belongs to another context.
    fn check_request(&self, opcode: Opcode, len: u64, offset: u64) -> io::Result<()> {
        if self.engine.owner().is_here() {
            return Ok(());
        }
        let operation = Operation { opcode, fd: self.fd.number(), addr: 0, len, offset };
        Err(explain(libc::ENOTCONN, &operation, len, self.fd.descriptor(), Alignment::ANY))
    }

    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[cold]
    unsafe fn transfer_rest(
        &self,
        opcode: Opcode,
        addr: u64,
        len: usize,
        offset: u64,
        mut done: usize,
    ) -> io::Result<usize> {
        let is_direct = self.is_direct_range(offset | len as u64) || !self.may_cache;
        let mut last = done;
        while done < len && last > 0 {
            if opcode == Opcode::Read && self.has_met_the_end(done, is_direct) {
                break;
            }
            let at = done as u64;
            // SAFETY: promised by the caller, for a part of the same memory.
            last = unsafe { self.transfer(opcode, addr + at, len - done, offset + at) }?;
            done += last;
        }
        match opcode {
            Opcode::Write if done < len => Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("short write: {done} of {len} bytes at offset {offset}"),
            )),
            _ => Ok(done),
        }
    }

    /// Whether a short read is due to the end of the file. A direct read that ends within a block
    /// is, and could not continue from there; other reads are repeated.
    fn has_met_the_end(&self, done: usize, is_direct: bool) -> bool {
        is_direct && done % self.alignment.block != 0 || self.engine.on_short() == ShortRead::TreatAsEof
    }

    /// Transfers each batch of vectors with one request if the request can be direct; the remainder
    /// goes buffer by buffer.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`], for each of `vectors`.
    pub(super) unsafe fn transfer_vectors(
        &self,
        vectored: Opcode,
        single: Opcode,
        vectors: &[(u64, usize)],
        offset: u64,
    ) -> io::Result<usize> {
        self.check_request(vectored, vectors.len() as u64, offset)?;
        let mut total = 0;
        for batch in vectors.chunks(libc::UIO_MAXIOV as usize) {
            let wanted: usize = batch.iter().map(|&(_, len)| len).sum();
            let at = offset + total as u64;
            let as_is = batch.iter().all(|&(addr, len)| self.is_taken_as_is(addr, at | len as u64));
            let mut done = 0;
            // A long read that is performed in place is split, so that other coroutines run.
            let is_split = single == Opcode::Read && wanted as u64 > MAX_LEN && self.fd.ways.of(vectored).is_in_place();
            if wanted > 0 && !is_split && (as_is || self.is_direct_range(at | wanted as u64)) {
                done = if as_is {
                    let iovecs: Vec<_> = batch
                        .iter()
                        .map(|&(addr, len)| libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: len })
                        .collect();
                    let (fd, addr, len) = (self.fd.number(), iovecs.as_ptr() as u64, iovecs.len() as u64);
                    // SAFETY: promised by the caller; the array outlives the call.
                    unsafe { self.request_own(Operation { opcode: vectored, fd, addr, len, offset: at }) }?
                } else {
                    // SAFETY: promised by the caller.
                    unsafe { self.transfer_bounced(single, batch, at) }?
                };
                if single == Opcode::Read && done < wanted && self.has_met_the_end(done, true) {
                    return Ok(total + done);
                }
            }
            for &(addr, len) in batch {
                let skip = done.min(len);
                done -= skip;
                total += skip;
                if skip < len {
                    let at = skip as u64;
                    // SAFETY: promised by the caller, for a part of the same memory.
                    let rest = unsafe { self.transfer_all(single, addr + at, len - skip, offset + total as u64) }?;
                    total += rest;
                    if rest < len - skip {
                        return Ok(total);
                    }
                }
            }
        }
        Ok(total)
    }

    pub(super) fn sync(&self, opcode: Opcode) -> io::Result<()> {
        let operation = Operation { opcode, fd: self.fd.number(), addr: 0, len: 0, offset: 0 };
        let way = if self.route.sync_blocks() { Route::Offload } else { self.fd.ways.of(opcode) };
        // SAFETY: a sync names no memory.
        unsafe { self.request_by(way, operation, &self.fd) }.map(drop)
    }

    /// Returns the handle that uses the page cache, opening it when first needed.
    #[cold]
    pub(super) fn cached(&self, opcode: Opcode, len: u64, offset: u64) -> io::Result<&Handle> {
        if self.cached.get().is_none() {
            self.check_request(opcode, len, offset)?;
            // An unwinding stack cannot wait for another coroutine, and opens a descriptor itself.
            let opening = if can_suspend() { Some(self.opening_cached.lock_cancellable()?) } else { None };
            self.open_cached()?;
            drop(opening);
        }
        Ok(self.cached.get().expect("opened above"))
    }

    /// Opens the file through the page cache, unless another coroutine has already done so.
    fn open_cached(&self) -> io::Result<()> {
        if self.cached.get().is_none() {
            if let Some(simulated) = self.fd.as_simulated() {
                self.cached.get_or_init(|| simulated.reopen());
                return Ok(());
            }
            let fd =
                self.reopen("reopening the file through /proc for an unaligned request, which needs the page cache")?;
            // An unwinding stack may have opened one meanwhile: keep the first.
            let _ = self.cached.set(Handle::real(&self.engine, fd, self.route.table(false, false)));
        }
        Ok(())
    }

    /// Opens the file again without `O_DIRECT`, on a thread.
    pub(super) fn reopen(&self, what: &str) -> io::Result<OwnedFd> {
        // Through /proc: a duplicate would share the flag.
        let raw = self.fd.as_fd().as_raw_fd();
        let opened = unblock(move || {
            // SAFETY: *never left behind*: the descriptor is borrowed until the closure has ended.
            let flags = fcntl_getfl(unsafe { BorrowedFd::borrow_raw(raw) })?;
            // `SYNC` includes `DSYNC`.
            let keep = OFlags::RWMODE | OFlags::APPEND | OFlags::SYNC;
            open(format!("/proc/self/fd/{raw}"), flags & keep | OFlags::CLOEXEC, Mode::empty())
        })?;
        opened.map_err(|error| {
            let why = format!("; align requests to {} bytes, or use Direct::Never", self.alignment.block);
            failed(error.into(), what.into(), why)
        })
    }
}
