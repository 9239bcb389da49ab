//! Opening files: direct or through the page cache, and the alignment that requests then need.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use coralio_runtime::{check_cancelled, explained};
use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, lstat, stat};

use crate::backend::simulated::Access;
use crate::driver::Driver;
use crate::driver::unblock::unblock;
use crate::file::error::cannot_open;

use super::inspect::Facts;
use super::open_cached::open_cached;
use super::{File, check_has_offsets, served_here};

/// Whether a file's requests bypass the page cache.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Direct {
    /// Direct if the file system and the request's offset and length allow it, otherwise through
    /// the page cache. Unaligned memory is copied through an aligned buffer. See [`File`] for
    /// details.
    #[default]
    Auto,
    /// Direct and without a copy, or an error.
    Always,
    /// Through the page cache.
    Never,
}

/// The alignment that direct I/O on a file requires, in bytes. Both are 1 if there is no
/// requirement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Alignment {
    /// Alignment of a buffer's address.
    pub memory: usize,
    /// Alignment of offsets and lengths.
    pub block: usize,
}

impl Alignment {
    pub(super) const ANY: Alignment = Alignment { memory: 1, block: 1 };
}

/// Options for opening a [`File`].
///
/// ```
/// use coralio::File;
/// use coralio::fs::Direct;
///
/// # fn main() -> std::io::Result<()> {
/// let path = std::env::temp_dir().join(format!("coralio-doc-{}", std::process::id()));
/// coralio::run(|| {
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
    access: Access,
    mode: u32,
    custom_flags: i32,
    direct: Direct,
}

/// Defines setters that mirror those of `std::fs::OpenOptions`, which has no getters.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        $($(#[$doc])*
        pub fn $name(mut self, $name: bool) -> OpenOptions {
            self.access.$name = $name;
            self
        })*
    };
}

impl Default for OpenOptions {
    fn default() -> OpenOptions {
        OpenOptions::new()
    }
}

impl OpenOptions {
    setters! {
        /// Opens for reading.
        read,
        /// Opens for writing.
        write,
        /// Opens for writing at the end: the kernel appends each write to the file, whatever its
        /// offset. Under [`Direct::Auto`] the file then uses the page cache, since its end is seldom
        /// aligned.
        append,
        /// Creates the file if it does not exist.
        create,
        /// Creates the file; fails if it exists.
        create_new,
        /// Truncates the file to length 0.
        truncate,
    }

    /// Creates options that request no access yet: set at least [`read`](Self::read),
    /// [`write`](Self::write) or [`append`](Self::append). Same as
    /// [`File::options`](crate::File::options).
    pub fn new() -> OpenOptions {
        OpenOptions { access: Access::default(), mode: 0o666, custom_flags: 0, direct: Direct::Auto }
    }

    /// Sets the permissions of a newly created file, before the umask is applied. Default 0o666.
    pub fn mode(mut self, mode: u32) -> OpenOptions {
        self.mode = mode;
        self
    }

    /// Sets additional flags for `open`, such as `O_NOFOLLOW`, `O_DSYNC` or `O_NOATIME`; those of the
    /// access mode are ignored.
    pub fn custom_flags(mut self, flags: i32) -> OpenOptions {
        self.custom_flags = flags & !libc::O_ACCMODE;
        self
    }

    /// Sets whether requests bypass the page cache. Default [`Direct::Auto`].
    pub fn direct(mut self, direct: Direct) -> OpenOptions {
        self.direct = direct;
        self
    }

