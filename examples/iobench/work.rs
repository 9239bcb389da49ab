//! The work: the sequence of offsets, and the end condition. All implementations take their offsets
//! from it, so they do the same work and pay the same cost for them.

use std::cell::{Cell, RefCell};
use std::io;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;

/// Latencies in nanoseconds, to three significant digits.
pub type Latencies = Histogram<u64>;

/// Number of operations before the clock starts: they fault in the memory and fill caches and
/// predictors.
pub const WARM_UP: u64 = 4096;

/// Number of operations between two reads of the clock.
const CHUNK: u64 = 512;

/// The end condition of a round.
#[derive(Clone, Copy)]
pub enum Limit {
    Ops(u64),
    Time(Duration),
}

/// The order of the blocks.
#[derive(Clone, Copy)]
pub enum Pattern {
    Random {
        seed: u64,
    },
    /// From the start in steps of `blocks`, wrapping around at the end.
    Steps {
        blocks: u64,
    },
}

/// The offsets of one round, and how many are left.
pub struct Work {
    block: u64,
    blocks: u64,
    pattern: Pattern,
    /// State of the generator, or the number of the next block.
    state: Cell<u64>,
    /// Operations until the limit is checked again.
    left: Cell<u64>,
    /// Operations handed out so far, plus `left`.
    granted: Cell<u64>,
    until: Cell<Option<Instant>>,
    latencies: Option<RefCell<Stopwatch>>,
}

/// Measures the latency of each operation, at one reading of the clock per operation: an operation
/// lasts until the next one with the same buffer begins.
struct Stopwatch {
    /// When the latest operation of each buffer began.
    began: Vec<Option<Instant>>,
    latencies: Latencies,
}

impl Stopwatch {
    fn lap(&mut self, buffer: usize) {
        let now = Instant::now();
        if let Some(began) = self.began[buffer].replace(now) {
            self.latencies.saturating_record((now - began).as_nanos() as u64);
        }
    }
}

/// Covers one nanosecond to one minute; longer operations count as one minute.
pub fn histogram() -> Latencies {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).expect("constant bounds, in order")
}

impl Work {
    /// With `buffers`, measures latencies.
    pub fn new(block: u64, blocks: u64, pattern: Pattern, buffers: Option<u32>) -> Work {
        let (pattern, state) = match pattern {
            Pattern::Random { seed } => (pattern, seed),
            Pattern::Steps { blocks: step } => (Pattern::Steps { blocks: step % blocks }, 0),
        };
        Work {
            block,
            blocks,
            pattern,
            state: Cell::new(state),
            left: Cell::new(0),
            granted: Cell::new(0),
            until: Cell::new(None),
            latencies: buffers
                .map(|count| RefCell::new(Stopwatch { began: vec![None; count as usize], latencies: histogram() })),
        }
    }

    /// Begins a new round. The sequence of offsets continues.
    pub fn begin(&self, limit: Limit) {
        if let Some(stopwatch) = &self.latencies {
            let mut stopwatch = stopwatch.borrow_mut();
            stopwatch.began.fill(None);
            stopwatch.latencies.reset();
        }
        let (left, until) = match limit {
            Limit::Ops(count) => (count, None),
            Limit::Time(time) => (CHUNK, Instant::now().checked_add(time)),
        };
        self.left.set(left);
        self.granted.set(left);
        self.until.set(until);
    }

    /// Returns the next offset for a buffer whose operation, if any, is done; `None` when the work is
    /// done.
    #[inline(always)]
    pub fn next(&self, buffer: usize) -> Option<u64> {
        if let Some(stopwatch) = &self.latencies {
            stopwatch.borrow_mut().lap(buffer);
        }
        let left = self.left.get();
        if left == 0 {
            return self.more();
        }
        self.left.set(left - 1);
        Some(self.offset())
    }

    /// Ends the work after a failure: no more offsets are handed out.
    pub fn stop(&self) {
        self.granted.set(self.done());
        self.left.set(0);
        self.until.set(None);
    }

    /// Returns the latencies since `begin`, if they are measured.
    pub fn latencies(&self) -> Option<Latencies> {
        self.latencies.as_ref().map(|stopwatch| stopwatch.borrow().latencies.clone())
    }

    /// Returns the number of operations handed out since `begin`.
    pub fn done(&self) -> u64 {
        self.granted.get() - self.left.get()
    }

    #[cold]
    fn more(&self) -> Option<u64> {
        if Instant::now() >= self.until.get()? {
            self.until.set(None);
            return None;
        }
        self.left.set(CHUNK - 1);
        self.granted.set(self.granted.get() + CHUNK);
        Some(self.offset())
    }

    #[inline]
    fn offset(&self) -> u64 {
        // Both avoid a division, whose cost would be visible in the results.
        let block = match self.pattern {
            Pattern::Steps { blocks: step } => {
                let block = self.state.get();
                let next = block + step;
                self.state.set(if next >= self.blocks { next - self.blocks } else { next });
                block
            }
            Pattern::Random { .. } => {
                // splitmix64, scaled to the range by a multiplication.
                let state = self.state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
                self.state.set(state);
                let mut z = state;
                z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                z ^= z >> 31;
                ((u128::from(z) * u128::from(self.blocks)) >> 64) as u64
            }
        };
        block * self.block
    }
}

/// Describes a failed operation with this `result`, a count or a negative error number. For the
/// bare sides.
#[cold]
pub fn failed(verb: &str, block: u64, offset: u64, result: i64) -> String {
    match u64::try_from(result) {
        Ok(count) => short(verb, block, offset, count),
        Err(_) => {
            let error = io::Error::from_raw_os_error(-result as i32);
            format!("{verb} of {block} bytes at offset {offset}: {error}")
        }
    }
}

/// Describes a short transfer, for all sides.
pub fn short(verb: &str, block: u64, offset: u64, count: u64) -> String {
    format!(
        "short {verb}: {count} of {block} bytes at offset {offset}; was the file truncated, or does it report a wrong \
         length?"
    )
}
