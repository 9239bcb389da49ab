//! The simulation's events: a hash of all of them, and a log of the most recent ones.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::disk::Damage;
use crate::backend::Opcode;

/// A name for the log, which only a run with a log looks up: not part of the hash.
#[derive(Debug)]
pub(crate) struct Name(pub(crate) String);

impl Hash for Name {
    fn hash<H: Hasher>(&self, _: &mut H) {}
}

/// An event.
#[derive(Debug, Hash)]
pub(crate) enum Event {
    Submitted {
        offered: usize,
        taken: usize,
    },
    Refused {
        offered: usize,
        errno: i32,
    },
    Taken {
        number: u64,
        opcode: Opcode,
        file: usize,
        offset: u64,
        len: usize,
        hash: u64,
        name: Name,
        by: Name,
    },
    Completed {
        number: u64,
        result: i64,
        hash: u64,
    },
    Reaped {
        number: u64,
    },
    Cancelled {
        number: u64,
        stopped: bool,
    },
    /// An operation on names or ranges, which is not a request.
    Performed {
        what: String,
        by: Name,
        error: Option<String>,
    },
    Slept,
    Crashed {
        damage: Damage,
        in_flight: usize,
    },
}

impl fmt::Display for Event {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Submitted { offered, taken } if offered == taken => write!(f, "submit of {offered}"),
            Event::Submitted { offered, taken } => write!(f, "submit of {offered}: {taken} taken"),
            Event::Refused { offered, errno } => {
                write!(f, "submit of {offered} refused: {}", std::io::Error::from_raw_os_error(*errno))
            }
            Event::Taken { number, opcode, offset, len, name: Name(name), by: Name(by), .. } => {
                write!(f, "  request {number}{by}: {opcode:?}, {len} bytes at {offset} of {name}")
            }
            Event::Performed { what, by: Name(by), error: None } => write!(f, "{what}{by}"),
            Event::Performed { what, by: Name(by), error: Some(error) } => write!(f, "{what}{by} failed: {error}"),
            Event::Completed { number, result, .. } if *result < 0 => {
                write!(f, "request {number} failed: {}", std::io::Error::from_raw_os_error(-*result as i32))
            }
            Event::Completed { number, result, .. } => write!(f, "request {number} completed: {result}"),
            Event::Reaped { number } => write!(f, "request {number} reaped"),
            Event::Cancelled { number, stopped: true } => write!(f, "request {number} cancelled"),
            Event::Cancelled { number, .. } => write!(f, "request {number} continues in spite of its cancel"),
            Event::Slept => f.write_str("woke up"),
            Event::Crashed { damage: Damage { kept, dropped, torn }, in_flight } => write!(
                f,
                "CRASH with {in_flight} in flight; unsynced sectors: {kept} kept, {dropped} dropped, {torn} torn"
            ),
        }
    }
}

/// FNV-1a by words, so that a hash has the same value in every version.
pub(crate) struct Fnv(u64);

impl Default for Fnv {
    fn default() -> Fnv {
        Fnv(0xcbf2_9ce4_8422_2325)
    }
}

impl Hasher for Fnv {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        let words = bytes.chunks_exact(8);
        let rest = words.remainder();
        words.for_each(|word| self.write_u64(u64::from_le_bytes(word.try_into().expect("8 bytes"))));
        rest.iter().for_each(|&byte| self.write_u64(u64::from(byte)));
    }

    fn write_u64(&mut self, word: u64) {
        // Rotates the high bits down, because multiplication only moves bits up.
        self.0 = (self.0 ^ word).wrapping_mul(0x0000_0100_0000_01b3).rotate_left(29);
    }
}

/// Returns the hash of `bytes`.
pub(crate) fn hash_of(bytes: &[u8]) -> u64 {
    let mut hash = Fnv::default();
    hash.write(bytes);
    hash.finish()
}

/// Maximum number of events in the log.
const MAX_LOG: usize = 60;

pub(crate) struct Trace {
    hash: Fnv,
    /// Recorded only if it will be printed.
    log: Option<VecDeque<String>>,
    told: u64,
}

impl Trace {
    pub(crate) fn new(tells: bool) -> Trace {
        Trace { hash: Fnv::default(), log: tells.then(VecDeque::new), told: 0 }
    }

    pub(crate) fn add(&mut self, now: Duration, event: &Event) {
        now.hash(&mut self.hash);
        event.hash(&mut self.hash);
        self.told += 1;
        if let Some(log) = &mut self.log {
            if log.len() == MAX_LOG {
                log.pop_front();
            }
            log.push_back(format!("{:>14}  {event}", format!("{now:?}")));
        }
    }

    pub(crate) fn has_log(&self) -> bool {
        self.log.is_some()
    }

    pub(crate) fn hash(&self) -> u64 {
        self.hash.finish()
    }

    pub(crate) fn log(&self) -> String {
        let lines = self.log.iter().flatten();
        let left_out = self.told - lines.clone().count() as u64;
        let first = (left_out > 0).then(|| format!("    ({left_out} earlier events omitted)\n"));
        first.into_iter().chain(lines.map(|line| format!("    {line}\n"))).collect()
    }
}
