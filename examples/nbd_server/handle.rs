//! Performs the requests of clients: each call runs in a coroutine as sequential code.

use std::io;

use coralio::yield_now;
use coralio_qcow2::{Image, Zeroes};

use crate::buffers::Buffer;
use crate::export::Export;
use crate::negotiate::Agreed;
use crate::protocol::{self, Command, MAX_BYTES, Request};
use crate::reply::Done;
use crate::sparse;

/// Buffer size of the cache command, in bytes.
const LOOKED_THROUGH: usize = 256 << 10;
/// Piece size of reads, writes and zeroing, in bytes: other requests run between the pieces.
const STEP: usize = 1 << 20;
const MAX_EXTENTS: usize = 4096;
/// Extents that are looked up before other requests run: each takes one or two system calls on the
/// loop's thread.
const EXTENTS_AT_ONCE: usize = 32;

/// Returns the memory that a request and its reply need, in bytes.
pub fn memory(request: &Request) -> usize {
    match request.command {
        Command::Read | Command::Write => Buffer::room(request.len.min(MAX_BYTES) as usize),
        Command::Cache => Buffer::room(LOOKED_THROUGH.min(request.len as usize)),
        // Twice, because a growing vector is copied.
        Command::BlockStatus if !request.one_extent() => 2 * size_of::<[u8; 8]>() * MAX_EXTENTS,
        _ => 0,
    }
}

/// Rejects requests that the export does not permit, and flags or ranges that the command does not
/// accept.
pub fn check(export: &Export, request: &Request, agreed: Agreed) -> io::Result<()> {
    let writes = matches!(request.command, Command::Write | Command::Trim | Command::WriteZeroes);
    if writes && export.is_read_only() {
        return Err(io::Error::new(io::ErrorKind::PermissionDenied, "the export is read-only"));
    }
    if request.has_stray_flags(agreed.structured) {
        return Err(refusal("the command does not support these flags"));
    }
    if request.command == Command::Flush && (request.offset, request.len) != (0, 0) {
        return Err(refusal("the offset and length of a flush must be 0"));
    }
    Ok(())
}

/// Performs a request. Other requests run while it waits for the disk.
pub fn handle(export: &Export, request: &Request, data: Option<Buffer>, agreed: Agreed) -> io::Result<Done> {
    let (image, offset, len) = (&*export.image, request.offset, u64::from(request.len));
    check(export, request, agreed)?;
    match (request.command, data) {
        (Command::Read, _) => {
            let len = checked(request.len)?;
            check_range(image, offset, request.len.into())?;
            if agreed.structured && len >= sparse::LEAST && !request.unbroken() {
                return sparse::read(image, offset, request.len);
            }
            let mut data = Buffer::new(len);
            read(image, &mut data, offset)?;
            return Ok(Done::Data(data));
        }
        (Command::Write, Some(data)) => write(image, &data, offset)?,
        (Command::Flush, _) => export.flush()?,
        (Command::Trim, _) => image.discard(offset, len)?,
        (Command::WriteZeroes, _) => {
            let how = Zeroes { keep_allocated: request.no_hole(), fast: request.fast_zero() };
            write_zeroes(image, offset, len, how)?;
        }
        (Command::Cache, _) => look_through(image, offset, len)?,
        (Command::BlockStatus, _) if agreed.base_allocation => return extents(image, request),
        (Command::BlockStatus, _) => return Err(refusal("base:allocation was not negotiated in the handshake")),
        (Command::Write | Command::Disconnect | Command::Other(_), _) => return Err(refusal("unknown command")),
    }
    if request.fua() {
        export.flush()?;
    }
    Ok(Done::Nothing)
}

/// Calls `step` with the offset and length of each piece of the range; lets other requests run
/// between pieces.
fn in_steps(offset: u64, len: u64, mut step: impl FnMut(u64, usize) -> io::Result<()>) -> io::Result<()> {
    let mut done = 0;
    loop {
        let piece = (len - done).min(STEP as u64);
        step(offset + done, piece as usize)?;
        done += piece;
        if done == len {
            return Ok(());
        }
        yield_now();
    }
}

/// Fills `data`, reading from `offset`.
pub fn read(image: &dyn Image, data: &mut [u8], offset: u64) -> io::Result<()> {
    in_steps(offset, data.len() as u64, |at, len| {
        let from = (at - offset) as usize;
        image.read_at(&mut data[from..from + len], at)
    })
}

/// Writes all of `data`.
pub fn write(image: &dyn Image, data: &[u8], offset: u64) -> io::Result<()> {
    check_range(image, offset, data.len() as u64)?;
    in_steps(offset, data.len() as u64, |at, len| {
        let from = (at - offset) as usize;
        image.write_at(&data[from..from + len], at)
    })
}

/// Zeroes the range in one fast operation if the image can, and otherwise piece by piece.
fn write_zeroes(image: &dyn Image, offset: u64, len: u64, how: Zeroes) -> io::Result<()> {
    match image.write_zeroes(offset, len, Zeroes { fast: true, ..how }) {
        Err(error) if error.kind() == io::ErrorKind::Unsupported && !how.fast => {
            in_steps(offset, len, |at, len| image.write_zeroes(at, len as u64, how))
        }
        done => done,
    }
}

/// Rejects a range beyond the end, with the same error as the image, before a part of it is
/// written.
pub fn check_range(image: &dyn Image, offset: u64, len: u64) -> io::Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= image.len() => Ok(()),
        _ => Err(refusal(&format!(
            "{len} bytes at {offset} reach beyond the end of the disk, which has {} bytes",
            image.len()
        ))),
    }
}

fn refusal(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// Returns the length if it is within the limit for one read.
fn checked(len: u32) -> io::Result<usize> {
    if len > MAX_BYTES { Err(refusal("more than 32 MiB at once")) } else { Ok(len as usize) }
}

/// Reads the range and discards the data: this fills a cache below the image and reports read
/// errors.
fn look_through(image: &dyn Image, offset: u64, len: u64) -> io::Result<()> {
    let mut data = Buffer::new(len.min(LOOKED_THROUGH as u64) as usize);
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(data.len() as u64) as usize;
        image.read_at(&mut data[..piece], offset + done)?;
        done += piece as u64;
        // A file system may complete every read without waiting.
        yield_now();
    }
    Ok(())
}

/// Returns the extents of the range in order, up to the maximum per reply.
fn extents(image: &dyn Image, request: &Request) -> io::Result<Done> {
    let most = if request.one_extent() { 1 } else { MAX_EXTENTS };
    let (mut offset, mut left) = (request.offset, u64::from(request.len));
    if left == 0 {
        return Err(refusal("block status of an empty range"));
    }
    let mut extents = Vec::new();
    while left > 0 && extents.len() < most {
        let extent = image.extent(offset, left)?;
        extents.push(protocol::extent(extent.len as u32, !extent.allocated, extent.zero));
        (offset, left) = (offset + extent.len, left - extent.len);
        if extents.len() % EXTENTS_AT_ONCE == 0 {
            yield_now();
        }
    }
    Ok(Done::Extents(extents))
}
