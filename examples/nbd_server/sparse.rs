//! Sparse reads: holes are reported as such, and neither read nor sent.
//!
//! Looking for a hole costs about as much as reading one block, so only large reads look, and only
//! once per [`STEP`].

use std::io;

use coralio::yield_now;
use coralio_qcow2::Image;

use crate::buffers::Buffer;
use crate::handle;
use crate::protocol::Part;
use crate::reply::Done;

/// Minimum length of reads that look for holes, and of holes that are reported, in bytes. Shorter
/// holes are read like data.
pub const LEAST: usize = 64 << 10;
/// The length that is taken for data before looking again, in bytes.
const STEP: u64 = 256 << 10;
/// Steps before other requests run: each takes one or two system calls on the loop's thread.
const STEPS_AT_ONCE: u32 = 32;

/// Reads the data of the range and reports its holes.
pub fn read(image: &dyn Image, offset: u64, len: u32) -> io::Result<Done> {
    let parts = parts(image, offset, len)?;
    let filled = |part: &&Part| !part.hole;
    let mut data = Buffer::new(parts.iter().filter(filled).map(|part| part.len as usize).sum());
    let mut rest = &mut data[..];
    for part in parts.iter().filter(filled) {
        let (this, behind) = rest.split_at_mut(part.len as usize);
        handle::read(image, this, part.offset)?;
        rest = behind;
    }
    Ok(if parts.len() == 1 && !parts[0].hole { Done::Data(data) } else { Done::Parts(parts, data) })
}

/// Returns the parts of the range in order.
fn parts(image: &dyn Image, offset: u64, len: u32) -> io::Result<Vec<Part>> {
    let mut parts: Vec<Part> = Vec::new();
    let (mut at, end) = (offset, offset.saturating_add(len.into()));
    let mut steps = 0;
    while at < end {
        let found = image.hole(at, end - at)?;
        let hole = found >= LEAST as u64;
        let len = if hole { found } else { STEP.min(end - at) };
        match parts.last_mut().filter(|last| last.hole == hole) {
            Some(last) => last.len += len as u32,
            None => parts.push(Part { offset: at, len: len as u32, hole }),
        }
        at += len;
        steps += 1;
        if steps % STEPS_AT_ONCE == 0 {
            yield_now();
        }
    }
    Ok(parts)
}
