//! What a client asks for, done: each call is a coroutine, and plain code.

use std::io;

use coralio_qcow2::{Image, Zeroes};

use crate::buffers::Buffer;
use crate::negotiate::Agreed;
use crate::protocol::{self, Command, MOST_BYTES, Request};
use crate::reply::Done;
use crate::sparse;

/// What is read through at a time, in bytes.
const LOOKED_THROUGH: usize = 256 << 10;
const MOST_EXTENTS: usize = 4096;

/// How much memory a request and its reply take, in bytes.
pub fn memory(request: &Request) -> usize {
    match request.command {
        Command::Read | Command::Write => Buffer::room(request.len.min(MOST_BYTES) as usize),
        Command::Cache => Buffer::room(LOOKED_THROUGH.min(request.len as usize)),
        // What grows is in memory twice for a while.
        Command::BlockStatus if !request.one_extent() => 2 * size_of::<[u8; 8]>() * MOST_EXTENTS,
        _ => 0,
    }
}

/// Does what a client asks for. Where it waits for the disk, other requests run.
pub fn perform(image: &dyn Image, request: &Request, data: Option<Buffer>, agreed: Agreed) -> io::Result<Done> {
    let (offset, len) = (request.offset, u64::from(request.len));
    if request.has_stray_flags() {
        return Err(refusal("the command does not have these flags"));
    }
    match (request.command, data) {
        (Command::Read, _) => {
            let len = checked(request.len)?;
            if agreed.structured && len >= sparse::LEAST && !request.unbroken() {
                return sparse::read(image, offset, request.len);
            }
            let mut data = Buffer::new(len);
            image.read_at(&mut data, offset)?;
            return Ok(Done::Data(data));
        }
        (Command::Write, Some(data)) => image.write_at(&data, offset)?,
        (Command::Flush, _) => image.flush()?,
        (Command::Trim, _) => image.discard(offset, len)?,
        (Command::WriteZeroes, _) => {
            let how = Zeroes { keep_allocated: request.no_hole(), fast: request.fast_zero() };
            image.write_zeroes(offset, len, how)?;
        }
        (Command::Cache, _) => look_through(image, offset, len)?,
        (Command::BlockStatus, _) if agreed.base_allocation => return extents(image, request),
        (Command::BlockStatus, _) => return Err(refusal("base:allocation was not asked for in the handshake")),
        (Command::Write | Command::Disconnect | Command::Other(_), _) => return Err(refusal("no such command")),
    }
    if request.fua() {
        image.flush()?;
    }
    Ok(Done::Nothing)
}

fn refusal(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why)
}

/// A length that may be read at once.
fn checked(len: u32) -> io::Result<usize> {
    if len > MOST_BYTES { Err(refusal("more than 32 MiB at once")) } else { Ok(len as usize) }
}

/// Reads, and forgets: what has a cache beneath it has the range then, and what cannot be read is told.
fn look_through(image: &dyn Image, offset: u64, len: u64) -> io::Result<()> {
    let mut data = Buffer::new(len.min(LOOKED_THROUGH as u64) as usize);
    let mut done = 0;
    while done < len {
        let piece = (len - done).min(data.len() as u64) as usize;
        image.read_at(&mut data[..piece], offset + done)?;
        done += piece as u64;
    }
    Ok(())
}

/// What the range is made of: one extent after the other, as many as go into a reply.
fn extents(image: &dyn Image, request: &Request) -> io::Result<Done> {
    let most = if request.one_extent() { 1 } else { MOST_EXTENTS };
    let (mut offset, mut left) = (request.offset, u64::from(request.len));
    if left == 0 {
        return Err(refusal("a range of no bytes has no status"));
    }
    let mut extents = Vec::new();
    while left > 0 && extents.len() < most {
        let extent = image.extent(offset, left)?;
        extents.push(protocol::extent(extent.len as u32, !extent.allocated, extent.zero));
        (offset, left) = (offset + extent.len, left - extent.len);
    }
    Ok(Done::Extents(extents))
}
