//! Files: plain calls that suspend the coroutine, and borrow their buffers.
//!
//! ```text
//!   read_at(&mut buf, offset)
//!     aligned for direct I/O, or page-cached?     which descriptor
//!     Engine::transfer                            the coroutine is suspended while the kernel has the buffer
//!     short?  ask for the rest                    until the buffer is full, or the file ends (rule E10)
//! ```

#![allow(unsafe_code)]

use std::cell::OnceCell;
use std::fs;
use std::io::{self, IoSlice, IoSliceMut};
use std::marker::PhantomData;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use crate::engine::Engine;
use crate::error::{cannot_open, explain};
use crate::kernel::linux_aio::LinuxAio;
use crate::kernel::{Opcode, Operation};

/// Whether a file is read and written past the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Direct where the file system and the request's alignment allow it, else through the page cache.
    #[default]
    Auto,
    /// Direct, or an error.
    Always,
    /// Through the page cache.
    Never,
}

/// What direct I/O on a file wants, in bytes. 1 and 1: anything goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Of a buffer's address.
    pub memory: usize,
    /// Of offsets and lengths.
    pub offset: usize,
}

impl Alignment {
    const ANY: Alignment = Alignment { memory: 1, offset: 1 };
}

/// How to open a [`File`].
///
/// ```
/// use coralio_aio::{Direct, File};
///
/// # fn main() -> std::io::Result<()> {
/// let path = std::env::temp_dir().join(format!("coralio-doc-{}", std::process::id()));
/// coralio_aio::run(|| {
///     let file = File::options().read(true).write(true).create(true).direct(Direct::Never).open(&path)?;
///     file.write_at(b"hello", 0)?;
///     let mut buf = [0; 5];
///     file.read_exact_at(&mut buf, 0)?;
///     assert_eq!(&buf, b"hello");
///     std::fs::remove_file(&path)
/// })
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use]
pub struct OpenOptions {
    options: fs::OpenOptions,
    direct: Direct,
}

/// Defines setters that `std::fs::OpenOptions` has too.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty,)*) => {
        $($(#[$doc])*
        pub fn $name(mut self, $name: $type) -> OpenOptions {
            self.options.$name($name);
            self
        })*
    };
}

impl OpenOptions {
    setters! {
        /// For reading.
        read: bool,
        /// For writing.
        write: bool,
        /// Makes the file if it is not there.
        create: bool,
        /// Makes the file, which must not be there.
        create_new: bool,
        /// Empties the file.
        truncate: bool,
        /// Permissions of a file that is made, less the umask. Default 0o666.
        mode: u32,
    }

    /// Past the page cache or not. Default [`Direct::Auto`].
    pub fn direct(mut self, direct: Direct) -> OpenOptions {
        self.direct = direct;
        self
    }

    /// Opens the file, for the context of this thread.
    ///
    /// # Errors
    ///
    /// As `std::fs::OpenOptions::open`. With [`Direct::Always`]: `InvalidInput` where the file system has no direct I/O.
    /// What making the context's engine says, if this is its first file.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// Never switches; blocks the thread while the kernel opens.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        let open = |flags| self.options.clone().custom_flags(flags).open(path);
        let file = match self.direct {
            Direct::Never => open(0),
            Direct::Always => open(libc::O_DIRECT).map_err(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => io::Error::new(
                    io::ErrorKind::InvalidInput,
                    "its file system has no direct I/O; use Direct::Auto or Direct::Never",
                ),
                _ => error,
            }),
            // A file that was just made by an open that failed is there now: it must not be "new" to the second.
            Direct::Auto => open(libc::O_DIRECT).or_else(|error| match error.raw_os_error() {
                Some(libc::EINVAL) => self.options.clone().create_new(false).open(path),
                _ => Err(error),
            }),
        };
        file.and_then(|file| File::new(file, self.direct != Direct::Always)).map_err(|error| cannot_open(error, path))
    }
}

/// An open file of this thread's context. Its calls suspend the coroutine that makes them, never the thread.
///
/// Many coroutines may use it at once; share it as an `Rc<File>`. Offsets and lengths are in bytes.
///
/// With [`Direct::Auto`], the default, requests that are aligned as [`alignment`](File::alignment) says go past the page
/// cache, and others through it. What the kernel itself promises holds between the two.
pub struct File {
    fd: OwnedFd,
    /// The same file through the page cache, opened when first needed.
    cached: OnceCell<OwnedFd>,
    /// Whether unaligned requests may go through the page cache.
    may_cache: bool,
    /// What direct I/O on `fd` wants; `ANY` if it is not direct, or the file system does not care.
    alignment: Alignment,
    /// The bits that must be zero in an address, and in an offset or length, to be aligned.
    memory_mask: u64,
    offset_mask: u64,
    direct: bool,
    engine: Arc<Engine<LinuxAio>>,
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
    /// Never switches; blocks the thread while the kernel opens.
    pub fn open(path: impl AsRef<Path>) -> io::Result<File> {
        File::options().read(true).open(path)
    }

