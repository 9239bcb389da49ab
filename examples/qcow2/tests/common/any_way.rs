//! An image used in every way, whatever it is: each call ends with data or an error, and keeps what [`Image`] promises. For
//! the tests of spoiled images, and for the fuzz targets.
#![allow(dead_code, unreachable_pub)] // each of them uses some of it

use std::io;
use std::path::Path;

use coralio_qcow2::{Extent, Format, Image, Options, Zeroes, open};

/// The most memory that an image may take: the largest tables that a header may ask for, and room for the rest.
pub const MOST_MEMORY: usize = 80 << 20;

/// What is read from front to back of a disk, which may claim to have exabytes.
const LOOKED_THROUGH: u64 = 128 << 10;
const STEPS: usize = 12;
/// The smallest cluster.
const CLUSTER: u64 = 512;

/// Numbers below a bound: what is done is up to them.
pub type Choose<'a> = &'a mut dyn FnMut(u64) -> u64;

/// Opens, reads, writes, flushes and closes the image at `path`.
pub fn use_it(path: &Path, choose: Choose<'_>, write: bool) -> io::Result<()> {
    let image = open(path, &Options { write, format: Some(Format::Qcow2), ..Options::default() })?;
    // An error is an answer, too.
    _ = look_through(&*image);
    for _ in 0..STEPS {
        _ = step(&*image, choose, write);
    }
    image.flush()
}

/// Reads the first part of the disk, extent by extent.
fn look_through(image: &dyn Image) -> io::Result<()> {
    let end = image.len().min(LOOKED_THROUGH);
    let mut buf = vec![0; end as usize];
    let mut at = 0;
    while at < end {
        let extent = image.extent(at, end - at)?;
        assert!(0 < extent.len && extent.len <= end - at, "an extent of {} bytes", extent.len);
        let part = &mut buf[..extent.len as usize];
        if image.read_at(part, at).is_ok() && extent.zero {
            assert!(*part == vec![0; part.len()], "{extent:?} at {at} does not read as zeroes");
        }
        at += extent.len;
    }
    image.read_at(&mut buf, 0)
}

fn step(image: &dyn Image, choose: Choose<'_>, write: bool) -> io::Result<()> {
    let size = image.len();
    // Mostly where the image has something.
    let offset = if choose(4) == 0 { choose(size.max(1)) } else { choose(size.clamp(1, 100_000)) };
    let mut buf = vec![0; (1 + choose(20_000)).min(size - offset) as usize];
    let len = buf.len() as u64;
    match choose(if write { 7 } else { 2 }) {
        0 => image.read_at(&mut buf, offset),
        1 => image.extent(offset, size - offset).map(|Extent { len, .. }| assert!(len > 0 || size == offset)),
        2 => image.write_at(&buf, offset),
        3 => image.discard(offset, len * 4 % (size - offset + 1)),
        4 => image.write_zeroes(offset, len, Zeroes { keep_allocated: choose(2) == 0, fast: choose(2) == 0 }),
        5 => {
            // Within one cluster: two may be the same one in an image that is wrong.
            buf.truncate((CLUSTER - offset % CLUSTER).min(len) as usize);
            buf.fill(0xa5);
            image.write_at(&buf, offset)?;
            let mut found = vec![0; buf.len()];
            image.read_at(&mut found, offset)?;
            assert!(found == buf, "what was written at {offset} is not read back");
            Ok(())
        }
        _ => image.flush(),
    }
}
