//! Determines when an unreferenced cluster may be reused.
//!
//! A request that has looked up a cluster may still read or write it after the tables have changed.
//! So a retired cluster is tagged with the current epoch, and is free when all requests of that
//! epoch have ended, which is two epochs later. Requests are counted by the parity of their epoch;
//! the epoch advances when no request of the previous one is left.

use std::cell::Cell;

#[derive(Default)]
pub(crate) struct Epochs {
    now: Cell<u64>,
    here: [Cell<u32>; 2],
}

/// A request in flight.
#[must_use]
pub(crate) struct Here<'a>(&'a Cell<u32>);

impl Epochs {
    #[inline]
    pub(crate) fn enter(&self) -> Here<'_> {
        let count = &self.here[self.now.get() as usize % 2];
        count.set(count.get() + 1);
        Here(count)
    }

    /// Returns the epoch to which a cluster retired now belongs.
    pub(crate) fn now(&self) -> u64 {
        self.now.get()
    }

    /// Advances the epoch as far as possible. Clusters retired in an epoch below the returned one
    /// are free.
    pub(crate) fn advance(&self) -> u64 {
        for _ in 0..2 {
            let now = self.now.get();
            if self.here[(now as usize + 1) % 2].get() == 0 {
                self.now.set(now + 1);
            }
        }
        self.now.get() - self.now.get().min(1)
    }
}

impl Drop for Here<'_> {
    #[inline]
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::Epochs;

    #[test]
    fn clusters_visible_to_a_request_are_not_reused() {
        // A cluster is reused only when every request that may have looked it up has ended.
        let epochs = Epochs::default();
        let reader = epochs.enter();
        let given_up = epochs.now();
        for _ in 0..5 {
            assert!(epochs.advance() <= given_up);
            drop(epochs.enter()); // later requests do not block it
        }
        drop(reader);
        assert!(epochs.advance() > given_up);
    }

    #[test]
    fn later_requests_do_not_delay_reuse_forever() {
        // Under load, some request is always in flight.
        let epochs = Epochs::default();
        let given_up = epochs.now();
        let mut one = epochs.enter();
        let mut rounds = 0;
        while epochs.advance() <= given_up {
            let next = epochs.enter();
            drop(std::mem::replace(&mut one, next));
            rounds += 1;
            assert!(rounds < 5);
        }
    }
}
