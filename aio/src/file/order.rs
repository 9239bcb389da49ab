//! The order of direct and page-cached writes of one inode.
//!
//! Before a direct write the kernel writes back and drops the pages of its range, and it drops them
//! again when the write has completed. If a page-cached write dirties one of these pages in
//! between, the second drop fails, and the kernel reports EIO at the next sync, even if the two
//! writes do not overlap. So the two kinds are never in flight at the same time; writes of the same
//! kind may be:
//!
//! ```text
//!   direct       increments its count, and starts unless a page-cached write is in flight or waits
//!   page-cached  increments its count, and waits until no direct write is in flight
//! ```
//!
//! Reads need no order: before a direct read the kernel writes back cached pages of the range, and
//! a page loaded by a page-cached read is clean, so dropping it succeeds.
//!
//! A destructor that writes while its stack unwinds cannot wait for another coroutine: the write
//! starts immediately, and may meet a write of the other kind.
//!
//! All [`File`](super::File)s of an inode on one thread, and thus in one context, share an order.
//! Writes of other contexts or processes are ordered only by the kernel's own guarantees.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::{Rc, Weak};

use coralio_runtime::{Cancelled, CoMutex, CoQueue, CoRwLock, CoRwReadGuard, can_suspend};

/// Identifies an inode: device and number, or the equivalent of the simulated backend. If two were
/// confused, the only consequence would be more order than necessary.
pub(super) type Inode = (u64, u64);

thread_local! {
    /// The orders of the inodes that have a `File` on this thread.
    static ORDERS: RefCell<BTreeMap<Inode, Weak<WriteOrder>>> = const { RefCell::new(BTreeMap::new()) };
}

/// See the module documentation.
pub(super) struct WriteOrder {
    inode: Inode,
    /// Direct writes in flight.
    direct: Cell<u32>,
    /// Page-cached writes in flight, or waiting for direct ones.
    cached: Cell<u32>,
    /// Read-locked by each page-cached write. A direct write that finds one takes the write lock
    /// before it starts, so that the two kinds take turns in order of arrival.
    gate: CoRwLock<()>,
    /// Protects the wait on `drained` until `direct` is 0.
    drain: CoMutex<()>,
    drained: CoQueue,
}

impl WriteOrder {
    /// Returns the order of an inode on this thread.
    pub(super) fn of(inode: Inode) -> Rc<WriteOrder> {
        ORDERS.with_borrow_mut(|orders| {
            orders.get(&inode).and_then(Weak::upgrade).unwrap_or_else(|| {
                let order = Rc::new(WriteOrder::new(inode));
                orders.insert(inode, Rc::downgrade(&order));
                order
            })
        })
    }

    fn new(inode: Inode) -> WriteOrder {
        WriteOrder {
            inode,
            direct: Cell::new(0),
            cached: Cell::new(0),
            gate: CoRwLock::new(()),
            drain: CoMutex::new(()),
            drained: CoQueue::new(),
        }
    }

    /// Starts a direct write, after the page-cached writes that came before it.
    ///
    /// # Control
    ///
    /// May yield.
    #[inline]
    pub(super) fn direct(&self) -> Result<DirectWrite<'_>, Cancelled> {
        if self.cached.get() > 0 {
            self.pass_gate()?;
        }
        self.direct.set(self.direct.get() + 1);
        Ok(DirectWrite(self))
    }

    #[cold]
    fn pass_gate(&self) -> Result<(), Cancelled> {
        // A destructor that writes during unwinding cannot wait for another coroutine, and proceeds
        // immediately.
        if can_suspend() {
            drop(self.gate.write_cancellable()?);
        }
        Ok(())
    }

    /// Starts a page-cached write, after the direct writes that came before it.
    ///
    /// # Control
    ///
    /// May yield.
    pub(super) fn cached(&self) -> Result<Option<CachedWrite<'_>>, Cancelled> {
        if !can_suspend() {
            return Ok(None);
        }
        let write = CachedWrite::new(self, self.gate.read_cancellable()?);
        if self.direct.get() > 0 {
            self.wait_until_drained()?;
        }
        Ok(Some(write))
    }

    #[cold]
    fn wait_until_drained(&self) -> Result<(), Cancelled> {
        let mut drain = self.drain.lock_cancellable()?;
        while self.direct.get() > 0 {
            drain = self.drained.wait_cancellable(drain)?;
        }
        Ok(())
    }

    #[cold]
    fn wake(&self) {
        self.drained.wake_all();
    }
}

