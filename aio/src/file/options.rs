//! Opening files: direct or through the page cache, and the alignment that requests then need.

#![allow(unsafe_code)]

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use coralio_runtime::explained;

use crate::backend::simulated::Access;
use crate::driver::Driver;
use crate::driver::unblock::unblock;
use crate::file::error::cannot_open;

use super::{File, served_here};

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

impl OpenOptions {
    setters! {
        /// Opens for reading.
        read,
        /// Opens for writing.
        write,
        /// Creates the file if it does not exist.
        create,
        /// Creates the file; fails if it exists.
        create_new,
        /// Truncates the file to length 0.
        truncate,
    }

    pub(super) fn new() -> OpenOptions {
        OpenOptions { access: Access::default(), mode: 0o666, direct: Direct::Auto }
    }

    /// Sets the permissions of a newly created file, before the umask is applied. Default 0o666.
    pub fn mode(mut self, mode: u32) -> OpenOptions {
        self.mode = mode;
        self
    }

    /// Sets whether requests bypass the page cache. Default [`Direct::Auto`].
    pub fn direct(mut self, direct: Direct) -> OpenOptions {
        self.direct = direct;
        self
    }

    /// Opens the file for this thread's context.
    ///
    /// # Errors
    ///
    /// As `std::fs::OpenOptions::open`. With [`Direct::Always`]: `InvalidInput` if the file system
    /// does not support direct I/O. The error of creating the context's engine, if this is its
    /// first file.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// May yield, as [`unblock`]; outside a coroutine it blocks the thread during the open.
    pub fn open(&self, path: impl AsRef<Path>) -> io::Result<File> {
        let (options, direct, path) = (self.to_std(), self.direct, path.as_ref());
        let driver = Driver::current();
        if let Some((driver, backend)) = driver.as_ref().and_then(|driver| Some((driver, driver.simulated.clone()?))) {
            let access = Access { direct: direct != Direct::Never, ..self.access };
            let opened = backend.files().open(path, access).map_err(|error| cannot_open(error, path));
            return opened.map(|number| File::simulated(driver, backend, number, direct));
        }
        let owned = path.to_path_buf();
        let file = unblock(move || open_by(&options, direct, &owned))?;
        file.and_then(|file| File::new(file, self.direct != Direct::Always, served_here))
            .map_err(|error| cannot_open(error, path))
    }
}

impl OpenOptions {
    fn to_std(&self) -> fs::OpenOptions {
        let Access { read, write, create, create_new, truncate, direct: _ } = self.access;
        let mut options = fs::OpenOptions::new();
        options.read(read).write(write).create(create).create_new(create_new).truncate(truncate).mode(self.mode);
        options
    }
}

/// Opens the file; blocks the thread.
fn open_by(options: &fs::OpenOptions, direct: Direct, path: &Path) -> io::Result<fs::File> {
    let open = |flags| options.clone().custom_flags(flags).open(path);
    match direct {
        Direct::Never => open(0),
        Direct::Always => open(libc::O_DIRECT).map_err(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => {
                let text = "its file system does not support direct I/O; use Direct::Auto or Direct::Never";
                explained(error.kind(), text, error)
            }
            _ => error,
        }),
        // The failed open may have created the file, so the second must not require it to be new.
        Direct::Auto => open(libc::O_DIRECT).or_else(|error| match error.raw_os_error() {
            Some(libc::EINVAL) => options.clone().create_new(false).open(path),
            _ => Err(error),
        }),
    }
}

/// Returns the file system's alignment requirement for direct I/O (`statx`, Linux 6.1).
pub(super) fn direct_alignment(fd: &OwnedFd) -> io::Result<Alignment> {
    // SAFETY: both structures are plain data for which zero is valid, and the kernel fills them;
    // the path is an empty string, which refers to the descriptor itself.
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
        return Ok(Alignment { memory: stat.stx_dio_mem_align as usize, block: stat.stx_dio_offset_align as usize });
    }
    // tmpfs accepts direct I/O at any alignment. For other file systems without this information
    // assume a page, the largest requirement in use.
    Ok(if fs.f_type == libc::TMPFS_MAGIC { Alignment::ANY } else { Alignment { memory: 4096, block: 4096 } })
}
