//! Exercises an image in all ways, even if it is malformed: each call returns data or an error, and
//! upholds the contract of [`Image`]. For the tests of malformed images and the fuzz targets.
#![allow(dead_code, unreachable_pub)] // not all users need everything

use std::io;
use std::path::Path;

use coralio_qcow2::{Extent, Format, Image, Options, Zeroes, open};

/// The maximum memory for an image: the largest tables that a header may request, and some margin.
pub const MAX_MEMORY: usize = 80 << 20;

/// Number of bytes to read from the start of the disk, whose size may be exabytes.
const LOOKED_THROUGH: u64 = 128 << 10;
const STEPS: usize = 12;
/// The minimum cluster size.
const CLUSTER: u64 = 512;

/// Returns numbers below a bound, which choose the operations.
pub type Choose<'a> = &'a mut dyn FnMut(u64) -> u64;

/// Opens, reads, writes, flushes and closes the image at `path`.
pub fn use_it(path: &Path, choose: Choose<'_>, write: bool) -> io::Result<()> {
    let image = open(path, &Options { write, format: Some(Format::Qcow2), ..Options::default() })?;
    // An error is a valid result.
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
    // Mostly near the start, where the image has data.
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
            // Within one cluster: in a malformed image, two guest clusters may share a cluster of
            // the file.
            buf.truncate((CLUSTER - offset % CLUSTER).min(len) as usize);
            buf.fill(0xa5);
            image.write_at(&buf, offset)?;
            let mut found = vec![0; buf.len()];
            image.read_at(&mut found, offset)?;
            assert!(found == buf, "data written at {offset} is not read back");
            Ok(())
        }
        _ => image.flush(),
    }
}
