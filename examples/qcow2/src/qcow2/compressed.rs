//! Compressed clusters: unpacked on a thread so that the loop is not blocked. The most recent ones
//! are kept, because reading such an image in small pieces uses the same cluster many times.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::io;
use std::rc::Rc;

use coralio::{AlignedBuf, unblock};
use flate2::{Decompress, FlushDecompress};
use zstd::stream::raw::{DParameter, Decoder, InBuffer, Operation, OutBuffer};

use super::Qcow2;
use super::geometry::Packed;
use super::header::Compression;
use super::top::{PAGE, read_padded};
use crate::error::{about, damaged};

/// Maximum bytes of unpacked clusters to keep; between one and 16 clusters are kept.
const KEPT_BYTES: usize = 1 << 20;

/// The most recently unpacked clusters, newest first.
#[derive(Default)]
pub(crate) struct Unpacked {
    kept: RefCell<VecDeque<(Packed, Rc<Vec<u8>>)>>,
}

impl Unpacked {
    fn find(&self, packed: Packed) -> Option<Rc<Vec<u8>>> {
        self.kept.borrow().iter().find(|(key, _)| *key == packed).map(|(_, bytes)| Rc::clone(bytes))
    }

    fn keep(&self, packed: Packed, bytes: &Rc<Vec<u8>>) {
        let mut kept = self.kept.borrow_mut();
        kept.push_front((packed, Rc::clone(bytes)));
        kept.truncate((KEPT_BYTES / bytes.len()).clamp(1, 16));
    }
}

impl Qcow2 {
    /// Returns the unpacked bytes of a compressed cluster.
    pub(crate) fn unpack(&self, packed: Packed) -> io::Result<Rc<Vec<u8>>> {
        if let Some(bytes) = self.unpacked.find(packed) {
            return Ok(bytes);
        }
        // Start at a multiple of 512, to permit direct I/O. The length is at most slightly more
        // than two clusters, because the entry has no more bits for it.
        let lead = (packed.offset & 511) as usize;
        let mut source = AlignedBuf::new(lead + packed.len as usize, PAGE);
        let had = read_padded(&self.file, &mut source, packed.offset - lead as u64)?;
        if had <= lead {
            return Err(damaged(format!(
                "a compressed cluster at {:#x} lies beyond the end of the file",
                packed.offset
            )));
        }
        let (method, size) = (self.compression, self.geometry.cluster_size() as usize);
        let bytes = unblock(move || match method {
            Compression::Zlib => inflate(&source[lead..had], size),
            Compression::Zstd => unzstd(&source[lead..had], size),
        })?;
        let bytes = Rc::new(about(format_args!("the compressed cluster at {:#x}", packed.offset), bytes)?);
        self.unpacked.keep(packed, &bytes);
        Ok(bytes)
    }
}

/// Inflates a cluster of `size` bytes; the bytes of `source` after it belong to other clusters.
fn inflate(source: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut out = vec![0; size];
    let mut stream = Decompress::new(false);
    while (stream.total_out() as usize) < size {
        let (taken, given) = (stream.total_in() as usize, stream.total_out() as usize);
        stream
            .decompress(&source[taken..], &mut out[given..], FlushDecompress::None)
            .map_err(|error| damaged(format!("cannot be decompressed: {error}")))?;
        if stream.total_in() as usize == taken && stream.total_out() as usize == given {
            return Err(damaged(format!("decompresses to {given} of {size} bytes")));
        }
    }
    Ok(out)
}

fn unzstd(source: &[u8], size: usize) -> io::Result<Vec<u8>> {
    let mut out = vec![0; size];
    let mut stream = Decoder::new()?;
    // Reject a stream that asks for more memory than the largest cluster.
    stream.set_parameter(DParameter::WindowLogMax(23))?;
    let mut from = InBuffer::around(source);
    let mut to = OutBuffer::around(&mut out);
    while to.pos() < size {
        let before = (from.pos(), to.pos());
        stream.run(&mut from, &mut to).map_err(|error| damaged(format!("cannot be decompressed: {error}")))?;
        if (from.pos(), to.pos()) == before {
            return Err(damaged(format!("decompresses to {} of {size} bytes", to.pos())));
        }
    }
    Ok(out)
}