    /// For writing, for making files, and for choosing direct I/O.
    pub fn options() -> OpenOptions {
        OpenOptions { options: fs::OpenOptions::new(), direct: Direct::Auto }
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
        File::new(fd.into(), false)
    }

    fn new(file: fs::File, may_cache: bool) -> io::Result<File> {
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
        let engine = crate::engine_of_this_context()?;
        Ok(File {
            fd,
            cached: OnceCell::new(),
            may_cache,
            alignment,
            memory_mask: alignment.memory as u64 - 1,
            offset_mask: alignment.offset as u64 - 1,
            direct,
            engine,
            _home: PhantomData,
        })
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
        // SAFETY: a sync names no memory.
        unsafe { self.request(self.sync(Opcode::SyncData), Alignment::ANY) }.map(drop)
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
        // SAFETY: a sync names no memory.
        unsafe { self.request(self.sync(Opcode::SyncAll), Alignment::ANY) }.map(drop)
    }

    /// Length in bytes, of a block device too.
    ///
    /// # Errors
    ///
    /// The kernel's.
    ///
    /// # Control
    ///
    /// Never switches; blocks the thread while the kernel looks.
    pub fn len(&self) -> io::Result<u64> {
        let file = fs::File::from(self.fd.try_clone()?);
        let metadata = file.metadata()?;
        if metadata.is_file() {
            return Ok(metadata.len());
        }
        // A block device's length is where its end is. The offset of the descriptor is nobody's here.
        io::Seek::seek(&mut &file, io::SeekFrom::End(0))
    }

    /// Whether its length is 0.
    ///
    /// # Errors
    ///
    /// As [`len`](File::len).
    pub fn is_empty(&self) -> io::Result<bool> {
        self.len().map(|len| len == 0)
    }

    /// Cuts the file off at `len` bytes, or lengthens it with a hole.
    ///
    /// # Errors
    ///
    /// The kernel's.
    ///
    /// # Control
    ///
    /// Never switches; blocks the thread while the kernel works.
    pub fn set_len(&self, len: u64) -> io::Result<()> {
        fs::File::from(self.fd.try_clone()?).set_len(len)
    }

    /// Whether aligned requests go past the page cache.
    pub fn is_direct(&self) -> bool {
        self.direct
    }

    /// What requests must be aligned to, to go past the page cache.
    pub fn alignment(&self) -> Alignment {
        self.alignment
    }

    /// One request; what direct I/O wants of it is for the message only.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline(always)]
    unsafe fn request(&self, operation: Operation, alignment: Alignment) -> io::Result<usize> {
        // SAFETY: the caller's promise.
        let result = unsafe { self.engine.perform(&operation) };
        if result < 0 { Err(explain(-result as i32, &operation, alignment)) } else { Ok(result as usize) }
    }

