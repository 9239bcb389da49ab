//! The store: all pairs in memory, and on disk a snapshot and a write-ahead log.
//!
//! ```text
//!   DIR/snapshot     the pairs at the start of generation 3, and its number; none in generation 0
//!   DIR/log.3        the pairs put since, in order
//! ```
//!
//! - A put returns when its record is in the log and the log is synced. Many puts share a sync
//!   ([`GroupCommit`]).
//! - A snapshot replaces a long log. The new snapshot is written to another file, which is renamed
//!   over the old snapshot: after a crash there is one or the other.
//! - A failed sync is not tried again: the second one could succeed without the data of the first.
//!   The store acknowledges nothing more until it is opened again.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use clap::ValueEnum;
use coralio::commit::GroupCommit;
use coralio::fs::{Direct, read, remove_file, rename, sync_dir};
use coralio::{File, OpenOptions, spawn};

use super::record::{decode, encode};

/// A step left out, to see the crash test find it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Flaw {
    NoSync,             // a put does not sync the log
    EarlyAcknowledge,   // a put returns while the log is still being synced
    NoDirectorySync,    // the directory is not synced after its names have changed
    SyncRetried,        // a failed sync of the log is tried again
    NoSyncBeforeRename, // a snapshot is renamed before it is synced
    NoChecksum,         // checksums of records in the log are not compared
    NoTruncate,         // recovery does not truncate the log after its last valid record
}

type Pairs = BTreeMap<Vec<u8>, Vec<u8>>;
type Batch = Vec<(Vec<u8>, Vec<u8>)>;
type Commit = Box<dyn FnMut(&mut Batch) -> io::Result<()>>;

/// An open store, shared by the coroutines of one context. No other process may have it open.
pub struct Store {
    pairs: Rc<RefCell<Pairs>>,
    group: GroupCommit<Batch, Commit>,
}

impl Store {
    /// Opens or creates the store of a directory. A snapshot replaces a log of more than `max_log` bytes.
    pub fn open(dir: &Path, max_log: u64, flaw: Option<Flaw>) -> io::Result<Store> {
        let (mut log, pairs) = Log::recover(dir, flaw)?;
        let pairs = Rc::new(RefCell::new(pairs));
        let commit: Commit = Box::new({
            let pairs = Rc::clone(&pairs);
            move |batch| {
                log.append(batch)?;
                pairs.borrow_mut().extend(batch.drain(..));
                if log.end > max_log { log.checkpoint(&pairs) } else { Ok(()) }
            }
        });
        Ok(Store { pairs, group: GroupCommit::new(commit) })
    }

    /// Returns a key's value. The value is on stable storage.
    pub fn get(&self, key: &[u8]) -> Option<Vec<u8>> {
        self.pairs.borrow().get(key).cloned()
    }

    /// Sets a key's value. Returns when the change is on stable storage.
    pub fn put(&self, key: &[u8], value: &[u8]) -> io::Result<()> {
        self.group.append(|batch| batch.push((key.to_vec(), value.to_vec())))
    }
}

/// The files. One coroutine at a time uses them: the leader of a group commit.
struct Log {
    dir: PathBuf,
    generation: u64,
    file: Rc<File>,
    end: u64,
    flaw: Option<Flaw>,
}

impl Log {
    /// Reads snapshot and log, and truncates the log after its last valid record.
    fn recover(dir: &Path, flaw: Option<Flaw>) -> io::Result<(Log, Pairs)> {
        let (generation, mut pairs) = read_snapshot(&dir.join("snapshot"))?;
        let file = Rc::new(options().truncate(false).open(log_path(dir, generation))?);
        let mut bytes = vec![0; file.len()? as usize];
        file.read_exact_at(&mut bytes, 0)?;
        let end = replay(&bytes, flaw != Some(Flaw::NoChecksum), &mut pairs);
        let log = Log { dir: dir.to_path_buf(), generation, file, end: end as u64, flaw };
        // After a failed sync these bytes may be only in the page cache, until they are written
        // again.
        log.file.write_at(&bytes[..end], 0)?;
        if flaw != Some(Flaw::NoTruncate) {
            log.file.set_len(log.end)?;
        }
        log.file.sync_all()?;
        log.sync_names()?;
        Ok((log, pairs))
    }

    /// Appends records, and makes them durable.
    fn append(&mut self, batch: &Batch) -> io::Result<()> {
        let mut bytes = Vec::new();
        batch.iter().for_each(|(key, value)| encode(&mut bytes, key, value));
        self.file.write_at(&bytes, self.end)?;
        self.end += bytes.len() as u64;
        match self.flaw {
            Some(Flaw::NoSync) => Ok(()),
            Some(Flaw::EarlyAcknowledge) => {
                let file = Rc::clone(&self.file);
                drop(spawn(move || file.sync_data()));
                Ok(())
            }
            Some(Flaw::SyncRetried) => self.file.sync_data().or_else(|_| self.file.sync_data()),
            _ => self.file.sync_data(),
        }
    }

    /// Begins a new generation: an empty log and a snapshot of all pairs.
    fn checkpoint(&mut self, pairs: &RefCell<Pairs>) -> io::Result<()> {
        let next = self.generation + 1;
        let (mut records, mut snapshot) = (Vec::new(), Vec::new());
        pairs.borrow().iter().for_each(|(key, value)| encode(&mut records, key, value));
        encode(&mut snapshot, &next.to_le_bytes(), &records);
        // Files of these names may exist already, after a crash during an earlier checkpoint.
        let log = options().truncate(true).open(log_path(&self.dir, next))?;
        let beside = self.dir.join("snapshot.new");
        let file = options().truncate(true).open(&beside)?;
        file.write_at(&snapshot, 0)?;
        if self.flaw != Some(Flaw::NoSyncBeforeRename) {
            file.sync_all()?;
        }
        log.sync_all()?;
        rename(&beside, self.dir.join("snapshot"))?;
        self.sync_names()?;
        let old = log_path(&self.dir, self.generation);
        (self.file, self.generation, self.end) = (Rc::new(log), next, 0);
        remove_file(old)
    }

    /// Makes created and renamed files durable under their names.
    fn sync_names(&self) -> io::Result<()> {
        if self.flaw == Some(Flaw::NoDirectorySync) { Ok(()) } else { sync_dir(&self.dir) }
    }
}

/// Returns the generation and the pairs of a snapshot: one record, whose value has all records.
fn read_snapshot(path: &Path) -> io::Result<(u64, Pairs)> {
    let bytes = match read(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok((0, Pairs::new())),
        bytes => bytes?,
    };
    let damaged = || io::Error::new(ErrorKind::InvalidData, format!("{} is damaged", path.display()));
    let (generation, records, _) = decode(&bytes, true).ok_or_else(damaged)?;
    let mut pairs = Pairs::new();
    replay(records, true, &mut pairs);
    Ok((u64::from_le_bytes(generation.try_into().map_err(|_| damaged())?), pairs))
}

/// Applies the valid records at the start of `bytes`. Returns where they end.
fn replay(bytes: &[u8], checks: bool, pairs: &mut Pairs) -> usize {
    let mut rest = bytes;
    while let Some((key, value, next)) = decode(rest, checks) {
        pairs.insert(key.to_vec(), value.to_vec());
        rest = next;
    }
    bytes.len() - rest.len()
}

fn log_path(dir: &Path, generation: u64) -> PathBuf {
    dir.join(format!("log.{generation}"))
}

/// Returns options to read, write and create a file, through the page cache: records have any length.
fn options() -> OpenOptions {
    File::options().read(true).write(true).create(true).direct(Direct::Never)
}
