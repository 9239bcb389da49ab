//! Opening an image by its path: how, and which format it has.

use std::fs;
use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::Path;
use std::rc::Rc;

use coralio_aio::{AlignedBuf, Direct, File};

use crate::chain::Chain;
use crate::error::{about, unsupported};
use crate::image::Image;
use crate::qcow2::{MAGIC, Qcow2};

/// What an image's bytes mean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The disk's bytes, one after the other.
    Raw,
    /// See [`Qcow2`].
    Qcow2,
}

impl Format {
    /// As on a command line, and in an image's header.
    pub fn name(self) -> &'static str {
        match self {
            Format::Raw => "raw",
            Format::Qcow2 => "qcow2",
        }
    }

    /// Which format a file has: qcow2, if it begins as such an image does.
    ///
    /// # Errors
    ///
    /// What the kernel says, with the path.
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
        // Its errors name the path.
        let file = open_file(path, &Options::default())?;
        about(path.display(), probe(&file))
    }

    /// As [`name`](Format::name) has it.
    pub fn named(name: &str) -> Option<Format> {
        [Format::Raw, Format::Qcow2].into_iter().find(|format| format.name() == name)
    }
}

/// How to open an image.
#[derive(Clone, Copy, Debug, Default)]
pub struct Options {
    /// For writing too. What it is written on top of is only read.
    pub write: bool,
    /// Past the page cache, or through it.
    pub direct: Direct,
    /// Without one, a file that begins as qcow2 images do is one, and all others are raw. Whoever can write a raw disk can
    /// make it begin like that: name the format of what you do not trust.
    pub format: Option<Format>,
    /// Locks each image of the chain, whatever its format, as long as it is open: one program
    /// writes an image, or any number read it. Other programs respect that if they lock as QEMU's
    /// do. A process may open a raw image for writing several times. Not on the simulated kernel,
    /// which has no other programs.
    pub lock: bool,
}

/// Opens an image, and what it is written on top of.
///
/// # Errors
///
/// What the kernel says; `ResourceBusy` if [another program's locks](Options::lock) are against it; `InvalidData` where the
/// image's tables cannot be; `Unsupported`, by name, where it has what this program has not; each with the path.
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
    /// As [`open`], of a file that must be a qcow2 image.
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

/// Opens a file that can be an image: to open others may take for ever, or do something. An image says by itself what it is
/// written on top of, and may name anything.
pub(crate) fn open_file(path: &Path, options: &Options) -> io::Result<File> {
    // What is not there, or not to be looked at, is for the opening to tell.
    if let Ok(kind) = fs::metadata(path).map(|metadata| metadata.file_type())
        && !(kind.is_file() || kind.is_block_device())
    {
        return Err(unsupported(format!(
            "{}: an image is a file or a block device, and this is neither",
            path.display()
        )));
    }
    File::options().read(true).write(options.write).direct(options.direct).open(path)
}

/// Which format an open file has.
pub(crate) fn probe(file: &File) -> io::Result<Format> {
    let mut start = AlignedBuf::new(512, 512);
    let had = file.read_at(&mut start, 0)?;
    Ok(if start[..had].starts_with(&MAGIC) { Format::Qcow2 } else { Format::Raw })
}