    /// Opens the file for this thread's context.
    ///
    /// An open that would have to wait is made on the thread pool. The others take place immediately:
    /// those of an existing regular file whose path is in the kernel's cache, on a local file system
    /// (ext4, XFS, Btrfs, F2FS, bcachefs, tmpfs; Linux 6.8). The first open on each mount, and opens
    /// that create or truncate, go to the pool.
    ///
    /// # Errors
    ///
    /// As `std::fs::OpenOptions::open`. `IsADirectory`: the path is a directory, which std can open
    /// for reading. `InvalidInput`: the path is a FIFO, socket or terminal; the error is immediate,
    /// where std would wait. `InvalidInput` with [`Direct::Always`]: the file system does not
    /// support direct I/O. The error of creating the context's engine, if this is its first file.
    /// `Unsupported`: [`custom_flags`](Self::custom_flags) for a [simulated](mod@crate::simulate)
    /// file.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`]; outside a coroutine it blocks the thread during the open.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let path = path.as_ref();
        let driver = Driver::current();
        if let Some((driver, backend)) = driver.as_ref().and_then(|driver| Some((driver, driver.simulated.clone()?))) {
            let direct = self.effective_direct();
            let opened = match self.custom_flags {
                0 => {
                    let access = Access { direct: direct != Direct::Never, ..self.access };
                    backend.perform(|_| format!("open {}{access}", path.display()), |files| files.open(path, access))
                }
                flags => {
                    let why = format!("custom flags {flags:#x} have no meaning for a simulated file");
                    Err(io::Error::new(io::ErrorKind::Unsupported, why))
                }
            };
            let opened = opened.map_err(|error| cannot_open(error, path));
            return opened.map(|number| File::simulated(driver, backend, number, direct));
        }
        let opened = self.open_real(path).map_err(|error| cannot_open(error, path))?;
        let may_cache = self.direct != Direct::Always;
        File::new(opened, may_cache, served_here).map_err(|error| cannot_open(error, path))
    }

    fn open_real(&self, path: &Path) -> io::Result<Opened> {
        check_cancelled()?;
        let direct = self.effective_direct();
        if let Some(flags) = self.flags() {
            let flags = if direct == Direct::Never { flags } else { flags | OFlags::DIRECT };
            if let Some((fd, facts)) = open_cached(path, flags) {
                return Ok(Opened { fd, flags, facts });
            }
        }
        let (options, custom, owned) = (self.to_std(), self.custom_flags, path.to_path_buf());
        // An exclusive open creates a file, or fails.
        let may_exist = !self.access.create_new;
        unblock(move || {
            if may_exist {
                check_kind(&owned, custom & libc::O_NOFOLLOW == 0)?;
            }
            open_by(&options, custom, direct, &owned)
        })?
    }

    fn effective_direct(&self) -> Direct {
        if self.access.append && self.direct == Direct::Auto { Direct::Never } else { self.direct }
    }

    /// Returns the flags of an open that neither creates nor truncates.
    fn flags(&self) -> Option<OFlags> {
        let Access { read, write, append, create, create_new, truncate, direct: _ } = self.access;
        let mode = match (read, write || append) {
            _ if create || create_new || truncate => return None,
            (true, false) => OFlags::RDONLY,
            (false, true) => OFlags::WRONLY,
            (true, true) => OFlags::RDWR,
            (false, false) => return None,
        };
        let append = if append { OFlags::APPEND } else { OFlags::empty() };
        Some(mode | append | OFlags::from_bits_retain(self.custom_flags as u32))
    }

    fn to_std(&self) -> fs::OpenOptions {
        let Access { read, write, append, create, create_new, truncate, direct: _ } = self.access;
        let mut options = fs::OpenOptions::new();
        options.read(read).write(write).append(append).create(create).create_new(create_new).truncate(truncate);
        options.mode(self.mode);
        options
    }
}

/// A file that was opened, and inspected.
pub(super) struct Opened {
    pub(super) fd: OwnedFd,
    pub(super) flags: OFlags,
    pub(super) facts: Facts,
}

impl Opened {
    /// Inspects a file; may block.
    pub(super) fn new(fd: OwnedFd) -> io::Result<Opened> {
        let flags = fcntl_getfl(&fd)?;
        Facts::of(&fd).map(|facts| Opened { fd, flags, facts })
    }
}

/// Opens the file and inspects it. May block the thread, but does not wait for the other end of a
/// FIFO or the line of a terminal: those waits could be endless, and neither can be a `File`.
fn open_by(options: &fs::OpenOptions, custom: i32, direct: Direct, path: &Path) -> io::Result<Opened> {
    let open = |options: &fs::OpenOptions, flags| {
        let open = |flags| options.clone().custom_flags(custom | flags).open(path);
        open(flags | libc::O_NONBLOCK).or_else(|error| match error.raw_os_error() {
            // Another process has a lease on the file, and may write the file before this open.
            Some(libc::EWOULDBLOCK) => open(flags),
            _ => Err(error),
        })
    };
    let file = match direct {
        Direct::Never => open(options, 0),
        Direct::Always => open(options, libc::O_DIRECT).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => {
                let text = "its file system does not support direct I/O; use Direct::Auto or Direct::Never";
                explained(error.kind(), text, error)
            }
            _ => error,
        }),
        // The failed open may have created the file, so the second must not require it to be new.
        Direct::Auto => open(options, libc::O_DIRECT).or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => open(options.clone().create_new(false), 0),
            _ => Err(error),
        }),
    }?;
    let mut opened = Opened::new(file.into())?;
    if opened.flags.contains(OFlags::NONBLOCK) && custom & libc::O_NONBLOCK == 0 {
        opened.flags.remove(OFlags::NONBLOCK);
        fcntl_setfl(&opened.fd, opened.flags)?;
    }
    Ok(opened)
}

/// Fails if the path is that of a FIFO or socket: merely opening and closing a FIFO affects its
/// other end. Ignores other errors, which the open then reports.
fn check_kind(path: &Path, follows: bool) -> io::Result<()> {
    match if follows { stat(path) } else { lstat(path) } {
        Ok(found) => check_has_offsets(FileType::from_raw_mode(found.st_mode)),
        Err(_) => Ok(()),
    }
}
