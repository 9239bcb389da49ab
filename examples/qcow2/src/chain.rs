//! An image and its backing chain. The chain is followed down first, and its images are then
//! started from the bottom up, so opening a long chain takes no more stack than opening a short
//! one.

use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use coralio::File;

use crate::error::{about, damaged, unsupported};
use crate::image::Image;
use crate::lock::Lock;
use crate::open::{Format, Options, open_file, probe};
use crate::qcow2::{Backing, Header, Qcow2};
use crate::raw::Raw;

/// Maximum length of a chain. A longer one is likely a loop, and each image takes stack to read.
const DEEPEST: usize = 32;

/// The qcow2 images, topmost first, and the raw image at the bottom if there is one.
pub(crate) struct Chain {
    levels: Vec<Level>,
    base: Option<Rc<dyn Image>>,
}

struct Level {
    path: PathBuf,
    file: File,
    lock: Option<Lock>,
    header: Header,
}

/// The path of a backing image, and its format if the header gives one.
type Below = (PathBuf, Option<Format>);

impl Level {
    fn start(self, backing: Option<Rc<dyn Image>>, write: bool) -> io::Result<Qcow2> {
        about(self.path.display(), Qcow2::start(Rc::new(self.file), self.lock, &self.header, backing, write))
    }
}

impl Chain {
    /// Opens the files and reads the headers.
    pub(crate) fn follow(path: &Path, options: &Options, mut format: Option<Format>) -> io::Result<Chain> {
        let mut chain = Chain { levels: Vec::new(), base: None };
        let mut next = Some(path.to_path_buf());
        while let Some(path) = next.take() {
            let options = Options { write: options.write && chain.levels.is_empty(), ..*options };
            let file = open_file(&path, &options)?;
            let below = about(path.display(), chain.add(&path, file, format, &options))?;
            (next, format) = below.map_or((None, None), |(path, format)| (Some(path), format));
        }
        Ok(chain)
    }

    /// Adds an image to the chain. Returns its backing image.
    fn add(&mut self, path: &Path, file: File, format: Option<Format>, options: &Options) -> io::Result<Option<Below>> {
        let format = match format {
            Some(format) => format,
            None => probe(&file)?,
        };
        // Lock first: another program may be changing the file.
        let lock = options.lock.then(|| Lock::take(path, format, options.write)).transpose()?;
        if format == Format::Raw {
            self.base = Some(Rc::new(Raw::open(file, lock, options.write)?));
            return Ok(None);
        }
        let header = Qcow2::header(&file)?;
        let below = header.backing.as_ref().map(|backing| below(backing, path)).transpose()?;
        self.levels.push(Level { path: path.to_path_buf(), file, lock, header });
        let Some((path, _)) = &below else { return Ok(None) };
        if self.levels.iter().any(|level| level.path == *path) {
            let path = path.display();
            return Err(damaged(format!(
                "its backing file is {path}, which has this image in its own backing chain: a loop"
            )));
        }
        if self.levels.len() >= DEEPEST {
            let message = format!("its backing chain is longer than {DEEPEST} images");
            return Err(unsupported(format!("{message}: merge some images, or look for a loop")));
        }
        Ok(below)
    }

    /// Starts all images of the chain.
    pub(crate) fn open(mut self, write: bool) -> io::Result<Rc<dyn Image>> {
        if self.levels.is_empty() {
            return Ok(self.base.take().expect("a chain has at least one image"));
        }
        Ok(Rc::new(self.open_top(write)?))
    }

    /// Starts all images of a chain whose topmost image is qcow2.
    pub(crate) fn open_top(self, write: bool) -> io::Result<Qcow2> {
        let Chain { mut levels, mut base } = self;
        while levels.len() > 1 {
            let level = levels.pop().expect("the chain has more than one image");
            base = Some(Rc::new(level.start(base, false)?));
        }
        levels.pop().expect("the top image is qcow2").start(base, write)
    }
}

fn below(backing: &Backing, above: &Path) -> io::Result<Below> {
    let name = backing.name.as_str();
    let name = name.strip_prefix("file:").unwrap_or(name);
    // A colon before the first slash makes the name an address.
    if name.split('/').next().is_some_and(|start| start.contains(':')) {
        return Err(unsupported(format!("its backing file is \"{}\", which is not a path", name.escape_debug())));
    }
    let format = match backing.format.as_deref() {
        None => None,
        Some(name) => Some(Format::named(name).ok_or_else(|| {
            unsupported(format!(
                "its backing file has the unsupported format \"{}\"; must be raw or qcow2",
                name.escape_debug()
            ))
        })?),
    };
    Ok((above.parent().unwrap_or(Path::new("")).join(name), format))
}
