//! Opening an image by its path: which format it has, and what it is written on top of, to the chain's end.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use coralio_aio::{AlignedBuf, Direct, File};

use crate::error::{about, damaged, unsupported};
use crate::image::Image;
use crate::qcow2::{Backing, MAGIC, Qcow2};
use crate::raw::Raw;

/// Images on top of each other, at most. A chain that has more has a loop, or reads like one.
const DEEPEST: usize = 32;

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
        about(path.display(), open_file(path, &Options::default()).and_then(|file| probe(&file)))
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
}

/// Opens an image, and what it is written on top of.
///
/// # Errors
///
/// What the kernel says; `InvalidData` where the image's tables cannot be; `Unsupported`, by name, where it has what this
/// program has not; each with the path.
///
/// # Panics
///
/// Outside a context.
///
/// # Control
///
/// May yield.
pub fn open(path: impl AsRef<Path>, options: &Options) -> io::Result<Rc<dyn Image>> {
    open_above(path.as_ref(), options, &mut Vec::new())
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
        let path = path.as_ref();
        about(
            path.display(),
            open_file(path, options).and_then(|file| open_qcow2(file, path, options, &mut Vec::new())),
        )
    }
}

fn open_file(path: &Path, options: &Options) -> io::Result<File> {
    File::options().read(true).write(options.write).direct(options.direct).open(path)
}

/// `chain` has the paths of those that are written on top of this one.
fn open_above(path: &Path, options: &Options, chain: &mut Vec<PathBuf>) -> io::Result<Rc<dyn Image>> {
    let file = open_file(path, options)?;
    let opened = || -> io::Result<Rc<dyn Image>> {
        let format = match options.format {
            Some(format) => format,
            None => probe(&file)?,
        };
        Ok(match format {
            Format::Raw => Rc::new(Raw::new(file, options.write)?),
            Format::Qcow2 => Rc::new(open_qcow2(file, path, options, chain)?),
        })
    };
    about(path.display(), opened())
}

fn probe(file: &File) -> io::Result<Format> {
    let mut start = AlignedBuf::new(512, 512);
    let had = file.read_at(&mut start, 0)?;
    Ok(if start[..had].starts_with(&MAGIC) { Format::Qcow2 } else { Format::Raw })
}

fn open_qcow2(file: File, path: &Path, options: &Options, chain: &mut Vec<PathBuf>) -> io::Result<Qcow2> {
    let header = Qcow2::header(&file)?;
    let backing = match &header.backing {
        None => None,
        Some(backing) => {
            chain.push(path.to_path_buf());
            Some(open_backing(backing, path, options, chain)?)
        }
    };
    Qcow2::start(Rc::new(file), &header, backing, options.write)
}

fn open_backing(
    backing: &Backing,
    above: &Path,
    options: &Options,
    chain: &mut Vec<PathBuf>,
) -> io::Result<Rc<dyn Image>> {
    let name = backing.name.as_str();
    let name = name.strip_prefix("file:").unwrap_or(name);
    // A name with a colon before the first slash is an address.
    if name.split('/').next().is_some_and(|start| start.contains(':')) {
        return Err(unsupported(format!("its backing file is \"{}\", which is no path", name.escape_debug())));
    }
    let format = match backing.format.as_deref() {
        None => None,
        Some(name) => Some(Format::named(name).ok_or_else(|| {
            unsupported(format!("its backing file has the format \"{}\"; this has raw and qcow2", name.escape_debug()))
        })?),
    };
    let path = above.parent().unwrap_or(Path::new("")).join(name);
    if chain.contains(&path) {
        return Err(damaged(format!("its backing file is {}, which is written on top of it: a loop", path.display())));
    }
    if chain.len() >= DEEPEST {
        return Err(unsupported(format!(
            "it is the {DEEPEST}th image on top of another: merge some, or look for a loop"
        )));
    }
    open_above(&path, &Options { write: false, format, ..*options }, chain)
}
