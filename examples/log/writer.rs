//! A writer, shared by both sides: labels a record, appends it and counts it, until it is time to
//! stop.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::options::{LABEL, Options};

/// The state that all writers of a round share.
pub struct Job {
    payload: usize,
    stagger: u32,
    records: u64,
    until: Option<Instant>,
    acknowledge: bool,
    /// Number of records already in the log. Writers count from here, so that labels are unique.
    base: u64,
    acknowledged: AtomicU64,
}

impl Job {
    pub fn new(options: &Options, base: u64) -> Job {
        let until = match options.records {
            Some(_) => None,
            None => Instant::now().checked_add(Duration::from_secs_f64(options.seconds)),
        };
        Job {
            payload: options.payload,
            stagger: options.stagger,
            records: options.records.unwrap_or(u64::MAX),
            until,
            acknowledge: options.acknowledge,
            base,
            acknowledged: AtomicU64::new(0),
        }
    }

    /// Runs one writer from its first record to its last; `pause` lets others run.
    pub fn write(&self, writer: u32, pause: fn(), append: impl Fn(&[u8]) -> io::Result<u64>) -> io::Result<()> {
        let mut payload = vec![writer as u8; self.payload];
        payload[..4].copy_from_slice(&writer.to_le_bytes());
        for count in (self.base..).take(usize::try_from(self.records).unwrap_or(usize::MAX)) {
            if self.until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            // Cyclic, so that with a small `stagger` several writers pause equally often.
            (0..u64::from(writer) % (u64::from(self.stagger) + 1)).for_each(|_| pause());
            payload[4..LABEL].copy_from_slice(&count.to_le_bytes());
            append(&payload)?;
            // Relaxed: read only after all writers have been joined.
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
            if self.acknowledge {
                // Line-buffered, so it is printed before the next record begins.
                writeln!(io::stdout(), "{writer} {count}")?;
            }
        }
        Ok(())
    }

    /// Returns the number of records on stable storage.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

/// Returns the writer and its record count, or `None` if the payload is not from a writer of this
/// program.
pub fn label(payload: &[u8]) -> Option<(u32, u64)> {
    let (writer, count) = (payload.get(..4)?, payload.get(4..LABEL)?);
    let writer = u32::from_le_bytes(writer.try_into().ok()?);
    let whole = payload[LABEL..].iter().all(|byte| *byte == writer as u8);
    whole.then_some((writer, u64::from_le_bytes(count.try_into().ok()?)))
}
