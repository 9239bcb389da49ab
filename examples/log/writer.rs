//! What each writer does, on either side: label a record, append it, count it, until it is time to stop.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::options::{LABEL, Options};

/// What all writers of a round share.
pub struct Job {
    payload: usize,
    stagger: u32,
    records: u64,
    until: Option<Instant>,
    acknowledge: bool,
    /// Records in the log before: from here on each writer counts, so that no label comes twice.
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

    /// One writer, from its first record to its last; `pause` lets others run.
    pub fn write(&self, writer: u32, pause: fn(), append: impl Fn(&[u8]) -> io::Result<u64>) -> io::Result<()> {
        let mut payload = vec![writer as u8; self.payload];
        payload[..4].copy_from_slice(&writer.to_le_bytes());
        for count in (self.base..).take(usize::try_from(self.records).unwrap_or(usize::MAX)) {
            if self.until.is_some_and(|until| Instant::now() >= until) {
                break;
            }
            // Cycling, so that with few turns there are a few of each.
            (0..u64::from(writer) % (u64::from(self.stagger) + 1)).for_each(|_| pause());
            payload[4..LABEL].copy_from_slice(&count.to_le_bytes());
            append(&payload)?;
            // Relaxed: it is read when all writers have been joined.
            self.acknowledged.fetch_add(1, Ordering::Relaxed);
            if self.acknowledge {
                // By the line, so that it is out before the next record is begun.
                writeln!(io::stdout(), "{writer} {count}")?;
            }
        }
        Ok(())
    }

    /// Records that are on the medium.
    pub fn acknowledged(&self) -> u64 {
        self.acknowledged.load(Ordering::Relaxed)
    }
}

/// Who wrote it, and which of its records it is; `None`: no writer of this program's wrote that.
pub fn label(payload: &[u8]) -> Option<(u32, u64)> {
    let (writer, count) = (payload.get(..4)?, payload.get(4..LABEL)?);
    let writer = u32::from_le_bytes(writer.try_into().ok()?);
    let whole = payload[LABEL..].iter().all(|byte| *byte == writer as u8);
    whole.then_some((writer, u64::from_le_bytes(count.try_into().ok()?)))
}
