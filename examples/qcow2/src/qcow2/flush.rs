//! What is dirty goes to disk, in an order in which the power may go at any moment.
//!
//! ```text
//!   refcounts             a cluster is counted            } in any order: at worst they count
//!   refcount table        before anything refers to it    } what nothing refers to, a leak
//!     sync                with them: the data, and tables that were made
//!   L1, L2                now all that they refer to is on the medium, and what they referred to is still counted
//!     sync
//!   what was given up     is counted no more, and may be written anew
//! ```
//!
//! So what is on the medium never refers to a cluster that is not counted, or not written, or another's. The L2 slices are
//! copied first: what a writer adds later waits for the next flush, as its refcount may not be in this one.

use std::cell::{Cell, RefCell};
use std::io;

use coralio_aio::{AlignedBuf, CoMutex, shield};

use super::Qcow2;

/// When so many places in the file wait to be free, somebody flushes.
const MANY: usize = 4096;

/// Space of the file is given back to the file system from so many bytes on: for less, it is not worth the call.
const WORTH_PUNCHING: u64 = 64 << 10;

/// A place in the file that the tables in memory do not refer to any more.
#[derive(Clone, Copy, Debug)]
struct GivenUp {
    offset: u64,
    len: u64,
    epoch: u64,
    /// Its clusters are nobody else's.
    alone: bool,
}

#[derive(Default)]
pub(crate) struct Flushes {
    one_at_a_time: CoMutex<()>,
    /// How many have begun, and the last one of them that has ended well.
    begun: Cell<u64>,
    ended: Cell<u64>,
    /// The tables on disk may still refer to these.
    given_up: RefCell<Vec<GivenUp>>,
    /// These they do not: they wait for requests that may still use them.
    retired: RefCell<Vec<GivenUp>>,
    /// A sync failed: what was written since the last one may be lost, though reads still show it. Or the header's write did, and
    /// may be there all the same.
    pub(crate) broken: Cell<bool>,
}

impl Flushes {
    /// Nothing refers to these clusters of the file from now on, but the tables on disk.
    pub(crate) fn give_up(&self, offset: u64, len: u64, epoch: u64) {
        let mut all = self.given_up.borrow_mut();
        match all.last_mut() {
            Some(last) if last.alone && last.epoch == epoch && last.offset + last.len == offset => last.len += len,
            _ => all.push(GivenUp { offset, len, epoch, alone: true }),
        }
    }

    /// As [`give_up`](Flushes::give_up), of bytes that may share a cluster with others: each is counted by itself.
    pub(crate) fn give_up_shared(&self, offset: u64, len: u64, epoch: u64) {
        self.given_up.borrow_mut().push(GivenUp { offset, len, epoch, alone: false });
    }
}

impl Qcow2 {
    /// Flushes if much is dirty. For the end of a request: nothing is locked there.
    #[inline]
    pub(crate) fn relieve(&self) -> io::Result<()> {
        if self.l2.is_full() || self.refcounts.is_full() || self.flushes.given_up.borrow().len() > MANY {
            self.flush_all()?;
        }
        Ok(())
    }

    /// All that was written before the call is on stable storage when this returns.
    pub(crate) fn flush_all(&self) -> io::Result<()> {
        let flushes = &self.flushes;
        let need = flushes.begun.get() + 1;
        let _alone = flushes.one_at_a_time.lock();
        if flushes.ended.get() >= need {
            return Ok(()); // somebody's flush began after this call
        }
        let number = flushes.begun.get() + 1;
        flushes.begun.set(number);
        self.write_tables()?;
        flushes.ended.set(number);
        self.free_retired()
    }

    fn write_tables(&self) -> io::Result<()> {
        let flushes = &self.flushes;
        let given_up = flushes.given_up.take();
        let (l1, l2) = (self.l1.borrow_mut().take_dirty(), self.l2.take_dirty());
        let done = self.write_counts().and_then(|()| {
            self.sync()?;
            if l1.is_empty() && l2.is_empty() {
                return Ok(());
            }
            self.write_pieces(&l1)?;
            self.write_pieces(&l2)?;
            self.sync()
        });
        self.l2.written(&l2, done.is_ok());
        match done {
            Ok(()) => flushes.retired.borrow_mut().extend(given_up),
            Err(_) => {
                self.l1.borrow_mut().failed(&l1);
                flushes.given_up.borrow_mut().extend(given_up);
            }
        }
        done
    }

    /// Refcounts, and where they are.
    fn write_counts(&self) -> io::Result<()> {
        let counts = self.refcounts.take_dirty();
        let done = self.write_pieces(&counts);
        self.refcounts.written(&counts, done.is_ok());
        done?;
        let table = self.reftable.borrow_mut().take_dirty();
        if table.is_empty() {
            return Ok(());
        }
        // The blocks that it points to must be there.
        let done = self.sync().and_then(|()| self.write_pieces(&table));
        if done.is_err() {
            self.reftable.borrow_mut().failed(&table);
        }
        done
    }

    /// Counts down what nothing refers to. Their counts are written, but not synced: lost, they are leaks.
    fn free_retired(&self) -> io::Result<()> {
        let free_below = self.epochs.advance();
        let ripe: Vec<_> = self.flushes.retired.borrow_mut().extract_if(.., |one| one.epoch < free_below).collect();
        for GivenUp { offset, len, alone, .. } in &ripe {
            if *alone && *len >= WORTH_PUNCHING {
                // Where the file system cannot, the space is used again all the same.
                _ = self.file.discard(*offset, *len);
            }
            self.drop_references(*offset, *len)?;
        }
        if ripe.is_empty() { Ok(()) } else { self.write_counts() }
    }

    fn write_pieces(&self, pieces: &[(u64, AlignedBuf)]) -> io::Result<()> {
        for (offset, bytes) in pieces {
            self.file.write_at(bytes, *offset)?;
        }
        Ok(())
    }

    /// Nothing is written in reliance on a sync after one has failed.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if self.flushes.broken.get() {
            return Err(io::Error::other(
                "a sync of this image, or a write of its header, has failed: what was written since the last sync may be \
                 lost; open it again, and look at what it has",
            ));
        }
        // A sync that was cut short would look like one that failed.
        shield(|| self.file.sync_data()).inspect_err(|_| self.flushes.broken.set(true))
    }
}
