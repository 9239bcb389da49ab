//! Memory for payloads: a small quota per connection, and a budget that all connections share.
//!
//! A connection's quota serves its small requests, whatever other connections do. Beyond the quota,
//! a connection takes memory from the budget. No request waits for the budget: a small request that
//! gets no share waits for earlier requests of its own connection, and a large request is served
//! piece by piece within the quota. So a client that holds memory without moving its payload delays
//! no other client.
//!
//! The budget is shared fairly: a connection gets memory only while at least as much stays free as
//! the connection then holds. A single connection gets at most half of the budget, `n` greedy
//! connections get `1/(n+1)` each, and a new connection always finds a share.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The quota of each connection, in bytes. A request that needs more is a large request.
pub const FREE_QUOTA: usize = 256 << 10;
/// The unit in which small requests take memory from the budget, in bytes. One unit is enough for a
/// small request.
const UNIT: usize = FREE_QUOTA;

/// A memory budget shared by the connections of all threads.
pub struct MemoryBudget {
    /// In bytes. Relaxed: a plain counter that publishes no other data.
    free: AtomicUsize,
}

impl MemoryBudget {
    /// Creates a budget of `bytes`.
    pub fn new(bytes: usize) -> Arc<MemoryBudget> {
        Arc::new(MemoryBudget { free: AtomicUsize::new(bytes) })
    }

    /// Takes `bytes` for a connection that already holds `held`, if that is fair.
    fn try_take(&self, bytes: usize, held: usize) -> bool {
        let rest = |free: usize| free.checked_sub(bytes).filter(|&rest| rest >= held + bytes);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The payload bytes in flight on one connection, and the connection's share of the budget.
pub struct ConnectionQuota {
    budget: Arc<MemoryBudget>,
    small: Cell<usize>,
    large: Cell<usize>,
    /// Bytes taken from the budget for small requests.
    units: Cell<usize>,
}

impl ConnectionQuota {
    /// Creates the allowance of a connection with nothing in flight.
    pub fn of(budget: &Arc<MemoryBudget>) -> ConnectionQuota {
        let [small, large, units] = [0; 3].map(Cell::new);
        ConnectionQuota { budget: Arc::clone(budget), small, large, units }
    }

    pub fn under_way(&self) -> usize {
        self.small.get() + self.large.get()
    }

    fn held(&self) -> usize {
        self.large.get() + self.units.get()
    }

    /// Takes memory for a small request. Returns `false` if the request must wait for others of
    /// this connection.
    pub fn try_take(&self, bytes: usize) -> bool {
        debug_assert!(bytes <= FREE_QUOTA);
        if self.small.get() + bytes > FREE_QUOTA + self.units.get() {
            if !self.budget.try_take(UNIT, self.held()) {
                return false;
            }
            self.units.set(self.units.get() + UNIT);
        }
        self.small.set(self.small.get() + bytes);
        true
    }

    /// Takes memory for a large request. Returns `false` if the budget has none for this
    /// connection.
    pub fn try_take_large(&self, bytes: usize) -> bool {
        debug_assert!(bytes > FREE_QUOTA);
        let taken = self.budget.try_take(bytes, self.held());
        if taken {
            self.large.set(self.large.get() + bytes);
        }
        taken
    }

    /// Gives back the memory of one request.
    pub fn give_back(&self, bytes: usize) {
        if bytes > FREE_QUOTA {
            self.large.set(self.large.get() - bytes);
            return self.budget.give_back(bytes);
        }
        self.small.set(self.small.get() - bytes);
        let needed = self.small.get().saturating_sub(FREE_QUOTA).next_multiple_of(UNIT);
        let unused = self.units.get() - needed;
        if unused > 0 {
            self.units.set(needed);
            self.budget.give_back(unused);
        }
    }
}
