//! Exports: the images that are served, and the listing of them that clients see in the handshake.

use std::io;
use std::rc::Rc;

use coralio_qcow2::{Format, Image};

use crate::flushes::Flushes;
use crate::options::{Named, Options};

/// An image that a thread serves.
pub struct Export {
    pub image: Rc<dyn Image>,
    flushes: Flushes,
    listing: Listing,
}

impl Export {
    pub fn is_read_only(&self) -> bool {
        self.listing.read_only
    }

    /// Flushes the image, sharing the flush with other waiting requests.
    pub fn flush(&self) -> io::Result<()> {
        self.flushes.flush(&*self.image)
    }
}

/// The properties of an export that the handshake announces.
#[derive(Clone, Debug)]
pub struct Listing {
    pub name: String,
    /// The exact size in bytes, even if it is not a multiple of 512 (qemu-nbd rounds up, and reads
    /// zeroes behind the end).
    pub size: u64,
    pub read_only: bool,
    /// A flush on one connection covers the writes of all connections.
    pub many_may_write: bool,
    /// The image has metadata in memory, so only the first thread serves it.
    pub on_one_thread: bool,
}

/// All exports, in the order of the command line. The first is also the default, which has the
/// empty name.
#[derive(Clone, Debug)]
pub struct Catalog(pub Vec<Listing>);

impl Catalog {
    pub fn of(exports: &Exports) -> Catalog {
        Catalog(exports.iter().flatten().map(|export| export.listing.clone()).collect())
    }

    pub fn find(&self, name: &str) -> Option<(usize, &Listing)> {
        let named = self.0.iter().enumerate().find(|(_, listing)| listing.name == name);
        named.or_else(|| self.0.first().filter(|_| name.is_empty()).map(|first| (0, first)))
    }
}

/// The exports of one thread. An image with metadata in memory is open on the first thread only.
pub type Exports = Vec<Option<Rc<Export>>>;

/// Opens all exports on the first thread, and only the raw images on other threads.
pub fn open_all(options: &Options, is_first: bool) -> Result<Exports, String> {
    let open = |named: Named| {
        let format = options.format.map_or_else(|| Format::of(&named.path), Ok).map_err(|error| error.to_string())?;
        let is_ours = is_first || format == Format::Raw;
        is_ours.then(|| open(&named, format, options).map(Rc::new)).transpose()
    };
    options.exports().into_iter().map(open).collect()
}

fn open(Named { name, path }: &Named, format: Format, options: &Options) -> Result<Export, String> {
    let say = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => format!("{error}; or serve it with --read-only"),
        io::ErrorKind::ResourceBusy => format!("{error} (--no-lock)"),
        _ => error.to_string(),
    };
    let (write, direct, lock) = (!options.read_only, options.direct(), !options.no_lock);
    let how = coralio_qcow2::Options { write, direct, format: Some(format), lock };
    let image = coralio_qcow2::open(path, &how).map_err(say)?;
    let listing = Listing {
        name: name.clone(),
        size: image.len(),
        read_only: options.read_only,
        many_may_write: true,
        on_one_thread: format != Format::Raw,
    };
    Ok(Export { image, flushes: Flushes::default(), listing })
}
