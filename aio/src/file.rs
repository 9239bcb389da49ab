//! Files: plain calls that suspend the coroutine, and borrow their buffers.
//!
//! ```text
//!   read_at(&mut buf, offset)
//!     aligned for direct I/O?                     if not: through an aligned buffer, or through the page cache
//!     Engine::transfer                            the coroutine is suspended while the kernel has the buffer
//!     short?  ask for the rest                    until the buffer is full, or the file ends (rule E10)
//! ```

#![allow(unsafe_code)]

use std::cell::OnceCell;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::sync::Arc;

use coralio_runtime::{AioContext, CoMutex};

use crate::any::AnyEngine;
use crate::engine::Engine;
use crate::kernel::{Kernel, Opcode};
use crate::policy::Policy;
use crate::simulate::Simulated;

mod bounce;
mod carry;
mod handle;
mod manage;
mod options;
mod order;
mod route;
mod stream;
mod transfer;

pub use carry::DetachedFile;
use handle::Handle;
pub use manage::{remove_file, rename, sync_directory};
use options::direct_alignment;
pub use options::{Alignment, Direct, OpenOptions};
use order::WriteOrder;
use route::Route;
pub use stream::Stream;

/// An open file of this thread's context. Its calls suspend the coroutine that makes them, never the thread.
///
/// Many coroutines may use it at once; share it as an `Rc<File>`. To another thread's context it goes by
/// [`detach`](File::detach). Offsets and lengths are in bytes.
///
/// With [`Direct::Auto`], the default, requests go past the page cache where the file system has direct I/O:
///
/// | request | way | counted in |
/// |---|---|---|
/// | aligned as [`alignment`](File::alignment) says | direct, from and to the caller's memory | |
/// | offset and length aligned, memory not (a `Vec`, an array) | direct, through an aligned buffer | [`Stats::bounced`] |
/// | offset or length not aligned | through the page cache | [`Stats::page_cached`] |
///
/// The ways may be mixed. Each read sees every write of the same `File` that has returned before, and direct and page-cached writes of a
/// `File` are never in flight at the same time: Linux may fail a later sync with EIO otherwise, even if the writes have no byte in
/// common. A request of one kind waits until those of the other kind that came before it have completed; a destructor that writes while
/// its stack unwinds cannot, and goes at once. Two `File`s of one file, and other
/// processes, are not ordered in this way: use [`Direct::Never`] for each, or aligned offsets and lengths.
///
/// [`Stats::bounced`]: crate::Stats::bounced
/// [`Stats::page_cached`]: crate::Stats::page_cached
pub struct File {
    fd: Handle,
    /// The same file through the page cache, opened when first needed.
    cached: OnceCell<Handle>,
    /// Whether unaligned requests may go through an aligned buffer or the page cache.
    may_cache: bool,
    /// What direct I/O on `fd` wants; `ANY` if it is not direct, or the file system does not care.
    alignment: Alignment,
    /// The bits that must be zero in an address, and in an offset or length, to be aligned.
    memory_mask: u64,
    offset_mask: u64,
    direct: bool,
    engine: AnyEngine,
    route: Route,
    order: WriteOrder,
    /// Keeps coroutines that need `cached` at the same time from opening it several times.
    opening_cached: CoMutex<()>,
    /// Its context's thread is the only one that can do I/O with it.
    _home: PhantomData<*const ()>,
}

