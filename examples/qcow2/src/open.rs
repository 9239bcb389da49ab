//! Opening an image by path, and detecting its format.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::rc::Rc;

use coralio::fs::Direct;
use coralio::{AlignedBuf, File};

use crate::chain::Chain;
use crate::error::{about, unsupported};
use crate::image::Image;
use crate::qcow2::{MAGIC, Qcow2};

/// The format of an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The bytes of the disk without metadata.
    Raw,
    /// See [`Qcow2`].
    Qcow2,
}

impl Format {
    /// Returns the name used on command lines and in image headers.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }

    /// Detects the format of a file: qcow2 if it begins with a qcow2 header, otherwise raw.
    ///
    /// # Errors
    ///
    /// The kernel's, with the path.
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn of(path: impl AsRef<Path>) -> io::Result<Format> {
        let path = path.as_ref();
        // Errors of `open_file` contain the path.
        let file = open_file(path, &Options::default())?;
        about(path.display(), probe(&file))
    }

    /// Returns the format with this [`name`](Format::name).
    pub fn named(name: &str) -> Option<Format> {
        [Format::Raw, Format::Qcow2].into_iter().find(|format| format.name() == name)
    }
}

/// How to open an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// Opens the image for writing. Backing images are always opened for reading only.
    pub write: bool,
    /// Whether to bypass the page cache.
    pub direct: Direct,
    /// The format; `None` detects it: a file that begins with a qcow2 header is qcow2, any other is
    /// raw. A program that can write a raw disk can write such a header, so give the format of
    /// untrusted images.
    pub format: Option<Format>,
    /// Locks each image of the chain, regardless of its format, as long as it is open: one program
    /// can write an image, or any number can read it. Programs that use QEMU's locking protocol
    /// respect the locks. A process may open a raw image for writing several times. Not for the
    /// simulated backend, which has no other programs.
    pub lock: bool,
}

/// Opens an image and its backing chain.
///
/// # Errors
///
/// The kernel's; `ResourceBusy` if [locks of another program](Options::lock) conflict;
/// `InvalidData` if the metadata is invalid; `Unsupported`, with the name of the feature, if the
/// image needs an unsupported one. Each error contains the path.
///
/// # Panics
///
/// Outside a context.
///
/// # Control
///
/// May yield.
pub fn open(path: impl AsRef<Path>, options: &Options) -> io::Result<Rc<dyn Image>> {
    Chain::follow(path.as_ref(), options, options.format)?.open(options.write)
}

impl Qcow2 {
    /// Like [`open`], for a file that must be a qcow2 image.
    ///
    /// # Errors
    ///
    /// As [`open`].
    ///
    /// # Panics
    ///
    /// Outside a context.
    ///
    /// # Control
    ///
    /// May yield.
    pub fn open(path: impl AsRef<Path>, options: &Options) -> io::Result<Qcow2> {
        Chain::follow(path.as_ref(), options, Some(Format::Qcow2))?.open_top(options.write)
    }
}

/// Opens a file only if it can be an image: opening other files may block forever or have side
/// effects, and an image can name any path as its backing file.
pub(crate) fn open_file(path: &Path, options: &Options) -> io::Result<File> {
    // If the metadata is not accessible, `open` below reports the error.
    if let Ok(kind) = fs::metadata(path).map(|metadata| metadata.file_type())
        && !(kind.is_file() || kind.is_block_device())
    {
        return Err(unsupported(format!(
            "{}: is neither a regular file nor a block device; choose one of these",
            path.display()
        )));
    }
    File::options().read(true).write(options.write).direct(options.direct).open(path)
}

/// Detects the format of an open file.
pub(crate) fn probe(file: &File) -> io::Result<Format> {
    let mut start = AlignedBuf::new(512, 512);
    let had = file.read_at(&mut start, 0)?;
    Ok(if start[..had].starts_with(&MAGIC) { Format::Qcow2 } else { Format::Raw })
}
