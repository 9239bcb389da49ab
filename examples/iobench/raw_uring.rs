//! The baseline on io_uring: a careful handwritten loop on the crate. The file is registered with
//! the ring. All ready requests go into one `io_uring_enter`. Completions are read from the ring in
//! memory; it waits only when there are none. No eventfd, no coroutine, one request in flight per
//! buffer.

use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::rc::Rc;

use coralio::AlignedBuf;
use io_uring::{IoUring, SubmissionQueue, opcode, types};

use crate::bare::Bare;
use crate::options::Options;
use crate::target::Target;
use crate::work::{Work, failed};

/// A ring and its requests. Their buffers never move during its lifetime.
pub struct Raw {
    ring: IoUring,
    requests: Box<[Request]>,
    in_flight: usize,
    submits: u64,
    sleeps: u64,
}

/// A request that is reused with different offsets.
struct Request {
    buffer: AlignedBuf,
    offset: u64,
    block: u32,
    write: bool,
}

impl Bare for Raw {
    const SETUP: &str = "io_uring";
    const REMEDY: &str = "reduce --depth, or use --backend aio";

    fn new(options: &Options, target: &Target) -> io::Result<Raw> {
        let ring = IoUring::new(options.depth)?;
        ring.submitter().register_files(&[target.file.as_fd().as_raw_fd()])?;
        let request = |_| Request {
            buffer: target.buffer(options),
            offset: 0,
            block: u32::try_from(options.block_size).expect("checked: at most 1 GiB"),
            write: options.write,
        };
        let requests = (0..options.depth).map(request).collect();
        Ok(Raw { ring, requests, in_flight: 0, submits: 0, sleeps: 0 })
    }

    fn run(&mut self, work: &Rc<Work>) -> Result<(), String> {
        let (submitter, mut requests, mut completions) = self.ring.split();
        let say = |e: io::Error| format!("io_uring_enter: {e}");
        for (i, request) in self.requests.iter_mut().enumerate() {
            let Some(offset) = work.next(i) else { break };
            request.push(&mut requests, i, offset);
            self.in_flight += 1;
        }
        while self.in_flight > 0 {
            requests.sync();
            if !requests.is_empty() {
                self.submits += 1;
                let submitted = submitter.submit();
                // If the kernel is out of memory for requests, completions make room.
                submitted.map(drop).or_else(|e| pass(e, io::ErrorKind::WouldBlock)).map_err(say)?;
                requests.sync();
            }
            completions.sync();
            if completions.is_empty() {
                self.sleeps += 1;
                let slept = submitter.submit_and_wait(1);
                slept.map(drop).or_else(|e| pass(e, io::ErrorKind::Interrupted)).map_err(say)?;
                requests.sync();
                completions.sync();
            }
            for completion in &mut completions {
                self.in_flight -= 1;
                let i = completion.user_data() as usize;
                let request = &mut self.requests[i];
                if completion.result() != request.block as i32 {
                    let verb = if request.write { "write" } else { "read" };
                    return Err(failed(verb, request.block.into(), request.offset, completion.result().into()));
                }
                if let Some(offset) = work.next(i) {
                    request.push(&mut requests, i, offset);
                    self.in_flight += 1;
                }
            }
        }
        Ok(())
    }

    fn calls(&self) -> Option<(u64, u64)> {
        Some((self.submits, self.sleeps))
    }
}

/// Ignores one kind of error.
fn pass(error: io::Error, kind: io::ErrorKind) -> io::Result<()> {
    if error.kind() == kind { Ok(()) } else { Err(error) }
}

impl Request {
    /// Pushes the request to the ring, which has an entry for each request.
    #[inline]
    fn push(&mut self, requests: &mut SubmissionQueue<'_>, i: usize, offset: u64) {
        self.offset = offset;
        let (file, buffer) = (types::Fixed(0), &mut self.buffer);
        let entry = if self.write {
            opcode::Write::new(file, buffer.as_ptr(), self.block).offset(offset).build()
        } else {
            opcode::Read::new(file, buffer.as_mut_ptr(), self.block).offset(offset).build()
        };
        // SAFETY: the buffer lives until `Raw`'s drop has waited for its request, and is used by no
        // other request.
        unsafe { requests.push(&entry.user_data(i as u64)) }.expect("an entry for each buffer");
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // After a failure, wait until the kernel no longer uses the buffers. This also submits the
        // remaining requests.
        while self.in_flight > 0 && self.ring.submit_and_wait(1).is_ok() {
            self.in_flight -= self.ring.completion().count();
        }
    }
}
