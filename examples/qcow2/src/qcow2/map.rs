//! Maps a guest's offset to the location of its data.

use std::io;

use super::Qcow2;
use super::geometry::{COPIED, Kind, OFFSET, Run};
use crate::error::damaged;

impl Qcow2 {
    /// Returns the mapping of `offset` and how far it continues, up to `len` bytes. `len` must not
    /// be 0.
    ///
    /// If there is no L2 table, the run may extend to the end of the range of that table instead of
    /// a slice: a caller that creates the table must not rely on the length beyond the slice.
    ///
    /// Does no I/O, locking or allocation if the L2 slice is cached.
    #[inline]
    pub(crate) fn map(&self, offset: u64, len: u64) -> io::Result<Run> {
        let Some(table) = self.l2_table(offset)? else {
            let len = len.min(self.geometry.left_in_l2(offset));
            return Ok(Run { kind: Kind::Unallocated, len });
        };
        let (slice, at) = self.geometry.l2_place(offset);
        let run = |bytes: &[u8]| self.geometry.run(bytes, at, offset, len);
        match self.l2.peek(table + slice, run) {
            Some(run) => run,
            None => self.l2.with(table + slice, run)?,
        }
    }

    /// Returns the offset of the L2 table for `offset`, if there is one.
    #[inline]
    pub(crate) fn l2_table(&self, offset: u64) -> io::Result<Option<u64>> {
        let table = self.geometry.l2_table(self.l1.borrow().get(self.geometry.l1_index(offset)))?;
        Ok((table != 0).then_some(table))
    }

    /// Like [`l2_table`](Qcow2::l2_table), but the returned table may be modified; creates it if
    /// there is none.
    pub(crate) fn own_l2_table(&self, offset: u64) -> io::Result<u64> {
        let index = self.geometry.l1_index(offset);
        let entry = |()| self.l1.borrow().get(index);
        if entry(()) & COPIED != 0 {
            return Ok(entry(()) & OFFSET);
        }
        let _lock = self.making_l2.lock();
        match self.l2_table(offset)? {
            Some(_) if entry(()) & COPIED != 0 => {}
            Some(table) => {
                // The program that created the table has not set the flag.
                if self.refcount_of(table)? != 1 {
                    let message = format!("the L2 table at {table:#x} is shared, but there are no snapshots");
                    return Err(damaged(format!("{message}: repair the image with qemu-img check -r all")));
                }
                self.l1.borrow_mut().set(index, table | COPIED);
            }
            None => {
                let table = self.new_table()?;
                self.l1.borrow_mut().set(index, table | COPIED);
            }
        }
        Ok(entry(()) & OFFSET)
    }
}
