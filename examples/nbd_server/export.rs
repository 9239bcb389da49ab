//! What is served: images by name; and what is told of them before anybody has one.

use std::io;
use std::path::Path;
use std::rc::Rc;

use coralio_aio::File;
use coralio_qcow2::{Image, Raw};

use crate::options::{Named, Options};

/// An image that a thread serves.
pub struct Export {
    pub image: Box<dyn Image>,
    listing: Listing,
}

/// What clients are told of an export.
#[derive(Clone, Debug)]
pub struct Listing {
    pub name: String,
    pub size: u64,
    pub read_only: bool,
    /// A flush of one connection is one of all.
    pub many_may_write: bool,
    /// What requests should be multiples of, in bytes.
    pub preferred: u32,
    /// It is one image in the memory of one thread, the first.
    pub on_one_thread: bool,
}

/// All exports, in the order of the command line. The first one is also the one without a name.
#[derive(Clone, Debug)]
pub struct Catalog(pub Vec<Listing>);

impl Catalog {
    pub fn of(exports: &[Rc<Export>]) -> Catalog {
        Catalog(exports.iter().map(|export| export.listing.clone()).collect())
    }

    pub fn find(&self, name: &str) -> Option<(usize, &Listing)> {
        let named = self.0.iter().enumerate().find(|(_, listing)| listing.name == name);
        named.or_else(|| self.0.first().filter(|_| name.is_empty()).map(|first| (0, first)))
    }
}

/// Opens all of them, for this thread.
pub fn open_all(options: &Options) -> Result<Vec<Rc<Export>>, String> {
    options.exports().into_iter().map(|named| open(&named, options).map(Rc::new)).collect()
}

fn open(Named { name, path }: &Named, options: &Options) -> Result<Export, String> {
    let say = |error: io::Error| match error.kind() {
        io::ErrorKind::PermissionDenied => format!("{error}; --read-only needs less"),
        _ => error.to_string(),
    };
    let how = File::options().read(true).write(!options.read_only).direct(options.direct());
    let file = how.open(path).map_err(say)?;
    refuse_other_formats(&file, path)?;
    let preferred = file.alignment().offset.max(4096) as u32;
    let image = Raw::new(file, !options.read_only).map_err(say)?;
    let listing = Listing {
        name: name.clone(),
        size: image.len(),
        read_only: options.read_only,
        many_may_write: true,
        preferred,
        on_one_thread: false,
    };
    Ok(Export { image: Box::new(image), listing })
}

/// Served as raw, a qcow2 image would be overwritten by its first writer.
fn refuse_other_formats(file: &File, path: &Path) -> Result<(), String> {
    let mut magic = [0; 4];
    let read = file.read_at(&mut magic, 0).map_err(|error| format!("{}: {error}", path.display()))?;
    if read == magic.len() && magic == *b"QFI\xfb" {
        return Err(format!("{}: is a qcow2 image, which this server does not serve", path.display()));
    }
    Ok(())
}
