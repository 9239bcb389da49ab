//! Files: ordinary calls that borrow their buffers and suspend the coroutine.
//!
//! ```text
//!   read_at(&mut buf, offset)
//!     aligned for direct I/O?                     if not: through an aligned buffer or the page cache
//!     Engine::transfer                            suspends the coroutine while the kernel has the buffer
//!     short?  request the rest                    until the buffer is full, or the file ends (rule E10)
//! ```

#![allow(unsafe_code)]

use std::cell::OnceCell;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use coralio_runtime::{AioContext, CoMutex};
use rustix::fs::{FileType, OFlags, tell};
use rustix::io::Errno;

use crate::backend::simulated::SimulatedBackend;
use crate::backend::{Backend, Opcode};
use crate::driver::{Driver, SelectedBackend};
use crate::engine::Engine;
use crate::engine::erased::ErasedEngine;
use crate::engine::guards::Guards;

mod aligned_buf;
mod bounce;
mod contents;
mod detached;
mod duplicate;
pub(crate) mod error;
mod fs;
mod handle;
mod inspect;
mod locks;
mod names;
mod open_cached;
mod options;
mod order;
mod ranges;
mod replace;
mod route;
mod stream;
mod transfer;
mod write_flags;

pub use aligned_buf::AlignedBuf;
pub use contents::{copy, read, read_to_string, write};
pub use detached::DetachedFile;
use handle::Handle;
use inspect::FileSystem;
pub use locks::TryLockError;
pub use names::{
    DirEntry, ReadDir, canonicalize, create_dir, create_dir_all, hard_link, metadata, read_dir, remove_dir,
    remove_dir_all, remove_file, rename, symlink_metadata, sync_dir, try_exists,
};
use options::Opened;
pub use options::{Alignment, Direct, OpenOptions};
use order::WriteOrder;
pub use ranges::{Advice, copy_file_range};
pub use replace::replace_file;
use route::FileRoutes;
pub use stream::FileCursor;
pub use write_flags::WriteFlags;

/// An open file of this thread's context. Its calls suspend the calling coroutine, never the
/// thread.
///
/// Several coroutines may use it concurrently; share it as an `Rc<File>`. [`detach`](File::detach)
/// moves it to another thread's context. Offsets and lengths are in bytes.
///
/// With [`Direct::Auto`], the default, requests bypass the page cache if the file system supports
/// direct I/O:
///
/// | request | path | counted in |
/// |---|---|---|
/// | aligned to [`alignment`](File::alignment) | direct, from and to the caller's memory | |
/// | offset and length aligned, memory not (a `Vec`, an array) | direct, through an aligned buffer | [`Stats::bounced`] |
/// | offset or length not aligned | through the page cache | [`Stats::page_cached`] |
///
/// The paths may be mixed. Each read sees every earlier write of the same `File` that has returned.
/// Direct and page-cached writes of one file are never in flight at the same time in a context,
/// also through several `File`s: otherwise Linux may fail a later sync with EIO, even if the writes
/// do not overlap. A write of one kind waits until earlier writes of the other kind have completed,
/// except in a destructor while its stack unwinds, which cannot wait. The `File`s of other contexts
/// and other processes are not ordered in this way: use [`Direct::Never`] for each, or aligned
/// offsets and lengths.
///
/// [`Stats::bounced`]: crate::driver::Stats::bounced
/// [`Stats::page_cached`]: crate::driver::Stats::page_cached
pub struct File {
    fd: Handle,
    /// A second handle that uses the page cache, opened when first needed.
    cached: OnceCell<Handle>,
    /// Whether unaligned requests may go through an aligned buffer or the page cache.
    may_cache: bool,
    /// Alignment that direct I/O on `fd` requires; `ANY` if `fd` is not direct, or the file system
    /// has no requirement.
    alignment: Alignment,
    /// The bits that must be zero in an aligned address, and in an aligned offset or length.
    memory_mask: u64,
    offset_mask: u64,
    direct: bool,
    /// Whether `fstat` never waits, so that it needs no thread.
    stats_at_once: bool,
    engine: Arc<dyn ErasedEngine>,
    route: FileRoutes,
    /// Shared with the context's other files of the same inode.
    order: Rc<WriteOrder>,
    /// Keeps coroutines that need `cached` at the same time from opening it twice.
    opening_cached: CoMutex<()>,
    /// Only the home thread of the file's context can do I/O with it: not `Send`.
    _home: PhantomData<*const ()>,
}

