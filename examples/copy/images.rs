//! Copies from disk image to disk image: the content that a guest would read of SRC, not the bytes
//! of the file.
//!
//! Each coroutine takes the next nonzero block, reads it and writes it, as in a copy of files.
//! Finding the next block may read tables and suspend, so it is serialized by a [`CoMutex`].

use std::cell::Cell;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::time::Instant;

use coralio::sync::CoMutex;
use coralio::{AlignedBuf, File};
use coralio_qcow2::{CreateOptions, Format, Image, Qcow2, open};
use indicatif::BinaryBytes;

use crate::job::check_signals;
use crate::join_all::{FirstError, join_all};
use crate::options::Options;
use crate::temp_file::TempFile;

/// The state that the coroutines share.
struct Disks {
    source: Rc<dyn Image>,
    target: Rc<dyn Image>,
    block_size: u64,
    /// The offset at which to look for the next block.
    next: CoMutex<u64>,
    bytes: Cell<u64>,
    first_error: FirstError,
}

impl Disks {
    /// Returns the offset and length of the next nonzero block.
    fn next_block(&self) -> io::Result<Option<(u64, usize)>> {
        let mut next = self.next.lock();
        while *next < self.source.len() && !self.first_error.is_there() {
            check_signals()?;
            let offset = *next;
            let extent = self.source.extent(offset, self.source.len() - offset)?;
            // End at a block boundary of the disk, so that the requests are aligned.
            let len = extent.len.min(self.block_size - offset % self.block_size);
            *next += if extent.zero { extent.len } else { len };
            if !extent.zero {
                return Ok(Some((offset, len as usize)));
            }
        }
        Ok(None)
    }

    fn copy_blocks(&self) -> io::Result<()> {
        let mut buf = AlignedBuf::new(self.block_size as usize, 4096);
        while let Some((offset, len)) = self.next_block()? {
            let data = &mut buf[..len];
            self.source.read_at(data, offset)?;
            self.target.write_at(data, offset)?;
            self.bytes.set(self.bytes.get() + len as u64);
        }
        Ok(())
    }
}

/// Copies the disk in `src` to a new image, which becomes `dst` only when it is complete.
pub fn copy(src: &Path, dst: &Path, mode: u32, options: &Options) -> Result<String, String> {
    let clock = Instant::now();
    let (from, to) = (options.from.unwrap_or(Format::Raw), options.to.unwrap_or(Format::Raw));
    // The target is not locked, because no other program knows the draft.
    let how =
        |write, format| coralio_qcow2::Options { write, direct: options.direct(), format: Some(format), lock: !write };
    let source = open(src, &how(false, from)).map_err(|error| error.to_string())?;
    let draft = TempFile::new(dst)?;
    let say = |error: io::Error| format!("{} to {}: {error}", src.display(), dst.display());

    let file = File::options().write(true).open(draft.path()).map_err(say)?;
    match to {
        Format::Raw => file.set_len(source.len()),
        Format::Qcow2 => Qcow2::create_in(&file, &CreateOptions::new(source.len())),
    }
    .map_err(say)?;
    let target = open(draft.path(), &how(true, to)).map_err(say)?;
    let disks = Rc::new(Disks {
        source,
        target,
        block_size: options.block_size,
        next: CoMutex::new(0),
        bytes: Cell::new(0),
        first_error: FirstError::default(),
    });
    let coroutines = disks.source.len().div_ceil(options.block_size).min(options.depth.into());
    join_all(coroutines, &disks, |disks| &disks.first_error, Disks::copy_blocks).map_err(say)?;
    disks.target.flush().map_err(say)?;
    draft.set_mode(mode).map_err(say)?;
    file.sync_all().map_err(say)?;
    draft.publish()?;
    let (len, bytes, took) = (disks.source.len(), disks.bytes.get(), clock.elapsed().as_secs_f64());
    let holes = if len > bytes { format!(" ({} of zeroes)", BinaryBytes(len - bytes)) } else { String::new() };
    Ok(format!(
        "copied a disk of {}{holes} from {} to {} in {took:.2} s: {:.0} MB/s\n",
        BinaryBytes(len),
        from.name(),
        to.name(),
        bytes as f64 / took / 1e6
    ))
}
