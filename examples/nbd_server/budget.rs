//! Memory for payloads: a little for each connection, and a budget that all connections share.
//!
//! A connection's own memory serves its small requests, whatever other connections do. Beyond that a connection takes memory
//! from the budget. Nobody waits for the budget: a small request that gets nothing waits for requests of its own
//! connection, and a large one is served piece by piece within the connection's own memory. So a client that holds memory
//! and does not move its payload delays no other client.
//!
//! The budget is shared fairly: a connection gets memory only while as much is left as the connection then holds. One
//! connection alone gets half of the budget, and `n` greedy ones get `1/(n+1)` each; a newcomer always finds a share.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Each connection's own memory, in bytes. A request that takes more is a large one.
pub const OWN: usize = 256 << 10;
/// What is taken for small requests at a time, in bytes. One is enough for a small request.
const UNIT: usize = OWN;

/// The memory that the connections of all threads share.
pub struct Budget {
    /// In bytes. Relaxed: a number, with which nothing else is handed over.
    free: AtomicUsize,
}

impl Budget {
    /// Creates a budget of `bytes`.
    pub fn new(bytes: usize) -> Arc<Budget> {
        Arc::new(Budget { free: AtomicUsize::new(bytes) })
    }

    /// Takes `bytes` for a connection that holds `held` already, if that is fair.
    fn try_take(&self, bytes: usize, held: usize) -> bool {
        let rest = |free: usize| free.checked_sub(bytes).filter(|&rest| rest >= held + bytes);
        self.free.fetch_update(Ordering::Relaxed, Ordering::Relaxed, rest).is_ok()
    }

    fn give_back(&self, bytes: usize) {
        self.free.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// The payload bytes that one connection has under way, and its share of the budget.
pub struct Allowance {
    budget: Arc<Budget>,
    small: Cell<usize>,
    large: Cell<usize>,
    /// Bytes taken from the budget for small requests.
    units: Cell<usize>,
}

impl Allowance {
    /// Creates the allowance of a connection that has nothing under way.
    pub fn of(budget: &Arc<Budget>) -> Allowance {
        let [small, large, units] = [0; 3].map(Cell::new);
        Allowance { budget: Arc::clone(budget), small, large, units }
    }

    pub fn under_way(&self) -> usize {
        self.small.get() + self.large.get()
    }

    fn held(&self) -> usize {
        self.large.get() + self.units.get()
    }

    /// Takes the memory of a small request; `false` if that has to wait for others of this connection.
    pub fn try_take(&self, bytes: usize) -> bool {
        debug_assert!(bytes <= OWN);
        if self.small.get() + bytes > OWN + self.units.get() {
            if !self.budget.try_take(UNIT, self.held()) {
                return false;
            }
            self.units.set(self.units.get() + UNIT);
        }
        self.small.set(self.small.get() + bytes);
        true
    }

    /// Takes the memory of a large request; `false` if the budget has none for this connection.
    pub fn try_take_large(&self, bytes: usize) -> bool {
        debug_assert!(bytes > OWN);
        let taken = self.budget.try_take(bytes, self.held());
        if taken {
            self.large.set(self.large.get() + bytes);
        }
        taken
    }

    /// Gives back the memory of one request.
    pub fn give_back(&self, bytes: usize) {
        if bytes > OWN {
            self.large.set(self.large.get() - bytes);
            return self.budget.give_back(bytes);
        }
        self.small.set(self.small.get() - bytes);
        let needed = self.small.get().saturating_sub(OWN).next_multiple_of(UNIT);
        let unused = self.units.get() - needed;
        if unused > 0 {
            self.units.set(needed);
            self.budget.give_back(unused);
        }
    }
}