    /// One request, through the page cache if it is not aligned for direct I/O.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    unsafe fn transfer(&self, opcode: Opcode, addr: u64, len: usize, offset: u64) -> io::Result<usize> {
        let (fd, alignment) = if self.goes_direct(addr, offset | len as u64) {
            (&self.fd, self.alignment)
        } else {
            (self.cached()?, Alignment::ANY)
        };
        let operation = Operation { opcode, fd: fd.as_raw_fd(), addr, len: len as u64, offset };
        // SAFETY: the caller's promise.
        unsafe { self.request(operation, alignment) }
    }

    /// Whether a request for a buffer at `addr`, with an offset and length (or several, or-ed), goes to `fd` as it is:
    /// direct I/O takes it, or there is no other way.
    #[inline]
    fn goes_direct(&self, addr: u64, offsets: u64) -> bool {
        addr & self.memory_mask == 0 && offsets & self.offset_mask == 0 || !self.may_cache
    }

    /// Goes on until all is transferred, the file ends, or an error comes (rule E10).
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`].
    #[inline]
    unsafe fn transfer_all(&self, opcode: Opcode, addr: u64, len: usize, offset: u64) -> io::Result<usize> {
        if len == 0 {
            return Ok(0);
        }
        // SAFETY: the caller's promise.
        let done = unsafe { self.transfer(opcode, addr, len, offset) }?;
        if done == len {
            return Ok(len);
        }
        // SAFETY: the caller's promise.
        unsafe { self.transfer_rest(opcode, addr, len, offset, done) }
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
        let is_direct = self.goes_direct(addr, offset | len as u64);
        let mut last = done;
        while done < len && last > 0 {
            // A direct read that ends amid a block has met the end of the file, and could not go on from there.
            if opcode == Opcode::Read && is_direct && !done.is_multiple_of(self.alignment.offset) {
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

    /// Vectors in one request as long as it is aligned and complete; what is left over goes buffer by buffer.
    ///
    /// # Safety
    ///
    /// As [`Engine::transfer`], for each of `vectors`.
    unsafe fn transfer_vectors(
        &self,
        vectored: Opcode,
        single: Opcode,
        vectors: &[(u64, usize)],
        offset: u64,
    ) -> io::Result<usize> {
        let mut total = 0;
        for batch in vectors.chunks(libc::UIO_MAXIOV as usize) {
            let wanted: usize = batch.iter().map(|&(_, len)| len).sum();
            let at = offset + total as u64;
            let is_direct = batch.iter().all(|&(addr, len)| self.goes_direct(addr, at | len as u64));
            let mut done = 0;
            if wanted > 0 && is_direct {
                let iovecs: Vec<_> = batch
                    .iter()
                    .map(|&(addr, len)| libc::iovec { iov_base: addr as *mut libc::c_void, iov_len: len })
                    .collect();
                let (fd, addr, len) = (self.fd.as_raw_fd(), iovecs.as_ptr() as u64, iovecs.len() as u64);
                let operation = Operation { opcode: vectored, fd, addr, len, offset: at };
                // SAFETY: the caller's promise; the array outlives the call.
                done = unsafe { self.request(operation, self.alignment) }?;
                // As in `transfer_rest`: it has met the end of the file.
                if vectored == Opcode::ReadVectored && done < wanted && !done.is_multiple_of(self.alignment.offset) {
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

    fn sync(&self, opcode: Opcode) -> Operation {
        Operation { opcode, fd: self.fd.as_raw_fd(), addr: 0, len: 0, offset: 0 }
    }

    /// The file through the page cache.
    #[cold]
    fn cached(&self) -> io::Result<&OwnedFd> {
        if self.cached.get().is_none() {
            // Opened anew by its descriptor: a duplicate would share the O_DIRECT flag.
            let path = format!("/proc/self/fd/{}\0", self.fd.as_raw_fd());
            // SAFETY: F_GETFL takes no pointers; `path` ends with a zero byte; the new descriptor is ours alone.
            let fd = unsafe {
                let flags = libc::fcntl(self.fd.as_raw_fd(), libc::F_GETFL);
                let keep = libc::O_ACCMODE | libc::O_APPEND | libc::O_SYNC | libc::O_DSYNC;
                let fd = libc::open(path.as_ptr().cast(), flags & keep | libc::O_CLOEXEC);
                if fd < 0 {
                    let error = io::Error::last_os_error();
                    return Err(io::Error::new(
                        error.kind(),
                        format!(
                            "an unaligned request needs the page cache, and the file cannot be opened again through \
                             /proc: {error}; align requests to {} bytes, or open it with Direct::Never",
                            self.alignment.offset
                        ),
                    ));
                }
                OwnedFd::from_raw_fd(fd)
            };
            let _ = self.cached.set(fd);
        }
        Ok(self.cached.get().expect("set above"))
    }
}

/// What the file system says that direct I/O wants (`statx`, Linux 6.1).
fn direct_alignment(fd: &OwnedFd) -> io::Result<Alignment> {
    // SAFETY: both structures are plain data for which zero is valid, and the kernel fills them; the path is an empty
    // string, so that the descriptor itself is meant.
    let (stat, fs) = unsafe {
        let mut stat: libc::statx = std::mem::zeroed();
        let mut fs: libc::statfs = std::mem::zeroed();
        let raw = fd.as_raw_fd();
        if libc::statx(raw, c"".as_ptr(), libc::AT_EMPTY_PATH, libc::STATX_DIOALIGN, &mut stat) != 0
            || libc::fstatfs(raw, &mut fs) != 0
        {
            return Err(io::Error::last_os_error());
        }
        (stat, fs)
    };
    if stat.stx_mask & libc::STATX_DIOALIGN != 0 && stat.stx_dio_offset_align != 0 {
        return Ok(Alignment { memory: stat.stx_dio_mem_align as usize, offset: stat.stx_dio_offset_align as usize });
    }
    // tmpfs takes direct I/O at any alignment. Of others that do not tell, a page is the most that is ever asked for.
    Ok(if fs.f_type == libc::TMPFS_MAGIC { Alignment::ANY } else { Alignment { memory: 4096, offset: 4096 } })
}

impl AsFd for File {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::fmt::Debug for File {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("File").field("fd", &self.fd).field("direct", &self.direct).finish_non_exhaustive()
    }
}