/// The engine that serves a file, and its driver unless the engine is a test's own.
type Served = (Arc<dyn ErasedEngine>, Option<Arc<Driver>>);

/// Returns this context's engine; creates it if there is none.
fn served_here() -> io::Result<Served> {
    Driver::of_this_context().map(|driver| (Arc::clone(&driver.engine), Some(driver)))
}

/// Fails for a kind of file that has no offsets.
fn check_has_offsets(kind: FileType) -> io::Result<()> {
    match kind {
        FileType::Fifo | FileType::Socket => Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            "cannot do file I/O on a pipe, socket or terminal: it has no offsets, and native AIO on it would block; use \
             a regular file or block device, or CoFd for a stream",
        )),
        _ => Ok(()),
    }
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

    /// Returns options for writing, for creating files, and for choosing direct I/O.
    pub fn options() -> OpenOptions {
        OpenOptions::new()
    }

    /// Wraps an open descriptor; I/O is direct if it was opened with `O_DIRECT`.
    ///
    /// ```
    /// use coralio::File;
    ///
    /// # fn main() -> std::io::Result<()> {
    /// coralio::run(|| {
    ///     let file = File::from_fd(std::fs::File::open("Cargo.toml")?.into())?;
    ///     let mut text = vec![0; file.len()? as usize];
    ///     file.read_exact_at(&mut text, 0)?;
    ///     let other = file.to_std()?; // for code that wants a file of `std`
    ///     assert_eq!(other.metadata()?.len(), text.len() as u64);
    ///     Ok(())
    /// })
    /// # }
    /// ```
    ///
    /// # Errors
    ///
    /// `InvalidInput`: a pipe, socket or terminal. Otherwise the kernel's error for the descriptor, or the
    /// error of creating the context's engine, if this is its first file.
    ///
    /// # Panics
    ///
    /// Outside a context.
    pub fn from_fd(fd: OwnedFd) -> io::Result<File> {
        File::new(Opened::new(fd)?, false, served_here)
    }

    /// As [`from_fd`](File::from_fd), on a given engine: for tests with a scripted backend, or with
    /// a [`Guards`] that lacks a guard.
    ///
    /// # Errors
    ///
    /// As [`from_fd`](File::from_fd).
    pub fn with_engine<B: Backend, G: Guards>(engine: &Arc<Engine<B, G>>, fd: OwnedFd) -> io::Result<File> {
        File::new(Opened::new(fd)?, false, || Ok((Arc::clone(engine) as _, None)))
    }

    fn new(opened: Opened, may_cache: bool, engine: impl FnOnce() -> io::Result<Served>) -> io::Result<File> {
        let Opened { fd, flags, facts } = opened;
        match facts.kind {
            FileType::Directory => return Err(io::Error::from_raw_os_error(libc::EISDIR)),
            // A terminal is like a pipe; the null device is not.
            FileType::CharacterDevice if tell(&fd) == Err(Errno::SPIPE) => check_has_offsets(FileType::Fifo)?,
            kind => check_has_offsets(kind)?,
        }
        let direct = flags.contains(OFlags::DIRECT);
        let alignment = if direct { facts.alignment } else { Alignment::ANY };
        let in_memory = facts.kind == FileType::RegularFile && facts.file_system == FileSystem::Memory;
        let (engine, driver) = engine()?;
        let route = FileRoutes::new(driver.as_ref(), in_memory);
        let fd = Handle::real(&engine, fd, route.table(direct, flags.contains(OFlags::APPEND)));
        let order = WriteOrder::of(facts.inode);
        let stats_at_once = facts.stats_at_once();
        Ok(File { stats_at_once, ..File::assemble(fd, may_cache, direct, alignment, engine, route, order) })
    }

    /// Creates a file of the simulated backend.
    fn simulated(driver: &Driver, backend: SimulatedBackend, number: RawFd, direct: Direct) -> File {
        let sector = backend.sector();
        let is_direct = direct != Direct::Never;
        let alignment = if is_direct { Alignment { memory: sector, block: sector } } else { Alignment::ANY };
        let order = WriteOrder::of(backend.inode(number));
        let (fd, may_cache) = (Handle::simulated(backend, number, is_direct), direct != Direct::Always);
        let engine = Arc::clone(&driver.engine);
        File::assemble(fd, may_cache, is_direct, alignment, engine, FileRoutes::new(None, false), order)
    }

    fn assemble(
        fd: Handle,
        may_cache: bool,
        direct: bool,
        alignment: Alignment,
        engine: Arc<dyn ErasedEngine>,
        route: FileRoutes,
        order: Rc<WriteOrder>,
    ) -> File {
        File {
            fd,
            cached: OnceCell::new(),
            may_cache,
            alignment,
            memory_mask: alignment.memory as u64 - 1,
            offset_mask: alignment.block as u64 - 1,
            direct,
            stats_at_once: false,
            engine,
            route,
            order,
            opening_cached: CoMutex::new(()),
            _home: PhantomData,
        }
    }

    /// Reads from `offset` until `buf` is full or the file ends. Returns the number of bytes read.
    /// The rest of `buf` is unspecified; direct I/O may zero it.
    ///
    /// # Errors
    ///
    /// The kernel's error, with cause and remedy. Data read before the error is in `buf`.
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[inline]
    #[doc(alias = "pread")]
    pub fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        // SAFETY: the buffer is borrowed exclusively until this returns.
        unsafe { self.transfer_all(Opcode::Read, buf.as_mut_ptr() as u64, buf.len(), offset) }
    }

    /// Reads from `offset` until `buf` is full.
    ///
    /// # Errors
    ///
    /// `UnexpectedEof` if the file ends first; otherwise as [`read_at`](File::read_at).
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
            format!("unexpected end of file: read {read} of {} bytes at offset {offset}", buf.len()),
        ))
    }

    /// Writes all of `buf` at `offset`. Returns the length of `buf`.
    ///
    /// # Errors
    ///
    /// The kernel's error, with cause and remedy; `WriteZero` if the kernel stops accepting data
    /// without an error. Part of `buf` may have been written.
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[inline]
    #[doc(alias = "pwrite")]
    pub fn write_at(&self, buf: &[u8], offset: u64) -> io::Result<usize> {
        // SAFETY: the buffer is borrowed until this returns, and a write only reads it.
        unsafe { self.transfer_all(Opcode::Write, buf.as_ptr() as u64, buf.len(), offset) }
    }

    /// Reads from `offset` into several buffers in sequence, until all are full or the file ends.
    ///
    /// ```
    /// use coralio::{AlignedBuf, File};
    /// use std::io::{IoSlice, IoSliceMut};
    ///
    /// # fn main() -> std::io::Result<()> {
    /// # let path = std::env::temp_dir().join(format!("coralio-vectored-doc-{}", std::process::id()));
    /// coralio::run(|| {
    ///     let file = File::options().read(true).write(true).create(true).open(&path)?;
    ///     assert_eq!(file.write_vectored_at(&[IoSlice::new(b"head"), IoSlice::new(b"body")], 0)?, 8);
    ///     let (mut head, mut body) = ([0; 4], AlignedBuf::new(4, 512));
    ///     assert_eq!(body.align(), 512); // as direct I/O needs
    ///     file.read_vectored_at(&mut [IoSliceMut::new(&mut head), IoSliceMut::new(&mut body)], 0)?;
    ///     assert_eq!((&head, &body[..]), (b"head", &b"body"[..]));
    ///     # std::fs::remove_file(&path)?;
    ///     Ok(())
    /// })
    /// # }
    /// ```
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
    #[doc(alias = "preadv")]
    pub fn read_vectored_at(&self, bufs: &mut [IoSliceMut<'_>], offset: u64) -> io::Result<usize> {
        let vectors: Vec<_> = bufs.iter_mut().map(|buf| (buf.as_mut_ptr() as u64, buf.len())).collect();
        // SAFETY: the buffers are borrowed exclusively until this returns.
        unsafe { self.transfer_vectors(Opcode::ReadVectored, Opcode::Read, &vectors, offset) }
    }

    /// Writes several buffers in sequence at `offset`. Returns their total length.
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
    #[doc(alias = "pwritev")]
    pub fn write_vectored_at(&self, bufs: &[IoSlice<'_>], offset: u64) -> io::Result<usize> {
        let vectors: Vec<_> = bufs.iter().map(|buf| (buf.as_ptr() as u64, buf.len())).collect();
        // SAFETY: the buffers are borrowed until this returns, and a write only reads them.
        unsafe { self.transfer_vectors(Opcode::WriteVectored, Opcode::Write, &vectors, offset) }
    }

    /// Flushes file data, and the metadata needed to read it back, to stable storage (`fdatasync`).
    ///
    /// # Errors
    ///
    /// The kernel's error. Data written since the last successful sync may then be lost.
    ///
    /// # Panics
    ///
    /// Outside a coroutine.
    ///
    /// # Control
    ///
    /// May yield.
    #[doc(alias = "fdatasync")]
    pub fn sync_data(&self) -> io::Result<()> {
        self.sync(Opcode::SyncData)
    }

    /// Flushes file data and all metadata to stable storage (`fsync`).
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
    #[doc(alias = "fsync")]
    pub fn sync_all(&self) -> io::Result<()> {
        self.sync(Opcode::SyncAll)
    }

    /// Waits until no request of this file is in flight or pending, in the manner of
    /// [`AioContext::drain`], which waits for the requests of the context's other files too. Work
    /// on the thread pool, such as [`set_len`](File::set_len), is not a request.
    ///
    /// # Errors
    ///
    /// `NotConnected`: the file belongs to another context.
    ///
    /// # Panics
    ///
    /// Propagates panics from callbacks that the loop runs.
    ///
    /// # Control
    ///
    /// May enter other coroutines. Blocks the thread, not just the coroutine.
    #[doc(alias = "bdrv_drain")]
    pub fn drain(&self) -> io::Result<()> {
        self.check_context(|| "draining a file".into())?;
        if let Some(context) = AioContext::current() {
            context.drain();
        }
        Ok(())
    }

    /// Returns the backend that performs the file's requests, and why; `None` for a simulated file,
    /// for one on an engine of a test's own, and for one of another context.
    ///
    /// ```
    /// use coralio::{File, run};
    ///
    /// run(|| {
    ///     println!("{}", File::open("Cargo.toml")?.backend().unwrap()); // "io_uring"
    ///     std::io::Result::Ok(())
    /// })?;
    /// # std::io::Result::Ok(())
    /// ```
    pub fn backend(&self) -> Option<SelectedBackend> {
        let driver = Driver::current()?;
        let chosen = driver.chosen_for(&self.engine)?;
        Some(if self.route.are_in_place() { chosen.on_tmpfs() } else { chosen.clone() })
    }

    /// Returns whether requests with aligned offset and length bypass the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// Returns the alignment that requests need to bypass the page cache without a copy. A request
    /// with only its memory unaligned still bypasses the page cache, through an aligned buffer
    /// (with [`Direct::Always`], it fails).
    pub fn alignment(&self) -> Alignment {
        self.alignment
    }
}

impl AsFd for File {
    /// Returns the file's descriptor, of a direct file with `O_DIRECT`: calls of other code on it then
    /// need aligned memory, offsets and lengths. For such calls use [`to_std`](File::to_std), whose
    /// handle is never direct. If the descriptor is replaced by `dup2`, requests may still go to the
    /// original file, which io_uring [registers](Backend::register).
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
