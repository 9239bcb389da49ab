//! Writes dirty tables in an order that is safe against power loss at any time.
//!
//! ```text
//!   refcounts             a cluster is counted            } in any order: at worst, counted
//!   refcount table        before anything refers to it    } clusters are unreferenced, a leak
//!     sync                also covers the data and newly created tables
//!   L1, L2                all clusters that they refer to are durable, and those
//!     sync                that they no longer refer to are still counted
//!   retired clusters      are uncounted, and may be reused
//! ```
//!
//! So the tables on disk never refer to a cluster that is uncounted, not yet written, or owned by
//! another entry. The L2 slices are copied first: later changes wait for the next flush, because
//! their refcounts may not be part of this one.

use std::cell::{Cell, RefCell};
use std::io;

use coralio::AlignedBuf;
use coralio::sync::CoMutex;
use coralio::task::shield;

use super::Qcow2;

/// Number of retired ranges that triggers a flush.
const MANY: usize = 4096;

/// Minimum length of a retired range that is returned to the file system; shorter ones are not
/// worth the system call.
const WORTH_PUNCHING: u64 = 64 << 10;

/// A range of the file to which the tables in memory no longer refer.
#[derive(Clone, Copy, Debug)]
struct GivenUp {
    offset: u64,
    len: u64,
    epoch: u64,
    /// No other range shares the clusters.
    alone: bool,
}

#[derive(Default)]
pub(crate) struct Flushes {
    one_at_a_time: CoMutex<()>,
    /// The number of flushes begun.
    begun: Cell<u64>,
    /// The number of the last successful flush.
    ended: Cell<u64>,
    /// Ranges to which the tables on disk may still refer.
    given_up: RefCell<Vec<GivenUp>>,
    /// Ranges to which the tables on disk no longer refer. They wait for requests that may still
    /// use them.
    retired: RefCell<Vec<GivenUp>>,
    /// Set after a failed sync: data written since the last successful one may be lost even though
    /// reads return it. Also set after a failed write of the header, which may have reached the
    /// disk anyway.
    pub(crate) broken: Cell<bool>,
}

impl Flushes {
    /// Retires clusters to which only the tables on disk may still refer.
    pub(crate) fn give_up(&self, offset: u64, len: u64, epoch: u64) {
        let mut all = self.given_up.borrow_mut();
        match all.last_mut() {
            Some(last) if last.alone && last.epoch == epoch && last.offset + last.len == offset => last.len += len,
            _ => all.push(GivenUp { offset, len, epoch, alone: true }),
        }
    }

    /// Like [`give_up`](Flushes::give_up), for bytes that may share a cluster with others: each
    /// range drops a reference of its own.
    pub(crate) fn give_up_shared(&self, offset: u64, len: u64, epoch: u64) {
        self.given_up.borrow_mut().push(GivenUp { offset, len, epoch, alone: false });
    }
}

impl Qcow2 {
    /// Flushes if much is dirty. Called at the end of a request, when it holds no locks.
    #[inline]
    pub(crate) fn relieve(&self) -> io::Result<()> {
        if self.l2.is_full() || self.refcounts.is_full() || self.flushes.given_up.borrow().len() > MANY {
            self.flush_all()?;
        }
        Ok(())
    }

    /// Brings all data written before the call to stable storage.
    pub(crate) fn flush_all(&self) -> io::Result<()> {
        let flushes = &self.flushes;
        let need = flushes.begun.get() + 1;
        let _alone = flushes.one_at_a_time.lock();
        if flushes.ended.get() >= need {
            return Ok(()); // another flush began after this call
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

    /// Writes the refcounts and the refcount table.
    fn write_counts(&self) -> io::Result<()> {
        let counts = self.refcounts.take_dirty();
        let done = self.write_pieces(&counts);
        self.refcounts.written(&counts, done.is_ok());
        done?;
        let table = self.reftable.borrow_mut().take_dirty();
        if table.is_empty() {
            return Ok(());
        }
        // The refcount blocks must be durable before the table refers to them.
        let done = self.sync().and_then(|()| self.write_pieces(&table));
        if done.is_err() {
            self.reftable.borrow_mut().failed(&table);
        }
        done
    }

    /// Decrements the refcounts of retired ranges. The counts are written without a sync: losing
    /// them only leaks clusters.
    fn free_retired(&self) -> io::Result<()> {
        let free_below = self.epochs.advance();
        let ripe: Vec<_> = self.flushes.retired.borrow_mut().extract_if(.., |one| one.epoch < free_below).collect();
        for GivenUp { offset, len, alone, .. } in &ripe {
            if *alone && *len >= WORTH_PUNCHING {
                // If the file system cannot punch holes, the space is still reused.
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

    /// Syncs the file. After one failure every further call fails, so that no write relies on the
    /// failed sync.
    pub(crate) fn sync(&self) -> io::Result<()> {
        if self.flushes.broken.get() {
            return Err(io::Error::other(
                "a sync of the image or a write of its header failed: data written since the last sync may be lost; \
                 reopen the image and check its content",
            ));
        }
        // Shielded, because a cancelled sync would look like a failed one.
        shield(|| self.file.sync_data()).inspect_err(|_| self.flushes.broken.set(true))
    }
}
