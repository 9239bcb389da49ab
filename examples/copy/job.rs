//! The state that the coroutines of a copy share: both files, the remaining blocks, and the
//! progress.

use std::cell::{Cell, RefCell};
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::Duration;

use coralio::driver::{BackendKind, Stats};
use coralio::{AlignedBuf, File};
use indicatif::{BinaryBytes, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::blocks::{Block, Blocks};
use crate::join_all::FirstError;
use crate::options::Options;
use crate::signals;

/// Page alignment suits every device.
const PAGE: usize = 4096;

/// One copy. Everything runs on one thread, so cells suffice; no borrow is held across a
/// suspension.
pub struct Job {
    pub source: File,
    pub target: File,
    pub progress: ProgressBar,
    /// The length of the source when the copy began.
    len: u64,
    block_size: u64,
    step: u64,
    blocks: RefCell<Blocks>,
    blocks_done: Cell<u64>,
    bytes_done: Cell<u64>,
    pub first_error: FirstError,
}

impl Job {
    pub fn new(source: File, target: File, options: &Options) -> io::Result<Job> {
        let len = source.len()?;
        let block_size = options.block_size;
        // Both are powers of two, so the larger one suits both.
        let step = source.alignment().block.max(target.alignment().block) as u64;
        Ok(Job {
            source,
            target,
            progress: if options.no_progress { ProgressBar::hidden() } else { progress(len) },
            len,
            block_size,
            step,
            blocks: RefCell::new(Blocks::new(len, block_size, step)),
            blocks_done: Cell::new(0),
            bytes_done: Cell::new(0),
            first_error: FirstError::default(),
        })
    }

    /// Sets the length of the copy, and checks that a source of length 0 is really empty.
    pub fn prepare(&self) -> io::Result<()> {
        // Set in advance, because the kernel serializes writes that extend a file.
        self.target.set_len(self.len.next_multiple_of(self.step))?;
        if self.len > 0 {
            return Ok(());
        }
        match self.source.read_at(&mut self.buffer(), 0) {
            Ok(0) => Ok(()),
            Err(error) if error.kind() != io::ErrorKind::InvalidInput => Err(error),
            _ => Err(io::Error::other("the source reports no length; copy files in /proc with cat")),
        }
    }

    /// Creates the buffer of a coroutine.
    pub fn buffer(&self) -> AlignedBuf {
        let align = PAGE.max(self.source.alignment().memory).max(self.target.alignment().memory);
        AlignedBuf::new(self.block_size as usize, align)
    }

    /// Returns the number of coroutines that can have work.
    pub fn most_blocks(&self) -> u64 {
        self.len.div_ceil(self.block_size)
    }

    /// Returns `None` when all blocks are taken or a coroutine has failed.
    pub fn next_block(&self) -> io::Result<Option<Block>> {
        if self.first_error.is_there() {
            return Ok(None);
        }
        check_signals()?;
        let block = self.blocks.borrow_mut().next(self.source.as_fd())?;
        if let Some(block) = &block {
            self.progress.set_position(block.offset);
        }
        Ok(block)
    }

    /// Checks that `count` bytes cover the part of the block that belongs to the file.
    pub fn check(&self, block: &Block, count: usize) -> io::Result<()> {
        if count >= block.bytes { Ok(()) } else { Err(self.shrunk(block.offset + count as u64)) }
    }

    pub fn done(&self, block: &Block) {
        self.blocks_done.set(self.blocks_done.get() + 1);
        self.bytes_done.set(self.bytes_done.get() + block.bytes as u64);
    }

    /// Truncates the last block's excess. Returns by how much the source has grown.
    pub fn finish(&self) -> io::Result<u64> {
        self.target.set_len(self.len)?;
        // A shrunk source may be detected only here, because the missing part can have been a hole.
        let now = self.source.len()?;
        now.checked_sub(self.len).ok_or_else(|| self.shrunk(now))
    }

    fn shrunk(&self, end: u64) -> io::Error {
        io::Error::new(
            io::ErrorKind::UnexpectedEof,
            format!(
                "the source ends at {end}, but its length was {} when the copy began; stop the program that truncates \
                 it and retry, or use cat for a file in /sys",
                self.len
            ),
        )
    }

    /// Describes the copy, using only measured figures.
    pub fn report(&self, coroutines: u64, took: Duration, before: &Stats, after: &Stats) -> String {
        let (blocks, bytes) = (self.blocks_done.get(), self.bytes_done.get());
        let holes = match self.len - bytes {
            0 => String::new(),
            holes => format!(" ({} of holes)", BinaryBytes(holes)),
        };
        let cache = match (self.source.is_direct(), self.target.is_direct()) {
            (true, true) => "direct",
            (true, false) => "reads direct, writes page-cached",
            (false, true) => "reads page-cached, writes direct",
            (false, false) => "page-cached",
        };
        let backend = match self.source.backend().map(|chosen| chosen.backend()) {
            Some(BackendKind::Uring) => "io_uring",
            Some(BackendKind::Threads) => "threads",
            _ => "native AIO",
        };
        let count = |n: u64, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
        let requests = after.requests - before.requests;
        let calls = |stats: &Stats| stats.submits + stats.sleeps + stats.in_place;
        let system_calls = calls(after) - calls(before);
        format!(
            "copied {}{holes} in {:.2} s: {:.0} MB/s, {}, {}, {}, {} for {} ({backend}, {cache})\n",
            BinaryBytes(self.len),
            took.as_secs_f64(),
            bytes as f64 / took.as_secs_f64() / 1e6,
            count(coroutines, "coroutine"),
            count(blocks, "read"),
            count(blocks, "write"),
            count(system_calls, "system call"),
            count(requests, "request"),
        )
    }
}

/// Returns an error if a signal was caught.
pub fn check_signals() -> io::Result<()> {
    match signals::caught() {
        None => Ok(()),
        Some(signal) => Err(io::Error::new(io::ErrorKind::Interrupted, format!("stopped by signal {signal}"))),
    }
}

/// Creates a progress bar on standard error, hidden if that is not a terminal.
fn progress(len: u64) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let template =
        "{wide_bar} {percent:>3}% {binary_bytes} of {binary_total_bytes}, {binary_bytes_per_sec}, {eta} left";
    let style = ProgressStyle::with_template(template).expect("the template is valid");
    ProgressBar::with_draw_target(Some(len), ProgressDrawTarget::stderr()).with_style(style)
}
