//! From a call to requests: through which descriptor, and until all is done (rule E10).

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

use coralio_runtime::can_suspend;

use crate::blocking::unblock;
use crate::engine::Detour;
use crate::error::{explain, failed};
use crate::kernel::{Opcode, Operation};
use crate::perform::Attempt;
use crate::policy::OnShort;

use super::bounce::{Bounce, LARGEST};
use super::handle::Handle;
use super::route::{Way, Ways};
use super::{Alignment, File};

impl File {
    /// One request, for the descriptor that `ways` are of.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    unsafe fn request(&self, operation: Operation, ways: &Ways) -> io::Result<usize> {
        let way = ways.of(operation.opcode);
        let attempt = Attempt { operation, nowait: way == Way::Try };
        // SAFETY: the caller's promise.
        let result = unsafe {
            match way {
                Way::Spare => self.route.on_spare(&attempt.operation, ways, &self.engine),
                Way::Main | Way::Try => self.engine.perform(&attempt),
            }
        };
        if result >= 0 {
            return Ok(result as usize);
        }
        // SAFETY: the caller's promise.
        unsafe { self.refused(result, attempt, ways) }
    }

    /// It failed; or it would have blocked the loop, and goes another way.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[cold]
    unsafe fn refused(&self, mut result: i64, attempt: Attempt, ways: &Ways) -> io::Result<usize> {
        let Attempt { operation, nowait } = attempt;
        let way = if nowait { self.route.after_refusal(result, &operation, ways) } else { None };
        result = match way {
            None => result,
            // SAFETY: the caller's promise; whoever refused it is done with it.
            Some(Way::Spare) => unsafe { self.route.on_spare(&operation, ways, &self.engine) },
            // SAFETY: as above.
            Some(Way::Main | Way::Try) => unsafe { self.engine.perform(&Attempt { nowait: false, ..attempt }) },
        };
        if result >= 0 {
            return Ok(result as usize);
        }
        let is_transfer = !matches!(operation.opcode, Opcode::SyncData | Opcode::SyncAll);
        let alignment = if is_transfer && ways.direct { self.alignment } else { Alignment::ANY };
        Err(explain(-result as i32, &operation, alignment))
    }

    /// One request for the file's own descriptor, in order with page-cached writes.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    unsafe fn request_own(&self, operation: Operation) -> io::Result<usize> {
        let _order = if operation.opcode.is_write() { Some(self.order.direct()?) } else { None };
        // SAFETY: the caller's promise.
        unsafe { self.request(operation, &self.route.own) }
    }

    /// One request, by the way that its alignment allows.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    unsafe fn transfer(&self, opcode: Opcode, addr: u64, len: usize, offset: u64) -> io::Result<usize> {
        if !self.is_taken_as_is(addr, offset | len as u64) {
            // SAFETY: the caller's promise.
            return unsafe { self.transfer_unaligned(opcode, addr, len, offset) };
        }
        let operation = Operation { opcode, fd: self.fd.number(), addr, len: len as u64, offset };
        // SAFETY: the caller's promise.
        unsafe { self.request_own(operation) }
    }

    /// One request that direct I/O does not take: through an aligned buffer if the memory alone is not aligned, else through the page
    /// cache.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[cold]
    unsafe fn transfer_unaligned(&self, opcode: Opcode, addr: u64, len: usize, offset: u64) -> io::Result<usize> {
        if self.is_direct_range(offset | len as u64) {
            // SAFETY: the caller's promise.
            return unsafe { self.transfer_bounced(opcode, &[(addr, len)], offset) };
        }
        let fd = self.cached(opcode, len as u64, offset)?.number();
        let _order = if opcode.is_write() { self.order.cached()? } else { None };
        self.engine.count_detour(Detour::PageCached);
        let operation = Operation { opcode, fd, addr, len: len as u64, offset };
        // SAFETY: the caller's promise.
        unsafe { self.request(operation, &self.route.cached) }
    }

    /// One direct request for memory that direct I/O does not take, through an aligned buffer. `opcode` is `Read` or `Write`.
    /// Does at most [`LARGEST`] bytes; the caller goes on from there.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`], for each of `vectors`.
    #[cold]
    unsafe fn transfer_bounced(&self, opcode: Opcode, vectors: &[(u64, usize)], offset: u64) -> io::Result<usize> {
        let len = vectors.iter().map(|&(_, len)| len).sum::<usize>().min(LARGEST);
        let mut bounce = Bounce::new(len, self.alignment.memory);
        if opcode.is_write() {
            // SAFETY: the caller's promise.
            unsafe { bounce.gather(len, vectors) };
        }
        self.engine.count_detour(Detour::Bounced);
        let operation = Operation { opcode, fd: self.fd.number(), addr: bounce.addr(), len: len as u64, offset };
        // SAFETY: the buffer is this call's own, and is dropped when the request is over.
        let done = unsafe { self.request_own(operation) }?;
        if !opcode.is_write() {
            // SAFETY: the caller's promise.
            unsafe { bounce.scatter(done, vectors) };
        }
        Ok(done)
    }

    /// Whether a request for a buffer at `addr`, with an offset and length (or several, or-ed), goes to `fd` as it is:
    /// direct I/O takes it, or there is no other way.
    #[inline]
    fn is_taken_as_is(&self, addr: u64, offsets: u64) -> bool {
        addr & self.memory_mask == 0 && self.is_direct_range(offsets) || !self.may_cache
    }

    /// Whether offset and length (or several, or-ed) are aligned.
    #[inline]
    fn is_direct_range(&self, offsets: u64) -> bool {
        offsets & self.offset_mask == 0
    }

    /// Goes on until all is transferred, the file ends, or an error comes (rule E10).
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    pub(super) unsafe fn transfer_all(&self, opcode: Opcode, addr: u64, len: usize, offset: u64) -> io::Result<usize> {
        if len == 0 {
            return self.transfer_nothing(opcode, offset);
        }
        // SAFETY: the caller's promise.
        let done = unsafe { self.transfer(opcode, addr, len, offset) }?;
        if done == len {
            return Ok(len);
        }
        // SAFETY: the caller's promise.
        unsafe { self.transfer_rest(opcode, addr, len, offset, done) }
    }

    #[cold]
    fn transfer_nothing(&self, opcode: Opcode, offset: u64) -> io::Result<usize> {
        self.check_request(opcode, 0, offset).map(|()| 0)
    }

    /// The error of a request of this kind, if the file belongs to another context.
    fn check_request(&self, opcode: Opcode, len: u64, offset: u64) -> io::Result<()> {
        if self.engine.is_here() {
            return Ok(());
        }
        let operation = Operation { opcode, fd: self.fd.number(), addr: 0, len, offset };
        Err(explain(libc::ENOTCONN, &operation, Alignment::ANY))
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
            // SAFETY: the caller's promise, for a part of the same memory.
            last = unsafe { self.transfer(opcode, addr + at, len - done, offset + at) }?;
            done += last;
        }
        match opcode {
            Opcode::Write if done < len => Err(io::Error::new(
                io::ErrorKind::WriteZero,
                format!("of {len} bytes at {offset} the kernel took {done}, and then none, without an error"),
            )),
            _ => Ok(done),
        }
    }

    /// Whether a read was short because the file ends there. A direct one that ends amid a block was, and could not go on
    /// from there; others ask again.
    fn has_met_the_end(&self, done: usize, is_direct: bool) -> bool {
        is_direct && !done.is_multiple_of(self.alignment.offset) || self.engine.on_short() == OnShort::IsTheEnd
    }

    /// Vectors in one request as long as it is direct and complete; what is left over goes buffer by buffer.
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
            if wanted > 0 && (as_is || self.is_direct_range(at | wanted as u64)) {
                done = if as_is {
                    let iovecs: Vec<_> = batch
                        .iter()
                        .map(|&(addr, len)| libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: len })
                        .collect();
                    let (fd, addr, len) = (self.fd.number(), iovecs.as_ptr() as u64, iovecs.len() as u64);
                    // SAFETY: the caller's promise; the array outlives the call.
                    unsafe { self.request_own(Operation { opcode: vectored, fd, addr, len, offset: at }) }?
                } else {
                    // SAFETY: the caller's promise.
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
                    // SAFETY: the caller's promise, for a part of the same memory.
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
        // SAFETY: a sync names no memory.
        unsafe { self.request(operation, &self.route.own) }.map(drop)
    }

    /// The file through the page cache.
    #[cold]
    fn cached(&self, opcode: Opcode, len: u64, offset: u64) -> io::Result<&Handle> {
        if self.cached.get().is_none() {
            self.check_request(opcode, len, offset)?;
            // A stack that unwinds cannot wait for another coroutine, and opens a descriptor of its own.
            let opening = if can_suspend() { Some(self.opening_cached.lock_cancellable()?) } else { None };
            self.open_cached()?;
            drop(opening);
        }
        Ok(self.cached.get().expect("opened above"))
    }

    /// Opens the file through the page cache, unless another coroutine has done so.
    fn open_cached(&self) -> io::Result<()> {
        if self.cached.get().is_none() {
            if let Some(simulated) = self.fd.as_simulated() {
                self.cached.get_or_init(|| simulated.reopen());
                return Ok(());
            }
            // Opened anew by its descriptor: a duplicate would share the O_DIRECT flag.
            let raw = self.fd.as_fd().as_raw_fd();
            let opened = unblock(move || {
                let path = format!("/proc/self/fd/{raw}\0");
                // SAFETY: F_GETFL takes no pointers; `path` ends with a zero byte; the new descriptor is ours alone.
                unsafe {
                    let flags = libc::fcntl(raw, libc::F_GETFL);
                    let keep = libc::O_ACCMODE | libc::O_APPEND | libc::O_SYNC | libc::O_DSYNC;
                    let fd = libc::open(path.as_ptr().cast(), flags & keep | libc::O_CLOEXEC);
                    if fd < 0 { Err(io::Error::last_os_error()) } else { Ok(OwnedFd::from_raw_fd(fd)) }
                }
            })?;
            let fd = opened.map_err(|error| {
                let what = "opening the file again through /proc, since an unaligned request needs the page cache";
                let why = format!("; align requests to {} bytes, or use Direct::Never", self.alignment.offset);
                failed(error, what.into(), why)
            })?;
            // A stack that unwinds may have been here meanwhile: one of the two is enough.
            let _ = self.cached.set(Handle::real(&self.engine, fd));
        }
        Ok(())
    }
}