impl File {
    /// Opens a file for reading.
    ///
    /// # Errors
    ///
    /// As [`OpenOptions::open`].
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// May yield, as [`OpenOptions::open`].
    pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
        File::options().read(true).open(path)
    }

    /// For writing, for making files, and for choosing direct I/O.
    pub fn options() -> OpenOptions {
        OpenOptions::new()
    }

    /// Takes an open descriptor as it is: direct if it was opened with `O_DIRECT`.
    ///
    /// # Errors
    ///
    /// `InvalidInput`: a pipe or socket. What the kernel says of the descriptor; what making the context's engine says, if
    /// this is its first file.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn from_fd(fd: OwnedFd) -> io::Result<File> {
        File::new(fd.into(), false, AnyEngine::of_this_context)
    }

    /// As [`from_fd`](File::from_fd), on an engine of your own: for tests on a kernel that is scripted, or with a
    /// [`Policy`] that lacks a guard.
    ///
    /// # Errors
    ///
    /// As [`from_fd`](File::from_fd).
    ///
    /// # Control
    ///
    /// Never switches.
    pub fn on_engine<K: Kernel, P: Policy>(engine: &Arc<Engine<K, P>>, fd: OwnedFd) -> io::Result<File> {
        File::new(fd.into(), false, || Ok(AnyEngine::unnamed(Arc::clone(engine) as _)))
    }

    fn new(file: fs::File, may_cache: bool, engine: impl FnOnce() -> io::Result<AnyEngine>) -> io::Result<File> {
        let kind = file.metadata()?.file_type();
        if kind.is_dir() {
            return Err(io::Error::from_raw_os_error(libc::EISDIR));
        }
        if kind.is_fifo() || kind.is_socket() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a pipe or socket has no offsets, and native AIO on it blocks the thread; this is for files and block \
                 devices",
            ));
        }
        let fd = OwnedFd::from(file);
        // SAFETY: F_GETFL takes no pointers.
        let flags = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_GETFL) };
        if flags < 0 {
            return Err(io::Error::last_os_error());
        }
        let direct = flags & libc::O_DIRECT != 0;
        let alignment = if direct { direct_alignment(&fd)? } else { Alignment::ANY };
        let engine = engine()?;
        let route = Route::new(&engine, fd.as_fd(), kind.is_file(), flags);
        Ok(File::assemble(Handle::real(&engine, fd), may_cache, direct, alignment, engine, route))
    }

    /// A file of the simulated kernel.
    fn simulated(engine: Arc<Simulated>, number: RawFd, direct: Direct) -> File {
        let sector = engine.kernel.sector();
        let is_direct = direct != Direct::Never;
        let alignment = if is_direct { Alignment { memory: sector, offset: sector } } else { Alignment::ANY };
        let fd = Handle::simulated(engine.kernel.clone(), number);
        let (engine, may_cache) = (AnyEngine::unnamed(engine), direct != Direct::Always);
        File::assemble(fd, may_cache, is_direct, alignment, engine, Route::only_main(is_direct))
    }

    fn assemble(
        fd: Handle,
        may_cache: bool,
        direct: bool,
        alignment: Alignment,
        engine: AnyEngine,
        route: Route,
    ) -> File {
        File {
            fd,
            cached: OnceCell::new(),
            may_cache,
            alignment,
            memory_mask: alignment.memory as u64 - 1,
            offset_mask: alignment.offset as u64 - 1,
            direct,
            engine,
            route,
            order: WriteOrder::new(),
            opening_cached: CoMutex::new(()),
            _home: PhantomData,
        }
    }

    /// Reads from `offset` until `buf` is full or the file ends. Returns how many bytes there were. What lies behind them in
    /// `buf` is anything: direct I/O may leave zeroes there.
    ///
    /// # Errors
    ///
    /// The kernel's, with cause and remedy. What was read before it is in `buf`.
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[inline]
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        // SAFETY: the buffer is borrowed exclusively until this returns.
        unsafe { self.transfer_all(Opcode::Read, buf.as_mut_ptr() as u64, buf.len(), offset) }
    }

    /// Reads from `offset` until `buf` is full.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends before that; else as [`read_at`](File::read_at).
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn read_exact_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let read = self.read_at(buf, offset)?;
        if read == buf.len() {
            return Ok(());
        }
        Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!("unexpected end of file: of {} bytes at {offset} there were {read}", buf.len()),
        ))
    }

    /// Writes all of `buf` at `offset`. Returns its length.
    ///
    /// # Errors
    ///
    /// The kernel's, with cause and remedy; `WriteZero` if it takes nothing and gives no reason. A part of `buf` may have
    /// been written.
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[inline]
    pub fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        // SAFETY: the buffer is borrowed until this returns, and a write only reads it.
        unsafe { self.transfer_all(Opcode::Write, buf.as_ptr() as u64, buf.len(), offset) }
    }

    /// Reads from `offset` into several buffers, one after the other, until all are full or the file ends.
    ///
    /// # Errors
    ///
    /// As [`read_at`](File::read_at).
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let vectors: Vec<_> = bufs.iter_mut().map(|buf| (buf.as_mut_ptr() as u64, buf.len())).collect();
        // SAFETY: the buffers are borrowed exclusively until this returns.
        unsafe { self.transfer_vectors(Opcode::ReadVectored, Opcode::Read, &vectors, offset) }
    }

    /// Writes several buffers at `offset`, one after the other. Returns their length together.
    ///
    /// # Errors
    ///
    /// As [`write_at`](File::write_at).
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let vectors: Vec<_> = bufs.iter().map(|buf| (buf.as_ptr() as u64, buf.len())).collect();
        // SAFETY: the buffers are borrowed until this returns, and a write only reads them.
        unsafe { self.transfer_vectors(Opcode::WriteVectored, Opcode::Write, &vectors, offset) }
    }

    /// Returns when what was written, and as much metadata as it takes to find it again, is on the medium.
    ///
    /// # Errors
    ///
    /// The kernel's. What was written since the last sync may be lost then.
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn sync_data(&self) -> io::Result<()> {
        self.sync(Opcode::SyncData)
    }

    /// Returns when what was written, and all metadata, is on the medium.
    ///
    /// # Errors
    ///
    /// As [`sync_data`](File::sync_data).
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn sync_all(&self) -> io::Result<()> {
        self.sync(Opcode::SyncAll)
    }

    /// Waits until no request of this file is in flight or pending, as [`AioContext::drain`] waits: for the requests of
    /// the context's other files too. What runs on the thread pool ([`set_len`](File::set_len), for one) is not a request.
    ///
    /// # Errors
    ///
    /// `NotConnected`: the file belongs to another context.
    ///
    /// # Panics
    ///
    /// With the panic of what the loop runs.
    ///
    /// # Control
    ///
    /// May enter other coroutines. Blocks the thread, not the coroutine.
    #[doc(alias = "bdrv_drain")]
    pub fn drain(&self) -> io::Result<()> {
        self.check_context(|| "draining a file".into())?;
        if let Some(context) = AioContext::current() {
            context.drain();
        }
        Ok(())
    }

    /// Returns whether requests with aligned offset and length go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Returns what requests must be aligned to, to go past the page cache without a copy. If the memory alone is not aligned, requests
    /// still do, through an aligned buffer (with [`Direct::Always`], they fail).
    pub fn alignment(&self) -> Alignment {
        self.alignment
    }
}

impl AsFd for File {
    /// The file's own descriptor. Should another file be put in its place (`dup2`), requests may go to the first one still: io_uring
    /// [knows](Kernel::register) it.
    ///
    /// # Panics
    ///
    /// If the file is [simulated](mod@crate::simulate): it has no descriptor of this process.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("fd", &self.fd).field("direct", &self.direct).finish_non_exhaustive()
    }
}