impl Drop for WriteOrder {
    fn drop(&mut self) {
        // Fails while the thread ends: the table is then gone.
        let _ = ORDERS.try_with(|orders| orders.borrow_mut().remove(&self.inode));
    }
}

/// A direct write in flight.
pub(super) struct DirectWrite<'a>(&'a WriteOrder);

impl Drop for DirectWrite<'_> {
    #[inline]
    fn drop(&mut self) {
        let WriteOrder { direct, cached, .. } = self.0;
        direct.set(direct.get() - 1);
        if direct.get() == 0 && cached.get() > 0 {
            self.0.wake();
        }
    }
}

/// A page-cached write, in flight or waiting.
pub(super) struct CachedWrite<'a> {
    cached: &'a Cell<u32>,
    /// Released after the count is decremented: the direct write that gets the lock next sees no
    /// page-cached write.
    _gate: CoRwReadGuard<'a, ()>,
}

impl<'a> CachedWrite<'a> {
    fn new(order: &'a WriteOrder, gate: CoRwReadGuard<'a, ()>) -> CachedWrite<'a> {
        order.cached.set(order.cached.get() + 1);
        CachedWrite { cached: &order.cached, _gate: gate }
    }
}

impl Drop for CachedWrite<'_> {
    fn drop(&mut self) {
        self.cached.set(self.cached.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use coralio_runtime::{Coroutine, spawn, yield_now};

    use super::*;

    /// Starts writes of the given kinds, in that order. Returns the log of their starts and ends.
    fn run(kinds: &str, cancelled: &[usize]) -> String {
        crate::run(|| {
            let (order, log) = (WriteOrder::of((0, 0)), Rc::new(RefCell::new(String::new())));
            let start = |kind| {
                let (order, log) = (Rc::clone(&order), Rc::clone(&log));
                spawn(move || {
                    let begun = match kind {
                        'd' => order.direct().map(|write| (Some(write), None)),
                        _ => order.cached().map(|write| (None, write)),
                    };
                    let Ok(_write) = begun else { return };
                    log.borrow_mut().push(kind);
                    for _ in 0..3 {
                        yield_now();
                    }
                    log.borrow_mut().push(kind.to_ascii_uppercase());
                })
            };
            let writes: Vec<_> = kinds.chars().map(start).collect();
            yield_now();
            cancelled.iter().for_each(|&number| Coroutine::cancel(writes[number].coroutine()));
            writes.into_iter().for_each(|write| write.join().unwrap());
            assert_eq!((order.direct.get(), order.cached.get()), (0, 0));
            log.take()
        })
    }

    #[test]
    fn write_kinds_take_turns() {
        // E15: writes of one kind overlap, those of different kinds do not, in order of arrival.
        assert_eq!(run("ddd", &[]), "dddDDD");
        assert_eq!(run("ccc", &[]), "cccCCC");
        assert_eq!(run("dcdc", &[]), "dDcCdDcC");
        assert_eq!(run("ddccdd", &[]), "ddDDccCCddDD");
    }

    #[test]
    fn open_inode_has_one_write_order() {
        // E15: its files share it, and the last one removes it from the table.
        let order = WriteOrder::of((1, 2));
        assert!(Rc::ptr_eq(&order, &WriteOrder::of((1, 2))));
        assert!(!Rc::ptr_eq(&order, &WriteOrder::of((1, 3))));
        assert_eq!(ORDERS.with_borrow(|orders| orders.keys().copied().collect::<Vec<_>>()), [(1, 2)]);
        drop(order);
        assert!(ORDERS.with_borrow(BTreeMap::is_empty));
    }

    #[test]
    fn cancelled_write_gives_up_its_turn() {
        // E11: a write that is cancelled while it waits does not delay others.
        assert_eq!(run("dcd", &[1]), "ddDD");
        assert_eq!(run("cdc", &[1]), "ccCC");
        assert_eq!(run("dcdcd", &[1, 3]), "dddDDD");
    }
}
